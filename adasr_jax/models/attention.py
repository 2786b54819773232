"""Attention over several key/value buffers that are never merged.

A target query reads the source buffer of its prompt and its own target
buffer. Softmax over both needs of each buffer i only a Partial: its output
o_i, the logarithm m_i of their scale, and its weight l_i:

  M = max_i m_i,  out = sum_i e^(m_i - M) o_i / sum_i e^(m_i - M) l_i

so no buffer is ever concatenated or copied, and the G samples of one prompt
read one copy of its source.

A query reads an interval of slots of each buffer. The kernels:

  einsum     the scores of all queries and keys at once: the reference, fast
             for short buffers
  blockwise  BLOCK queries by BLOCK keys at a time, with a backward pass of its
             own that recomputes the scores: nothing of the size of queries
             times keys is ever kept. Blocks that no query may read are not
             computed. As FlashAttention-2 (arXiv 2307.08691).
  pallas     the same on TPU, with the scores of a block on the chip: pallas.py
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adasr_jax.core import sharding
from adasr_jax.core.types import Array
from adasr_jax.core.visibility import Interval
from adasr_jax.models import pallas

MASKED = pallas.MASKED
BLOCK = 1024  # most queries (of all samples and heads of a group), most keys
KERNELS = ('auto', 'einsum', 'blockwise', 'pallas')
AUTO = {'cpu': 'einsum', 'gpu': 'blockwise', 'tpu': 'pallas'}


class Partial(NamedTuple):
  """Attention over one part of the keys, to be merged with that over others.

  For a query that reads keys of scores s and values v,

    sum e^s v = e^log_scale * output   and   sum e^s = e^log_scale * weight

  where each kernel chooses the scale. Float32.

  Attributes:
    output: [B, T, N, H].
    log_scale: [B, T, N, 1]; at most MASKED / 2 where nothing is read.
    weight: [B, T, N, 1]; 0 where nothing is read.
  """
  output: Array
  log_scale: Array
  weight: Array


def choose(kernel: str) -> str:
  """The kernel to use: 'auto' goes by the platform of the mesh.

  Raises:
    ValueError: The kernel is unknown, or not for this platform.
  """
  if kernel not in KERNELS:
    raise ValueError(f'attention={kernel!r} is not one of '
                     f'{", ".join(KERNELS)}')
  platform = sharding.platform()
  auto = AUTO.get(platform, 'blockwise')
  if kernel == 'pallas' and auto != 'pallas':
    raise ValueError(f'attention={kernel!r} is for tpu, this is {platform}')
  return auto if kernel == 'auto' else kernel


def _grouped(q, P, K):
  """[B,T,N,H] -> [P,K,G*T*R,H]: queries that share a matrix product."""
  B, T, N, H = q.shape
  q = q.reshape(P, B // P, T, K, N // K, H).transpose(0, 3, 1, 2, 4, 5)
  return q.reshape(P, K, -1, H)


def _rows(x, B, T):
  """[P,K,G*T*R,H] -> [B,T,N,H], the inverse."""
  P, K, Q, H = x.shape
  G = B // P
  x = x.reshape(P, K, G, T, Q // (G * T), H)
  return x.transpose(0, 2, 3, 1, 4, 5).reshape(B, T, -1, H)


# ------------------------------------------------------------------- einsum
def _einsum(q, k, v, read):
  """The Partial of one part, in the scale of each query's highest score.

  Args:
    q, k, v, read: See attend.
  """
  B, T, N, H = q.shape
  P, K, S, _ = k.shape
  G, R = B // P, N // K
  s = jnp.einsum('pkqh,pksh->pkqs', _grouped(q, P, K), k,
                 preferred_element_type=jnp.float32) * H**-0.5
  mask = read
  if isinstance(read, Interval):
    slots = jnp.arange(S)[None, None]
    mask = slots < read.limit[..., None]
    if read.start is not None:
      mask &= slots >= read.start[..., None]
  # Added, not selected: XLA would keep a whole array of each masked value. The
  # scale is above masked scores, so that their exponential is 0.
  mask = jnp.where(mask, 0.0, MASKED).reshape(P, 1, G, T, 1, S)
  s = s.reshape(P, K, G, T, R, S) + mask
  m = jax.lax.stop_gradient(
      jnp.maximum(s.max(-1, keepdims=True), MASKED / 2))
  e = jnp.exp(s - m)  # [P,K,G,T,R,S]
  o = jnp.einsum('pkqs,pksh->pkqh',
                 e.reshape(P, K, G * T * R, S).astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
  rows = lambda x: _rows(x.reshape(P, K, G * T * R, -1), B, T)
  return Partial(rows(o), rows(m), rows(e.sum(-1)))


# ---------------------------------------------------------------- blockwise
def _pad(x, axis, block):
  """x with `axis` padded with zeros to a multiple of `block`."""
  width = [(0, 0)] * x.ndim
  width[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, width)


def _cut(x, axis, i, block):
  return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis)


def _cut_read(read, i, block):
  return jax.tree.map(lambda x: _cut(x, 1, i, block), read)


def _scores(q, k, read, j):
  """[P,K,Q,S] float32 of key block j, and which of them count."""
  s = jnp.einsum('pkqh,pksh->pkqs', q, k,
                 preferred_element_type=jnp.float32) * q.shape[-1]**-0.5
  block = k.shape[2]
  slots = j * block + jnp.arange(block)[None, None, None]
  mask = slots < read.limit[:, None, :, None]
  if read.start is not None:
    mask &= slots >= read.start[:, None, :, None]
  return jnp.where(mask, s, MASKED), mask


def _blocks_read(read, block):
  """[Q / block] each: what the queries of a block, of all prompts, read."""
  return pallas.union(jax.tree.map(
      lambda x: x.reshape(x.shape[0], -1, block), read), (0, 2))


def _tied(q, read):
  """Both, with read as if it depended on q.

  The masks depend only on read, so JAX would otherwise compute them once for
  all layers and keep them: a dense mask in memory.
  """
  return jax.lax.optimization_barrier((q, read))


def _over_keys(bounds, i, count, block, body, carry):
  """Folds body(j, carry) over the key blocks that block i of queries reads."""
  bounds = pallas.at(bounds, i)
  step = lambda j, carry: jax.lax.cond(
      pallas.reads(bounds, j, block), lambda c: body(j, c), lambda c: c, carry)
  return jax.lax.fori_loop(0, count, step, carry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocks(q, k, v, read, sizes):
  """Attention over one part, and the logarithm of its normaliser (lse).

  Args:
    q: [P,K,Q,H], Q a multiple of sizes[0].
    k, v: [P,K,S,H], S a multiple of sizes[1].
    read: [P,Q] each.
    sizes: Queries per block, keys per block.

  Returns:
    [P,K,Q,H] and [P,K,Q,1], float32; 0 and MASKED where nothing is read.
  """
  return _blocks_forward(q, k, v, read, sizes)[0]


def _blocks_forward(q, k, v, read, sizes):
  (P, K, Q, _), (block, keys) = q.shape, sizes
  q, read = _tied(q, read)
  bounds = _blocks_read(read, block)

  def queries(i):
    qi, ri = _cut(q, 2, i, block), _cut_read(read, i, block)
    def body(j, carry):
      o, m, l = carry
      s, mask = _scores(qi, _cut(k, 2, j, keys), ri, j)
      new = jnp.maximum(m, s.max(-1, keepdims=True))
      e = jnp.where(mask, jnp.exp(s - new), 0.0)
      shrink = jnp.exp(m - new)
      o = o * shrink + jnp.einsum(
          'pkqs,pksh->pkqh', e.astype(v.dtype), _cut(v, 2, j, keys),
          preferred_element_type=jnp.float32)
      return o, new, l * shrink + e.sum(-1, keepdims=True)
    o, m, l = _over_keys(bounds, i, k.shape[2] // keys, keys, body, (
        jnp.zeros(qi.shape, jnp.float32), jnp.full((P, K, block, 1), MASKED),
        jnp.zeros((P, K, block, 1))))
    some = jnp.where(l > 0, l, 1.0)
    return o / some, m + jnp.log(some)

  out, lse = jax.lax.map(queries, jnp.arange(Q // block))
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(P, K, Q, -1)
  out, lse = join(out), join(lse)
  return (out, lse), (q, k, v, read, out, lse)


def _blocks_backward(sizes, saved, given):
  """With p = e^(s - lse) and upstream gradients do, dlse:

    dv = p^T do   ds = p (do v^T - sum(do o) + dlse)   dq = ds k   dk = ds^T q
  """
  (q, k, v, read, out, lse), (block, keys) = saved, sizes
  d_out, d_lse = given
  q, read = _tied(q, read)
  bounds = _blocks_read(read, block)
  shift = (d_out * out).sum(-1, keepdims=True) - d_lse  # [P,K,Q,1]
  into = lambda spec, a, b: jnp.einsum(spec, a, b,
                                       preferred_element_type=jnp.float32)
  add = lambda total, x, j: jax.lax.dynamic_update_slice_in_dim(
      total, _cut(total, 2, j, keys) + x, j * keys, 2)
  zeros = lambda x: jnp.zeros(x.shape, jnp.float32)

  def queries(grads, i):
    qi, lse_i, shift_i, do = (
        _cut(x, 2, i, block) for x in (q, lse, shift, d_out))
    ri, do = _cut_read(read, i, block), do.astype(v.dtype)
    def body(j, grads):
      dq, dk, dv = grads
      kj, vj = _cut(k, 2, j, keys), _cut(v, 2, j, keys)
      s, mask = _scores(qi, kj, ri, j)
      p = jnp.where(mask, jnp.exp(s - lse_i), 0.0)
      ds = p * (into('pkqh,pksh->pkqs', do, vj) - shift_i)
      ds = (ds * q.shape[-1]**-0.5).astype(k.dtype)
      return (dq + into('pkqs,pksh->pkqh', ds, kj),
              add(dk, into('pkqs,pkqh->pksh', ds, qi), j),
              add(dv, into('pkqs,pkqh->pksh', p.astype(v.dtype), do), j))
    dq, *grads = _over_keys(bounds, i, k.shape[2] // keys, keys, body,
                            (zeros(qi), *grads))
    return tuple(grads), dq

  (dk, dv), dq = jax.lax.scan(queries, (zeros(k), zeros(v)),
                              jnp.arange(q.shape[2] // block))
  dq = jnp.moveaxis(dq, 0, 2).reshape(q.shape)
  return *(g.astype(x.dtype) for g, x in zip(
      (dq, dk, dv), (q, k, v))), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _blockwise(q, k, v, read, blocks, tile):
  """The Partial of one part, in the scale in which its weight is 1.

  Args:
    q, k, v, read: See attend; `read` is not a mask.
    blocks: _blocks or pallas.blocks.
    tile: A block's sizes are multiples of it.
  """
  B, T, N, H = q.shape
  P, K, S, _ = k.shape
  G, R = B // P, N // K
  block, keys = (min(BLOCK, -(-n // tile) * tile) for n in (G * T * R, S))
  read = jax.tree.map(lambda x: jnp.broadcast_to(
      x.reshape(P, G, T, 1), (P, G, T, R)), read)
  out, lse = blocks(
      _pad(_grouped(q, P, K), 2, block), _pad(k, 2, keys), _pad(v, 2, keys),
      jax.tree.map(lambda x: _pad(x.reshape(P, -1), 1, block), read),
      (block, keys))
  rows = lambda x: _rows(x[:, :, :G * T * R], B, T)
  return Partial(rows(out), rows(lse),
                 (rows(lse) > MASKED).astype(jnp.float32))


# ------------------------------------------------------------------- merged
def attend(q: Array, parts: Sequence[tuple[Array, Array, Interval | Array]],
           kernel: str = 'auto') -> Array:
  """Softmax attention over the union of the parts; [B, T, N, H].

  Args:
    q: [B, T, N, H] queries; head n reads key/value head n // (N / K).
    parts: (k, v, read) each. k, v: [P, K, S, H] where P divides B and row b
      reads row b // (B / P). read: the slots that each query reads; for einsum
      only, it may be a mask instead, [B, T, S] bool.
    kernel: One of KERNELS.

  Returns:
    [B, T, N, H] in q's dtype; zero where a query may read nothing.

  Raises:
    ValueError: See `choose`; or a mask with another kernel than einsum.
  """
  kernel = choose(kernel)
  if kernel != 'einsum' and not all(
      isinstance(read, Interval) for *_, read in parts):
    raise ValueError(f'{kernel} attention reads intervals; masks are for '
                     'einsum')
  if kernel == 'pallas':
    parts = [piece for part in parts for piece in pallas.pieces(*part)]
  part = {'einsum': _einsum,
          'blockwise': functools.partial(_blockwise, blocks=_blocks, tile=8),
          'pallas': functools.partial(_blockwise, blocks=pallas.blocks,
                                      tile=128)}[kernel]
  return _merge([part(q, *p) for p in parts]).astype(q.dtype)


def attend_one(q: Array, k: Array, v: Array, read: Array) -> Array:
  """Attention of one query per row over one buffer per row; [B, 1, N, H].

  As attend(..., 'einsum') with one part, in fewer operations.

  Args:
    q: [B, 1, N, H] queries.
    k, v: [B, K, H, S] and [B, K, S, H].
    read: [B, S] bool, slots that each query reads; at least one.
  """
  B, _, N, H = q.shape
  K = k.shape[1]
  # In float32 scaled before the product: XLA fuses product, mask, maximum and
  # exponential. In bfloat16 a scaled query would be rounded.
  first, then = (H**-0.5, 1) if q.dtype == jnp.float32 else (1, H**-0.5)
  s = jnp.einsum('bkrh,bkhs->bkrs', q.reshape(B, K, N // K, H) * first, k,
                 preferred_element_type=jnp.float32) * then
  s += jnp.where(read, 0.0, MASKED)[:, None, None]
  e = jnp.exp(s - s.max(-1, keepdims=True))
  o = jnp.einsum('bkrs,bksh->bkrh', e.astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
  o /= e.sum(-1, keepdims=True)
  return o.reshape(q.shape).astype(q.dtype)


def _merge(partials: Sequence[Partial]) -> Array:
  """[B, T, N, H] float32, attention over the keys of all parts."""
  highest = jax.lax.stop_gradient(functools.reduce(
      jnp.maximum, (p.log_scale for p in partials)))
  scale = [jnp.exp(p.log_scale - highest) for p in partials]
  norm = sum(s * p.weight for s, p in zip(scale, partials))
  out = sum(s * p.output for s, p in zip(scale, partials))
  return out / jnp.where(norm > 0, norm, 1.0)
