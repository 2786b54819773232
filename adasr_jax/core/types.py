"""The values that travel through the program, and the letters of their axes.

  Example --data--> Source --rollout--> Target --rewards, advantages--> update

Axes (einsum strings and shape comments use these letters; a module that gives
one another meaning, as Branches does N, says so where it does):

  P  distinct prompts            C  most chunks of a stream
  G  samples (rollouts) per      L  layers
     prompt                      D  model width
  W  threads of a rollout: its   N  query heads
     root and children, often 1  K  key/value heads
  B  rows, B = P * G * W; row b  R  query heads per key/value head, N / K
     belongs to prompt b // (GW) H  head size
  T  target (or query) tokens    F  feed-forward width
  S  source (or key) slots       V  vocabulary
  M  most children of a root     Q  queues of an engine, J its jobs

`C` is the maximum over all rows; a row's own number of chunks is
n = num_chunks[row] <= C, and its deep reasoning has phase n + 1.

Words: a *slot* is where a token sits in a buffer; a *position* is what RoPE
sees; a *phase* says what a token may read (see visibility.py); a *stage* says
which tokens the protocol allows next (see protocol.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from flax import struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


# Kinds of pieces: text, or a control token by its name in Tokenizer.
TEXT = 'text'
CONTROLS = ('eot', 'skip', 'end_think', 'eos', 'spawn', 'join', 'result',
            'none')


class Piece(NamedTuple):
  """A piece of what a thread writes.

  Attributes:
    kind: TEXT, or one of CONTROLS.
    text: Of a text; '' for a control token.
    forced: Whether it is forced upon the thread, which then need not learn it.
  """
  kind: str
  text: str = ''
  forced: bool = False


# All that a thread writes after its prefix; empty = there is no such thread.
ThreadTrace = tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Example:
  """One problem, as text.

  Attributes:
    id: Integer in [0, 2**32), the same for the same problem text; seeds the
      random numbers of its rollouts.
    preamble: What is there before the stream starts: the instruction, and the
      question if it comes first. May be empty.
    chunks: The stream, sentence by sentence, in order of arrival. Joined they
      are exactly the text, white space included. The question is one of them
      if it comes last or in the middle.
    answer: The reference answer.
    question_chunk: Index into `chunks` of the question, or -1 if it stands in
      the preamble.
    relevant: Whether each chunk matters for the answer; None = not known.
    thoughts: A supervised thought for each chunk, None = skip; None as a whole
      if the example has no trace.
    deep: The supervised deep reasoning; None if the example has no trace.
    kinds: A name for what each chunk is ('gain', 'scene', ...), for tables and
      figures; empty = not known.
    trace_answer: The answer that the supervised trace gives; None = the
      reference answer.
    group: Integer in [0, 2**32) that the variations of one problem share, so
      that no two of them fall into different splits; None = no variations.
    instance: Which set of variations it belongs to, for the deviation over
      sets (GSM-Symbolic); -1 = none.
    threads: A supervised tree, instead of `thoughts` and `deep`: the root, then
      a child for each `<spawn>` of the root, in order. A child begins with its
      `<spawn>` and brief, forced, and is empty where it shall not be learned;
      what a join returns is forced upon the root. None = no tree.
  """
  id: int
  preamble: str
  chunks: tuple[str, ...]
  answer: str
  question_chunk: int = -1
  relevant: tuple[bool, ...] | None = None
  thoughts: tuple[str | None, ...] | None = None
  deep: str | None = None
  kinds: tuple[str, ...] = ()
  trace_answer: str | None = None
  group: int | None = None
  instance: int = -1
  threads: tuple[ThreadTrace, ...] | None = None

  def __post_init__(self):
    if not 0 <= self.id < 2**32:
      raise ValueError(f'example id={self.id} is outside [0, 2**32)')
    for name in ('relevant', 'thoughts', 'kinds'):
      value = getattr(self, name)
      if value and len(value) != len(self.chunks):
        raise ValueError(
            f'example {self.id}: {len(value)} {name} for '
            f'{len(self.chunks)} chunks')
    if not -1 <= self.question_chunk < len(self.chunks):
      raise ValueError(
          f'example {self.id}: question_chunk={self.question_chunk} with '
          f'{len(self.chunks)} chunks')
    for piece in (p for thread in self.threads or () for p in thread):
      if piece.kind not in (TEXT, *CONTROLS):
        raise ValueError(f'example {self.id}: kind={piece.kind!r} of a piece '
                         f'is not one of {(TEXT, *CONTROLS)}')


@struct.dataclass
class Source:
  """The static chunk schedule of P prompts; rows are ragged inside it.

  Attributes:
    tokens: [P, S] int32.
    position: [P, S] int32, RoPE positions, from 0.
    phase: [P, S] int32, 0 = preamble, 1..n = the chunk a token belongs to,
      n = num_chunks[row]; non-decreasing along a row.
    valid: [P, S] bool; padding is never inferred from a token id.
    num_chunks: [P] int32, how many chunks each row has. 0 means that nothing
      is streamed: the policy reads all, then thinks.
    problem_id: [P] uint32, seeds the random numbers of the rollouts.
  """
  tokens: Array
  position: Array
  phase: Array
  valid: Array
  num_chunks: Array
  problem_id: Array


@struct.dataclass
class Target:
  """What a policy wrote, or shall write, on a Source: a rollout or a trace.

  Attributes:
    tokens: [B, T] int32; slot 0 holds the first forced prefix token.
    phase: [B, T] int32, 0 = forced prefix, 1..n = the thought on that chunk,
      n + 1 = deep reasoning and answer; n = num_chunks of the row's prompt.
    stage: [B, T] int32, the protocol's stage in which the token was drawn.
    valid: [B, T] bool.
    sampled: [B, T] bool, False where the token was forced (prefix, caps).
      Only sampled tokens count in the loss.
    logp: [B, T] float32, nats, under the sampling distribution; 0 where
      forced or not valid.
    logp_untruncated: [B, T] float32, nats, under the same distribution before
      top-k/top-p (for greedy decoding: at temperature 1). The only one that an
      importance ratio may use.
  """
  tokens: Array
  phase: Array
  stage: Array
  valid: Array
  sampled: Array
  logp: Array
  logp_untruncated: Array


@struct.dataclass
class Given:
  """The beginning of each target, written before the rollout begins.

  Attributes:
    tokens: [J, T0] int32, as the policy wrote them: the protocol's prefix
      first, no longer than its caps allow.
    length: [J] int32, how many of them are given, at most T0; 0 or 1 = none.
  """
  tokens: Array
  length: Array


@struct.dataclass
class Packing:
  """Which prompts and samples share the rows of a packed Source and Target.

  Attributes:
    source: [P, S] int32, which of the row's prompts a token belongs to.
    target: [B, T] int32, which of the row's samples.
    reads: [B, T] int32, which prompt of the source row the sample reads.

  All are -1 where nothing is.
  """
  source: Array
  target: Array
  reads: Array


@struct.dataclass
class TrainState:
  """What an update changes.

  Attributes:
    params: Parameter tree of the decoder, or a LoRA tree.
    opt_state: optax state.
    step: [] int32, optimizer steps so far, refused ones included.
  """
  params: Any
  opt_state: Any
  step: Array
