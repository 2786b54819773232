"""Sentences from a pipe, events to another: `--stdin`."""

from __future__ import annotations

import codecs
import contextlib
import json
import queue
import sys
import threading
import time
from typing import BinaryIO, TextIO

from adasr_jax.live.session import CHARACTERS, House, Refused, Session

PIECE = CHARACTERS // 8  # bytes that are read at once, at most


def _lines(source: BinaryIO, out: queue.Queue) -> None:
  """Puts pieces of lines (text, begins a line, ends one), then None."""
  begins = True
  # A piece may end within a letter.
  decode = codecs.getincrementaldecoder('utf-8')('replace').decode
  while piece := source.readline(PIECE):
    ends = piece.endswith(b'\n')
    out.put((decode(piece, ends).strip('\r\n'), begins, ends))
    begins = ends
  out.put(None)


def run(house: House, session: Session, source: BinaryIO, out: TextIO) -> int:
  """Feeds a session line by line; each line ends a chunk.

  Args:
    house: Of the session.
    session: Just started.
    source: UTF-8 text; its end is that of the text.
    out: Gets one JSON object per event.

  Returns:
    The exit status: 0 if nothing was refused and there is an answer.
  """
  pieces: queue.Queue = queue.Queue(maxsize=16)  # a faster writer waits
  feed = _Feed(session)
  threading.Thread(target=_lines, args=(source, pieces), daemon=True).start()
  while True:
    busy = house.work()
    for _, _, event in sorted(session.take(), key=lambda e: e[:2]):
      del event['session']
      print(json.dumps(event, ensure_ascii=False), file=out, flush=True)
    if session.over:
      return int(session.refused > 0 or not session.finished)
    with contextlib.suppress(queue.Empty):
      while not session.ended:
        # While there is nothing to think about, it waits for text.
        feed.take(pieces.get(block=not busy))
        busy = True


class _Feed:
  """Gives pieces of lines to a session; a line that is too long is left out."""

  def __init__(self, session: Session):
    self._session, self._left_out = session, False

  def take(self, piece: tuple[str, bool, bool] | None) -> None:
    """A piece, as _lines() puts it."""
    session = self._session
    if piece is None:
      session.end()
      return
    text, begins, ends = piece
    self._left_out = self._left_out and not begins
    if not self._left_out:
      try:
        session.append(f' {text}' if begins and session.chunks else text)
      except Refused as e:
        self._left_out = True
        session.clear()  # what had come of the line
        session.refuse(e)
    if ends:
      session.commit()


def main(house: House, *, question: str, id: int, seed: int, chunks: str
         ) -> int:
  """The program; returns its exit status."""
  house.warm()
  begun = time.monotonic()
  try:
    session = house.start(question=question, id=id, seed=seed, chunks=chunks)
  except Refused as e:
    print(json.dumps({'event': 'error', 't': round(time.monotonic() - begun, 4),
                      'code': e.code, 'message': str(e), **e.fields}))
    return 1
  try:
    return run(house, session, sys.stdin.buffer, sys.stdout)
  except BrokenPipeError:  # nobody reads on
    sys.stdout = None
    return 1
