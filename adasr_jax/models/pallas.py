"""Attention as Pallas kernels for TPU: scores stay on the chip.

  blocks   many queries: the same function as attention's blockwise, with the
           same limits and blocks, and its gradient
  decode   one token per row, over the source and the cache of one layer. They
           are read in place from the stack of all layers: no layer is sliced
           out, and slots that are not written yet are not fetched

All kernels hold the scores of a block of queries and a block of keys
transposed, [keys, queries], so that what belongs to a query (its limit,
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

MASKED = -1e30  # finite: a query that reads nothing must not become NaN
VMEM = 60 * 2**20  # bytes; a core of v5p has 64 MiB, v5e and v6e have 128
MOST_KEYS = 2**14  # of H = 128, whose dk and dv are kept on the chip
DECODE_KEYS = 4096  # most that decoding folds in at once


def _dot(a, b, a_axis, b_axis):
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())),
                             preferred_element_type=jnp.float32)


def _mask(limit, j, block):
  """[keys, queries] bool: who reads key block j; limit [1, queries]."""
  slots = j * block + jax.lax.broadcasted_iota(
      jnp.int32, (block, limit.shape[1]), 0)
  return slots < limit


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


def _forward_kernel(limits, limit, q, k, v, out, lse, top, norm, total):
  """One block of queries with one block of keys."""
  p, i, j = (pl.program_id(axis) for axis in (0, 2, 3))
  block = k.shape[0]

  @pl.when(j == 0)
  def _():
    _start(top, norm, total)

  @pl.when(j * block < limits[p, i])
  def _():
    _fold(q[...], k[...], v[...], _mask(limit[...], j, block), top, norm,
          total)

  @pl.when(j == pl.num_programs(3) - 1)
  def _():
    some = norm[...] > 0
    safe = jnp.where(some, norm[...], 1.0)
    out[...] = (total[...] / safe).T
    lse[...] = jnp.where(some, top[...] + jnp.log(safe), MASKED)


def _backward_kernel(limits, limit, q, k, v, lse, shift, d_out, dq, dk, dv):
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

  @pl.when(j * block < limits[p, i])
  def _():
    s = _dot(k[...], q[...], 1, 1) * scale
    e = jnp.where(_mask(limit[...], j, block), jnp.exp(s - lse[...]), 0.0)
    ds = e * (_dot(v[...], d_out[...], 1, 1) - shift[...]) * scale
    ds = ds.astype(k.dtype)
    here = pl.ds(j * block, block)
    dq[...] += _dot(ds, k[...], 0, 0)
    dk[here, :] += _dot(ds, q[...], 1, 0)
    dv[here, :] += _dot(e.astype(v.dtype), d_out[...], 1, 0)


def _call(kernel, sizes, limits, limit, q, k, v, *more, outs, scratch=()):
  """Runs a kernel for each prompt, head, block of queries and block of keys.

  Args:
    kernel: One of the kernels above.
    sizes: Queries per block, keys per block.
    limits: [P,Q/sizes[0]] int32, the limit of each block of queries.
    limit: [P,1,Q] int32.
    q, k, v: [P,K,Q,H], [P,K,S,H], [P,K,S,H].
    *more: [P,K,Q,H] or [P,K,1,Q] each.
    outs: Kinds of the results: 'queries' [P,K,Q,H], 'row' [P,K,1,Q], 'keys'
      [P,K,S,H]; float32.
    scratch: Shapes, float32.
  """
  (P, K, Q, H), (block, keys) = q.shape, sizes
  S = k.shape[2]
  # A block that no query reads is not computed, and not fetched: the index
  # stays at the last block that is read.
  last = lambda p, i, j, limits: jnp.minimum(
      j, jax.lax.div(jnp.maximum(limits[p, i] - 1, 0), keys))
  specs = {
      'limit': pl.BlockSpec((None, 1, block), lambda p, h, i, j, t: (p, 0, i)),
      'queries': pl.BlockSpec((None, None, block, H),
                              lambda p, h, i, j, t: (p, h, i, 0)),
      'row': pl.BlockSpec((None, None, 1, block),
                          lambda p, h, i, j, t: (p, h, 0, i)),
      'block': pl.BlockSpec((None, None, keys, H),
                            lambda p, h, i, j, t: (p, h, last(p, i, j, t), 0)),
      'keys': pl.BlockSpec((None, None, S, H),
                           lambda p, h, i, j, t: (p, h, 0, 0))}
  shapes = {'queries': (P, K, Q, H), 'row': (P, K, 1, Q), 'keys': (P, K, S, H)}
  kinds = ['limit', 'queries', 'block', 'block'] + [
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
          in_specs=[specs[name] for name in kinds],
          out_specs=[specs[name] for name in outs],
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32)
                          for shape in scratch]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary',
                               'arbitrary'), vmem_limit_bytes=VMEM),
      cost_estimate=pl.CostEstimate(
          flops=products * 2 * P * K * Q * S * H,
          transcendentals=P * K * Q * S, bytes_accessed=moved),
  )(limits, limit, q, k, v, *more)


def _on_mesh(f, *args):
  """f on each device's part of the arguments.

  The first two are limits [P, ...], the others [P, K, ...]. A dimension that
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
def blocks(q, k, v, limit, sizes):
  """Attention over one part, and the logarithm of its normaliser (lse).

  Args:
    q: [P,K,Q,H], Q a multiple of sizes[0].
    k, v: [P,K,S,H], S a multiple of sizes[1], for a gradient at most
      most_keys(H).
    limit: [P,Q] int32.
    sizes: Queries per block, keys per block; multiples of 128.

  Returns:
    [P,K,Q,H] and [P,K,Q,1], float32; 0 and MASKED where nothing is read.

  Raises:
    ValueError: A gradient with more than most_keys(H) keys.
  """
  return _forward(q, k, v, limit, sizes)[0]


def most_keys(H: int) -> int:
  """How many keys of size H a part may have so that dk and dv fit the chip."""
  return MOST_KEYS // -(-H // 128)  # a key fills whole rows of 128 lanes


def pieces(k, v, limit):
  """A part of attention.attend as parts of at most most_keys keys each."""
  S, most = k.shape[2], most_keys(k.shape[3])
  return [(k[:, :, i:i + most], v[:, :, i:i + most], limit - i)
          for i in range(0, S, most)]


def _block_limits(limit, block):
  """[P, Q / block] int32, the limit of each block of queries."""
  return limit.reshape(limit.shape[0], -1, block).max(-1)


def _forward(q, k, v, limit, sizes):
  block, H = sizes[0], q.shape[3]
  out, lse = _on_mesh(
      functools.partial(
          _call, _forward_kernel, sizes, outs=('queries', 'row'),
          scratch=((1, block), (1, block), (H, block))),
      _block_limits(limit, block), limit[:, None], q, k, v)
  return (out, lse.swapaxes(2, 3)), (q, k, v, limit, out, lse)


def _blocks_forward(q, k, v, limit, sizes):
  if k.shape[2] > most_keys(k.shape[3]):
    raise ValueError(f'gradients of {k.shape[2]:,} keys do not fit a chip')
  return _forward(q, k, v, limit, sizes)


def _blocks_backward(sizes, saved, given):
  """By the equations of attention._blocks_backward."""
  q, k, v, limit, out, lse = saved
  d_out, d_lse = given
  shift = (d_out * out).sum(-1) - d_lse[..., 0]  # [P,K,Q]
  grads = _on_mesh(
      functools.partial(_call, _backward_kernel, sizes,
                        outs=('queries', 'keys', 'keys')),
      _block_limits(limit, sizes[0]), limit[:, None], q, k, v, lse,
      shift[:, :, None], d_out.astype(v.dtype))
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


def _decode_kernel(at, limits, limit, owner, q, k, v, own_k, own_v, out, top,
                   norm, total, *, sources):
  """All queries of a prompt and head with one block of keys.

  The first `sources` blocks are the source's. The others hold the own keys of
  all rows of the prompt; a query reads those of its own row.
  """
  p, j = pl.program_id(0), pl.program_id(2)
  rows, block, _ = own_k.shape
  i, slot = j - sources, at[1]  # block of the cache

  @pl.when(j == 0)
  def _():
    _start(top, norm, total)

  @pl.when((j < sources) & (j * k.shape[0] < limits[p]))
  def _():
    _fold(q[...], k[...], v[...], _mask(limit[...], j, k.shape[0]), top, norm,
          total)

  @pl.when((i >= 0) & (i * block <= slot))
  def _():
    iota = functools.partial(jax.lax.broadcasted_iota, jnp.int32,
                             (rows, block, q.shape[0]))
    mask = (iota(0) == owner[...][None]) & (i * block + iota(1) <= slot)
    flat = lambda x: x.reshape(rows * block, -1)
    # Slots that are not written hold zeros.
    _fold(q[...], flat(own_k[...]), flat(own_v[...]), flat(mask), top, norm,
          total)

  @pl.when(j == pl.num_programs(2) - 1)
  def _():
    out[...] = (total[...] / jnp.maximum(norm[...], 1e-30)).T.astype(out.dtype)


def decode(q: jax.Array, context: tuple[jax.Array, jax.Array],
           cache: tuple[jax.Array, jax.Array], layer: jax.Array,
           context_limit: jax.Array, slot: jax.Array) -> jax.Array:
  """Attention of one token per row, the last one in the cache.

  Args:
    q: [B, 1, N, H].
    context: Keys and values of the source, [L, P, K, S, H]; P divides B, and S
      is the product of some decode_blocks(_, 1). On a mesh the devices that
      rows are split over divide P.
    cache: Keys and values of the target, [L, B, K, S', H]; S' is the product
      of some decode_blocks(_, B / P). Zero where not yet written.
    layer: [] int32, index along L.
    context_limit: [B] int32; source slots below it are read.
    slot: [] int32; target slots up to it are read.

  Returns:
    [B, 1, N, H] in q's dtype.
  """
  (B, _, N, H), (_, P, K, _, _) = q.shape, context[0].shape
  G, R = B // P, N // K
  fill = ((0, 0), (0, 0), (0, -G * R % 8))  # of queries, which own no key
  queries = jnp.pad(q.reshape(P, G, K, R, H).swapaxes(1, 2).reshape(
      P, K, G * R, H), (*fill, (0, 0)))
  limit = jnp.pad(jnp.repeat(context_limit.reshape(P, 1, G), R, 2), fill)
  owner = jnp.pad(jnp.repeat(jnp.arange(G), R), fill[2], constant_values=-1)
  run = _decode
  if not jax.sharding.get_abstract_mesh().empty:
    spec = PartitionSpec
    rows, heads = sharding.ROWS, 'tensor'
    stack = spec(None, rows, heads)
    run = jax.shard_map(
        _decode, in_specs=(spec(), spec(rows), spec(), spec(rows, heads),
                           stack, stack, stack, stack),
        out_specs=spec(rows, heads), check_vma=False)
  out = run(jnp.stack([layer, slot]), limit, owner[None], queries, *context,
            *cache)[:, :, :G * R]
  return out.reshape(P, K, G, R, H).swapaxes(1, 2).reshape(B, 1, N, H)


def _decode(at, limit, owner, q, k, v, own_k, own_v):
  P, K, Q, H = q.shape
  L, S = k.shape[0], k.shape[3]
  G, T = own_k.shape[1] // P, own_k.shape[3]
  own_k, own_v = (a.reshape(L, P, G, K, T, H) for a in (own_k, own_v))
  (sources, block), (owns, own) = decode_blocks(S, 1), decode_blocks(T, G)
  if (sources * block, owns * own) != (S, T):
    raise ValueError(f'{S} source and {T} target slots are not whole blocks')
  # What is not read is not fetched.
  source = pl.BlockSpec((None, None, None, block, H), lambda p, h, j, at, t: (
      at[0], p, h, jnp.minimum(
          j, jax.lax.div(jnp.maximum(t[p] - 1, 0), block)), 0))
  row = pl.BlockSpec((None, None, G, None, own, H), lambda p, h, j, at, t: (
      at[0], p, 0, h, jnp.clip(j - sources, 0, jax.lax.div(at[1], own)), 0))
  queries = pl.BlockSpec((None, None, Q, H),
                         lambda p, h, j, at, t: (p, h, 0, 0))
  keys = S + G * T
  return pl.pallas_call(
      functools.partial(_decode_kernel, sources=sources),
      out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=2, grid=(P, K, sources + owns),
          in_specs=[
              pl.BlockSpec((None, 1, Q), lambda p, h, j, at, t: (p, 0, 0)),
              pl.BlockSpec((1, Q), lambda p, h, j, at, t: (0, 0)), queries,
              source, source, row, row],
          out_specs=queries,
          scratch_shapes=[pltpu.VMEM(shape, jnp.float32)
                          for shape in ((1, Q), (1, Q), (H, Q))]),
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary'),
          vmem_limit_bytes=VMEM),
      cost_estimate=pl.CostEstimate(
          flops=4 * P * K * Q * keys * H, transcendentals=P * K * Q * keys,
          bytes_accessed=2 * P * K * keys * H * k.dtype.itemsize),
  )(at, limit.max((1, 2)), limit, owner, q, k, v, own_k, own_v)
