"""The decoder (Qwen3 and Llama architectures) as functions on parameter trees.

Three ways through the same layers (block.py):

  prefill         source tokens                  -> their keys and values
  target_hidden   all target tokens at once      -> hidden states (training)
  decode_step     one target token with a cache  -> hidden state, cache

Parameter tree (L stacked in front, for lax.scan):

  embedding [V,D]   final_norm [D]   head [V,D] (absent where tied)
  layers: attn_norm [L,D]  qkv [L,D,K,R+2,H]  qkv_bias [L,K,R+2,H]
          q_norm, k_norm [L,H]  out [L,K,R,H,D]
          mlp_norm [L,D]  gate, up [L,D,F]  down [L,F,D]
          lora (only where lora.attach put it)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adasr_jax.core import sharding
from adasr_jax.core.sharding import ROWS, constrain
from adasr_jax.core.types import Array, Packing, Source
from adasr_jax.core import visibility
from adasr_jax.core.visibility import Branches, Interval
from adasr_jax.models.attention import attend, attend_one, choose
from adasr_jax.models.block import Block, DecoderConfig, REMAT, rms_norm
from adasr_jax.models import lora
from adasr_jax.models import pallas

Params = Any
# Keys, values, each [..., K, S, H]; on CPU, in the form of for_decoding, a list
# of such pairs by layer, without L, keys as [..., K, H, S].
KV = tuple[Array, Array] | list[tuple[Array, Array]]


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


@jax.named_scope('prefill')
def prefill(params: Params, config: DecoderConfig, source: Source,
            packing: Packing | None = None) -> KV:
  """Keys and values of the source tokens, each [L, P, K, S, H].

  Source tokens never read target tokens, so all chunks are computed at once;
  the limit of a target query hides the chunks that it has not reached.
  """
  segments = visibility.source_segments(source, packing)
  read = visibility.interval(segments, segments)
  attention = lambda q, k, v: (
      attend(q, [(k, v, read)], config.attention), (k, v))
  call = lambda layer, x, _: Block(config).apply(
      {'params': layer}, x, source.position, attention)
  x = _embed(params, config, source.tokens)
  return _scan_layers(params, config, x, None, call)[1]


@jax.named_scope('prefill')
def read_on(params: Params, layers: Params, config: DecoderConfig, context: KV,
            row: Array, start: Array, tokens: Array) -> KV:
  """The context with the next source tokens of one row.

  Piece by piece this is what `prefill` computes at once.

  Args:
    params: Parameter tree (its embedding is used).
    layers: The layers' parameters, as `by_layer` gives them.
    config: Shape of the decoder.
    context: Pair [L, P, K, S, H], from `for_decoding`.
    row: [] int32, whose source it is.
    start: [] int32, slots of it that have been read; start + W <= S.
    tokens: [W] int32. Those after the last real one do no harm: their slots
      are not read before they are written again.
  """
  slot = start + jnp.arange(len(tokens))[None]
  read = Interval(visibility.causal_limit(slot))
  at_row = lambda a: jax.lax.dynamic_index_in_dim(a, row, a.ndim - 4)

  def call(layer, x, kv):
    def attention(q, *new):
      own = (jax.lax.dynamic_update_slice_in_dim(a, b, start, 2)
             for a, b in zip(kv, new))
      return attend(q, [(*own, read)], 'einsum'), new
    return Block(config).apply({'params': layer}, x, slot, attention)

  x = _embed(params, config, tokens[None])
  put = lambda a, new, *at: jax.lax.dynamic_update_slice(a, new, at)
  if isinstance(layers, list):
    out = []
    for layer, (k, v) in zip(layers, context):
      x, new = call(layer, x, (_turned(at_row(k)), at_row(v)))
      out.append((put(k, _turned(new[0]), row, 0, 0, start),
                  put(v, new[1], row, 0, start, 0)))
    return out
  x, new = jax.lax.scan(lambda x, layer: call(layer[0], x, layer[1]), x,
                        (layers, jax.tree.map(at_row, context)))
  return jax.tree.map(lambda a, b: put(a, b, 0, row, 0, start, 0), context, new)


def context_segments(source: Source, samples: int,
                     packing: Packing | None = None) -> visibility.Segments:
  """The source's segments, one row per target row; [B, S]."""
  return jax.tree.map(lambda a: jnp.repeat(a, samples, 0),
                      visibility.source_segments(source, packing))


def target_hidden(params: Params, config: DecoderConfig, source: Source,
                  tokens: Array, query_phase: Array, valid: Array,
                  packing: Packing | None = None,
                  context: KV | None = None) -> Array:
  """Final hidden states of all target tokens at once; [B, T, D].

  Args:
    params: Parameter tree.
    config: Shape of the decoder.
    source: P prompts. Their keys and values are computed once for all samples
      of a prompt; gradients flow through them.
    tokens: [B, T] int32.
    query_phase: [B, T] int32, phase of the token that each token predicts.
    valid: [B, T] bool.
    packing: Prompts and samples that share rows; None = one per row.
    context: Of prefill(), where it is at hand.
  """
  B = tokens.shape[0]
  if context is None:
    context = prefill(params, config, source, packing)
  segments = visibility.target_segments(query_phase, valid, packing)
  read = visibility.interval(segments, segments)
  read_context = visibility.interval(segments, context_segments(
      source, B // source.tokens.shape[0], packing))
  slot = segments.slot if packing is None else segments.slot - read.start
  position = visibility.target_position(slot, config.target_offset)
  def call(layer, x, kv):
    attention = lambda q, k, v: (attend(
        q, [(k, v, read), (*kv, read_context)], config.attention), None)
    return Block(config).apply({'params': layer}, x, position, attention)
  x = _embed(params, config, tokens)
  x, _ = _scan_layers(params, config, x, context, call)
  return rms_norm(x, params['final_norm'], config.norm_eps)


def branch_hidden(params: Params, config: DecoderConfig, source: Source,
                  tokens: Array, query_phase: Array, valid: Array,
                  branches: Branches) -> Array:
  """Final hidden states of branches of targets; [B, N, D].

  The targets are computed once, as in target_hidden; a branch reads the slots
  of its target before it, and itself.

  Args:
    params: Parameter tree.
    config: Shape of the decoder.
    source: P prompts.
    tokens, query_phase, valid: Of the B targets, as in target_hidden.
    branches: Of the targets.
  """
  B, N = branches.tokens.shape
  context = prefill(params, config, source)
  segments = visibility.target_segments(query_phase, valid)
  sources = context_segments(source, B // source.tokens.shape[0])
  own = visibility.interval(segments, segments)
  own_source = visibility.interval(segments, sources)
  at = jnp.broadcast_to(jnp.arange(N), (B, N))
  branch_source = visibility.interval(visibility.target_segments(
      branches.phase, branches.begin >= 0), sources)
  # What lies behind a hole is a second interval of the same buffer.
  before = [Interval(jnp.minimum(branches.prefix, branches.hole[0])),
            Interval(branches.prefix, jnp.minimum(branches.hole[1],
                                                  branches.prefix))]
  position = visibility.target_position(segments.slot, config.target_offset)
  branch_position = visibility.target_position(
      branches.prefix + at - branches.begin, config.target_offset)

  def call(layer, xs, kv):
    x, y = xs
    block = lambda x, position, attention: Block(config).apply(
        {'params': layer}, x, position, attention)
    def of_target(q, k, v):
      return attend(q, [(k, v, own), (*kv, own_source)],
                    config.attention), (k, v)
    x, target = block(x, position, of_target)
    def of_branch(q, k, v):
      return attend(q, [(k, v, Interval(at + 1, branches.begin)),
                        *((*target, read) for read in before),
                        (*kv, branch_source)], config.attention), None
    y, _ = block(y, branch_position, of_branch)
    return (x, y), None

  (_, y), _ = _scan_layers(
      params, config, (_embed(params, config, tokens),
                       _embed(params, config, branches.tokens)), context, call)
  return rms_norm(y, params['final_norm'], config.norm_eps)


def decodes_by_pallas(config: DecoderConfig, prompts: int) -> bool:
  """Whether pallas.decode, which skips unwritten slots, does the decoding.

  It does on TPU, if the devices that rows are split over divide the prompts.
  """
  return (choose(config.attention) == 'pallas'
          and prompts % sharding.row_ways() == 0)


def kernels(config: DecoderConfig, prompts: int) -> str:
  """The attention kernels of a run on the current mesh, for its log."""
  kernel = choose(config.attention)
  decoding = 'pallas' if decodes_by_pallas(config, prompts) else 'einsum'
  text = f'{kernel} attention, decoding by {decoding}'
  if kernel == 'pallas' and decoding != 'pallas':
    text += (f' ({sharding.row_ways()} devices of rows do not divide '
             f'{prompts} prompts)')
  return text


def by_layer(tree: Any) -> Any:
  """A tree of arrays [L, ...] in the form in which decoding reads it.

  On CPU a list of L trees: a loop over layers would copy the cache at each
  step. Elsewhere the tree itself, for such a loop: with the 36 layers of a 4B
  model written out, a TPU program has 460 MB and takes four times as long to
  compile.
  """
  if sharding.platform() != 'cpu':
    return tree
  return [jax.tree.map(lambda a: a[l], tree)
          for l in range(jax.tree.leaves(tree)[0].shape[0])]


def for_decoding(kv: KV) -> KV:
  """Keys and values [L, ..., S, H] in the form in which decode_step reads them.

  A pair [L, ..., S, H]; on CPU a list of L pairs, with keys [..., H, S]:
  products of one query per row read them three times as fast.
  """
  out = by_layer(kv)
  return ([(_turned(k), v) for k, v in out] if isinstance(out, list) else out)


def grown(kv: KV, slots: int) -> KV:
  """Keys and values of for_decoding with room for `slots` slots."""
  def pad(a, axis):
    more = [(0, 0)] * a.ndim
    more[axis] = (0, slots - a.shape[axis])
    heads = (None,) * (a.ndim - 4)
    return constrain(jnp.pad(a, more), *heads, ROWS, 'tensor')
  if isinstance(kv, list):
    return [(pad(k, 3), pad(v, 2)) for k, v in kv]
  return tuple(pad(a, a.ndim - 2) for a in kv)


def cache_slots(kv: KV) -> int:
  """S of keys and values of for_decoding."""
  return (kv[0] if isinstance(kv, list) else kv)[1].shape[-2]


def _turned(k):
  return k.swapaxes(-1, -2)


def _write(cache: KV, new: KV, slot: Array) -> KV:
  """The cache of a layer with each row's new token at its own slot.

  Args:
    cache: [B, K, H, S'] and [B, K, S', H].
    new: Pair [B, K, 1, H].
    slot: [B] int32.
  """
  put = lambda a, b, *at: jax.lax.dynamic_update_slice(a, b, at)
  (k, v), (new_k, new_v) = cache, new
  return (jax.vmap(lambda a, b, t: put(a, b, 0, 0, t))(k, _turned(new_k), slot),
          jax.vmap(lambda a, b, t: put(a, b, 0, t, 0))(v, new_v, slot))


@jax.named_scope('decode')
def decode_step(params: Params, layers: Params, config: DecoderConfig,
                context: KV | None, context_limit: Array, cache: KV,
                token: Array, slot: Array, base: Array | None = None
                ) -> tuple[Array, KV]:
  """Hidden state of one target token per row, and the cache with it.

  Args:
    params: Parameter tree (its embedding and final norm are used).
    layers: The layers' parameters, as `by_layer` gives them.
    config: Shape of the decoder.
    context: Pair [L, P, K, S, H], the source's keys and values, from
      `for_decoding`; row b reads those of b // (B / P). None, on CPU only,
      where each row's cache begins with its source.
    context_limit: [B] int32; the source slots below it are read.
    cache: Pair [L, B, K, S', H], the target's keys and values so far,
      from `for_decoding`.
    token: [B] int32.
    slot: [B] int32, the slot of `token`.
    base: [B] int32, where slot 0 lies in the cache; None = 0 everywhere. base +
      slot is in [0, S'). What lies below base is not read, but a source.

  Returns:
    [B, D] hidden states; the new cache.
  """
  position = visibility.target_position(slot, config.target_offset)[:, None]
  x = _embed(params, config, token)[:, None]
  block = lambda layer, x, attention: Block(config).apply(
      {'params': layer}, x, position, attention)
  if base is not None:
    slot += base
  limit = visibility.causal_limit(slot)
  own_slots = Interval(limit, base)
  attend_both = lambda q, cache, context: attend(
      q, [(*cache, jax.tree.map(lambda a: a[:, None], own_slots)),
          (*context, Interval(context_limit[:, None]))], 'einsum')

  if isinstance(layers, list):
    new, joined = [], context is None
    if joined:
      slots = jnp.arange(cache_slots(cache))[None]
      read = (slots < context_limit[:, None]) | (
          (slots >= base[:, None]) & (slots < limit[:, None]))
      context = [None] * len(layers)
    for layer, kv, old in zip(layers, context, cache):
      def attention(q, *own, kv=kv, old=old):
        old = _write(old, own, slot)
        if joined:
          return attend_one(q, *old, read), old
        straight = lambda kv: (_turned(kv[0]), kv[1])
        return attend_both(q, straight(old), straight(kv)), old
      x, own = block(layer, x, attention)
      new.append(own)
  else:
    by_pallas = decodes_by_pallas(config, context[0].shape[1])
    def one_of_all(l, carry):
      at = lambda tree: jax.tree.map(lambda a: a[l], tree)
      def attention(q, *own):
        if by_pallas:
          cache = pallas.write(carry[1], own, l, slot)
          return pallas.decode(q, context, cache, l, context_limit,
                               own_slots), cache
        rows = jnp.arange(len(slot))
        cache = tuple(a.at[l, rows, :, slot].set(b[:, :, 0])
                      for a, b in zip(carry[1], own))
        return attend_both(q, at(cache), at(context)), cache
      return block(at(layers), carry[0], attention)
    x, new = jax.lax.fori_loop(0, config.num_layers, one_of_all, (x, cache))
  x = rms_norm(x[:, 0], params['final_norm'], config.norm_eps)
  return x, new


@jax.named_scope('head')
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
  """[B, T, V] float32 logits of the decoder as a plain language model.

  No stream, no phases: each token reads all earlier ones. For comparisons
  with other implementations, and for text that is not streamed.

  Args:
    params: Parameter tree.
    config: Shape of the decoder.
    tokens: [B, T] int32, without padding.
  """
  position = visibility.source_position(tokens.shape)
  attention = lambda q, k, v: (attend(
      q, [(k, v, Interval(visibility.causal_limit(position)))],
      config.attention), None)
  call = lambda layer, x, _: Block(config).apply(
      {'params': layer}, x, position, attention)
  x, _ = _scan_layers(params, config, _embed(params, config, tokens), None,
                      call)
  return logits(params, config,
                rms_norm(x, params['final_norm'], config.norm_eps))


def num_params(params: Params) -> int:
  """How many numbers a parameter tree holds."""
  return sum(a.size for a in jax.tree.leaves(params))
