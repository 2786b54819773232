"""Summaries of an evaluation, and comparisons problem by problem.

All results consist of Python numbers and None (undefined), so that they can be
written as JSON.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import math
from typing import Any

import numpy as np

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal


def wilson(p: float, n: float) -> list[float]:
  """Wilson's 95 % score interval [low, high] of a share p of n trials."""
  z2 = _Z95**2 / n
  centre = (p + z2 / 2) / (1 + z2)
  half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
  # Exact at the ends, without rounding errors.
  return [0.0 if p == 0 else float(centre - half),
          1.0 if p == 1 else float(centre + half)]


def accuracy_interval(correct: np.ndarray) -> list[float]:
  """95 % interval of the accuracy on problems like these; [low, high].

  Wilson's interval. Several samples of a problem are not independent, so n is
  the number of independent trials with the variance seen between problems,
  p (1 - p) / n = var(problem means) / P, kept within [P, P G]. With one sample
  per problem n is P, the plain interval.

  Args:
    correct: [P, G] bool.
  """
  P, G = correct.shape
  p = float(correct.mean())
  between = float(correct.mean(1).var())
  # All right or all wrong shows nothing about the samples: count problems.
  n = P if p in (0.0, 1.0) else (
      P * G if between == 0 else P * p * (1 - p) / between)
  return wilson(p, min(max(n, P), P * G))


def pass_at_k(correct: np.ndarray, k: int) -> float:
  """Mean chance that any of k samples is right, 1 - C(n-c, k) / C(n, k).

  Args:
    correct: [P, G] bool; n = G samples per problem, c of them right.
    k: In 1..G.

  Source: the unbiased estimator of arXiv 2107.03374.
  """
  n = correct.shape[1]
  if not 1 <= k <= n:
    raise ValueError(f'k={k} is outside 1..{n}, the samples per problem')
  total = math.comb(n, k)
  return float(np.mean([1 - math.comb(n - int(c), k) / total
                        for c in correct.sum(1)]))


def cons_at_k(answer: np.ndarray, correct: np.ndarray, k: int) -> float:
  """Mean accuracy of the answer that most of k samples give.

  The samples are taken k at a time in their order, without what is left over.
  Samples without an answer do not vote; answers that are given equally often
  count as the share of them that is right, none at all as wrong.

  Args:
    answer: [P, G] str, the same for the same answer; '' = none.
    correct: [P, G] bool.
    k: In 1..G.

  Source: self-consistency, arXiv 2203.11171.
  """
  if not 1 <= k <= answer.shape[1]:
    raise ValueError(f'k={k} is outside 1..{answer.shape[1]}, the samples per '
                     'problem')
  votes = answer.shape[1] // k
  cut = lambda a: a[:, :votes * k].reshape(-1, k)
  out = []
  for said, right in zip(cut(answer), cut(correct)):
    given = collections.Counter(filter(None, said))
    most = max(given.values(), default=0)
    # Samples with one answer may differ in being right, as by a unit.
    out.append(np.mean([right[said == a].mean()
                        for a, n in given.items() if n == most] or [0.0]))
  return float(np.mean(out))


def summarise(*, correct: np.ndarray, well_formed: np.ndarray,
              problem: np.ndarray, skipped: np.ndarray, reached: np.ndarray,
              relevant: np.ndarray, question: np.ndarray,
              tokens_streaming: np.ndarray, tokens_deep: np.ndarray,
              thoughts_cut: np.ndarray, deep_cut: np.ndarray,
              latency: Mapping[str, np.ndarray],
              answer: np.ndarray | None = None,
              threads: Mapping[str, np.ndarray] | None = None
              ) -> dict[str, Any]:
  """Metrics of B rollouts of P problems, as in eval.json.

  Args:
    correct: [B] bool, the answer is right.
    well_formed: [B] bool, the format reward is given.
    problem: [B] int, the row's problem; each has G rows.
    skipped: [B, C] bool, `<skip>` was written on a chunk.
    reached: [B, C] bool, anything was written on it.
    relevant: [B, C] int8, 1, 0, or -1 where unknown or not a chunk.
    question: [B, C] bool, the chunk is the question.
    tokens_streaming, tokens_deep: [B] tokens.
    thoughts_cut: [B] bool, a thought reached its cap.
    deep_cut: [B] bool, the deep reasoning or the answer reached its cap.
    latency: See latency.clock; [B] seconds, NaN where undefined.
    answer: [B] str, the answer; None = cons_at_k is left out.
    threads: Name -> [B], the sizes of trees (policy/tree.py) and others; None
      = nothing is spawned.

  Returns:
    n (rows), problems, accuracy, accuracy_ci95, format_rate.
    skip_rate: Over reached chunks.
    skip_precision, skip_recall: Share of skipped chunks that are irrelevant,
      and of irrelevant chunks that are skipped; over reached chunks of known
      relevance, without the question.
    tokens_streaming, tokens_deep, tokens_total: Means per row; with threads,
      the first two of the root, the last of all.
    latency_s, lag_s: Means over the rows where they are defined.
    answered, thoughts_capped, deep_capped: Shares of rows.
    pass_at_k, cons_at_k: {str(k): value} for powers of two and G; empty where
      G = 1.
    threads: Means per row; missing where nothing is spawned.

  Raises:
    ValueError: No rows, or problems with different numbers of rows.
  """
  correct, problem = np.asarray(correct, bool), np.asarray(problem)
  _, counts = np.unique(problem, return_counts=True)
  if not len(counts) or counts.min() != counts.max():
    raise ValueError('every problem needs the same number of rows, got '
                     f'{sorted(set(counts.tolist()))}')
  G = int(counts[0])
  order = np.argsort(problem, kind='stable')
  grouped = correct[order].reshape(-1, G)
  judged = reached & ~question & (relevant >= 0)
  idle = judged & (relevant == 0)
  ks = sorted({G, *(2**i for i in range(G.bit_length()))}) if G > 1 else []
  more = {}
  if answer is not None:
    said = answer[order].reshape(-1, G)
    more['cons_at_k'] = {str(k): cons_at_k(said, grouped, k) for k in ks}
  total = np.add(tokens_streaming, tokens_deep)
  if threads is not None:
    more['threads'] = {k: _mean(v) for k, v in threads.items()}
    total = threads['tokens_total']
  return {
      'n': len(correct), 'problems': len(grouped),
      'accuracy': _mean(correct),
      'accuracy_ci95': accuracy_interval(grouped),
      'format_rate': _mean(well_formed),
      'skip_rate': _mean(skipped[reached]),
      'skip_precision': _mean(idle[judged & skipped]),
      'skip_recall': _mean(skipped[idle]),
      'tokens_streaming': _mean(tokens_streaming),
      'tokens_deep': _mean(tokens_deep),
      'tokens_total': _mean(total),
      'latency_s': {k: _mean(latency[k]) for k in (
          'first_deep_token', 'first_answer_token', 'end')},
      'lag_s': _mean(latency['lag']),
      'answered': _mean(~np.isnan(latency['first_answer_token'])),
      'thoughts_capped': _mean(thoughts_cut),
      'deep_capped': _mean(deep_cut),
      'pass_at_k': {str(k): pass_at_k(grouped, k) for k in ks}, **more}


def _mean(values) -> float | None:
  """The mean of the values that are not NaN; None where there are none."""
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else None


def paired(a_correct: np.ndarray, b_correct: np.ndarray, *, seed: int = 0,
           resamples: int = 10000) -> dict[str, Any]:
  """Accuracy of a minus accuracy of b on the same problems.

  Args:
    a_correct, b_correct: [P] bool, the same problems in the same order; or
      [P, S], each problem under S seeds, which are drawn together.
    seed, resamples: Of the bootstrap over problems.

  Returns:
    n, difference, its percentile bootstrap interval ci95 [low, high], and the
    four counts of McNemar's table: both, only_a, only_b, neither.

  Raises:
    ValueError: Shapes differ, or there are no problems.
  """
  a, b = np.asarray(a_correct, bool), np.asarray(b_correct, bool)
  if a.shape != b.shape or a.ndim not in (1, 2) or not a.size:
    raise ValueError(f'need two equal shapes [P] or [P, S], got {a.shape}, '
                     f'{b.shape}')
  n, both = a.size, int((a & b).sum())
  only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
  # A problem's difference has few values, so drawing problems with replacement
  # is one multinomial draw of how many have which.
  each = (a.astype(int) - b).reshape(len(a), -1).sum(1)
  values, counts = np.unique(each, return_counts=True)
  draws = np.random.default_rng(seed).multinomial(
      len(a), counts / len(a), resamples)
  low, high = np.quantile(draws @ values / n, [0.025, 0.975])
  return {'n': n, 'difference': (only_a - only_b) / n,
          'ci95': [float(low), float(high)], 'both': both, 'only_a': only_a,
          'only_b': only_b, 'neither': n - both - only_a - only_b}
