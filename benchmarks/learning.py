"""The update: packed rows or padded ones, and beside torch.

Packed against padded: the same batches, collected from the demo's rollouts;
padded is a sample per row, as long as the longest asks for.

Beside torch: 6 prompts of 96 tokens, 8 samples of 128 each, the clipped loss,
AdamW and gradient clipping. Torch reads prompt and target in a row of 224, so
each prompt eight times; ours reads it once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax.config import sections
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.types import Source, Target
from adasr_jax.learn.hrpo import loss_of
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn import optim
from adasr_jax.learn import packing
from adasr_jax.learn.update import UpdateBatch, new_state, update
from adasr_jax.models import decoder
from adasr_jax.run import factories
from benchmarks import generation
from benchmarks import timing

LEARNING_RATE = 2e-4


def bucket(length: int, most: int) -> int:
  """Slots of a padded target: 32, 48, 64, 96, ... as `length` asks, or `most`.
  """
  size = 32
  while size < length:
    size = size * 3 // 2 if (size & (size - 1)) == 0 else size * 4 // 3
  return min(size, most)


def padded(batch: UpdateBatch) -> UpdateBatch:
  """A sample per row, cut to the bucket of the longest; host arrays."""
  valid = batch.target.valid
  slots = bucket(int(valid.sum(1).max()), valid.shape[1])
  cut = lambda a: a[:, :slots]
  return dataclasses.replace(
      batch, target=jax.tree.map(cut, batch.target),
      **{name: cut(getattr(batch, name))
         for name in ('mask', 'deep', 'advantage', 'old', 'reference')})


class Updates:
  """Updates that follow each other."""

  def __init__(self, params, optimizer, **static):
    self._state = new_state(jax.tree.map(jnp.array, params), optimizer)
    self._static = dict(static, optimizer=optimizer)

  def __call__(self, batch: UpdateBatch):
    rows = packing.rows_at_once(batch) if batch.packing is not None else 0
    self._state, metrics = update(
        self._state, batch, jnp.float32(LEARNING_RATE), rows=rows,
        **self._static)
    return jax.block_until_ready(self._state), metrics


def packed_against_padded(config, parts, params, repeats: int) -> dict:
  """Measures, prints a table, returns the numbers."""
  c, s = config, sections(config)
  method = factories.method(s, parts)
  batches, cursor, shapes = {'packed': [], 'padded': []}, 0, ()
  for step in range(repeats):
    got = method.collect(params, step=step, cursor=cursor)
    cursor = got.cursor
    if got.batch is not None:
      batch, shapes = packing.pack(got.batch, parts.model_config.d_model,
                                   c.loss.micro_batches, shapes,
                                   packing.rows_at_once(got.batch))
      batches['packed'].append(batch)
      batches['padded'].append(padded(got.batch))
  count = len(batches['packed'])
  static = dict(model_config=parts.model_config, protocol=parts.protocol,
                temperature=method.temperature, loss=method.loss,
                micro_batches=c.loss.micro_batches)
  calls = {}
  for name, own in batches.items():
    run_one = Updates(params, factories.optimizer(s), **static)
    for batch in own:  # compiles every shape
      run_one(batch)
    calls[name] = lambda n, own=own, run_one=run_one: run_one(own[n % count])
  times = timing.interleaved(calls, repeats)
  for name, row in times.items():
    pad = [packing.metrics(batch, packing.rows_at_once(batch)
                           if name == 'packed' else 0)
           for batch in batches[name]]
    row.update(times_packed=row['median'] / times['packed']['median'], **{
        f'padding_{of}': statistics.mean(p[f'padding/{of}'] for p in pad)
        for of in ('target', 'source')})
  timing.show(f'update: {count} batches of {c.data.prompts} x '
              f'{c.rollout.samples} rollouts', times,
              'padding_target padding_source times_packed')
  return times


def _written(tokens: np.ndarray, logp: np.ndarray, advantage: np.ndarray,
             source: Source) -> UpdateBatch:
  """The batch of targets [B, N] that follow the one prefix token."""
  B, N = tokens.shape
  first = lambda a, fill: np.concatenate(
      [np.full((B, 1), fill, a.dtype), a], 1)
  phase = first(np.ones((B, N), np.int32), 0)  # without chunks, the deep one
  stage = first(np.full((B, N), protocol_lib.DEEP, np.int32),
                protocol_lib.PREFIX)
  sampled = phase == 1
  logp = first(logp, 0.0)
  return UpdateBatch(
      source=source,
      target=Target(
          tokens=first(tokens, generation.PROTOCOL.prefix[0]), phase=phase,
          stage=stage, valid=np.ones((B, N + 1), bool), sampled=sampled,
          logp=logp, logp_untruncated=logp),
      mask=sampled, deep=sampled, old=logp, reference=np.zeros_like(logp),
      advantage=np.where(sampled, advantage[:, None], 0).astype(np.float32))


def beside_torch(repeats: int) -> dict:
  """Measures, prints a table, returns the numbers."""
  g, optimizer, loss = generation, optim.OptimConfig(), LossConfig()
  rng = np.random.default_rng(0)
  source = g.prompts()
  B = g.PROMPTS * g.SAMPLES
  tokens = rng.integers(6, g.CONFIG.vocab_size, (B, g.NEW)).astype(np.int32)
  old = np.full((B, g.NEW), -np.log(g.CONFIG.vocab_size), np.float32)
  advantage = rng.normal(size=B).astype(np.float32)
  written = _written(tokens, old, advantage, source)
  batch, _ = packing.pack(written, g.CONFIG.d_model,
                          rows=packing.rows_at_once(written))
  ours = Updates(
      jax.jit(decoder.init, static_argnums=0)(g.CONFIG, jax.random.key(0)),
      optim.make_optimizer(
          b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps,
          weight_decay=0.0, clip_norm=optimizer.clip_norm,
          mu_dtype=optimizer.mu_dtype),
      model_config=g.CONFIG, protocol=g.PROTOCOL, temperature=1.0,
      loss=loss_of(loss), micro_batches=1)
  calls = {'adasr_jax': lambda _: ours(batch)}
  installed = importlib.util.find_spec('torch') is not None
  if installed:
    from benchmarks import transformers_backend
    torch = transformers_backend.Trainer(
        g.CONFIG, learning_rate=LEARNING_RATE, b1=optimizer.b1,
        b2=optimizer.b2, clip_norm=optimizer.clip_norm,
        clip_low=loss.clip_low, clip_high=loss.clip_high)
    rows = np.repeat(source.tokens, g.SAMPLES, 0)
    for n in transformers_backend.THREADS:
      calls[f'transformers, threads: {n}'] = lambda _, n=n: torch.update(
          rows, tokens, old, advantage, n)
  times = timing.interleaved(calls, repeats)
  for row in times.values():
    row['tokens_per_s'] = B * g.NEW / row['median']
    row['ours_is_faster_by'] = row['median'] / times['adasr_jax']['median']
  timing.show(f'update: {B} rows x {g.NEW} tokens ({g.PROMPTS} prompts of '
              f'{g.SOURCE} tokens)', times, 'tokens_per_s ours_is_faster_by')
  if not installed:
    print('  torch is not installed; ' + generation.HOW_TO_INSTALL)
  return times
