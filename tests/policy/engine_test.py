"""Rows with a slot of their own: what a job writes depends on nothing else."""

import functools

import jax
import numpy as np
import pytest

from adasr_jax.core import placement
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core import sharding
from adasr_jax.core.types import Given
from adasr_jax.models import decoder
from adasr_jax.policy import engine
from adasr_jax.policy.engine import Engine
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.scoring import score
from tests.small import make_config, make_protocol, make_source

CONFIG = make_config()
# Eight ragged prompts, one of them without a stream.
SOURCE = make_source((4, 2, 3, 0, 1, 4, 2, 3))
G, KEY = 12, jax.random.key(1)


@functools.cache
def params():
  p = decoder.init(CONFIG, jax.random.key(0))
  return p | {'embedding': p['embedding'] * 2.0}


@functools.cache
def rolled(rows, legality='free', with_given=False, with_decisions=False):
  more = {}
  if with_given:
    more['given'] = beginnings()
  if with_decisions:
    more['decisions'] = np.random.default_rng(0).integers(
        -1, 2, (8, 4)).astype(np.int32)
  return jax.device_get(rollout(
      params(), SOURCE, KEY, model_config=CONFIG,
      protocol=make_protocol(legality=legality), samples=G, max_chunks=4,
      temperature=1.0, rows=rows, **more))


def beginnings():
  """Of another rollout: to a chunk's end, nothing, or all."""
  r, source = np.random.default_rng(0), rolled(0)
  length = np.zeros(8 * G, np.int32)
  for b in range(8 * G):
    phase = r.integers(0, SOURCE.num_chunks[b // G] + 3)
    length[b] = (source.valid[b] & (source.phase[b] < phase)).sum()
  tokens = source.tokens.copy()
  # From here on another continuation than the one it had.
  tokens[np.arange(tokens.shape[1]) >= length[:, None]] = 0
  return Given(tokens=tokens, length=length)


def assert_same(a, b):
  for name in ('tokens', 'phase', 'stage', 'valid', 'sampled'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
  np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
  np.testing.assert_allclose(a.logp_untruncated, b.logp_untruncated, atol=1e-5)


@pytest.mark.parametrize('rows', [1, 7, 48, 95, 96, 1000])
@pytest.mark.parametrize('legality', ['free', 'masked'])
def test_refill_changes_nothing(rows, legality):
  want = rolled(0, legality)
  assert len(set(want.valid.sum(1))) > 5, 'rows are not ragged'
  assert_same(rolled(rows, legality), want)


@pytest.mark.parametrize('rows', [7, 48])
def test_a_cache_that_grows_under_refill(rows, monkeypatch):
  want = rolled(0)
  monkeypatch.setattr(engine, 'FIRST_CACHE', 4)
  got = jax.jit(functools.partial(
      rollout.__wrapped__, model_config=CONFIG, protocol=make_protocol(),
      samples=G, max_chunks=4, temperature=1.0, rows=rows))(
          params(), SOURCE, KEY)
  assert_same(jax.device_get(got), want)


@pytest.mark.parametrize('rows', [0, 7, 48])
def test_given_beginnings_are_continued(rows):
  got, given = rolled(rows, with_given=True), beginnings()
  assert_same(got, rolled(0, with_given=True))
  T0 = np.arange(got.tokens.shape[1])[None] < given.length[:, None]
  np.testing.assert_array_equal(got.tokens[T0], given.tokens[T0])
  assert not got.sampled[T0].any() and got.valid[T0].all()
  # Same keys, same beginning: the same continuation, and its log-probs.
  free = rolled(0)
  np.testing.assert_array_equal(got.tokens, free.tokens)
  later = got.sampled
  np.testing.assert_allclose(got.logp[later], free.logp[later], atol=1e-5)
  assert later.sum() < free.sampled.sum()


def test_another_beginning_has_another_end():
  given = beginnings()
  changed = given.tokens.copy()
  own = np.arange(changed.shape[1])[None] < given.length[:, None]
  text = own & (rolled(0).stage == protocol_lib.THOUGHT) & (changed > 5)
  changed[text] = 6 + (changed[text] - 5) % 30
  protocol = make_protocol()
  got = jax.device_get(rollout(
      params(), SOURCE, KEY, model_config=CONFIG, protocol=protocol,
      samples=G, max_chunks=4, temperature=1.0,
      given=Given(tokens=changed, length=given.length)))
  np.testing.assert_array_equal(got.tokens[own], changed[own])
  assert not np.array_equal(got.tokens, rolled(0).tokens)
  logp, _ = score(params(), SOURCE, got, model_config=CONFIG,
                  protocol=protocol, temperature=1.0)
  np.testing.assert_allclose(logp, got.logp, atol=1e-5)


@pytest.mark.parametrize('rows', [7, 48])
def test_decisions_move_with_their_jobs(rows):
  assert_same(rolled(rows, with_decisions=True),
              rolled(0, with_decisions=True))


def make_engine(rows=0, **changes) -> Engine:
  return Engine(**(dict(
      model_config=CONFIG, protocol=make_protocol(), prompts=8, samples=G,
      max_chunks=4, temperature=1.0, rows=rows) | changes))


@pytest.mark.parametrize('rows,queues,each,copies', [
    (0, 8, 12, False), (96, 8, 12, False), (48, 8, 6, False),
    (50, 8, 6, False), (8, 8, 1, False), (7, 1, 7, True), (1, 1, 1, True),
    (10**6, 8, 12, False)])
def test_layout(rows, queues, each, copies, monkeypatch):
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  e = make_engine(rows)
  assert (e.queues, e.rows_per_queue, e.copies_sources) == (
      queues, each, copies)


@pytest.mark.parametrize('more,says', [
    (dict(decisions=np.zeros((8, 3), np.int32)), r'decisions: \(8, 3\) is not'),
    (dict(given=Given(tokens=np.zeros((96, 99), np.int32),
                      length=np.zeros(96, np.int32))), 'of 1 to 36 slots'),
    (dict(given=Given(tokens=np.zeros((96, 0), np.int32),
                      length=np.zeros(96, np.int32))), 'of 1 to 36 slots'),
    (dict(given=Given(tokens=np.zeros((8, 9), np.int32),
                      length=np.zeros(8, np.int32))), 'not of 96 targets')])
def test_arrays_of_other_shapes_are_refused(more, says):
  with pytest.raises(ValueError, match=says):
    make_engine().prepare(params(), SOURCE, KEY, **more)


def test_a_run_stops_where_its_cache_is_full():
  e = make_engine()
  loaded = e.prepare(params(), SOURCE, KEY)
  state = jax.jit(e.run)(loaded, jax.jit(lambda l: e.start(l, 16))(loaded))
  assert int(state.steps) == 15 and bool(e.unfinished(state))
  state = jax.jit(e.run)(loaded, e.grown(loaded, state, e.slots))
  assert_same(jax.tree.map(lambda a: np.asarray(a).reshape(96, -1), state.out),
              rolled(0))


def test_beginnings_are_no_longer_than_they_are():
  given = beginnings()
  long = Given(tokens=given.tokens[:, :9], length=given.length)
  short = Given(tokens=given.tokens, length=np.minimum(given.length, 9))
  roll = lambda given: jax.device_get(rollout(
      params(), SOURCE, KEY, model_config=CONFIG, protocol=make_protocol(),
      samples=G, max_chunks=4, temperature=1.0, given=given))
  assert_same(roll(long), roll(short))


@pytest.mark.parametrize('rows', [0, 7, 48])
def test_stepping_by_hand_is_the_rollout(rows):
  """A host that looks in between, some steps per call, state donated."""
  e = make_engine(rows)
  loaded = jax.jit(e.prepare)(params(), SOURCE, KEY)
  state = jax.jit(e.start)(loaded)
  three = jax.jit(lambda loaded, state: jax.lax.fori_loop(
      0, 3, lambda _, s: e.step(loaded, s), state), donate_argnums=1)
  steps, written = 0, 0
  while bool(e.unfinished(state)):
    before = state.cache[0][0]
    state = three(loaded, state)
    steps += 3
    assert before.is_deleted()
    now = int(state.out.valid.sum())
    assert now > written
    written = now
  want = rolled(0)
  assert_same(jax.tree.map(lambda a: np.asarray(a).reshape(want.tokens.shape),
                           state.out), want)
  most = int(want.valid.sum(1).max()) - 1
  if rows == 0:
    assert most <= steps < most + 3
  else:  # rows are kept busy
    busy = (want.valid.sum() - 96) / (
        e.queues * e.rows_per_queue * steps)
    assert busy > .7  # two jobs per row
  # Steps after the end change nothing.
  again = jax.jit(e.step)(loaded, state)
  assert_same(jax.tree.map(lambda a: np.asarray(a).reshape(want.tokens.shape),
                           again.out), want)


def test_refill_as_on_accelerators(monkeypatch):
  """Layers in one array; queues per prompt where there are rows enough."""
  monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
  assert [make_engine(rows).queues for rows in (7, 48)] == [1, 8]
  for rows in (7, 48):
    got = jax.device_get(rollout.__wrapped__(
        params(), SOURCE, KEY, model_config=CONFIG, protocol=make_protocol(),
        samples=G, max_chunks=4, temperature=1.0, rows=rows))
    assert_same(got, rolled(0))


# ---------------------------------------------------------------------- meshes
def on_mesh(rows, axes=(4, 2, 1)):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, axes)))
  with jax.set_mesh(mesh):
    born = placement.born(params)
    return placement.to_host(rollout(
        placement.for_rollout(born, 'float32'),
        placement.to_devices(SOURCE), KEY, model_config=CONFIG,
        protocol=make_protocol(), samples=G, max_chunks=4, temperature=1.0,
        rows=rows))


@pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')
@pytest.mark.parametrize('rows', [1, 8, 48])
def test_refill_on_a_mesh(rows):
  assert_same(on_mesh(rows), rolled(0))


@pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')
def test_devices_that_cannot_share_alike_have_no_queues_of_their_own():
  with jax.set_mesh(sharding.make_mesh(dict(zip(sharding.AXES, (4, 2, 1))))):
    layout = lambda **kw: (lambda e: (e.queues, e.rows_per_queue))(
        make_engine(**kw))
    assert layout(rows=24) == (8, 3)
    assert layout(rows=24, prompts=6) == (6, 4)
    assert layout(rows=3) == (8, 1)


@pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')
def test_no_source_is_sent_or_gathered():
  """With queues of their own, devices that hold whole models send nothing."""
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, (8, 1, 1))))
  source = make_source((4, 2, 3, 0, 1, 4, 2, 3) * 2)
  with jax.set_mesh(mesh):
    for rows in (0, 48, 8):
      text = rollout.lower(
          placement.for_rollout(placement.born(params), 'float32'),
          placement.to_devices(source), KEY, model_config=CONFIG,
          protocol=make_protocol(), samples=G, max_chunks=4, temperature=1.0,
          rows=rows).compile().as_text()
      for word in ('all-gather', 'all-to-all', 'collective-permute'):
        assert f' {word}(' not in text and f' {word}-start(' not in text, (
            rows, word)
