"""The decoder (Qwen3 and Llama architectures) as functions on parameter trees.

Three ways through the same block:

  prefill         source tokens                  -> their keys and values
  target_hidden   all target tokens at once      -> hidden states (training)
  decode_step     one target token with a cache  -> hidden state, cache

Parameter tree (L stacked in front, for lax.scan):

  embedding [V,D]   final_norm [D]   head [V,D] (absent where tied)
  layers: attn_norm [L,D]  qkv [L,D,K,R+2,H]  qkv_bias [L,K,R+2,H]
          q_norm, k_norm [L,H]  out [L,K,R,H,D]
          mlp_norm [L,D]  gate, up [L,D,F]  down [L,F,D]
          lora (only where lora.attach put it)

q, k and v of a key/value head lie together, so that they are one matrix
product and still shard over K. (Gate and up do not: on CPU the gradient of
their split made the backward pass of the layer four times slower.)

Source: Qwen3 technical report (arXiv 2505.09388); tensor semantics of
transformers' Qwen3 and Llama models.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.core import sharding
from adasr_jax.core.sharding import ROWS, constrain
from adasr_jax.core.types import Array, Source
from adasr_jax.core import visibility
from adasr_jax.models.attention import KERNELS, attend, choose
from adasr_jax.models import lora
from adasr_jax.models import pallas

# Name of a policy -> what of a layer is kept for the backward pass.
REMAT = {'none': jax.checkpoint_policies.everything_saveable,
         'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
         'full': jax.checkpoint_policies.nothing_saveable}

Params = Any
KV = tuple[Array, Array]  # keys, values; each [..., K, S, H]


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
    remat: What of a layer the backward pass computes again, see REMAT.
    target_offset: RoPE position of the first target token.
    rope_scaling: () or Llama 3's (factor, low_freq_factor, high_freq_factor,
      original_max_position_embeddings).
    attention: Kernel, see attention.py.
  """
  vocab_size: int = option(0, least=0)
  num_layers: int = option(4, above=0)
  d_model: int = option(96, above=0)
  num_heads: int = option(4, above=0)
  num_kv_heads: int = option(2, above=0)
  head_dim: int = option(24, above=0)
  d_ff: int = option(256, above=0)
  rope_theta: float = option(1e4, above=0)
  norm_eps: float = option(1e-6, least=0)
  qk_norm: bool = option(True)
  qkv_bias: bool = option(False)
  tie_embedding: bool = option(True)
  dtype: str = option('float32', choices=('float32', 'bfloat16'))
  remat: str = option('full', choices=tuple(REMAT))
  target_offset: int = option(0, least=0)
  rope_scaling: tuple[float, ...] = option(())
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

  Llama 3's scaling divides the frequencies whose wavelength is longer than
  the original context / low by `factor`, leaves those shorter than context /
  high, and goes linearly (in turns within the context) from one to the other.

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
  angle = jnp.einsum('bt,h->bth', position.astype(jnp.float32), freq)
  angle = jnp.expand_dims(angle, tuple(range(2, x.ndim - 1)))
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin],
                         -1).astype(x.dtype)


def project(x: Array, w: Array, axes: int = 1) -> Array:
  """Sum over the last `axes` dimensions of x and the first of w.

  On CPU one flat matrix product: XLA's backend runs the weight gradient of an
  einsum over [B, T, D] four times slower than with B and T flattened. On TPU a
  matrix that is reshaped before the product is first copied out of the stack
  of all layers.
  """
  if sharding.platform() != 'cpu':
    return jnp.tensordot(x, w, axes)
  summed = math.prod(w.shape[:axes])
  out = x.reshape(-1, summed) @ w.reshape(summed, -1)
  return out.reshape(*x.shape[:-axes], *w.shape[axes:])


class Block(nn.Module):
  """One layer: attention, of whatever keys, then a SwiGLU."""
  config: DecoderConfig

  @nn.compact
  def __call__(self, x, position, attention):
    """The layer's output, and what `attention` hands on.

    Args:
      x: [B, T, D].
      position: [B, T] int32.
      attention: (q [B, T, N, H], k, v [B, K, T, H]) -> [B, T, N, H], and
        anything.

    Returns:
      x [B, T, D]; anything.
    """
    c = self.config
    B, T, D = x.shape
    K, R, H = c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim
    dtype = jnp.dtype(c.dtype)
    ones = nn.initializers.ones_init()

    def matrix(name, shape, rows):
      init = lambda key: jax.random.normal(key, shape) * rows**-0.5
      return self.param(name, init).astype(dtype)

    h = rms_norm(x, self.param('attn_norm', ones, (D,)), c.norm_eps)
    qkv = project(h, matrix('qkv', (D, K, R + 2, H), D))
    qkv = constrain(qkv, ROWS, None, 'tensor')
    if c.qkv_bias:
      bias = self.param('qkv_bias', nn.initializers.zeros_init(),
                        (K, R + 2, H))
      qkv += jnp.broadcast_to(bias.astype(dtype), qkv.shape)
    q, k, v = qkv[..., :R, :], qkv[..., R, :], qkv[..., R + 1, :]
    if c.qk_norm:
      q = rms_norm(q, self.param('q_norm', ones, (H,)), c.norm_eps)
      k = rms_norm(k, self.param('k_norm', ones, (H,)), c.norm_eps)
    turn = lambda x: rope(x, position, c.rope_theta, c.rope_scaling)
    q = turn(q).reshape(B, T, K * R, H)
    k = turn(k).transpose(0, 2, 1, 3)  # [B,K,T,H]
    v = v.transpose(0, 2, 1, 3)
    o, handed_on = attention(q, k, v)
    o = constrain(o, ROWS, None, 'tensor')
    x += project(o.reshape(B, T, K, R, H),
                 matrix('out', (K, R, H, D), K * R * H), 3)
    x = constrain(x, ROWS)

    h = rms_norm(x, self.param('mlp_norm', ones, (D,)), c.norm_eps)
    h = (nn.silu(project(h, matrix('gate', (D, c.d_ff), D)))
         * project(h, matrix('up', (D, c.d_ff), D)))
    h = constrain(h, ROWS, None, 'tensor')
    x = constrain(x + project(h, matrix('down', (c.d_ff, D), c.d_ff)), ROWS)
    return x, handed_on


def init(config: DecoderConfig, key: jax.Array) -> Params:
  """A random parameter tree in float32; matrices have variance 1/fan_in."""
  c = config
  k_embed, k_head, k_layers = jax.random.split(key, 3)
  x = jnp.zeros((1, 1, c.d_model), c.dtype)
  ints = jnp.zeros((1, 1), jnp.int32)
  unused = lambda q, k, v: (q, None)
  layers = jax.vmap(lambda k: Block(c).init(k, x, ints, unused)['params'])(
      jax.random.split(k_layers, c.num_layers))
  table = lambda k: jax.random.normal(
      k, (c.vocab_size, c.d_model)) * c.d_model**-0.5
  params = dict(embedding=table(k_embed), layers=layers,
                final_norm=jnp.ones(c.d_model))
  if not c.tie_embedding:
    params['head'] = table(k_head)
  return params


def _embed(params, config, tokens):
  return constrain(params['embedding'][tokens].astype(config.dtype), ROWS)


def _scan_layers(params, config, x, context, call):
  """Runs call(layer_params, x, context_l) -> (x, out) over stacked layers."""
  body = lambda x, layer: call(sharding.gather_layer(
      lora.merge_layer(layer[0]), config.dtype), x, layer[1])
  body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[config.remat])
  return jax.lax.scan(body, x, (params['layers'], context))


def prefill(params: Params, config: DecoderConfig, source: Source) -> KV:
  """Keys and values of the source tokens, each [L, P, K, S, H].

  Source tokens never read target tokens, so all chunks are computed at once;
  a chunk that is still unread is hidden by the target queries' limit.
  """
  segments = visibility.source_segments(source)
  readable = visibility.limit(segments, segments)
  attention = lambda q, k, v: (
      attend(q, [(k, v, readable)], config.attention), (k, v))
  call = lambda layer, x, _: Block(config).apply(
      {'params': layer}, x, source.position, attention)
  x = _embed(params, config, source.tokens)
  return _scan_layers(params, config, x, None, call)[1]


def context_segments(source: Source, samples: int) -> visibility.Segments:
  """The source's segments, one row for each of the B target rows; [B, S]."""
  return jax.tree.map(lambda a: jnp.repeat(a, samples, 0),
                      visibility.source_segments(source))


def target_hidden(params: Params, config: DecoderConfig, source: Source,
                  tokens: Array, query_phase: Array, valid: Array) -> Array:
  """Final hidden states of all target tokens at once; [B, T, D].

  Args:
    params: Parameter tree.
    config: Shape of the decoder.
    source: P prompts; gradients flow through their keys and values, computed
      once for all samples of a prompt.
    tokens: [B, T] int32.
    query_phase: [B, T] int32, phase of the token that each one predicts.
    valid: [B, T] bool.
  """
  B, T = tokens.shape
  context = prefill(params, config, source)
  segments = visibility.target_segments(query_phase, valid)
  readable = visibility.limit(segments, segments)
  context_readable = visibility.limit(
      segments, context_segments(source, B // source.tokens.shape[0]))
  position = segments.slot + config.target_offset
  call = lambda layer, x, kv: Block(config).apply(
      {'params': layer}, x, position, lambda q, k, v: (attend(
          q, [(k, v, readable), (*kv, context_readable)], config.attention),
                                                       None))
  x = _embed(params, config, tokens)
  x, _ = _scan_layers(params, config, x, context, call)
  return rms_norm(x, params['final_norm'], config.norm_eps)


def decodes_by_pallas(config: DecoderConfig, prompts: int) -> bool:
  """Whether decoding is by pallas.decode, which skips unwritten slots: on TPU,
  if the devices of rows divide the prompts."""
  return (choose(config.attention) == 'pallas'
          and prompts % sharding.row_ways() == 0)


def kernels(config: DecoderConfig, prompts: int) -> str:
  """The attention kernels of a run on the mesh that is set, for its log."""
  kernel = choose(config.attention)
  decoding = 'pallas' if decodes_by_pallas(config, prompts) else 'einsum'
  text = f'{kernel} attention, decoding by {decoding}'
  if kernel == 'pallas' != decoding:
    text += (f' ({sharding.row_ways()} devices of rows do not divide '
             f'{prompts} prompts)')
  return text


def by_layer(tree: Any) -> Any:
  """A tree of arrays [L, ...] as decoding goes through it.

  On CPU a list of L trees: a loop over layers would copy the cache each step.
  Elsewhere as it is, for such a loop: with all 36 layers of a 4B model a TPU
  program has 460 MB and compiles for four times as long.
  """
  if sharding.platform() != 'cpu':
    return tree
  return [jax.tree.map(lambda a: a[l], tree)
          for l in range(jax.tree.leaves(tree)[0].shape[0])]


def with_cache(cache: KV, slot: Array, context: KV, readable: Array,
               context_readable: Array) -> Callable[..., tuple[Array, KV]]:
  """Attention, for Block, that hands on the cache with the new tokens in it.

  Args:
    cache: Pair [B, K, S', H].
    slot: [] int32, where the new tokens go.
    context: Pair [P, K, S, H], the source's keys and values.
    readable, context_readable: Of the cache and of these, as in
      attention.attend.
  """
  def attention(q, *now):
    new = tuple(jax.lax.dynamic_update_slice(a, b, (0, 0, slot, 0))
                for a, b in zip(cache, now))
    return attend(q, [(*new, readable), (*context, context_readable)],
                  'einsum'), new
  return attention


def decode_step(params: Params, layers: Params, config: DecoderConfig,
                context: KV, context_limit: Array, cache: KV, token: Array,
                slot: Array) -> tuple[Array, KV]:
  """Hidden state of one target token a row, and the cache with it.

  Args:
    params: Parameter tree (its embedding and final norm are used).
    layers: The layers' parameters, `by_layer`.
    config: Shape of the decoder.
    context: Pair [L, P, K, S, H], the source's keys and values, `by_layer`.
    context_limit: [B] int32, the slots below it are read.
    cache: Pair [L, B, K, S', H], the target's keys and values so far,
      `by_layer`.
    token: [B] int32.
    slot: [] int32, the slot of `token`, the same in all rows.

  Returns:
    [B, D] hidden states; the new cache.
  """
  column = lambda n: jnp.full((token.shape[0], 1), n)
  position = column(slot + config.target_offset)
  x = _embed(params, config, token)[:, None]
  block = lambda layer, x, attention: Block(config).apply(
      {'params': layer}, x, position, attention)
  readable = column(slot + 1), context_limit[:, None]

  if isinstance(layers, list):
    new = []
    for layer, kv, old in zip(layers, context, cache):
      x, kv = block(layer, x, with_cache(old, slot, kv, *readable))
      new.append(kv)
  else:
    def one_of_all(l, carry):
      at = lambda tree: jax.tree.map(lambda a: a[l], tree)
      def attention(q, *now):
        cache = tuple(
            jax.lax.dynamic_update_slice(a, b[None], (l, 0, 0, slot, 0))
            for a, b in zip(carry[1], now))
        if decodes_by_pallas(config, context[0].shape[1]):
          return pallas.decode(q, context, cache, l, context_limit, slot), cache
        return attend(q, [(*at(cache), readable[0]),
                          (*at(context), readable[1])], 'einsum'), cache
      return block(at(layers), carry[0], attention)
    x, new = jax.lax.fori_loop(0, config.num_layers, one_of_all, (x, cache))
  x = rms_norm(x[:, 0], params['final_norm'], config.norm_eps)
  return x, new


def logits(params: Params, config: DecoderConfig, hidden: Array) -> Array:
  """[..., V] float32 logits of hidden states [..., D]."""
  head = params['embedding' if config.tie_embedding else 'head']
  flat = jnp.einsum('bd,vd->bv', hidden.reshape(-1, config.d_model),
                    head.astype(config.dtype),
                    preferred_element_type=jnp.float32)
  flat = constrain(flat, ROWS, 'tensor')
  return flat.reshape(*hidden.shape[:-1], -1)


def causal_logits(params: Params, config: DecoderConfig,
                  tokens: Array) -> Array:
  """[B, T, V] float32 logits of a plain language model's reading.

  No stream, no phases: each token reads all earlier ones. For comparisons
  with other implementations, and for text that is not streamed.

  Args:
    params: Parameter tree.
    config: Shape of the decoder.
    tokens: [B, T] int32, without padding.
  """
  B, T = tokens.shape
  position = jnp.broadcast_to(jnp.arange(T), (B, T))
  call = lambda layer, x, _: Block(config).apply(
      {'params': layer}, x, position, lambda q, k, v: (attend(
          q, [(k, v, position + 1)], config.attention), None))
  x, _ = _scan_layers(params, config, _embed(params, config, tokens), None,
                      call)
  return logits(params, config,
                rms_norm(x, params['final_norm'], config.norm_eps))


def num_params(params: Params) -> int:
  """Numbers in a parameter tree."""
  return sum(a.size for a in jax.tree.leaves(params))
