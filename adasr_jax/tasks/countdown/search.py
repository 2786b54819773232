"""Demonstrations: a symbolic search, written as the tokens of threads.

A thread is what one row of a model writes. The root may spawn children: each
begins with a brief, searches on its own and returns steps or nothing.

  line      `9 / 3 = 3 : 4 5 ;`    a step, and the numbers left beside its
            `6 * 4 = 24 off 24 0`  result; with none beside it, the target,
            `6 + 4 = 10 off 24 14` and how far the result is from it
  move      `go 3 4 5 ;`           the numbers from which steps are taken now
  call      `<spawn> 9 / 3 = 3 <spawn> 9 - 3 = 6 <join>`, then for each child,
            forced: `<return> 9 / 3 = 3 , 3 * 4 = 12 , ...` or `<none>`
  child     `<spawn>` and its brief, forced: all steps from the problem's
            numbers, with ' , ' between them; `: 4 5 ;` ends its line; its
            search; then `<return>` and all steps, its brief's too, or nothing;
            `<eos>`
  root      its search; `</think>`; the answer, or `none`; `<eos>`

The larger number of a step stands first. A step belongs to the numbers that
were named last and are one more than it leaves (by a line, a move, the brief or
the problem), so going back needs no words in a depth-first search. A line that
leaves k > 1 numbers has 6 + k words, a last one 8. (A bare yes or no teaches a
small decoder neither to read the target nor to compare: a yes is one word of
two hundred. Every distance teaches both. And it does not learn to count which
of ten briefs the third result belongs to: so a result repeats its brief.)

The search (best first, with a beam): the state with the least heuristic is
taken from the queue, and its best steps are kept, as many as the beam. With the
probability `promising` they are searched at once: in the root of a parallel
search by children, elsewhere one after the other, each to its end. Else they
wait in the queue. A search may fail: demonstrations are not optimal by design.
One level of nesting: children do not spawn.

A thread never overflows its context: a search stops before the first line
that would leave no room for what must follow, a call has only as many children
as fit with what they return, and the thread says so (`cut`).

Source: arXiv 2504.15466 (Stream of Search+ and Adaptive Parallel Reasoning)
and its code, Parallel-Reasoning/APR @ 5577928. We differ: node numbers and
restated states are left out, children are told their steps, the answer is
stated once (not after a repeated path), and what does not fit is not written
(there: sequences are cut on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.tasks.countdown.answers import spell
from adasr_jax.tasks.countdown.problems import Problem
from adasr_jax.tasks.countdown.solve import (
    Path, State, first, solvable, steps)
from adasr_jax.tasks.countdown.vocabulary import (
    END_THINK, EOS, JOIN, NONE, RETURN, SPAWN)
from adasr_jax.tasks.draws import Draws

DIRECT, SERIAL, PARALLEL = KINDS = ('direct', 'serial', 'parallel')
CALLS, TOKENS = 'calls', 'tokens'
PREFIX = 1  # slots of a thread before its words


@functools.cache
def _factors(target: int) -> Sequence[int]:
  """The factors of the target that are at least 2, else itself."""
  return [f for f in range(2, target + 1) if target % f == 0] or [target]


def _to_factor(number: int, target: int) -> int:
  return min(abs(number - f) for f in _factors(target))


# How far a state of two or more numbers is from the target: the distances of
# its numbers to the nearest factor of the target (the source's code), that of
# their sum (its paper), or the distance of their sum to the target.
HEURISTICS: dict[str, Callable[[State, int], int]] = {
    'factors': lambda state, t: sum(_to_factor(x, t) for x in state),
    'sum_to_factor': lambda state, t: _to_factor(sum(state), t),
    'sum': lambda state, t: abs(sum(state) - t)}


@dataclasses.dataclass(frozen=True)
class Search:
  """How demonstrations search.

  Attributes:
    kind: 'direct' (no search: a solution, the upper bound), 'serial', or
      'parallel'.
    min_beam, max_beam: Steps kept of a state; drawn per problem.
    max_child_beam: A child's beam is drawn between the root's and this.
    promising: Probability that the kept steps are searched at once.
    heuristic: A key of HEURISTICS.
    shuffle: Whether the kept steps are shuffled; else the best is first.
    context: Most slots of a thread, its prefix and end included.
    max_calls: Most children of a root.
    balance: Whether traces leave out children without a solution, so that
      hardly more remain than there are with one; they are drawn by chance.
    condition: What the prompt opens with: 'calls' = children, 'tokens' = slots
      of the root in units of `token_unit`, rounded up; '' = nothing.
    condition_value: Its number; -1 = that of the demonstration, in splits
      other than train the most, for the other would tell of the solution.
    token_unit: Slots.
  """
  kind: str = option(SERIAL, choices=KINDS)
  min_beam: int = option(1, least=1, most=1000)
  max_beam: int = option(5, least=1, most=1000)
  max_child_beam: int = option(15, least=1, most=1000)
  promising: float = option(0.5, least=0, most=1)
  heuristic: str = option('factors', choices=tuple(HEURISTICS))
  shuffle: bool = option(True)
  context: int = option(256, least=8, most=2**16)
  max_calls: int = option(10, least=0, most=1000)
  balance: bool = option(True)
  condition: str = option('', choices=('', CALLS, TOKENS))
  condition_value: int = option(-1, least=-1, most=9999)
  token_unit: int = option(32, least=1, most=2**16)

  def __post_init__(self):
    options.check(self)
    if self.min_beam > self.max_beam:
      raise ValueError(
          f'min_beam={self.min_beam} exceeds max_beam={self.max_beam}')

  @property
  def most_budget(self) -> int:
    """The largest number that a condition of -1 gives."""
    if self.condition == CALLS:
      return self.max_calls if self.kind == PARALLEL else 0
    return -(-self.context // self.token_unit)

  def least_context(self, numbers: int) -> int:
    """Slots that a thread needs for a problem of so many numbers.

    They hold a root with nothing but its answer, or a child with nothing
    between its first line and its result.
    """
    answer = 6 * (numbers - 1) + 1  # a control token, steps, <eos>
    child = 6 + numbers + answer  # brief, rest of its line, result
    return PREFIX + (child if self.kind == PARALLEL else answer)


# As in the source.
SOS = Search()
APR = Search(PARALLEL, max_beam=10, promising=0.9)
# Depth first and the best step first: these find more in small contexts.
GREEDY_SERIAL = Search(min_beam=4, max_beam=4, promising=1.0, heuristic='sum',
                       shuffle=False)
GREEDY_PARALLEL = Search(PARALLEL, min_beam=10, max_beam=10, promising=1.0,
                         heuristic='sum', shuffle=False)


@dataclasses.dataclass(frozen=True)
class Thread:
  """What one row writes after its prefix, word by word.

  Attributes:
    words: Text and control tokens; vocabulary.ids() has their ids.
    forced: Whether each was given (`<spawn>` and brief of a child, results),
      not chosen.
    found: Whether it found a solution.
    holds: Whether there is one from where it begins; a root's always. (Of the
      children of a search, about one in four: see Search.balance.)
    cut: Whether the search had less room than it needed.
  """
  words: tuple[str, ...]
  forced: tuple[bool, ...]
  found: bool
  holds: bool
  cut: bool

  @property
  def slots(self) -> int:
    return PREFIX + len(self.words)


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A tree of threads.

  Attributes:
    root: Solves the problem, or says 'none'.
    calls: The children of each `<join>` of the root, in order.
    answer: The root's answer; 'none' = it found none.
    budget: What the prompt opens with; '' = nothing.
  """
  root: Thread
  calls: tuple[tuple[Thread, ...], ...]
  answer: str
  budget: str = ''

  @property
  def children(self) -> tuple[Thread, ...]:
    return tuple(child for call in self.calls for child in call)

  @property
  def threads(self) -> tuple[Thread, ...]:
    return (self.root, *self.children)


class _Full(Exception):
  """There is no room for another line."""


class _Writer:
  """The words of a thread, up to a limit that leaves room for its end."""

  def __init__(self, limit: int):
    self._limit = limit
    self._words: list[str] = []
    self._forced: list[bool] = []

  def room(self) -> int:
    return self._limit - len(self._words)

  def write(self, text: str, forced: bool = False) -> None:
    words = text.split()
    if len(words) > self.room():
      raise _Full
    self._words += words
    self._forced += [forced] * len(words)

  def thread(self, end: str, *, found: bool, holds: bool, cut: bool) -> Thread:
    """The thread, with the words for which room was left."""
    last = end.split()
    return Thread((*self._words, *last), (*self._forced, *[False] * len(last)),
                  found=found, holds=holds, cut=cut)


@dataclasses.dataclass(frozen=True)
class _Node:
  """A state, and the steps that led to it from the problem's numbers."""
  state: State
  path: Path = ()


# Nodes -> whether any may be searched by a child; the path that one found.
_Call = Callable[[Sequence[_Node]], tuple[bool, Path | None]]


@dataclasses.dataclass
class _Worker:
  """One thread at work."""
  problem: Problem
  search: Search
  draw: Draws
  beam: int
  out: _Writer

  def distance(self, node: _Node) -> int:
    target = self.problem.target
    if len(node.state) == 1:
      return abs(node.state[0] - target)
    return HEURISTICS[self.search.heuristic](node.state, target)

  def kept(self, node: _Node) -> list[_Node]:
    """The states after the best steps from a state."""
    out = [_Node(after, (*node.path, step))
           for step, after in steps(node.state, self.problem.largest)]
    out.sort(key=self.distance)  # stable
    del out[self.beam:]
    if self.search.shuffle:
      for i in range(len(out) - 1, 0, -1):
        j = self.draw.between(0, i)
        out[i], out[j] = out[j], out[i]
    return out

  def rest(self, node: _Node) -> str:
    """What stands after the step in a line."""
    if len(node.state) > 1:
      return f": {' '.join(map(str, node.state[1:]))} ;"
    target = self.problem.target
    return f'off {target} {abs(node.state[0] - target)}'

  def line(self, node: _Node) -> bool:
    """Writes the line of the last step; whether it makes the target."""
    self.out.write(f'{node.path[-1]} {self.rest(node)}')
    return node.state == (self.problem.target,)

  def explore(self, start: _Node, call: _Call | None = None) -> Path | None:
    """The steps from the problem to the target by way of `start`, or None.

    Args:
      start: Named last in the text, or by the problem.
      call: Has children search some nodes; None = they are searched here.

    Raises:
      _Full: There is no room for another line.
    """
    queue = [start]
    while queue:
      node = min(queue, key=self.distance)
      queue.remove(node)
      if node is not start:
        self.out.write(f"go {' '.join(map(str, node.state))} ;")
      nodes = self.kept(node)
      last = len(node.state) == 2
      at_once = not last and self.draw.coin(self.search.promising)
      if at_once and call and len(nodes) > 1:
        called, path = call(nodes)
        if path is not None:
          return path
        if called:
          continue
      for after in nodes:
        if self.line(after):
          return after.path
        path = self.explore(after) if at_once else None
        if path is not None:
          return path
      if not at_once and not last:
        queue += nodes
    return None


def _child(problem: Problem, search: Search, draw: Draws, beam: int,
           brief: _Node) -> tuple[Thread, Path | None]:
  """A child's thread, and the steps from the problem to the target or None."""
  # <return>, all steps, <eos>
  end = 1 + (6 * (len(problem.numbers) - 1) - 1) + 1
  out = _Writer(search.context - PREFIX - end)
  worker = _Worker(problem, search, draw,
                   draw.between(beam, max(beam, search.max_child_beam)), out)
  out.write(_spawned(brief), forced=True)
  out.write(worker.rest(brief))
  path, cut = None, False
  try:
    path = worker.explore(brief)
  except _Full:
    cut = True
  result = '' if path is None else _result(path)
  return out.thread(
      f'{result} {EOS}', found=path is not None, cut=cut,
      holds=solvable(brief.state, problem.target, problem.largest)), path


def _spawned(brief):
  return f'{SPAWN} {spell(brief.path)}'


def _result(path):
  return f'{RETURN} {spell(path)}'


class _Calls:
  """The calls of a root."""

  def __init__(self, root: _Worker, draws: Callable[[int], Draws]):
    """`draws`: the random numbers of child 0, 1, ... of the root."""
    self._root, self._draws = root, draws
    self.made: list[tuple[Thread, ...]] = []
    self.cut = False

  @property
  def children(self) -> int:
    return sum(map(len, self.made))

  def __call__(self, nodes: Sequence[_Node]) -> tuple[bool, Path | None]:
    """Writes a call of as many children as are allowed and fit, and its join.

    Returns:
      Whether any was allowed; the first path that was found, or None.

    Raises:
      _Full: Not even one fits.
    """
    root, done = self._root, self.children
    nodes = nodes[:max(0, root.search.max_calls - done)]
    if not nodes:
      return False, None
    briefs, results, threads, found = [], [], [], None
    room = root.out.room() - 1  # <join>
    for i, node in enumerate(nodes):
      thread, path = _child(root.problem, root.search, self._draws(done + i),
                            root.beam, node)
      brief = _spawned(node)
      result = NONE if path is None else _result(path)
      room -= len(brief.split()) + len(result.split())
      if room < 0:
        self.cut = True
        break
      briefs.append(brief)
      results.append(result)
      threads.append(thread)
      if found is None:
        found = path
    if not threads:
      raise _Full
    root.out.write(' '.join((*briefs, JOIN)))
    root.out.write(' '.join(results), forced=True)
    self.made.append(tuple(threads))
    return True, found


def demonstrate(problem: Problem, search: Search, seed: int = 0,
                where: tuple[int, int] = (0, 0)) -> Demonstration:
  """The demonstration of a problem; a pure function of its arguments.

  Args:
    problem: A solvable one.
    search: How it is searched.
    seed, where: Choose the random numbers; integers in [0, 2**64).

  Raises:
    ValueError: The context has no room for an answer, or there is none.
  """
  n = len(problem.numbers)
  if search.context < search.least_context(n):
    raise ValueError(f'context={search.context} is below the '
                     f'{search.least_context(n)} slots that {n} numbers need')
  best = first(problem.numbers, problem.target, problem.largest)
  if best is None:
    raise ValueError(f'{problem} has no solution')
  draws = lambda thread: Draws(seed, 2, thread, *where)
  draw = draws(0)
  beam = draw.between(search.min_beam, search.max_beam)
  end = 1 + (6 * (n - 1) - 1) + 1  # </think>, the answer, <eos>
  out = _Writer(search.context - PREFIX - end)
  root = _Worker(problem, search, draw, beam, out)
  calls = _Calls(root, lambda child: draws(1 + child))
  path, cut = best, False
  if search.kind != DIRECT:
    try:
      path = root.explore(_Node(problem.numbers),
                          calls if search.kind == PARALLEL else None)
    except _Full:
      path, cut = None, True
  answer = 'none' if path is None else spell(path)
  thread = out.thread(f'{END_THINK} {answer} {EOS}', found=path is not None,
                      holds=True, cut=cut or calls.cut)
  value = search.condition_value
  if value < 0:
    value = (calls.children if search.condition == CALLS else
             -(-thread.slots // search.token_unit))
  return Demonstration(
      thread, tuple(calls.made), answer,
      f'{search.condition} {value}' if search.condition else '')
