"""The streaming contract: who may read whom, and at which position.

A source (the stream) and a target (what the model writes) sit in buffers of
their own. With slots counted inside each buffer:

  source query, source key:  valid_k and slot_k <= slot_q
  source query, target key:  never
  target query, source key:  valid_k and phase_k <= phase_q
  target query, target key:  valid_k and slot_k <= slot_q

Where several sources, or several targets, share a buffer, each reads only
itself, and a target only its own source: their segments must be equal.

A query's phase is the phase of the token that it predicts, not its own: the
`<EOT>` that ends thought k, when fed, already reads chunk k + 1.

So what a query reads of a buffer is an interval of slots.

Positions: source and target count separately, each from its own origin
("group positions"): a source token's position is its slot, a target token's
its slot plus a constant offset, both counted from the start of their segment.

Source: StreamingThinker, EIT-NLP/StreamingLLM at 066d3b2; group position
encoding, arXiv 2505.16983. Unlike that code, training and inference share one
mask here.
"""

from __future__ import annotations

import dataclasses

from flax import struct
import jax.numpy as jnp
import numpy as np

from adasr_jax.core.types import Array, Packing, Source

SOURCE, TARGET = 0, 1
# What a policy has read when it thinks about a chunk: the stream so far, or,
# against the contract above, the whole source (foresight).
STREAM, ALL = 'stream', 'all'
READS = (STREAM, ALL)


@struct.dataclass
class Segments:
  """What visibility needs to know of tokens; all [B, T].

  Attributes:
    role: int32, SOURCE or TARGET.
    slot: int32, index in the buffer of the role.
    phase: int32. A key's own; a target query's is that of the token that it
      predicts.
    valid: bool.
    segment: int32, which source or target of the buffer; None = it has one.
    reads: int32, a target's segment of the source; None with `segment`.
  """
  role: Array
  slot: Array
  phase: Array
  valid: Array
  segment: Array | None = None
  reads: Array | None = None


@struct.dataclass
class Interval:
  """The slots of a buffer that a query reads: start <= slot < limit.

  Attributes:
    limit: [B, T] int32.
    start: [B, T] int32; None = 0 everywhere.
  """
  limit: Array
  start: Array | None = None


@struct.dataclass
class Branches:
  """Other continuations of B targets, several per target; all [B, N] int32.

  N is the number of tokens of all branches of a target. A branch leaves its
  target at some slot. Its tokens read the source, the target's slots before it
  and the branch so far; branches of a target lie one after another and do not
  read each other.

  Attributes:
    tokens: Token ids.
    begin: Entry at which the token's branch begins; -1 where there is none.
    prefix: Slots of the target before the branch.
    hole: Pair; the target's slots hole[0] <= slot < hole[1] are not read.
    phase: Phase of what the token predicts: chunks up to it are read.
    stage: Stage of the token in the protocol.
  """
  tokens: Array
  begin: Array
  prefix: Array
  hole: tuple[Array, Array]
  phase: Array
  stage: Array


def visible(query: Segments, key: Segments) -> Array:
  """[B, T, S] bool, True where the query may read the key.

  Args:
    query: [B, T] segments.
    key: [B, S] segments.
  """
  q = lambda x: x[:, :, None]
  k = lambda x: x[:, None, :]
  same = (q(query.role) == k(key.role)) & (k(key.slot) <= q(query.slot))
  cross = ((q(query.role) == TARGET) & (k(key.role) == SOURCE)
           & (k(key.phase) <= q(query.phase)))
  if key.segment is not None:
    same &= k(key.segment) == q(query.segment)
    if query.reads is not None:
      cross &= k(key.segment) == q(query.reads)
  return k(key.valid) & (same | cross)


def interval(query: Segments, key: Segments) -> Interval:
  """The key slots that each query may read; no other.

  Requires the valid keys of a segment to lie one after another, sorted by phase
  (true for Source and Target): what `visible` shows is then an interval.
  """
  shown = visible(query, key)
  count = shown.sum(-1, dtype=jnp.int32)
  if key.segment is None:
    return Interval(count)
  start = jnp.argmax(shown, -1).astype(jnp.int32)
  return Interval(start + count, start)


def source_segments(source: Source, packing: Packing | None = None
                    ) -> Segments:
  """Segments of the source tokens, as queries and as keys; [P, S]."""
  return Segments(
      segment=None if packing is None else packing.source,
      role=jnp.full_like(source.phase, SOURCE),
      slot=jnp.broadcast_to(jnp.arange(source.phase.shape[1]),
                            source.phase.shape),
      phase=source.phase, valid=source.valid)


def target_segments(phase: Array, valid: Array, packing: Packing | None = None
                    ) -> Segments:
  """Segments of target tokens; phase, valid [B, T]."""
  T = phase.shape[1]
  return Segments(
      segment=None if packing is None else packing.target[:, :T],
      reads=None if packing is None else packing.reads[:, :T],
      role=jnp.full_like(phase, TARGET),
      slot=jnp.broadcast_to(jnp.arange(T), phase.shape),
      phase=phase, valid=valid)


def as_read(source: Source, reads: str) -> Source:
  """The source as a policy that reads `reads`, one of READS, is shown it.

  With 'all' every token has phase 0, that of the preamble: each target query
  reads all of its source, and nothing else changes.
  """
  if reads not in READS:
    raise ValueError(f'reads={reads!r} is not one of {READS}')
  if reads == STREAM:
    return source
  xp = np if isinstance(source.phase, np.ndarray) else jnp
  return dataclasses.replace(source, phase=xp.zeros_like(source.phase))


def causal_limit(slot: Array) -> Array:
  """The limit of queries in their own buffer, without padding before them."""
  return slot + 1


def source_position(shape: tuple[int, int]) -> Array:
  """[P, S] int32, RoPE positions of source tokens: their slots."""
  return jnp.broadcast_to(jnp.arange(shape[1]), shape)


def target_position(slot: Array, offset: int) -> Array:
  """RoPE positions of target tokens, of slot's shape.

  Args:
    slot: int32, counted from the start of the token's segment.
    offset: Position of the first target token, DecoderConfig.target_offset.
  """
  return slot + offset


def query_phase(phase: Array) -> Array:
  """Phase with which each target token is fed: that of the next token.

  Args:
    phase: [B, T] int32, own phases.

  Returns:
    [B, T - 1] int32; entry t belongs to the token at slot t.
  """
  return phase[:, 1:]
