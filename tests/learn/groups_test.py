"""Groups from batches of different widths, picked into one."""

import dataclasses

import jax
import numpy as np
import pytest

from adasr_jax.core.types import Example, Target
from adasr_jax.credit.advantages import AdvantageConfig
from adasr_jax.credit.rewards import Rewards
from adasr_jax.data.pipeline import Batch
from adasr_jax.learn.groups import (
    Groups, metrics, pick, samples_of, scaled)
from adasr_jax.learn.hrpo import HRPO
from adasr_jax.policy.transcript import Transcript, transcribe
from tests.small import make_source
from tests.threads_by_hand import PROTOCOL, ROLLOUT, TOKENIZER, target_of

G, T = 2, 3
SAID = Transcript(
    thoughts=('2 + 3 = 5', None), tokens=(6, 1), bad=(False,) * 2,
    cut=(False,) * 2, deep='', answer='5', deep_tokens=3, answer_start=1,
    deep_bad=False, deep_cut=False, finished=True)


def make_groups(first, slots, W=1):
  """Three groups whose numbers say which row and token they are of."""
  numbers = first + np.arange(3 * G * W * T).reshape(3 * G * W, T)
  floats, on = numbers.astype(np.float32), np.ones(numbers.shape, bool)
  none = np.zeros(3)
  rewards = {f.name: np.zeros(3 * G) for f in dataclasses.fields(Rewards)}
  return Groups(
      batch=Batch((), make_source((2, 1, 3), slots), none, none, none, none,
                  none),
      target=Target(tokens=numbers, phase=numbers, stage=numbers, valid=on,
                    sampled=on, logp=floats, logp_untruncated=floats),
      transcripts=[SAID] * (3 * G), advantage=floats,
      signal=np.array([True, False, True]),
      rewards=Rewards(**rewards | {
          'cut': np.arange(3 * G) % 3 == 0, 'total': first + np.arange(3 * G)}),
      rollout_seconds=1.5, reward_seconds=0.5)


def test_groups_of_several_batches_become_one():
  wide, narrow = make_groups(0, 20), make_groups(100, 12)
  got = pick([(wide, 2), (narrow, 0), (narrow, 1)], G)
  # Rows 4 and 5 of the first batch, 0 to 3 of the second.
  rows = np.concatenate([wide.target.tokens[4:], narrow.target.tokens[:4]])
  for picked in (got.target.tokens, got.target.logp, got.advantage):
    np.testing.assert_array_equal(picked, rows)
  assert got.signal.tolist() == [True] * 4 + [False] * 2
  assert got.cut.tolist() == [False, False, True, False, False, True]
  assert got.source.tokens.shape == (3, 20)
  source = narrow.batch.source
  np.testing.assert_array_equal(got.source.tokens[1:, :12], source.tokens[:2])
  np.testing.assert_array_equal(got.source.valid[1:, :12], source.valid[:2])
  # What was padded is not valid, and phases stay sorted.
  assert not got.source.valid[1:, 12:].any()
  assert (np.diff(got.source.phase) >= 0).all()
  np.testing.assert_array_equal(got.source.num_chunks, [3, 2, 1])


@pytest.mark.parametrize('scale', ['tokens', 'sequences'])
def test_all_that_a_step_drew_is_scaled_alike(scale):
  drawn = make_groups(0, 12), make_groups(100, 12)
  # Rollouts of one to three tokens.
  sampled = np.arange(T) <= (np.arange(3 * G) % 3)[:, None]
  drawn = [dataclasses.replace(g, target=dataclasses.replace(
      g.target, sampled=sampled)) for g in drawn]
  got = scaled(drawn, scale)
  each = [row[on]**2 for g in got for row, on in zip(g.advantage, sampled)]
  mean = (np.mean([x.mean() for x in each]) if scale == 'sequences'
          else np.concatenate(each).mean())
  np.testing.assert_allclose(mean, 1, rtol=1e-5)
  # A group keeps its size beside those of another draw.
  ratio = got[1].advantage[0, 0] / got[0].advantage[5, 2]
  assert ratio == pytest.approx(100 / 17)
  assert got[0].signal is drawn[0].signal


@pytest.mark.parametrize('normaliser', ['decoupled', 'std'])
def test_a_step_of_decoupled_rewards_is_scaled(normaliser, monkeypatch):
  drawn = make_groups(0, 12)
  drawn.advantage[G:2 * G] = 0  # all rollouts alike: nothing to learn
  rest = {f.name: None for f in dataclasses.fields(HRPO)}
  method = HRPO(**rest | dict(
      key=jax.random.key(0), prompts=3, samples=G, refills=0, num_logged=0,
      mask_overlong=False,
      advantage=AdvantageConfig(normaliser=normaliser)))
  monkeypatch.setattr(HRPO, 'draw', lambda self, *args: drawn)
  monkeypatch.setattr(HRPO, '_batch', lambda self, chosen: chosen)
  got = method.collect(None, step=0, cursor=0).batch
  assert [p for _, p in got] == [0, 2, 1]  # the last one fills the shape
  groups = got[0][0]
  square = 1 if normaliser == 'decoupled' else np.mean(drawn.advantage**2)
  np.testing.assert_allclose(np.mean(groups.advantage**2), square, rtol=1e-5)
  assert not groups.advantage[G:2 * G].any()


def test_metrics_are_of_all_that_was_drawn():
  got = metrics([make_groups(0, 12), make_groups(10, 12)], 4)
  assert got['reward/total'] == 7.5
  assert (got['time/rollout'], got['time/reward']) == (3, 1)
  np.testing.assert_allclose(got['groups/dropped'], 1 / 3)
  assert got['skip_rate'] == .5 and got['capped/thoughts'] == 0


def test_a_rollout_is_picked_with_all_its_threads():
  wide, narrow = make_groups(0, 20, W=4), make_groups(100, 12, W=4)
  got = pick([(wide, 2), (narrow, 0)], G)
  rows = np.concatenate([wide.target.tokens[16:], narrow.target.tokens[:8]])
  for picked in (got.target.tokens, got.target.logp, got.advantage):
    np.testing.assert_array_equal(picked, rows)
  assert got.signal.tolist() == [True] * 16
  # Rollout 0 of three groups of two is cut, and so is 3; not 4 and 5.
  assert got.cut.tolist() == [False] * 8 + [True] * 4 + [False] * 4


def test_metrics_and_samples_of_threads():
  said = transcribe(target_of(ROLLOUT, (0, '</think> 1 <eos>')),
                    np.zeros(2, np.int32), TOKENIZER, PROTOCOL)
  made = make_groups(0, 12)
  nan = np.nan
  made = dataclasses.replace(
      made, transcripts=said * 3, rewards=dataclasses.replace(
          made.rewards, threads=np.full(6, .5),
          child=np.array([[0, 1, 0], [nan] * 3] * 3)))
  got = metrics([made], 3)
  assert got['tokens/total'] == (109 + 3) / 2
  assert got['threads/tokens_sequential'] == (93 + 3) / 2
  assert got['threads/children'] == 1.5 and got['threads/returned'] == .5
  assert got['threads/cut'] == pytest.approx(1 / 3)
  assert got['reward/threads'] == .5
  assert got['reward/child'] == pytest.approx(1 / 3)
  plain = metrics([make_groups(0, 12)], 3)
  assert not [k for k in plain if 'thread' in k or 'child' in k]
  example = Example(id=1, preamble='q', chunks=(), answer='35')
  made = dataclasses.replace(made, batch=dataclasses.replace(
      made.batch, examples=(example,)))
  found = samples_of(made, 1, G)
  assert len(found) == G and {s['id'] for s in found} == {1}
  assert found[0]['threads'][0] == 'root: 3 + 4 = 7 : 5 ;'
  # Here a row's numbers are its phases, and its advantages.
  row, chunks = made.advantage[0], made.batch.source.num_chunks[0]
  for name, at in (('streaming', row <= chunks), ('deep', row > chunks)):
    assert found[0]['advantages'].get(name) == (
        pytest.approx(row[at].mean()) if at.any() else None)
