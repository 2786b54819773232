"""Rewards and advantages of threads, on rollouts by hand."""

import dataclasses

import numpy as np
import pytest

from adasr_jax.core.types import Example
from adasr_jax.credit.advantages import (
    AdvantageConfig, of_children, token_advantages)
from adasr_jax.credit.rewards import RewardConfig, Rewards, outcomes, rewards
from adasr_jax.credit.threads import ThreadReward, thread_rewards
from adasr_jax.policy.transcript import transcribe
from adasr_jax.tasks.countdown import agrees
from tests.threads_by_hand import (
    LARGEST, M, PROTOCOL, ROLLOUT, ROOT, TOKENIZER, target_of)

EXAMPLE = Example(id=1, preamble='q', chunks=(),
                  answer='4 + 3 = 7 , 7 * 5 = 35')
WRONG = (0, ROOT.replace('</think> 4 + 3 = 7', '</think> 4 + 4 = 8'),
         *ROLLOUT[2:])
ALONE = (0, '</think> 4 + 3 = 7 , 7 * 5 = 35 <eos>')
# Its only child returns what the answer does not contain, for all its digits.
UNUSED = (0, '<spawn> 5 * 4 = 20 <join> [ <return> 7 * 5 = 3 ] </think> 4 + 3 '
          '= 7 , 7 * 5 = 35 <eos>',
          (1, '[ <spawn> 5 * 4 = 20 ] <return> 7 * 5 = 3 <eos>'))
GROUP = (ROLLOUT, WRONG, ALONE, UNUSED)
NAN = np.nan


def right(text, reference):
  return agrees(text, reference, LARGEST)


def transcripts(*rollouts):
  return transcribe(target_of(*rollouts), np.zeros(len(rollouts), np.int32),
                    TOKENIZER, PROTOCOL)


def rewards_of(group=GROUP, threads=None, children=M, solvable=None, **config):
  return rewards(
      [EXAMPLE] * len(group), transcripts(*group), samples=len(group),
      max_chunks=1, deep_cap=90, children=children,
      threads=threads,
      agrees=right, solvable=solvable, config=RewardConfig(**config))


def test_a_tasks_own_verifier():
  said = transcripts(*GROUP, (0, '</think> 3 + 4 = 7 , 7 * 5 = 35 <eos>'),
                     (0, '</think> <eos>'))
  got = outcomes([EXAMPLE] * 6, said, max_chunks=1, agrees=right)
  # Another way to the same target is right; no words are no answer.
  assert got.accuracy.tolist() == [1, 0, 1, 1, 1, 0]
  assert got.format_deep.tolist() == [1, 1, 1, 1, 1, 0]
  # The general verifier can read no steps.
  assert not outcomes([EXAMPLE] * 6, said, max_chunks=1).format.any()


def test_parallel_work_earns_only_with_a_right_answer():
  got = rewards_of(threads=ThreadReward(parallel_weight=2.))
  # ROLLOUT has 109 tokens, 93 sequential; UNUSED 7 + 6 + 13 of the root and
  # 6 + 7 of its child, which is on the critical path.
  np.testing.assert_allclose(got.threads, [2 * 16 / 109, 0, 0, 0])


def test_penalties_by_hand():
  got = rewards_of(threads=ThreadReward(token_penalty=.01, child_penalty=.5))
  np.testing.assert_allclose(
      got.threads, [-1.09 - 1.5, -1.09 - 1.5, -.13, -.39 - .5])
  none = rewards_of()
  assert not none.threads.any()
  for name in ('deep', 'total'):
    np.testing.assert_allclose(getattr(got, name) - getattr(none, name),
                               got.threads, err_msg=name)
  np.testing.assert_array_equal(got.streaming, none.streaming)


def test_childrens_rewards():
  none = rewards_of().child
  np.testing.assert_array_equal(none, [
      [0, 1, 0], [0, 0, 0], [NAN] * 3, [0, NAN, NAN]])
  got = rewards_of(threads=ThreadReward(token_penalty=.01)).child
  np.testing.assert_allclose(none - got, [
      [.11, .10, .11], [.11, .10, .11], [NAN] * 3, [.07, NAN, NAN]])


def test_the_oracle_rewards_nothing_found_where_nothing_is():
  asked = []
  def solvable(brief, reference):
    asked.append((brief, reference))
    return brief == '5 - 4 = 1'
  got = rewards_of(threads=ThreadReward(oracle=True), solvable=solvable).child
  np.testing.assert_array_equal(got, [
      [0, 1, 1], [0, 0, 1], [NAN] * 3, [0, NAN, NAN]])
  # Who returned something is judged by the answer alone.
  assert set(asked) == {(b, EXAMPLE.answer) for b in ('5 - 4 = 1',
                                                      '5 + 4 = 9')}
  with pytest.raises(TypeError):  # off by default, so that nothing is asked
    thread_rewards([EXAMPLE], transcripts(ROLLOUT), np.array([True]),
                   children=M, config=ThreadReward(oracle=True))


def test_without_threads_there_are_no_childrens_rewards():
  got = rewards_of((ALONE,) * 2, children=0)
  assert got.child.shape == (2, 0) and got.threads.tolist() == [0, 0]


# --------------------------------------------------------------- advantages
def test_children_are_compared_with_those_of_the_same_brief():
  # Two groups of two. In the first, brief 0 has 1, 0, 0 (mean 1/3, deviation
  # sqrt(2)/3), brief 1 has 0 and 1; alone in the second group, brief 0 has 0.
  reward = np.array([[1, 0, 0], [1, 0, NAN], [1, NAN, NAN], [NAN] * 3])
  brief = np.array([[0, 1, 0], [1, 0, -1], [0, -1, -1], [-1] * 3])
  a = of_children(reward, brief, 2)
  np.testing.assert_allclose(
      a, [[2**.5, -1, -2**-.5], [1, -2**-.5, 0], [0] * 3, [0] * 3], atol=1e-5)
  a = of_children(np.array([[1., 0.], [NAN, 0.]]),
                  np.array([[0, 0], [-1, 0]]), 2, normaliser='constant',
                  constant=2.)
  np.testing.assert_allclose(a, [[1 / 3, -1 / 6], [0, -1 / 6]])


def test_what_a_child_returned_is_verified_by_itself():
  judged = []
  def verdict(text, reference):
    judged.append(text)
    return right(text, reference)
  found = transcripts(*GROUP)
  _, child, brief = thread_rewards(
      [EXAMPLE] * 4, found, np.zeros(4, bool), children=M, agrees=verdict,
      config=ThreadReward(verify=True))
  # The root's answer is wrong throughout: it does not matter here.
  for b, t in enumerate(found):
    for c, it in enumerate(t.tree.children):
      assert child[b, c] == (0 if it.result is None else
                             1 if right(it.result, EXAMPLE.answer) else -1)
      assert (brief[b, c] == brief[0, 0]) == (
          it.brief == found[0].tree.children[0].brief)
    assert (brief[b, len(t.tree.children):] == -1).all()
  assert '7 * 5 = 3' in judged and {-1, 0} <= set(child[child == child])


def advantages(**config):
  B = len(GROUP)
  fields = {f.name: np.zeros(B) for f in dataclasses.fields(Rewards)}
  made = Rewards(**fields | dict(
      total=np.array([1., 0, 0, 0]), deep=np.array([1., 0, 1, 0]),
      chunk=np.zeros((B, 1)), child=rewards_of().child,
      brief=rewards_of().brief))
  target = target_of(*GROUP)
  got = token_advantages(made, target, np.zeros(B, np.int32), B, PROTOCOL,
                         AdvantageConfig(**config), RewardConfig())
  assert (got[~target.sampled] == 0).all()
  return got, target.sampled


def test_all_threads_share_the_rollouts_advantage():
  for config in (dict(granularity='sequence'), dict(lam=0.)):
    got, sampled = advantages(**config)
    # z(1, 0, 0, 0) = 1.7320, -.57735; a rollout has four rows.
    want = np.repeat([1.7320508, -.5773503, -.5773503, -.5773503], 4)
    np.testing.assert_allclose(got, np.where(sampled, want[:, None], 0),
                               atol=1e-5)


def test_roots_and_children_have_their_own():
  got, sampled = advantages(granularity='stage', lam=.25)
  # A^D = z(1, 0, 1, 0); children: only the second brief has one that is
  # useful, in the first of two rollouts.
  local = [1, 0, 1, 0, -1, 0, -1, 0, 1, 0, 0, 0, -1, 0, 0, 0]
  total = np.repeat([1.7320508, -.5773503, -.5773503, -.5773503], 4)
  want = .25 * np.array(local) + .75 * total
  np.testing.assert_allclose(got, np.where(sampled, want[:, None], 0),
                             atol=1e-4)
  assert sampled[[0, 1, 2, 3, 13]].any(1).all()
  assert not sampled[[9, 10, 11, 14, 15]].any()


def test_children_decide_nothing_under_token_granularity():
  got, _ = advantages(granularity='token')
  share, _ = advantages(granularity='sequence')
  np.testing.assert_array_equal(got[1::4], share[1::4])


@pytest.mark.parametrize('bad', [
    dict(parallel_weight=-1.), dict(token_penalty=-2.),
    dict(child_penalty=-3.)])
def test_bad_weights_are_named(bad):
  (name, value), = bad.items()
  with pytest.raises(ValueError, match=f'{name}={value}'):
    ThreadReward(**bad)
