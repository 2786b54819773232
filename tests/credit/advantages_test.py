"""Hand-worked HRPO advantages, and the identities between granularities."""

import dataclasses

import numpy as np
import pytest

from adasr_jax.core.protocol import annotate
from adasr_jax.core.types import Target
from adasr_jax.credit.advantages import (
    AdvantageConfig, group_relative, token_advantages)
from adasr_jax.credit.rewards import Rewards
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


def advantages(rewards=REWARDS, target=TARGET, **config):
  config = AdvantageConfig(**(dict(granularity='stage', lam=.5,
                                   normaliser='std', constant=1.) | config))
  return token_advantages(rewards, target, CHUNKS, G, PROTOCOL, config)


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


@pytest.mark.parametrize('granularity', ['stage', 'sentence', 'token'])
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
