"""What a compiled program does, loop bodies multiplied by their trip counts.

Reads the text of an optimised and scheduled HLO module, `compiled.as_text()`,
from the TPU or CPU backend (hlo_text.py). XLA's own cost_analysis() counts the
body of a loop once, however often it runs.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math
import re

import numpy as np

from adasr_jax.tools.aot.hlo_text import (
    COLLECTIVES, VIEWS, Frame, Op, arrays, parse)

# Operations that move no data.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'opt-barrier', 'partition-id', 'replica-id')
_FREE_CALL = re.compile('custom_call_target="(AllocateBuffer|ConcatBitcast)"')
# The cost that a Pallas kernel declares.
_KERNEL = re.compile(r'"cost_estimate":\{"flops":"?(\d+).*?'
                     r'"bytes_accessed":"?(\d+)')
_SLICES = ('slice', 'dynamic-slice', 'gather')
_UPDATES = {'dynamic-update-slice': 1, 'scatter': 2}  # operand: the new part
_NO_ESTIMATE = 2**63 - 1  # cycles of an operation that XLA cannot estimate


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
      'collective-permute', ...
    shape: Of the result on one device, as 'bf16[48,2560]'.
    bytes: Of the result on one device, of a reduce-scatter the operand; so for
      all-gather and reduce-scatter all that a group holds.
    group: Devices per group; of a permute, per ring or chain.
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
  """A Pallas kernel, which XLA cannot look into, with its declared cost.

  Attributes:
    where: op_name, the path of JAX's operations.
    flops: Of one run of the kernel.
    bytes: Moved to and from HBM by one run of the kernel.
    times: How often one run of the program executes it.
  """
  where: str
  flops: int
  bytes: int
  times: float


@dataclasses.dataclass(frozen=True)
class Loop:
  """One loop; nested loops follow it.

  Attributes:
    name: op_name, the path of JAX's operations.
    trips: Per entry.
    dynamic: Data may stop it earlier; `trips` is its bound.
    times: How often one run enters it.
    depth: Number of loops around it.
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
      reads its operands and writes its results once; slices count what they
      read, updates what they write. Arrays that XLA placed elsewhere (VMEM)
      and the padding of tiles do not count.
    cycles: Sum of the backend's estimates, which exist for fusions and similar
      operations but not for collectives or kernels; 0 where it has none.
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

  An upper bound in two ways: a conditional counts as its branch with the most
  flops (with equal flops, the most bytes), and a loop runs to its bound.

  Args:
    text: compiled.as_text(); the program of one device, as SPMD makes it.

  Returns:
    The cost on one device, multiplied by the trip counts of loops.

  Raises:
    ValueError: It is not the text of an HLO module, or a part of it cannot be
      read: the trip count of a loop, the groups of a collective, a product in
      a library call.
  """
  return _cost(Frame(parse(text), lambda number, path: None))


def _sum(parts: Iterable[tuple[float, Cost]]) -> Cost:
  """The sum of (times, cost)."""
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


# ------------------------------------------------------------- what is counted
def _cost(frame: Frame) -> Cost:
  """The cost of one run of an unfused computation and of what it calls."""
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
  if declared := _KERNEL.search(op.rest):
    flops, moved = map(int, declared.groups())
    return Cost(flops=flops, bytes=moved,
                kernels=(Kernel(op.where, flops, moved, 1),))
  return Cost(
      flops=sum(_flops(inner) for inner in _fused(op)), bytes=_bytes(op),
      cycles=cycles if cycles < _NO_ESTIMATE else 0,
      collectives=tuple(
          _collective(inner, op) for inner in _fused(op)
          if inner.base in COLLECTIVES and not _joins(inner)))


def _fused(op: Op) -> Iterator[Op]:
  """The operation and what is fused into it."""
  yield op
  if op.base == 'fusion':
    for inner in op.called().ops.values():
      yield from _fused(inner)


def _flops(op: Op) -> int:
  if re.search(r'custom_call_target="[^"]*(matmul|gemm)', op.rest):
    raise ValueError(f'cannot count the product in library call {op.name}')
  if op.code not in ('dot', 'convolution'):
    return 0
  lhs, out = op.operands[0].results[0].dims, op.results[0].dims
  if op.code == 'dot':
    summed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)[1]
    return 2 * math.prod(out) * math.prod(
        lhs[int(d)] for d in summed.split(',') if d)
  # As XLA's HloCostAnalysis. On TPU a product is a convolution too, and its
  # batch a spatial dimension of which most positions only meet padding.
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


def _joins(op: Op) -> bool:
  """Whether a collective was started elsewhere.

  On TPU the fusions that it overlaps with, and the one that ends it, repeat it.
  """
  return ('chain_id=' in op.rest
          and 'AsyncCollectiveStart' not in op.home.root.rest)


def _collective(op: Op, outer: Op) -> Collective:
  kind, results, root = op.base, op.results, op.home.root
  counted = results if kind != 'reduce-scatter' else [
      a for operand in op.operands for a in operand.results]
  if (op is not outer and kind == 'all-reduce'
      and root.code == 'dynamic-slice' and root.args[0] == op.name):
    # How TPU writes a reduce-scatter.
    kind, results = 'reduce-scatter', root.results
  shape = ', '.join(a.text for a in results)
  return Collective(kind, f'({shape})' if len(results) > 1 else shape,
                    int(sum(a.size * a.width for a in counted)), _group(op), 1,
                    op.where or outer.where)


def _group(op: Op) -> int:
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
    # Part of an axis: 'axis':(size before the part)size of the part.
    return math.prod(int(part or sizes[axis]) for axis, part in re.findall(
        r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2]))
  if iota := re.search(r'replica_groups=\[\d+,(\d+)\]', op.rest):
    return int(iota[1])
  if listed := re.search(r'replica_groups=\{(?:\{([\d,]*))?', op.rest):
    return listed[1].count(',') + 1 if listed[1] else op.home.devices
  raise ValueError(f'cannot read the groups of {op.code} {op.name}')


# --------------------------------------------------------------- bytes of HBM
def _bytes(op: Op) -> float:
  if op.code in _FREE or _FREE_CALL.search(op.rest):
    return 0
  return sum(a.width * min(a.size, limit) for a, limit in (
      *((a, _read(op, i)) for i, operand in enumerate(op.operands)
        for a in arrays(operand.shape)),
      *zip(op.results, _written(op))) if a.hbm)


def _read(op: Op, i: int) -> float:
  """The most elements that it reads of its i-th operand."""
  if i == 0 and op.base in _SLICES:
    return op.results[0].size
  if i == 0 and op.base in _UPDATES or 'AsyncCollective' in op.rest:
    return 0
  return _used(op.called().params[i]) if op.base == 'fusion' else math.inf


def _used(op: Op) -> float:
  """The most elements that a fused computation uses of a value in it."""
  total = math.inf if op is op.home.root else 0
  for user, i in op.home.users[op.name]:
    if user.code in VIEWS or (i == 0 and user.base in _UPDATES
                              and user not in op.home.outputs):
      total += _used(user)
    elif user.code == 'tuple':  # a parameter is passed through
      total += 0 if op.code == 'parameter' else math.inf
    elif not (user.base in COLLECTIVES and _joins(user)):
      total += _read(user, i)
  return total


def _written(op: Op) -> list[float]:
  """The most elements that it writes of each result."""
  if op.base in _UPDATES:
    return [op.operands[_UPDATES[op.base]].results[0].size]
  if op.base == 'fusion':
    return [n for out in op.called().outputs for n in _written(out)]
  if op.code == 'parameter' or 'AsyncCollectiveDone' in op.rest or (
      op.base in COLLECTIVES and _joins(op)):
    return [0]
  if 'AsyncCollectiveStart' in op.rest:  # (operand, result, ...)
    return [0, math.inf]
  return [math.inf] * len(op.results)
