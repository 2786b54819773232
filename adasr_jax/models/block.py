"""One layer of the decoder, and the numbers that give it its shape.

q, k and v of a key/value head lie together, so that they are one matrix
product and still shard over K. (Gate and up do not: on CPU the gradient of
their split made the backward pass of the layer four times slower.)

Source: Qwen3 technical report (arXiv 2505.09388); tensor semantics of
transformers' Qwen3 and Llama models.
"""

from __future__ import annotations

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.core import sharding
from adasr_jax.core.sharding import ROWS, constrain
from adasr_jax.core.types import Array
from adasr_jax.models.attention import KERNELS

# Name of a policy -> what it keeps of a layer for the backward pass.
REMAT = {'none': jax.checkpoint_policies.everything_saveable,
         'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
         'full': jax.checkpoint_policies.nothing_saveable}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Shape of a decoder. Hashable, so a static jit argument.

  Attributes:
    vocab_size: V, rows of the embedding; 0 = as many as the tokenizer needs.
    num_layers, d_model, num_heads, num_kv_heads, head_dim, d_ff:
      L, D, N, K, H, F.
    rope_theta: Base of the rotary frequencies.
    norm_eps: Epsilon of RMSNorm.
    qk_norm: RMSNorm on each head's query and key (Qwen3) or not (Llama).
    qkv_bias: Bias on q, k, v (Qwen2.5).
    tie_embedding: The head is the embedding.
    dtype: Compute dtype, 'float32' or 'bfloat16'; parameters are float32.
    remat: How much of a layer the backward pass recomputes, see REMAT.
    target_offset: RoPE position of the first target token.
    rope_scaling: () or Llama 3's (factor, low_freq_factor, high_freq_factor,
      original_max_position_embeddings).
    attention: Kernel, see attention.py.
  """
  vocab_size: int = option(0, least=0, most=2**24)
  num_layers: int = option(4, least=1, most=2**10)
  d_model: int = option(96, least=1, most=2**18)
  num_heads: int = option(4, least=1, most=2**12)
  num_kv_heads: int = option(2, least=1, most=2**12)
  head_dim: int = option(24, least=2, most=2**12)
  d_ff: int = option(256, least=1, most=2**20)
  rope_theta: float = option(1e4, least=1, most=1e12)
  norm_eps: float = option(1e-6, least=1e-12, most=1)
  qk_norm: bool = option(True)
  qkv_bias: bool = option(False)
  tie_embedding: bool = option(True)
  dtype: str = option('float32', choices=('float32', 'bfloat16'))
  remat: str = option('full', choices=tuple(REMAT))
  target_offset: int = option(0, least=0, most=2**20)
  rope_scaling: tuple[float, ...] = option((), above=0, most=1e9)
  attention: str = option('auto', choices=KERNELS)

  def __post_init__(self):
    options.check(self)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'num_heads={self.num_heads} is not a multiple of '
                       f'num_kv_heads={self.num_kv_heads}')
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim} must be even for RoPE')
    if len(self.rope_scaling) not in (0, 4):
      raise ValueError(f'rope_scaling={self.rope_scaling} is not () or four '
                       f'numbers')


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
  """x / rms(x) * scale over the last axis, computed in float32."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)
  return (y * jnp.broadcast_to(scale, y.shape)).astype(x.dtype)


def rope_frequencies(half: int, theta: float,
                     scaling: tuple[float, ...]) -> Array:
  """[H/2] float32 rotary frequencies, theta ** (-2 i / H), scaled.

  Llama 3's scaling counts a frequency's turns within the original context. It
  divides frequencies of fewer than `low` turns by `factor`, keeps those of
  more than `high` turns, and goes linearly in turns from one to the other.

  Source: transformers, modeling_rope_utils, rope_type "llama3".
  """
  freq = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if not scaling:
    return freq
  factor, low, high, context = scaling
  turns = context * freq / (2 * jnp.pi)
  kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return freq * (kept + (1 - kept) / factor)


def rope(x: Array, position: Array, theta: float,
         scaling: tuple[float, ...] = ()) -> Array:
  """Rotary embedding, halves rotated against each other.

  Args:
    x: [B, T, heads..., H].
    position: [B, T] int32.
    theta: Base of the frequencies.
    scaling: As DecoderConfig.rope_scaling.
  """
  freq = rope_frequencies(x.shape[-1] // 2, theta, scaling)
  # Not a product of matrices, which accelerators do in bfloat16.
  angle = position.astype(jnp.float32)[..., None] * freq[None, None]
  angle = jnp.expand_dims(angle, tuple(range(2, x.ndim - 1)))
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  x, dtype = x.astype(jnp.float32), x.dtype
  # On CPU a concatenation of sums would take three times as long.
  return (x * jnp.concatenate([cos, cos], -1)
          + jnp.roll(x, x.shape[-1] // 2, -1)
          * jnp.concatenate([-sin, sin], -1)).astype(dtype)


def project(x: Array, w: Array, axes: int = 1) -> Array:
  """Sum over the last `axes` dimensions of x and the first of w.

  On CPU this is one flat matrix product: XLA's CPU backend runs the weight
  gradient of an einsum over [B, T, D] four times slower than with B and T
  flattened. On TPU nothing is reshaped: a matrix that is reshaped before the
  product is first copied out of the stack of all layers.
  """
  if sharding.platform() != 'cpu':
    return jnp.tensordot(x, w, axes)
  summed = math.prod(w.shape[:axes])
  out = x.reshape(-1, summed) @ w.reshape(summed, -1)
  return out.reshape(*x.shape[:-axes], *w.shape[axes:])


class Block(nn.Module):
  """One layer: attention over the keys that the caller gives, then a SwiGLU."""
  config: DecoderConfig

  @nn.compact
  def __call__(self, x, position, attention):
    """The layer's output, and what `attention` returns beside its own.

    Args:
      x: [B, T, D].
      position: [B, T] int32.
      attention: (q [B, T, N, H], k, v [B, K, T, H]) -> (output [B, T, N, H],
        extra); `extra` may be anything, such as the cache.

    Returns:
      x [B, T, D]; extra.
    """
    c = self.config
    B, T, D = x.shape
    K, R, H = c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim
    dtype = jnp.dtype(c.dtype)
    ones = nn.initializers.ones_init()

    def matrix(name, shape, fan_in):
      init = lambda key: jax.random.normal(key, shape) * fan_in**-0.5
      return self.param(name, init).astype(dtype)

    h = rms_norm(x, self.param('attn_norm', ones, (D,)), c.norm_eps)
    qkv = project(h, matrix('qkv', (D, K, R + 2, H), D))
    qkv = constrain(qkv, ROWS, None, 'tensor')
    if c.qkv_bias:
      bias = self.param('qkv_bias', nn.initializers.zeros_init(),
                        (K, R + 2, H))
      qkv += jnp.broadcast_to(bias.astype(dtype), qkv.shape)
    qk, v = qkv[..., :R + 1, :], qkv[..., R + 1, :]
    if c.qk_norm:
      scale = jnp.concatenate([
          jnp.broadcast_to(self.param('q_norm', ones, (H,)), (R, H)),
          self.param('k_norm', ones, (H,))[None]])
      qk = rms_norm(qk, scale, c.norm_eps)
    qk = rope(qk, position, c.rope_theta, c.rope_scaling)
    q, k = qk[..., :R, :].reshape(B, T, K * R, H), qk[..., R, :]
    k, v = (a.transpose(0, 2, 1, 3) for a in (k, v))  # [B,K,T,H]
    o, extra = attention(q, k, v)
    o = constrain(o, ROWS, None, 'tensor')
    x += project(o.reshape(B, T, K, R, H),
                 matrix('out', (K, R, H, D), K * R * H), 3)
    x = constrain(x, ROWS)

    h = rms_norm(x, self.param('mlp_norm', ones, (D,)), c.norm_eps)
    h = (nn.silu(project(h, matrix('gate', (D, c.d_ff), D)))
         * project(h, matrix('up', (D, c.d_ff), D)))
    h = constrain(h, ROWS, None, 'tensor')
    x = constrain(x + project(h, matrix('down', (c.d_ff, D), c.d_ff)), ROWS)
    return x, extra
