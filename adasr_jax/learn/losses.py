"""Losses as (sum, weight), reduced per phase by segment masks.

With ratio r_t = exp(logp_t - old_t), advantage A_t and per-token weights w_t:

  clip:   l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t)
  cispo:  l_t = -sg[clip(r_t, 1 - low, 1 + high)] A_t logp_t
  GSPO:   as clip, with r_t replaced by the sample's geometric mean ratio
          (its value; the gradient flows through each token)
  KL:     k3_t = exp(ref_t - logp_t) - (ref_t - logp_t) - 1 >= 0

  objective = (sum_S w l + sum_D w l) / W

Aggregation sets w and W: `token` w = 1, W = tokens; `sequence` w = 1 / tokens
of the sample, W = samples that have tokens; `constant` w = 1 / constant, W =
samples that have tokens. W depends only on masks, so sums and weights may be
added over micro-batches and devices before they are divided.

With threads a sample is one thread, and `constant` counts rollouts: W = roots
that have tokens. So the loss does not depend on how a rollout's tokens are
spread over threads. `sequence` would need the tokens of threads that lie in
other rows; hrpo.py refuses it.

Source: clipped surrogate, arXiv 1707.06347; decoupled clip and token mean,
DAPO arXiv 2503.14476; GSPO arXiv 2507.18071 (token variant, eq. 14); CISPO,
arXiv 2506.13585; Dr.GRPO constant, arXiv 2503.20783; truncated importance
sampling on behaviour log-probs, as used by several RL libraries.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.core.types import Array

RATIOS = ('token', 'sequence')
SURROGATES = ('clip', 'cispo')
AGGREGATIONS = ('token', 'sequence', 'constant')
Terms = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The policy loss. Hashable, so a static jit argument.

  Attributes:
    ratio: 'token' or 'sequence' (GSPO).
    surrogate: 'clip' or 'cispo'.
    clip_low, clip_high: The ratio stays in [1 - clip_low, 1 + clip_high].
    aggregation: One of AGGREGATIONS.
    constant: Tokens; divisor under 'constant'.
    kl_weight: Weight of the k3 estimate against the reference; 0 = off.
    behaviour_cap: Truncated importance sampling: each token's loss is
      multiplied by min(exp(old - behaviour), cap); 0 = off.
  """
  ratio: str = option('token', choices=RATIOS)
  surrogate: str = option('clip', choices=SURROGATES)
  clip_low: float = option(0.2, above=0, most=1e6)
  clip_high: float = option(0.28, above=0, most=1e6)
  aggregation: str = option('token', choices=AGGREGATIONS)
  constant: float = option(64.0, least=1e-6, most=1e9)
  kl_weight: float = option(0.0, least=0, most=1e6)
  behaviour_cap: float = option(0.0, least=0, most=1e6)

  def __post_init__(self):
    options.check(self)


@dataclasses.dataclass(frozen=True)
class LossSection(LossConfig):
  """The config's section: the loss, and how a step's rollouts reach it.

  Attributes:
    mask_overlong: Rollouts that reached a cap carry no loss.
    inner_epochs: Updates per batch of rollouts.
    micro_batches: Pieces of a batch whose gradients are summed.
    refills: Dynamic sampling drops groups without any advantage; at most this
      many further batches are rolled out to replace them.
  """
  mask_overlong: bool = option(False)
  inner_epochs: int = option(1, least=1, most=2**10)
  micro_batches: int = option(1, least=1, most=2**16)
  refills: int = option(0, least=0, most=2**10)

  def loss(self) -> LossConfig:
    """The part that the compiled update depends on."""
    return LossConfig(**{f.name: getattr(self, f.name)
                         for f in dataclasses.fields(LossConfig)})


def _sample_sums(x: Array, sample: Array | None) -> Array:
  """[B, n], the sum over each sample of a row; n = 1 where a row is one.

  Args:
    x: [B, T] float32.
    sample: [B, T] int32 in [-1, T), which sample of the row a token is of;
      None = rows are samples.
  """
  if sample is None:
    return x.sum(1, keepdims=True)
  n = x.shape[1]
  return jax.vmap(lambda x, at: jax.ops.segment_sum(x, at, n))(
      x, jnp.where(sample < 0, n, sample))


def _of_sample(sums: Array, sample: Array | None) -> Array:
  """Each token's entry of _sample_sums; broadcasts to [B, T]."""
  if sample is None:
    return sums
  return jnp.take_along_axis(sums, jnp.maximum(sample, 0), 1)


def token_weights(mask: Array, aggregation: str, constant: float = 1.0,
                  sample: Array | None = None, child: Array | None = None
                  ) -> tuple[Array, Array]:
  """w [B, T] float32 and W [] float32 of an aggregation; see the module.

  Args:
    mask: [B, T] bool, tokens that carry loss.
    aggregation, constant: See LossConfig.
    sample: [B, T] int32, see policy_loss.
    child: [B, T] bool, tokens of children; None = there are none.
  """
  counted = (mask if child is None else mask & ~child).astype(jnp.float32)
  mask = mask.astype(jnp.float32)
  if aggregation == 'token':
    return mask, mask.sum()
  rows = (_sample_sums(counted, sample) > 0).astype(jnp.float32).sum()
  if aggregation == 'sequence':
    length = _of_sample(_sample_sums(mask, sample), sample)
    return mask / jnp.maximum(length, 1.0), rows
  if aggregation == 'constant':
    return mask / constant, rows
  raise ValueError(f'aggregation={aggregation!r} is not one of {AGGREGATIONS}')


def masked_sum(values: Array, mask: Array) -> tuple[Array, Array]:
  """(sum over mask, entries in mask), both [] float32."""
  return (jnp.where(mask, values, 0.0).sum(),
          mask.astype(jnp.float32).sum())


def _by_phase(name, values, mask, deep) -> Terms:
  return {f'{name}/streaming': masked_sum(values, mask & ~deep),
          f'{name}/deep': masked_sum(values, mask & deep)}


def policy_loss(logp: Array, entropy: Array, *, old: Array, behaviour: Array,
                reference: Array, advantage: Array, mask: Array, deep: Array,
                config: LossConfig, sample: Array | None = None,
                child: Array | None = None) -> Terms:
  """The HRPO/GRPO objective and its health metrics.

  Args:
    logp: [B, T] current log-probs, nats, aligned with the tokens.
    entropy: [B, T] nats.
    old: [B, T] log-probs of the policy whose rollouts these count as.
    behaviour: [B, T] log-probs under the distribution that was sampled.
    reference: [B, T] log-probs of the reference policy (used where kl_weight
      is not 0).
    advantage: [B, T].
    mask: [B, T] bool, tokens that carry loss.
    deep: [B, T] bool, the phase segment: deep reasoning and answer.
    config: The loss.
    sample: [B, T] int32, which sample of its row a token is of, -1 where none;
      None = rows are samples.
    child: [B, T] bool, tokens of children; None = there are none.

  Returns:
    name -> (sum, weight), each [] float32; 'loss' is the objective. Means of
    different weights must not be compared; sums and weights may be added over
    micro-batches.
  """
  c = config
  zero = lambda x: jnp.where(mask, x, 0.0)
  delta = zero(logp - old)
  if c.ratio == 'sequence':
    length = jnp.maximum(_sample_sums(mask.astype(delta.dtype), sample), 1)
    mean = jax.lax.stop_gradient(
        _of_sample(_sample_sums(delta, sample) / length, sample))
    delta = zero(mean + logp - jax.lax.stop_gradient(logp))
  ratio = jnp.exp(delta)
  clipped = jnp.clip(ratio, 1 - c.clip_low, 1 + c.clip_high)
  if c.surrogate == 'clip':
    surrogate = -jnp.minimum(ratio * advantage, clipped * advantage)
  else:
    surrogate = -jax.lax.stop_gradient(clipped) * advantage * zero(logp)
  if c.behaviour_cap:
    surrogate *= jnp.minimum(
        jax.lax.stop_gradient(jnp.exp(zero(old - behaviour))),
        c.behaviour_cap)
  w, total = token_weights(mask, c.aggregation, c.constant, sample, child)
  objective = (w * surrogate).sum()
  if c.kl_weight:
    gap = zero(reference - logp)
    k3 = jnp.exp(gap) - gap - 1
    objective += c.kl_weight * (w * k3).sum()
  binds = jnp.where(advantage > 0, ratio > 1 + c.clip_high,
                    ratio < 1 - c.clip_low) & (advantage != 0)
  as_float = lambda x: x.astype(jnp.float32)
  mismatch = jnp.abs(zero(logp - behaviour))
  terms = {
      'loss': (objective, total),
      'clip_fraction': masked_sum(as_float(binds), mask),
      'entropy': masked_sum(entropy, mask),
      'ratio': masked_sum(ratio, mask),
      'mismatch/mean': masked_sum(mismatch, mask),
      **_by_phase('loss', surrogate, mask, deep),
      **_by_phase('entropy', entropy, mask, deep),
  }
  if c.kl_weight:
    terms['kl'] = masked_sum(k3, mask)
  return terms


def cross_entropy(logp: Array, entropy: Array, *, mask: Array, deep: Array
                  ) -> Terms:
  """Supervised loss -log pi(token), token mean; [B, T] arguments as above."""
  return {'loss': masked_sum(-logp, mask),
          'entropy': masked_sum(entropy, mask),
          **_by_phase('loss', -logp, mask, deep)}
