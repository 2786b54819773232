"""Log-probabilities of given targets, by the rollout's own rules."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adasr_jax.core.protocol import Protocol
from adasr_jax.core import sharding
from adasr_jax.core.sharding import ROWS, constrain
from adasr_jax.core.types import Array, Packing, Source, Target
from adasr_jax.core import visibility
from adasr_jax.models.attention import MASKED
from adasr_jax.models import decoder

# Logits in one block of a device's rows, as if the vocabulary were not split:
# 64 MiB in float32; 256 MiB on accelerators, where larger blocks read the head
# less often. (On CPU that saves nothing.)
HEAD_ELEMENTS = {'cpu': 2**24, 'gpu': 2**26, 'tpu': 2**26}


def score(params: decoder.Params, source: Source, target: Target,
          packing: Packing | None = None, *,
          model_config: decoder.DecoderConfig, protocol: Protocol,
          temperature: float) -> tuple[Array, Array]:
  """Teacher-forced log-probabilities and entropies of the sampled tokens.

  log pi(o_t | c_t) with pi = softmax(logits / temperature) over the tokens
  that the protocol allows, under the visibility and positions of the rollout.
  The head and the log-softmax run in blocks of the sequence that the backward
  pass recomputes: [B, T, V] is never materialised.

  Args:
    params: Parameter tree.
    source: P prompts.
    target: B = P * G targets.
    packing: Prompts and samples that share rows; None = one per row.
    model_config: Shape of the decoder.
    protocol: Control tokens and legality.
    temperature: > 0; 1 for supervised targets.

  Returns:
    logp, entropy: [B, T] float32, nats, aligned with target.tokens; 0 where a
    token was forced or is not valid.
  """
  B = target.tokens.shape[0]
  hidden = decoder.target_hidden(
      params, model_config, source, target.tokens[:, :-1],
      visibility.query_phase(target.phase), target.valid[:, :-1], packing)
  ways = sharding.row_ways() if B % sharding.row_ways() == 0 else 1
  size = max(1, HEAD_ELEMENTS[sharding.platform()]
             // (B // ways * model_config.vocab_size))
  with jax.named_scope('head'):
    logp, entropy = _in_blocks(
        _head(params, model_config, protocol, temperature, ways),
        (hidden, target.tokens[:, 1:], target.stage[:, 1:]), size)
  keep = lambda a: jnp.where(target.sampled,
                             jnp.pad(a, ((0, 0), (1, 0))), 0.0)
  return keep(logp), keep(entropy)


def _head(params, model_config, protocol, temperature, ways):
  """hidden [B,t,D], token [B,t], stage [B,t] -> logp, entropy [B,t]."""
  allowed = jnp.asarray(protocol.allowed)
  heads = _heads(params, model_config, ways)

  @jax.checkpoint
  def head(block):
    hidden, token, stage = block
    x = jnp.einsum('wbd,wvd->wbv',
                   hidden.reshape(ways, -1, model_config.d_model),
                   heads.astype(model_config.dtype),
                   preferred_element_type=jnp.float32)
    x = constrain(x, ROWS, None, 'tensor').reshape(*token.shape, -1)
    x /= temperature
    # Under free legality all stages allow the same: no gather of [B,t,V].
    legal = (allowed[stage] if protocol.legality == 'masked'
             else jnp.broadcast_to(allowed[0], x.shape))
    x = jnp.where(legal, x, MASKED)
    norm = jax.nn.logsumexp(x, -1)
    logp = jnp.take_along_axis(x, token[..., None], -1)[..., 0] - norm
    expected = jnp.where(legal, jnp.exp(x - norm[..., None]) * x, 0.0).sum(-1)
    return logp, norm - expected
  return head


def _in_blocks(f, inputs, size):
  """f of arrays [B, T, ...], `size` tokens at a time."""
  B, T = inputs[0].shape[:2]
  if size >= T:
    return f(inputs)
  blocks = -(-T // size)
  def split(a):
    a = jnp.pad(a, ((0, 0), (0, blocks * size - T))
                + ((0, 0),) * (a.ndim - 2))
    return jnp.moveaxis(a.reshape(B, blocks, size, *a.shape[2:]), 1, 0)
  join = lambda a: jnp.moveaxis(a, 0, 1).reshape(B, -1)[:, :T]
  return jax.tree.map(join, jax.lax.map(f, jax.tree.map(split, inputs)))


def _heads(params, model_config, ways):
  """The head, a copy for each device that has rows; [ways, V, D] float32.

  Gathered along D once, in the compute dtype, not once per block. The gradient
  of a copy is added up over the blocks on its device, in float32; these
  gradients are summed over devices once, after the last block.
  """
  head = params['embedding' if model_config.tie_embedding else 'head']
  head = constrain(head.astype(model_config.dtype), 'tensor')
  head = head.astype(jnp.float32)
  return constrain(jnp.broadcast_to(head, (ways, *head.shape)), ROWS,
                   'tensor')
