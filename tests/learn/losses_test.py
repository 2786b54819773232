"""Losses in closed form, and the same number whatever the split."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.learn import losses
from adasr_jax.learn.losses import LossConfig

BASE = dict(ratio='token', surrogate='clip', clip_low=.2, clip_high=.28,
            aggregation='token', constant=8., kl_weight=0., behaviour_cap=0.)
MASK = jnp.array([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]], bool)
DEEP = jnp.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)


def arrays(seed=0):
  r = np.random.default_rng(seed)
  f = lambda: jnp.asarray(r.normal(0, .4, (2, 5)), jnp.float32)
  return dict(logp=f() - 1, old=f() - 1, behaviour=f() - 1, reference=f() - 1,
              advantage=f())


def terms(values, mask=MASK, deep=DEEP, **config):
  return losses.policy_loss(
      values['logp'], jnp.ones_like(values['logp']),
      **{k: v for k, v in values.items() if k != 'logp'}, mask=mask,
      deep=deep, config=LossConfig(**(BASE | config)))


def loss(values, **kw):
  s, w = terms(values, **kw)['loss']
  return s / w


def test_clip_is_decoupled():
  # ratio 2, advantage 1 -> capped at 1.28; ratio .5, advantage -1 -> -(-.8)
  v = dict(logp=jnp.log(jnp.array([[2., .5]])), old=jnp.zeros((1, 2)),
           behaviour=jnp.zeros((1, 2)), reference=jnp.zeros((1, 2)),
           advantage=jnp.array([[1., -1.]]))
  on = jnp.ones((1, 2), bool)
  assert float(loss(v, mask=on, deep=~on)) == pytest.approx((-1.28 + .8) / 2)
  t = terms(v, mask=on, deep=~on)
  assert float(t['clip_fraction'][0]) == 2
  # Coupled at .2 the first would be -1.2.


@pytest.mark.parametrize('aggregation,want', [
    # per-token losses -1, -2, -3 in one row, -4 in the other
    ('token', -10 / 4), ('sequence', (-2 - 4) / 2), ('constant', -10 / 8 / 2)])
def test_aggregations(aggregation, want):
  zero = jnp.zeros((2, 5))
  v = dict(logp=zero, old=zero, behaviour=zero, reference=zero,
           advantage=jnp.array([[9., 1, 2, 3, 9], [9, 4, 9, 9, 9]]))
  assert float(loss(v, aggregation=aggregation)) == pytest.approx(want)


def test_phases_sum_to_the_objective():
  t = terms(arrays())
  total = t['loss/streaming'][0] + t['loss/deep'][0]
  np.testing.assert_allclose(total, t['loss'][0], rtol=1e-6)
  assert (float(t['loss/streaming'][1]), float(t['loss/deep'][1])) == (2, 2)


def test_k3_and_importance_weight_by_hand():
  one = jnp.ones((1, 1), bool)
  v = dict(logp=jnp.array([[-1.]]), old=jnp.array([[-1.]]),
           behaviour=jnp.array([[-2.]]), reference=jnp.array([[-.5]]),
           advantage=jnp.array([[1.]]))
  # k3 = e^.5 - .5 - 1 = .14872; surrogate -1 times min(e^1, 2) = -2
  got = loss(v, mask=one, deep=~one, kl_weight=.1, behaviour_cap=2.)
  assert float(got) == pytest.approx(-2 + .1 * .1487213, abs=1e-6)


def test_on_policy_gradient_is_reinforce():
  v = arrays()
  v['old'] = v['logp']
  for kw in (dict(), dict(surrogate='cispo'), dict(ratio='sequence')):
    g = jax.grad(lambda x: loss(dict(v, logp=x), **kw))(v['logp'])
    want = jnp.where(MASK, -v['advantage'] / 4, 0)
    np.testing.assert_allclose(g, want, atol=1e-6, err_msg=str(kw))


def test_gspo_ratio_is_the_rows_geometric_mean():
  v = arrays()
  v['advantage'] = jnp.ones((2, 5))
  t = terms(v, ratio='sequence', clip_low=.99, clip_high=9.)
  delta = jnp.where(MASK, v['logp'] - v['old'], 0)
  mean = jnp.exp(delta.sum(1) / MASK.sum(1))
  np.testing.assert_allclose(t['loss'][0], -(mean * MASK.sum(1)).sum(),
                             rtol=1e-5)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
  one = jnp.ones((1, 1), bool)
  v = dict(old=jnp.array([[-3.]]), behaviour=jnp.array([[-3.]]),
           reference=jnp.zeros((1, 1)), advantage=jnp.array([[1.]]))
  g = lambda **kw: float(jax.grad(lambda x: loss(
      dict(v, logp=x), mask=one, deep=~one, **kw))(jnp.array([[-1.]]))[0, 0])
  assert g() == 0  # clip stops it
  assert g(surrogate='cispo') == pytest.approx(-1.28)


@pytest.mark.parametrize('kw', [
    dict(), dict(aggregation='sequence'), dict(aggregation='constant'),
    dict(surrogate='cispo'), dict(ratio='sequence'),
    dict(kl_weight=.3, behaviour_cap=1.5)])
def test_sums_add_over_rows(kw):
  v = arrays(3)
  whole = terms(v, **kw)
  halves = [terms({k: x[i:i + 1] for k, x in v.items()}, mask=MASK[i:i + 1],
                  deep=DEEP[i:i + 1], **kw) for i in range(2)]
  for name in whole:
    for part in (0, 1):
      np.testing.assert_allclose(
          whole[name][part], sum(h[name][part] for h in halves), rtol=1e-5,
          atol=1e-6, err_msg=name)


@pytest.mark.parametrize('kw', [{}, dict(kl_weight=.3, behaviour_cap=1.5)])
def test_garbage_outside_the_mask_changes_nothing(kw):
  v = arrays()
  bad = {k: jnp.where(MASK, x, 1e9) for k, x in v.items()}
  bad['behaviour'] = jnp.where(MASK, v['behaviour'], -1e30)
  grad = lambda v: jax.grad(lambda x: loss(dict(v, logp=x), **kw))(v['logp'])
  np.testing.assert_allclose(loss(bad, **kw), loss(v, **kw), rtol=1e-6)
  np.testing.assert_allclose(grad(bad), grad(v), rtol=1e-6)


def test_cross_entropy():
  t = losses.cross_entropy(jnp.full((2, 5), -2.), jnp.zeros((2, 5)),
                           mask=MASK, deep=DEEP)
  assert [float(x) for x in t['loss']] == [8., 4.]


@pytest.mark.parametrize('bad', [
    dict(ratio='row'), dict(surrogate='ppo'), dict(aggregation='mean'),
    dict(clip_low=0.), dict(kl_weight=-1.), dict(behaviour_cap=-1.)])
def test_bad_values_are_named(bad):
  (name, value), = bad.items()
  with pytest.raises(ValueError, match=f'{name}=.*{value}'):
    LossConfig(**(BASE | bad))


def test_weights_without_rows():
  w, total = losses.token_weights(jnp.zeros((2, 3), bool), 'sequence')
  assert float(total) == 0 and float(w.sum()) == 0


# ------------------------------------------------------------------- threads
@pytest.mark.parametrize('aggregation', ['token', 'constant'])
def test_more_threads_leave_the_loss_the_same(aggregation):
  # Two rollouts of four and two tokens; then the first has two threads of two.
  # W of 'constant' is 2; with three samples for rollouts it would be 3.
  v = {k: x[:1] for k, x in arrays(5).items()}
  v = {k: jnp.concatenate([x, x[:, :1]], 1) for k, x in v.items()}  # 6 tokens
  def of(rows, child):
    """`rows`: indices of the tokens in each row."""
    at = jnp.array([r + [0] * (6 - len(r)) for r in rows])
    mask = jnp.arange(6)[None] < jnp.array([[len(r)] for r in rows])
    return losses.policy_loss(
        v['logp'][0][at], jnp.ones(at.shape), **{
            k: x[0][at] for k, x in v.items() if k != 'logp'}, mask=mask,
        deep=mask, child=mask & jnp.array(child)[:, None],
        config=LossConfig(**(BASE | dict(
            aggregation=aggregation, kl_weight=.3))))['loss']
  whole = of([[0, 1, 2, 3], [4, 5]], [False, False])
  split = of([[0, 1], [2, 3], [4, 5], []], [False, True, False, True])
  np.testing.assert_allclose(split, whole, rtol=1e-6)
  assert float(whole[1]) == (6 if aggregation == 'token' else 2)


def test_packed_children_are_no_rollouts():
  mask = jnp.ones((1, 6), bool)
  child = jnp.array([[0, 0, 1, 1, 0, 0]], bool)
  sample = jnp.array([[0, 0, 1, 1, 2, 2]])
  for c, want in ((child, 2), (None, 3)):
    assert float(losses.token_weights(mask, 'constant', 8., sample, c)[1]
                 ) == want
