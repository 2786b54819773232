"""What a session tells: its tokens as events, each with the time it is due."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import itertools
from typing import Any

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.live.rows import Token

# (seconds of the clock at which it is due, a running number, the event).
# Sorted, they are in the order in which they are to be sent.
Due = tuple[float, int, dict[str, Any]]


class Spelling:
  """The text of tokens that come one by one."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer, self._ids, self._told = tokenizer, [], ''

  def add(self, token: int) -> str:
    """What the token adds to the text; '' while a letter is not whole."""
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids)
    if text.endswith('\ufffd') or not text.startswith(self._told):
      return ''
    new, self._told = text[len(self._told):], text
    return new

  def __str__(self):
    return self._tokenizer.decode(self._ids).strip()


class Teller:
  """Turns tokens into events, and paces them.

  Events of thinking come in order, tokens at least 1 / pace seconds apart.
  """

  def __init__(self, tokenizer: Tokenizer, protocol: Protocol, *, session: str,
               pace: float, clock: Callable[[], float]):
    """Nothing told yet.

    Args:
      tokenizer, protocol: Of the policy.
      session: Its name, in each event.
      pace: Most tokens per second; 0 = no limit.
      clock: Seconds.
    """
    self._tokenizer, self._protocol, self._session = (
        tokenizer, protocol, session)
    self._gap, self._clock = (1 / pace if pace else 0.0), clock
    self._number = itertools.count()
    self.begun = clock()
    self._last = self.begun  # when the last event of thinking is due
    self._heard = self.begun  # when the last text was appended
    self.queue: collections.deque[Due] = collections.deque()
    self._thoughts: dict[int, int] = {}  # chunk -> tokens
    self._again = False
    self._fresh()
    self._deep, self._answer = Spelling(tokenizer), Spelling(tokenizer)
    self._deep_tokens = self._answer_tokens = 0
    self._first: dict[str, float] = {}

  def _fresh(self):
    self._thought, self._count = Spelling(self._tokenizer), 0

  def hear(self) -> None:
    """Some text has been appended."""
    self._heard = self._clock()

  def tell(self, event: str, **fields: Any) -> None:
    """An event that is due now."""
    self._put(self._clock(), event, fields)

  def _put(self, due, event, fields):
    self.queue.append((due, next(self._number), {
        'event': event, 'session': self._session,
        't': round(due - self.begun, 4), **fields}))

  def _think(self, event, *, gap=0.0, **fields):
    """An event of thinking: not before those that came earlier."""
    self._last = max(self._clock(), self._last + gap)
    self._put(self._last, event, fields)

  def _begin(self):
    """A token takes its time from here on, also after a pause."""
    self._last = max(self._clock(), self._last)

  def rewound(self) -> None:
    """The last thought is written once more."""
    self._fresh()
    self._again = True

  def token(self, t: Token) -> bool:
    """Tells of the next token; returns whether it was the last.

    Args:
      t: In the order in which they were written.
    """
    if t.stage == protocol_lib.PREFIX:
      return False
    cls = self._protocol.token_class[t.id]
    if t.stage in (protocol_lib.FIRST, protocol_lib.THOUGHT):
      self._of_thought(t, cls)
    else:
      self._of_deep(t, cls)
    if cls != protocol_lib.EOS:
      return False
    self._end(t)
    return True

  def _of_thought(self, t, cls):
    chunk, first = t.phase, t.stage == protocol_lib.FIRST
    self._count += 1
    if first and cls == protocol_lib.SKIP:
      self._begin()
      self._think('thought.skipped', gap=self._gap, chunk=chunk, text='',
                  tokens=1, again=self._again)
    else:
      if first:
        self._think('thought.start', chunk=chunk, again=self._again)
      if cls not in (protocol_lib.EOT, protocol_lib.SKIP, protocol_lib.EOS):
        self._think('thought.token', gap=self._gap, chunk=chunk,
                    text=self._thought.add(t.id), tokens=self._count)
        return
      self._think('thought.end', gap=self._gap, chunk=chunk,
                  text=str(self._thought), tokens=self._count,
                  cut=not t.sampled)
    self._thoughts[chunk] = self._count
    self._again = False
    self._fresh()

  def _of_deep(self, t, cls):
    if not self._deep_tokens:
      self._begin()
    self._deep_tokens += 1
    deep = t.stage == protocol_lib.DEEP
    ends = cls == (protocol_lib.END_THINK if deep else protocol_lib.EOS)
    name = 'deep.token' if deep else 'answer.token'
    if deep:
      spelling, count = self._deep, self._deep_tokens
    else:
      self._answer_tokens += 1
      spelling, count = self._answer, self._answer_tokens
    if ends:
      self._last = max(self._clock(), self._last + self._gap)
    elif cls != protocol_lib.EOS:
      self._think(name, gap=self._gap, text=spelling.add(t.id), tokens=count)
    self._first.setdefault('first_deep_token', self._last)
    if not deep and not ends:
      self._first.setdefault('first_answer_token', self._last)

  def _end(self, t):
    self._think('answer', text=str(self._answer), deep=str(self._deep),
                tokens=self._deep_tokens, finished=(
                    t.stage == protocol_lib.ANSWER and t.sampled))
    self.wait = {name: self._first.get(name) for name in (
        'first_deep_token', 'first_answer_token')} | {'end': self._last}
    self.wait = {name: None if due is None else round(due - self._heard, 4)
                 for name, due in self.wait.items()}

  @property
  def answered(self) -> bool:
    """Whether some text of an answer was written."""
    return bool(str(self._answer))

  def done(self, chunks: int, source: int) -> None:
    """The row is free.

    Args:
      chunks: Of the text.
      source: Tokens of the source.
    """
    self._think('done', chunks=chunks, tokens={
        'source': source, 'streaming': sum(self._thoughts.values()),
        'deep': self._deep_tokens - self._answer_tokens,
        'answer': self._answer_tokens}, wait=self.wait)


def tokens_of_phase(tokens: Sequence[Token], phase: int) -> int | None:
  """Index of the first token of a phase; None where there is none."""
  return next((i for i, t in enumerate(tokens) if t.phase == phase), None)
