"""The update: one gradient, however the batch is cut, on the real path.

  rollout -> token_advantages -> policy_loss -> update
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adasr_jax.core.types import TrainState
from adasr_jax.credit.advantages import AdvantageConfig, token_advantages
from adasr_jax.credit.rewards import RewardConfig, Rewards
from adasr_jax.learn import losses
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn import optim
from adasr_jax.learn.update import UpdateBatch, split, update
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.scoring import score
from tests.small import make_config, make_protocol, make_source

CONFIG, SOURCE = make_config(), make_source()
# 31 slots: one loop of the rollout to compile.
PROTOCOL = make_protocol(thought_cap=5, deep_cap=6, answer_cap=4)
G, TEMPERATURE = 3, 0.8
CHUNKS = np.repeat(SOURCE.num_chunks, G)
STATIC = dict(model_config=CONFIG, protocol=PROTOCOL, temperature=TEMPERATURE)


def _recording(inner):
  """The optimizer with the gradient that it was given beside its state."""
  def run(g, state, params):
    updates, after = inner.update(g, state[1], params)
    return updates, (g, after)
  return optax.GradientTransformation(
      lambda p: (jax.tree.map(jnp.zeros_like, p), inner.init(p)), run)


# With the usual eps, Adam makes of a gradient of 1e-9, which is rounding, a
# step as large as any other; this one compares gradients, not their signs.
ADAM = _recording(optim.make_optimizer(
    b1=.9, b2=.99, eps=1e-3, weight_decay=.1, clip_norm=.5))


@functools.cache
def policy_loss(*aggregations):
  """The policy loss; of several aggregations of one weight, their sum."""
  configs = [LossConfig(
      ratio='token', surrogate='clip', clip_low=.2, clip_high=.28,
      aggregation=a, constant=16., kl_weight=.05, behaviour_cap=2.)
      for a in aggregations or ('token',)]
  def loss(logp, entropy, batch):
    terms = [losses.policy_loss(
        logp, entropy, old=batch.old, behaviour=batch.target.logp,
        reference=batch.reference, advantage=batch.advantage,
        mask=batch.mask, deep=batch.deep, config=c) for c in configs]
    return terms[0] | {'loss': (sum(t['loss'][0] for t in terms),
                                terms[0]['loss'][1])}
  return loss


@pytest.fixture(scope='module', autouse=True)
def optimised():
  """Compiled as in a run: the tolerances here are those of its rounding."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module')
def target(params):
  return jax.device_get(rollout(
      params, SOURCE, jax.random.key(1), samples=G, max_chunks=4, **STATIC))


def some_rewards(rows=12, chunks=4, seed=0):
  r = np.random.default_rng(seed)
  draw = lambda *shape: r.integers(0, 4, shape) / 2
  levels = dict(streaming=draw(rows), deep=draw(rows), total=draw(rows),
                chunk=draw(rows, chunks))
  rest = {f.name: np.zeros(rows) for f in dataclasses.fields(Rewards)}
  return Rewards(**(rest | levels))


def advantages(target, granularity, lam):
  return token_advantages(
      some_rewards(), target, CHUNKS, G, PROTOCOL,
      AdvantageConfig(granularity, lam=lam, normaliser='std', constant=1.),
      RewardConfig())


def make_batch(target, granularity='stage', lam=.5, noise=.2):
  """Ragged masks: half the tokens of one row, none of another, not of a group.

  `noise` moves the old and reference log-probs away, so that ratios are
  clipped and the KL is not zero.
  """
  r = np.random.default_rng(1)
  shift = lambda: noise * r.normal(size=target.logp.shape).astype(np.float32)
  mask = target.sampled.copy()
  mask[1, ::2] = mask[4] = mask[6:9] = False
  return UpdateBatch(
      source=SOURCE, target=target, mask=mask,
      deep=target.phase > CHUNKS[:, None],
      advantage=advantages(target, granularity, lam),
      old=target.logp + shift(), reference=target.logp + shift())


def step(params, batch, *, loss=None, micro_batches=1, config=CONFIG):
  """The gradient, the new parameters, and the metrics."""
  params = jax.tree.map(jnp.array, params)  # the update donates them
  state = TrainState(params=params, opt_state=ADAM.init(params),
                     step=jnp.int32(3))
  state, metrics = update(
      state, batch, jnp.float32(1e-2), optimizer=ADAM,
      loss=loss or policy_loss(), micro_batches=micro_batches,
      **(STATIC | dict(model_config=config)))
  assert int(state.step) == 4
  return jax.device_get((state.opt_state[0], state.params, metrics))


def assert_close(a, b, **tolerance):
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a),
                          jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path),
                               **tolerance)


# Both row aggregations at once: compiling is what these tests spend time on.
@pytest.mark.parametrize('aggregations,parts', [
    ((), 2), ((), 4), (('sequence', 'constant'), 4)])
def test_micro_batches_equal_the_whole(params, target, aggregations, parts):
  batch = make_batch(target)
  loss = policy_loss(*aggregations)
  grads, new, metrics = step(params, batch, loss=loss)
  assert metrics['grad_norm'] > .02 and metrics['clip_fraction'] > .05
  assert metrics['update_norm'] > .01
  got, after, other = step(params, batch, loss=loss, micro_batches=parts)
  assert_close(grads, got, rtol=0, atol=1e-6)
  assert_close(new, after, rtol=1e-5, atol=1e-7)
  assert metrics.keys() == other.keys()
  for name in metrics:
    # A mismatch is what rounding left between two log-probs, which agree to
    # 1e-5: of itself it has no digit that two summation orders share.
    atol = 1e-5 if name.startswith('mismatch') else 1e-6
    np.testing.assert_allclose(metrics[name], other[name], rtol=1e-5,
                               atol=atol, err_msg=name)
  # The pieces weigh differently, so that a mean of their means is off.
  weights = split(batch, parts).mask.sum((1, 2))
  assert len(set(weights.tolist())) > 1


def test_lambda_zero_is_grpo(params, target):
  g_stage, _, m_stage = step(params, make_batch(target, 'stage', lam=0.))
  g_grpo, _, m_grpo = step(params, make_batch(target, 'sequence', lam=.7))
  assert m_stage['loss'] == m_grpo['loss']
  assert_close(g_stage, g_grpo, rtol=0, atol=0)
  # And lambda does something.
  g_hrpo, _, m_hrpo = step(params, make_batch(target, 'stage', lam=.5))
  assert abs(m_hrpo['loss'] - m_grpo['loss']) > 1e-3
  gap = optax.global_norm(jax.tree.map(np.subtract, g_hrpo, g_grpo))
  assert gap > .1 * m_grpo['grad_norm']


@pytest.mark.parametrize('changes,atol', [
    (dict(remat='full'), 1e-6), (dict(remat='dots'), 1e-6),
    (dict(remat='full', attention='blockwise'), 1e-5)])
def test_the_backward_pass_by_any_route(params, target, changes, atol):
  batch = make_batch(target)
  kept, _, _ = step(params, batch)
  again, _, _ = step(params, batch, config=make_config(**changes))
  assert_close(kept, again, rtol=0, atol=atol)


def test_a_group_without_a_mask_changes_nothing(params, target):
  batch = make_batch(target)  # group 2, rows 6 to 8, has none
  want, _, metrics = step(params, batch)
  loud = lambda a: np.concatenate([a[:6], 1e3 * np.ones_like(a[6:9]), a[9:]])
  garbage = dataclasses.replace(
      batch, advantage=loud(batch.advantage), old=loud(batch.old),
      source=dataclasses.replace(SOURCE, tokens=np.concatenate(
          [SOURCE.tokens[:2], SOURCE.tokens[2:3][:, ::-1],
           SOURCE.tokens[3:]])))
  got, _, other = step(params, garbage)
  assert_close(want, got, rtol=0, atol=0)
  assert metrics['loss'] == other['loss']


def test_what_is_not_valid_changes_nothing_where_it_is_masked(params, target):
  batch = make_batch(target)  # rows 4 and 6 to 8
  kept = batch.mask.any(1)[:, None]
  assert not kept.all()
  empty = dataclasses.replace(batch, target=dataclasses.replace(
      target, valid=target.valid & kept))
  want, _, metrics = step(params, batch)
  got, _, other = step(params, empty)
  assert_close(want, got, rtol=0, atol=1e-7)
  np.testing.assert_allclose(metrics['loss'], other['loss'], rtol=1e-6)


def test_no_mask_at_all_is_a_zero_gradient(params, target):
  batch = make_batch(target)
  none = dataclasses.replace(batch, mask=np.zeros_like(batch.mask))
  got, _, metrics = step(params, none)
  assert all((g == 0).all() for g in jax.tree.leaves(got))
  assert metrics['loss'] == 0 and metrics['grad_norm'] == 0


def test_fresh_rollouts_have_no_mismatch(params, target):
  batch = make_batch(target, noise=0.)
  _, moved, metrics = step(params, batch)
  assert metrics['mismatch/max'] < 1e-5
  np.testing.assert_allclose(metrics['ratio'], 1., atol=1e-5)
  assert metrics['clip_fraction'] == 0 and abs(metrics['kl']) < 1e-7
  # After a step of the policy there is one: the number means something.
  _, _, metrics = step(moved, batch)
  assert metrics['mismatch/max'] > 1e-3


def test_gradient_against_finite_differences(params, target):
  batch = make_batch(target)
  g, _, metrics = step(params, batch)
  # A direction that has half of the gradient's entries: a wrong one among the
  # others cannot hide behind the norm.
  keys = iter(jax.random.split(jax.random.key(2), 99))
  d = jax.tree.map(lambda a: jnp.where(
      jax.random.bernoulli(next(keys), .5, a.shape), a, 0.), g)
  d = jax.tree.map(lambda a: a / optax.global_norm(d), d)

  @jax.jit
  def loss(h):
    moved = jax.tree.map(lambda p, x: p + h * x, params, d)
    s, w = policy_loss()(*score(moved, batch.source, batch.target, **STATIC),
                         batch)['loss']
    return s / w

  np.testing.assert_allclose(loss(0.), metrics['loss'], rtol=1e-5)
  h = 3e-3
  slope = (loss(h) - loss(-h)) / (2 * h)
  want = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(g),
                                            jax.tree.leaves(d)))
  # 2 %: rounding is 1e-7 / h = 3e-5, curvature and tokens that cross the clip
  # border within h are the rest.
  np.testing.assert_allclose(slope, want, rtol=.02)


def test_pieces_hold_whole_groups(target):
  parts = split(make_batch(target), 2)
  assert parts.source.tokens.shape[:2] == (2, 2)
  assert parts.target.tokens.shape[:2] == (2, 6)
  np.testing.assert_array_equal(parts.source.problem_id.ravel(),
                                SOURCE.problem_id)
  np.testing.assert_array_equal(parts.target.tokens[1, 0], target.tokens[6])


@pytest.mark.parametrize('parts', [3, 8])
def test_micro_batches_must_divide_the_prompts(params, target, parts):
  with pytest.raises(ValueError, match=f'micro_batches={parts}.* 4 prompts'):
    step(params, make_batch(target), micro_batches=parts)


def test_initial_parameters_reach_every_leaf(params, target):
  # Nothing of the tree is left out of the gradient.
  g, _, _ = step(params, make_batch(target))
  for path, a in jax.tree_util.tree_leaves_with_path(g):
    assert np.abs(a).max() > 0, jax.tree_util.keystr(path)
  assert jax.tree.structure(g) == jax.tree.structure(
      decoder.init(CONFIG, jax.random.key(0)))
