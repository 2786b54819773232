"""Hand-worked HRPO advantages, and the identities between granularities."""

import dataclasses

import numpy as np
import pytest

from adasr_jax.core.protocol import annotate
from adasr_jax.core.types import Target
from adasr_jax.credit.advantages import (
    AdvantageConfig, group_relative, magnitude, token_advantages)
from adasr_jax.credit.rewards import RewardConfig, Rewards
from tests.small import END_THINK, EOS, EOT, SKIP, make_protocol

PROTOCOL = make_protocol()
G = 4


def make_rewards(streaming, deep, total, chunk=None):
  B = len(total)
  fields = {f.name: np.zeros(B) for f in dataclasses.fields(Rewards)}
  fields |= dict(streaming=np.array(streaming, float),
                 deep=np.array(deep, float), total=np.array(total, float),
                 chunk=np.zeros((B, 2)) if chunk is None else np.array(chunk))
  return Rewards(**fields)


def make_target(rows):
  T = max(map(len, rows))
  tokens = np.array([r + [0] * (T - len(r)) for r in rows], np.int32)
  length = np.array([len(r) for r in rows])
  phase, stage = annotate(PROTOCOL, tokens, length, np.full(len(rows), 2))
  valid = np.arange(T)[None] < length[:, None]
  zero = np.zeros(tokens.shape, np.float32)
  return Target(tokens=tokens, phase=phase, stage=stage, valid=valid,
                sampled=valid & (stage > 0), logp=zero, logp_untruncated=zero)


# <bos> | thought on 1 | thought on 2 | deep </think> answer <eos>
ROW = [1, 9, 8, EOT, SKIP, 9, END_THINK, 9, EOS]
TARGET = make_target([ROW] * G)
CHUNKS = np.full(G, 2)
REWARDS = make_rewards(streaming=[.2, .3, .2, .3], deep=[1, 0, 1, 0],
                       total=[1, 0, 0, 0])


def advantages(rewards=REWARDS, target=TARGET, weights=None, **config):
  config = AdvantageConfig(**(dict(granularity='stage', lam=.5,
                                   normaliser='std', constant=1.) | config))
  return token_advantages(rewards, target, CHUNKS, G, PROTOCOL, config,
                          weights or RewardConfig())


def test_group_relative_closed_form():
  # (1,0,0,0): mean .25, population std sqrt(.1875) = .4330
  z = group_relative(np.array([1., 0, 0, 0]), 4)
  np.testing.assert_allclose(z, [1.7320, -.57735, -.57735, -.57735],
                             atol=1e-4)
  # The sample deviation (0.5) would give 1.5.
  assert abs(z[0] - 1.5) > .2


def test_equal_rewards_have_no_advantage_at_all():
  # Three times 0.1 has a mean that is not 0.1 in floating point.
  assert (group_relative(np.array([.1, .1, .1]), 3) == 0).all()
  assert (group_relative(np.array([.1, .1, .1, 1., 0, 0]), 3)[:3] == 0).all()


def test_constant_normaliser_keeps_the_scale():
  z = group_relative(np.array([1., 0, 0, 0]), 4, normaliser='constant',
                     constant=2.)
  np.testing.assert_allclose(z, [.375, -.125, -.125, -.125])


def test_hand_worked_stage_advantages():
  # A^S = (-1, 1, -1, 1), A^D = (1, -1, 1, -1), A^G = (1.7320, -.57735 x 3):
  # row 0 thinks at .5 (-1) + .5 (1.7320) = .3660, deep at 1.3660;
  # row 1: thought .2113, deep -.7887.
  a = advantages()
  np.testing.assert_allclose(a[0], [0] + [.3660] * 4 + [1.3660] * 4,
                             atol=1e-3)
  np.testing.assert_allclose(a[1], [0] + [.2113] * 4 + [-.7887] * 4,
                             atol=1e-3)


@pytest.mark.parametrize('granularity', [
    'stage', 'sentence', 'token', 'prefix'])
def test_lambda_zero_is_grpo(granularity):
  grpo = advantages(granularity='sequence')
  assert np.array_equal(advantages(granularity=granularity, lam=0.), grpo)
  assert not np.array_equal(advantages(granularity=granularity, lam=.5), grpo)


def test_sentence_uses_the_chunks_own_reward():
  rewards = make_rewards(REWARDS.streaming, REWARDS.deep, REWARDS.total,
                         chunk=[[1, 0], [0, 0], [0, 0], [0, 0]])
  a = advantages(rewards, granularity='sentence', lam=1.)
  np.testing.assert_allclose(a[0], [0, 1.732, 1.732, 1.732, 0, 1, 1, 1, 1],
                             atol=1e-3)


def test_token_touches_only_deciding_tokens():
  a, grpo = advantages(granularity='token'), advantages(lam=0.)
  stage = advantages()
  # first token of the thought, its <EOT>, and the <skip>
  decides = np.array([0, 1, 0, 1, 1, 0, 0, 0, 0], bool)
  assert np.array_equal(a[:, decides], stage[:, decides])
  assert np.array_equal(a[:, ~decides], grpo[:, ~decides])


def test_beta_cancels_where_only_length_varies_in_the_streaming_reward():
  """The documented property of z-scored A^S."""
  for beta in (.1, 1.):
    r = make_rewards(.2 + beta * np.array([0, .5, 1, .25]), [1] * 4, [1] * 4)
    a = advantages(r, lam=1.)[:, 1]
    np.testing.assert_allclose(a, group_relative(
        np.array([0, .5, 1, .25]), 4), atol=1e-4)


@pytest.mark.parametrize('bad', [
    dict(granularity='word'), dict(lam=1.5), dict(normaliser='max'),
    dict(constant=0.)])
def test_bad_values_are_named(bad):
  with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
    advantages(**bad)


# ---------------------------------------------------------------- normalisers
def components(accuracy, think, **more):
  """Rewards of one group of G by their components, and the sums of them."""
  w = RewardConfig()
  accuracy, think = np.array(accuracy, float), np.array(think, float)
  base = make_rewards(streaming=w.think_weight * think,
                      deep=accuracy + w.think_weight * think,
                      total=accuracy + w.think_weight * think)
  return dataclasses.replace(
      base, accuracy=accuracy, think_streaming=think, think_deep=think,
      think_global=think, user=np.zeros((len(think), 3)),
      think_chunk=np.zeros((len(think), 2)),
      format_chunk=np.zeros((len(think), 2)), **more)


def deep_of(rewards, **config):
  """Advantage of a deep token of each rollout, before the batch is scaled."""
  got = advantages(rewards, granularity='sequence', **config)
  return got[:, -1]


def test_what_each_normaliser_keeps_of_a_weight():
  # All answers right: only the length varies, with weight 0.1.
  think = [.0, .1, .2, .5]
  rewards = components([1, 1, 1, 1], think)
  z = group_relative(np.array(think), G)
  np.testing.assert_allclose(deep_of(rewards, normaliser='std'), z, rtol=1e-4)
  np.testing.assert_allclose(
      deep_of(rewards, normaliser='constant'),
      .1 * (np.array(think) - np.mean(think)), rtol=1e-5)
  # Decoupled, beside a group whose answers differ: a tenth of its size.
  both = join(rewards, components([1, 0, 1, 0], [0, 0, 0, 0]))
  target = make_target([ROW] * 2 * G)
  got = token_advantages(
      both, target, np.full(2 * G, 2), G, PROTOCOL,
      AdvantageConfig(granularity='sequence', normaliser='decoupled'),
      RewardConfig())[:, -1]
  np.testing.assert_allclose(got[:G] / got[G], .1 * z, rtol=1e-4)


def join(*rewards):
  return Rewards(**{f.name: np.concatenate(
      [getattr(r, f.name) for r in rewards])
      for f in dataclasses.fields(Rewards)})


def test_the_floor_keeps_noise_small():
  noise = [.500, .501, .502, .503]
  rewards = components([1, 0, 0, 1], noise)
  plain = deep_of(rewards, normaliser='decoupled', floor=0.)
  kept = deep_of(rewards, normaliser='decoupled', floor=.1)
  # Rollouts 0 and 3 differ only by the noise.
  assert plain[3] - plain[0] > .2 and abs(kept[3] - kept[0]) < .01


def test_a_wrong_but_fast_rollout_may_cancel_what_it_lost():
  # Accuracy and length of equal weight: under decoupled, the wrong one that is
  # shortest gets nothing of either; that is why u() asks for a right answer.
  w = RewardConfig(think_weight=1.)
  accuracy, think = [1, 1, 1, 0], [0, 0, 0, 1]
  rewards = components(accuracy, think)
  got = advantages(rewards, weights=w, granularity='sequence',
                   normaliser='decoupled')[:, -1]
  np.testing.assert_allclose(got, 0, atol=1e-6)


def test_a_group_without_differences_stays_at_zero():
  both = join(components([1, 1, 1, 1], [.2] * 4),
                       components([1, 0, 0, 0], [.2, .1, 0, 0]))
  got = token_advantages(
      both, make_target([ROW] * 2 * G), np.full(2 * G, 2), G, PROTOCOL,
      AdvantageConfig(granularity='stage', normaliser='decoupled'),
      RewardConfig())
  assert (got[:G] == 0).all() and (got[G:] != 0).any()


def test_levels_and_weights_decoupled_by_hand():
  r = np.random.default_rng(0)
  rewards = components(r.integers(0, 2, G), r.random(G))
  user, more = r.random((G, 3)), r.random(G)
  rewards = dataclasses.replace(rewards, user=user, more=more,
                                format_deep=r.integers(0, 2, G))
  w = RewardConfig(format_weight=.3, accuracy_weight=2., think_weight=.5)
  z = lambda x: group_relative(x, G, normaliser='decoupled', floor=.05)
  want = (2 * z(rewards.accuracy) + z(more) + .3 * z(rewards.format_deep)
          + .5 * z(rewards.think_deep) + z(user[:, 1]))
  got = advantages(rewards, weights=w, lam=1., floor=.05,
                   normaliser='decoupled')[:, -1]
  np.testing.assert_allclose(got / got[0], want / want[0], rtol=1e-4)


def test_scales_count_tokens_or_sequences():
  advantage = np.array([[1., 1, 1, 0], [3., 0, 0, 0]])
  sampled = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
  size = lambda *a: magnitude(*a) ** 2
  np.testing.assert_allclose(size(advantage, sampled, 'tokens'), 12 / 4)
  np.testing.assert_allclose(size(advantage, sampled, 'sequences'), (1 + 9) / 2)
  assert magnitude(0 * advantage, sampled, 'tokens') == 1


def test_prefix_credits_the_phase_that_made_the_difference():
  # Thoughts a a | a a | b a | b c, so that the first thought parts two and two.
  rows = [[1, x, EOT, y, EOT, 9, END_THINK, 9, EOS]
          for x, y in ((8, 8), (8, 8), (9, 8), (9, 9))]
  rewards = make_rewards([0] * 4, [0] * 4, [1, 1, 1, 0])
  a = advantages(rewards, make_target(rows), granularity='prefix', lam=1.,
                 normaliser='constant')
  # A^G = 1/4, 1/4, 1/4, -3/4; means after the first thought 1/4 and -1/4.
  np.testing.assert_allclose(a[:, 1], [.25, .25, -.25, -.25])
  np.testing.assert_allclose(a[:, 3], [0, 0, .5, -.5])
  np.testing.assert_allclose(a[:, 5], 0)
  # The parts of a rollout add up to what GRPO gives all of its tokens.
  np.testing.assert_allclose(a[:, 1] + a[:, 3] + a[:, 5],
                             [.25, .25, .25, -.75])
