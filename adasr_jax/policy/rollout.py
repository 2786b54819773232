"""The rollout: one jitted program that thinks over a batch of streams.

Each distinct prompt is prefilled once; its G samples read that one copy. Then
all rows decode together, one token per step. A row's phase is a pointer into
its own chunks that moves when it writes `<EOT>` or `<skip>`. Chunks after the
pointer are not read yet, so that no row waits for another at a chunk boundary
and no step is spent on reading.

The target's cache grows by doubling between while-loops: a step reads what
has been written, not the longest target that could be. (Pallas skips the rest
by itself: one loop.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adasr_jax.core.options import option
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.sharding import ROWS, constrain, constrain_rows
from adasr_jax.core.types import Array, Source, Target
from adasr_jax.core import visibility
from adasr_jax.models.attention import MASKED
from adasr_jax.models import decoder
from adasr_jax.models import pallas
from adasr_jax.policy import sampling

FIRST_CACHE = 32  # slots of the target cache before it first doubles
THINK, SKIP, OWN = 1, 0, -1  # values of `decisions`


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How a policy is sampled.

  Attributes:
    samples: G, rollouts per problem.
    thought_cap, deep_cap, answer_cap, legality: See Protocol.
    temperature, top_k, top_p: See sampling.draw; RL refuses truncation.
  """
  samples: int = option(12, least=1, most=2**12)
  thought_cap: int = option(16, least=2, most=2**20)
  deep_cap: int = option(24, least=1, most=2**20)
  answer_cap: int = option(4, least=2, most=2**20)
  legality: str = option('free', choices=('free', 'masked'))
  temperature: float = option(1.0, least=0, most=100)
  top_k: int = option(0, least=0, below=2**31)
  top_p: float = option(1.0, above=0, most=1)


def cache_sizes(length: int, skips_unwritten: bool = False) -> list[int]:
  """Slots of the target cache in each loop: doubled until `length` is reached.

  Args:
    length: Of the target.
    skips_unwritten: Unwritten slots cost nothing, so that there is one loop;
      see decoder.decodes_by_pallas.
  """
  sizes, size = [], FIRST_CACHE
  while size < length and not skips_unwritten:
    sizes.append(size)
    size *= 2
  return sizes + [length]


@functools.partial(jax.jit, static_argnames=(
    'model_config', 'protocol', 'samples', 'max_chunks', 'temperature', 'top_k',
    'top_p'))
def rollout(params: decoder.Params, source: Source, key: jax.Array, *,
            model_config: decoder.DecoderConfig, protocol: Protocol,
            samples: int, max_chunks: int, temperature: float,
            top_k: int = 0, top_p: float = 1.0,
            decisions: Array | None = None) -> Target:
  """Samples targets over the streams of a batch.

  Args:
    params: Parameter tree.
    source: P prompts.
    key: Key of the run, folded with the step.
    model_config: Shape of the decoder.
    protocol: Control tokens, caps, legality.
    samples: G, targets per prompt.
    max_chunks: Most chunks a row has; sets the static length T.
    temperature, top_k, top_p: See sampling.draw. RL needs top_k=0, top_p=1.
    decisions: [P, max_chunks] int32, THINK or SKIP where the first token of
      the thought on a chunk is decided from outside, OWN where the policy
      decides. None = OWN everywhere.

  Returns:
    Target with B = P * G rows and T = protocol.max_target(max_chunks) slots.
  """
  B, T = source.tokens.shape[0] * samples, protocol.max_target(max_chunks)
  skips_unwritten = decoder.decodes_by_pallas(model_config, B // samples)
  rows = lambda a: jnp.repeat(a, samples, 0)
  loaded = _load(params, source, model_config, samples, skips_unwritten)
  keys = sampling.row_keys(key, source.problem_id, samples)
  if decisions is not None:
    decisions = rows(jnp.asarray(decisions))
  draw = functools.partial(sampling.draw, temperature=temperature,
                           top_k=top_k, top_p=top_p)
  step = functools.partial(
      _step, loaded=loaded, keys=keys, decisions=decisions, draw=draw,
      params=params, model_config=model_config, protocol=protocol)

  def unfinished(carry, size):
    t, state, _, _ = carry
    return (t + 1 < size) & jnp.any(state.stage != protocol_lib.DONE)

  kv = (model_config.num_layers, B, model_config.num_kv_heads, 0,
        model_config.head_dim)
  state = protocol_lib.start(protocol, rows(jnp.asarray(source.num_chunks)))
  cache = decoder.by_layer((jnp.zeros(kv, model_config.dtype),) * 2)
  carry = (jnp.int32(0), state, cache,
           constrain_rows(_empty_target(protocol, B, T)))
  for size in cache_sizes(T, skips_unwritten):
    t, state, cache, out = carry
    grow = lambda a, size=size: _grown(a, size, samples, skips_unwritten)
    with jax.named_scope('decode'):
      carry = jax.lax.while_loop(
          functools.partial(unfinished, size=size), step,
          (t, state, jax.tree.map(grow, cache), out))
  return carry[3]


class _Loaded(NamedTuple):
  """What stays the same in all steps: the layers, and what is read."""
  layers: decoder.Params
  context: decoder.KV  # by layer
  read: visibility.Segments  # [B,S], of the source


def _load(params, source, model_config, samples, skips_unwritten) -> _Loaded:
  """Prefills each prompt once."""
  with jax.named_scope('prefill'):
    context = decoder.by_layer(jax.tree.map(
        lambda a: _grown(a, a.shape[-2], 1, skips_unwritten),
        decoder.prefill(params, model_config, source)))
  return _Loaded(layers=decoder.by_layer(params['layers']), context=context,
                 read=decoder.context_segments(source, samples))


def _grown(a, slots, rows, skips_unwritten):
  """Keys or values [..., B, K, S', H] with room for `slots` slots."""
  if skips_unwritten:
    slots = math.prod(pallas.decode_blocks(slots, rows))
  more = ((0, slots - a.shape[-2]), (0, 0))
  a = jnp.pad(a, ((0, 0),) * (a.ndim - 2) + more)
  return constrain(a, *(None,) * (a.ndim - 4), ROWS, 'tensor')


def _empty_target(protocol: Protocol, B: int, T: int) -> Target:
  """Targets that hold their first prefix token."""
  ints = lambda fill: jnp.full((B, T), fill, jnp.int32)
  floats = jnp.zeros((B, T))
  first = jnp.arange(T)[None] == 0
  return Target(
      tokens=jnp.where(first, protocol.prefix[0], ints(0)), phase=ints(0),
      stage=jnp.where(first, protocol_lib.PREFIX, ints(protocol_lib.DONE)),
      valid=jnp.broadcast_to(first, (B, T)), sampled=jnp.zeros((B, T), bool),
      logp=floats, logp_untruncated=floats)


def _allowed(protocol, state, decisions):
  """What each row may write next, [B, V] bool, and must, [B] int32 (or -1)."""
  legal = jnp.asarray(protocol.allowed)[state.stage]
  forced = protocol_lib.forced(protocol, state)
  if decisions is not None:
    chunk = jnp.clip(state.phase - 1, 0, decisions.shape[1] - 1)
    decided = jnp.where(
        state.stage == protocol_lib.FIRST,
        jnp.take_along_axis(decisions, chunk[:, None], 1)[:, 0], OWN)
    forced = jnp.where(decided == SKIP, protocol.skip, forced)
    no_skip = jnp.arange(protocol.vocab_size) != protocol.skip
    legal &= no_skip[None] | (decided != THINK)[:, None]
  return legal, forced


def _step(carry, *, loaded, keys, decisions, draw, params, model_config,
          protocol):
  """Feeds the token at slot t of every row and writes the one at t + 1."""
  t, state, cache, out = carry
  read = loaded.read
  context_limit = (read.valid & (read.phase <= state.phase[:, None])
                   ).sum(1, dtype=jnp.int32)
  hidden, cache = decoder.decode_step(
      params, loaded.layers, model_config, loaded.context, context_limit,
      cache, out.tokens[:, t], t)
  legal, forced = _allowed(protocol, state, decisions)
  with jax.named_scope('head'):
    scores = jnp.where(legal, decoder.logits(params, model_config, hidden),
                       MASKED)
  with jax.named_scope('sampling'):
    token, logp, full = draw(scores, sampling.step_keys(keys, t + 1))
  token = jnp.where(forced >= 0, forced, token)
  live = state.stage != protocol_lib.DONE
  sampled = live & (forced < 0)
  zero = lambda x: jnp.where(sampled, x, 0.0)
  new = Target(tokens=jnp.where(live, token, 0),
               phase=jnp.where(live, state.phase, 0), stage=state.stage,
               valid=live, sampled=sampled, logp=zero(logp),
               logp_untruncated=zero(full))
  out = jax.tree.map(lambda a, b: a.at[:, t + 1].set(b), out, new)
  return t + 1, protocol_lib.advance(protocol, state, token), cache, out
