"""The rollout: one jitted program that thinks over a batch of streams.

Each distinct prompt is prefilled once; its G samples read that one copy. Then
the rows of an engine (engine.py) decode together, one token per step. A row's
phase is a pointer into its own chunks that moves when it writes `<EOT>` or
`<skip>`. Chunks after the pointer are not read yet, so that no row waits for
another at a chunk boundary and no step is spent on reading.

The target's cache grows by doubling between while-loops: a step reads what
has been written, not the longest target that could be. (Pallas skips the rest
by itself: one loop.)
"""

from __future__ import annotations

import dataclasses
import functools

import jax

from adasr_jax.core.options import option
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Array, Given, Source, Target
from adasr_jax.models import decoder
from adasr_jax.policy.engine import OWN, SKIP, THINK, Engine, cache_sizes

__all__ = ['OWN', 'SKIP', 'THINK', 'RolloutConfig', 'cache_sizes', 'rollout']


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How a policy is sampled.

  Attributes:
    samples: G, rollouts per problem.
    thought_cap, deep_cap, answer_cap, legality: See Protocol.
    temperature, top_k, top_p: See sampling.draw; RL refuses truncation.
    rows: Most rollouts at once, but at least one per prompt on several devices
      that do not divide the prompts; a row that has ended takes the next.
      Threads count: more rows than rollouts are for children. 0 = as many as
      there are rollouts.
    children: Most children that a rollout may spawn; 0 = it spawns none.
    child_cap: Most tokens of a child, see protocol.Threads.cap.
  """
  samples: int = option(12, least=1, most=2**12)
  thought_cap: int = option(16, least=2, most=2**20)
  deep_cap: int = option(24, least=1, most=2**20)
  answer_cap: int = option(4, least=2, most=2**20)
  legality: str = option('free', choices=('free', 'masked'))
  temperature: float = option(1.0, least=0, most=100)
  top_k: int = option(0, least=0, below=2**31)
  top_p: float = option(1.0, above=0, most=1)
  rows: int = option(0, least=0, most=2**20)
  children: int = option(0, least=0, most=2**12)
  child_cap: int = option(24, least=2, most=2**20)


@functools.partial(jax.jit, static_argnames=(
    'model_config', 'protocol', 'samples', 'max_chunks', 'temperature', 'top_k',
    'top_p', 'rows'))
def rollout(params: decoder.Params, source: Source, key: jax.Array, *,
            model_config: decoder.DecoderConfig, protocol: Protocol,
            samples: int, max_chunks: int, temperature: float,
            top_k: int = 0, top_p: float = 1.0, rows: int = 0,
            decisions: Array | None = None, given: Given | None = None
            ) -> Target:
  """Samples targets over the streams of a batch.

  Args:
    params: Parameter tree.
    source: P prompts.
    key: Key of the run, folded with the step.
    model_config: Shape of the decoder.
    protocol: Control tokens, caps, legality.
    samples: G, targets per prompt.
    max_chunks: Most chunks a row has, at least source.num_chunks.max(); sets
      the static length T.
    temperature, top_k, top_p: See sampling.draw. RL needs top_k=0, top_p=1.
    rows: Most targets at once, see RolloutConfig. In float32 what is written
      does not depend on it.
    decisions: [P, max_chunks] int32, THINK or SKIP where the first token of
      the thought on a chunk is decided from outside, OWN where the policy
      decides. None = OWN everywhere.
    given: Beginnings of the P * G roots; the policy goes on from them. Given
      tokens count as forced, so that cut, bad and format of a Transcript say
      nothing there.

  Returns:
    Target with B = P * G * W rows and T = protocol.max_target(max_chunks)
    slots. W = protocol.width: a rollout's root, then its children in order;
    rows of children that were not spawned are empty.
  """
  engine = Engine(
      model_config=model_config, protocol=protocol,
      prompts=source.tokens.shape[0], samples=samples, max_chunks=max_chunks,
      temperature=temperature, top_k=top_k, top_p=top_p, rows=rows)
  loaded = engine.prepare(params, source, key, decisions, given)
  sizes = engine.cache_sizes()
  state = engine.start(loaded, sizes[0])
  for size in sizes:
    state = engine.run(loaded, engine.grown(loaded, state, size))
  return engine.targets(state)
