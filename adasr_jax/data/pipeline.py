"""Examples to static arrays: chunk schedules, buckets, supervised targets."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools

import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example, Source, Target
from adasr_jax.data.text import words
from adasr_jax.data.tokenizer import Tokenizer

STREAMING, READ_THEN_THINK = 'streaming', 'read_then_think'
LAYOUTS = (STREAMING, READ_THEN_THINK)


@dataclasses.dataclass(frozen=True)
class Batch:
  """P examples with their chunk schedules; all arrays are on the host.

  Attributes:
    examples: The P examples.
    source: [P, S] arrays.
    words: [P, C+1] int32, words of the preamble and of each chunk.
    chunk_tokens: [P, C+1] int32, their source tokens.
    arrivals: [P] int32, chunks that arrive on the clock. (source.num_chunks
      counts those that get a thought: none under read-then-think.)
    relevant: [P, C] int8, 1 or 0; -1 where it is not known or there is no
      chunk.
    question: [P, C] bool, True at the chunk that is the question.
  """
  examples: tuple[Example, ...]
  source: Source
  words: np.ndarray
  chunk_tokens: np.ndarray
  arrivals: np.ndarray
  relevant: np.ndarray
  question: np.ndarray


def bucket(n: int, sizes: Sequence[int], what: str) -> int:
  """The smallest of `sizes` that holds n.

  Raises:
    ValueError: None does; nothing is ever truncated.
  """
  for size in sorted(sizes):
    if n <= size:
      return size
  raise ValueError(f'{what} needs {n} slots, the largest bucket has '
                   f'{max(sizes)} ({tuple(sizes)})')


def fits(example: Example, tokenizer: Tokenizer, *, lengths: Sequence[int],
         max_chunks: int) -> bool:
  """Whether the example's source fits the largest bucket."""
  preamble, chunks = tokenizer.render(example)
  return (len(example.chunks) <= max_chunks
          and len(preamble) + sum(map(len, chunks)) <= max(lengths))


def collate(examples: Sequence[Example], tokenizer: Tokenizer, *,
            lengths: Sequence[int], max_chunks: int, layout: str) -> Batch:
  """The static chunk schedule of a batch of examples.

  Args:
    examples: P examples.
    tokenizer: Renders them.
    lengths: Buckets of S; the smallest that holds every row is taken.
    max_chunks: C, most chunks of a row.
    layout: 'streaming', or 'read_then_think': everything is preamble and
      nothing is thought before the stream has ended.

  Raises:
    ValueError: A row has more chunks or tokens than fit.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout={layout!r} is not one of {LAYOUTS}')
  parts = [[preamble, *chunks] for preamble, chunks in
           map(tokenizer.render, examples)]
  for example in examples:
    if len(example.chunks) > max_chunks:
      raise ValueError(f'example {example.id} has {len(example.chunks)} '
                       f'chunks, max_chunks is {max_chunks}')
  P, C = len(examples), max_chunks
  return Batch(
      examples=tuple(examples),
      source=_source(examples, parts, lengths, pad=tokenizer.pad,
                     streamed=layout == STREAMING),
      words=_padded([[words(text) for text in (e.preamble, *e.chunks)]
                     for e in examples], (P, C + 1), 0, np.int32),
      chunk_tokens=_padded([[len(part) for part in row] for row in parts],
                           (P, C + 1), 0, np.int32),
      arrivals=_num_chunks(examples),
      relevant=_padded([e.relevant or () for e in examples], (P, C), -1,
                       np.int8),
      # A question in the preamble, -1, is no chunk.
      question=np.array([[e.question_chunk] for e in examples]) == np.arange(C))


def _source(examples, parts, lengths, *, pad, streamed):
  """The Source of rows that are given as ids of preamble and chunks."""
  sizes = [[len(part) for part in row] for row in parts]
  length = np.array([sum(row) for row in sizes])  # [P]
  longest = int(np.argmax(length))
  P, S = len(parts), bucket(int(length[longest]), lengths,
                            f'the source of example {examples[longest].id}')
  tokens = _padded([list(itertools.chain(*row)) for row in parts], (P, S), pad,
                   np.int32)
  phase = np.zeros((P, S), np.int32)
  num_chunks = _num_chunks(examples)
  if streamed:
    for p, row in enumerate(sizes):
      # Padding has the last phase, so that phases never decrease.
      phase[p] = np.repeat(np.arange(len(row)),
                           [*row[:-1], row[-1] + S - length[p]])
  else:
    num_chunks = np.zeros_like(num_chunks)
  return Source(
      tokens=tokens,
      position=np.broadcast_to(np.arange(S, dtype=np.int32), (P, S)),
      phase=phase, valid=np.arange(S) < length[:, None],
      num_chunks=num_chunks,
      problem_id=np.array([e.id for e in examples], np.uint32))


def _num_chunks(examples):
  return np.array([len(e.chunks) for e in examples], np.int32)


def _padded(rows, shape, fill, dtype):
  """An array whose row i is rows[i], then `fill`."""
  out = np.full(shape, fill, dtype)
  for i, row in enumerate(rows):
    out[i, :len(row)] = row
  return out


def read_then_think(example: Example) -> Example:
  """The example with all supervised steps moved into the deep phase."""
  if example.thoughts is None:
    return example
  steps = [t for t in example.thoughts if t is not None]
  return dataclasses.replace(
      example, thoughts=(), deep=' '.join([*steps, example.deep]))


def supervised_target(examples: Sequence[Example], tokenizer: Tokenizer,
                      protocol: Protocol, *, max_chunks: int,
                      layout: str) -> Target:
  """Targets that imitate the examples' traces; [P, T].

  `sampled` is True on everything that the policy has to learn: all after the
  prefix. Caps are not applied, but a trace that exceeds one is an error.

  Raises:
    ValueError: An example has no trace, or its trace exceeds a cap or breaks
      the protocol.
  """
  num_chunks = _num_chunks(examples)
  if layout == READ_THEN_THINK:
    examples = [read_then_think(e) for e in examples]
    num_chunks = np.zeros_like(num_chunks)
  rows = [tokenizer.render_trace(example) for example in examples]
  length = np.array([len(row) for row in rows])
  T = max(max(length), len(protocol.prefix) + 1)
  tokens = _padded(rows, (len(rows), T), tokenizer.pad, np.int32)
  phase, stage = protocol_lib.annotate(protocol, tokens, length, num_chunks)
  valid = np.arange(T)[None] < length[:, None]
  learned = valid & (stage != protocol_lib.PREFIX)
  _check_legal(examples, protocol, tokens, stage, learned)
  _check_caps(examples, protocol, phase, stage, learned, max_chunks)
  zero = np.zeros(tokens.shape, np.float32)
  return Target(tokens=tokens, phase=phase, stage=stage, valid=valid,
                sampled=learned, logp=zero, logp_untruncated=zero)


def _check_legal(examples, protocol, tokens, stage, learned):
  """Refuses traces with a token that its stage does not allow.

  Text never becomes a control token, so it is a thought that does not begin.
  """
  legal = protocol_lib.LEGAL[stage, protocol.token_class[tokens]]
  broken = (learned & ~legal).any(1)  # [P]
  if broken.any():
    example = examples[int(np.argmax(broken))]
    raise ValueError(f'example {example.id}: its trace breaks the protocol: '
                     'an empty thought')


# What has a cap: its name in errors, the field of Protocol, its stages.
_CAPPED = (
    ('thought', 'thought_cap', (protocol_lib.FIRST, protocol_lib.THOUGHT)),
    ('deep reasoning', 'deep_cap', (protocol_lib.DEEP,)),
    ('answer', 'answer_cap', (protocol_lib.ANSWER,)))


def _check_caps(examples, protocol, phase, stage, learned, max_chunks):
  """Refuses traces with more tokens than a cap allows."""
  for what, field, stages in _CAPPED:
    cap = getattr(protocol, field)
    inside = np.isin(stage, stages) & learned
    for c in range(1, max_chunks + 2):
      n = (inside & (phase == c)).sum(1)  # [P]
      if np.any(n > cap):
        b = int(np.argmax(n > cap))
        raise ValueError(f'example {examples[b].id}: a supervised {what} has '
                         f'{n[b]} tokens, its cap is {cap}')
