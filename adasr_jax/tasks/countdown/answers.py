"""The verifier: one strict parser, for training and evaluation of every kind.

An answer is its steps, '9 / 3 = 3 , 4 + 3 = 7'. It is right if each step is,
every given number is used exactly once and the last step makes the target.
Nothing is evaluated as code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import re

from adasr_jax.tasks.countdown.solve import (
    OPERATORS, Path, Step, apply, solvable)

SEPARATOR = ' , '
# Ten digits are more than any number of a problem has.
_NUMBER = re.compile('0|[1-9][0-9]{0,9}')
MAX_ANSWER = 1000  # characters; more is no answer


def spell(path: Path) -> str:
  """The text of an answer."""
  return SEPARATOR.join(map(str, path))


def parse(text: str) -> Path | None:
  """The steps that a text spells; None if it is anything else.

  Whether they are right is not checked. Numbers are ASCII digits without sign
  or leading zeros; there is one space between words.
  """
  if len(text) > MAX_ANSWER:
    return None
  out = []
  for part in text.strip(' ').split(SEPARATOR):
    words = part.split(' ')
    if len(words) != 5 or words[1] not in (*OPERATORS,) or words[3] != '=':
      return None
    if not all(_NUMBER.fullmatch(words[i]) for i in (0, 2, 4)):
      return None
    out.append(Step(int(words[0]), words[1], int(words[2]), int(words[4])))
  return tuple(out)


def same(text: str) -> str:
  """The steps that a text spells, as spell() does; '' if it is anything else.

  So 'none', the word of a search that found nothing, is no answer.
  """
  return spell(parse(text) or ())


def right(text: str, numbers: Sequence[int], target: int, largest: int
          ) -> bool:
  """Whether an answer solves a problem.

  Args:
    text: What the model answered.
    numbers: Those given; each must be used exactly once.
    target: What the last step must make.
    largest: No step may make more.
  """
  path = parse(text)
  return (path is not None and len(path) == len(numbers) - 1
          and _left(path, numbers, largest) == Counter({target: 1}))


def _left(path: Path, numbers: Sequence[int], largest: int
          ) -> Counter[int] | None:
  """The numbers after the steps of a path; None where a step is wrong."""
  there = Counter(numbers)
  for a, op, b, result in path:
    there.subtract((a, b))  # b may be a once more
    if there[a] < 0 or there[b] < 0:
      return None
    if apply(a, op, b) != result or result > largest:
      return None
    there[result] += 1
  return +there


def solvable_after(text: str, reference: str, largest: int) -> bool:
  """Whether some steps of a problem can still be completed to its target.

  Args:
    text: The steps; wrong ones lead nowhere.
    reference: A right answer; it tells the numbers and the target.
    largest: No step may make more.

  Raises:
    ValueError: The reference is not a right answer to any problem.
  """
  numbers, target = _problem(reference, largest)
  path = parse(text)
  there = None if path is None else _left(path, numbers, largest)
  return there is not None and solvable(
      tuple(there.elements()), target, largest)


def agrees(text: str, reference: str, largest: int) -> bool:
  """Whether an answer solves the problem that a right answer solves.

  Args:
    text: What the model answered.
    reference: A right answer; it tells the numbers and the target.
    largest: No step may make more.

  Raises:
    ValueError: The reference is not a right answer to any problem.
  """
  numbers, target = _problem(reference, largest)
  return right(text, numbers, target, largest)


def _problem(reference: str, largest: int) -> tuple[tuple[int, ...], int]:
  """Numbers and target of the problem that a right answer solves."""
  path = parse(reference)
  if path is None:
    raise ValueError(f'reference={reference!r} is not a list of steps')
  # Everything is used once, and so is the target in the end: what of it was
  # not made was given.
  target = path[-1].result
  used = Counter(x for a, _, b, _ in path for x in (a, b)) + Counter([target])
  numbers = tuple((used - Counter(s.result for s in path)).elements())
  if not right(reference, numbers, target, largest):
    raise ValueError(f'reference={reference!r} is not right')
  return numbers, target
