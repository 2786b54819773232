"""Threads: spawned, run, waited for and joined inside the jitted rollout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.core import protocol as pl
from adasr_jax.core import sharding
from adasr_jax.core.types import Given, Packing
from adasr_jax.core import visibility
from adasr_jax.models import decoder
from adasr_jax.policy import engine
from adasr_jax.policy import sampling
from adasr_jax.policy import threads as threads_lib
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.scoring import score
from tests.small import (
    END_THINK, EOS, EOT, VOCAB, make_config, make_protocol, make_source)

SPAWN, JOIN, RESULT, NONE = 6, 7, 8, 9
CONFIG = make_config(tie_embedding=False)
SOURCE = make_source((0, 2, 0, 1))
P, G, M, KEY = 4, 12, 3, jax.random.key(3)
W = 1 + M


def protocol_of(legality='masked'):
  # Few words, so that a random policy writes control tokens often.
  return make_protocol(
      legality=legality, undecodable=(0, 1, *range(14, VOCAB)),
      thought_cap=14, deep_cap=30, answer_cap=3,
      threads=pl.Threads(spawn=SPAWN, join=JOIN, result=RESULT, none=NONE,
                         children=M, cap=12))


@functools.cache
def params():
  return decoder.init(CONFIG, jax.random.key(0))


@functools.cache
def rolled(rows=0, legality='masked'):
  return jax.device_get(rollout(
      params(), SOURCE, KEY, model_config=CONFIG,
      protocol=protocol_of(legality), samples=G, max_chunks=2,
      temperature=1.0, rows=rows))


def own(target, row):
  """Tokens, stages, phases and `sampled` of a row, without padding."""
  n = int(target.valid[row].sum())
  assert target.valid[row, :n].all()
  return [a[row, :n].tolist() for a in (
      target.tokens, target.stage, target.phase, target.sampled)]


def calls_of(tokens, stages):
  """The calls of a root that were made: for each, its briefs and its join."""
  calls, briefs = [], []
  for token, stage in zip(tokens, stages):
    if token == SPAWN and stage in (pl.FIRST, pl.THOUGHT, pl.DEEP):
      briefs = [[token]]
    elif token == SPAWN and stage in pl.BRIEFS:
      briefs.append([token])
    elif stage in pl.BRIEFS and token == JOIN:
      calls.append((briefs, []))
    elif stage in pl.BRIEFS:
      briefs[-1].append(token)
    elif stage in pl.JOINS:
      calls[-1][1].append(token)
  return calls


@pytest.mark.parametrize('legality', ['free', 'masked'])
def test_children_get_briefs_and_joins_get_results(legality):
  target, protocol = rolled(0, legality), protocol_of(legality)
  spawned = returned = nothing = cut = early = 0
  for r in range(P * G):
    tokens, stages, phases, sampled = own(target, r * W)
    child = 0
    for briefs, joined in calls_of(tokens, stages):
      results = []
      for brief in briefs:
        if child < M:
          got, at, phase, drawn = own(target, r * W + 1 + child)
          n = 1 + len(brief)
          # The cap may end it within its brief.
          assert got[1:n] == brief[:len(got) - 1] or got[-1] == EOS
          assert not any(drawn[:n]) and set(at[1:]) <= set(pl.CHILDREN)
          assert len(set(phase[1:])) == 1 and phase[-1] in phases
          end = got.index(RESULT) if RESULT in got else len(got) - 1
          results += (got[end:-1] or [NONE]) if drawn[-1] else [NONE]
          spawned += 1
          returned += RESULT in got
          cut += not drawn[-1]
          nothing += RESULT not in got
          early += phase[-1] <= SOURCE.num_chunks[r // G]
        else:
          results.append(NONE)
        child += 1
      # A cap may end a join early.
      ends = joined[-1] in (protocol.end_think, protocol.eot)
      joined = joined[:-1] if ends else joined
      assert results[:len(joined)] == joined
      assert ends or len(results) == len(joined)
    for c in range(min(child, M), M):
      assert not target.valid[r * W + 1 + c].any()
      assert (target.stage[r * W + 1 + c] == pl.DONE).all()
    assert not any(s and stage in pl.JOINS for s, stage in
                   zip(sampled, stages))
  # Under `free` legality most random rollouts break off before a join.
  assert spawned and nothing
  assert legality == 'free' or min(spawned, returned, nothing, cut) >= 10
  # Some are called while the text arrives, by the thought on a chunk.
  assert legality == 'free' or early >= 4


def test_threads_that_wait_for_each_other_end_in_few_rows():
  # Two calls one after the other, whose children fill their caps: the last
  # root runs when no other job is left.
  protocol = make_protocol(
      legality='masked', thought_cap=14, deep_cap=20, answer_cap=4,
      threads=pl.Threads(spawn=SPAWN, join=JOIN, result=RESULT, none=NONE,
                         children=2, cap=24))
  root = [*protocol.prefix, *(SPAWN, 20, JOIN, NONE) * 2]
  given = Given(tokens=np.tile(np.int32(root), (3, 1)),
                length=np.full(3, len(root), np.int32))
  got = {rows: jax.device_get(rollout(
      params(), make_source((0,)), KEY, model_config=CONFIG, protocol=protocol,
      samples=3, max_chunks=0, temperature=.05, rows=rows, given=given))
      for rows in (0, 2, 1)}
  assert (got[0].valid.sum(1) == 25).all()
  for rows in (1, 2):
    np.testing.assert_array_equal(got[rows].tokens, got[0].tokens)
    np.testing.assert_array_equal(got[rows].valid, got[0].valid)


@pytest.mark.parametrize('legality', ['free', 'masked'])
def test_results_cannot_be_invented(legality):
  target = rolled(0, legality)
  drawn = target.sampled & ~np.isin(target.stage, [pl.CHILD])
  assert not np.isin(target.tokens[drawn], [RESULT, NONE]).any()
  inside = target.sampled & np.isin(target.stage, pl.CHILDREN)
  assert not np.isin(target.tokens[inside], [SPAWN, JOIN, NONE]).any()


@pytest.mark.parametrize('legality', ['free', 'masked'])
def test_rollout_log_probs_are_teacher_forced_ones(legality):
  target = rolled(0, legality)
  logp, _ = score(params(), SOURCE, target, model_config=CONFIG,
                  protocol=protocol_of(legality), temperature=1.0)
  np.testing.assert_allclose(logp, target.logp, atol=1e-5)
  assert (target.sampled[1::W]).any() and (logp[~target.sampled] == 0).all()


def assert_same(a, b):
  for name in ('tokens', 'phase', 'stage', 'valid', 'sampled'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
  np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


# P * G rollouts, then more rows than that; more than all threads together.
@pytest.mark.parametrize('rows', [1, 7, 12, 47, 2 * P * G, 999])
@pytest.mark.parametrize('legality', ['free', 'masked'])
def test_rows_change_nothing(rows, legality):
  assert_same(rolled(rows, legality), rolled(0, legality))


def test_rows_for_all_threads_wait_for_the_longest_child_of_each_call():
  root = [*protocol_of().prefix, SPAWN, 20, SPAWN, 21, SPAWN, 22, JOIN]
  given = Given(tokens=np.tile(np.int32(root), (2, 1)),
                length=np.full(2, len(root), np.int32))

  def took(rows):
    e = engine.Engine(
        model_config=CONFIG, protocol=protocol_of(), prompts=1, samples=2,
        max_chunks=2, temperature=1.0, rows=rows)
    loaded = e.prepare(params(), make_source((0,)), KEY, given=given)
    state = jax.jit(e.run)(loaded, e.start(loaded))
    return e.rows_per_queue, int(state.steps), jax.device_get(e.targets(state))

  assert [took(rows)[0] for rows in (0, 1, 5, 999)] == [2, 1, 5, 2 * W]
  _, steps, target = took(999)
  length = target.valid.sum(1)  # a slot takes a step, but the first
  alone = []
  for root in (0, W):
    alone.append(length[root] - 1)
    child = root + 1
    for briefs, _ in calls_of(*own(target, root)[:2]):
      mine = length[child:min(child + len(briefs), root + W)]
      alone[-1] += mine.max(initial=1) - 1
      child += len(briefs)
  assert steps == max(alone)
  assert took(0)[1] > steps and took(1)[1] == (length - 1).clip(0).sum()


def test_a_cache_that_grows_changes_nothing(monkeypatch):
  want = rolled(0)
  monkeypatch.setattr(engine, 'FIRST_CACHE', 4)
  got = jax.jit(functools.partial(
      rollout.__wrapped__, model_config=CONFIG, protocol=protocol_of(),
      samples=G, max_chunks=2, temperature=1.0, rows=7))(
          params(), SOURCE, KEY)
  assert_same(jax.device_get(got), want)


@pytest.mark.parametrize('rows,devices', [(0, 4), (8, 8), (2 * P * G, 4)])
def test_a_mesh_changes_nothing(rows, devices):
  if len(jax.devices()) < devices:
    pytest.skip(f'needs {devices} devices')
  mesh = sharding.make_mesh({'data': devices, 'fsdp': 1, 'tensor': 1},
                            jax.devices()[:devices])
  with jax.set_mesh(mesh):
    got = jax.device_get(rollout(
        params(), SOURCE, KEY, model_config=CONFIG, protocol=protocol_of(),
        samples=G, max_chunks=2, temperature=1.0, rows=rows))
  assert_same(got, rolled())


def test_a_child_is_its_brief_run_alone():
  target = rolled()
  tokens = np.zeros((P * G, target.tokens.shape[1]), np.int32)
  length = np.ones(P * G, np.int32)
  tokens[:, 0] = 1
  alone = []
  for r in range(P * G):
    calls = calls_of(*own(target, r * W)[:2])
    if calls and SOURCE.num_chunks[r // G] == 0:
      begin = [1, *calls[0][0][0], JOIN]  # only the first child
      tokens[r, :len(begin)], length[r] = begin, len(begin)
      alone.append(r)
  assert len(alone) >= 4
  got = jax.device_get(rollout(
      params(), SOURCE, KEY, model_config=CONFIG, protocol=protocol_of(),
      samples=G, max_chunks=2, temperature=1.0,
      given=Given(tokens=tokens, length=length)))
  for r in alone:
    row = r * W + 1
    assert own(got, row) == own(target, row)
    np.testing.assert_allclose(got.logp[row], target.logp[row], atol=1e-5)


class ByHand:
  """A second route: one thread, every token from its whole prefix."""

  def __init__(self, rollout, child, uniform, num_chunks, phase=0):
    self.protocol, self.rollout = protocol_of(), rollout
    self.source = jax.tree.map(lambda a: a[rollout // G][None], SOURCE)
    self.uniform = uniform[rollout * W + child]
    self.at = pl.start(self.protocol, np.array([num_chunks]),
                       np.array([phase]))
    self.tokens, self.phases = [1], []

  @property
  def stage(self):
    return int(self.at.stage[0])

  def write(self, then=-1):
    """One token: what the protocol forces, else `then`, else drawn."""
    token = int(pl.forced(self.protocol, self.at)[0])
    self.drawn = token < 0 and then < 0
    self.phases.append(int(self.at.phase[0]))
    if self.drawn:
      T, n = len(self.uniform), len(self.tokens)
      padded = lambda a: np.pad(np.array(a, np.int32), (0, T - n))
      token = int(self.draw(self.source, padded(self.tokens),
                            padded(self.phases), n - 1, self.stage,
                            self.uniform[n]))
    elif token < 0:
      token = then
    self.tokens.append(token)
    self.at = pl.advance(self.protocol, self.at, np.array([token]))
    return token

  @functools.partial(jax.jit, static_argnums=0)
  def draw(self, source, tokens, phases, slot, stage, u):
    hidden = decoder.target_hidden(
        params(), CONFIG, source, tokens[None], phases[None],
        (jnp.arange(len(tokens)) <= slot)[None])[0, slot]
    logits = decoder.logits(params(), CONFIG, hidden)
    legal = jnp.asarray(self.protocol.allowed)[stage]
    return sampling.draw(jnp.where(legal, logits, -1e30)[None], u[None],
                         temperature=1.0)[0][0]

  def __hash__(self):  # one program for all
    return 0

  def __eq__(self, other):
    return True


def child_by_hand(rollout, child, uniform, brief, phase):
  """What a child writes, and what of it is its result."""
  w = ByHand(rollout, child + 1, uniform, pl.NO_CHUNKS, phase)
  for token in brief:
    if w.stage != pl.DONE:
      w.write(token)
  while w.stage != pl.DONE:
    w.write()
  result = w.tokens[w.tokens.index(RESULT):-1] if RESULT in w.tokens else []
  return w.tokens, (w.drawn and result) or [NONE]


def root_by_hand(rollout, uniform):
  """What a root writes, and its children by index."""
  w = ByHand(rollout, 0, uniform, int(SOURCE.num_chunks[rollout // G]))
  children, briefs, asked = {}, [], 0
  while w.stage != pl.DONE:
    before, phase = w.stage, int(w.at.phase[0])
    token = w.write()
    if token == SPAWN and w.stage in pl.BRIEFS:
      briefs = [*(briefs if before in pl.BRIEFS else []), [token]]
    elif before in pl.BRIEFS and w.stage in pl.BRIEFS:
      briefs[-1].append(token)
    elif before in pl.BRIEFS and w.stage in pl.JOINS:
      results = []
      for brief in briefs:
        result = [NONE]
        if asked < M:
          children[asked], result = child_by_hand(rollout, asked, uniform,
                                                  brief, phase)
        asked, results = asked + 1, results + result
      for token in results:
        if w.stage in pl.JOINS:
          w.write(token)
      w.at = pl.after_join(w.at)
  return w.tokens, children


def test_one_token_at_a_time_by_hand():
  target = rolled()
  keys = threads_lib.random_keys(
      sampling.row_keys(KEY, SOURCE.problem_id, G), W)
  uniform = jax.device_get(sampling.uniforms(keys, target.tokens.shape[1]))
  with_children = [r for r in range(P * G)
                   if target.valid[r * W + 1].any()][::3]
  assert len(with_children) >= 4
  for r in with_children:
    root, children = root_by_hand(r, uniform)
    assert root == own(target, r * W)[0]
    assert children == {c: own(target, r * W + 1 + c)[0] for c in range(M)
                        if target.valid[r * W + 1 + c].any()}


def test_what_two_children_read():
  """Hand-written: a chunk of one token each, a root that spawns on the first.

  Source: the preamble, chunk 1, chunk 2. Slots of the packed target row:

    root     0 prefix  1 <spawn>  2 <spawn>  3 <join>  4 <none>  5 <none>
             6 <EOT>   7 deep
    child 0  8 prefix  9 <spawn>  10 <eos>
    child 1  11 prefix  12 <spawn>  13 <eos>
  """
  protocol = protocol_of()
  root = [1, SPAWN, SPAWN, JOIN, NONE, NONE, EOT, END_THINK, EOS]
  child = [1, SPAWN, EOS]
  tokens = np.zeros((3, 9), np.int32)
  tokens[0], tokens[1:, :3] = root, child
  joined = np.zeros((3, 9), bool)
  joined[0, 4:6] = True
  phase, stage = pl.annotate(
      protocol, tokens, np.array([9, 3, 3]),
      np.array([1, pl.NO_CHUNKS, pl.NO_CHUNKS]), phase=np.array([0, 1, 1]),
      joined=joined)
  assert stage[0].tolist() == [
      pl.PREFIX, pl.FIRST, pl.BRIEF, pl.BRIEF, pl.JOINED, pl.JOINED,
      pl.THOUGHT, pl.DEEP, pl.ANSWER]
  assert stage[1, :3].tolist() == [pl.PREFIX, pl.CHILD, pl.CHILD]
  assert phase.tolist() == [[0, 1, 1, 1, 1, 1, 1, 2, 2],
                            [0, 1, 1, 0, 0, 0, 0, 0, 0],
                            [0, 1, 1, 0, 0, 0, 0, 0, 0]]
  # Fed are all but the last token of each thread.
  query = np.concatenate([phase[0, 1:], phase[1, 1:3], phase[2, 1:3]])[None]
  segment = np.repeat([0, 1, 2], [8, 2, 2])[None]
  packing = Packing(source=np.zeros((1, 3), np.int32), target=segment,
                    reads=np.zeros((1, 12), np.int32))
  target = visibility.target_segments(query, np.ones((1, 12), bool), packing)
  table = lambda text: np.array([[c == 'x' for c in line.split()]
                                 for line in text.strip().splitlines()])
  np.testing.assert_array_equal(
      visibility.visible(target, target)[0], table("""
          x . . . . . . . . . . .
          x x . . . . . . . . . .
          x x x . . . . . . . . .
          x x x x . . . . . . . .
          x x x x x . . . . . . .
          x x x x x x . . . . . .
          x x x x x x x . . . . .
          x x x x x x x x . . . .
          . . . . . . . . x . . .
          . . . . . . . . x x . .
          . . . . . . . . . . x .
          . . . . . . . . . . x x"""))
  source = visibility.Segments(
      role=np.zeros((1, 3), np.int32), slot=np.arange(3)[None],
      phase=np.arange(3)[None], valid=np.ones((1, 3), bool),
      segment=packing.source)
  # The children know of the stream what the root knew when it called them.
  np.testing.assert_array_equal(
      visibility.visible(target, source)[0], table("""
          x x .
          x x .
          x x .
          x x .
          x x .
          x x .
          x x x
          x x x
          x x .
          x x .
          x x .
          x x ."""))
