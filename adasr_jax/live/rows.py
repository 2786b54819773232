"""Rows of an engine whose sources arrive piece by piece, from the host.

The programs are few and small, and each is compiled once: a row begins, reads
up to BLOCK source tokens, learns that its source has ended, goes back, stops;
all rows write up to MOST_STEPS tokens. Between two calls the host looks at what
was written. Buffers are donated: nothing is copied, and memory does not grow.

Not for several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
import time
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.types import Array
from adasr_jax.models import decoder
from adasr_jax.policy import sampling
from adasr_jax.policy.engine import Engine, Loaded, State

BLOCK = 32  # source tokens of one call
MOST_STEPS = 8  # tokens that a row writes in one call
CALL_SECONDS = 0.02  # what a call should take, so that nobody waits for it long


@struct.dataclass
class Seats:
  """All that changes while sessions come and go; B rows.

  Attributes:
    state: Of the engine. What its rows have written, `out`, may be left over
      from earlier sessions.
    context: [L, B, K, S, H], the sources; see decoder.for_decoding.
    uniform: [B, 1, T, 2], the random numbers of the rows.
    length: [B] int32, slots of each source that have been read.
  """
  state: State
  context: decoder.KV
  uniform: Array
  length: Array


class Token(NamedTuple):
  """A token that a row has written.

  Attributes:
    id: Token id.
    phase, stage: Where it was drawn, see protocol.py.
    sampled: False where it was forced.
  """
  id: int
  phase: int
  stage: int
  sampled: bool


def _program(f):
  """f jitted for an engine; the Seats given to it are used up."""
  return jax.jit(f, static_argnums=0, donate_argnums=1)


def _at(row, a, value):
  return a.at[row].set(value)


@_program
def _begin(engine: Engine, seats: Seats, row, key, problem_id, num_chunks):
  state = seats.state
  begun = protocol_lib.start(engine.protocol, num_chunks[None])
  first = engine.protocol.prefix[0]
  jobs = state.jobs.replace(
      num_chunks=_at(row, state.jobs.num_chunks, num_chunks),
      limits=_at(row, state.jobs.limits, 0),
      arrived=_at(row, state.jobs.arrived, -1))
  uniform = sampling.uniforms(
      sampling.row_keys(key, problem_id[None], 1), engine.slots)
  return seats.replace(
      uniform=_at(row, seats.uniform, uniform),
      length=_at(row, seats.length, 0),
      state=state.replace(
          slot=_at(row, state.slot, 0), token=_at(row, state.token, first),
          jobs=jobs, automaton=jax.tree.map(
              lambda a, b: _at(row, a, b[0]), state.automaton, begun)))


@_program
def _read(engine: Engine, seats: Seats, params, layers, row, tokens, count,
          phase, arrived):
  jobs, start = seats.state.jobs, seats.length[row]
  context = decoder.read_on(params, layers, engine.model_config, seats.context,
                            row, start, tokens)
  length = start + count
  later = jnp.arange(jobs.limits.shape[1]) >= phase
  jobs = jobs.replace(
      limits=_at(row, jobs.limits, jnp.where(later, length, jobs.limits[row])),
      arrived=_at(row, jobs.arrived, arrived))
  return seats.replace(context=context, length=_at(row, seats.length, length),
                       state=seats.state.replace(jobs=jobs))


@_program
def _end(engine: Engine, seats: Seats, row, num_chunks):
  del engine
  state, jobs, at = (seats.state, seats.state.jobs, seats.state.automaton)
  deep = (at.stage[row] == protocol_lib.FIRST) & (at.phase[row] > num_chunks)
  return seats.replace(state=state.replace(
      jobs=jobs.replace(
          num_chunks=_at(row, jobs.num_chunks, num_chunks),
          arrived=_at(row, jobs.arrived, num_chunks + 1)),
      automaton=at.replace(
          num_chunks=_at(row, at.num_chunks, num_chunks),
          stage=_at(row, at.stage, jnp.where(deep, protocol_lib.DEEP,
                                             at.stage[row])))))


@_program
def _again(engine: Engine, seats: Seats, row, slot, token, phase):
  del engine
  state, at = seats.state, seats.state.automaton
  return seats.replace(state=state.replace(
      slot=_at(row, state.slot, slot), token=_at(row, state.token, token),
      automaton=at.replace(
          phase=_at(row, at.phase, phase), count=_at(row, at.count, 0),
          stage=_at(row, at.stage, protocol_lib.FIRST))))


@_program
def _stop(engine: Engine, seats: Seats, row):
  del engine
  at = seats.state.automaton
  return seats.replace(state=seats.state.replace(automaton=at.replace(
      stage=_at(row, at.stage, protocol_lib.DONE))))


@_program
def _write(engine: Engine, seats: Seats, params, layers, steps):
  """Up to `steps` tokens of each row, while any has something to write."""
  loaded = Loaded(params=params, layers=layers, context=seats.context,
                  jobs=None, order=None, uniform=seats.uniform)
  going = lambda c: (c[0] < steps) & engine.writing(c[1]).any()
  taken, state = jax.lax.while_loop(
      going, lambda c: (c[0] + 1, engine.step(loaded, c[1])),
      (jnp.int32(0), seats.state))
  before = seats.state.slot
  at = before[:, None] + 1 + jnp.arange(MOST_STEPS)[None]  # [B, N]
  new = [jnp.take_along_axis(a[:, 0], at, 1, mode='clip') for a in (
      state.out.tokens, state.out.phase, state.out.stage, state.out.sampled)]
  view = (taken, state.slot - before, *new, engine.writing(state))
  return seats.replace(state=state), view


class Rows:
  """The rows, as the host sees them."""

  def __init__(self, engine: Engine, params: decoder.Params,
               source_slots: int):
    """Rows without jobs.

    Args:
      engine: One row per prompt.
      params: Parameter tree.
      source_slots: Most source tokens of a row.
    """
    loaded = jax.jit(engine.vacant, static_argnums=1)(
        params, source_slots + BLOCK)
    self._weights = loaded.params, loaded.layers
    state = jax.jit(engine.start)(loaded)
    # Arrays of their own: what is donated must not be given twice.
    state = jax.tree.map(jnp.copy, state.replace(
        automaton=state.automaton.replace(stage=jnp.full_like(
            state.automaton.stage, protocol_lib.DONE))))
    self._engine = engine
    self._seats = Seats(state=state, context=loaded.context,
                        uniform=loaded.uniform,
                        length=jnp.zeros(engine.prompts, jnp.int32))
    self._steps, self._step_seconds = 1, float('inf')
    self.waits = True  # nobody has anything to write

  def begin(self, row: int, key: jax.Array, problem_id: int,
            num_chunks: int) -> None:
    """A new job, of which nothing has been read.

    Args:
      row: Of the engine.
      key: As that of a rollout.
      problem_id: In [0, 2**32).
      num_chunks: Most that it may have; 0 = nothing is streamed.
    """
    self._do(_begin, row, key, np.uint32(problem_id), np.int32(num_chunks))
    self.waits = False

  def read(self, row: int, tokens: Sequence[int], phase: int, arrived: int
           ) -> None:
    """The next source tokens of a row.

    Args:
      row: Of the engine.
      tokens: At most BLOCK.
      phase: Theirs.
      arrived: The last phase that is there with them; -1 = none.
    """
    block = np.zeros(BLOCK, np.int32)
    block[:len(tokens)] = tokens
    self._do(_read, *self._weights, row, block, len(tokens), phase, arrived)
    self.waits = False

  def end(self, row: int, num_chunks: int) -> None:
    """There are no more chunks; num_chunks = 0 where nothing is streamed."""
    self._do(_end, row, np.int32(num_chunks))
    self.waits = False

  def again(self, row: int, slot: int, token: int, phase: int) -> None:
    """The row goes back to a slot and its token, before the thought `phase`."""
    self._do(_again, row, slot, token, phase)
    self.waits = False

  def stop(self, row: int) -> None:
    """The row has no job any more."""
    self._do(_stop, row)

  def write(self) -> list[list[Token]]:
    """What each row has written now, perhaps nothing.

    Takes about CALL_SECONDS, or a step where one takes longer.
    """
    start = time.perf_counter()
    self._seats, view = _write(self._engine, self._seats, *self._weights,
                               np.int32(self._steps))
    taken, count, *new, writing = jax.device_get(view)
    self.waits = not writing.any()
    if taken:  # the quickest so far: the first one compiles
      self._step_seconds = min(self._step_seconds,
                               (time.perf_counter() - start) / int(taken))
      self._steps = int(np.clip(CALL_SECONDS / self._step_seconds, 1,
                                MOST_STEPS))
    return [[Token(*(a[b, i].item() for a in new)) for i in range(n)]
            for b, n in enumerate(count.tolist())]

  def warm(self) -> None:
    """Compiles all programs, on a row without a job."""
    self.begin(0, jax.random.key(0), 0, 0)
    self.read(0, [], 0, -1)
    self.again(0, 0, self._engine.protocol.prefix[0], 1)
    self.end(0, 0)
    self.write()
    self.stop(0)
    self.write()

  def _do(self, program, *args):
    self._seats = program(self._engine, self._seats, *args)
