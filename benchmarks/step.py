"""The RL step of the demo by parts, and what limits each part."""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from adasr_jax.config import sections
from adasr_jax.core.types import TrainState
from adasr_jax.learn.method import Parts
from adasr_jax.learn import packing
from adasr_jax.learn.update import update
from adasr_jax.models.decoder import DecoderConfig
from adasr_jax.run import factories
from benchmarks import refill
from benchmarks import timing


def flops(config: DecoderConfig, *, tokens: int, keys: float, head: bool
          ) -> float:
  """FLOPs of a forward pass: 2 per multiply-add, only matrix products.

  Args:
    config: Shape of the decoder.
    tokens: Tokens that pass through.
    keys: Keys that each token is compared with, including masked ones.
    head: Whether logits are computed.
  """
  c = config
  heads = c.num_heads * c.head_dim
  layer = (c.d_model * (heads + 2 * c.num_kv_heads * c.head_dim)
           + heads * c.d_model + 3 * c.d_model * c.d_ff + 2 * heads * keys)
  return 2.0 * tokens * (c.num_layers * layer
                         + head * c.vocab_size * c.d_model)


def run(config, parts: Parts, params, repeats: int) -> dict:
  """Measures, prints a table, returns the numbers.

  All steps run twice from the same parameters, so that the second, timed pass
  has the same shapes and compiles nothing.
  """
  c = config
  method = factories.method(sections(c), parts)
  optimizer = factories.optimizer(sections(c))
  bar = tqdm.tqdm(total=2 * repeats, leave=False, desc='RL step')

  def one_pass():
    state = TrainState(params=jax.tree.map(jnp.array, params),
                       opt_state=optimizer.init(params), step=jnp.int32(0))
    cursor, rows, shapes = 0, [], ()
    for step in range(repeats):
      got = []
      total = timing.timed(lambda: got.append(method.collect(
          state.params, step=step, cursor=cursor)))
      got = got[0]
      cursor = got.cursor
      bar.update()
      if got.batch is None:
        continue
      out, packed = [], []
      total += timing.timed(lambda: packed.append(packing.pack(
          got.batch, parts.model_config.d_model, c.loss.micro_batches, shapes,
          packing.rows_at_once(got.batch))))
      (batch, shapes), = packed
      learn = timing.timed(lambda: out.append(update(
          state, batch, jnp.float32(c.optim.learning_rate),
          model_config=parts.model_config, protocol=parts.protocol,
          temperature=method.temperature, loss=method.loss,
          optimizer=optimizer, micro_batches=c.loss.micro_batches,
          rows=packing.rows_at_once(batch))) or out)
      state = out[0][0]
      rollout, reward = (got.metrics[f'time/{n}']
                         for n in ('rollout', 'reward'))
      rows.append(dict(rollout=rollout, reward=reward,
                       batch=total - rollout - reward, update=learn,
                       step=total + learn, got=got, packed=batch))
    return rows

  one_pass()
  rows = one_pass()
  bar.close()
  if not rows:
    raise RuntimeError('no step had a group with an advantage')
  times = {part: dict(median=statistics.median(r[part] for r in rows),
                      min=min(r[part] for r in rows))
           for part in ('rollout', 'reward', 'batch', 'update', 'step')}
  generated = np.median([r['got'].generated for r in rows])
  for row in times.values():
    row['share'] = row['median'] / times['step']['median']
    row['tokens_per_s'] = generated / row['median']
  timing.show(
      f'RL step: {c.name}, {c.data.prompts} prompts x {c.rollout.samples} '
      f'samples, {len(rows)} steps, {generated:.0f} tokens generated per step',
      times, 'share tokens_per_s')
  peak = timing.matmul_peak()
  times['limits'] = _limits(c, parts, rows, times, peak)
  print(f'  matrix product 1024^3 in float32: {peak / 1e9:.0f} GFLOP/s')
  for part, line in times['limits'].items():
    print(f'  {part}: {line}')
  return times


def _limits(c, parts, rows, times, peak) -> dict[str, str]:
  """One line of arithmetic per part."""
  config = parts.model_config
  def median(f):
    return float(np.median([f(r['got']) for r in rows]))
  jobs = c.data.prompts * c.rollout.samples
  engine = refill.engine(
      config, parts.protocol, prompts=c.data.prompts,
      samples=c.rollout.samples, max_chunks=c.data.max_chunks,
      rows=c.rollout.rows)
  B = engine.queues * engine.rows_per_queue
  taken = lambda g: refill.steps(engine, g.batch.source, g.batch.target)
  steps = median(taken)
  live = median(lambda g: refill.occupancy(engine, g.batch.target, taken(g)))
  S = median(lambda g: g.batch.source.tokens.shape[1])
  # The cache holds on average about as many slots as there are steps.
  token = flops(config, tokens=B, keys=S + steps, head=True)
  a_step = times['rollout']['median'] / steps
  # Of one packed batch, which is one of few shapes.
  packed = rows[len(rows) // 2]['packed']
  (sources, slots), own = (
      packed.source.tokens.shape, packed.target.tokens.shape[1])
  shown = packed.target.valid.any(1).reshape(sources, -1).sum(1).max()
  at_once = packing.rows_at_once(packed) or shown
  targets = sources * -(-shown // at_once) * at_once
  forward = (flops(config, tokens=sources * slots, keys=slots, head=False)
             + flops(config, tokens=targets * own, keys=slots + own,
                     head=True))
  passes = 4 if config.remat == 'full' else 3
  rate = passes * forward / times['update']['median']
  pad = {k: float(np.mean([packing.metrics(
      r['packed'], packing.rows_at_once(r['packed']))[f'padding/{k}']
                           for r in rows])) for k in ('source', 'target')}
  rewards = jobs / times['reward']['median']
  return {
      'rollout': (
          f'{steps:.0f} steps x {a_step * 1e3:.2f} ms; {token / 1e6:.0f} '
          f'MFLOP per step take {token / peak * 1e3:.2f} ms at that peak '
          f'({token / a_step / peak:.0%}), the rest is drawing, '
          f'elementwise work and small products; {live:.0%} of row steps '
          'write a token'),
      'reward': f'{rewards:,.0f} rollouts/s of Python on one core',
      'update': (
          f'{passes} x {forward / 1e9:.1f} GFLOP ([{targets}, {own}] target, '
          f'[{sources}, {slots}] source) at {rate / 1e9:.0f} GFLOP/s, '
          f'{rate / peak:.0%} of that peak; padding is {pad["target"]:.0%} '
          f'of the target, {pad["source"]:.0%} of the source')}
