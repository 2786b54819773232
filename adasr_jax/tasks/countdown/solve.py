"""Exhaustive solver: what can be made of numbers, and how.

A state is a tuple of numbers. A step takes two of them and puts their sum,
difference, product or quotient in their place, until one number is left. The
larger operand stands first, so each pair gives one step per operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
from typing import NamedTuple

OPERATORS = '+-*/'


class Step(NamedTuple):
  """`a op b = result`."""
  a: int
  op: str
  b: int
  result: int

  def __str__(self):
    return f'{self.a} {self.op} {self.b} = {self.result}'


State = tuple[int, ...]
Path = tuple[Step, ...]


def apply(a: int, op: str, b: int) -> int | None:
  """`a op b`; None where it is negative or no integer."""
  if op == '+':
    return a + b
  if op == '*':
    return a * b
  if op == '-':
    return a - b if a >= b else None
  return a // b if op == '/' and b and a % b == 0 else None


def steps(state: State, largest: int) -> list[tuple[Step, State]]:
  """Every step from a state, and the state it leads to: result first.

  Args:
    state: Non-negative numbers.
    largest: No result may exceed it.
  """
  out = {}
  for j in range(1, len(state)):
    for i in range(j):
      a, b = max(state[i], state[j]), min(state[i], state[j])
      others = state[:i] + state[i + 1:j] + state[j + 1:]
      for op in OPERATORS:
        result = apply(a, op, b)
        if result is not None and result <= largest:
          out.setdefault((a, op, b),
                         (Step(a, op, b, result), (result, *others)))
  return list(out.values())


@functools.lru_cache(2**16)
def _values(state: State, largest: int) -> frozenset[int]:
  """See values(); the state is sorted."""
  if len(state) == 1:
    return frozenset(state)
  out: set[int] = set()
  seen = set()
  # Bit i: whether number i is on the left; the last one never is.
  for mask in range(1, 2**(len(state) - 1)):
    left = tuple(x for i, x in enumerate(state) if mask >> i & 1)
    right = tuple(x for i, x in enumerate(state) if not mask >> i & 1)
    if left in seen:
      continue
    seen.add(left)
    for x in _values(left, largest):
      for y in _values(right, largest):
        for op in OPERATORS:
          z = apply(max(x, y), op, min(x, y))
          if z is not None and z <= largest:
            out.add(z)
      if len(out) > largest:  # all of 0..largest
        return frozenset(out)
  return frozenset(out)


def values(state: Sequence[int], largest: int) -> frozenset[int]:
  """All that can be made of a state with every number used exactly once.

  Every result lies in 0..largest. Memoised over sorted states; the cost grows
  about threefold with each number.
  """
  return _values(tuple(sorted(state)), largest)


def solvable(state: Sequence[int], target: int, largest: int) -> bool:
  """Whether a state holds a solution."""
  return target in values(state, largest)


def solutions(state: State, target: int, largest: int) -> Iterator[Path]:
  """Every solution, each n - 1 steps; only states that hold one are visited.

  Solutions that differ in the order of independent steps are distinct.
  """
  if state == (target,):
    yield ()
  for step, after in steps(state, largest):
    if solvable(after, target, largest):
      for path in solutions(after, target, largest):
        yield (step, *path)


def first(state: State, target: int, largest: int) -> Path | None:
  """A solution, or None: the upper bound for every search."""
  return next(solutions(state, target, largest), None)
