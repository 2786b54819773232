"""The text of a compiled program as instructions, and its trip counts.

Parses an optimised and scheduled HLO module, `compiled.as_text()`, from the TPU
or CPU backend; hlo.py counts what it does.

A trip count is found by running only a loop's integers: its condition and what
the condition depends on, from the values that enter the loop. Where the
condition also depends on data, that part is assumed true: the loop runs to its
bound.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import dataclasses
import functools
import math
import operator
import re
from typing import Any, NamedTuple

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
               'ragged-all-to-all', 'collective-permute',
               'collective-broadcast')
# From one array to one with the same elements, in the same or another form.
VIEWS = ('bitcast', 'reshape', 'convert', 'copy', 'transpose')
# By the direction of a comparison or the name of an operation.
_INTEGERS = {
    'LT': operator.lt, 'LE': operator.le, 'GT': operator.gt,
    'GE': operator.ge, 'EQ': operator.eq, 'NE': operator.ne,
    'add': operator.add, 'subtract': operator.sub, 'multiply': operator.mul,
    'and': operator.and_, 'or': operator.or_, 'negate': operator.neg,
    'maximum': max, 'minimum': min, 'select': lambda p, a, b: a if p else b}
_MOST_TRIPS = 10**6  # a loop with more counts as unbounded


# ------------------------------------------------------------------- the text
class Array(NamedTuple):
  """One array of a shape.

  Attributes:
    text: As 'bf16[48,2560]'.
    dims: Its sizes, outermost first.
    size: Elements.
    width: Bytes per element; 0.5 for int4.
    hbm: Whether it is in HBM.
  """
  text: str
  dims: list[int]
  size: int
  width: float
  hbm: bool


@functools.cache
def arrays(shape: str) -> list[Array]:
  """The arrays of a shape in order, including those of nested tuples.

  Args:
    shape: As in an instruction, with layouts:
      '(bf16[48,2560]{1,0:T(8,128)S(1)}, u32[])'.
  """
  out = []
  for text, dtype, dims, layout in re.findall(
      r'((\w+)\[([\d,<= ]*)\])(\{[^}]*\})?', shape):
    dims = [int(d) for d in re.findall(r'\d+', dims)]
    bits = re.search(r'\d+', dtype)
    # A layout names the memory where it is not HBM, S(0).
    out.append(Array(text, dims, math.prod(dims),
                     int(bits[0]) / 8 if bits else float(dtype == 'pred'),
                     not re.search(r'S\([1-9]', layout)))
  return out


@dataclasses.dataclass(eq=False)
class Op:
  """One instruction, `name = shape code(args), rest`.

  Attributes:
    home: The computation that contains it.
    name: Unique in `home`.
    code: What it does: 'add', 'fusion', 'all-gather-start', ...
    shape: Of its result, with layouts.
    args: Names of its operands; for a parameter or constant, its text.
    rest: The attributes, as text.
  """
  home: Computation
  name: str
  code: str
  shape: str
  args: list[str]
  rest: str

  def attr(self, key: str) -> str | None:
    """The attribute `key=`, one word without its '%'; None = missing."""
    found = re.search(rf'\b{key}=%?([\w.\-]+)', self.rest)
    return found and found[1]

  def called(self, key: str = 'calls') -> Computation:
    """The computation of attribute `key`, or else of `to_apply`."""
    return self.home.all[self.attr(key) or self.attr('to_apply')]

  @functools.cached_property
  def operands(self) -> list[Op]:
    """The instructions that produce its operands."""
    return [self.home.ops[name] for name in self.args]

  @property
  def where(self) -> str:
    """op_name, the path of JAX's operations; '' = missing."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''

  @property
  def base(self) -> str:
    """`code` without the '-start' of an asynchronous pair."""
    return self.code.removesuffix('-start')

  @property
  def results(self) -> list[Array]:
    """Its arrays; for the first half of a pair, those the second returns."""
    found, n = arrays(self.shape), len(self.args)
    if self.code == self.base or len(found) <= n:
      return found
    if self.base == 'copy':  # (result, operand, context)
      return found[:1]
    # (operands, results, contexts)
    return found[n:2 * n] if self.base in COLLECTIVES else found[n:]


class Computation:
  """One computation of a module.

  Attributes:
    all: Name -> computation, of the whole module.
    devices: Number that run the module: its partitions times its replicas.
    ops: Name -> instruction, in the order of the text, which is the schedule.
    root: The instruction that produces the result.
  """

  def __init__(self, everything: dict[str, Computation], devices: int):
    self.all, self.devices = everything, devices
    self.ops: dict[str, Op] = {}
    self.root: Op = None

  @functools.cached_property
  def users(self) -> dict[str, list[tuple[Op, int]]]:
    """Value -> its users, each with the number of the operand."""
    users = collections.defaultdict(list)
    for op in self.ops.values():
      for i, name in enumerate(op.args):
        users[name].append((op, i))
    return users

  @functools.cached_property
  def params(self) -> dict[int, Op]:
    """Number -> parameter."""
    return {int(op.args[0]): op for op in self.ops.values()
            if op.code == 'parameter'}

  @functools.cached_property
  def outputs(self) -> list[Op]:
    """The instruction that produces each result of a fused computation."""
    def source(op):
      return source(op.operands[0]) if op.code == 'bitcast' else op
    return [source(op) for op in (
        self.root.operands if self.root.code == 'tuple' else [self.root])]


def parse(text: str) -> Computation:
  """The entry computation; the others are in its `all`.

  Args:
    text: compiled.as_text().

  Raises:
    ValueError: It is not the text of an HLO module.
  """
  entry, everything = None, {}
  devices = math.prod(int(n) for n in re.findall(
      r'(?:num_partitions|replica_count)=(\d+)', text[:text.find('\n')]))
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line):
      now = everything[head[2]] = Computation(everything, devices)
      entry = now if head[1] else entry
    elif op := re.match(r'\s+(ROOT )?%([\w.\-]+) = ', line):
      # No shape has a word and a parenthesis after a space.
      code = re.compile(r' ([a-z][\w\-]*)\(').search(line, op.end())
      end = line.index(')', code.end())
      while (line.count('(', code.end(), end)
             > line.count(')', code.end(), end)):
        end = line.index(')', end + 1)
      args = line[code.end():end]
      now.ops[op[2]] = Op(
          now, op[2], code[1], line[op.end():code.start()],
          [args] if code[1] in ('parameter', 'constant')
          else re.findall(r'%([\w.\-]+)', args), line[end + 1:])
      if op[1]:
        now.root = now.ops[op[2]]
  if entry is None:
    raise ValueError('no ENTRY computation: not the text of an HLO module')
  return entry


# ---------------------------------------------------------------- trip counts
class Frame:
  """The integers of a computation, as far as they are known.

  A path selects from nested tuples: (1, 0) is the first part of the second
  part, () the value itself. Truth values are 0 and 1.

  Args:
    computation: The computation.
    read: (number of a parameter, path into its tuple) -> its value; None =
      unknown. Values that are not integers are only passed on.
  """

  def __init__(self, computation: Computation,
               read: Callable[[int, tuple[int, ...]], Any]):
    self.computation, self.read = computation, read
    self._known: dict[Any, Any] = {}

  def inner(self, op: Op, called: Computation, first: int = 0) -> Frame:
    """The frame of a computation that `op` calls.

    Args:
      op: An instruction of this computation.
      called: The computation that it calls.
      first: The operand that becomes parameter 0; the next ones follow.
    """
    return Frame(called, lambda number, path: self.value(
        op.operands[first + number], path))

  def result(self, path: tuple[int, ...] = ()) -> Any:
    """The value at `path` of the computation's result; None = unknown."""
    return self.value(self.computation.root, path)

  def value(self, op: Op, path: tuple[int, ...] = ()) -> Any:
    """The value at `path` of the result of `op`; None = unknown."""
    key = op.name, path
    if key not in self._known:
      self._known[key] = self._value(op, path)
    return self._known[key]

  def _value(self, op, path):
    if not re.match(r'\(|pred\[\]|[su]\d+\[\]', op.shape):
      return None
    if op.code == 'parameter':
      return self.read(int(op.args[0]), path)
    if op.code == 'constant':
      text = {'true': '1', 'false': '0'}.get(op.args[0], op.args[0])
      return int(text) if re.fullmatch(r'-?\d+', text) else None
    if op.code == 'while':
      return self.value(op.operands[0], path) if self.keeps(op, path) else (
          self.loop(op, path)[2].get(path))
    if op.code in ('fusion', 'call'):
      return self.inner(op, op.called()).result(path)
    if op.code == 'tuple':
      return self.value(op.operands[path[0]], path[1:]) if path else None
    if op.code == 'get-tuple-element':
      return self.value(op.operands[0], (int(op.attr('index')), *path))
    if op.code in (*VIEWS, 'opt-barrier'):
      return self.value(op.operands[0], path)
    if op.code == 'copy-done':
      return self.value(op.operands[0], (0, *path))
    if op.code == 'copy-start':
      return self.value(op.operands[0], path[1:])
    values = [self.value(operand) for operand in op.operands]
    if op.shape.startswith('pred') and op.code in ('and', 'or'):
      decides = int(op.code == 'or')  # whatever the other operand is
      if decides in values:
        return decides
    compute = _INTEGERS.get(op.attr('direction') or op.code)
    return (compute(*values) if compute
            and all(isinstance(v, int) for v in values) else None)

  def loop(self, op: Op, *paths: tuple[int, ...]
           ) -> tuple[int | None, bool, dict[tuple[int, ...], Any]]:
    """How often a loop runs, and its values at the end.

    Args:
      op: A 'while' of this computation.
      *paths: Paths into its tuple whose values are wanted.

    Returns:
      trips: To its bound; None = not found, or not below _MOST_TRIPS.
      dynamic: Whether data may stop it earlier.
      state: Path -> value after the last trip, for `paths` and others; empty
        where trips is None.
    """
    state = {}
    def read(_, path):
      if path not in state:
        state[path] = self.value(op.operands[0], path)
      return state[path]
    frame = lambda key: Frame(op.called(key), read)
    frame('condition').result()
    for path in paths:
      read(0, path)
    size = 0
    while size < len(state):  # what these depend on, and so on
      size = len(state)
      for path in list(state):
        frame('body').result(path)
    dynamic = False
    for trips in range(_MOST_TRIPS):
      holds = frame('condition').result()
      if holds == 0:
        return trips, dynamic, state
      dynamic |= holds is None
      body = frame('body')
      after = {path: body.result(path) for path in state}
      if after == state:
        break
      state.update(after)
    return None, dynamic, {}

  def keeps(self, op: Op, path: tuple[int, ...]) -> bool:
    """Whether a loop leaves the value at `path` of its tuple unchanged."""
    return Frame(op.called('body'), lambda _, p: p).result(path) == path

  def trip(self, op: Op, key: str) -> Frame:
    """The frame of a loop's condition or body in any trip.

    It knows the values that the loop leaves unchanged; all others are unknown.

    Args:
      op: A 'while' of this computation.
      key: 'body' or 'condition'.
    """
    return Frame(op.called(key), lambda _, path: self.value(
        op.operands[0], path) if self.keeps(op, path) else None)
