"""Packed rows: fewer, fuller, and the same log-probs, losses and gradients."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core import sharding
from adasr_jax.core.types import Target, TrainState
from adasr_jax.learn import losses
from adasr_jax.learn import packing
from adasr_jax.learn import sft
from adasr_jax.learn.hrpo import loss_of
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn.update import UpdateBatch, logps, split, update
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.policy.scoring import score
from tests.small import make_config, make_protocol, make_source

PROTOCOL, G = make_protocol(), 3
STATIC = dict(protocol=PROTOCOL, temperature=.8)


def make_batch(num_chunks=(4, 2, 3, 0, 1, 2), seed=0) -> UpdateBatch:
  """Samples of 2 to 30 tokens that keep to the protocol, by chance."""
  r = np.random.default_rng(seed)
  source = make_source(num_chunks, slots=24, seed=seed)
  chunks = np.repeat(source.num_chunks, G)
  B, T = len(chunks), 32
  length = r.integers(2, 31, B)
  tokens = r.integers(2, 12, (B, T)).astype(np.int32)
  tokens[:, 0] = PROTOCOL.prefix[0]
  state = protocol_lib.start(PROTOCOL, chunks)
  phase, stage = np.zeros((2, B, T), np.int32)
  valid = np.arange(T)[None] < length[:, None]
  for t in range(1, T):
    phase[:, t], stage[:, t] = state.phase, state.stage
    valid[:, t] &= state.stage != protocol_lib.DONE
    state = protocol_lib.advance(PROTOCOL, state, tokens[:, t])
  draw = lambda: r.normal(size=(B, T)).astype(np.float32)
  sampled = valid & (np.arange(T) > 0) & (r.random((B, T)) < .9)
  mask = sampled.copy()
  mask[3] = mask[6:9] = False
  logp = np.where(sampled, draw(), 0)
  target = Target(
      tokens=np.where(valid, tokens, 0), phase=np.where(valid, phase, 0),
      stage=np.where(valid, stage, protocol_lib.DONE), valid=valid,
      sampled=sampled, logp=logp, logp_untruncated=logp)
  return UpdateBatch(
      source=source, target=target, mask=mask,
      deep=phase > chunks[:, None], advantage=draw(),
      old=logp + .3 * draw(), reference=logp + .3 * draw())


BATCH = make_batch()


def of_samples(packed: UpdateBatch, values) -> list[np.ndarray]:
  """Each sample's values, in an order that does not depend on packing.

  Samples are told apart by their advantages, which are random.
  """
  out = {}
  for b, row in enumerate(np.asarray(packed.target.valid)):
    segment = (np.zeros(row.shape, int) if packed.packing is None
               else packed.packing.target[b])
    for k in set(segment[row]):
      at = row & (segment == k)
      out[tuple(packed.advantage[b, at][:2])] = np.asarray(values)[b, at]
  return [out[k] for k in sorted(out)]


@pytest.fixture(scope='module')
def params():
  return decoder.init(make_config(), jax.random.key(0))


# --------------------------------------------------------------------- layout
@pytest.mark.parametrize('micro_batches', [1, 2, 3])
def test_every_token_is_there_once(micro_batches):
  p = packing.pack(BATCH, 32, micro_batches)[0]
  assert len(p.source.tokens) % micro_batches == 0
  assert len(p.target.tokens) % len(p.source.tokens) == 0
  for name in ('mask', 'deep', 'old', 'reference'):
    for a, b in zip(of_samples(BATCH, getattr(BATCH, name)),
                    of_samples(p, getattr(p, name)), strict=True):
      np.testing.assert_array_equal(a, b, err_msg=name)
  for f in dataclasses.fields(Target):
    for a, b in zip(of_samples(BATCH, getattr(BATCH.target, f.name)),
                    of_samples(p, getattr(p.target, f.name)), strict=True):
      np.testing.assert_array_equal(a, b, err_msg=f.name)
  for name in ('valid', 'mask'):  # nothing more
    assert packing_sum(p, name) == packing_sum(BATCH, name)
  # Each sample reads the source that it read.
  rows = len(p.target.tokens) // len(p.source.tokens)
  sources = []
  for b, row in enumerate(p.target.valid):
    for k in set(p.packing.target[b, row]):
      reads, = set(p.packing.reads[b, p.packing.target[b] == k])
      at = b // rows, p.packing.source[b // rows] == reads
      sources.append((p.advantage[b, p.packing.target[b] == k][0],
                      tuple(p.source.tokens[at]), tuple(p.source.phase[at]),
                      tuple(p.source.position[at])))
  want = []
  for b in range(len(BATCH.target.tokens)):
    own = BATCH.source.valid[b // G]
    want.append((BATCH.advantage[b, 0], *(
        tuple(a[b // G, own]) for a in (
            BATCH.source.tokens, BATCH.source.phase, BATCH.source.position))))
  assert sorted(sources) == sorted(want)


def packing_sum(batch, name):
  return int(getattr(batch, name, getattr(batch.target, name, None)).sum())


def test_micro_batches_must_divide_the_prompts():
  with pytest.raises(ValueError, match='micro_batches=4 does not divide 6'):
    packing.pack(BATCH, 32, 4)


def test_a_run_may_go_on_with_other_devices():
  """Shapes that were made for all rows at once, or for fewer devices."""
  for seed in range(8):
    batch = make_batch(seed=seed)
    had = packing.pack(batch, 32)[1]
    for rows, micro_batches in ((2, 1), (2, 2), (0, 2)):
      packed, _ = packing.pack(batch, 32, micro_batches, had, rows)
      sources = len(packed.source.tokens)
      assert sources % micro_batches == 0
      assert not rows or len(packed.target.tokens) // sources % rows == 0


@pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')
@pytest.mark.parametrize('axes', [(4, 1, 1), (8, 1, 1)])
def test_devices_that_do_not_divide_the_prompts_share_the_targets(axes):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, axes)),
                            devices=jax.devices()[:axes[0]])
  with jax.set_mesh(mesh):
    for micro_batches in (1, 2):
      packed, _ = packing.pack(BATCH, 32, micro_batches)
      assert len(packed.target.tokens) % (axes[0] * micro_batches) == 0


@pytest.mark.parametrize('prompts,samples,mean,width,rows', [
    (8, 12, 46, 96, 0), (8, 12, 30, 96, 2), (8, 12, 46, 96, 4),
    (16, 1, 46, 256, 0), (32, 1, 120, 1024, 0), (32, 8, 600, 2048, 0)])
def test_little_padding_and_few_shapes(prompts, samples, mean, width, rows):
  """Over 100 steps in which targets get shorter by a quarter."""
  r = np.random.default_rng(0)
  draw = lambda mean, *shape: np.clip(
      r.normal(mean, mean / 6, shape), 4, None).astype(int)
  empty, shapes = [], ()
  for step in range(100):
    source, target = draw(mean, prompts), draw(
        mean * (1 - step / 400), prompts, samples)
    plan = packing.best_plan(source, target, width, shapes=shapes, rows=rows)
    if plan.shape not in shapes:
      shapes = (*shapes, plan.shape)
    sources, targets, S, T = plan.shape
    assert (len(plan.sources), len(plan.targets)) == (sources, targets)
    assert sorted(sum(plan.sources, [])) == list(range(prompts))
    assert sorted(sum(plan.targets, [])) == list(range(prompts * samples))
    assert max(source[row].sum() for row in plan.sources) <= S
    assert max(target.reshape(-1)[row].sum() for row in plan.targets) <= T
    if rows:  # empty ones are last, and those that are left are not computed
      filled = np.array([bool(r) for r in plan.targets]).reshape(sources, -1)
      assert (np.sort(filled)[:, ::-1] == filled).all()
      targets = sources * -(-filled.sum(1).max() // rows) * rows
    empty.append((1 - source.sum() / (sources * S),
                  1 - target.sum() / (targets * T)))
  assert (np.mean(empty, 0) < .15).all(), np.mean(empty, 0)
  assert len(shapes) <= (6 if rows else 12), shapes


def test_a_shape_at_hand_is_taken_before_a_new_one_is_compiled():
  packed, shapes = packing.pack(BATCH, 32)
  again, same = packing.pack(BATCH, 32, shapes=[list(s) for s in shapes])
  assert same == shapes and len(shapes) == 1
  jax.tree.map(np.testing.assert_array_equal, packed, again)
  larger = shapes[0]._replace(target_slots=shapes[0].target_slots + 2)
  wide, same = packing.pack(BATCH, 32, shapes=[larger])
  assert same == (larger,)
  assert wide.target.tokens.shape == (larger.targets, larger.target_slots)
  assert packing_sum(wide, 'valid') == packing_sum(BATCH, 'valid')
  # Not one that does not fit, or is much too large.
  small = shapes[0]._replace(target_slots=16)
  huge = shapes[0]._replace(targets=8 * shapes[0].targets)
  assert packing.pack(BATCH, 32, shapes=[small, huge])[1] == (
      small, huge, *shapes)


# ------------------------------------------------------------------- log-probs
@pytest.mark.parametrize('kernel', ['einsum', 'blockwise'])
def test_packed_log_probs(params, kernel):
  config = make_config(attention=kernel, target_offset=3)
  p = packing.pack(BATCH, 32)[0]
  assert p.target.valid.mean() > .8 > BATCH.target.valid.mean()
  score_of = jax.jit(lambda params, b: score(
      params, b.source, b.target, b.packing, model_config=config, **STATIC))
  for a, b in zip(score_of(params, BATCH), score_of(params, p)):
    for x, y in zip(of_samples(BATCH, a), of_samples(p, b), strict=True):
      np.testing.assert_allclose(x, y, atol=1e-5)
  only = logps(params, p.source, p.target, p.packing, model_config=config,
               **STATIC)
  np.testing.assert_array_equal(only, score_of(params, p)[0])


# -------------------------------------------------------------------- gradient
@pytest.mark.parametrize('rows,micro_batches,rank', [
    (0, 1, 0), (0, 2, 0), (1, 1, 0), (2, 1, 0), (1, 2, 0), (0, 1, 2),
    (1, 1, 2)])
def test_one_update_whatever_the_rows(params, rows, micro_batches, rank):
  """Of the batch as it was, packed, and packed and computed row by row."""
  config, frozen, trained = make_config(), None, params
  if rank:
    frozen = lora.Frozen(params, scale=1.5)
    trained = lora.init(jax.random.key(1), params, rank=rank,
                        targets=('qkv', 'down'))
    trained = jax.tree.map(
        lambda a: a + .1 * jax.random.normal(jax.random.key(2), a.shape),
        trained)
  loss = loss_of(LossConfig(ratio='sequence', aggregation='sequence',
                            kl_weight=.05, behaviour_cap=2.))
  optimizer = optax.sgd(1.0)

  def step(batch, rows):
    state = TrainState(params=jax.tree.map(jnp.array, trained),
                       opt_state=optimizer.init(trained), step=jnp.int32(0))
    state, metrics = update(
        state, batch, jnp.float32(.1), frozen, model_config=config, loss=loss,
        optimizer=optimizer, micro_batches=micro_batches, rows=rows, **STATIC)
    return jax.device_get((state.params, metrics))

  packed, (shape,) = packing.pack(BATCH, 32, micro_batches, rows=rows)
  if rows:
    assert shape.targets // shape.sources > rows  # several turns
    padding = packing.metrics(packed, rows)['padding/target']
    assert padding <= packing.metrics(packed)['padding/target']
  (want, plain), (got, metrics) = step(BATCH, 0), step(packed, rows)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-6),
               got, want)
  for name in plain:
    np.testing.assert_allclose(metrics[name], plain[name], rtol=2e-5,
                               atol=1e-5, err_msg=name)


# ---------------------------------------------------------------------- losses
COMBINATIONS = [
    LossConfig(ratio=r, surrogate=s, aggregation=a, kl_weight=.05,
               behaviour_cap=2.)
    for r, s, a in itertools.product(
        losses.RATIOS, losses.SURROGATES, losses.AGGREGATIONS)]


@pytest.mark.parametrize('loss', [
    *map(loss_of, COMBINATIONS), sft.loss],
    ids=[*(f'{c.ratio}-{c.surrogate}-{c.aggregation}' for c in COMBINATIONS),
         'sft'])
@pytest.mark.parametrize('parts', [1, 3])
def test_packed_losses(loss, parts):
  """Terms, and their gradients by log-probs and entropies."""
  r = np.random.default_rng(2)
  logp = BATCH.old + .3 * r.normal(size=BATCH.old.shape)
  batch = BATCH.replace(old=np.asarray(BATCH.old, np.float32))
  seen = batch.replace(reference=np.asarray(logp, np.float32))
  where = packing.pack(seen, 32, parts)[0]  # carries logp to its packed places
  packed = packing.pack(batch, 32, parts)[0]

  def terms(logp, batch):
    total = None
    pieces = split(batch, parts)
    logp = logp.reshape(parts, -1, logp.shape[1])
    for i in range(parts):
      piece = jax.tree.map(lambda a, i=i: a[i], pieces)
      new = loss(logp[i], logp[i] ** 2, piece)
      total = new if total is None else jax.tree.map(jnp.add, total, new)
    return total['loss'][0], total

  grad = jax.grad(terms, has_aux=True)
  plain_grad, plain = grad(jnp.asarray(seen.reference), batch)
  packed_grad, got = grad(jnp.asarray(where.reference), packed)
  assert plain.keys() == got.keys()
  for name in plain:
    np.testing.assert_allclose(got[name], plain[name], rtol=2e-5, atol=1e-5,
                               err_msg=name)
  for a, b in zip(of_samples(batch, plain_grad),
                  of_samples(packed, packed_grad), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
