"""The engine: rows that write one token per step, each at a slot of its own.

  loaded = engine.prepare(params, source, key)   what stays the same
  state = engine.start(loaded)
  state = engine.step(loaded, state)             one token per row; pure

A *job* is one target to write: sample s of prompt p is job p * G + s. There may
be more jobs than rows. A row whose job has ended takes the next one: slot 0, a
fresh automaton, the job's own random key. So what a job writes depends neither
on the number of rows nor on what else they do.

Rows take jobs from queues, of which nobody but a queue's own rows takes any:

  P queues   where every prompt has rows of its own: they take its samples, and
             read its source where it lies
  one queue  per device that rows are split over, where there are fewer rows
             than prompts (on CPU: than jobs): a row reads a copy of its job's
             source, made when it takes the job; on CPU in the row's cache,
             where what it writes comes next, so that it reads one buffer

So no row ever waits for another, and no keys, values or sources are sent
between devices.

Where the protocol has threads, rollouts spawn children, which are jobs of their
own (threads.py): rollout i has the jobs i * W to i * W + W - 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core import sharding
from adasr_jax.core.sharding import constrain_rows
from adasr_jax.core.types import Array, Given, Source, Target
from adasr_jax.models.attention import MASKED
from adasr_jax.models import decoder
from adasr_jax.models import pallas
from adasr_jax.policy import sampling
from adasr_jax.policy import threads as threads_lib

FIRST_CACHE = 32  # slots of the target cache before it first doubles
THINK, SKIP, OWN = 1, 0, -1  # values of `decisions`


@struct.dataclass
class Jobs:
  """What the engine must know of jobs.

  [...] is [J], [Q, J / Q] by queues, or [B], of rows' jobs. A child's are those
  of its rollout.

  Attributes:
    num_chunks: [...] int32.
    limits: [..., C + 2] int32, source slots that each phase reads.
    decisions: [..., C] int32, THINK, SKIP or OWN; None = OWN.
    given: Tokens that are already written, [..., T0]; None = none.
    arrived: [...] int32, the last phase whose source is there: a row waits
      before it writes a later one. None = all of it is.
  """
  num_chunks: Array
  limits: Array
  decisions: Array | None
  given: Given | None
  arrived: Array | None = None


@struct.dataclass
class Loaded:
  """What stays the same in all steps.

  Attributes:
    params: The parameters outside the layers.
    layers: Those of the layers, by layer.
    context: Pair [L, P, K, S, H], the prompts' keys and values; see
      decoder.for_decoding.
    jobs: [Q, J / Q], the jobs of each queue.
    uniform: [Q, W * J / Q, T, 2], random numbers of all threads.
    order: [Q, J / Q] int32, the order in which rollouts are begun.
  """
  params: decoder.Params
  layers: decoder.Params
  context: decoder.KV
  jobs: Jobs
  uniform: Array
  order: Array


@struct.dataclass
class State:
  """Where the rows stand.

  Attributes:
    steps: [] int32, steps since the start.
    next: [Q] int32, rollouts of each queue that have been begun.
    job: [B] int32, each row's job, counted in its queue; a row whose automaton
      is DONE has ended it, or had none yet, and has none to take.
    slot: [B] int32, slot of the token that the row has written last.
    token: [B] int32, that token.
    automaton: [B], of the next token.
    jobs: [B], what belongs to the row's job.
    context: Pair [L, B, K, S, H], the rows' sources; None where rows read the
      prompts' own, or that in their cache.
    cache: Pair [L, B, K, S', H], keys and values of what the row has written;
      behind those of its source where `joins_sources`.
    out: [Q, W * J / Q, T], what the jobs have written.
    threads: Where threads stand; None where nothing is spawned.
  """
  steps: Array
  next: Array
  job: Array
  slot: Array
  token: Array
  automaton: protocol_lib.State
  jobs: Jobs
  context: decoder.KV | None
  cache: decoder.KV
  out: Target
  threads: threads_lib.Threads | None = None


@dataclasses.dataclass(frozen=True)
class Engine:
  """How targets are sampled. Hashable, so a static jit argument.

  Attributes:
    model_config: Shape of the decoder.
    protocol: Control tokens, caps, legality, threads.
    prompts, samples: P and G; there are J = P * G rollouts, of W threads each
      where the protocol has threads (else W = 1).
    max_chunks: C, most chunks of a prompt; sets the static length T.
    temperature, top_k, top_p: See sampling.draw.
    rows: Most jobs at once, threads included, but at least one of each queue;
      0 = as many as there are rollouts.
  """
  model_config: decoder.DecoderConfig
  protocol: Protocol
  prompts: int
  samples: int
  max_chunks: int
  temperature: float
  top_k: int = 0
  top_p: float = 1.0
  rows: int = 0

  # ------------------------------------------------------------------ layout
  @property
  def slots(self) -> int:
    """T, slots of a target."""
    return self.protocol.max_target(self.max_chunks)

  @property
  def cache_length(self) -> int:
    """Slots that a row may need: those of a root, and of a child behind it."""
    child = self.protocol.threads.cap if self.protocol.threads else 0
    return self.slots + (child and len(self.protocol.prefix) + child)

  @property
  def jobs_per_queue(self) -> int:
    """W * J / Q."""
    return self.rollouts_per_queue * self.protocol.width

  @property
  def copies_sources(self) -> bool:
    """Whether each row reads a copy of its own job's source.

    On CPU also where prompts could have rows of their own: there an idle row
    costs more than a source that is not shared. Not where devices would not
    have equally many prompts and rows.
    """
    jobs, ways = self.prompts * self.samples, sharding.row_ways()
    alike = self.prompts % ways == 0 and self.rows >= ways
    return alike and 0 < self.rows < jobs and self.prompts > 1 and (
        self.rows < self.prompts or sharding.platform() == 'cpu')

  @property
  def joins_sources(self) -> bool:
    """Whether that copy is the beginning of the row's cache.

    Not where a row's thread may belong to another prompt than the root that
    waits on it.
    """
    return (self.copies_sources and sharding.platform() == 'cpu'
            and self.protocol.threads is None)

  @property
  def queues(self) -> int:
    """Q; the devices that rows are split over divide it, or hold all."""
    return sharding.row_ways() if self.copies_sources else self.prompts

  @property
  def rollouts_per_queue(self) -> int:
    """J / Q."""
    return self.prompts * self.samples // self.queues

  @property
  def rows_per_queue(self) -> int:
    """B / Q."""
    if not self.rows:
      return self.rollouts_per_queue
    return min(max(self.rows // self.queues, 1), self.jobs_per_queue)

  @property
  def sources(self) -> int:
    """Sources that rows read; row b of B reads source b // (B / sources)."""
    return (self.queues * self.rows_per_queue if self.copies_sources
            else self.prompts)

  @property
  def skips_unwritten(self) -> bool:
    """Whether unwritten slots of the cache cost nothing."""
    return decoder.decodes_by_pallas(self.model_config, self.sources)

  def cache_sizes(self) -> list[int]:
    """Slots of the cache, one after the other; see cache_sizes()."""
    return cache_sizes(self.cache_length, self.skips_unwritten)

  # ------------------------------------------------------------------- begin
  def prepare(self, params: decoder.Params, source: Source, key: jax.Array,
              decisions: Array | None = None, given: Given | None = None
              ) -> Loaded:
    """Reads each prompt once.

    Args:
      params: Parameter tree.
      source: P prompts.
      key: Key of the run, folded with the step.
      decisions: [P, C] int32; see Jobs.
      given: [J]; see Jobs.

    Raises:
      ValueError: An array is not of this engine's shapes.
    """
    self._check(source, decisions, given)
    with jax.named_scope('prefill'):
      context = decoder.for_decoding(decoder.prefill(
          params, self.model_config, source))
      context = decoder.grown(
          context, self._room(source.tokens.shape[1], 1))
    phases = jnp.arange(self.max_chunks + 2)
    reads = (source.valid[:, None] & (
        source.phase[:, None] <= phases[None, :, None])).sum(2, dtype=jnp.int32)
    of_jobs = lambda a: jnp.repeat(jnp.asarray(a), self.samples, 0)
    jobs = Jobs(
        num_chunks=of_jobs(source.num_chunks), limits=of_jobs(reads),
        decisions=None if decisions is None else of_jobs(decisions),
        given=given)
    # Long sources have long targets: begun first, they do not end alone.
    size = self._by_queue(jobs.limits[:, -1])
    return Loaded(
        params={k: v for k, v in params.items() if k != 'layers'},
        layers=decoder.by_layer(params['layers']), context=context,
        jobs=self._by_queue(jobs),
        order=jnp.argsort(-size, 1, stable=True) * self.protocol.width,
        uniform=self._by_queue(sampling.uniforms(self._random_keys(
            sampling.row_keys(key, source.problem_id, self.samples)),
            self.slots)))

  def vacant(self, params: decoder.Params, slots: int) -> Loaded:
    """What prepare() gives, for sources of which nothing is there yet.

    Args:
      params: Parameter tree.
      slots: Most that a source may have.

    Raises:
      ValueError: Prompts would have more than one job.
    """
    if self.samples * self.protocol.width > 1:
      raise ValueError(f'{self.samples * self.protocol.width} jobs of a prompt '
                       'that arrives, not 1')
    c, P = self.model_config, self.prompts
    kv = (c.num_layers, P, c.num_kv_heads, 0, c.head_dim)
    ints = lambda *shape: jnp.zeros((P, *shape), jnp.int32)
    return Loaded(
        params={k: v for k, v in params.items() if k != 'layers'},
        layers=decoder.by_layer(params['layers']),
        context=decoder.grown(
            decoder.for_decoding((jnp.zeros(kv, c.dtype),) * 2),
            self._room(slots, 1)),
        jobs=Jobs(num_chunks=ints(1), limits=ints(1, self.max_chunks + 2),
                  decisions=None, given=None, arrived=ints(1) - 1),
        order=ints(1), uniform=jnp.zeros((P, 1, self.slots, 2)))

  def _random_keys(self, keys):
    width = self.protocol.width
    return threads_lib.random_keys(keys, width) if width > 1 else keys

  def _check(self, source, decisions, given):
    P, J = self.prompts, self.prompts * self.samples
    if source.tokens.shape[0] != P:
      raise ValueError(f'{source.tokens.shape[0]} prompts, the engine has {P}')
    if decisions is not None and decisions.shape != (P, self.max_chunks):
      raise ValueError(f'decisions: {decisions.shape} is not [P, C] = '
                       f'{(P, self.max_chunks)}')
    if given is not None and (given.tokens.shape[0] != J
                              or not 0 < given.tokens.shape[1] <= self.slots
                              or given.length.shape != (J,)):
      raise ValueError(
          f'given: tokens {given.tokens.shape} and length '
          f'{given.length.shape} are not of {J} targets of 1 to '
          f'{self.slots} slots')

  def start(self, loaded: Loaded, slots: int | None = None) -> State:
    """Rows with their first rollouts, the first prefix token written.

    Where there are more rows than rollouts, the others wait for threads.

    Args:
      loaded: Of prepare().
      slots: Of the cache, see grown(); None = all.
    """
    Q, r = self.queues, self.rows_per_queue
    begun = min(r, self.rollouts_per_queue)
    # A row that has no rollout yet has the source of the last one.
    job = jnp.pad(loaded.order[:, :begun], ((0, 0), (0, r - begun)),
                  mode='edge')
    jobs = self.of_jobs(loaded.jobs, job)
    c = self.model_config
    kv = (c.num_layers, Q * r, c.num_kv_heads, 0, c.head_dim)
    context, cache = None, decoder.for_decoding((jnp.zeros(kv, c.dtype),) * 2)
    if self.copies_sources:
      prompt = self.prompt(job)
      context = jax.tree.map(
          lambda a: self._moved(lambda a: _rows_of(a, prompt), a),
          loaded.context)
    if self.joins_sources:
      context, cache = None, context
    out = _empty_target(self.protocol, (Q, self.jobs_per_queue, self.slots))
    automaton = protocol_lib.start(self.protocol, jobs.num_chunks)
    writes = jnp.tile(jnp.arange(r) < begun, Q)
    automaton = automaton.replace(
        stage=jnp.where(writes, automaton.stage, protocol_lib.DONE))
    state = State(
        steps=jnp.int32(0), next=jnp.full(Q, begun, jnp.int32),
        job=job.reshape(-1),
        slot=jnp.zeros(Q * r, jnp.int32),
        token=jnp.full(Q * r, self.protocol.prefix[0], jnp.int32),
        automaton=automaton, jobs=jobs, context=context, cache=cache,
        out=constrain_rows(out), threads=(
            threads_lib.begin(self, automaton) if self.protocol.threads
            else None))
    return self.grown(loaded, state,
                      self.cache_length if slots is None else slots)

  def grown(self, loaded: Loaded, state: State, slots: int) -> State:
    """The state with a cache of `slots` slots, beside those of a source."""
    rows = self.queues * self.rows_per_queue // self.sources
    return state.replace(cache=decoder.grown(state.cache, self._room(
        self._source_slots(loaded) + slots, rows)))

  def _source_slots(self, loaded):
    """Slots of the cache for a source."""
    return decoder.cache_slots(loaded.context) if self.joins_sources else 0

  def _base(self, state):
    """[B] int32, where in the cache a thread's slot 0 lies; None = 0."""
    if state.threads is not None:
      return state.threads.base
    return state.jobs.limits[:, -1] if self.joins_sources else None

  def _room(self, slots, rows):
    """Slots of a buffer that holds `slots`, read by `rows` rows together."""
    return (math.prod(pallas.decode_blocks(slots, rows))
            if self.skips_unwritten else slots)

  # -------------------------------------------------------------------- loop
  def unfinished(self, state: State) -> Array:
    """[] bool, whether some row still writes."""
    return jnp.any(state.automaton.stage != protocol_lib.DONE)

  def writing(self, state: State) -> Array:
    """[B] bool, the rows that write: those with a job that need not wait."""
    live = state.automaton.stage != protocol_lib.DONE
    arrived = state.jobs.arrived
    return live if arrived is None else live & (
        state.automaton.phase <= arrived)

  def step(self, loaded: Loaded, state: State) -> State:
    """Feeds the last token of every row and writes the next one.

    Rows without a job, and those that wait, stay as they are. The cache must
    have a slot for the token that is fed.
    """
    jobs, at = state.jobs, state.automaton
    context = loaded.context if state.context is None else state.context
    if self.joins_sources:
      context = None
    reads = jnp.take_along_axis(jobs.limits, at.phase[:, None], 1)[:, 0]
    hidden, cache = decoder.decode_step(
        loaded.params, loaded.layers, self.model_config, context, reads,
        state.cache, state.token, state.slot, self._base(state))
    legal, forced = self._allowed(state)
    with jax.named_scope('head'):
      scores = jnp.where(
          legal, decoder.logits(loaded.params, self.model_config, hidden),
          MASKED)
    with jax.named_scope('sampling'):
      token, logp, full = sampling.draw(
          scores, self._at_jobs(loaded.uniform, state.job, state.slot + 1),
          temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
    live = self.writing(state)
    token = jnp.where(forced >= 0, forced, token)
    sampled = live & (forced < 0)
    zero = lambda x: jnp.where(sampled, x, 0.0)
    new = Target(tokens=token, phase=at.phase, stage=at.stage, valid=live,
                 sampled=sampled, logp=zero(logp), logp_untruncated=zero(full))
    after, threads = protocol_lib.advance(self.protocol, at, token), None
    if state.threads is not None:
      threads, after = threads_lib.recorded(
          self.protocol, state, token, sampled, after)
    if jobs.arrived is not None:  # it feeds the same token again
      token, after = jax.tree.map(lambda a, b: jnp.where(live, a, b),
                                  (token, after), (state.token, at))
    state = state.replace(
        steps=state.steps + 1, slot=state.slot + live, token=token, cache=cache,
        automaton=after, out=self._written(state, new, live), threads=threads)
    if threads is not None:
      return threads_lib.scheduled(self, loaded, state)
    return self._refilled(loaded, state)

  def run(self, loaded: Loaded, state: State) -> State:
    """Steps until all jobs are done, or a row has filled its cache."""
    until = min(self._source_slots(loaded) + self.cache_length,
                decoder.cache_slots(state.cache))
    going = lambda state: (
        self.unfinished(state) & self._has_room(state, until))
    with jax.named_scope('decode'):
      return jax.lax.while_loop(
          going, functools.partial(self.step, loaded), state)

  def _has_room(self, state, until):
    """[] bool; also bounds the number of steps, for whoever counts them."""
    jobs, r = self.jobs_per_queue, self.rows_per_queue
    if r == jobs and not self.protocol.threads:  # all are at the same slot
      return state.steps + 1 < until
    # The furthest row that still writes; after the last loop none gets there.
    live = state.automaton.stage != protocol_lib.DONE
    base = self._base(state)
    at = state.slot if base is None else base + state.slot
    # Threads that wait for each other may leave but one row busy; but as long
    # as a queue has not ended, it writes in every step.
    most = jobs if self.protocol.threads else jobs // r + 1
    return (jnp.where(live, at, 0).max() + 1 < until) & (
        state.steps < most * self.slots)

  def _allowed(self, state):
    """What each row may write next, [B, V] bool, and must, [B] int32 or -1."""
    jobs, at, slot = state.jobs, state.automaton, state.slot
    legal = jnp.asarray(self.protocol.allowed)[at.stage]
    forced = protocol_lib.forced(self.protocol, at)
    if jobs.decisions is not None:
      chunk = jnp.clip(at.phase - 1, 0, self.max_chunks - 1)
      decided = jnp.where(
          at.stage == protocol_lib.FIRST,
          jnp.take_along_axis(jobs.decisions, chunk[:, None], 1)[:, 0], OWN)
      forced = jnp.where(decided == SKIP, self.protocol.skip, forced)
      no_skip = jnp.arange(self.protocol.vocab_size) != self.protocol.skip
      legal &= no_skip[None] | (decided != THINK)[:, None]
    if jobs.given is not None:
      tokens = jobs.given.tokens
      length = jnp.minimum(jobs.given.length, tokens.shape[1])
      i = jnp.minimum(slot + 1, tokens.shape[1] - 1)
      if state.threads is not None:  # of the root
        length = jnp.where(state.job % self.protocol.width, 0, length)
      forced = jnp.where(slot + 1 < length,
                         jnp.take_along_axis(tokens, i[:, None], 1)[:, 0],
                         forced)
    if state.threads is not None:
      forced = jnp.where(forced < 0, threads_lib.forced(self.protocol, state),
                         forced)
    return legal, forced

  def _written(self, state, new, live):
    """The targets with each live row's new token at its job's place."""
    Q = self.queues
    of_queue = lambda a: a.reshape(Q, -1)
    # Indices past the end are dropped; they too differ from row to row.
    slot = of_queue(jnp.where(live, state.slot + 1,
                              self.slots + jnp.arange(len(live))))
    job = of_queue(state.job)
    put = jax.vmap(lambda out, job, slot, new: out.at[job, slot].set(
        new, mode='drop', unique_indices=True))
    return jax.tree.map(lambda out, new: put(out, job, slot, of_queue(new)),
                        state.out, new)

  # ------------------------------------------------------------------ refill
  def _refilled(self, loaded, state) -> State:
    """Rows whose jobs have ended take the next ones of their queues."""
    Q, r, most = self.queues, self.rows_per_queue, self.rollouts_per_queue
    if r == most:
      return state
    ended = (state.automaton.stage == protocol_lib.DONE).reshape(Q, r)
    nth = state.next[:, None] + jnp.cumsum(ended, 1) - 1
    takes = ended & (nth < most)
    job = jnp.where(takes, jnp.take_along_axis(
        loaded.order, jnp.minimum(nth, most - 1), 1), state.job.reshape(Q, r))
    fresh = takes.reshape(-1)
    # A row without a job keeps its last.
    held = self.of_jobs(loaded.jobs, job)
    choose = lambda a, b: jnp.where(
        fresh.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    jobs = jax.tree.map(choose, held, state.jobs)
    begun = protocol_lib.start(self.protocol, jobs.num_chunks)
    context, cache = state.context, state.cache
    copied = lambda rows: self.with_sources(loaded, rows, takes,
                                            self.prompt(job))
    if self.joins_sources:
      cache = copied(cache)
    elif self.copies_sources:
      context = copied(context)
    return state.replace(
        next=state.next + takes.sum(1, dtype=jnp.int32), job=job.reshape(-1),
        slot=jnp.where(fresh, 0, state.slot),
        token=jnp.where(fresh, self.protocol.prefix[0], state.token),
        automaton=jax.tree.map(choose, begun, state.automaton),
        jobs=jobs, context=context, cache=cache)

  def with_sources(self, loaded: Loaded, context: decoder.KV, takes: Array,
                   prompt: Array) -> decoder.KV:
    """The rows' sources, with those of rows that have taken a new job.

    One row of each queue at a time: usually there is one, or none. What follows
    S slots in a row's buffer stays; in a row that goes on, all does, since what
    it has written begins before its source's last, empty slots.

    Args:
      loaded: Holds the prompts' sources.
      context: The rows', or their caches.
      takes: [Q, r] bool, rows that read another source now.
      prompt: [Q, r] int32, which one.
    """
    nth = jnp.where(takes, jnp.cumsum(takes, 1) - 1, -1)  # [Q, r]

    def copy(i, context):
      some, row = (nth == i).any(1), jnp.argmax(nth == i, 1)
      of = jnp.take_along_axis(prompt, row[:, None], 1)
      def put(rows, new, some, row):
        at = (row,) + (0,) * (rows.ndim - 1)
        old = jax.lax.dynamic_slice(rows, at, new.shape)
        return jax.lax.dynamic_update_slice(
            rows, jnp.where(some, new, old), at)
      def one(rows, prompts):
        new = self._moved(lambda a: _rows_of(a, of), prompts)
        return self._moved(lambda rows, new: jax.vmap(put)(
            rows, new, some, row), rows, new)
      return jax.tree.map(one, context, loaded.context)

    return jax.lax.fori_loop(0, takes.sum(1).max(), copy, context)

  # ------------------------------------------------------------------- views
  def _by_queue(self, tree: Any) -> Any:
    """Arrays [Q * n, ...] as [Q, n, ...]."""
    Q = self.queues
    return jax.tree.map(lambda a: a.reshape(Q, -1, *a.shape[1:]), tree)

  def targets(self, state: State) -> Target:
    """[J * W, T], what has been written; empty where no thread was begun."""
    out = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), state.out)
    if state.threads is None:
      return out
    none = ~out.valid[:, 1:2]  # every thread writes something
    return out.replace(
        tokens=jnp.where(none, 0, out.tokens), valid=out.valid & ~none,
        stage=jnp.where(none, protocol_lib.DONE, out.stage))

  def of_jobs(self, jobs: Jobs, job: Array) -> Jobs:
    """[B], of the jobs [Q, r] of their queues."""
    rollout = job // self.protocol.width
    return jax.tree.map(
        lambda a: jax.vmap(lambda a, i: a[i])(a, rollout).reshape(
            -1, *a.shape[2:]), jobs)

  def _at_jobs(self, a: Array, job: Array, slot: Array) -> Array:
    """[B, ...], of [Q, n, T, ...] at the jobs and slots [B] of rows."""
    of_queue = lambda i: i.reshape(self.queues, -1)
    return jax.vmap(lambda a, job, slot: a[job, slot])(
        a, of_queue(job), of_queue(jnp.minimum(slot, self.slots - 1))
    ).reshape(-1, *a.shape[3:])

  def prompt(self, job: Array) -> Array:
    """[Q, r] int32, the prompts of jobs, counted in their queues."""
    return job // (self.samples * self.protocol.width)

  def _moved(self, f, *arrays):
    """f of keys or values [..., n, K, S, H] as [Q, n / Q, ...], and back."""
    Q, axis = self.queues, arrays[0].ndim - 4
    split = lambda a: jnp.moveaxis(a, axis, 0).reshape(
        Q, -1, *a.shape[:axis], *a.shape[axis + 1:])
    out = f(*map(split, arrays))
    return jnp.moveaxis(out.reshape(-1, *out.shape[2:]), 0, axis)


def _rows_of(a, index):
  """[Q, r, ...] of a [Q, n, ...] at index [Q, r]."""
  return jax.vmap(lambda a, i: a[i])(a, index)


def cache_sizes(length: int, skips_unwritten: bool = False) -> list[int]:
  """Slots of the target cache in each loop: doubled until `length` is near.

  Args:
    length: Of the target.
    skips_unwritten: Unwritten slots cost nothing, so that there is one loop;
      see decoder.decodes_by_pallas.
  """
  sizes, size = [], FIRST_CACHE
  while size < 3 * length // 4 and not skips_unwritten:
    sizes.append(size)
    size *= 2
  return sizes + [length]


def _empty_target(protocol: Protocol, shape: tuple[int, ...]) -> Target:
  """Targets [..., T] that hold their first prefix token."""
  ints = lambda fill: jnp.full(shape, fill, jnp.int32)
  floats = jnp.zeros(shape)
  first = jnp.arange(shape[-1]) == 0
  return Target(
      tokens=jnp.where(first, protocol.prefix[0], ints(0)), phase=ints(0),
      stage=jnp.where(first, protocol_lib.PREFIX, ints(protocol_lib.DONE)),
      valid=jnp.broadcast_to(first, shape), sampled=jnp.zeros(shape, bool),
      logp=floats, logp_untruncated=floats)
