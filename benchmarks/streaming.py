"""Streams: each row at its own pace, or all rows chunk by chunk.

In the rollout each row advances through its chunks independently. A batched
sampler that is called once per sentence cannot do this: at each boundary every
row waits for the slowest. Both schedules replay one logged rollout here (each
step decodes, draws, and then writes the logged token) in the same program with
the same source keys and values; only which rows may advance differs. Waiting
rows keep computing, and their slots stay empty.
"""

from __future__ import annotations

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Array, Source, Target
from adasr_jax.models.attention import MASKED, attend
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import cache_sizes, rollout
from adasr_jax.policy import sampling
from benchmarks import refill
from benchmarks import timing

ALL = 2**30  # as `chunk`: every row continues to its end
SKIP_RATE, MEAN_THOUGHT = 0.4, 8.0  # of synthetic lengths


@struct.dataclass
class Progress:
  """A replay in progress.

  Attributes:
    step: [] int32, steps taken; the slot that all rows write next.
    count: [B] int32, tokens that each row has written, the prefix included.
    state: Where each row stands.
    own: [B, T] bool, slots that hold a token of the row.
    cache: L pairs [B, K, S', H].
    out: [B, T] arrays; the draws, with what the rollout records of each.
    hits: [] int32, draws of sampled tokens that equal the logged ones.
  """
  step: Array
  count: Array
  state: protocol_lib.State
  own: Array
  cache: list
  out: Target
  hits: Array


@functools.partial(jax.jit,
                   static_argnames=('model_config', 'samples', 'slots'))
def prepare(params, source, key, *, model_config, samples, slots):
  """What both schedules share: source keys and values, random numbers."""
  context = decoder.for_decoding(decoder.prefill(params, model_config, source))
  keys = sampling.row_keys(key, source.problem_id, samples)
  return (context, decoder.by_layer(params['layers']),
          decoder.context_segments(source, samples),
          sampling.uniforms(keys, slots))


@functools.partial(jax.jit,
                   static_argnames=('model_config', 'protocol', 'slots'))
def start(num_chunks, *, model_config, protocol, slots):
  """Progress with the first prefix token written."""
  B = num_chunks.shape[0]
  full = lambda dtype: jnp.zeros((B, slots), dtype)
  c = model_config
  empty = jnp.zeros((c.num_layers, B, c.num_kv_heads, 0, c.head_dim))
  cache = decoder.for_decoding((empty, empty))
  return Progress(
      step=jnp.int32(0), count=jnp.ones(B, jnp.int32),
      state=protocol_lib.start(protocol, num_chunks), own=full(bool),
      cache=cache, hits=jnp.int32(0), out=Target(
          tokens=full(jnp.int32), phase=full(jnp.int32),
          stage=full(jnp.int32), valid=full(bool), sampled=full(bool),
          logp=full(jnp.float32), logp_untruncated=full(jnp.float32)))


@functools.partial(jax.jit, static_argnames='size')
def grow(cache, *, size):
  """The cache with `size` slots."""
  return decoder.grown(cache, size)


def with_cache(cache, slot, context, mask, context_mask):
  """Attention, for Block, that also returns the cache with the new tokens.

  Args:
    cache: [B, K, H, S'] and [B, K, S', H], as decoding on CPU has them.
    slot: [] int32, where the new tokens go.
    context: Of the source, likewise.
    mask, context_mask: [B, 1, S'] and [B, 1, S] bool.
  """
  turned = lambda kv: (kv[0].swapaxes(2, 3), kv[1])
  put = jax.lax.dynamic_update_slice
  def attention(q, k, v):
    new = (put(cache[0], k.swapaxes(2, 3), (0, 0, 0, slot)),
           put(cache[1], v, (0, 0, slot, 0)))
    return attend(q, [(*turned(new), mask), (*turned(context), context_mask)],
                  'einsum'), new
  return attention


@functools.partial(jax.jit, static_argnames=('model_config', 'protocol'),
                   donate_argnames='at')
def replay(params, shared, log: Target, at: Progress, chunk: Array, *,
           model_config: decoder.DecoderConfig, protocol: Protocol) -> Progress:
  """Continues until all rows have left `chunk`, or the cache is full.

  Args:
    params: Parameter tree.
    shared: Of prepare().
    log: [B, T] the rollout that is replayed.
    at: Donated.
    chunk: [] int32; rows past it, and deep phases, wait. ALL: no row waits.
    model_config, protocol: As in the rollout.
  """
  context, layers, read, uniform = shared
  size = at.cache[0][1].shape[2]
  allowed = jnp.asarray(protocol.allowed)
  logged = lambda a, i: jnp.take_along_axis(a, i[:, None], 1)[:, 0]

  def moves(state):
    streams = (state.stage < protocol_lib.DEEP) & (state.phase <= chunk)
    return (state.stage != protocol_lib.DONE) & (streams | (chunk == ALL))

  def going(at):
    return (at.step < size) & moves(at.state).any()

  def step(at):
    live = moves(at.state)
    own = at.own.at[:, at.step].set(live)
    x = params['embedding'][logged(log.tokens, at.count - 1)][:, None]
    position = at.count[:, None] - 1 + model_config.target_offset
    context_mask = read.valid & (read.phase <= at.state.phase[:, None])
    cache = []
    for layer, kv, old in zip(layers, context, at.cache):
      x, new = decoder.Block(model_config).apply(
          {'params': layer}, x, position, with_cache(
              old, at.step, kv, own[:, None, :size], context_mask[:, None]))
      cache.append(new)
    hidden = decoder.rms_norm(x[:, 0], params['final_norm'],
                              model_config.norm_eps)
    scores = jnp.where(allowed[at.state.stage],
                       decoder.logits(params, model_config, hidden), MASKED)
    numbers = jnp.take_along_axis(
        uniform, jnp.minimum(at.count, uniform.shape[1] - 1)[:, None, None], 1)
    token, logp, full = sampling.draw(scores, numbers[:, 0], temperature=1.0)
    forced = protocol_lib.forced(protocol, at.state)
    sampled = live & (forced < 0)
    write = logged(log.tokens, at.count)
    new = Target(tokens=token, phase=at.state.phase, stage=at.state.stage,
                 valid=live, sampled=sampled, logp=logp,
                 logp_untruncated=full)
    state = jax.tree.map(lambda a, b: jnp.where(live, a, b),
                         protocol_lib.advance(protocol, at.state, write),
                         at.state)
    return Progress(
        step=at.step + 1, count=at.count + live, state=state, own=own,
        cache=cache, hits=at.hits + (sampled & (token == write)).sum(),
        out=jax.tree.map(lambda a, b: a.at[:, at.step].set(b), at.out, new))

  return jax.lax.while_loop(going, step, at)


def at_own_pace(begin, go, slots, chunks, protocol) -> Progress:
  """The rollout's schedule: nothing waits."""
  del chunks, protocol
  at = begin()
  for size in cache_sizes(slots):
    at = go(at.replace(cache=grow(at.cache, size=size)), ALL)
  return at


def chunk_by_chunk(begin, go, slots, chunks, protocol) -> Progress:
  """One call per chunk, then one for the deep phases."""
  at, sizes = begin(), cache_sizes(slots)
  calls = [(c, len(protocol.prefix) + protocol.thought_cap)
           for c in range(1, chunks + 1)]
  calls.append((ALL, protocol.deep_cap + protocol.answer_cap))
  for chunk, limit in calls:
    need = min(int(at.step) + limit, slots)
    size = next(s for s in sizes if s >= need)
    if size > at.cache[0][1].shape[2]:
      at = at.replace(cache=grow(at.cache, size=size))
    at = go(at, chunk)
  return at


def synthetic(protocol: Protocol, num_chunks: np.ndarray, slots: int
              ) -> Target:
  """Targets of random lengths, where there is no trained policy.

  A thought is skipped with probability SKIP_RATE, otherwise its length is
  geometric with mean MEAN_THOUGHT; so is the deep reasoning with twice that
  mean; both are cut at their caps. Seed 0.
  """
  rng = np.random.default_rng(0)
  text = protocol.token_class.tolist().index(protocol_lib.TEXT)
  B = len(num_chunks)
  tokens = np.zeros((B, slots), np.int32)
  length = np.zeros(B, np.int64)
  for b in range(B):
    row = list(protocol.prefix)
    for _ in range(num_chunks[b]):
      n = min(1 + rng.geometric(1 / MEAN_THOUGHT), protocol.thought_cap)
      row += ([protocol.skip] if rng.random() < SKIP_RATE
              else [text] * (n - 1) + [protocol.eot])
    n = min(rng.geometric(0.5 / MEAN_THOUGHT), protocol.deep_cap)
    row += [text] * (n - 1) + [protocol.end_think, text, protocol.eos]
    tokens[b, :len(row)], length[b] = row, len(row)
  phase, stage = protocol_lib.annotate(protocol, tokens, length, num_chunks)
  valid = np.arange(slots)[None] < length[:, None]
  zero = np.zeros(tokens.shape, np.float32)
  return Target(tokens=tokens, phase=phase, stage=stage, valid=valid,
                sampled=valid & (stage != protocol_lib.PREFIX), logp=zero,
                logp_untruncated=zero)


def expected_steps(log: Target, num_chunks: np.ndarray) -> tuple[int, int]:
  """Steps at own pace, and chunk by chunk, counted from the log."""
  pace = log.valid.sum(1).max() - 1
  deep = log.phase > num_chunks[:, None]
  streamed = log.valid & (log.phase > 0) & ~deep
  most = [(streamed & (log.phase == c)).sum(1).max()
          for c in range(1, num_chunks.max() + 1)]
  prefix = (log.valid & (log.phase == 0)).sum(1).max() - 1
  return int(pace), int(prefix + sum(most) + (log.valid & deep).sum(1).max())


def measure(params, source: Source, *, model_config, protocol, max_chunks: int,
            samples: int, trained: bool, repeats: int, rows: int) -> dict:
  """Both schedules over one batch; prints a table, returns the numbers.

  The rollout itself, live, refills `rows` rows (0 = has all at once).
  """
  slots = protocol.max_target(max_chunks)
  num_chunks = np.repeat(source.num_chunks, samples)
  live = functools.partial(
      rollout, params, source, jax.random.key(0), model_config=model_config,
      protocol=protocol, samples=samples, max_chunks=max_chunks,
      temperature=1.0, rows=rows)
  log = (jax.device_get(live()) if trained
         else synthetic(protocol, num_chunks, slots))
  steps = expected_steps(log, num_chunks)
  final = {}

  def scheduled(schedule):
    def call(_):
      shared = prepare(params, source, jax.random.key(0),
                       model_config=model_config, samples=samples,
                       slots=slots)
      begin = lambda: start(jnp.asarray(num_chunks), model_config=model_config,
                            protocol=protocol, slots=slots)
      go = lambda at, chunk: replay(
          params, shared, log, at, jnp.int32(chunk), model_config=model_config,
          protocol=protocol)
      final[schedule] = schedule(
          begin, go, slots, int(num_chunks.max()), protocol)
      return final[schedule]
    return call

  calls = {'own pace (replayed)': scheduled(at_own_pace),
           'chunk by chunk (replayed)': scheduled(chunk_by_chunk)}
  if trained:
    calls['adasr_jax rollout, live'] = lambda _: live()
  times = timing.interleaved(calls, repeats)
  pace, chunked = final[at_own_pace], final[chunk_by_chunk]
  if (int(pace.step), int(chunked.step)) != steps:
    raise AssertionError(f'{pace.step}, {chunked.step} steps, not {steps}')
  best = times['own pace (replayed)']['median']
  refilled = refill.engine(
      model_config, protocol, prompts=len(source.tokens), samples=samples,
      max_chunks=max_chunks, rows=rows)
  counts = (*steps, refill.steps(refilled, source, log))
  for row, n in zip(times.values(), counts):
    row.update(steps=n, ms_per_step=row['median'] / n * 1e3,
               times_own_pace=row['median'] / best)
  timing.show(
      f'streams: {len(num_chunks)} rows, {len(source.tokens)} prompts x '
      f'{samples}, '
      + ('the warm start\'s own thoughts' if trained else
         f'synthetic thoughts (skipped {SKIP_RATE}, else geometric, mean '
         f'{MEAN_THOUGHT})'), times, 'steps ms_per_step times_own_pace')
  drawn = int(log.sampled.sum())
  written = log.valid.sum() / len(log.valid)  # mean tokens per row
  agree = [int(p.hits) / drawn for p in (pace, chunked)]
  print(f'  steps {steps[1] / steps[0]:.2f}x, time '
        f'{times["chunk by chunk (replayed)"]["median"] / best:.2f}x '
        f'(waiting also fills the cache: longer steps); row steps that write '
        f'a token: {written / steps[0]:.0%} at own pace, '
        f'{written / steps[1]:.0%} chunk by chunk')
  if trained:
    ratio = (times['chunk by chunk (replayed)']['median']
             / times['adasr_jax rollout, live']['median'])
    print(f'  live, {rows or len(num_chunks)} rows at once: {ratio:.2f} times '
          'as fast as chunk by chunk; row steps that write a token: '
          f'{refill.occupancy(refilled, log, counts[2]):.0%}')
    print(f'  draws that equal the log: {agree[0]:.2%} and {agree[1]:.2%}')
  return times
