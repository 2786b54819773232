"""Steps by list schedule, ratios, an absent commit."""

import types

import numpy as np

from benchmarks import bench
from benchmarks import before
from benchmarks import learning
from benchmarks import refill


def test_steps_and_occupancy():
  # Jobs of 3, 1 and 4, 2 tokens after the first; the second source is longer.
  length = np.array([4, 2, 5, 3])
  target = types.SimpleNamespace(valid=np.arange(5) < length[:, None])
  source = types.SimpleNamespace(
      valid=np.arange(8) < np.array([[6], [8]]))
  engine = lambda queues, rows: types.SimpleNamespace(
      queues=queues, rows_per_queue=rows)
  # 4 and 2; then 3 after 2, and 1 after 4.
  assert refill.steps(engine(1, 2), source, target) == 5
  assert refill.steps(engine(1, 1), source, target) == 10
  assert refill.steps(engine(2, 1), source, target) == 6
  assert refill.steps(engine(2, 2), source, target) == 4
  assert refill.occupancy(engine(1, 2), target, 5) == 1.0


def test_ratios_are_of_the_quickest_and_none_where_there_is_nothing():
  row = lambda seconds: {'median': seconds}
  found = bench.ratios({
      'generation': {'adasr_jax rollout': row(2.0),
                     'transformers, threads: 1': row(8.0),
                     'transformers, threads: 2': row(6.0)},
      'before': None})
  assert found['generation_vs_transformers'] == 3.0
  assert found['generation_vs_tunix'] is None
  assert found['step_vs_before'] is None


def test_without_the_commit(capsys):
  assert before.run(5, 'no-such-commit') is None
  assert 'skipped' in capsys.readouterr().out


def test_buckets_of_padded_targets():
  sizes = [learning.bucket(n, 10**6) for n in range(1, 3000)]
  for n, size in enumerate(sizes, 1):
    assert n <= size <= max(32, 3 * n / 2)
  assert sizes == sorted(sizes)
  assert sorted(set(sizes)) == [
      32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072]
  # The longest target there can be is a bucket of its own.
  assert (learning.bucket(50, 55), learning.bucket(20, 25)) == (55, 25)
