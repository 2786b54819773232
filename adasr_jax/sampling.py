"""Drawing a token from logits, and what its log-probability is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adasr_jax.models.attention import MASKED
from adasr_jax.types import Array


def truncate(logits: Array, *, top_k: int, top_p: float) -> Array:
  """Logits with all but the most probable tokens masked; [B, V].

  Keeps the `top_k` largest (0 = all), then the smallest set of them whose
  probability reaches `top_p` (1 = all). Ties at the border are kept.
  """
  if top_k:
    kth = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits >= kth, logits, MASKED)
  if top_p < 1.0:
    ranked = -jnp.sort(-logits, -1)
    probs = jax.nn.softmax(ranked, -1)
    kept = jnp.cumsum(probs, -1) - probs < top_p  # the first is always kept
    least = jnp.where(kept, ranked, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, MASKED)
  return logits


def draw(logits: Array, keys: Array, *, temperature: float, top_k: int = 0,
         top_p: float = 1.0) -> tuple[Array, Array, Array]:
  """One token a row from softmax(logits / temperature), perhaps truncated.

  Args:
    logits: [B, V] float32, illegal tokens already masked.
    keys: [B] random keys, one a row.
    temperature: > 0, or 0 for the most probable token.
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
  token = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
  full = pick(jax.nn.log_softmax(logits), token)
  if kept is logits:
    return token, full, full
  return token, pick(jax.nn.log_softmax(kept), token), full


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


def step_keys(keys: Array, slot: Array) -> Array:
  """[B] keys of one token index."""
  return jax.vmap(lambda k: jax.random.fold_in(k, slot))(keys)
