"""Text to sentences, a count of words, and a stable hash."""

from __future__ import annotations

import hashlib
import re

import sentencex

# Where sentencex 1.0.32 breaks but should not (seen on GSM8K and PubMedQA):
# - after a title, if the name is a common word or a possessive: `Ms. |Lee`;
_TITLE = re.compile(
    r'\b(Mr|Mrs|Ms|Mx|Dr|Prof|Sgt|Lt|Capt|Col|Gen|Rev|approx)\.\s*$')
# - after a unit that it does not know, inside a sentence: `3 lbs. |of`;
_UNIT = re.compile(r'\d\s*(lbs?|oz|yds?|gals?|hrs?|mins?|secs?|ft|in)\.\s*$')
# - after the number of an entry of a list: `1. |First`.
_ENTRY = re.compile(r'\s*\(?(\d+|[a-zA-Z])[.)]\s*$')


def _continues(left: str, right: str) -> bool:
  """Whether two pieces belong to one sentence."""
  return (not left.strip() or not right.strip()
          or bool(_TITLE.search(left) or _ENTRY.match(left))
          or bool(_UNIT.search(left) and right.lstrip()[:1].islower()))


def split_sentences(text: str) -> tuple[str, ...]:
  """The sentences of an English text; joined, they are exactly the text.

  White space between two sentences opens the second, so that a chunk ends where
  its sentence ends. No chunk is empty or only white space, unless the text is
  only white space; '' has no chunks.

  Two sentences stay one where the full stop may be that of an abbreviation
  ('twice as many as jar A. Jar C has ...').
  """
  chunks = []
  for piece in sentencex.segment('en', text):
    if chunks and _continues(chunks[-1], piece):
      chunks[-1] += piece
    else:
      chunks.append(piece)
  # sentencex leaves white space at the end of a sentence: move it to the next.
  for i in range(len(chunks) - 1):
    kept = chunks[i].rstrip()
    chunks[i + 1] = chunks[i][len(kept):] + chunks[i + 1]
    chunks[i] = kept
  return tuple(chunks)


def words(text: str) -> int:
  """Number of words between white space; the unit of the reading clock."""
  return len(text.split())


def content_id(text: str) -> int:
  """A hash in [0, 2**32), the same on every machine and in every run."""
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'big')
