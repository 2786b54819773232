"""Decisions that are turned round: what is kept, and from where."""

import numpy as np
import pytest

from adasr_jax.core.types import Target
from adasr_jax.policy.rollout import SKIP, THINK
from adasr_jax.policy.transcript import Transcript
from adasr_jax.tools import flip_traces
from adasr_jax.tools import own_traces

CHUNKS, THOUGHT = 4, 5


class Fake:
  """Right if it thinks on what is needed and on nothing that misleads.

  Each rollout is its decisions: slot 0 a prefix, then per chunk one slot
  where it skips and THOUGHT where it thinks.
  """

  def __init__(self, needed, misleads, own):
    self.needed, self.misleads, self.own = needed, misleads, own
    self.asked = []

  def begin(self):
    return self._drawn(range(len(self.own)), self.own)

  def again(self, asked, decisions, begun):
    wants = []
    for i, forced, tokens, valid in zip(asked, decisions, begun.tokens,
                                        begun.valid):
      start, had = list(tokens[valid]), []
      while start[1:]:  # what is given, as decisions
        had.append(start[1] > 0)
        start = start[:1] + start[1 + (THOUGHT if had[-1] else 1):]
      k = len(had)
      assert forced[k] in (SKIP, THINK)
      assert (np.delete(forced, k) == flip_traces.OWN).all()
      self.asked.append((i, k, bool(forced[k] == THINK)))
      wants.append(had + [forced[k] == THINK] + self.own[i][k + 1:])
    return self._drawn(asked, wants)

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
      needed=[{0, 2}, {0, 2}, {1}, {0, 1}, {0}],
      misleads=[set(), {1}, {0}, {2}, {1, 2}],
      own=[[T, T, T, T],  # right, two thoughts for nothing
           [T, T, T, F],  # wrong by one thought
           [F, F, F, F],  # wrong for want of one
           [F, T, T, F],  # wrong in two places
           [T, T, T, F]])  # so too: no single turn is right
  now = fake.begin()
  assert now.right.tolist() == [True, False, False, False, False]
  flip_traces.flip(now, fake.again, CHUNKS)
  assert now.right.tolist() == [True, True, True, False, False]
  assert decisions(now)[:3] == [[T, F, T, F], [T, F, T, F], [F, T, F, F]]
  # What stays wrong stays as it was.
  assert decisions(now)[3:] == fake.own[3:]
  asked = lambda i: [(k, think) for j, k, think in fake.asked if j == i]
  # A right one is never told to think where it has skipped; a wrong one is,
  # until it is right.
  assert asked(0) == [(0, F), (1, F), (2, F), (3, F)]
  assert asked(1) == [(0, F), (1, F), (2, F)]
  assert asked(2) == [(0, T), (1, T)]
  assert asked(4) == [(0, F), (1, F), (2, F), (3, T)]
  np.testing.assert_array_equal(
      now.cost, [sum(t.tokens) for t in now.said])


def test_a_turn_that_is_right_but_not_shorter_is_not_kept():
  fake = Fake(needed=[set()], misleads=[set()], own=[[True, False] * 2])
  now = fake.begin()
  real = fake.again
  def longer(*args):
    drawn = real(*args)
    drawn.cost = drawn.cost + 100
    return drawn
  flip_traces.flip(now, longer, CHUNKS)
  assert decisions(now) == fake.own


@pytest.mark.parametrize('arguments, message', [
    ({'problems': 0}, 'problems=0'),
    ({'problems': 2, 'first': -1}, 'first=-1')])
def test_numbers_of_flips_are_named(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    next(flip_traces.flip_traces(str(tmp_path), **arguments))
