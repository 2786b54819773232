"""Examples to static arrays: chunk schedules, buckets, supervised targets."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

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
    chunk_tokens: [P, C+1] int32, source tokens of the same.
    arrivals: [P] int32, chunks that arrive on the clock. (source.num_chunks
      counts those that are thought on: none under read-then-think.)
    relevant: [P, C] int8, 1, 0, or -1 where not known or no chunk.
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
    lengths: Buckets of S; the smallest that holds all rows is taken.
    max_chunks: C, most chunks of a row.
    layout: 'streaming', or 'read_then_think': everything is preamble and
      nothing is thought before the stream has ended.

  Raises:
    ValueError: A row has more chunks or tokens than fit.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout={layout!r} is not one of {LAYOUTS}')
  P, C = len(examples), max_chunks
  rows = [tokenizer.render(example) for example in examples]
  for example in examples:
    if len(example.chunks) > C:
      raise ValueError(f'example {example.id} has {len(example.chunks)} '
                       f'chunks, max_chunks is {C}')
  parts = [[preamble, *chunks] for preamble, chunks in rows]
  longest = max(range(P), key=lambda p: sum(map(len, parts[p])))
  S = bucket(sum(map(len, parts[longest])), lengths,
             f'the source of example {examples[longest].id}')
  tokens = np.full((P, S), tokenizer.pad, np.int32)
  phase = np.zeros((P, S), np.int32)
  valid = np.zeros((P, S), bool)
  sizes = np.zeros((P, C + 1), np.int32)
  counts = np.zeros((P, C + 1), np.int32)
  relevant = np.full((P, C), -1, np.int8)
  question = np.zeros((P, C), bool)
  for p, (example, pieces) in enumerate(zip(examples, parts)):
    n, length = len(example.chunks), sum(map(len, pieces))
    tokens[p, :length] = np.concatenate([np.array(x, np.int32)
                                         for x in pieces])
    phase[p, :length] = np.repeat(np.arange(n + 1), [len(x) for x in pieces])
    phase[p, length:] = n
    valid[p, :length] = True
    sizes[p, :n + 1] = [len(x) for x in pieces]
    counts[p, :n + 1] = [words(t) for t in (example.preamble,
                                            *example.chunks)]
    if example.relevant is not None:
      relevant[p, :n] = example.relevant
    if example.question_chunk >= 0:
      question[p, example.question_chunk] = True
  arrivals = np.array([len(e.chunks) for e in examples], np.int32)
  streamed = layout == STREAMING
  source = Source(
      tokens=tokens,
      position=np.broadcast_to(np.arange(S, dtype=np.int32), (P, S)),
      phase=phase if streamed else np.zeros_like(phase), valid=valid,
      num_chunks=arrivals if streamed else np.zeros_like(arrivals),
      problem_id=np.array([e.id for e in examples], np.uint32))
  return Batch(examples=tuple(examples), source=source, words=counts,
               chunk_tokens=sizes, arrivals=arrivals, relevant=relevant,
               question=question)


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

  `sampled` is True on all that the policy has to learn: everything behind the
  prefix. Caps are not applied, but a trace that would meet one is an error.

  Raises:
    ValueError: An example has no trace, or its trace meets a cap or breaks
      the protocol.
  """
  if layout == READ_THEN_THINK:
    examples = [read_then_think(e) for e in examples]
  rows = [tokenizer.render_trace(example) for example in examples]
  length = np.array([len(row) for row in rows])
  num_chunks = np.array([0 if layout == READ_THEN_THINK else len(e.chunks)
                         for e in examples], np.int32)
  T = max(max(length), len(protocol.prefix) + 1)
  tokens = np.full((len(rows), T), tokenizer.pad, np.int32)
  for b, row in enumerate(rows):
    tokens[b, :len(row)] = row
  phase, stage = protocol_lib.annotate(protocol, tokens, length, num_chunks)
  valid = np.arange(T)[None] < length[:, None]
  legal = protocol_lib.LEGAL[stage, protocol.token_class[tokens]]
  if np.any(valid & (stage != protocol_lib.PREFIX) & ~legal):
    b = int(np.argmax((valid & (stage != protocol_lib.PREFIX) & ~legal).any(1)))
    raise ValueError(f'example {examples[b].id}: its trace breaks the '
                     f'protocol: an empty thought, or a control token inside')
  for part, cap in (('thought', protocol.thought_cap),
                    ('deep reasoning', protocol.deep_cap),
                    ('answer', protocol.answer_cap)):
    stages = {'thought': (protocol_lib.FIRST, protocol_lib.THOUGHT),
              'deep reasoning': (protocol_lib.DEEP,),
              'answer': (protocol_lib.ANSWER,)}[part]
    inside = np.isin(stage, stages) & valid
    for c in range(1, max_chunks + 2):
      n = (inside & (phase == c)).sum(1)
      if np.any(n > cap):
        b = int(np.argmax(n > cap))
        raise ValueError(f'example {examples[b].id}: a supervised {part} has '
                         f'{n[b]} tokens, its cap is {cap}')
  zero = np.zeros(tokens.shape, np.float32)
  return Target(tokens=tokens, phase=phase, stage=stage, valid=valid,
                sampled=valid & (stage != protocol_lib.PREFIX), logp=zero,
                logp_untruncated=zero)


def target_bucket(length: int, most: int) -> int:
  """Slots of a trained target: few sizes, at most a half more than needed."""
  size = 32
  while size < length:
    size = size * 3 // 2 if (size & (size - 1)) == 0 else size * 4 // 3
  return min(size, most)


def resize_target(target: Target, slots: int) -> Target:
  """The target with T = slots, cut behind its end or padded; host arrays."""
  if target.valid[:, slots:].any():
    raise ValueError(f'slots={slots} would cut a target')
  pad = max(0, slots - target.tokens.shape[1])
  def fit(a, fill):
    return np.pad(a[:, :slots], ((0, 0), (0, pad)), constant_values=fill)
  return dataclasses.replace(
      target, **{f.name: fit(np.asarray(getattr(target, f.name)),
                             protocol_lib.DONE if f.name == 'stage' else 0)
                 for f in dataclasses.fields(target)})
