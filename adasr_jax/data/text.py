"""Text to sentences, words and a stable number."""

from __future__ import annotations

import hashlib
import re

import sentencex

# Where sentencex 1.0.32 breaks and must not (seen on GSM8K and PubMedQA):
# - behind a title, if a common word or a possessive is the name: `Ms. |Lee`;
_TITLE = re.compile(
    r'\b(Mr|Mrs|Ms|Mx|Dr|Prof|Sgt|Lt|Capt|Col|Gen|Rev|approx)\.\s*$')
# - behind a unit it does not know, in the middle of a sentence: `3 lbs. |of`;
_UNIT = re.compile(r'\d\s*(lbs?|oz|yds?|gals?|hrs?|mins?|secs?|ft|in)\.\s*$')
# - behind the number of a list's entry: `1. |First`.
_ENTRY = re.compile(r'\s*\(?(\d+|[a-zA-Z])[.)]\s*$')


def _continues(left: str, right: str) -> bool:
  """Whether the break between two pieces is none."""
  return (not left.strip() or not right.strip()
          or bool(_TITLE.search(left) or _ENTRY.match(left))
          or bool(_UNIT.search(left) and right.lstrip()[:1].islower()))


def split_sentences(text: str) -> tuple[str, ...]:
  """The sentences of an English text; joined they are the text to the letter.

  White space between two sentences opens the second, so that what a reader has
  seen when a chunk ends is exactly that chunk. No chunk is empty or white
  space alone, unless the text is white space alone; '' has no chunks.

  Two sentences stay one where the break cannot be told from an abbreviation
  ('twice as many as jar A. Jar C has ...').
  """
  chunks = []
  for piece in sentencex.segment('en', text):
    if chunks and _continues(chunks[-1], piece):
      chunks[-1] += piece
    else:
      chunks.append(piece)
  # sentencex leaves white space at the end of a sentence: hand it on.
  for i in range(len(chunks) - 1):
    kept = chunks[i].rstrip()
    chunks[i + 1] = chunks[i][len(kept):] + chunks[i + 1]
    chunks[i] = kept
  return tuple(chunks)


def words(text: str) -> int:
  """How many words, separated by white space; the unit of the reading clock."""
  return len(text.split())


def content_id(text: str) -> int:
  """A hash in [0, 2**32), the same on every machine and in every run."""
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'big')
