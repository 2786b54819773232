"""Attention as Pallas kernels for TPU: scores stay on the chip.

  blocks   many queries: the same function as attention's blockwise, with the
           same intervals and blocks, and its gradient
  decode   one token per row, over the source and the cache of one layer. They
           are read in place from the stack of all layers: no layer is sliced
           out, and blocks of slots that nobody reads are not fetched
  write    the keys and values of one token per row, in place in that stack

All kernels hold the scores of a block of queries and a block of keys
transposed, [keys, queries], so that what belongs to a query (its interval,
maximum, normaliser) is a row, which broadcasts at no cost.

On a mesh each device runs the kernel on its own prompts and key/value heads.

Source: FlashAttention-2 (arXiv 2307.08691); keeping all of dk and dv on the
chip is ours.
"""

from __future__ import annotations

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adasr_jax.core import sharding
from adasr_jax.core.visibility import Interval

MASKED = -1e30  # finite: a query that reads nothing must not become NaN
VMEM = 60 * 2**20  # bytes; a core of v5p has 64 MiB, v5e and v6e have 128
MOST_KEYS = 2**14  # of H = 128, whose dk and dv are kept on the chip
DECODE_KEYS = 4096  # most that decoding folds in at once
WRITE_ROWS = 32  # whose tiles are on the chip at once, if it divides the rows


def _dot(a, b, a_axis, b_axis):
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())),
                             preferred_element_type=jnp.float32)


def union(read: Interval, axes: int | tuple[int, ...]) -> Interval:
  """The least interval that holds those along `axes`; (0, or large) if none."""
  if read.start is None:
    return Interval(read.limit.max(axes))
  some = read.start < read.limit
  most = jnp.iinfo(jnp.int32).max
  return Interval(jnp.where(some, read.limit, 0).max(axes),
                  jnp.where(some, read.start, most).min(axes))


def at(bounds: Interval, index) -> Interval:
  """The interval at an index, of arrays or of references to them."""
  return jax.tree.map(lambda x: x[index], bounds)


def reads(bounds: Interval, j, block: int):
  """[] bool: whether key block j has slots of an interval of scalars."""
  below = j * block < bounds.limit
  return below if bounds.start is None else (
      below & ((j + 1) * block > bounds.start))


def _fetched(bounds, j, block):
  """Key block j, or the nearest that is read: others are not fetched."""
  if bounds.start is not None:
    j = jnp.maximum(j, jax.lax.div(bounds.start, block))
  return jnp.minimum(
      j, jax.lax.div(jnp.maximum(bounds.limit - 1, 0), block))


def _within(read, slots):
  """Which slots, [..., keys, queries], are read; read [..., 1, queries]."""
  mask = slots < read.limit
  return mask if read.start is None else mask & (slots >= read.start)


def _mask(read, j, block):
  """[keys, queries] bool: who reads key block j; read [1, queries]."""
  read = at(read, ...)
  return _within(read, j * block + jax.lax.broadcasted_iota(
      jnp.int32, (block, read.limit.shape[1]), 0))


def _start(top, norm, total):
  """The scratch before any key."""
  # Above masked scores, so that their exponential is 0.
  top[...] = jnp.full_like(top, MASKED / 2)
  norm[...] = jnp.zeros_like(norm)
  total[...] = jnp.zeros_like(total)


def _fold(q, k, v, mask, top, norm, total):
  """Folds keys into the scratch of a block of queries.

  Args:
    q, k, v: [queries, H], [keys, H], [keys, H].
    mask: [keys, queries] bool.
    top, norm: [1, queries], the highest score and the normaliser so far.
    total: [H, queries], the unnormalised output so far.
  """
  s = jnp.where(mask, _dot(k, q, 1, 1) * q.shape[1]**-0.5, MASKED)
  new = jnp.maximum(top[...], s.max(0, keepdims=True))
  e = jnp.exp(s - new)
  shrink = jnp.exp(top[...] - new)
  total[...] = total[...] * shrink + _dot(v, e.astype(v.dtype), 0, 0)
  norm[...] = norm[...] * shrink + e.sum(0, keepdims=True)
  top[...] = new


def _forward_kernel(bounds, read, q, k, v, out, lse, top, norm, total):
  """One block of queries with one block of keys."""
  p, i, j = (pl.program_id(axis) for axis in (0, 2, 3))
  block = k.shape[0]

  @pl.when(j == 0)
  def _():
    _start(top, norm, total)

  @pl.when(reads(at(bounds, (p, i)), j, block))
  def _():
    _fold(q[...], k[...], v[...], _mask(read, j, block), top, norm, total)

  @pl.when(j == pl.num_programs(3) - 1)
  def _():
    some = norm[...] > 0
    safe = jnp.where(some, norm[...], 1.0)
    out[...] = (total[...] / safe).T
    lse[...] = jnp.where(some, top[...] + jnp.log(safe), MASKED)


def _backward_kernel(bounds, read, q, k, v, lse, shift, d_out, dq, dk, dv):
  """One block of queries with one block of keys.

  Adds to dq of the block, and to dk and dv, which hold all keys.
  """
  p, i, j = (pl.program_id(axis) for axis in (0, 2, 3))
  block, scale = k.shape[0], q.shape[1]**-0.5

  @pl.when((i == 0) & (j == 0))
  def _():
    dk[...] = jnp.zeros_like(dk)
    dv[...] = jnp.zeros_like(dv)

  @pl.when(j == 0)
  def _():
    dq[...] = jnp.zeros_like(dq)

  @pl.when(reads(at(bounds, (p, i)), j, block))
  def _():
    s = _dot(k[...], q[...], 1, 1) * scale
    e = jnp.where(_mask(read, j, block), jnp.exp(s - lse[...]), 0.0)
    ds = e * (_dot(v[...], d_out[...], 1, 1) - shift[...]) * scale
    ds = ds.astype(k.dtype)
    here = pl.ds(j * block, block)
    dq[...] += _dot(ds, k[...], 0, 0)
    dk[here, :] += _dot(ds, q[...], 1, 0)
    dv[here, :] += _dot(e.astype(v.dtype), d_out[...], 1, 0)


def _call(kernel, sizes, bounds, read, q, k, v, *more, outs, scratch=()):
  """Runs a kernel for each prompt, head, block of queries and block of keys.

  Args:
    kernel: One of the kernels above.
    sizes: Queries per block, keys per block.
    bounds: [P,Q/sizes[0]] each, what a block of queries reads.
    read: [P,1,Q] each.
    q, k, v: [P,K,Q,H], [P,K,S,H], [P,K,S,H].
    *more: [P,K,Q,H] or [P,K,1,Q] each.
    outs: Kinds of the results: 'queries' [P,K,Q,H], 'row' [P,K,1,Q], 'keys'
      [P,K,S,H]; float32.
    scratch: Shapes, float32.
  """
  (P, K, Q, H), (block, keys) = q.shape, sizes
  S = k.shape[2]
  specs = {
      'read': pl.BlockSpec((None, 1, block), lambda p, h, i, j, t: (p, 0, i)),
      'queries': pl.BlockSpec((None, None, block, H),
                              lambda p, h, i, j, t: (p, h, i, 0)),
      'row': pl.BlockSpec((None, None, 1, block),
                          lambda p, h, i, j, t: (p, h, 0, i)),
      'block': pl.BlockSpec((None, None, keys, H),
                            lambda p, h, i, j, t: (
                                p, h, _fetched(at(t, (p, i)), j, keys), 0)),
      'keys': pl.BlockSpec((None, None, S, H),
                           lambda p, h, i, j, t: (p, h, 0, 0))}
  shapes = {'queries': (P, K, Q, H), 'row': (P, K, 1, Q), 'keys': (P, K, S, H)}
  kinds = ['queries', 'block', 'block'] + [
      'row' if x.shape[2] == 1 else 'queries' for x in more]
  products = 2 if 'keys' not in outs else 5
  moved = sum(x.size * x.dtype.itemsize for x in (q, *more)) + (
      Q // block) * sum(x.size * x.dtype.itemsize for x in (k, v)) + sum(
          4 * math.prod(shapes[name]) for name in outs)
  return pl.pallas_call(
      kernel, out_shape=[jax.ShapeDtypeStruct(shapes[name], jnp.float32)
                         for name in outs],
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=1, grid=(P, K, Q // block, S // keys),
          in_specs=[jax.tree.map(lambda _: specs['read'], read),
                    *(specs[name] for name in kinds)],
          out_specs=[specs[name] for name in outs],
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32)
                          for shape in scratch]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary',
                               'arbitrary'), vmem_limit_bytes=VMEM),
      cost_estimate=pl.CostEstimate(
          flops=products * 2 * P * K * Q * S * H,
          transcendentals=P * K * Q * S, bytes_accessed=moved),
  )(bounds, read, q, k, v, *more)


def _on_mesh(f, *args):
  """f on each device's part of the arguments.

  The first two are intervals [P, ...], the others [P, K, ...]. A dimension that
  its mesh axes do not divide stays whole, as in sharding.constrain.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return f(*args)
  P, K = args[2].shape[:2]
  rows = sharding.ROWS if P % sharding.row_ways() == 0 else None
  heads = 'tensor' if K % mesh.shape['tensor'] == 0 else None
  spec = lambda n: PartitionSpec(*(rows, heads)[:n])
  return jax.shard_map(
      f, in_specs=(spec(1), spec(1)) + (spec(2),) * (len(args) - 2),
      out_specs=spec(2), check_vma=False)(*args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blocks(q, k, v, read, sizes):
  """Attention over one part, and the logarithm of its normaliser (lse).

  Args:
    q: [P,K,Q,H], Q a multiple of sizes[0].
    k, v: [P,K,S,H], S a multiple of sizes[1], for a gradient at most
      most_keys(H).
    read: An Interval of [P,Q].
    sizes: Queries per block, keys per block; multiples of 128.

  Returns:
    [P,K,Q,H] and [P,K,Q,1], float32; 0 and MASKED where nothing is read.

  Raises:
    ValueError: A gradient with more than most_keys(H) keys.
  """
  return _forward(q, k, v, read, sizes)[0]


def most_keys(H: int) -> int:
  """How many keys of size H a part may have so that dk and dv fit the chip."""
  return MOST_KEYS // -(-H // 128)  # a key fills whole rows of 128 lanes


def pieces(k, v, read):
  """A part of attention.attend as parts of at most most_keys keys each."""
  S, most = k.shape[2], most_keys(k.shape[3])
  return [(k[:, :, i:i + most], v[:, :, i:i + most],
           jax.tree.map(lambda x: x - i, read)) for i in range(0, S, most)]


def _reading(read, block):
  """The first arguments of _call, of the Interval of [P,Q]."""
  return (union(jax.tree.map(
      lambda x: x.reshape(x.shape[0], -1, block), read), 2),
          jax.tree.map(lambda x: x[:, None], read))


def _forward(q, k, v, read, sizes):
  block, H = sizes[0], q.shape[3]
  out, lse = _on_mesh(
      functools.partial(
          _call, _forward_kernel, sizes, outs=('queries', 'row'),
          scratch=((1, block), (1, block), (H, block))),
      *_reading(read, block), q, k, v)
  return (out, lse.swapaxes(2, 3)), (q, k, v, read, out, lse)


def _blocks_forward(q, k, v, read, sizes):
  if k.shape[2] > most_keys(k.shape[3]):
    raise ValueError(f'gradients of {k.shape[2]:,} keys do not fit a chip')
  return _forward(q, k, v, read, sizes)


def _blocks_backward(sizes, saved, given):
  """By the equations of attention._blocks_backward."""
  q, k, v, read, out, lse = saved
  d_out, d_lse = given
  shift = (d_out * out).sum(-1) - d_lse[..., 0]  # [P,K,Q]
  grads = _on_mesh(
      functools.partial(_call, _backward_kernel, sizes,
                        outs=('queries', 'keys', 'keys')),
      *_reading(read, sizes[0]), q, k, v, lse, shift[:, :, None],
      d_out.astype(v.dtype))
  return *(g.astype(x.dtype) for g, x in zip(grads, (q, k, v))), None


blocks.defvjp(_blocks_forward, _blocks_backward)


# ----------------------------------------------------------------- decoding
def decode_blocks(slots: int, rows: int) -> tuple[int, int]:
  """How many blocks decoding reads a buffer in, and slots per block.

  Args:
    slots: Slots that are needed; the buffer must have the product of the two
      results, which is at least this.
    rows: Rows that are read together: samples per prompt, or 1 for the source.
  """
  most = max(DECODE_KEYS // rows // 16, 1) * 16
  count = -(-slots // most)
  return count, -(-slots // count // 16) * 16


def _decode_kernel(layer, source_bounds, bounds, source, read, owner, q, k, v,
                   own_k, own_v, out, top, norm, total, *, sources):
  """All queries of a prompt and head with one block of keys.

  The first `sources` blocks are the source's. The others hold the own keys of
  all rows of the prompt; a query reads those of its own row.
  """
  p, j = pl.program_id(0), pl.program_id(2)
  rows, block, _ = own_k.shape
  i = j - sources  # block of the cache

  @pl.when(j == 0)
  def _():
    _start(top, norm, total)

  @pl.when((j < sources) & reads(at(source_bounds, p), j, k.shape[0]))
  def _():
    _fold(q[...], k[...], v[...], _mask(source, j, k.shape[0]), top, norm,
          total)

  @pl.when((i >= 0) & reads(at(bounds, p), i, block))
  def _():
    iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32,
                             (rows, block, q.shape[0]))
    mask = (iota(0) == owner[...][None]) & _within(
        jax.tree.map(lambda x: x[...][None], read), i * block + iota(1))
    flat = lambda x: x.reshape(rows * block, -1)
    # What other slots hold is finite, and weighs 0.
    _fold(q[...], flat(own_k[...]), flat(own_v[...]), flat(mask), top, norm,
          total)

  @pl.when(j == pl.num_programs(2) - 1)
  def _():
    out[...] = (total[...] / jnp.maximum(norm[...], 1e-30)).T.astype(out.dtype)


def _on_stacks(f, ins, outs):
  """f on each device's part: of 'rows' [P or B, ...], 'heads' [P or B, K, ...],
  a 'stack' [L, P or B, K, ...], or all of it (None)."""
  if jax.sharding.get_abstract_mesh().empty:
    return f
  spec = PartitionSpec
  specs = {'rows': spec(sharding.ROWS), 'heads': spec(sharding.ROWS, 'tensor'),
           'stack': spec(None, sharding.ROWS, 'tensor'), None: spec()}
  of = lambda kinds: tuple(specs[kind] for kind in kinds)
  return jax.shard_map(f, in_specs=of(ins), out_specs=of(outs),
                       check_vma=False)


def decode(q: jax.Array, context: tuple[jax.Array, jax.Array],
           cache: tuple[jax.Array, jax.Array], layer: jax.Array,
           context_limit: jax.Array, read: Interval) -> jax.Array:
  """Attention of one token per row, over the source and its row of the cache.

  Args:
    q: [B, 1, N, H].
    context: Keys and values of the source, [L, P, K, S, H]; P divides B, and S
      is the product of some decode_blocks(_, 1). On a mesh the devices that
      rows are split over divide P.
    cache: Keys and values of the target, [L, B, K, S', H]; S' is the product
      of some decode_blocks(_, B / P). All finite, also where not yet written.
    layer: [] int32, index along L.
    context_limit: [B] int32; source slots below it are read.
    read: [B] each, the target slots that are read.

  Returns:
    [B, 1, N, H] in q's dtype; zero where a row reads nothing.
  """
  (B, _, N, H), (_, P, K, _, _) = q.shape, context[0].shape
  G, R = B // P, N // K
  fill = ((0, 0), (0, 0), (0, -G * R % 8))  # of queries, which own no key
  queries = jnp.pad(q.reshape(P, G, K, R, H).swapaxes(1, 2).reshape(
      P, K, G * R, H), (*fill, (0, 0)))
  source, read = jax.tree.map(
      lambda x: jnp.pad(jnp.repeat(x.reshape(P, 1, G), R, 2), fill),
      (Interval(context_limit), read))
  owner = jnp.pad(jnp.repeat(jnp.arange(G), R), fill[2], constant_values=-1)
  run = _on_stacks(_decode, [None, 'rows', 'rows', None, 'heads']
                   + ['stack'] * 4, ['heads'])
  out, = run(layer[None], source, read, owner[None], queries, *context, *cache)
  return out[:, :, :G * R].reshape(P, K, G, R, H).swapaxes(1, 2).reshape(
      B, 1, N, H)


def _decode(layer, source, read, owner, q, k, v, own_k, own_v):
  P, K, Q, H = q.shape
  L, S = k.shape[0], k.shape[3]
  G, T = own_k.shape[1] // P, own_k.shape[3]
  own_k, own_v = (a.reshape(L, P, G, K, T, H) for a in (own_k, own_v))
  (sources, block), (owns, own) = decode_blocks(S, 1), decode_blocks(T, G)
  if (sources * block, owns * own) != (S, T):
    raise ValueError(f'{S} source and {T} target slots are not whole blocks')
  keys = pl.BlockSpec(
      (None, None, None, block, H), lambda p, h, j, layer, source, _: (
          layer[0], p, h, _fetched(at(source, p), j, block), 0))
  row = pl.BlockSpec(
      (None, None, G, None, own, H), lambda p, h, j, layer, _, read: (
          layer[0], p, 0, h,
          _fetched(at(read, p), jnp.maximum(j - sources, 0), own), 0))
  queries = pl.BlockSpec((None, None, Q, H), lambda p, h, j, *_: (p, h, 0, 0))
  interval = pl.BlockSpec((None, 1, Q), lambda p, h, j, *_: (p, 0, 0))
  total = S + G * T
  return pl.pallas_call(
      functools.partial(_decode_kernel, sources=sources),
      out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype)],
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=3, grid=(P, K, sources + owns),
          in_specs=[
              *jax.tree.map(lambda _: interval, (source, read)),
              pl.BlockSpec((1, Q), lambda p, h, j, *_: (0, 0)), queries,
              keys, keys, row, row],
          out_specs=[queries],
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32)
                          for shape in ((1, Q), (1, Q), (H, Q))]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary'),
          vmem_limit_bytes=VMEM),
      cost_estimate=pl.CostEstimate(
          flops=4 * P * K * Q * total * H, transcendentals=P * K * Q * total,
          bytes_accessed=2 * P * K * total * H * k.dtype.itemsize),
  )(layer, union(source, (1, 2)), union(read, (1, 2)), source, read, owner, q,
    k, v, own_k, own_v)


# ------------------------------------------------------------------ writing
def _write_kernel(layer, slots, new_k, new_v, _k, _v, keys, values, tile_k,
                  tile_v, moved):
  """Some rows: whole tiles come, one slot of each is replaced, and they go."""
  rows, _, tile, _ = tile_k.shape
  first = pl.program_id(0) * rows

  def copies(r, back):
    b = first + r
    start = pl.multiple_of(slots[b] // tile * tile, tile)
    for i, (stack, here) in enumerate(((keys, tile_k), (values, tile_v))):
      pair = stack.at[layer[0], b, :, pl.ds(start, tile)], here.at[r]
      yield pltpu.make_async_copy(*pair[::-1 if back else 1], moved.at[i, r])

  def each(f):
    jax.lax.fori_loop(0, rows, lambda r, _: f(r), None)

  def come(r):
    for copy in copies(r, False):
      copy.start()

  def replace(r):
    for copy in copies(r, False):
      copy.wait()
    for new, here in ((new_k, tile_k), (new_v, tile_v)):
      slot = jax.lax.broadcasted_iota(jnp.int32, here.shape[1:], 1)
      here[r] = jnp.where(slot == slots[first + r] % tile, new[r], here[r])
    for copy in copies(r, True):
      copy.start()

  def gone(r):
    for copy in copies(r, True):
      copy.wait()

  each(come)
  each(replace)
  each(gone)


def write(cache: tuple[jax.Array, jax.Array],
          new: tuple[jax.Array, jax.Array], layer: jax.Array,
          slot: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The cache with one more token per row, each at a slot of its own.

  On TPU it is written in place; a scatter would be slow.

  Args:
    cache: Keys and values, [L, B, K, S', H]; S' is a multiple of 16. On a mesh
      the devices that rows are split over divide B.
    new: Keys and values of the token, [B, K, 1, H].
    layer: [] int32, index along L.
    slot: [B] int32; 0 <= slot < S'.

  Returns:
    The new cache.

  Raises:
    ValueError: S' is not whole tiles.
  """
  run = _on_stacks(_write, [None, 'rows', 'heads', 'heads', 'stack', 'stack'],
                   ['stack', 'stack'])
  return run(layer[None], slot, *new, *cache)


def _write(layer, slot, new_k, new_v, keys, values):
  B, K, _, H = new_k.shape
  tile = 32 // keys.dtype.itemsize  # slots; less is not moved by itself
  if keys.shape[3] % tile:
    raise ValueError(f'{keys.shape[3]} slots are not whole tiles of {tile}')
  rows = math.gcd(B, WRITE_ROWS)
  one = pl.BlockSpec((rows, K, 1, H), lambda i, *_: (i, 0, 0, 0))
  stack = pl.BlockSpec(memory_space=pl.ANY)
  tiles = pltpu.VMEM((rows, K, tile, H), keys.dtype)
  return pl.pallas_call(
      _write_kernel,
      out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype)
                 for a in (keys, values)],
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2, grid=(B // rows,),
          in_specs=[one, one, stack, stack], out_specs=[stack, stack],
          scratch_shapes=[tiles, tiles,
                          pltpu.SemaphoreType.DMA((2, rows))]),
      input_output_aliases={4: 0, 5: 1},
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel',), vmem_limit_bytes=VMEM),
      cost_estimate=pl.CostEstimate(
          flops=0, transcendentals=0,
          bytes_accessed=4 * B * K * tile * H * keys.dtype.itemsize),
  )(layer, slot, new_k.astype(keys.dtype), new_v.astype(values.dtype), keys,
    values)
