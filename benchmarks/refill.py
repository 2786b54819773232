"""Rows that take a new job when theirs ends, or all jobs at once.

Both write the same targets. How many steps it takes follows from their lengths:
each queue's jobs go, in the engine's order, to the first row that is free.
"""

from __future__ import annotations

import heapq
import statistics

import jax
import numpy as np

from adasr_jax.core.types import Source, Target
from adasr_jax.policy.engine import Engine
from adasr_jax.policy.rollout import rollout
from benchmarks import timing


def engine(model_config, protocol, *, prompts: int, samples: int,
           max_chunks: int, rows: int) -> Engine:
  """The rollout's engine at temperature 1."""
  return Engine(model_config=model_config, protocol=protocol, prompts=prompts,
                samples=samples, max_chunks=max_chunks, temperature=1.0,
                rows=rows)


def steps(engine: Engine, source: Source, target: Target) -> int:
  """Steps of the engine that has written `target`; host arrays."""
  Q = engine.queues
  by_queue = lambda a: np.repeat(a, len(target.valid) // len(a)).reshape(Q, -1)
  size = by_queue(np.asarray(source.valid).sum(1))
  # The first prefix token is there at the start.
  length = by_queue(np.asarray(target.valid).sum(1) - 1)
  order = np.argsort(-size, 1, kind='stable')
  ends = []
  for jobs in np.take_along_axis(length, order, 1).tolist():
    busy_until = [0] * engine.rows_per_queue
    for n in jobs:
      heapq.heappush(busy_until, heapq.heappop(busy_until) + n)
    ends.append(max(busy_until))
  return max(ends)


def occupancy(engine: Engine, target: Target, steps: int) -> float:
  """Share of row steps that write a token."""
  rows = engine.queues * engine.rows_per_queue
  return float(np.asarray(target.valid)[:, 1:].sum() / (rows * steps))


def run(config, parts, params, repeats: int) -> dict:
  """Measures, prints a table, returns the numbers."""
  c = config
  source = parts.data.collate(parts.data.train(0, c.data.prompts)).source
  engines = {rows: engine(
      parts.model_config, parts.protocol, prompts=c.data.prompts,
      samples=c.rollout.samples, max_chunks=c.data.max_chunks, rows=rows)
             for rows in (c.rollout.rows, 0)}
  written = {rows: [] for rows in engines}

  def call(rows):
    def rolled(seed):
      target = jax.device_get(rollout(
          params, source, jax.random.key(seed),
          model_config=parts.model_config, protocol=parts.protocol,
          samples=c.rollout.samples, max_chunks=c.data.max_chunks,
          temperature=1.0, rows=rows))
      written[rows].append(target)
      return target
    return rolled

  jobs = c.data.prompts * c.rollout.samples
  names = {rows: f'{rows} rows, refilled' if rows else f'{jobs} rows'
           for rows in written}
  times = timing.interleaved(
      {name: call(rows) for rows, name in names.items()}, repeats)
  for rows, name in names.items():
    taken = [steps(engines[rows], source, t) for t in written[rows][1:]]
    busy = [occupancy(engines[rows], t, n)
            for t, n in zip(written[rows][1:], taken)]
    n = statistics.median(taken)
    times[name].update(
        steps=n, occupancy=statistics.median(busy),
        ms_per_step=times[name]['median'] / n * 1e3,
        times_refilled=times[name]['median']
        / times[names[c.rollout.rows]]['median'])
  timing.show(
      f'refill: {c.data.prompts} prompts x {c.rollout.samples} samples', times,
      'steps occupancy ms_per_step times_refilled')
  return times
