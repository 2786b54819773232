"""The phase automaton: what may be written when, and what each token does.

One table of stage x token class drives decoding, legality, rewards and the
annotation of supervised traces; no other code derives a phase from token ids.

            TEXT      EOT        SKIP       END_THINK  EOS
  FIRST     THOUGHT   next (!)   next       THOUGHT(!) DONE (!)
  THOUGHT   THOUGHT   next       next (!)   THOUGHT(!) DONE (!)
  DEEP      DEEP      DEEP (!)   DEEP (!)   ANSWER     DONE (!)
  ANSWER    ANSWER    ANSWER(!)  ANSWER(!)  ANSWER(!)  DONE

`next` goes to the next chunk (FIRST), or to DEEP after the last. (!) marks a
violation: under `free` legality it may happen and costs the format reward;
under `masked` legality its probability is zero in the rollout and in the loss.
Ids that decode to nothing are illegal under both. A thought, the deep
reasoning and the answer each have a cap: the last slot of the cap is forced to
hold the token that ends them.

Source: protocol of AdaSR (arXiv 2606.14694) and StreamingThinker
(arXiv 2510.17238); the behaviour of violations and caps is ours.
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
# Token classes.
TEXT, EOT, SKIP, END_THINK, EOS, UNDECODABLE = range(6)

_NEXT = -1  # ends the phase
#                    TEXT     EOT     SKIP    END_THINK EOS   UNDECODABLE
_STEP = np.array([
    [PREFIX, PREFIX, PREFIX, PREFIX, PREFIX, PREFIX],  # forced, see advance()
    [THOUGHT, _NEXT, _NEXT, THOUGHT, DONE, THOUGHT],
    [THOUGHT, _NEXT, _NEXT, THOUGHT, DONE, THOUGHT],
    [DEEP, DEEP, DEEP, ANSWER, DONE, DEEP],
    [ANSWER, ANSWER, ANSWER, ANSWER, DONE, ANSWER],
    [DONE, DONE, DONE, DONE, DONE, DONE],
], np.int32)
LEGAL = np.array([
    [1, 1, 1, 1, 1, 0],
    [1, 0, 1, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 0, 0, 1, 0, 0],
    [1, 0, 0, 0, 1, 0],
    [1, 1, 1, 1, 1, 0],
], bool)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Control tokens, caps and legality. Hashable, so a static jit argument.

  Attributes:
    vocab_size: Rows of the embedding.
    eot, skip, end_think, eos: Token ids.
    undecodable: Ids that stand for no text: padding, unused embedding rows.
    prefix: Forced token ids that open every target; at least one.
    thought_cap: Most tokens a thought may have, its `<EOT>` included; >= 2.
    deep_cap: Most tokens of deep reasoning, `</think>` included; >= 1.
    answer_cap: Most tokens of the answer, end-of-sequence included; >= 2.
    legality: 'free' or 'masked'.
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

  def __post_init__(self):
    ids = (self.eot, self.skip, self.end_think, self.eos)
    if len(set(ids)) != 4:
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
    if self.legality not in ('free', 'masked'):
      raise ValueError(f"legality={self.legality!r} is not 'free' or 'masked'")

  def max_target(self, max_chunks: int) -> int:
    """Slots that are enough for any target on at most `max_chunks` chunks."""
    return (len(self.prefix) + max_chunks * self.thought_cap + self.deep_cap
            + self.answer_cap)

  @functools.cached_property
  def token_class(self) -> np.ndarray:
    """[V] int32, the class of each token id."""
    out = np.full(self.vocab_size, TEXT, np.int32)
    out[list(self.undecodable)] = UNDECODABLE
    for cls, i in ((EOT, self.eot), (SKIP, self.skip),
                   (END_THINK, self.end_think), (EOS, self.eos)):
      out[i] = cls
    return out

  @functools.cached_property
  def allowed(self) -> np.ndarray:
    """[stages, V] bool, the tokens that each stage allows."""
    if self.legality == 'masked':
      return LEGAL[:, self.token_class]
    return np.broadcast_to(self.token_class != UNDECODABLE,
                           (len(LEGAL), self.vocab_size))


@struct.dataclass
class State:
  """Where each row stands in the protocol; all [B] int32.

  Attributes:
    phase: Phase of the next token.
    stage: Stage of the next token.
    count: Tokens already written in this thought, deep reasoning or answer.
    num_chunks: Chunks of the row.
  """
  phase: Array
  stage: Array
  count: Array
  num_chunks: Array


def _np_of(x):
  return np if isinstance(x, np.ndarray) else jnp


def start(protocol: Protocol, num_chunks: Array) -> State:
  """The state after the first prefix token; num_chunks [B] int32."""
  xp = _np_of(num_chunks)
  zero = xp.zeros_like(num_chunks)
  return _leave_prefix(
      protocol, State(phase=zero, stage=zero, count=zero + 1,
                      num_chunks=num_chunks))


def _leave_prefix(protocol, s):
  xp = _np_of(s.stage)
  leave = (s.stage == PREFIX) & (s.count >= len(protocol.prefix))
  first = xp.where(s.num_chunks > 0, FIRST, DEEP)
  return State(phase=xp.where(leave, 1, s.phase),
               stage=xp.where(leave, first, s.stage),
               count=xp.where(leave, 0, s.count), num_chunks=s.num_chunks)


def forced(protocol: Protocol, s: State) -> Array:
  """[B] int32, the token that the next slot must hold, or -1 if it is free.

  Forced are the prefix, and the token that ends a thought, the deep reasoning
  or the answer when one slot of its cap is left.
  """
  xp = _np_of(s.stage)
  prefix = xp.asarray(np.array(protocol.prefix, np.int32))
  out = xp.where(s.stage == PREFIX,
                 prefix[xp.minimum(s.count, len(protocol.prefix) - 1)], -1)
  in_thought = (s.stage == FIRST) | (s.stage == THOUGHT)
  for stage, cap, token in (
      (in_thought, protocol.thought_cap, protocol.eot),
      (s.stage == DEEP, protocol.deep_cap, protocol.end_think),
      (s.stage == ANSWER, protocol.answer_cap, protocol.eos)):
    out = xp.where(stage & (s.count >= cap - 1), token, out)
  return out.astype(np.int32)


def advance(protocol: Protocol, s: State, token: Array) -> State:
  """The state after `token` [B] int32 was written; DONE rows stay DONE."""
  xp = _np_of(s.stage)
  cls = xp.asarray(protocol.token_class)[token]
  to = xp.asarray(_STEP)[s.stage, cls]
  ends = to == _NEXT
  phase = s.phase + ends
  to = xp.where(ends, xp.where(phase <= s.num_chunks, FIRST, DEEP), to)
  fresh = ends | ((s.stage == DEEP) & (to == ANSWER))
  count = xp.where(fresh, 0, s.count + 1)
  return _leave_prefix(protocol, State(
      phase=phase.astype(np.int32), stage=to.astype(np.int32),
      count=count.astype(np.int32), num_chunks=s.num_chunks))


def annotate(protocol: Protocol, tokens: np.ndarray, length: np.ndarray,
             num_chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Phase and stage of each token of given targets, by the same automaton.

  Args:
    protocol: Control tokens (caps are not applied).
    tokens: [B, T] int32, prefix first.
    length: [B] int32, tokens of each row.
    num_chunks: [B] int32.

  Returns:
    phase, stage: [B, T] int32; 0 and DONE after the end of a row.

  Raises:
    ValueError: A row has tokens after its end, or stops before its end.
  """
  tokens, num_chunks = np.asarray(tokens), np.asarray(num_chunks, np.int32)
  phase = np.zeros(tokens.shape, np.int32)
  stage = np.full(tokens.shape, DONE, np.int32)
  s = start(protocol, num_chunks)
  phase[:, 0], stage[:, 0] = 0, PREFIX
  for t in range(1, tokens.shape[1]):
    live = t < length
    if np.any(live & (s.stage == DONE)):
      row = int(np.argmax(live & (s.stage == DONE)))
      raise ValueError(f'row {row}: tokens after the end at slot {t}')
    phase[:, t] = np.where(live, s.phase, 0)
    stage[:, t] = np.where(live, s.stage, DONE)
    new = advance(protocol, s, tokens[:, t])
    s = State(*(np.where(live, a, b) for a, b in (
        (new.phase, s.phase), (new.stage, s.stage), (new.count, s.count),
        (s.num_chunks, s.num_chunks))))
  if np.any(s.stage != DONE):
    row = int(np.argmax(s.stage != DONE))
    raise ValueError(
        f'row {row}: the trace stops in phase {s.phase[row]} of '
        f'{num_chunks[row] + 1}, before its end')
  return phase, stage
