"""Drawing a token from logits, and what its log-probability is."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from adasr_jax.core.sharding import ROWS, constrain
from adasr_jax.core.types import Array
from adasr_jax.models.attention import MASKED


# Logits over less are not numbers any more; 0 is the most probable token.
LEAST_TEMPERATURE = 1e-6


def truncate(logits: Array, *, top_k: int, top_p: float) -> Array:
  """Logits with all but the most probable tokens masked; [B, V].

  Keeps the `top_k` largest (0 or above V = all), then the smallest set of them
  whose probability reaches `top_p` (1 = all). Ties at the threshold are kept.
  """
  if top_k:
    # Their minimum: from a slice of them XLA makes a sort of the vocabulary.
    kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0].min(
        -1, keepdims=True)
    logits = jnp.where(logits >= kth, logits, MASKED)
  if top_p < 1.0:
    ranked = -jnp.sort(-logits, -1)
    probs = jax.nn.softmax(ranked, -1)
    kept = jnp.cumsum(probs, -1) - probs < top_p  # the first is always kept
    least = jnp.where(kept, ranked, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, MASKED)
  return logits


def draw(logits: Array, uniform: Array, *, temperature: float, top_k: int = 0,
         top_p: float = 1.0) -> tuple[Array, Array, Array]:
  """One token per row from softmax(logits / temperature), perhaps truncated.

  Args:
    logits: [B, V] float32, illegal tokens already masked.
    uniform: [B, 2] float32 in [0, 1), two random numbers per row.
    temperature: At least LEAST_TEMPERATURE, or 0 for the most probable token.
    top_k: Tokens kept, 0 = all.
    top_p: Probability kept, 1 = all.

  Returns:
    token: [B] int32.
    logp: [B] float32, nats, under the distribution that was sampled
      (0 for temperature 0).
    logp_untruncated: [B] float32, nats, before top-k/top-p (temperature 0:
      of softmax(logits)).
  """
  pick = lambda logp, i: jnp.take_along_axis(logp, i[:, None], 1)[:, 0]
  if temperature == 0:
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    full = pick(jax.nn.log_softmax(logits), token)
    return token, jnp.zeros_like(full), full
  logits = logits / temperature
  kept = truncate(logits, top_k=top_k, top_p=top_p)
  token = _choose(kept, uniform)
  norm = lambda x: jax.nn.logsumexp(x, -1)
  full = pick(logits, token) - norm(logits)
  if kept is logits:
    return token, full, full
  return token, pick(kept, token) - norm(kept), full


def _choose(logits, uniform):
  """[B] int32, one token per row from softmax(logits), by inverting its CDF.

  First a block of the vocabulary, then a token in it: two uniform numbers per
  row, where Gumbel noise needs V, and no float32 sum over a whole vocabulary.
  (The noise took two fifths of a decode step on CPU.) Blocks are cut so that
  a vocabulary split over devices stays where it is.
  """
  B, V = logits.shape
  width = 1 << V.bit_length() // 2
  blocks = math.gcd(V, width)
  if blocks >= 8:  # as in all large models: V is such a multiple
    width = V // blocks
  weight = jnp.exp(logits - logits.max(-1, keepdims=True))
  weight = jnp.pad(weight, ((0, 0), (0, -V % width))).reshape(B, -1, width)
  weight = constrain(weight, ROWS, 'tensor')

  def invert(weight, u):
    # Despite rounding, nothing without weight is drawn, and something always.
    total = jnp.where(weight > 0, jnp.cumsum(weight, -1), 0.0)
    most = total.max(-1, keepdims=True)
    return jnp.argmax((total > u[:, None] * most) | (total == most), -1)

  block = invert(weight.sum(-1), uniform[:, 0])
  inside = invert(jnp.take_along_axis(
      weight, block[:, None, None], 1)[:, 0], uniform[:, 1])
  return (block * width + inside).astype(jnp.int32)


def row_keys(key: Array, problem_id: Array, samples: int) -> Array:
  """[B] keys: the run's and step's key, folded with problem and sample.

  Neither batch order nor micro-batching can change a sample.

  Args:
    key: Key of the run, already folded with the step.
    problem_id: [P] uint32.
    samples: G.
  """
  fold = jax.random.fold_in
  of_prompt = jax.vmap(lambda i: fold(key, i))(problem_id)
  of_row = jax.vmap(lambda k: jax.vmap(lambda g: fold(k, g))(
      jnp.arange(samples)))(of_prompt)
  return of_row.reshape(-1)


def uniforms(keys: Array, slots: int) -> Array:
  """[B, T, 2] float32 in [0, 1): the random numbers of all T slots of rows.

  Those of a slot are drawn from the row's key, folded with the slot. They are
  made at once: on CPU making them in each step takes a tenth of it.
  """
  of_slot = lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), (2,))
  return jax.vmap(lambda key: jax.vmap(lambda t: of_slot(key, t))(
      jnp.arange(slots)))(keys)
