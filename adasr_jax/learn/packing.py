"""Packs an update's prompts and their samples into rows without padding.

Prompts are of different lengths, and so are samples; in arrays [P, S] and
[B, T] a third to a half of what an update computes would be padding. Here
several prompts share a row of the source, and several of their samples a row
of the target. Each token reads only its own sample and prompt (segments, see
visibility.py), so every log-prob stays what it was.

Row b of the target reads row b // (B / P) of the source, as without packing.
So that both are full, prompts are spread evenly over the rows: the one with
the most tokens first, each into the row that has the fewest. Then each row's
samples are put into as few target rows as they need: the longest first, each
into the fullest row with room for it.

A shape that is new is compiled, so one that a run already has is taken where it
costs little more than the best.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core import sharding
from adasr_jax.core.types import Packing, Source, Target
from adasr_jax.learn.update import UpdateBatch

MOST_PROMPTS = 8  # of a source row
# A shape at hand may cost so much more than the best (base, more per shape at
# hand): the more there are, the less a new one saves. The second where all rows
# are computed at once, so that shapes differ more.
TOLERANCE, TOLERANCE_OF_ALL = (1.12, 0.02), (1.08, 0.005)
MOST_SHAPES = 16  # then any that fits is taken


class Shape(NamedTuple):
  """Rows of source and target, and slots of each."""
  sources: int
  targets: int
  source_slots: int
  target_slots: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which prompts and samples share a row.

  Attributes:
    sources: Per source row, the prompts in it.
    targets: Per target row, the samples with tokens in it; the same number of
      rows for each source row, in their order, the empty ones last.
    shape: Of the arrays.
    cost: Estimated, of the update; of the rows that it computes.
  """
  sources: list[list[int]]
  targets: list[list[int]]
  shape: Shape
  cost: float


def rows_at_once(batch: UpdateBatch) -> int:
  """Target rows per source row that an update computes at once; 0 = all.

  On CPU a few: then the number of rows is no part of the shape, so that one
  program serves batches of all sizes; and a few stay in the processor's cache.
  """
  groups = len(batch.target.tokens) > len(batch.source.tokens)
  return 2 if sharding.platform() == 'cpu' and groups else 0


def pack(batch: UpdateBatch, width: int, micro_batches: int = 1,
         shapes: Sequence[Shape] = (), rows: int = 0
         ) -> tuple[UpdateBatch, tuple[Shape, ...]]:
  """The batch in packed rows; host arrays.

  Args:
    batch: P prompts, B = P * G * W targets, one per row; rows of threads that
      are not there are empty.
    width: d_model of the decoder.
    micro_batches: Pieces that the update will split it into.
    shapes: Of the batches so far.
    rows: Target rows per source row that the update computes at once; 0 = all.

  Returns:
    The batch with fewer, fuller rows; the shapes, with its own. `micro_batches`
    divides the source rows, and so do the mesh's devices where they divide P
    so; both together divide the target rows.

  Raises:
    ValueError: micro_batches does not divide P.
  """
  P, B = len(batch.source.tokens), len(batch.target.tokens)
  if P % micro_batches:
    raise ValueError(f'micro_batches={micro_batches} does not divide {P} '
                     'prompts')
  multiple = micro_batches * sharding.row_ways()
  shapes = tuple(Shape(*shape) for shape in shapes)
  source_length = np.asarray(batch.source.valid).sum(1)
  target_length = np.asarray(batch.target.valid).sum(1)
  plan = best_plan(source_length, target_length.reshape(P, B // P), width,
                   micro_batches if P % multiple else multiple, shapes, rows,
                   share=multiple)
  if plan.shape not in shapes:
    shapes = (*shapes, plan.shape)
  S, T = plan.shape.source_slots, plan.shape.target_slots
  at_source, of_source = _places(plan.sources, source_length, S,
                                 batch.source.tokens.shape[1])
  at_target, of_target = _places(plan.targets, target_length, T,
                                 batch.target.tokens.shape[1])
  source = lambda a, fill=0: _taken(a, at_source, fill)
  target = lambda a, fill=0: _taken(a, at_target, fill)
  # Which of its source row's prompts each sample reads.
  nth = np.zeros(P, np.int32)
  for row in plan.sources:
    nth[row] = np.arange(len(row))
  reads = np.broadcast_to(np.repeat(nth, B // P)[:, None],
                          batch.target.tokens.shape)
  none = np.zeros(len(plan.sources), np.int32)  # rows have several
  return UpdateBatch(
      source=Source(
          tokens=source(batch.source.tokens),
          position=source(batch.source.position),
          phase=source(batch.source.phase), valid=source(batch.source.valid),
          num_chunks=none, problem_id=none.astype(np.uint32)),
      target=Target(**{
          f.name: target(getattr(batch.target, f.name),
                         protocol_lib.DONE if f.name == 'stage' else 0)
          for f in dataclasses.fields(Target)}),
      packing=Packing(source=of_source, target=of_target,
                      reads=target(reads, -1)),
      **{name: target(getattr(batch, name))
         for name in ('mask', 'deep', 'advantage', 'old', 'reference')}
  ), shapes


def metrics(batch: UpdateBatch, rows: int = 0) -> dict[str, float]:
  """Tokens that a batch trains, and the padding of what is computed.

  Args:
    batch: Packed.
    rows: As in pack().
  """
  valid = batch.target.valid
  valid = valid.reshape(len(batch.source.tokens), -1, valid.shape[-1])
  if rows:
    valid = valid[:, :-(-valid.any(2).sum(1).max() // rows) * rows]
  return {'tokens/trained': float(batch.mask.sum()),
          'padding/target': float(1 - valid.mean()),
          'padding/source': float(1 - batch.source.valid.mean())}


def _places(rows: Sequence[Sequence[int]], length: np.ndarray, slots: int,
            width: int) -> tuple[np.ndarray, np.ndarray]:
  """Where each packed slot's token was, and which segment it is in.

  Args:
    rows: Per packed row, the old rows in it.
    length: Tokens of each old row.
    slots: Of a packed row.
    width: Slots of an old row.

  Returns:
    [rows, slots] int32 index into the old array, flat, and segment; -1 where
    there is nothing.
  """
  at = np.full((len(rows), slots), -1, np.int32)
  segment = np.full((len(rows), slots), -1, np.int32)
  for r, row in enumerate(rows):
    start = 0
    for k, old in enumerate(row):
      own = slice(start, start + length[old])
      at[r, own] = old * width + np.arange(length[old])
      segment[r, own] = k
      start += length[old]
  return at, segment


def _taken(a, at, fill):
  a = np.asarray(a)
  return np.where(at < 0, np.asarray(fill, a.dtype), a.reshape(-1)[at])


def best_plan(source: np.ndarray, target: np.ndarray, width: int,
              multiple: int = 1, shapes: Sequence[Shape] = (), rows: int = 0,
              share: int = 1) -> Plan:
  """The cheapest way to pack that is tried, or one of a shape at hand.

  Args:
    source: [P] tokens of each prompt.
    target: [P, G] tokens of each sample.
    width: d_model of the decoder.
    multiple: Divides the number of source rows.
    shapes: At hand.
    rows: As in pack().
    share: Divides the number of target rows.
  """
  # Not those of a run that began on other devices.
  shapes = [s for s in shapes if s.sources % multiple == 0
            and s.targets % share == 0
            and (not rows or s.targets // s.sources % rows == 0)]
  counts = {-(-len(source) // (k * multiple)) * multiple
            for k in (1, 2, 4, MOST_PROMPTS)}
  spread = {count: _spread(source, target, count)
            for count in sorted(counts | {s.sources for s in shapes})
            if count <= len(source)}
  cost = lambda plan: plan.cost
  best = min((_plan(source, target, sources, T, width, rows, share)
              for count, sources in spread.items() if count in counts
              for T in _row_slots(target, sources)), key=cost)
  base, more = TOLERANCE if rows else TOLERANCE_OF_ALL
  most = (base + more * len(shapes)) * best.cost
  if len(shapes) >= MOST_SHAPES:
    most = math.inf
  known = [_plan(source, target, spread[shape.sources], shape.target_slots,
                 width, rows, share, shape)
           for shape in shapes if shape.target_slots >= target.max()
           and shape.sources in spread]
  return min((plan for plan in known if plan and plan.cost <= most), key=cost,
             default=best)


def _row_slots(target, sources):
  """Slots that a target row may have: for one to two samples, or all."""
  longest = int(target.max())
  most = max(int(target[row].sum()) for row in sources)
  step = max(longest // 8, 1)
  several = range(longest, min(2 * longest, most) + step, step)
  return sorted({_rounded(n, 16) for n in (*several, most)
                 if n <= 4 * longest})


def _plan(source, target, sources, T, width, rows, share, shape=None
          ) -> Plan | None:
  """Targets in rows of T slots; None where they do not fit the shape."""
  G, flat, count = target.shape[1], target.reshape(-1), len(sources)
  filled = [_filled([p * G + g for p in row for g in range(G)], flat, T)
            for row in sources]
  S = max(int(source[row].sum()) for row in sources)
  most = max(map(len, filled))
  if shape is None:
    # Rows that are not computed cost the update nothing: room for more.
    each = (-(-5 * most // (4 * rows)) * rows if rows else _rounded(most, 1))
    while count * each % share:
      each += max(rows, 1)
    shape = Shape(count, count * each, _rounded(S, 8), T)
  each, S_had = shape.targets // count, shape.source_slots
  if most > each or S > S_had:
    return None
  computed = count * (-(-most // rows) * rows if rows else each)
  # A layer's matrix products are some 12 width^2 multiply-adds per token, its
  # attention 2 width per key: 6 width keys. Twice that: what is between the
  # products has no keys either.
  cost = (count * S_had * (12 * width + S_had)
          + computed * T * (12 * width + S_had + T))
  return Plan(sources, [row for r in filled
                        for row in r + [[] for _ in range(each - len(r))]],
              shape, cost)


def _rounded(n: int, least: int) -> int:
  """The next number >= n of a table in steps of an eighth, at least `least`."""
  step = max(least, 1 << max(n.bit_length() - 4, 0))
  return -(-n // step) * step


def _spread(source: np.ndarray, target: np.ndarray, count: int
            ) -> list[list[int]]:
  """Prompts over `count` rows, so that none has much more than the others.

  The largest first, each to the emptiest row; then, while it helps, the best
  exchange of a prompt of a fullest row with one of another.
  """
  # [P, 2], so that 1 is a row's even share.
  load = np.stack([source, target.sum(1)], 1)
  load = load * count / load.sum(0)
  row = np.zeros(len(load), np.int64)
  full = np.zeros((count, 2))
  for p in np.argsort(-load.sum(1), kind='stable'):
    row[p] = np.argmin(full.sum(1))
    full[row[p]] += load[p]
  excess = full.max(0).sum()
  for _ in range(8 * len(load)):
    worst = np.isin(row, full.argmax(0))
    a, b = (x.reshape(-1) for x in np.meshgrid(
        np.flatnonzero(worst), np.arange(len(load)), indexing='ij'))
    after = np.broadcast_to(full, (len(a), *full.shape)).copy()
    each, moved = np.arange(len(a)), load[b] - load[a]
    after[each, row[a]] += moved
    after[each, row[b]] -= moved
    best = int(np.argmin(after.max(1).sum(1)))
    if after[best].max(0).sum() > excess - 1e-9:
      break
    full, excess = after[best], after[best].max(0).sum()
    row[[a[best], b[best]]] = row[[b[best], a[best]]]
  return [np.flatnonzero(row == r).tolist() for r in range(count)]


def _filled(samples: Sequence[int], length: np.ndarray, slots: int
            ) -> list[list[int]]:
  """Samples into rows: the longest first, each into the fullest with room.

  Those without tokens are in none.
  """
  length = length.tolist()
  rows, room = [], []  # room: (slots left, row), sorted
  for b in sorted((b for b in samples if length[b]),
                  key=lambda b: (-length[b], b)):
    at = bisect.bisect_left(room, (length[b], -1))
    left, row = room.pop(at) if at < len(room) else (slots, len(rows))
    if row == len(rows):
      rows.append([])
    rows[row].append(b)
    bisect.insort(room, (left - length[b], row))
  return rows
