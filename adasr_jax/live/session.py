"""Sessions: texts that arrive, thought about in the rows of one engine.

  house = House(policy, rows=4)
  session = house.start(id=7, question='how many apples does tom have ?')
  session.append('tom has 3 ap')      a piece of text, cut anywhere
  session.append('ples . tom')
  session.end()
  while not session.over:
    house.work()                      reads, thinks; one short round
  session.take()                      the events so far

One thread calls work(); another may call all else meanwhile. The two meet in
deques and in a list of sessions by row, whose operations are atomic.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import contextlib
import dataclasses
import time
from typing import Any

import jax

from adasr_jax.core.types import Example
from adasr_jax.live import events
from adasr_jax.live.events import Due, Teller
from adasr_jax.live.policy import Policy
from adasr_jax.live.rows import BLOCK, Rows, Token
from adasr_jax.live.text import SENTENCES, Text
from adasr_jax.policy.sampling import LEAST_TEMPERATURE

CHARACTERS = 4096  # most that are not committed


class Refused(ValueError):
  """What a session cannot do; it goes on without.

  Attributes:
    code: See docs/live.md.
    fields: More for the event.
  """

  def __init__(self, code: str, message: str, **fields: Any):
    super().__init__(message)
    self.code, self.fields = code, fields


@dataclasses.dataclass(frozen=True)
class _Read:
  """Source tokens that wait to be read, at most BLOCK."""
  ids: list[int]
  phase: int
  arrived: int


@dataclasses.dataclass(frozen=True)
class _End:
  """There is no more text but `tail`, which closes the last chunk."""
  tail: list[_Read]
  chunks: int


class Session:
  """One text on one row. House.start makes it."""

  def __init__(self, policy: Policy, row: int, teller: Teller, *, id: int,
               seed: int, question: str, chunks: str):
    self._policy, self.row, self._teller = policy, row, teller
    self.id, self.seed, self.question = id, seed, question
    self._text = Text(chunks)
    self._inbox: collections.deque[_Read | _End] = collections.deque()
    self.chunks: list[str] = []
    self.tokens: list[Token] = []  # written, without the first of the prefix
    self.ended = False  # no more text comes
    self.refused = 0  # how often something was
    self.over = False  # the row is free
    self.cancelled = ''  # why
    tokenizer = policy.tokenizer
    self.source = 0  # tokens of all that was committed
    self._take('too_long', [*tokenizer.head, *self._encoded(
        policy.preamble(question))], 0, {})

  # ---------------------------------------------------------------- the text
  def append(self, text: str) -> None:
    """More text; sentences that are complete are committed.

    A chunk that is refused (unknown_words, too_long, too_many_chunks) is left
    out, those after it are not; an event in its place says so.

    Raises:
      Refused: ended, or too_long: nothing of it was taken.
    """
    if self.ended:
      raise Refused('ended', 'text after the end')
    if len(self._text.open) + len(text) > CHARACTERS:
      raise Refused('too_long', f'{len(self._text.open)} + {len(text)} '
                    f'characters are not committed, {CHARACTERS} may be',
                    text=text, appended=True)
    if text.strip():
      self._teller.hear()
    self._commit(self._text.append(text))

  def commit(self) -> None:
    """The text so far is a chunk, or as many as it has sentences.

    Raises:
      Refused: ended.
    """
    if self.ended:
      raise Refused('ended', 'input_text.commit after the end')
    self._commit(self._text.commit())

  def clear(self) -> None:
    """Drops the text that is not committed."""
    self._teller.tell('input_text.cleared', text=self._text.clear())

  def end(self) -> None:
    """Commits the rest: there is no more text.

    Raises:
      Refused: ended.
    """
    if self.ended:
      raise Refused('ended', 'session.end after the end')
    self.commit()
    self.ended = True
    n, tail = len(self.chunks), list(self._policy.tokenizer.tail)
    streamed = n if self._policy.streams else 0
    self._inbox.append(_End(self._blocks(tail, streamed) if tail else [],
                            streamed))

  def cancel(self, reason: str = 'cancelled') -> None:
    """Stops at once; nothing that was not taken is told any more."""
    if self.cancelled:
      return  # it has been told already, or will be
    self.cancelled = reason
    if self.over:  # it has written all, but not all has been taken
      self._shut()

  def _commit(self, chunks):
    for text in chunks:
      try:
        n = len(self.chunks) + 1
        if n > self._policy.max_chunks:
          raise Refused('too_many_chunks', f'chunk {n}: {text.strip()!r:.80}; '
                        f'at most {self._policy.max_chunks}', text=text)
        ids = self._encoded(text)
        self._take('too_long', ids, n if self._policy.streams else 0,
                   {'text': text})
        self.chunks.append(text)
        self._teller.tell('chunk.committed', chunk=n, text=text,
                          tokens=len(ids))
      except Refused as e:
        self.refuse(e)

  def _encoded(self, text):
    try:
      return self._policy.tokenizer.encode(text)
    except ValueError as e:
      raise Refused('unknown_words', f'{e} (in {text.strip()!r:.80})',
                    text=text) from e

  def _take(self, code, ids, phase, fields):
    room = self._policy.source_slots - len(self._policy.tokenizer.tail)
    if self.source + len(ids) > room:
      raise Refused(code, f'{self.source} + {len(ids)} source tokens, at most '
                    f'{room}', **fields)
    self.source += len(ids)
    self._inbox.extend(self._blocks(ids, phase))

  def _blocks(self, ids, phase):
    """Pieces that are read one at a time; the last one completes the phase."""
    cuts = range(0, max(len(ids), 1), BLOCK)
    last = phase if self._policy.streams else -1
    return [_Read(ids[i:i + BLOCK], phase, last if i == cuts[-1] else phase - 1)
            for i in cuts]

  # ----------------------------------------------------------------- thinking
  def feed(self, rows: Rows) -> bool:
    """Reads the next piece of the source; returns whether one was waiting."""
    if self.cancelled:
      rows.stop(self.row)
      self._shut()
      return True
    busy = bool(self._inbox)
    if self._inbox and isinstance(self._inbox[0], _Read):
      piece = self._inbox.popleft()
      rows.read(self.row, piece.ids, piece.phase, piece.arrived)
    if self._inbox and isinstance(self._inbox[0], _End):
      self._close(rows, self._inbox.popleft())
    return busy

  def _close(self, rows, end):
    for piece in end.tail:
      rows.read(self.row, piece.ids, piece.phase, piece.arrived)
      self.source += len(piece.ids)
    # A thought that has not read the tail is written once more.
    at = events.tokens_of_phase(self.tokens, end.chunks)
    if end.tail and end.chunks and at is not None:
      before = (self.tokens[at - 1].id if at
                else self._policy.protocol.prefix[0])
      rows.again(self.row, at, before, end.chunks)
      del self.tokens[at:]
      self._teller.rewound()
    rows.end(self.row, end.chunks)

  def written(self, tokens: list[Token]) -> None:
    """The row has written more tokens."""
    for token in tokens:
      self.tokens.append(token)
      if self._teller.token(token):
        self._teller.done(len(self.chunks), self.source)
        self.ended = self.over = True
    if self.over and self.cancelled:  # while the last token was written
      self._shut()

  @property
  def finished(self) -> bool:
    """Whether there is an answer."""
    return self.over and not self.cancelled and self._teller.answered

  def _shut(self):
    self._teller.queue.clear()
    self._teller.tell('closed', reason=self.cancelled)
    self.ended = self.over = True

  def fail(self) -> None:
    """The engine has failed."""
    self.cancelled = self.cancelled or 'failed'
    self._shut()

  # -------------------------------------------------------------------- views
  def take(self) -> list[Due]:
    """The events since the last call, with the times they are due."""
    out = []
    with contextlib.suppress(IndexError):  # the other thread may clear it
      while True:
        out.append(self._teller.queue.popleft())
    return out

  @property
  def waiting(self) -> int:
    """Events that were not taken."""
    return len(self._teller.queue)

  def refuse(self, e: Refused) -> None:
    """Tells of an error."""
    self.refused += 1
    self._teller.tell('error', code=e.code, message=str(e), **e.fields)

  def example(self) -> Example:
    """The problem whose rollout with this seed has the same tokens."""
    return Example(id=self.id, preamble=self._policy.preamble(self.question),
                   chunks=tuple(self.chunks), answer='')


class House:
  """Sessions of one policy; at most as many as there are rows."""

  def __init__(self, policy: Policy, rows: int, temperature: float = 0.0):
    """Rows without sessions.

    Args:
      policy: That thinks.
      rows: Most sessions at once.
      temperature: See sampling.draw.

    Raises:
      ValueError: The temperature is neither 0 nor at least LEAST_TEMPERATURE.
    """
    if 0 < temperature < LEAST_TEMPERATURE:
      raise ValueError(f'temperature={temperature} is neither 0 nor at least '
                       f'{LEAST_TEMPERATURE}')
    self.policy = policy
    self._engine = policy.engine(rows, temperature)
    self._free = collections.deque(range(rows))
    self._at: list[Session | None] = [None] * rows
    self._begun: list[bool] = [False] * rows
    self._fresh()

  def _fresh(self):
    self._rows = Rows(self._engine, self.policy.params,
                      self.policy.source_slots)

  @property
  def free(self) -> int:
    """Rows without a session."""
    return len(self._free)

  def start(self, *, name: str = '', id: int = 0, seed: int = 0,
            question: str = '', chunks: str = SENTENCES, pace: float = 0.0,
            clock: Callable[[], float] = time.monotonic) -> Session | None:
    """A session on a free row; None where there is none.

    Args:
      name: In its events.
      id, seed: In [0, 2**32), of its random keys: those of a rollout of the
        problem `id` with this seed.
      question: Known before the text arrives; may be empty.
      chunks: See Text.
      pace: See Teller.
      clock: Seconds.

    Raises:
      Refused: The question has unknown words, or is too long.
    """
    try:
      row = self._free.popleft()
    except IndexError:
      return None
    try:
      policy = self.policy
      teller = Teller(policy.tokenizer, policy.protocol, session=name,
                      pace=pace, clock=clock)
      session = Session(policy, row, teller, id=id, seed=seed,
                        question=question, chunks=chunks)
    except BaseException:
      self._free.append(row)
      raise
    teller.tell('session.created', id=id, seed=seed, mode=policy.mode,
                question=question, policy=policy.name, limits={
                    'chunks': policy.max_chunks,
                    'tokens': policy.source_slots - len(policy.tokenizer.tail),
                    'characters': CHARACTERS})
    self._at[row] = session
    return session

  def warm(self) -> None:
    """Compiles all programs; before the first session."""
    self._rows.warm()

  def work(self) -> bool:
    """A round: each session reads a piece, then all write some tokens.

    Returns:
      Whether there was anything to do.
    """
    busy = False
    for row, session in enumerate(self._at):
      if session is not None:
        busy |= self._feed(row, session)
    if not self._rows.waits:
      busy = True
      for session, tokens in zip(self._at, self._rows.write()):
        if session is not None:
          session.written(tokens)
          self._leave(session)
    return busy

  def _feed(self, row, session):
    if not self._begun[row]:
      self._rows.begin(row, jax.random.key(session.seed), session.id,
                       self._engine.max_chunks if self.policy.streams else 0)
      self._begun[row] = True
    busy = session.feed(self._rows)
    self._leave(session)
    return busy

  def _leave(self, session):
    if session.over and self._at[session.row] is session:
      self._at[session.row], self._begun[session.row] = None, False
      self._free.append(session.row)

  def fail(self) -> None:
    """Ends all sessions and begins anew, after work() has raised."""
    for session in self._at:
      if session is not None:
        session.fail()
        self._leave(session)
    del self._rows  # its memory, before new rows need as much
    self._fresh()
