"""Summaries against numbers worked by hand."""

import itertools
import json

import numpy as np
import pytest

from adasr_jax.run import metrics

NAN = np.nan


def _summarise(answer=None, threads=None, **changes):
  """Four rows of two chunks; chunk 2 of row 3 was never reached."""
  args = dict(
      correct=[1, 0, 1, 1], well_formed=[1, 1, 0, 0], problem=[0, 1, 2, 3],
      skipped=[[0, 1], [1, 1], [1, 0], [0, 0]],
      reached=[[1, 1], [1, 1], [1, 1], [1, 0]],
      relevant=[[1, 0], [0, 1], [1, 0], [1, 0]],
      question=[[0, 0], [0, 0], [1, 0], [0, 0]],
      tokens_streaming=[3, 2, 4, 3], tokens_deep=[5, 5, 6, 0],
      thoughts_cut=[0, 0, 0, 1], deep_cut=[1, 1, 0, 0])
  dtypes = dict(relevant=np.int8, problem=int, tokens_streaming=int,
                tokens_deep=int)
  latency = dict(first_deep_token=[1.0, 2.0, 3.0, NAN],
                 first_answer_token=[2.0, NAN, 6.0, NAN],
                 end=[3.0, 3.0, 6.0, 0.0], lag=[0.5, 0.5, NAN, 2.0])
  args = {k: np.array(v, dtypes.get(k, bool))
          for k, v in (args | changes).items()}
  return metrics.summarise(
      answer=answer, threads=threads,
      latency={k: np.array(v) for k, v in latency.items()}, **args)


def test_summary_of_four_rows():
  got = _summarise()
  # Reached chunks: 7, skipped 4. Judged (reached, not the question): 6, of
  # which skipped 3: (0,1) irrelevant, (1,0) irrelevant, (1,1) relevant.
  # Irrelevant and reached: (0,1), (1,0), (2,1): 2 of 3 skipped. With the
  # question chunk precision would be 2/4; with chunks never reached, recall
  # would be 2/4.
  interval = got.pop('accuracy_ci95')
  assert got == {
      'n': 4, 'problems': 4, 'accuracy': 0.75, 'format_rate': 0.5,
      'skip_rate': 4 / 7, 'skip_precision': 2 / 3, 'skip_recall': 2 / 3,
      'tokens_streaming': 3.0, 'tokens_deep': 4.0, 'tokens_total': 7.0,
      'latency_s': {'first_deep_token': 2.0, 'first_answer_token': 4.0,
                    'end': 3.0},
      'lag_s': 1.0, 'answered': 0.5, 'thoughts_capped': 0.25,
      'deep_capped': 0.5, 'pass_at_k': {}}
  np.testing.assert_allclose(interval, metrics.wilson(0.75, 4))


def test_undefined_is_none_and_json_takes_all():
  got = _summarise(relevant=np.full((4, 2), -1))
  assert got['skip_precision'] is got['skip_recall'] is None
  got = _summarise(reached=np.zeros((4, 2)), skipped=np.zeros((4, 2)))
  assert got['skip_rate'] is None
  assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_wilson_interval():
  # p = 1/2, n = 10: centre 1/2, half width z sqrt(1/40 + z^2/400) / (1 +
  # z^2/10) with z^2 = 3.8414588: 0.36411 / 1.3841459 = 0.26341. The normal
  # interval would be +- 0.30990.
  np.testing.assert_allclose(metrics.wilson(0.5, 10), [0.23659, 0.76341],
                             atol=2e-5)
  # p = 1: low = 1 / (1 + z^2/n), where the normal interval has no width.
  np.testing.assert_allclose(metrics.wilson(1.0, 10), [1 / 1.38414588, 1.0])


def test_samples_of_a_problem_are_not_independent():
  one = np.array([[1], [0], [1], [1]], bool)
  wilson = metrics.wilson(0.75, 4)
  np.testing.assert_allclose(metrics.accuracy_interval(one), wilson)
  # Copies of one sample add nothing; n = 20 would be too narrow.
  np.testing.assert_allclose(
      metrics.accuracy_interval(np.repeat(one, 5, 1)), wilson)
  # All problems alike: every sample counts.
  even = np.tile(np.array([[1, 0]], bool), (4, 1))
  np.testing.assert_allclose(metrics.accuracy_interval(even),
                             metrics.wilson(0.5, 8))
  # Problem means 1, 1/2, 1/2, 0: var = 1/8, n = 4 (1/4) / (1/8) = 8.
  mixed = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
  np.testing.assert_allclose(metrics.accuracy_interval(mixed),
                             metrics.wilson(0.5, 8))
  # All correct: only the problems count, 4 not 20.
  np.testing.assert_allclose(
      metrics.accuracy_interval(np.ones((4, 5), bool)),
      metrics.wilson(1.0, 4))


def test_pass_at_k_equals_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  correct = rng.random((6, 5)) < 0.4
  for k in range(1, 6):
    want = np.mean([[row[list(s)].any() for s in
                     itertools.combinations(range(5), k)] for row in correct])
    np.testing.assert_allclose(metrics.pass_at_k(correct, k), want)
  with pytest.raises(ValueError, match='k=6'):
    metrics.pass_at_k(correct, 6)


def test_the_answer_of_most_samples():
  # Problem 0: 7, 7, 8, none; problem 1: 5, 4, 4, 5 with 4 right.
  said = np.array([['7', '7', '8', ''], ['5', '4', '4', '5']], object)
  right = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], bool)
  # Of all: 7, right; 4 and 5 equally often, half of it. Of two: 7, 8; then 5
  # or 4 and 4 or 5: 1, 0, 1/2, 1/2. Of three the fourth is left out: 7 and 4.
  assert metrics.cons_at_k(said, right, 4) == .75
  assert metrics.cons_at_k(said, right, 2) == .5
  assert metrics.cons_at_k(said, right, 3) == 1
  assert metrics.cons_at_k(said, right, 1) == right.mean()
  # One answer, of which a unit makes some right: their share, in any order.
  with_unit = np.array([['72', '72', '72', '']], object)
  for some in ([1, 1, 0, 0], [0, 1, 1, 0]):
    assert metrics.cons_at_k(with_unit, np.array([some], bool), 4) == 2 / 3
  silent = np.full((2, 4), '', object)
  assert metrics.cons_at_k(silent, np.zeros((2, 4), bool), 4) == 0
  with pytest.raises(ValueError, match='k=5'):
    metrics.cons_at_k(said, right, 5)


def test_summary_of_answers_and_threads():
  answer = np.array(['1', '2', '1', '3'], object)
  got = _summarise(problem=[0, 1, 0, 1], answer=answer)
  assert got['cons_at_k'] == {'1': .75, '2': .75}
  assert got['tokens_total'] == 7
  got = _summarise(threads=dict(tokens_total=np.array([10., 20, 30, 40]),
                                calls=np.array([1., 0, 0, 1])))
  assert got['threads'] == {'tokens_total': 25., 'calls': .5}
  assert got['tokens_total'] == 25 and got['tokens_deep'] == 4  # of the root
  assert 'cons_at_k' not in got


def test_rows_of_a_problem_are_grouped_by_index():
  # Problem 0 has rows 0 and 2 (both right), problem 1 rows 1 and 3 (one
  # right): pass@2 = 1.
  got = _summarise(problem=[0, 1, 0, 1])
  assert got['n'] == 4 and got['problems'] == 2
  assert got['pass_at_k'] == {'1': 0.75, '2': 1.0}
  one_sided = _summarise(correct=[1, 0, 1, 0], problem=[0, 1, 0, 1])
  assert one_sided['pass_at_k'] == {'1': 0.5, '2': 0.5}  # neighbours: 1.0
  with pytest.raises(ValueError, match='same number of rows'):
    _summarise(problem=[0, 0, 0, 1])


def test_paired_difference():
  a = np.array([1] * 60 + [1] * 20 + [0] * 10 + [0] * 10, bool)
  b = np.array([1] * 60 + [0] * 20 + [1] * 10 + [0] * 10, bool)
  got = metrics.paired(a, b)
  assert {k: got[k] for k in ('n', 'both', 'only_a', 'only_b', 'neither')
          } == dict(n=100, both=60, only_a=20, only_b=10, neither=10)
  assert got['difference'] == pytest.approx(0.1)
  # Standard error sqrt((0.3 - 0.1^2) / 100) = 0.0539: 0.1 +- 0.106. Unpaired
  # it would be sqrt((0.16 + 0.21) / 100) = 0.0608, +- 0.119.
  np.testing.assert_allclose(got['ci95'], [-0.006, 0.206], atol=0.012)
  assert got == metrics.paired(a, b)  # seeded
  assert json.loads(json.dumps(got)) == got
  same = metrics.paired(a, a)
  assert same['difference'] == 0 and same['ci95'] == [0, 0]
  # The same problems under three seeds that agree are no more problems.
  thrice = metrics.paired(*(np.stack([x] * 3, 1) for x in (a, b)))
  assert thrice['n'] == 300 and thrice['ci95'] == got['ci95']
  # Where seeds part, an interval is that of each problem's mean.
  parted = metrics.paired(np.stack([a, b], 1), np.stack([b, a], 1))
  assert parted['difference'] == 0 and parted['ci95'] == [0, 0]
  with pytest.raises(ValueError, match='equal shapes'):
    metrics.paired(a, b[:5])
