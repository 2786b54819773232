"""The phase automaton: what may be written when, and what each token does.

One table of stage x token class drives decoding, legality, rewards and the
annotation of supervised traces; no other code derives a phase from token ids.

            TEXT      EOT        SKIP       END_THINK  EOS       SPAWN
  FIRST     THOUGHT   next (!)   next       THOUGHT(!) DONE (!)  BRIEF
  THOUGHT   THOUGHT   next       next (!)   THOUGHT(!) DONE (!)  BRIEF
  DEEP      DEEP      DEEP (!)   DEEP (!)   ANSWER     DONE (!)  DEEP_BRIEF
  ANSWER    ANSWER    ANSWER(!)  ANSWER(!)  ANSWER(!)  DONE      ANSWER(!)

`next` goes to the next chunk (FIRST), or to DEEP after the last. (!) marks a
violation: under `free` legality it may happen and costs the format reward;
under `masked` legality its probability is zero in the rollout and in the loss.
Ids that decode to nothing are illegal under both. A thought, the deep
reasoning and the answer each have a cap: the last slot of the cap is forced to
hold the token that ends them.

Where the protocol has threads, a thread may spawn children (policy/threads.py):

  parent   `<spawn>` brief `<spawn>` brief .. `<join>`, then, forced, what each
           child returned: `<return>` .. or `<none>`
  child    `<spawn>` brief, forced; its own text; `<return>` result, or nothing;
           end of sequence

               TEXT         SPAWN       JOIN         RETURN  END_THINK  EOS
  BRIEF        BRIEF        BRIEF       JOINED       -       BRIEF (!)  DONE (!)
  DEEP_BRIEF   DEEP_BRIEF   DEEP_BRIEF  DEEP_JOINED  -       ANSWER(!)  DONE (!)
  CHILD        CHILD        -           -            RESULT  CHILD (!)  DONE
  RESULT       RESULT       -           -            -       RESULT(!)  DONE

`-`: probability zero under both legalities. So only a child, once, writes
`<return>`, nobody `<none>`, and children spawn nothing. JOINED and DEEP_JOINED
hold what is forced; THOUGHT and DEEP follow (`after_join`). A call counts in
the thought or deep reasoning that makes it; a child has a cap of its own.

Source: protocol of AdaSR (arXiv 2606.14694) and StreamingThinker
(arXiv 2510.17238); threads, adaptive parallel reasoning (arXiv 2504.15466);
the behaviour of violations and caps is ours.
"""

from __future__ import annotations

import dataclasses
import functools

from flax import struct
import jax.numpy as jnp
import numpy as np

from adasr_jax.core.types import Array

# Stages. PREFIX is 0: rows start there, in arrays of zeros.
PREFIX, FIRST, THOUGHT, DEEP, ANSWER, DONE = range(6)
BRIEF, JOINED, DEEP_BRIEF, DEEP_JOINED, CHILD, RESULT = range(6, 12)
CALLERS = FIRST, THOUGHT, DEEP  # in which a root begins to call
BRIEFS, JOINS, CHILDREN = (BRIEF, DEEP_BRIEF), (JOINED, DEEP_JOINED), (
    CHILD, RESULT)
# Token classes.
TEXT, EOT, SKIP, END_THINK, EOS, UNDECODABLE, SPAWN, JOIN, RETURN, NONE = (
    range(10))
NO_CHUNKS = -1  # num_chunks of a child

_NEXT = -1  # ends the phase
# By rows of stage: where each token class leads, and whether it is legal.
_TABLE = {
    #         TEXT     EOT     SKIP    END_THINK EOS   UNDECODABLE
    #         SPAWN    JOIN    RETURN  NONE
    PREFIX: ([PREFIX] * 10, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
    FIRST: ([THOUGHT, _NEXT, _NEXT, THOUGHT, DONE, THOUGHT,
             BRIEF, THOUGHT, THOUGHT, THOUGHT],
            [1, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
    THOUGHT: ([THOUGHT, _NEXT, _NEXT, THOUGHT, DONE, THOUGHT,
               BRIEF, THOUGHT, THOUGHT, THOUGHT],
              [1, 1, 0, 0, 0, 0, 1, 0, 0, 0]),
    DEEP: ([DEEP, DEEP, DEEP, ANSWER, DONE, DEEP,
            DEEP_BRIEF, DEEP, DEEP, DEEP],
           [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]),
    ANSWER: ([ANSWER, ANSWER, ANSWER, ANSWER, DONE, ANSWER,
              ANSWER, ANSWER, ANSWER, ANSWER],
             [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
    DONE: ([DONE] * 10, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
    BRIEF: ([BRIEF, _NEXT, _NEXT, BRIEF, DONE, BRIEF,
             BRIEF, JOINED, BRIEF, BRIEF],
            [1, 0, 0, 0, 0, 0, 1, 1, 0, 0]),
    JOINED: ([JOINED, _NEXT, JOINED, JOINED, JOINED, JOINED,
              JOINED, JOINED, JOINED, JOINED],
             [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
    DEEP_BRIEF: ([DEEP_BRIEF, DEEP_BRIEF, DEEP_BRIEF, ANSWER, DONE, DEEP_BRIEF,
                  DEEP_BRIEF, DEEP_JOINED, DEEP_BRIEF, DEEP_BRIEF],
                 [1, 0, 0, 0, 0, 0, 1, 1, 0, 0]),
    DEEP_JOINED: ([DEEP_JOINED] * 3 + [ANSWER] + [DEEP_JOINED] * 6,
                  [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
    CHILD: ([CHILD, CHILD, CHILD, CHILD, DONE, CHILD,
             CHILD, CHILD, RESULT, CHILD],
            [1, 0, 0, 0, 1, 0, 0, 0, 1, 0]),
    RESULT: ([RESULT, RESULT, RESULT, RESULT, DONE, RESULT,
              RESULT, RESULT, RESULT, RESULT],
             [1, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
}
_STEP = np.array([_TABLE[s][0] for s in range(12)], np.int32)
LEGAL = np.array([_TABLE[s][1] for s in range(12)], bool)
# What `free` legality allows.
_FREE = np.ones(LEGAL.shape, bool)
_FREE[:, [UNDECODABLE, RETURN, NONE]] = False
_FREE[CHILD, RETURN] = True
_FREE[[CHILD, RESULT], SPAWN] = _FREE[[CHILD, RESULT], JOIN] = False


@dataclasses.dataclass(frozen=True)
class Threads:
  """Tokens and caps of threads. Hashable, as Protocol.

  Attributes:
    spawn, join, result, none: Token ids of `<spawn>`, `<join>`, `<return>` and
      `<none>`.
    children: M, most children of a rollout; of more, nothing returns.
    cap: Most tokens of a child after the prefix, its brief and the
      end-of-sequence token included; >= 2.
  """
  spawn: int
  join: int
  result: int
  none: int
  children: int
  cap: int


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Control tokens, caps and legality. Hashable, so a static jit argument.

  Attributes:
    vocab_size: Rows of the embedding.
    eot, skip, end_think, eos: Token ids.
    undecodable: Ids that stand for no text: padding, unused embedding rows.
    prefix: Forced token ids that open every target; at least one.
    thought_cap: Most tokens a thought may have, its `<EOT>` included; >= 2. As
      of the others, the last slot is forced, so that what ends by itself, and
      counts as well-formed, has at most cap - 1.
    deep_cap: Most tokens of deep reasoning, `</think>` included; >= 1.
    answer_cap: Most tokens of the answer, end-of-sequence included; >= 2.
    legality: 'free' or 'masked'.
    threads: Their tokens and caps; None = nothing is spawned.
  """
  vocab_size: int
  eot: int
  skip: int
  end_think: int
  eos: int
  undecodable: tuple[int, ...]
  prefix: tuple[int, ...]
  thought_cap: int
  deep_cap: int
  answer_cap: int
  legality: str
  threads: Threads | None = None

  def __post_init__(self):
    t = self.threads
    ids = (self.eot, self.skip, self.end_think, self.eos,
           *((t.spawn, t.join, t.result, t.none) if t else ()))
    if len(set(ids)) != len(ids):
      raise ValueError(f'control tokens must differ, got {ids}')
    bad = [i for i in (*ids, *self.prefix) if not 0 <= i < self.vocab_size]
    if bad:
      raise ValueError(f'token ids {bad} outside vocab_size={self.vocab_size}')
    if not self.prefix:
      raise ValueError('the target needs at least one forced prefix token')
    for name, least in (('thought_cap', 2), ('deep_cap', 1),
                        ('answer_cap', 2)):
      if getattr(self, name) < least:
        raise ValueError(f'{name}={getattr(self, name)} is below {least}')
    if t and (t.children < 1 or t.cap < 2):
      raise ValueError(f'threads: children={t.children}, cap={t.cap} are '
                       'below 1, 2')
    if self.legality not in ('free', 'masked'):
      raise ValueError(f"legality={self.legality!r} is not 'free' or 'masked'")

  def max_target(self, max_chunks: int) -> int:
    """Slots that are enough for any target on at most `max_chunks` chunks."""
    own = max_chunks * self.thought_cap + self.deep_cap + self.answer_cap
    return len(self.prefix) + max(own, self.threads.cap if self.threads else 0)

  @property
  def width(self) -> int:
    """Threads that a rollout may have: rows of its targets, the root first."""
    return 1 + (self.threads.children if self.threads else 0)

  @functools.cached_property
  def token_class(self) -> np.ndarray:
    """[V] int32, the class of each token id."""
    out = np.full(self.vocab_size, TEXT, np.int32)
    out[list(self.undecodable)] = UNDECODABLE
    own = [(EOT, self.eot), (SKIP, self.skip), (END_THINK, self.end_think),
           (EOS, self.eos)]
    if t := self.threads:
      own += [(SPAWN, t.spawn), (JOIN, t.join), (RETURN, t.result),
              (NONE, t.none)]
    for cls, i in own:
      out[i] = cls
    return out

  @property
  def alike(self) -> bool:
    """Whether all stages allow the same tokens."""
    return self.legality == 'free' and self.threads is None

  @functools.cached_property
  def allowed(self) -> np.ndarray:
    """[stages, V] bool, the tokens that each stage allows."""
    table = LEGAL if self.legality == 'masked' else _FREE
    return table[:, self.token_class]


@struct.dataclass
class State:
  """Where each row stands in the protocol; all [B] int32.

  Attributes:
    phase: Phase of the next token.
    stage: Stage of the next token.
    count: Tokens already written in this thought, deep reasoning or answer.
    num_chunks: Chunks of the row; NO_CHUNKS where it is a child.
  """
  phase: Array
  stage: Array
  count: Array
  num_chunks: Array


def _np_of(x):
  return np if isinstance(x, np.ndarray) else jnp


def start(protocol: Protocol, num_chunks: Array, phase: Array | int = 0
          ) -> State:
  """The state after the first prefix token.

  Args:
    protocol: Its prefix is read.
    num_chunks: [B] int32; NO_CHUNKS where the row is a child.
    phase: [B] int32, of the children: what they may read.
  """
  xp = _np_of(num_chunks)
  zero = xp.zeros_like(num_chunks)
  return _leave_prefix(
      protocol, State(phase=xp.where(num_chunks < 0, phase, zero), stage=zero,
                      count=zero + 1, num_chunks=num_chunks))


def _leave_prefix(protocol, s):
  xp = _np_of(s.stage)
  leave = (s.stage == PREFIX) & (s.count >= len(protocol.prefix))
  first = xp.where(s.num_chunks > 0, FIRST,
                   xp.where(s.num_chunks < 0, CHILD, DEEP))
  return State(phase=xp.where(leave & (s.num_chunks >= 0), 1, s.phase),
               stage=xp.where(leave, first, s.stage),
               count=xp.where(leave, 0, s.count), num_chunks=s.num_chunks)


def _in(stage, stages):
  return functools.reduce(lambda a, b: a | b, (stage == s for s in stages))


def after_join(s: State) -> State:
  """The state once all that a join forces is written."""
  xp = _np_of(s.stage)
  stage = xp.where(s.stage == JOINED, THOUGHT,
                   xp.where(s.stage == DEEP_JOINED, DEEP, s.stage))
  return dataclasses.replace(s, stage=stage)


def forced(protocol: Protocol, s: State) -> Array:
  """[B] int32, the token that the next slot must hold, or -1 if it is free.

  Forced are the prefix, and the token that ends a thought, the deep reasoning,
  the answer or a child when one slot of its cap is left.
  """
  xp = _np_of(s.stage)
  prefix = xp.asarray(np.array(protocol.prefix, np.int32))
  out = xp.where(s.stage == PREFIX,
                 prefix[xp.minimum(s.count, len(protocol.prefix) - 1)], -1)
  t = protocol.threads
  thought, deep = (FIRST, THOUGHT), (DEEP,)
  if t:
    thought += (BRIEF, JOINED)
    deep += (DEEP_BRIEF, DEEP_JOINED)
  capped = [(thought, protocol.thought_cap, protocol.eot),
            (deep, protocol.deep_cap, protocol.end_think),
            ((ANSWER,), protocol.answer_cap, protocol.eos)]
  if t:
    capped.append((CHILDREN, t.cap, protocol.eos))
  for stages, cap, token in capped:
    out = xp.where(_in(s.stage, stages) & (s.count >= cap - 1), token, out)
  return out.astype(np.int32)


def advance(protocol: Protocol, s: State, token: Array) -> State:
  """The state after `token` [B] int32 was written; DONE rows stay DONE."""
  xp = _np_of(s.stage)
  cls = xp.asarray(protocol.token_class)[token]
  to = xp.asarray(_STEP)[s.stage, cls]
  ends = to == _NEXT
  phase = s.phase + ends
  to = xp.where(ends, xp.where(phase <= s.num_chunks, FIRST, DEEP), to)
  fresh = ends | ((s.stage != ANSWER) & (to == ANSWER))
  count = xp.where(fresh, 0, s.count + 1)
  return _leave_prefix(protocol, State(
      phase=phase.astype(np.int32), stage=to.astype(np.int32),
      count=count.astype(np.int32), num_chunks=s.num_chunks))


def annotate(protocol: Protocol, tokens: np.ndarray, length: np.ndarray,
             num_chunks: np.ndarray, *, phase: np.ndarray | int = 0,
             joined: np.ndarray | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
  """Phase and stage of each token of given targets, by the same automaton.

  Args:
    protocol: Control tokens (caps are not applied).
    tokens: [B, T] int32, prefix first.
    length: [B] int32, tokens of each row; 0 where there is none.
    num_chunks: [B] int32; NO_CHUNKS where the row is a child.
    phase: [B] int32, that of the children.
    joined: [B, T] bool, the tokens that a join forces; None = none.

  Returns:
    phase, stage: [B, T] int32; 0 and DONE after the end of a row.

  Raises:
    ValueError: A row has tokens after its end, or stops before its end.
  """
  tokens, num_chunks = np.asarray(tokens), np.asarray(num_chunks, np.int32)
  phases = np.zeros(tokens.shape, np.int32)
  stage = np.full(tokens.shape, DONE, np.int32)
  if joined is None:
    joined = np.zeros(tokens.shape, bool)
  s = start(protocol, num_chunks, phase)
  there = np.asarray(length) > 0
  stage[:, 0] = np.where(there, PREFIX, DONE)
  for t in range(1, tokens.shape[1]):
    live = t < length
    if np.any(live & (s.stage == DONE)):
      row = int(np.argmax(live & (s.stage == DONE)))
      raise ValueError(f'row {row}: tokens after the end at slot {t}')
    back = after_join(s)
    s = dataclasses.replace(s, stage=np.where(joined[:, t], s.stage,
                                              back.stage))
    phases[:, t] = np.where(live, s.phase, 0)
    stage[:, t] = np.where(live, s.stage, DONE)
    new = advance(protocol, s, tokens[:, t])
    s = State(*(np.where(live, a, b) for a, b in (
        (new.phase, s.phase), (new.stage, s.stage), (new.count, s.count),
        (s.num_chunks, s.num_chunks))))
  stops = there & (s.stage != DONE)
  if np.any(stops):
    row = int(np.argmax(stops))
    raise ValueError(
        f'row {row}: the trace stops in phase {s.phase[row]} of '
        f'{num_chunks[row] + 1}, before its end')
  return phases, stage
