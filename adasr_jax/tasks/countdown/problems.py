"""Problems: their size, drawn by index, splits by content."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.tasks.countdown.solve import solvable
from adasr_jax.tasks import draws
from adasr_jax.tasks.draws import Draws

# The residues (mod 10) of the content hash that belong to each split.
SPLITS = {'train': (2, 3, 4, 5, 6, 7, 8, 9), 'validation': (1,), 'test': (0,)}
_ATTEMPTS = 20_000


@dataclasses.dataclass(frozen=True)
class Size:
  """The size of the problems.

  Attributes:
    numbers: How many numbers are given; solving costs about three times as
      much with each more.
    min_number, max_number: Range of each, drawn uniformly.
    min_target, max_target: Range of the target, drawn uniformly.
    largest: The largest number that a step may make.

  Source: arXiv 2504.15466 has 4 numbers in 1..99, targets in 10..100 and no
  largest number. The defaults are smaller.
  """
  numbers: int = option(4, least=2, most=8)
  min_number: int = option(1, least=0, most=9999)
  max_number: int = option(20, least=0, most=9999)
  min_target: int = option(10, least=0, most=9999)
  max_target: int = option(50, least=0, most=9999)
  largest: int = option(99, least=1, most=9999)

  def __post_init__(self):
    options.check(self)
    for name in ('number', 'target'):
      low = getattr(self, f'min_{name}')
      high = getattr(self, f'max_{name}')
      if not low <= high <= self.largest:
        raise ValueError(
            f'min_{name}={low}, max_{name}={high}, largest={self.largest}: '
            f'need min_{name} <= max_{name} <= largest')


@dataclasses.dataclass(frozen=True)
class Problem:
  """Make `target` of `numbers`, each used exactly once.

  Attributes:
    numbers: In the order in which they are shown.
    target: What the last step must make.
    largest: No step may make more.
  """
  numbers: tuple[int, ...]
  target: int
  largest: int

  def __str__(self):
    return f"{self.target} from {' '.join(map(str, self.numbers))}"


def content_hash(numbers: Sequence[int], target: int) -> int:
  """64-bit hash of a problem; the order of its numbers does not matter."""
  return draws.hashed(' '.join(map(str, (*sorted(numbers), target))))


def split_of(content: int) -> str:
  """The split to which the problem of this content hash belongs."""
  return draws.split_of(content, SPLITS)


def problem(size: Size, seed: int, split: str, index: int) -> Problem:
  """Problem `index` of `split`: a solvable one, the same on every machine.

  Numbers and target are drawn until the content belongs to the split and has a
  solution, so no two splits share a problem, whatever the seeds and sizes. A
  split may repeat a problem, as its own draws do.

  Args:
    size: Ranges of what is drawn.
    seed, index: Integers in [0, 2**64).
    split: A key of SPLITS.

  Raises:
    ValueError: There is no such seed, split or index, or hardly any problem of
      that size is solvable.
  """
  if split not in SPLITS:
    raise ValueError(f'split={split!r} is not one of {tuple(SPLITS)}')
  for name, value in (('seed', seed), ('index', index)):
    if not 0 <= value < 2**64:
      raise ValueError(f'{name}={value} is outside [0, 2**64)')
  draw = Draws(seed, 0, 0, index, tuple(SPLITS).index(split))
  for _ in range(_ATTEMPTS):
    target = draw.between(size.min_target, size.max_target)
    numbers = tuple(draw.between(size.min_number, size.max_number)
                    for _ in range(size.numbers))
    if (split_of(content_hash(numbers, target)) == split
        and solvable(numbers, target, size.largest)):
      return Problem(numbers, target, size.largest)
  raise ValueError(f'no solvable {split} problem in {_ATTEMPTS} draws of '
                   f'{size}')
