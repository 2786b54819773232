"""What a compiled program does, loop bodies multiplied by their trip counts.

Reads the text of an optimised and scheduled HLO module, `compiled.as_text()`,
of the TPU or the CPU backend. XLA's own cost_analysis() counts the body of a
loop once, however often it runs.

A trip count is found by running a loop's integers alone: its condition and
what that depends on, from the values that enter the loop. Where the condition
also depends on data, that part is taken to hold: the loop runs to its bound.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import math
import operator
import re
from typing import Any, NamedTuple

import numpy as np

_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
                'ragged-all-to-all', 'collective-permute',
                'collective-broadcast')
# What moves nothing by itself.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'opt-barrier', 'partition-id', 'replica-id')
_FREE_CALL = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast)"')
# What a Pallas kernel says of itself.
_KERNEL = re.compile(r'"cost_estimate":\{"flops":"?(\d+).*?'
                     r'"bytes_accessed":"?(\d+)')
_SLICES = ('slice', 'dynamic-slice', 'gather')
_UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}  # operand: the new part
_VIEWS = ('bitcast', 'reshape', 'convert', 'copy', 'transpose')
# By the direction of a comparison, or the name of the operation.
_INTEGERS = {
    'LT': operator.lt, 'LE': operator.le, 'GT': operator.gt,
    'GE': operator.ge, 'EQ': operator.eq, 'NE': operator.ne,
    'add': operator.add, 'subtract': operator.sub, 'multiply': operator.mul,
    'and': operator.and_, 'or': operator.or_, 'negate': operator.neg,
    'maximum': max, 'minimum': min, 'select': lambda p, a, b: a if p else b}
_NO_ESTIMATE = 2**63 - 1  # cycles of what XLA has none for
_MOST_TRIPS = 10**5  # a loop with more counts as one without a bound


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
      'collective-permute', ...
    shape: Of the result on one device, as 'bf16[48,2560]'.
    bytes: On one device, of the result; of a reduce-scatter, of the operand:
      of all-gather and reduce-scatter what a whole group holds.
    group: Devices in a group; of a permute, in a ring or chain.
    times: How often one run executes it.
    where: op_name, the path of JAX's operations.
  """
  kind: str
  shape: str
  bytes: int
  group: int
  times: float
  where: str


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel that XLA does not see into (Pallas), as it says of itself.

  Attributes:
    where: op_name, the path of JAX's operations.
    flops: Of one run.
    bytes: Moved to and from HBM by one run.
    times: How often one run of the program executes it.
  """
  where: str
  flops: int
  bytes: int
  times: float


@dataclasses.dataclass(frozen=True)
class Loop:
  """One loop; those inside it follow it.

  Attributes:
    name: op_name, the path of JAX's operations.
    trips: Each time it is entered.
    dynamic: Data may stop it earlier; `trips` is its bound.
    times: How often one run enters it.
    depth: Loops around it.
  """
  name: str
  trips: float
  dynamic: bool
  times: float
  depth: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one run costs one device.

  Attributes:
    flops: Of matrix products and convolutions, 2 per multiply-add, and of
      kernels.
    bytes: Moved to and from HBM; an estimate. Every operation outside fusions
      reads its operands and writes its results once; slices count as what
      they read, updates as what they write. What XLA placed elsewhere (VMEM)
      counts nothing, nor does the padding of tiles.
    cycles: Sum of the backend's own estimates, which it makes for fusions and
      the like but not for collectives nor kernels; 0 where it makes none.
    kernels: In the order of the program.
    collectives: Largest bytes * times first.
    loops: In the order of the program.
  """
  flops: float = 0.
  bytes: float = 0.
  cycles: float = 0.
  kernels: tuple[Kernel, ...] = ()
  collectives: tuple[Collective, ...] = ()
  loops: tuple[Loop, ...] = ()


def analyse(text: str) -> Cost:
  """The cost of one run of a program.

  An upper bound in two ways: of a conditional the branch with the most flops
  counts (with equal flops, the most bytes), and a loop runs to its bound.

  Args:
    text: compiled.as_text(); the program of one device, as SPMD makes it.

  Raises:
    ValueError: Something could not be understood: the trip count of a loop,
      the groups of a collective, a product in a library call.
  """
  return _cost(_Frame(_parse(text), lambda number, path: None))


def _sum(parts: Iterable[tuple[float, Cost]]) -> Cost:
  """Of (how often, cost)."""
  parts, found = list(parts), collections.Counter()
  for times, cost in parts:
    for c in cost.collectives:
      found[dataclasses.replace(c, times=1)] += times * c.times
  return Cost(
      flops=sum(n * cost.flops for n, cost in parts),
      bytes=sum(n * cost.bytes for n, cost in parts),
      cycles=sum(n * cost.cycles for n, cost in parts),
      kernels=tuple(dataclasses.replace(k, times=n * k.times)
                    for n, cost in parts for k in cost.kernels),
      collectives=tuple(sorted(
          (dataclasses.replace(c, times=n) for c, n in found.items()),
          key=lambda c: -c.bytes * c.times)),
      loops=tuple(dataclasses.replace(l, times=n * l.times)
                  for n, cost in parts for l in cost.loops))


# ------------------------------------------------------------------- the text
class _Array(NamedTuple):
  """One array of a shape."""
  text: str  # 'bf16[48,2560]'
  dims: list[int]
  size: int  # elements
  width: float  # bytes of an element
  hbm: bool


@functools.cache
def _arrays(shape: str) -> list[_Array]:
  arrays = []
  for text, dtype, dims, layout in re.findall(
      r'((\w+)\[([\d,<= ]*)\])(\{[^}]*\})?', shape):
    dims = [int(d) for d in re.findall(r'\d+', dims)]
    bits = re.search(r'\d+', dtype)
    # A layout names the memory where that is another than HBM, S(0).
    arrays.append(_Array(text, dims, math.prod(dims),
                         int(bits[0]) / 8 if bits else float(dtype == 'pred'),
                         not re.search(r'S\([1-9]', layout)))
  return arrays


@dataclasses.dataclass(eq=False)
class _Op:
  """One instruction, `name = shape code(args), rest`."""
  home: _Computation
  name: str
  code: str
  shape: str
  args: list[str]  # names; of a parameter or constant, its text
  rest: str

  def attr(self, key: str) -> str | None:
    found = re.search(rf'\b{key}=%?([\w.\-]+)', self.rest)
    return found and found[1]

  def called(self, key: str = 'calls') -> _Computation:
    return self.home.all[self.attr(key) or self.attr('to_apply')]

  @functools.cached_property
  def operands(self) -> list[_Op]:
    return [self.home.ops[name] for name in self.args]

  @property
  def where(self) -> str:
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''

  @property
  def base(self) -> str:
    """What it does, as the first half of an asynchronous pair too."""
    return self.code.removesuffix('-start')

  @property
  def results(self) -> list[_Array]:
    """Its arrays; of the first half of a pair, those the second returns."""
    arrays, n = _arrays(self.shape), len(self.args)
    if self.code == self.base or len(arrays) <= n:
      return arrays
    if self.base == 'copy':  # (result, operand, context)
      return arrays[:1]
    # (operands, results, contexts)
    return arrays[n:2 * n] if self.base in _COLLECTIVES else arrays[n:]


class _Computation:
  """Instructions by name, in order."""

  def __init__(self, everything: dict[str, _Computation], devices: int):
    self.all, self.devices = everything, devices
    self.ops: dict[str, _Op] = {}
    self.root: _Op = None

  @functools.cached_property
  def users(self) -> dict[str, list[tuple[_Op, int]]]:
    """Of each value: who takes it, as which operand."""
    users = collections.defaultdict(list)
    for op in self.ops.values():
      for i, name in enumerate(op.args):
        users[name].append((op, i))
    return users

  @functools.cached_property
  def params(self) -> dict[int, _Op]:
    return {int(op.args[0]): op for op in self.ops.values()
            if op.code == 'parameter'}

  @functools.cached_property
  def outputs(self) -> list[_Op]:
    """What makes each result of a fused computation."""
    def source(op):
      return source(op.operands[0]) if op.code == 'bitcast' else op
    return [source(op) for op in (
        self.root.operands if self.root.code == 'tuple' else [self.root])]


def _parse(text: str) -> _Computation:
  """The entry computation."""
  entry, everything = None, {}
  devices = math.prod(int(n) for n in re.findall(
      r'(?:num_partitions|replica_count)=(\d+)', text[:text.find('\n')]))
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{$', line):
      now = everything[head[2]] = _Computation(everything, devices)
      entry = now if head[1] else entry
    elif op := re.match(r'\s+(ROOT )?%([\w.\-]+) = ', line):
      # No shape has a word and a parenthesis after a space.
      code = re.compile(r' ([a-z][\w\-]*)\(').search(line, op.end())
      end = line.index(')', code.end())
      while (line.count('(', code.end(), end)
             > line.count(')', code.end(), end)):
        end = line.index(')', end + 1)
      args = line[code.end():end]
      now.ops[op[2]] = _Op(
          now, op[2], code[1], line[op.end():code.start()],
          [args] if code[1] in ('parameter', 'constant')
          else re.findall(r'%([\w.\-]+)', args), line[end + 1:])
      if op[1]:
        now.root = now.ops[op[2]]
  if entry is None:
    raise ValueError('no ENTRY computation: not the text of an HLO module')
  return entry


# ---------------------------------------------------------------- trip counts
class _Frame:
  """The integers of a computation, as far as they are known.

  Args:
    computation: Of which.
    read: (number of a parameter, path into its tuple) -> its value; None =
      not known. What is not an integer is handed through, not computed with.
  """

  def __init__(self, computation: _Computation,
               read: Callable[[int, tuple[int, ...]], Any]):
    self.computation, self.read = computation, read
    self._known: dict[Any, Any] = {}

  def inner(self, op: _Op, called: _Computation, first: int = 0) -> _Frame:
    """Of what `op` calls with its operands from `first` on."""
    return _Frame(called, lambda number, path: self.value(
        op.operands[first + number], path))

  def result(self, path: tuple[int, ...] = ()) -> Any:
    return self.value(self.computation.root, path)

  def value(self, op: _Op, path: tuple[int, ...] = ()) -> Any:
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
    if op.code in (*_VIEWS, 'opt-barrier'):
      return self.value(op.operands[0], path)
    if op.code == 'copy-done':
      return self.value(op.operands[0], (0, *path))
    if op.code == 'copy-start':
      return self.value(op.operands[0], path[1:])
    values = [self.value(operand) for operand in op.operands]
    if op.shape.startswith('pred') and op.code in ('and', 'or'):
      decides = int(op.code == 'or')  # whatever the other is
      if decides in values:
        return decides
    compute = _INTEGERS.get(op.attr('direction') or op.code)
    return (compute(*values) if compute
            and all(isinstance(v, int) for v in values) else None)

  def loop(self, op: _Op, *paths: tuple[int, ...]
           ) -> tuple[int | None, bool, dict[tuple[int, ...], Any]]:
    """Trips (None: not found), whether data may stop it earlier, and the
    values after it at `paths` of its tuple."""
    state = {}
    def read(_, path):
      if path not in state:
        state[path] = self.value(op.operands[0], path)
      return state[path]
    frame = lambda key: _Frame(op.called(key), read)
    frame('condition').result()
    for path in paths:
      read(0, path)
    size = 0
    while size < len(state):  # what these depend on, and that, ...
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

  def keeps(self, op: _Op, path: tuple[int, ...]) -> bool:
    """Whether a loop leaves the value at `path` of its tuple as it is."""
    return _Frame(op.called('body'), lambda _, p: p).result(path) == path

  def trip(self, op: _Op, key: str) -> _Frame:
    """Of the 'body' or 'condition' of a loop, in any one trip."""
    return _Frame(op.called(key), lambda _, path: self.value(
        op.operands[0], path) if self.keeps(op, path) else None)


# ------------------------------------------------------------- what is counted
def _cost(frame: _Frame) -> Cost:
  """Of one run of a computation that is not fused, and of what it calls."""
  return _sum((1, _op_cost(frame, op)) for op in frame.computation.ops.values())


def _op_cost(frame, op):
  if op.code == 'while':
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', op.rest)
    trips, dynamic = (int(known[1]), False) if known else frame.loop(op)[:2]
    if trips is None:
      raise ValueError(f'found no trip count of loop {op.name}, {op.where!r}')
    cost = _sum([(trips + 1, _cost(frame.trip(op, 'condition'))),
                 (trips, _cost(frame.trip(op, 'body')))])
    return dataclasses.replace(cost, loops=(
        Loop(op.where, trips, dynamic, 1, 0),
        *(dataclasses.replace(l, depth=l.depth + 1) for l in cost.loops)))
  if op.code == 'conditional':
    named = re.search(r'branch_computations=\{([^}]*)\}', op.rest)
    names = (re.findall(r'%([\w.\-]+)', named[1]) if named else
             [op.attr('true_computation'), op.attr('false_computation')])
    return max((_cost(frame.inner(op, op.home.all[name], i + 1))
                for i, name in enumerate(names)),
               key=lambda cost: (cost.flops, cost.bytes))
  if op.code in ('call', 'call-start', 'async-start'):
    return _cost(frame.inner(op, op.called()))
  if op.code.endswith(('-done', '-update')):
    return Cost()
  cycles = re.search(r'"estimated_cycles":"?(\d+)', op.rest)
  cycles = int(cycles[1]) if cycles else 0
  if told := _KERNEL.search(op.rest):
    flops, moved = map(int, told.groups())
    return Cost(flops=flops, bytes=moved,
                kernels=(Kernel(op.where, flops, moved, 1),))
  return Cost(
      flops=sum(_flops(inner) for inner in _fused(op)), bytes=_bytes(op),
      cycles=cycles if cycles < _NO_ESTIMATE else 0,
      collectives=tuple(
          _collective(inner, op) for inner in _fused(op)
          if inner.base in _COLLECTIVES and not _joins(inner)))


def _fused(op: _Op) -> Iterator[_Op]:
  """The operation and what is fused into it."""
  yield op
  if op.base == 'fusion':
    for inner in op.called().ops.values():
      yield from _fused(inner)


def _flops(op: _Op) -> int:
  if re.search(r'custom_call_target="[^"]*(matmul|gemm)', op.rest):
    raise ValueError(f'cannot count the product in library call {op.name}')
  if op.code not in ('dot', 'convolution'):
    return 0
  lhs, out = op.operands[0].results[0].dims, op.results[0].dims
  if op.code == 'dot':
    summed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)[1]
    return 2 * math.prod(out) * math.prod(
        lhs[int(d)] for d in summed.split(',') if d)
  # As XLA's HloCostAnalysis. On TPU a product is one too, and its batch a
  # spatial dimension of which most positions meet padding only.
  l, r, o = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.rest).groups()
  window = re.search(r'window=\{([^}]*)\}', op.rest)
  window = {k: v.split('x') for k, v in re.findall(
      r'(\w+)=(\S+)', window[1] if window else '')}
  total = (2 * lhs[l.index('f')] * lhs[l.index('b')] * out[o.index('f')]
           // int(op.attr('feature_group_count') or 1)
           // int(op.attr('batch_group_count') or 1))
  for d in range(len(o) - 2):
    size, stride, pad, dilate, kernel_dilate = (
        int(window[key][d].split('_')[0]) if key in window else default
        for key, default in (('size', 1), ('stride', 1), ('pad', 0),
                             ('lhs_dilate', 1), ('rhs_dilate', 1)))
    total *= _pairs(lhs[l.index(str(d))], out[o.index(str(d))], size, stride,
                    pad, dilate, kernel_dilate)
  return total


@functools.cache
def _pairs(size: int, out: int, kernel: int, stride: int, pad: int,
           dilate: int, kernel_dilate: int) -> int:
  """Pairs of an output and a kernel position that meet an input element."""
  few, many = sorted((np.arange(out) * stride,
                      np.arange(kernel) * kernel_dilate), key=len)
  return sum(int(np.count_nonzero((at >= 0) & (at < size * dilate)
                                  & (at % dilate == 0)))
             for at in (many + (x - pad) for x in few))


def _joins(op: _Op) -> bool:
  """Whether a collective has begun elsewhere. On TPU the fusions that it
  overlaps with, and the one that ends it, repeat it."""
  return ('chain_id=' in op.rest
          and 'AsyncCollectiveStart' not in op.home.root.rest)


def _collective(op: _Op, outer: _Op) -> Collective:
  kind, results, root = op.base, op.results, op.home.root
  counted = results if kind != 'reduce-scatter' else [
      a for operand in op.operands for a in operand.results]
  if (op is not outer and kind == 'all-reduce'
      and root.code == 'dynamic-slice' and root.args[0] == op.name):
    # A reduce-scatter, as TPU has it.
    kind, results = 'reduce-scatter', root.results
  shape = ', '.join(a.text for a in results)
  return Collective(kind, f'({shape})' if len(results) > 1 else shape,
                    int(sum(a.size * a.width for a in counted)), _group(op), 1,
                    op.where or outer.where)


def _group(op: _Op) -> int:
  """Devices in a group."""
  if pairs := re.search(r'source_target_pairs=\{(.*?)\}\}', op.rest):
    joined = {}
    for a, b in re.findall(r'(\d+),(\d+)', pairs[1]):
      both = joined.get(a, {a}) | joined.get(b, {b})
      joined.update(dict.fromkeys(both, both))
    return max(map(len, joined.values()))
  if mesh := re.search(
      r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', op.rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    # Part of an axis: 'axis':(size of what is before it)size.
    return math.prod(int(part or sizes[axis]) for axis, part in re.findall(
        r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2]))
  if iota := re.search(r'replica_groups=\[\d+,(\d+)\]', op.rest):
    return int(iota[1])
  if listed := re.search(r'replica_groups=\{(?:\{([\d,]*))?', op.rest):
    return listed[1].count(',') + 1 if listed[1] else op.home.devices
  raise ValueError(f'cannot read the groups of {op.code} {op.name}')


# --------------------------------------------------------------- bytes of HBM
def _bytes(op: _Op) -> float:
  if op.code in _FREE or _FREE_CALL.search(op.rest):
    return 0
  return sum(a.width * min(a.size, most) for a, most in (
      *((a, _read(op, i)) for i, operand in enumerate(op.operands)
        for a in _arrays(operand.shape)),
      *zip(op.results, _written(op))) if a.hbm)


def _read(op: _Op, i: int) -> float:
  """Elements at most that it reads of its i-th operand."""
  if i == 0 and op.base in _SLICES:
    return op.results[0].size
  if i == 0 and op.base in _UPDATES or 'AsyncCollective' in op.rest:
    return 0
  return _used(op.called().params[i]) if op.base == 'fusion' else math.inf


def _used(op: _Op) -> float:
  """Elements at most that a fused computation uses of a value in it."""
  total = math.inf if op is op.home.root else 0
  for user, i in op.home.users[op.name]:
    if user.code in _VIEWS or (i == 0 and user.base in _UPDATES
                               and user not in op.home.outputs):
      total += _used(user)
    elif user.code == 'tuple':  # a parameter is handed through
      total += 0 if op.code == 'parameter' else math.inf
    elif not (user.base in _COLLECTIVES and _joins(user)):
      total += _read(user, i)
  return total


def _written(op: _Op) -> list[float]:
  """Elements at most that it writes of each result."""
  if op.base in _UPDATES:
    return [op.operands[_UPDATES[op.base]].results[0].size]
  if op.base == 'fusion':
    return [n for out in op.called().outputs for n in _written(out)]
  if op.code == 'parameter' or 'AsyncCollectiveDone' in op.rest or (
      op.base in _COLLECTIVES and _joins(op)):
    return [0]
  if 'AsyncCollectiveStart' in op.rest:  # (operand, result, ...)
    return [0, math.inf]
  return [math.inf] * len(op.results)
