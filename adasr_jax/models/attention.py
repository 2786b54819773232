"""Attention over several key/value buffers that are never merged.

A target query reads the source buffer of its prompt and its own target
buffer. Softmax over both needs only each buffer's maximum m, normaliser l and
unnormalised output o:

  M = max_i m_i,  out = sum_i e^(m_i - M) o_i / sum_i e^(m_i - M) l_i

so no buffer is ever concatenated or copied, and the G samples of one prompt
read one copy of its source.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from adasr_jax.types import Array

MASKED = -1e30  # finite: a row that sees nothing must not become NaN


def _part(q, k, v, mask):
  """o [B,T,N,H] unnormalised, m and l [B,T,N]; float32."""
  B, T, N, H = q.shape
  P, K, S, _ = k.shape
  G, R = B // P, N // K
  # All queries of a prompt's G samples share one matrix product with its keys.
  q = q.reshape(P, G, T, K, R, H).transpose(0, 3, 1, 2, 4, 5)
  s = jnp.einsum('pkqh,pksh->pkqs', q.reshape(P, K, G * T * R, H), k,
                 preferred_element_type=jnp.float32) * H**-0.5
  mask = mask.reshape(P, 1, G, T, 1, S)
  s = jnp.where(mask, s.reshape(P, K, G, T, R, S), MASKED)
  m = jax.lax.stop_gradient(s.max(-1))
  e = jnp.where(mask, jnp.exp(s - m[..., None]), 0.0)  # [P,K,G,T,R,S]
  o = jnp.einsum('pkqs,pksh->pkqh',
                 e.reshape(P, K, G * T * R, S).astype(v.dtype), v,
                 preferred_element_type=jnp.float32)
  rows = lambda x: x.reshape(P, K, G, T, R, -1).transpose(
      0, 2, 3, 1, 4, 5).reshape(B, T, N, -1)
  return rows(o), rows(m)[..., 0], rows(e.sum(-1))[..., 0]


def attend(q: Array, parts: Sequence[tuple[Array, Array, Array]]) -> Array:
  """Softmax attention over the union of the parts; [B, T, N, H].

  Args:
    q: [B, T, N, H] queries; head n reads key/value head n // (N / K).
    parts: (k, v, mask) each: k, v [P, K, S, H] where P divides B and row b
      reads row b // (B / P); mask [B, T, S] bool, True = may be read.

  Returns:
    [B, T, N, H] in q's dtype; zero where a query may read nothing.
  """
  os, ms, ls = zip(*(_part(q, *part) for part in parts))
  top = ms[0]
  for m in ms[1:]:
    top = jnp.maximum(top, m)
  weight = [jnp.exp(m - top) for m in ms]
  norm = sum(w * l for w, l in zip(weight, ls))
  out = sum(w[..., None] * o for w, o in zip(weight, os))
  return (out / jnp.where(norm > 0, norm, 1.0)[..., None]).astype(q.dtype)
