"""The one jitted update: micro-batched gradients of (sum, weight) losses.

  gradient = (sum_m grad sum_m) / (sum_m weight_m)

over micro-batches m of whole source rows: exactly the gradient of the whole
batch, whatever the number of micro-batches.

Where `rows` is set, a micro-batch's target rows are computed `rows` per source
row at a time, only as many as hold something: one compiled program serves
batches of all sizes. The sources are read once: with their keys and values kv,

  gradient = d sum / d params + (d kv / d params)^T d sum / d kv

where both derivatives of the sum are added up over the target rows.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adasr_jax.core.protocol import Protocol
from adasr_jax.core import sharding
from adasr_jax.core.types import (
    Array, Packing, Source, Target, TrainState)
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.policy.scoring import Against, score, score_against


@struct.dataclass
class UpdateBatch:
  """What an update learns from.

  Attributes:
    source: P prompts.
    target: B = P * G * W targets.
    mask: [B, T] bool, tokens that carry loss.
    deep: [B, T] bool, tokens of the deep phase.
    advantage: [B, T] float32; zeros for supervised targets.
    old, reference: [B, T] float32 log-probs; zeros where not used.
    packing: Prompts and samples that share rows (packing.pack); None = one per
      row.
    divergence: [B, T] float32, of the policy from a teacher; set inside the
      update, where one is given.
  """
  source: Source
  target: Target
  mask: Array
  deep: Array
  advantage: Array
  old: Array
  reference: Array
  packing: Packing | None = None
  divergence: Array | None = None


# (logp, entropy, batch) -> {name: (sum, weight)} with 'loss' among the names.
LossFn = Callable[[Array, Array, UpdateBatch], dict]


def new_state(params: decoder.Params,
              optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(params=params, opt_state=optimizer.init(params),
                    step=jnp.int32(0))


def split(batch: UpdateBatch, parts: int) -> UpdateBatch:
  """The batch with a leading axis of micro-batches of whole source rows.

  Raises:
    ValueError: `parts` does not divide the number of source rows.
  """
  P = batch.source.tokens.shape[0]
  if P % parts:
    raise ValueError(f'micro_batches={parts} does not divide {P} prompts')
  return jax.tree.map(lambda a: sharding.constrain(
      a.reshape(parts, a.shape[0] // parts, *a.shape[1:]),
      None, sharding.ROWS), batch)


@functools.partial(
    jax.jit, static_argnames=('model_config', 'protocol', 'temperature', 'loss',
                              'optimizer', 'micro_batches', 'against', 'rows'),
    donate_argnames=('state',))
def update(state: TrainState, batch: UpdateBatch, learning_rate: Array,
           frozen: lora.Frozen | None = None,
           teacher: decoder.Params | None = None, *,
           model_config: decoder.DecoderConfig, protocol: Protocol,
           temperature: float, loss: LossFn,
           optimizer: optax.GradientTransformation, micro_batches: int,
           against: Against | None = None, rows: int = 0
           ) -> tuple[TrainState, dict[str, Array]]:
  """One optimizer step.

  Args:
    state: Donated.
    batch: See UpdateBatch.
    learning_rate: [] float32, multiplies what the optimizer gives.
    frozen: What state.params adds to, where that is a LoRA tree.
    teacher: Parameters of the policy of `against`.
    model_config: Shape of the decoder.
    protocol: Control tokens and legality.
    temperature: Of the policy that is trained.
    loss: Reduces log-probs to (sum, weight) terms.
    optimizer: optax transformation, at learning rate 1.
    micro_batches: Number of pieces; divides P.
    against: The loss reads batch.divergence from this policy, and its
      log-probs as batch.reference; None = as the batch has them.
    rows: Target rows per source row that are computed at once, with packing
      and without `against`; 0 = all.

  Returns:
    The new state; metrics, each [] float32: every term's sum / weight,
    'mismatch/max' (largest |logp - behaviour|, nats), 'grad_norm' before
    clipping, 'update_norm'.
  """
  gradients = functools.partial(
      _gradients, frozen=frozen, teacher=teacher, against=against, loss=loss,
      model_config=model_config, protocol=protocol, temperature=temperature,
      rows=rows)
  sums = _accumulate(gradients, state.params, split(batch, micro_batches))
  state, norms = _optimizer_step(state, sums, learning_rate, optimizer)
  metrics = {k: s / jnp.maximum(w, 1e-8) for k, (s, w) in sums.terms.items()}
  return state, metrics | norms | {'mismatch/max': sums.mismatch}


class _Sums(NamedTuple):
  """What is added up over micro-batches.

  Attributes:
    grads: Gradient of the summed loss, not yet divided by its weight.
    terms: name -> (sum, weight), as the loss gives them.
    mismatch: Largest |logp - behaviour|, nats; a maximum, not a sum.
  """
  grads: Any
  terms: dict[str, tuple[Array, Array]]
  mismatch: Array


def _gradients(params, part: UpdateBatch, *, frozen, teacher, against, loss,
               model_config, protocol, temperature, rows) -> _Sums:
  """Those of one micro-batch."""
  if rows and part.packing is not None and against is None:
    return _gradients_by_rows(
        params, part, rows, frozen=frozen, loss=loss,
        model_config=model_config, protocol=protocol, temperature=temperature)
  given = part.source, part.target, part.packing
  static = dict(model_config=model_config, protocol=protocol,
                temperature=temperature)

  def summed_loss(params):
    policy = lora.attach(frozen, params)
    more = {}
    if against is None:
      logp, entropy = score(policy, *given, **static)
    else:
      logp, entropy, reference, divergence = score_against(
          policy, teacher, *given, against=against, **static)
      more = dict(reference=reference, divergence=divergence)
    with jax.named_scope('loss'):
      terms = loss(logp, entropy, part.replace(**more))
      mismatch = jnp.where(
          part.mask, jnp.abs(logp - part.target.logp), 0.0).max()
    return terms['loss'][0], (terms, mismatch)

  grads, (terms, mismatch) = jax.grad(summed_loss, has_aux=True)(params)
  return _Sums(sharding.constrain_params(grads), terms, mismatch)


def _gradients_by_rows(params, part: UpdateBatch, rows: int, *, frozen, loss,
                       model_config, protocol, temperature) -> _Sums:
  """The same, `rows` target rows per source row at a time; see the module."""
  policy = functools.partial(lora.attach, frozen)
  P = part.source.tokens.shape[0]
  used = part.target.valid.any(1).reshape(P, -1).sum(1).max()
  # [n, P * rows, T]; source rows keep their devices.
  blocks = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(
      P, -1, rows, a.shape[-1]), 1, 0).reshape(-1, P * rows, a.shape[-1]), (
          part.target, part.packing.target, part.packing.reads,
          {name: getattr(part, name) for name in (
              'mask', 'deep', 'advantage', 'old', 'reference')}))
  context, pull = jax.vjp(
      lambda params: decoder.prefill(policy(params), model_config, part.source,
                                     part.packing), params)

  def summed_loss(params, context, block):
    target, segment, reads, more = block
    piece = part.replace(target=target, packing=part.packing.replace(
        target=segment, reads=reads), **more)
    logp, entropy = score(
        policy(params), piece.source, target, piece.packing, context,
        model_config=model_config, protocol=protocol, temperature=temperature)
    with jax.named_scope('loss'):
      terms = loss(logp, entropy, piece)
      mismatch = jnp.where(
          piece.mask, jnp.abs(logp - target.logp), 0.0).max()
    return terms['loss'][0], (terms, mismatch)

  gradient = jax.grad(summed_loss, argnums=(0, 1), has_aux=True)
  add = functools.partial(jax.tree.map, jnp.add)

  def body(i, sums):
    (grads, kv), (terms, mismatch) = sums
    (more, more_kv), (more_terms, other) = gradient(
        params, context, jax.tree.map(lambda a: a[i], blocks))
    return (add(grads, more), add(kv, single(more_kv))), (
        add(terms, more_terms), jnp.maximum(mismatch, other))

  # Sums over blocks are in float32, whatever the decoder computes in.
  single = functools.partial(jax.tree.map, lambda a: a.astype(jnp.float32))
  (shapes, of_context), rest = jax.eval_shape(
      gradient, params, context, jax.tree.map(lambda a: a[0], blocks))
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (
      (shapes, jax.eval_shape(single, of_context)), rest))
  (grads, kv), (terms, mismatch) = jax.lax.fori_loop(
      0, -(-used // rows), body, zeros)
  kv = jax.tree.map(lambda a, b: a.astype(b.dtype), kv, of_context)
  grads = add(grads, pull(kv)[0])
  return _Sums(sharding.constrain_params(grads), terms, mismatch)


def _accumulate(gradients: Callable[[Any, UpdateBatch], _Sums], params,
                parts: UpdateBatch) -> _Sums:
  """The sums over `parts`, one after the other."""
  add = functools.partial(jax.tree.map, jnp.add)

  def body(sums, part):
    new = gradients(params, part)
    return _Sums(add(sums.grads, new.grads), add(sums.terms, new.terms),
                 jnp.maximum(sums.mismatch, new.mismatch)), None

  shapes = jax.eval_shape(gradients, params,
                          jax.tree.map(lambda a: a[0], parts))
  zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
  return jax.lax.scan(body, zeros, parts)[0]


def _optimizer_step(state: TrainState, sums: _Sums, learning_rate, optimizer
                    ) -> tuple[TrainState, dict[str, Array]]:
  """The state after the step, and the norms of the gradient and the update."""
  weight = jnp.maximum(sums.terms['loss'][1], 1e-8)
  grads = jax.tree.map(lambda g: g / weight, sums.grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  updates = jax.tree.map(lambda u: learning_rate * u, updates)
  norms = {'grad_norm': optax.global_norm(grads),
           'update_norm': optax.global_norm(updates)}
  params = sharding.constrain_params(
      optax.apply_updates(state.params, updates))
  opt_state = sharding.constrain_moments(opt_state, params)
  return TrainState(params=params, opt_state=opt_state,
                    step=state.step + 1), norms


@functools.partial(jax.jit, static_argnames=('model_config', 'protocol',
                                             'temperature'))
def logps(params: decoder.Params, source: Source, target: Target,
          packing: Packing | None = None, *,
          model_config: decoder.DecoderConfig, protocol: Protocol,
          temperature: float) -> Array:
  """score()'s log-probs only, [B, T]: of an old or a reference policy."""
  return score(params, source, target, packing, model_config=model_config,
               protocol=protocol, temperature=temperature)[0]
