"""Thoughts that are taken away: which are tried, and what is kept."""

import numpy as np
import pytest

from adasr_jax.core.types import Target
from adasr_jax.policy.rollout import OWN, SKIP
from adasr_jax.policy.transcript import Transcript
from adasr_jax.tools import own_traces
from adasr_jax.tools import prune_traces

CHUNKS, THOUGHT = 4, 5


class Fake:
  """Right if it thinks on what is needed and on nothing that misleads.

  Each rollout is its decisions: slot 0 a prefix, then per chunk one slot
  where it skips and THOUGHT where it thinks.
  """

  def __init__(self, needed, misleads, own, likely=None):
    self.needed, self.misleads, self.own = needed, misleads, own
    self.likely = np.array(likely or [[True] * CHUNKS] * len(own))
    self.asked = []

  def __call__(self, asked, decisions, begun):
    if decisions is None:
      return self._drawn(asked, self.own), self.likely.copy()
    wants = []
    for i, forced, tokens, valid in zip(asked, decisions, begun.tokens,
                                        begun.valid):
      start, had = list(tokens[valid]), []
      while start[1:]:  # what is given, as decisions
        had.append(start[1] > 0)
        start = start[:1] + start[1 + (THOUGHT if had[-1] else 1):]
      k = len(had)
      assert forced[k] == SKIP and (np.delete(forced, k) == OWN).all()
      self.asked.append((i, k))
      wants.append(had + [False] + self.own[i][k + 1:])
    return self._drawn(asked, wants), self.likely[list(asked)]

  def _drawn(self, asked, wants):
    said, right, rows, phases = [], [], [], []
    for i, thinks in zip(asked, wants):
      tokens = tuple(THOUGHT if t else 1 for t in thinks)
      said.append(Transcript(
          thoughts=tuple('x' if t else None for t in thinks), tokens=tokens,
          bad=(False,) * CHUNKS, cut=(False,) * CHUNKS, deep='', answer='',
          deep_tokens=0, answer_start=-1, deep_bad=False, deep_cut=False,
          finished=True))
      thinks = {k for k, t in enumerate(thinks) if t}
      right.append(self.needed[i] <= thinks and not self.misleads[i] & thinks)
      size = 1 + CHUNKS * THOUGHT
      row, phase = np.zeros(size, np.int32), np.zeros(size, np.int32)
      at = 1
      for k, n in enumerate(tokens):
        row[at:at + n], phase[at:at + n] = n > 1, k + 1
        at += n
      rows.append(row)
      phases.append(np.where(np.arange(size) < at, phase, -1))
    tokens, phase = np.stack(rows), np.stack(phases)
    return own_traces.Drawn(
        target=Target(tokens=tokens, phase=phase, stage=phase,
                      valid=phase >= 0, sampled=phase > 0,
                      logp=np.zeros(tokens.shape),
                      logp_untruncated=np.zeros(tokens.shape)),
        said=said, right=np.array(right),
        cost=np.array([sum(t.tokens) for t in said]), sampled=0)


def decisions(drawn):
  return [[x is not None for x in t.thoughts] for t in drawn.said]


def test_what_is_left_is_what_is_needed():
  T, F = True, False
  fake = Fake(
      needed=[{0, 2}, {0, 2}, {1}, {0}],
      misleads=[set(), {1}, set(), {1, 2}],
      own=[[T, T, T, T],  # right, two thoughts for nothing
           [T, T, T, F],  # wrong by one thought
           [F, F, F, F],  # wrong for want of one
           [T, T, T, F]])  # wrong by two: without either it is still wrong
  now = prune_traces.prune(4, fake)
  assert now.right.tolist() == [True, True, False, False]
  # What stays wrong stays as it was.
  assert decisions(now) == [[T, F, T, F], [T, F, T, F], *fake.own[2:]]
  asked = lambda i: [k for j, k in fake.asked if j == i]
  # Only thoughts are tried, each once.
  assert [asked(i) for i in range(4)] == [[0, 1, 2, 3], [0, 1, 2], [],
                                          [0, 1, 2]]
  np.testing.assert_array_equal(
      now.cost, [sum(t.tokens) for t in now.said])


def test_only_likely_skips_are_tried():
  fake = Fake(needed=[set()] * 2, misleads=[set()] * 2, own=[[True] * 4] * 2,
              likely=[[False, True, False, False], [False] * 4])
  now = prune_traces.prune(2, fake)
  assert fake.asked == [(0, 1)]
  assert decisions(now) == [[True, False, True, True], [True] * 4]


def test_what_is_right_but_not_shorter_is_not_kept():
  class Longer(Fake):
    def __call__(self, asked, forced, begun):
      drawn, likely = super().__call__(asked, forced, begun)
      if forced is not None:
        drawn.cost = drawn.cost + 100
      return drawn, likely
  fake = Longer(needed=[set()], misleads=[set()], own=[[True, False] * 2])
  assert decisions(prune_traces.prune(1, fake)) == fake.own
  assert len(fake.asked) == 2


@pytest.mark.parametrize('arguments, message', [
    ({'problems': 0}, 'problems=0'), ({'problems': 2, 'first': -1}, 'first=-1'),
    ({'problems': 2, 'least': 1.5}, 'least=1.5')])
def test_numbers_of_prunings_are_named(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    next(prune_traces.prune_traces(str(tmp_path), **arguments))
