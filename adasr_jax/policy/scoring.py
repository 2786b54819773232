"""Log-probabilities of given targets, by the rollout's own rules."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from adasr_jax.core import protocol as protocol_lib
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
          packing: Packing | None = None, context: decoder.KV | None = None, *,
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
    target: B = P * G * W targets.
    packing: Prompts and samples that share rows; None = one per row.
    context: The prompts' keys and values, where they are at hand.
    model_config: Shape of the decoder.
    protocol: Control tokens and legality.
    temperature: > 0; 1 for supervised targets.

  Returns:
    logp, entropy: [B, T] float32, nats, aligned with target.tokens; 0 where a
    token was forced or is not valid.
  """
  hidden = _hidden(params, model_config, source, target, packing, context)
  logp, entropy = of_hidden(
      params, hidden, target.tokens[:, 1:], target.stage[:, 1:],
      model_config=model_config, protocol=protocol, temperature=temperature)
  return _of_sampled(logp, target), _of_sampled(entropy, target)


def of_hidden(params: decoder.Params, hidden: Array, token: Array,
              stage: Array, *, model_config: decoder.DecoderConfig,
              protocol: Protocol, temperature: float) -> tuple[Array, Array]:
  """Log-probs and entropies [B, t] of tokens, from what predicts them.

  Args:
    params: Parameter tree.
    hidden: [B, t, D], of the tokens before.
    token, stage: [B, t] int32.
    model_config, protocol, temperature: As in score().
  """
  ways, size = _block_size(token, model_config)
  with jax.named_scope('head'):
    return _in_blocks(
        _head(params, model_config, protocol, temperature, ways),
        (hidden, token, stage), size)


def skip_logp(params: decoder.Params, source: Source, target: Target, *,
              model_config: decoder.DecoderConfig, protocol: Protocol) -> Array:
  """Log-probability of `<skip>` wherever a thought could begin.

  Args:
    params: Parameter tree.
    source, target: P prompts; B = P * G * W targets.
    model_config, protocol: As in score().

  Returns:
    [B, T] float32, nats, at temperature 1; 0 where no thought could begin.
  """
  hidden = _hidden(params, model_config, source, target, None)
  stage = target.stage[:, 1:]
  logp, _ = of_hidden(params, hidden, jnp.full_like(stage, protocol.skip),
                      stage, model_config=model_config, protocol=protocol,
                      temperature=1.0)
  return jnp.where(target.valid & (target.stage == protocol_lib.FIRST),
                   jnp.pad(logp, ((0, 0), (1, 0))), 0.0)


@dataclasses.dataclass(frozen=True)
class Against:
  """Another policy, to compare one with. Hashable, so a static jit argument.

  Attributes:
    model_config: Shape of its decoder; the vocabulary is the same.
    reads: What it has read at each token, see visibility.as_read.
    divergence: Log-probs [B,t,V] of the policy and of the other -> [B,t].
  """
  model_config: decoder.DecoderConfig
  reads: str
  divergence: Callable[[Array, Array], Array]


def score_against(params: decoder.Params, other: decoder.Params,
                  source: Source, target: Target,
                  packing: Packing | None = None, *, against: Against,
                  model_config: decoder.DecoderConfig, protocol: Protocol,
                  temperature: float) -> tuple[Array, Array, Array, Array]:
  """score(), and what another policy makes of each whole distribution.

  Both are scored under one legality and temperature, in blocks half as large:
  [B, T, V] is never materialised. No gradient flows into `other`.

  Args:
    params: Parameter tree.
    other: That of the other policy.
    source, target, packing: As in score().
    against: What the other policy is, and how the two are compared.
    model_config, protocol, temperature: As in score().

  Returns:
    logp, entropy: As score() gives them.
    other_logp: [B, T] float32, nats, of the other policy.
    divergence: [B, T] float32; 0 where a token was forced or is not valid.
  """
  ways, size = _block_size(target.tokens, model_config)
  hidden = _hidden(params, model_config, source, target, packing)
  other_hidden = _hidden(other, against.model_config,
                         visibility.as_read(source, against.reads), target,
                         packing)
  with jax.named_scope('head'):
    out = _in_blocks(
        _two_heads(params, model_config, other, against, protocol,
                   temperature, ways),
        (hidden, jax.lax.stop_gradient(other_hidden), target.tokens[:, 1:],
         target.stage[:, 1:]), max(1, size // 2))
  return tuple(_of_sampled(a, target) for a in out)


def _hidden(params, model_config, source, target, packing, context=None):
  """[B,T-1,D]; entry t predicts the token at slot t + 1."""
  return decoder.target_hidden(
      params, model_config, source, target.tokens[:, :-1],
      visibility.query_phase(target.phase), target.valid[:, :-1], packing,
      context)


def _of_sampled(a, target):
  """[B,T] of [B,T-1]: aligned with the tokens, 0 where none was sampled."""
  return jnp.where(target.sampled, jnp.pad(a, ((0, 0), (1, 0))), 0.0)


def _block_size(tokens, model_config):
  """Devices that share the rows; tokens of a row in one block."""
  B = tokens.shape[0]
  ways = sharding.row_ways() if B % sharding.row_ways() == 0 else 1
  return ways, max(1, HEAD_ELEMENTS[sharding.platform()]
                   // (B // ways * model_config.vocab_size))


def _head(params, model_config, protocol, temperature, ways):
  """hidden [B,t,D], token [B,t], stage [B,t] -> logp, entropy [B,t]."""
  heads = _heads(params, model_config, ways)

  @jax.checkpoint
  def head(block):
    hidden, token, stage = block
    x, legal = _logits(hidden, heads, stage, model_config, protocol,
                       temperature)
    return _of_token(x, legal, token)[:2]
  return head


def _two_heads(params, model_config, other, against, protocol, temperature,
               ways):
  """As _head, with the other's hidden [B,t,E] second; see score_against."""
  heads = _heads(params, model_config, ways)
  # Without a gradient that is summed, its compute dtype is enough.
  other_heads = jax.lax.stop_gradient(_heads(
      other, against.model_config, ways, against.model_config.dtype))

  @jax.checkpoint
  def head(block):
    hidden, other_hidden, token, stage = block
    x, legal = _logits(hidden, heads, stage, model_config, protocol,
                       temperature)
    y, _ = _logits(other_hidden, other_heads, stage, against.model_config,
                   protocol, temperature)
    logp, entropy, norm = _of_token(x, legal, token)
    other_logp, _, other_norm = _of_token(y, legal, token)
    return logp, entropy, other_logp, against.divergence(
        x - norm[..., None], y - other_norm[..., None])
  return head


def _logits(hidden, heads, stage, model_config, protocol, temperature):
  """[B,t,V] logits over temperature, MASKED where not legal; and the legal."""
  ways, allowed = len(heads), jnp.asarray(protocol.allowed)
  x = jnp.einsum('wbd,wvd->wbv',
                 hidden.reshape(ways, -1, model_config.d_model),
                 heads.astype(model_config.dtype),
                 preferred_element_type=jnp.float32)
  x = constrain(x, ROWS, None, 'tensor').reshape(*stage.shape, -1)
  x /= temperature
  # Where all stages allow the same: no gather of [B,t,V].
  legal = (jnp.broadcast_to(allowed[0], x.shape) if protocol.alike
           else allowed[stage])
  return jnp.where(legal, x, MASKED), legal


def _of_token(x, legal, token):
  """logp of the token, entropy and logsumexp; each [B,t]."""
  norm = jax.nn.logsumexp(x, -1)
  logp = jnp.take_along_axis(x, token[..., None], -1)[..., 0] - norm
  expected = jnp.where(legal, jnp.exp(x - norm[..., None]) * x, 0.0).sum(-1)
  return logp, norm - expected, norm


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


def _heads(params, model_config, ways, dtype='float32'):
  """The head, a copy for each device that has rows; [ways, V, D] of dtype.

  Gathered along D once, in the compute dtype, not once per block. The gradient
  of a copy is added up over the blocks on its device, in float32; these
  gradients are summed over devices once, after the last block.
  """
  head = params['embedding' if model_config.tie_embedding else 'head']
  head = constrain(head.astype(model_config.dtype), 'tensor')
  head = head.astype(dtype)
  return constrain(jnp.broadcast_to(head, (ways, *head.shape)), ROWS,
                   'tensor')
