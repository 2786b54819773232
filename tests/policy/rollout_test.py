"""The rollout's log-probabilities are the teacher-forced ones."""

import dataclasses
import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.core import protocol as pl
from adasr_jax.core import sharding
from adasr_jax.core import visibility
from adasr_jax.models import decoder
from adasr_jax.policy import engine
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy import scoring
from adasr_jax.policy.scoring import score
from tests.small import EOT, SKIP, make_config, make_protocol, make_source

CONFIG = make_config()
SOURCE = make_source()
KEY = jax.random.key(1)


@functools.cache
def _rolled(legality, prefix, temperature):
  protocol = make_protocol(legality=legality, prefix=prefix)
  params = decoder.init(CONFIG, jax.random.key(0))
  params = params | {'embedding': params['embedding'] * 2.0}
  target = rollout(params, SOURCE, KEY, model_config=CONFIG, protocol=protocol,
                   samples=3, max_chunks=4, temperature=temperature)
  return params, protocol, jax.device_get(target)


def gap(params, source, target, protocol, temperature, config=CONFIG):
  logp, _ = score(params, source, target, model_config=config,
                  protocol=protocol,
                  temperature=temperature)
  return float(np.abs(np.asarray(logp) - target.logp).max())


@pytest.mark.parametrize('legality', ['free', 'masked'])
@pytest.mark.parametrize('prefix,temperature', [((1,), 1.0),
                                                ((1, 9, 10), 0.7)])
def test_rollout_equals_teacher_forcing(legality, prefix, temperature):
  params, protocol, target = _rolled(legality, prefix, temperature)
  assert gap(params, SOURCE, target, protocol, temperature) < 1e-5
  # The rollout has what the identity must be tested on.
  chunks = np.repeat(SOURCE.num_chunks, 3)[:, None]
  live = target.valid & target.sampled
  for c in range(1, 6):
    assert (live & (target.phase == c)).any(), f'no token in phase {c}'
  cut = target.valid & ~target.sampled & (target.stage != pl.PREFIX)
  assert cut.any(), 'no forced token'
  assert (live[:, 1:] & cut[:, :-1]).any(), 'no token after a forced one'
  assert len(set(target.valid.sum(1))) > 1, 'rows are not ragged'
  assert (target.logp[~target.sampled] == 0).all()
  assert (live & (target.phase > chunks)).any()


def test_as_on_tpu(monkeypatch):
  """With the kernels of a TPU, interpreted: the same tokens and log-probs, and
  these are the teacher-forced ones."""
  config = make_config(num_layers=1)
  params = decoder.init(config, jax.random.key(0))
  params = params | {'embedding': params['embedding'] * 2.0}
  protocol = make_protocol(thought_cap=4, deep_cap=4, answer_cap=3)
  source = make_source((2, 0))
  roll = lambda config: jax.device_get(rollout(
      params, source, KEY, model_config=config, protocol=protocol, samples=2,
      max_chunks=2, temperature=1.0))
  want = roll(config)
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  config = dataclasses.replace(config, attention='pallas')
  with pltpu.force_tpu_interpret_mode():
    got = roll(config)
    assert gap(params, source, got, protocol, 1.0, config) < 1e-5
  assert want.valid[:, 4:].any(), 'only short rows'
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)


def _own_phase(monkeypatch):
  monkeypatch.setattr(visibility, 'query_phase', lambda p: p[:, :-1])


def _continued_positions(monkeypatch):
  whole = decoder.target_hidden
  monkeypatch.setattr(scoring.decoder, 'target_hidden',
                      lambda p, c, *a: whole(p, dataclasses.replace(
                          c, target_offset=SOURCE.tokens.shape[1]), *a))


def _whole_source(monkeypatch):
  monkeypatch.setattr(visibility, 'query_phase',
                      lambda p: jnp.full_like(p[:, 1:], 99))


@pytest.mark.parametrize('plant', [_own_phase, _continued_positions,
                                   _whole_source])
def test_planted_bugs_break_the_identity(plant, monkeypatch):
  params, protocol, target = _rolled('free', (1,), 1.0)
  plant(monkeypatch)
  assert gap(params, SOURCE, target, protocol, 1.0) > 1e-3


def test_unscaled_temperature_breaks_the_identity():
  params, protocol, target = _rolled('free', (1, 9, 10), 0.7)
  assert gap(params, SOURCE, target, protocol, 1.0) > 1e-2


def test_unmasked_scoring_of_a_masked_rollout_breaks_the_identity():
  params, protocol, target = _rolled('masked', (1,), 1.0)
  free = dataclasses.replace(protocol, legality='free')
  assert gap(params, SOURCE, target, free, 1.0) > 1e-2


def test_llama_variant_untied_biased_offset_remat():
  config = make_config(qk_norm=False, qkv_bias=True, tie_embedding=False,
                       remat='full', target_offset=5, num_kv_heads=1)
  params = decoder.init(config, jax.random.key(3))
  protocol = make_protocol()
  target = rollout(params, SOURCE, KEY, model_config=config, protocol=protocol,
                   samples=2, max_chunks=4, temperature=1.0)
  target = jax.device_get(target)
  assert gap(params, SOURCE, target, protocol, 1.0, config) < 1e-5


def test_a_row_equals_the_row_alone():
  params, protocol, target = _rolled('free', (1,), 1.0)
  for p in range(4):
    one = jax.tree.map(lambda a: a[p:p + 1], SOURCE)
    alone = jax.device_get(rollout(
        params, one, KEY, model_config=CONFIG, protocol=protocol, samples=3,
        max_chunks=4, temperature=1.0))
    assert np.array_equal(alone.tokens, target.tokens[3 * p:3 * p + 3])
    np.testing.assert_allclose(alone.logp, target.logp[3 * p:3 * p + 3],
                               atol=1e-5)


def test_batch_order_changes_no_sample():
  params, protocol, target = _rolled('free', (1,), 1.0)
  order = np.array([2, 0, 3, 1])
  moved = jax.device_get(rollout(
      params, jax.tree.map(lambda a: a[order], SOURCE), KEY,
      model_config=CONFIG,
      protocol=protocol, samples=3, max_chunks=4, temperature=1.0))
  rows = (order[:, None] * 3 + np.arange(3)).reshape(-1)
  assert np.array_equal(moved.tokens, target.tokens[rows])


@pytest.mark.parametrize('chunk', [2, 3, 4])
def test_rewriting_an_unread_chunk_changes_nothing_earlier(chunk):
  params, protocol, target = _rolled('free', (1,), 1.0)
  unread = SOURCE.phase >= chunk
  other = dataclasses.replace(SOURCE, tokens=np.where(
      unread, (SOURCE.tokens * 7) % 30 + 6, SOURCE.tokens).astype(np.int32))
  moved = jax.device_get(rollout(
      params, other, KEY, model_config=CONFIG, protocol=protocol, samples=3,
      max_chunks=4, temperature=1.0))
  before = target.valid & (target.phase < chunk) & (target.phase > 0)
  # Only rows that have the chunk can tell.
  before &= np.repeat(SOURCE.num_chunks >= chunk, 3)[:, None]
  assert before.sum() > 10
  assert np.array_equal(moved.tokens[before], target.tokens[before])
  np.testing.assert_allclose(moved.logp[before], target.logp[before],
                             atol=1e-6)
  assert not np.array_equal(moved.tokens, target.tokens)


def test_cache_growth_changes_nothing(monkeypatch):
  params, protocol, target = _rolled('free', (1,), 1.0)
  monkeypatch.setattr(engine, 'FIRST_CACHE', 4)
  assert engine.cache_sizes(36) == [4, 8, 16, 36]
  grown = jax.device_get(rollout.__wrapped__(
      params, SOURCE, KEY, model_config=CONFIG, protocol=protocol, samples=3,
      max_chunks=4, temperature=1.0))
  assert np.array_equal(grown.tokens, target.tokens)


def test_a_loop_over_layers_changes_nothing(monkeypatch):
  """As accelerators decode."""
  params, protocol, target = _rolled('free', (1,), 1.0)
  monkeypatch.setattr(decoder, 'by_layer', lambda tree: tree)
  looped = jax.device_get(rollout.__wrapped__(
      params, SOURCE, KEY, model_config=CONFIG, protocol=protocol, samples=3,
      max_chunks=4, temperature=1.0))
  assert np.array_equal(looped.tokens, target.tokens)
  np.testing.assert_allclose(looped.logp, target.logp, atol=1e-5)


def test_masked_rollouts_never_break_the_protocol():
  _, protocol, target = _rolled('masked', (1,), 1.0)
  cls = protocol.token_class[target.tokens]
  assert pl.LEGAL[target.stage, cls][target.sampled].all()


def test_annotate_gives_the_rollouts_own_phases():
  _, protocol, target = _rolled('free', (1,), 1.0)
  phase, stage = pl.annotate(protocol, target.tokens, target.valid.sum(1),
                             np.repeat(SOURCE.num_chunks, 3))
  assert np.array_equal(phase[target.valid], target.phase[target.valid])
  assert np.array_equal(stage[target.valid], target.stage[target.valid])


def test_decisions_are_obeyed():
  params, protocol, _ = _rolled('free', (1,), 1.0)
  decisions = np.array([[1, 0, 1, 0]] * 4, np.int32)
  target = jax.device_get(rollout(
      params, SOURCE, KEY, model_config=CONFIG, protocol=protocol, samples=3,
      max_chunks=4, temperature=1.0, decisions=decisions))
  first = target.valid & (target.stage == pl.FIRST)
  skips = target.tokens == SKIP
  assert skips[first & (target.phase % 2 == 0)].all()
  assert not skips[first & (target.phase % 2 == 1)].any()
  # EOT-first thoughts may happen under free legality; skips may not.
  assert (first & (target.phase % 2 == 1)).sum() > 5 and EOT != SKIP


def test_greedy_has_no_randomness_and_head_blocks_agree(monkeypatch):
  params, protocol, sampled = _rolled('free', (1,), 1.0)
  a, b = (jax.device_get(rollout(
      params, SOURCE, jax.random.key(k), model_config=CONFIG, protocol=protocol,
      samples=1, max_chunks=4, temperature=0.0)) for k in (0, 1))
  assert np.array_equal(a.tokens, b.tokens) and (a.logp == 0).all()
  whole = score(params, SOURCE, sampled, model_config=CONFIG, protocol=protocol,
                temperature=1.0)
  monkeypatch.setitem(scoring.HEAD_ELEMENTS, 'cpu', 12 * 40 * 5)
  blocks = score(params, SOURCE, sampled, model_config=CONFIG,
                 protocol=protocol,
                 temperature=1.0)
  for x, y in zip(whole, blocks):
    np.testing.assert_allclose(x, y, atol=1e-5)
