"""The one jitted update: micro-batched gradients of (sum, weight) losses.

  gradient = (sum_m grad sum_m) / (sum_m weight_m)

over micro-batches m of whole prompt groups: exactly the gradient of the whole
batch, whatever the number of micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adasr_jax.core.protocol import Protocol
from adasr_jax.core import sharding
from adasr_jax.core.types import Array, Source, Target, TrainState
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.policy.scoring import score


@struct.dataclass
class UpdateBatch:
  """What an update learns from.

  Attributes:
    source: P prompts.
    target: B = P * G targets.
    mask: [B, T] bool, tokens that carry loss.
    deep: [B, T] bool, tokens of the deep phase.
    advantage: [B, T] float32; zeros for supervised targets.
    old, reference: [B, T] float32 log-probs; zeros where not used.
  """
  source: Source
  target: Target
  mask: Array
  deep: Array
  advantage: Array
  old: Array
  reference: Array


# (logp, entropy, batch) -> {name: (sum, weight)} with 'loss' among the names.
LossFn = Callable[[Array, Array, UpdateBatch], dict]


def new_state(params: decoder.Params,
              optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(params=params, opt_state=optimizer.init(params),
                    step=jnp.int32(0))


def split(batch: UpdateBatch, parts: int) -> UpdateBatch:
  """The batch with a leading axis of micro-batches of whole groups.

  Raises:
    ValueError: `parts` does not divide the number of prompts.
  """
  P = batch.source.tokens.shape[0]
  if P % parts:
    raise ValueError(f'micro_batches={parts} does not divide {P} prompts')
  return jax.tree.map(lambda a: sharding.constrain(
      a.reshape(parts, a.shape[0] // parts, *a.shape[1:]),
      None, sharding.ROWS), batch)


@functools.partial(
    jax.jit, static_argnames=('model_config', 'protocol', 'temperature', 'loss',
                              'optimizer', 'micro_batches'),
    donate_argnames=('state',))
def update(state: TrainState, batch: UpdateBatch, learning_rate: Array,
           frozen: lora.Frozen | None = None, *,
           model_config: decoder.DecoderConfig, protocol: Protocol,
           temperature: float, loss: LossFn,
           optimizer: optax.GradientTransformation, micro_batches: int
           ) -> tuple[TrainState, dict[str, Array]]:
  """One optimizer step.

  Args:
    state: Donated.
    batch: See UpdateBatch.
    learning_rate: [] float32, multiplies what the optimizer gives.
    frozen: What state.params adds to, where that is a LoRA tree.
    model_config: Shape of the decoder.
    protocol: Control tokens and legality.
    temperature: Of the policy that is trained.
    loss: Reduces log-probs to (sum, weight) terms.
    optimizer: optax transformation, at learning rate 1.
    micro_batches: Number of pieces; divides P.

  Returns:
    The new state; metrics, each [] float32: every term's sum / weight,
    'mismatch/max' (largest |logp - behaviour|, nats), 'grad_norm' before
    clipping, 'update_norm'.
  """
  def micro(params, part):
    logp, entropy = score(
        lora.attach(frozen, params), part.source, part.target,
        model_config=model_config,
        protocol=protocol, temperature=temperature)
    terms = loss(logp, entropy, part)
    gap = jnp.where(part.mask, jnp.abs(logp - part.target.logp), 0.0).max()
    return terms['loss'][0], (terms, gap)

  def accumulate(carry, part):
    grads, terms, gap = carry
    g, (new, new_gap) = jax.grad(micro, has_aux=True)(state.params, part)
    g = sharding.constrain_params(g)
    add = functools.partial(jax.tree.map, jnp.add)
    return (add(grads, g), add(terms, new), jnp.maximum(gap, new_gap)), None

  parts = split(batch, micro_batches)
  shapes = jax.eval_shape(
      lambda p, b: jax.grad(micro, has_aux=True)(p, b), state.params,
      jax.tree.map(lambda a: a[0], parts))
  zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype),
                                    tree)
  (grads, terms, gap), _ = jax.lax.scan(
      accumulate, (zeros(shapes[0]), zeros(shapes[1][0]), jnp.float32(0)),
      parts)
  weight = jnp.maximum(terms['loss'][1], 1e-8)
  grads = jax.tree.map(lambda g: g / weight, grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda u: learning_rate * u, updates)
  metrics = {k: s / jnp.maximum(w, 1e-8) for k, (s, w) in terms.items()}
  metrics |= {'mismatch/max': gap, 'grad_norm': optax.global_norm(grads),
              'update_norm': optax.global_norm(updates)}
  params = sharding.constrain_params(
      optax.apply_updates(state.params, updates))
  opt_state = sharding.constrain_moments(opt_state, params)
  return TrainState(params=params, opt_state=opt_state,
                    step=state.step + 1), metrics


@functools.partial(jax.jit, static_argnames=('model_config', 'protocol',
                                             'temperature'))
def logps(params: decoder.Params, source: Source, target: Target, *,
          model_config: decoder.DecoderConfig, protocol: Protocol,
          temperature: float) -> Array:
  """score()'s log-probs alone, [B, T]: of an old or a reference policy."""
  return score(params, source, target, model_config=model_config,
               protocol=protocol,
               temperature=temperature)[0]
