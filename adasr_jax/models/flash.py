"""Blockwise attention as a Pallas kernel for TPU: scores stay on the chip.

The same function as attention.blockwise, with the same limits and blocks: a
query reads the keys below its limit. Of a block of queries and one of keys
both kernels have the scores transposed, [keys, queries], so that what belongs
to a query (its limit, maximum, normaliser) is a row, which broadcasts over the
lanes for nothing.

On a mesh each device runs the kernel on its own prompts and key/value heads.

Source: FlashAttention-2 (arXiv 2307.08691); the form with all of dk and dv kept
on the chip is ours.
"""

from __future__ import annotations

import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adasr_jax import sharding

MASKED = -1e30  # finite: a query that reads nothing must not become NaN
VMEM = 60 * 2**20  # bytes; a core of v5p has 64 MiB, v5e and v6e have 128
MOST_KEYS = 2**21  # H times S, of which dk and dv are kept on the chip


def _dot(a, b, a_axis, b_axis):
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())),
                             preferred_element_type=jnp.float32)


def _readable(limit, j, block):
  """[keys, queries] bool of key block j; limit [1, queries]."""
  slots = j * block + jax.lax.broadcasted_iota(
      jnp.int32, (block, limit.shape[1]), 0)
  return slots < limit


def _forward_kernel(tops, limit, q, k, v, out, lse, top, norm, total):
  """One block of queries with one of keys: folds the keys into the scratch
  top and norm [1, queries] and total [H, queries]."""
  p, i, j = (pl.program_id(axis) for axis in (0, 2, 3))
  block, scale = k.shape[0], q.shape[1]**-0.5

  @pl.when(j == 0)
  def _():
    # Above the scores that do not count, so that their exponential is 0.
    top[...] = jnp.full_like(top, MASKED / 2)
    norm[...] = jnp.zeros_like(norm)
    total[...] = jnp.zeros_like(total)

  @pl.when(j * block < tops[p, i])
  def _():
    s = _dot(k[...], q[...], 1, 1) * scale
    s = jnp.where(_readable(limit[...], j, block), s, MASKED)
    new = jnp.maximum(top[...], s.max(0, keepdims=True))
    e = jnp.exp(s - new)
    shrink = jnp.exp(top[...] - new)
    total[...] = total[...] * shrink + _dot(v[...], e.astype(v.dtype), 0, 0)
    norm[...] = norm[...] * shrink + e.sum(0, keepdims=True)
    top[...] = new

  @pl.when(j == pl.num_programs(3) - 1)
  def _():
    some = norm[...] > 0
    safe = jnp.where(some, norm[...], 1.0)
    out[...] = (total[...] / safe).T
    lse[...] = jnp.where(some, top[...] + jnp.log(safe), MASKED)


def _backward_kernel(tops, limit, q, k, v, lse, shift, d_out, dq, dk, dv):
  """One block of queries with one of keys: adds to dq of the block and to dk
  and dv, which hold all keys."""
  p, i, j = (pl.program_id(axis) for axis in (0, 2, 3))
  block, scale = k.shape[0], q.shape[1]**-0.5

  @pl.when((i == 0) & (j == 0))
  def _():
    dk[...] = jnp.zeros_like(dk)
    dv[...] = jnp.zeros_like(dv)

  @pl.when(j == 0)
  def _():
    dq[...] = jnp.zeros_like(dq)

  @pl.when(j * block < tops[p, i])
  def _():
    s = _dot(k[...], q[...], 1, 1) * scale
    e = jnp.where(_readable(limit[...], j, block), jnp.exp(s - lse[...]), 0.0)
    ds = e * (_dot(v[...], d_out[...], 1, 1) - shift[...]) * scale
    ds = ds.astype(k.dtype)
    here = pl.ds(j * block, block)
    dq[...] += _dot(ds, k[...], 0, 0)
    dk[here, :] += _dot(ds, q[...], 1, 0)
    dv[here, :] += _dot(e.astype(v.dtype), d_out[...], 1, 0)


def _call(kernel, block, tops, limit, q, k, v, *more, outs, scratch=()):
  """The kernel for each prompt, head, block of queries and block of keys.

  Args:
    kernel: Of the above.
    block: Queries and keys at a time.
    tops: [P,Q/block] int32, how far the queries of each block read.
    limit: [P,1,Q] int32.
    q, k, v: [P,K,Q,H], [P,K,S,H], [P,K,S,H].
    *more: [P,K,Q,H] or [P,K,1,Q] each.
    outs: Names of results: 'queries' [P,K,Q,H], 'row' [P,K,1,Q], 'keys'
      [P,K,S,H]; float32.
    scratch: Shapes, float32.
  """
  P, K, Q, H = q.shape
  S = k.shape[2]
  grid = P, K, Q // block, S // block
  # Of a block that nobody reads, and so is not computed, nothing is fetched.
  last = lambda p, i, j, tops: jnp.minimum(
      j, jax.lax.div(jnp.maximum(tops[p, i] - 1, 0), block))
  specs = {
      'limit': pl.BlockSpec((None, 1, block), lambda p, h, i, j, t: (p, 0, i)),
      'queries': pl.BlockSpec((None, None, block, H),
                              lambda p, h, i, j, t: (p, h, i, 0)),
      'row': pl.BlockSpec((None, None, 1, block),
                          lambda p, h, i, j, t: (p, h, 0, i)),
      'block': pl.BlockSpec((None, None, block, H),
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
          num_scalar_prefetch=1, grid=grid,
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
  )(tops, limit, q, k, v, *more)


def _on_mesh(f, *args):
  """f on each device's part of [P, ...] and, but for the limits, [P, K, ...].

  A dimension that its axes do not divide stays whole, as in
  sharding.constrain.
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
def blocks(q, k, v, limit, block):
  """Attention of one part, and the logarithm of its normaliser.

  Args:
    q: [P,K,Q,H], Q a multiple of `block`.
    k, v: [P,K,S,H], S a multiple of `block`, S H at most MOST_KEYS.
    limit: [P,Q] int32.
    block: Queries and keys at a time.

  Returns:
    [P,K,Q,H] and [P,K,Q,1], float32; 0 and MASKED where nothing is read.

  Raises:
    ValueError: More keys than a chip can keep the gradients of.
  """
  return _blocks_forward(q, k, v, limit, block)[0]


def _tops(limit, block):
  return limit.reshape(limit.shape[0], -1, block).max(-1)


def _blocks_forward(q, k, v, limit, block):
  H, S = q.shape[3], k.shape[2]
  if S * H > MOST_KEYS:
    raise ValueError(
        f'pallas attention keeps the gradients of at most {MOST_KEYS // H:,} '
        f'keys of size {H} on a chip; these are {S:,} (use blockwise)')
  out, lse = _on_mesh(
      functools.partial(
          _call, _forward_kernel, block, outs=('queries', 'row'),
          scratch=((1, block), (1, block), (H, block))),
      _tops(limit, block), limit[:, None], q, k, v)
  return (out, lse.swapaxes(2, 3)), (q, k, v, limit, out, lse)


def _blocks_backward(block, saved, given):
  """As of attention's blocks, whose equations these are."""
  q, k, v, limit, out, lse = saved
  d_out, d_lse = given
  shift = (d_out * out).sum(-1) - d_lse[..., 0]  # [P,K,Q]
  grads = _on_mesh(
      functools.partial(_call, _backward_kernel, block,
                        outs=('queries', 'keys', 'keys')),
      _tops(limit, block), limit[:, None], q, k, v, lse, shift[:, :, None],
      d_out.astype(v.dtype))
  return *(g.astype(x.dtype) for g, x in zip(grads, (q, k, v))), None


blocks.defvjp(_blocks_forward, _blocks_backward)
