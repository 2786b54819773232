"""Threads of the engine: what is spawned, who waits for it, what is joined.

A rollout is a root and up to M children. Each is a job: of rollout i, job
i * W is the root and i * W + 1 + c its child c, W = 1 + M. Only one level is
spawned.

  spawn  The root writes `<spawn>` brief `<spawn>` brief .. `<join>`. With
         `<join>` its children are ready: their queue's rows take them, before
         they begin another rollout. `<spawn>` and brief are forced upon the
         child: read from the root's tokens, by index. Of the root it reads
         nothing else; of the source, what the root had read.
  wait   The root stays on its row, and the row works on children meanwhile,
         those of others too. A child's keys and values lie behind the root's
         in the row's cache: it reads only slots from `base` on. So no row has
         to be kept for children (where there are more rows than rollouts,
         those take them too), and a waiting root needs no other place.
  join   When all children of the call have ended, the root goes on where it
         stood. Forced upon it, one by one: what each child has returned, from
         `<return>` on, or `<none>`. It overwrites the children's slots.

So what a thread writes depends only on its own source, brief, results and
random key: not on rows, nor on the order in which children end.

Source: arXiv 2504.15466 (spawn and join; there, threads are requests to a
server, and a root is read again after each join).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flax import struct
import jax
import jax.numpy as jnp

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import BRIEFS, DONE, JOINS, Protocol
from adasr_jax.core.types import Array

if TYPE_CHECKING:
  from adasr_jax.policy.engine import Engine, Loaded, State


@struct.dataclass
class Threads:
  """Where the threads stand; Q queues of R rollouts, B rows.

  A row has one root at a time: the thread it runs, or one that waits.

  Attributes:
    base: [B] int32, first slot in the cache of the thread that a row runs.
    held: [B] int32, job of the root that waits; -1 = none does.
    held_slot: [B] int32, slot of its `<join>`.
    held_automaton: [B], of its next token.
    asked: [B] int32, children that the row's root has asked for, those of a
      call under way included.
    first: [B] int32, the first child of its last call.
    opened: [B] int32, slot at which the brief (of the root) or the result (of
      the child) began that the row's thread wrote last.
    joining: Pair [B] int32: the child whose result the root is given next, and
      which token of it.
    ready: [Q, R * W] int32, the children in the order in which they were ready.
    pushed, taken: [Q] int32, how many have been ready, and begun.
    brief: Pair [Q, R * W] int32, each child's `<spawn>` and brief: first slot
      in its root, and slots.
    result: The same of what a child has returned, in its own slots; of length
      0 = nothing, or not yet.
    phase: [Q, R * W] int32, that in which a child was spawned.
    running: [Q, R] int32, children of the last call that have not ended.
  """
  base: Array
  held: Array
  held_slot: Array
  held_automaton: protocol_lib.State
  asked: Array
  first: Array
  opened: Array
  joining: tuple[Array, Array]
  ready: Array
  pushed: Array
  taken: Array
  brief: tuple[Array, Array]
  result: tuple[Array, Array]
  phase: Array
  running: Array


def begin(engine: Engine, automaton: protocol_lib.State) -> Threads:
  """No thread has been spawned; `automaton` of the B rows."""
  Q, jobs, W = engine.queues, engine.jobs_per_queue, engine.protocol.width
  row = jnp.zeros(automaton.stage.shape, jnp.int32)
  queue, job = jnp.zeros(Q, jnp.int32), jnp.zeros((Q, jobs), jnp.int32)
  return Threads(
      base=row, held=row - 1, held_slot=row, held_automaton=automaton,
      asked=row, first=row, opened=row, joining=(row, row), ready=job,
      pushed=queue, taken=queue, brief=(job, job), result=(job, job),
      phase=job, running=jnp.zeros((Q, jobs // W), jnp.int32))


def random_keys(keys: Array, width: int) -> Array:
  """[J * W] keys of all threads, of those of J rollouts; the root's stays."""
  fold = jax.random.fold_in
  def threads(key):
    children = fold(key, 2**32 - 1)  # no slot's
    return jnp.concatenate([key[None], jax.vmap(
        lambda c: fold(children, c))(jnp.arange(width - 1))])
  return jax.vmap(threads)(keys).reshape(-1)


def forced(protocol: Protocol, state: State) -> Array:
  """[B] int32, the token that a brief or a join forces next, or -1."""
  t, tokens = state.threads, state.out.tokens
  of_queue, at = _views(state)
  job, W = of_queue(state.job), protocol.width
  root = job // W * W
  # A child's brief, in its root.
  start, length = (at(a, job) for a in t.brief)
  i = of_queue(state.slot) + 1 - len(protocol.prefix)
  in_brief = (job > root) & (i >= 0) & (i < length)
  # A result, in the child that returned it.
  child, nth = map(of_queue, t.joining)
  there = child < W - 1
  source = jnp.where(there, root + 1 + child, root)
  begins, size = (at(a, source) for a in t.result)
  slot = jnp.where(in_brief, start + i, begins + nth)
  token = jax.vmap(lambda tokens, job, slot: tokens[job, slot])(
      tokens, jnp.where(in_brief, root, source),
      jnp.clip(slot, 0, tokens.shape[2] - 1))
  joined = jnp.where(there & (size > 0), token, protocol.threads.none)
  joins = of_queue(_in(state.automaton.stage, JOINS))
  return jnp.where(in_brief, token, jnp.where(joins, joined, -1)).reshape(-1)


def recorded(protocol: Protocol, state: State, token: Array, sampled: Array,
             new: protocol_lib.State) -> tuple[Threads, protocol_lib.State]:
  """What the rows' new tokens mean for threads.

  Args:
    protocol: The tokens of threads.
    state: Before the new tokens.
    token: [B] int32, the new ones.
    sampled: [B] bool, whether they were not forced.
    new: The automaton after them.

  Returns:
    The threads; the automaton, with the joins that are complete left.
  """
  t, before = state.threads, state.automaton.stage
  of_queue, at = _views(state)
  own, W = protocol.threads, protocol.width
  job, slot = state.job, state.slot + 1
  root = job // W * W
  # The root's calls.
  in_brief = _in(before, BRIEFS)
  spawns = (token == own.spawn) & _in(new.stage, BRIEFS)
  joins = in_brief & _in(new.stage, JOINS)
  closed = jnp.where(in_brief & (spawns | joins) & (t.asked < W),
                     root + t.asked, -1)
  brief = (_put(state, t.brief[0], closed, t.opened),
           _put(state, t.brief[1], closed, slot - t.opened))
  phase = _put(state, t.phase, closed, state.automaton.phase)
  first = jnp.where(spawns & ~in_brief, t.asked, t.first)
  # A call that is broken off has asked for nothing.
  broken = in_brief & ~(joins | _in(new.stage, BRIEFS))
  asked = jnp.where(broken, t.first, t.asked + spawns)
  runs = jnp.where(joins, jnp.minimum(asked, W - 1)
                   - jnp.minimum(first, W - 1), 0)
  running = _put(state, t.running, jnp.where(joins, root // W, -1), runs)
  ready, pushed = _pushed(state, t, root + 1 + first, runs, W - 1)
  # What is joined.
  child, nth = t.joining
  size = at(t.result[1], of_queue(root + 1 + jnp.minimum(
      child, W - 2))).reshape(-1)
  size = jnp.where(child < W - 1, jnp.maximum(size, 1), 1)
  writes = _in(before, JOINS)
  last = nth + 1 >= size
  complete = writes & last & (child + 1 >= t.asked)
  joining = (
      jnp.where(joins, first, child + (writes & last)),
      jnp.where(joins | (writes & last), 0, nth + writes))
  left = protocol_lib.after_join(new)
  new = new.replace(stage=jnp.where(complete, left.stage, new.stage))
  # A child's result, and its end.
  returns = (before == protocol_lib.CHILD) & (token == own.result)
  ended = jnp.where((job > root) & (before != DONE) & (new.stage == DONE),
                    job, -1)
  whole = (before == protocol_lib.RESULT) & sampled
  result = (_put(state, t.result[0], ended, t.opened),
            _put(state, t.result[1], ended,
                 jnp.where(whole, slot - t.opened, 0)))
  less = jax.vmap(lambda a, i: a.at[i].add(-1, mode='drop'))
  running = less(running, of_queue(_dropped(
      jnp.where(ended >= 0, root // W, -1), running)))
  return t.replace(
      asked=asked, first=first,
      opened=jnp.where(spawns | returns, slot, t.opened), joining=joining,
      ready=ready, pushed=pushed, brief=brief, result=result, phase=phase,
      running=running), new


def scheduled(engine: Engine, loaded: Loaded, state: State) -> State:
  """Rows whose thread has ended, or begun to wait, take another.

  First the root that waits on the row, if its children have ended; else a
  child that is ready; else, if no root waits on it, the queue's next rollout.
  """
  t, at_now, W = state.threads, state.automaton, engine.protocol.width
  of_queue, at = _views(state)
  job, order = of_queue(state.job), loaded.order
  waits = of_queue(_in(at_now.stage, JOINS)) & (at(t.running, job // W) > 0)
  flat = lambda a: a.reshape(-1)
  choose = lambda mask: lambda a, b: jnp.where(flat(mask), a, b)
  held = jnp.where(waits, job, of_queue(t.held))
  held_slot = choose(waits)(state.slot, t.held_slot)
  held_automaton = jax.tree.map(choose(waits), at_now, t.held_automaton)
  free = waits | of_queue(at_now.stage == DONE)
  holds = held >= 0
  resumes = free & holds & (at(t.running, jnp.maximum(held, 0) // W) == 0)

  def take(wants, taken, there, jobs):
    """Which rows take a job of a queue; the jobs; how many are taken."""
    nth = taken[:, None] + jnp.cumsum(wants, 1) - 1
    takes = wants & (nth < there)
    return takes, at(jobs, jnp.minimum(nth, jobs.shape[1] - 1)), (
        taken + takes.sum(1, dtype=jnp.int32))

  spawned, child, taken = take(free & ~resumes, t.taken, t.pushed[:, None],
                               t.ready)
  fresh, root, next_root = take(free & ~holds & ~spawned, state.next,
                                order.shape[1], order)
  before, job = job, jnp.where(
      resumes, held, jnp.where(spawned, child, jnp.where(fresh, root, job)))
  jobs = engine.of_jobs(loaded.jobs, job)
  begun = protocol_lib.start(
      engine.protocol, jnp.where(flat(spawned), protocol_lib.NO_CHUNKS,
                                 jobs.num_chunks), flat(at(t.phase, job)))
  idle = at_now.replace(stage=jnp.where(flat(waits), DONE, at_now.stage))
  begins, moves = spawned | fresh, spawned | fresh | resumes
  automaton = jax.tree.map(choose(begins), begun, jax.tree.map(
      choose(resumes), held_automaton, idle))
  context, prompt = state.context, engine.prompt(job)
  if context is not None:
    context = engine.with_sources(loaded, context,
                                  prompt != engine.prompt(before), prompt)
  pick = lambda started, resumed, as_is: choose(begins)(
      started, choose(resumes)(resumed, as_is))
  new = t.replace(
      base=choose(moves)(choose(spawned & holds)(held_slot, 0), t.base),
      held=flat(jnp.where(resumes, -1, held)), held_slot=held_slot,
      held_automaton=held_automaton,
      asked=choose(fresh)(0, t.asked), first=choose(fresh)(0, t.first),
      taken=taken)
  return state.replace(
      next=next_root, job=flat(job), slot=pick(0, held_slot, state.slot),
      token=pick(engine.protocol.prefix[0], engine.protocol.threads.join,
                 state.token),
      automaton=automaton, jobs=jobs, context=context, threads=new)


def _pushed(state, t, job, count, most):
  """ready and pushed with jobs job, .., job + count - 1 of each row [B]."""
  of_queue, _ = _views(state)

  def push(args):
    ready, pushed = args
    job_q, count_q = of_queue(job), of_queue(count)
    i = jnp.arange(most)[None, None]
    place = (pushed[:, None] + jnp.cumsum(count_q, 1) - count_q)[..., None] + i
    place = jnp.where(i < count_q[..., None], place, ready.shape[1])
    put = jax.vmap(lambda a, i, b: a.at[i.reshape(-1)].set(
        b.reshape(-1), mode='drop'))
    return (put(ready, place, job_q[..., None] + i),
            pushed + count_q.sum(1, dtype=jnp.int32))
  return jax.lax.cond(jnp.any(count > 0), push, lambda args: args,
                      (t.ready, t.pushed))


def _in(stage, stages):
  return (stage == stages[0]) | (stage == stages[1])


def _views(state):
  """[B] as [Q, B / Q]; [Q, B / Q, ..] of arrays [Q, ..] at such an index."""
  Q = state.next.shape[0]
  return (lambda a: a.reshape(Q, -1),
          lambda a, i: jax.vmap(lambda a, i: a[i])(a, i))


def _dropped(index, a):
  """The index with those below 0 past the end of a [Q, n]."""
  return jnp.where(index >= 0, index, a.shape[1])


def _put(state, a, index, value):
  """a [Q, n] with each row's value [B] at its index [B]; below 0 = nowhere."""
  of_queue, _ = _views(state)
  return jax.vmap(lambda a, i, b: a.at[i].set(b, mode='drop'))(
      a, of_queue(_dropped(index, a)), of_queue(value))
