"""What problems that a program makes share: random draws, splits by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib

import numpy as np

# Split -> the residues, mod 10, of the hashes of its problems.
Residues = Mapping[str, Sequence[int]]


class Draws:
  """Choices from one counter-based stream; uniforms are drawn in blocks."""

  def __init__(self, seed: int, stream: int, *counter: int):
    """The beginning of a stream.

    Args:
      seed, stream: In [0, 2**64); the key.
      *counter: At most three integers in [0, 2**64).
    """
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64),
                            counter=np.array([0, *counter], np.uint64))
    self._random = np.random.Generator(bits).random
    self._block: list[float] = []

  def uniform(self) -> float:
    """In [0, 1)."""
    if not self._block:
      self._block = self._random(64).tolist()
    return self._block.pop()

  def coin(self, p: float) -> bool:
    """True with probability p."""
    return self.uniform() < p

  def between(self, low: int, high: int) -> int:
    """One of low..high."""
    return low + int(self.uniform() * (high - low + 1))

  def pick(self, options, *but):
    """One of the options that are not among `but`."""
    if but:
      options = [x for x in options if x not in but]
    return options[int(self.uniform() * len(options))]


def hashed(content: str) -> int:
  """64-bit hash of a problem's content."""
  return int.from_bytes(
      hashlib.blake2b(content.encode(), digest_size=8).digest(), 'big')


def split_of(content: int, splits: Residues) -> str:
  """The split to which the problem of a content hash belongs.

  No two splits share a problem, whatever the seeds and sizes.
  """
  # The low 32 bits are the id, so the split is taken from the high ones.
  residue = (content >> 32) % 10
  return next(s for s, residues in splits.items() if residue in residues)
