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
  if example.threads:
    root = tuple(piece for piece in example.threads[0]
                 if piece.kind not in ('skip', 'eot'))
    return dataclasses.replace(
        example, threads=(root, *example.threads[1:]))
  if example.thoughts is None or example.deep is None:
    return example  # without a trace
  return dataclasses.replace(example, thoughts=(), deep=' '.join(
      filter(None, [*example.thoughts, example.deep])))


def supervised_target(examples: Sequence[Example], tokenizer: Tokenizer,
                      protocol: Protocol, *, max_chunks: int,
                      layout: str) -> Target:
  """Targets that imitate the examples' traces; [P * W, T].

  W = protocol.width: the root of each example, then its children; rows of
  children that are not there are empty. `sampled` is True on everything that
  the policy has to learn: all after the prefix but what is forced upon a
  thread. Caps are not applied, but a trace that exceeds one is an error.

  Raises:
    ValueError: An example has no trace, or its trace exceeds a cap or breaks
      the protocol.
  """
  target = rendered(examples, tokenizer, protocol, layout=layout)
  own = target.valid & (target.stage != protocol_lib.PREFIX)
  rows = [e for e in examples for _ in range(protocol.width)]
  _check_legal(rows, protocol, target.tokens, target.stage, target.sampled)
  _check_caps(rows, protocol, target.phase, target.stage, own, max_chunks)
  return target


def rendered(examples: Sequence[Example], tokenizer: Tokenizer,
             protocol: Protocol, *, layout: str) -> Target:
  """supervised_target() of traces that may exceed caps or break the protocol.

  Raises:
    ValueError: An example has no trace, or children that its root does not
      spawn.
  """
  num_chunks = _num_chunks(examples)
  if layout == READ_THEN_THINK:
    examples = [read_then_think(e) for e in examples]
    num_chunks = np.zeros_like(num_chunks)
  rows = [row for e in examples for row in _threads(e, tokenizer, protocol)]
  length = np.array([len(ids) for ids, _ in rows])
  T = max(max(length), len(protocol.prefix) + 1)
  shape = len(rows), T
  tokens = _padded([ids for ids, _ in rows], shape, tokenizer.pad, np.int32)
  forced = _padded([given for _, given in rows], shape, False, bool)
  phase, stage = _annotated(protocol, tokens, forced, length, num_chunks)
  valid = np.arange(T)[None] < length[:, None]
  zero = np.zeros(tokens.shape, np.float32)
  return Target(
      tokens=tokens, phase=phase, stage=stage, valid=valid,
      sampled=valid & (stage != protocol_lib.PREFIX) & ~forced,
      logp=zero, logp_untruncated=zero)


def _threads(example, tokenizer, protocol):
  """W pairs: ids of each thread, prefix first, and which are forced."""
  W = protocol.width
  if example.threads is None:
    ids = tokenizer.render_trace(example)
    n = len(protocol.prefix)
    threads = [(ids, [True] * n + [False] * (len(ids) - n))]
  else:
    threads = [tokenizer.render_thread(t) for t in example.threads]
    if len(threads) > W:
      raise ValueError(f'example {example.id}: its trace has '
                       f'{len(threads) - 1} children, rollout.children is '
                       f'{W - 1}')
    _check_briefs(example, protocol, threads)
  return threads + [([], [])] * (W - len(threads))


def _check_briefs(example, protocol, threads):
  """Refuses a tree whose children are not those that its root spawns."""
  (root, _), *children = threads
  cls = protocol.token_class[root]
  ends = np.flatnonzero(np.isin(cls, (protocol_lib.SPAWN, protocol_lib.JOIN)))
  begins = [i for i in ends if cls[i] == protocol_lib.SPAWN]
  briefs = [root[i:min(ends[ends > i], default=len(root))] for i in begins]
  if len(briefs) != len(children):
    raise ValueError(f'example {example.id}: its trace has {len(children)} '
                     f'children, its root spawns {len(briefs)}')
  for c, (brief, (ids, forced)) in enumerate(zip(briefs, children)):
    given = [*protocol.prefix, *brief]
    if ids and (ids[:len(given)] != given
                or sum(forced) != len(given) or not all(forced[:len(given)])):
      raise ValueError(f'example {example.id}: child {c} of its trace does not '
                       f'begin with its brief, forced')


def _annotated(protocol, tokens, forced, length, num_chunks):
  """Phase and stage of all threads [P * W, T]; see protocol.annotate."""
  W, T = protocol.width, tokens.shape[1]
  of_tree = lambda a: a.reshape(-1, W, *a.shape[1:])
  tokens, forced, length = map(of_tree, (tokens, forced, length))
  phase, stage = protocol_lib.annotate(
      protocol, tokens[:, 0], length[:, 0], num_chunks, joined=forced[:, 0])
  if W == 1:
    return phase, stage
  # A child's phase is that of its `<spawn>` in the root.
  spawns = ((protocol.token_class[tokens[:, 0]] == protocol_lib.SPAWN)
            & np.isin(stage, protocol_lib.BRIEFS + protocol_lib.CALLERS))
  begun = np.zeros((len(tokens), W - 1), np.int32)
  for p, row in enumerate(spawns):
    at = np.flatnonzero(row)
    begun[p, :len(at)] = phase[p, at]
  flat = lambda a: a[:, 1:].reshape(-1, *a.shape[2:])
  of_children = protocol_lib.annotate(
      protocol, flat(tokens), flat(length),
      np.full(begun.size, protocol_lib.NO_CHUNKS), phase=begun.reshape(-1))
  return tuple(
      np.concatenate([root[:, None], children.reshape(-1, W - 1, T)], 1
                     ).reshape(-1, T)
      for root, children in zip((phase, stage), of_children))


def _check_legal(examples, protocol, tokens, stage, learned):
  """Refuses traces with a token that its stage does not allow.

  Text never becomes a control token, so without threads it is a thought that
  does not begin.
  """
  legal = protocol_lib.LEGAL[stage, protocol.token_class[tokens]]
  broken = (learned & ~legal).any(1)  # [P * W]
  if broken.any():
    example = examples[int(np.argmax(broken))]
    what = 'an empty thought' if example.threads is None else 'a thread'
    raise ValueError(f'example {example.id}: its trace breaks the protocol: '
                     f'{what}')


# What has a cap: its name in errors, the field of Protocol, its stages.
_CAPPED = (
    ('thought', 'thought_cap', (protocol_lib.FIRST, protocol_lib.THOUGHT,
                                protocol_lib.BRIEF, protocol_lib.JOINED)),
    ('deep reasoning', 'deep_cap', (
        protocol_lib.DEEP, protocol_lib.DEEP_BRIEF, protocol_lib.DEEP_JOINED)),
    ('answer', 'answer_cap', (protocol_lib.ANSWER,)))


def _check_caps(examples, protocol, phase, stage, own, max_chunks):
  """Refuses traces with more tokens than a cap allows."""
  capped = [(what, getattr(protocol, field), stages)
            for what, field, stages in _CAPPED]
  if protocol.threads:
    capped.append(('child', protocol.threads.cap, protocol_lib.CHILDREN))
  for what, cap, stages in capped:
    inside = np.isin(stage, stages) & own
    for c in range(1, max_chunks + 2):
      n = (inside & (phase == c)).sum(1)  # [P * W]
      if np.any(n > cap):
        b = int(np.argmax(n > cap))
        raise ValueError(f'example {examples[b].id}: a supervised {what} has '
                         f'{n[b]} tokens, its cap is {cap}')
