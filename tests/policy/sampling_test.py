"""Truncation in closed form, and draws that follow their log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.models.attention import MASKED
from adasr_jax.policy import sampling

P = np.array([.4, .3, .15, .1, .05], np.float32)
ORDER = np.array([3, 0, 4, 1, 2])  # the probabilities stand in this order
LOGITS = jnp.log(P[ORDER])[None] + 1.7  # a constant changes nothing
LEGAL = [.4, .3, .15, .1, .05]


def kept(**kw):
  out = sampling.truncate(LOGITS, **(dict(top_k=0, top_p=1.0) | kw))[0]
  where = np.asarray(out) > MASKED / 2
  # What is kept is not changed.
  np.testing.assert_array_equal(np.asarray(out)[where],
                                np.asarray(LOGITS)[0][where])
  return sorted(P[ORDER][where].tolist(), reverse=True)


@pytest.mark.parametrize('kw,count', [
    (dict(), 5), (dict(top_k=1), 1), (dict(top_k=3), 3), (dict(top_k=5), 5),
    (dict(top_k=99), 5),
    # .4 does not reach .5, .4 + .3 does; .72 needs the third.
    (dict(top_p=.1), 1), (dict(top_p=.39), 1), (dict(top_p=.5), 2),
    (dict(top_p=.69), 2), (dict(top_p=.72), 3), (dict(top_p=.99), 5),
    # Of the top two, renormalised to 4/7 = .571 and 3/7: .5 needs one. (.5 of
    # the whole distribution would keep two.)
    (dict(top_k=2, top_p=.5), 1), (dict(top_k=2, top_p=.6), 2)])
def test_truncation_keeps_the_head(kw, count):
  np.testing.assert_allclose(kept(**kw), LEGAL[:count], rtol=1e-6)


def test_ties_at_the_border_are_kept():
  x = jnp.array([[2., 1., 1., 0.]])
  for kw in (dict(top_k=2, top_p=1.), dict(top_k=0, top_p=.7)):
    out = sampling.truncate(x, **kw)[0]
    assert (np.asarray(out) > MASKED / 2).tolist() == [True, True, True, False]


def test_rows_are_truncated_by_themselves():
  x = jnp.concatenate([LOGITS, LOGITS[:, ::-1], jnp.zeros((1, 5))])
  out = np.asarray(sampling.truncate(x, top_k=0, top_p=.5)) > MASKED / 2
  assert out.sum(1).tolist() == [2, 2, 5]  # all equal: all at the border
  np.testing.assert_array_equal(out[1], out[0][::-1])


N, TEMPERATURE = 20_000, 0.7


def many(**kw):
  numbers = jax.random.uniform(jax.random.key(3), (N, 2))
  logits = jnp.broadcast_to(jnp.concatenate(
      [LOGITS, jnp.full((1, 1), MASKED)], 1), (N, 6))
  return [np.asarray(a) for a in sampling.draw(
      logits, numbers, temperature=TEMPERATURE, **kw)]


def softened():
  p = P[ORDER] ** (1 / TEMPERATURE)
  return p / p.sum()


def test_logp_is_the_tempered_softmax():
  token, logp, full = many()
  assert token.max() < 5  # the masked token is never drawn
  np.testing.assert_allclose(logp, np.log(softened())[token], rtol=1e-5)
  np.testing.assert_array_equal(logp, full)


@pytest.mark.parametrize('kw,head', [
    (dict(), 5), (dict(top_k=2), 2), (dict(top_p=.8), 3)])
def test_frequencies_follow_the_probabilities(kw, head):
  # At temperature .7 the probabilities are .477 .316 .117 .066 .024: two of
  # them (.792) do not reach .8, three do.
  p = softened()
  p = np.where(p >= np.sort(p)[-head], p, 0)
  p /= p.sum()
  token, logp, _ = many(**kw)
  count = np.bincount(token, minlength=5)
  assert (count[p == 0] == 0).all()
  on = p > 0
  chi2 = ((count - N * p)[on] ** 2 / (N * p)[on]).sum()
  # 4 degrees of freedom at most: 18.5 is passed with probability .001. The
  # probabilities of temperature 1 would give 950.
  assert chi2 < 18.5
  np.testing.assert_allclose(logp, np.log(p[token]), rtol=1e-4, atol=1e-6)


def test_frequencies_where_blocks_divide_the_vocabulary():
  V = 40  # eight blocks of five, as in all large models
  x = np.log(np.random.default_rng(1).dirichlet(np.full(V, 2.)))
  token, logp, _ = (np.asarray(a) for a in sampling.draw(
      jnp.broadcast_to(jnp.asarray(x, jnp.float32), (N, V)),
      jax.random.uniform(jax.random.key(5), (N, 2)), temperature=TEMPERATURE))
  p = np.exp(x / TEMPERATURE)
  p /= p.sum()
  some = N * p > 5
  chi2 = ((np.bincount(token, minlength=V) - N * p)[some] ** 2
          / (N * p)[some]).sum()
  assert chi2 < 72.1  # of 39 degrees of freedom: passed with probability .001
  np.testing.assert_allclose(logp, np.log(p[token]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kw,head', [(dict(top_k=2), 2), (dict(top_p=.8), 3)])
def test_truncated_logp_is_higher_by_the_kept_mass(kw, head):
  _, logp, full = many(**kw)
  mass = np.sort(softened())[-head:].sum()
  np.testing.assert_allclose(full - logp, np.log(mass), atol=1e-6)


def test_greedy():
  x = jnp.concatenate([LOGITS, LOGITS[:, ::-1]])
  token, logp, full = sampling.draw(x, jnp.zeros((2, 2)), temperature=0.0)
  assert token.tolist() == [1, 3] and logp.tolist() == [0, 0]
  np.testing.assert_allclose(full, np.log([.4, .4]), rtol=1e-5)


def bits(keys):
  return np.asarray(jax.random.key_data(keys))


def test_keys_depend_only_on_problem_sample_and_slot():
  key = jax.random.key(5)
  ids = np.array([9, 4, 2**32 - 1, 0], np.uint32)
  whole = bits(sampling.row_keys(key, ids, 3)).reshape(4, 3, -1)
  order = np.array([2, 0, 3, 1])
  np.testing.assert_array_equal(
      bits(sampling.row_keys(key, ids[order], 3)).reshape(4, 3, -1),
      whole[order])
  for p in range(4):  # micro-batches of one prompt
    np.testing.assert_array_equal(
        bits(sampling.row_keys(key, ids[p:p + 1], 3)), whole[p])
  # More samples leave the first ones as they are.
  np.testing.assert_array_equal(
      bits(sampling.row_keys(key, ids, 5)).reshape(4, 5, -1)[:, :3], whole)
  # By hand: problem first, then sample, then slot.
  fold = jax.random.fold_in
  row = fold(fold(key, 9), 2)
  np.testing.assert_array_equal(whole[0, 2], bits(row))
  numbers = sampling.uniforms(sampling.row_keys(key, ids, 3), 8)
  np.testing.assert_array_equal(numbers[2, 7],
                                jax.random.uniform(fold(row, 7), (2,)))


def test_no_two_rows_and_slots_share_numbers():
  ids = np.arange(8, dtype=np.uint32)
  keys = sampling.row_keys(jax.random.key(0), ids, 4)
  numbers = np.asarray(sampling.uniforms(keys, 8))
  assert numbers.shape == (32, 8, 2)
  assert len(set(map(tuple, numbers.reshape(-1, 2)))) == 8 * 4 * 8
