"""Text that arrives in pieces, and where its chunks end."""

from __future__ import annotations

import re

from adasr_jax.data.text import split_sentences

SENTENCES, COMMITS = 'sentences', 'commits'
CHUNKS = (SENTENCES, COMMITS)

# What is quoted or in brackets is one sentence, if it ends within so many
# characters of uncommitted text.
PATIENCE = 400
_PAIRS = {'(': ')', '[': ']', '{': '}', '\u201c': '\u201d', '\xab': '\xbb'}

_WORD = re.compile(r'\S+(?=\s)')  # a complete one: white space follows


def _opened(text):
  """Whether a quotation or a bracket is still open at its end."""
  closing, before = [], ''
  for c in text:
    if closing and c == closing[-1]:
      closing.pop()
    elif c in _PAIRS:
      closing.append(_PAIRS[c])
    elif c == '"' and not before.isdigit():  # 5" are inches
      closing.append(c)
    before = c
  return bool(closing)


class Text:
  """What has been appended and not yet committed.

  Where a sentence ends shows only in what follows it ('Ms.' may go on with
  'Lee'). So it is decided when the next word is complete, by the text up to
  there: chunks do not depend on how the text was cut into pieces. A sentence in
  which a quotation or a bracket is open waits for its end, up to PATIENCE.
  """

  def __init__(self, chunks: str = SENTENCES):
    """No text.

    Args:
      chunks: 'sentences', or 'commits': only commit() ends a chunk.

    Raises:
      ValueError: Neither.
    """
    if chunks not in CHUNKS:
      raise ValueError(f'chunks={chunks!r} is not one of {CHUNKS}')
    self._sentences = chunks == SENTENCES
    self._clear()

  def _clear(self):
    self.open = ''  # not committed
    self._seen = 0  # characters of it whose words have been looked at

  def append(self, text: str) -> list[str]:
    """The chunks that are complete with more text."""
    self.open += text
    out = []
    while self._sentences and (word := _WORD.search(self.open, self._seen)):
      # No sentence ends between two words without a sign or a line's end.
      between = self.open[:word.start()]
      last = between.rstrip()
      may_end = last and (not last[-1].isalnum()
                          or '\n' in between[len(last):])
      pieces = split_sentences(self.open[:word.end()]) if may_end else ()
      self._seen = word.end()
      for piece in pieces[:-1]:
        if _opened(piece) and self._seen < PATIENCE:
          break  # it goes on after the closing mark, if that comes
        out.append(piece)
        self.open = self.open[len(piece):]
        self._seen -= len(piece)
    return out

  def commit(self) -> list[str]:
    """The chunks of all that is left.

    White space after them stays: it opens the next chunk.
    """
    text = self.open.rstrip()
    left = self.open[len(text):]
    self._clear()
    self.open = left
    if not text:
      return []
    return list(split_sentences(text)) if self._sentences else [text]

  def clear(self) -> str:
    """What was not committed; it is dropped."""
    text = self.open
    self._clear()
    return text
