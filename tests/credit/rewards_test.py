"""Rewards by hand: utilities, what gates them, and the sums of each level."""

import numpy as np
import pytest

from adasr_jax.core.types import Example
from adasr_jax.credit.rewards import (
    RewardConfig, outcomes, rewards, well_formed)
from adasr_jax.credit.thinking import SHAPINGS, utility
from adasr_jax.policy.transcript import Transcript

EXAMPLE = Example(id=1, preamble='q', chunks=('a', ' b'), answer='7')
BASE = dict(format_weight=.2, accuracy_weight=1., think_weight=.1, alpha=.5,
            shaping='relative', budget=10., overlong_penalty=0.,
            overlong_window=0)


def transcript(**changes):
  """A right and well-formed one: 3 + 1 streaming tokens, 6 deep ones."""
  fields = dict(
      thoughts=('x', None), tokens=(3, 1), bad=(False, False),
      cut=(False, False), deep='so 7', answer='7', deep_tokens=6,
      answer_start=4, deep_bad=False, deep_cut=False, finished=True)
  return Transcript(**(fields | changes))


def score(transcripts, samples=None, user=None, **config):
  return rewards([EXAMPLE] * len(transcripts), transcripts,
                 samples=samples or len(transcripts), max_chunks=3,
                 deep_cap=20, config=RewardConfig(**(BASE | config)), user=user)


# ---------------------------------------------------------------- utilities
COST = np.array([[2., 6., 4., 0.], [3., 3., 3., 9.]])
OPEN = np.array([[True, True, True, False], [True, True, True, False]])


@pytest.mark.parametrize('shaping,want', [
    # (6 - c) / (6 - 2); all equal: 0. Were the last one eligible, the spread
    # would be 6 and the first one 2/3.
    ('relative', [[1, 0, .5, 0], [0, 0, 0, 0]]),
    # budget 3: 1 up to 3, 0 from 6 on
    ('budget', [[1, 0, 2 / 3, 0], [1, 1, 1, 0]]),
    ('linear', [[-2 / 3, -2, -4 / 3, 0], [-1, -1, -1, 0]])])
def test_utilities(shaping, want):
  np.testing.assert_allclose(
      utility(COST, OPEN, shaping=shaping, budget=3.), want, atol=1e-12)


@pytest.mark.parametrize('shaping', SHAPINGS)
def test_nothing_is_won_without_a_right_answer(shaping):
  none = np.zeros_like(OPEN)
  assert (utility(COST, none, shaping=shaping, budget=3.) == 0).all()
  u = utility(COST, OPEN, shaping=shaping, budget=3.)
  other = np.where(OPEN, COST, 1e6)  # of ineligible rows no cost matters
  np.testing.assert_array_equal(
      u, utility(other, OPEN, shaping=shaping, budget=3.))
  assert np.isfinite(u).all()


def test_unknown_shaping():
  with pytest.raises(ValueError, match="shaping='cubic'"):
    utility(COST, OPEN, shaping='cubic', budget=1.)


# ------------------------------------------------------------------- format
@pytest.mark.parametrize('change,want', [
    (dict(), (True, True)),
    (dict(bad=(True, False)), (False, True)),
    (dict(cut=(False, True)), (False, True)),
    (dict(deep_bad=True), (True, False)),
    (dict(deep_cut=True), (True, False)),
    (dict(finished=False), (True, False)),
    # Ended while it streamed: no deep phase, so neither.
    (dict(deep_tokens=0, finished=False, answer=''), (False, False))])
def test_format_by_phase(change, want):
  assert well_formed(transcript(**change), answered=True) == want


def test_no_answer_breaks_only_the_deep_format():
  assert well_formed(transcript(), answered=False) == (True, False)


# --------------------------------------------------------------------- sums
GROUP = [
    transcript(),                                      # right, costs 4 and 6
    transcript(tokens=(1, 1), deep_tokens=8),          # right, costs 2 and 8
    transcript(bad=(False, True)),                     # streaming broken
    transcript(deep_bad=True),                         # deep broken
    transcript(cut=(True, False)),                     # thought capped
    transcript(answer='no idea at all of it'),         # cannot be parsed
    transcript(answer='8', tokens=(1, 1)),             # wrong
    transcript(tokens=(2, 0), deep_tokens=0, answer='', finished=False,
               deep='', answer_start=-1),              # ended in chunk 1
]


def test_components_of_a_group():
  r = score(GROUP)
  b = lambda text: [c == '1' for c in text]
  assert r.accuracy.tolist() == b('11111000')
  assert r.format_streaming.tolist() == b('11010110')
  assert r.format_deep.tolist() == b('11101010')
  assert r.format.tolist() == b('11000010')
  assert r.cut.tolist() == b('00001000')
  assert r.tokens_streaming.tolist() == [4, 2, 4, 4, 4, 4, 2, 2]
  assert r.tokens_deep.tolist() == [6, 8, 6, 6, 6, 6, 6, 0]
  assert r.tokens_chunk[1].tolist() == [1, 1, 0]
  # A chunk never reached is not obeyed, nor is one that is not there.
  assert r.format_chunk.tolist() == [
      [True, True, False]] * 2 + [[True, False, False]] + [
          [True, True, False]] + [[False, True, False]] + [
              [True, True, False]] * 2 + [[True, False, False]]


def test_outcomes_need_no_weights():
  r = score(GROUP, format_weight=3., accuracy_weight=0., think_weight=7.)
  found = outcomes([EXAMPLE] * len(GROUP), GROUP, max_chunks=3)
  for name, value in vars(found).items():
    np.testing.assert_array_equal(value, getattr(r, name), err_msg=name)
  assert found.deep_cut.tolist() == [t.deep_cut for t in GROUP]


def test_sums_of_a_group():
  r = score(GROUP)
  # Only the first two are eligible (right and well-formed). Costs: streaming
  # 4, 2; deep 6, 8; global .5 * 4 + 6 = 8 and .5 * 2 + 8 = 9.
  others = [0] * 6
  np.testing.assert_allclose(r.think_streaming, [0, 1] + others)
  np.testing.assert_allclose(r.think_deep, [1, 0] + others)
  np.testing.assert_allclose(r.think_global, [1, 0] + others)
  np.testing.assert_allclose(
      r.streaming, [.2, .3, 0, .2, 0, .2, .2, 0], atol=1e-12)
  np.testing.assert_allclose(
      r.deep, [1.3, 1.2, 1.2, 1., 1.2, 0, .2, 0], atol=1e-12)
  np.testing.assert_allclose(
      r.total, [1.3, 1.2, 1., 1., 1., 0, .2, 0], atol=1e-12)
  # Chunk 1: 3 and 1 tokens, so u = 0, 1; chunk 2: equal, so 0; chunk 3: none.
  np.testing.assert_allclose(
      r.chunk[:3], [[.2, .2, 0], [.3, .2, 0], [.2, 0, 0]], atol=1e-12)


def test_groups_do_not_mix():
  both = score(GROUP[:2] + [transcript(), transcript(tokens=(9, 9))],
               samples=2)
  one, two = score(GROUP[:2]), score([transcript(),
                                      transcript(tokens=(9, 9))])
  for name in ('streaming', 'deep', 'total', 'chunk'):
    np.testing.assert_allclose(getattr(both, name), np.concatenate(
        [getattr(one, name), getattr(two, name)]), err_msg=name)


def test_every_weight_reaches_its_term():
  r = score(GROUP, format_weight=3., accuracy_weight=5., think_weight=7.,
            alpha=1., shaping='budget', budget=4.)
  # Row 0: u(4) = 1, u(6) = .5, u(10) = 0; row 1: u(2) = 1, u(8) = 0.
  np.testing.assert_allclose(r.streaming[:2], [3 + 7, 3 + 7])
  np.testing.assert_allclose(r.deep[:2], [3 + 5 + 3.5, 3 + 5])
  np.testing.assert_allclose(r.total[:2], [3 + 5, 3 + 5])


def test_a_streaming_token_costs_alpha():
  # 10 streaming and 2 deep tokens against 0 and 6: cheaper below alpha = .4.
  group = [transcript(tokens=(9, 1), deep_tokens=2),
           transcript(tokens=(0, 0), deep_tokens=6)]
  assert score(group, alpha=.3).think_global.tolist() == [1, 0]
  assert score(group, alpha=.5).think_global.tolist() == [0, 1]


def test_overlong_penalty():
  of = lambda first, answer: transcript(answer_start=first,
                                        deep_tokens=first + answer)
  group = [of(15, 2), of(16, 4), of(18, 2), of(4, 7), transcript(
      answer_start=-1, answer='', deep_tokens=19), transcript(
          deep_tokens=12, deep_cut=True)]
  on = score(group, overlong_penalty=.5, overlong_window=4)
  off = score(group)
  # Cap 20, window 4: nothing up to 16, half of it at 18, three quarters at 19,
  # all at a cap; an answer of 7 of its 8 tokens costs nothing.
  want = [0, 0, .25, 0, .375, .5]
  np.testing.assert_allclose(off.deep - on.deep, want, atol=1e-12)
  np.testing.assert_allclose(off.total - on.total, want, atol=1e-12)
  np.testing.assert_array_equal(off.streaming, on.streaming)
  # Without a window only what met the cap pays.
  bare = score(group, overlong_penalty=.5)
  np.testing.assert_allclose(off.deep - bare.deep, [0, 0, 0, 0, 0, .5],
                             atol=1e-12)


def test_the_users_reward_is_added():
  extra = np.arange(24.).reshape(8, 3)
  seen = []
  def user(examples, transcripts):
    seen.append((len(examples), transcripts is GROUP))
    return extra
  a, b = score(GROUP), score(GROUP, user=user)
  assert seen == [(8, True)]
  for i, name in enumerate(('streaming', 'deep', 'total')):
    np.testing.assert_allclose(getattr(b, name) - getattr(a, name),
                               extra[:, i], atol=1e-12, err_msg=name)
  np.testing.assert_allclose(b.chunk - a.chunk, extra[:, :1] * np.ones(3),
                             atol=1e-12)


@pytest.mark.parametrize('bad,message', [
    (np.zeros(8), r'shape \(8, 3\), got shape \(8,\)'),
    (np.zeros((8, 2)), r'shape \(8, 3\), got shape \(8, 2\)'),
    (np.zeros((1, 3)), r'shape \(8, 3\), got shape \(1, 3\)'),
    (np.full((8, 3), np.nan), r'returned \[nan, nan, nan\] for rollout 0'),
    (np.diag([0, 0, np.inf, 0, 0, 0, 0, 0])[:, :3], 'returned .* rollout 2')])
def test_the_users_reward_is_checked(bad, message):
  def mine(examples, transcripts):
    return bad
  with pytest.raises(ValueError, match=f'reward.user: mine .*{message}'):
    score(GROUP, user=mine)
