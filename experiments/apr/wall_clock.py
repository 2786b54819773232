"""Measured seconds of one problem, by the rows that decode side by side.

  python -m experiments.apr.wall_clock [--problems=20] [--smoke]

The shipped policies answer test problems one after the other, greedily, as for
one user. The parallel one has 1, 2, 4 or 11 rows for its eleven threads; the
serial one needs one. What the virtual clock takes for granted, that a step
costs the same whatever the number of rows, is what is measured here.

Prints a table and writes wall_clock.json beside this file: of each the median
over the problems, and the share that is right. Two minutes on an idle core.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess

import jax
import numpy as np

from adasr_jax import config as config_lib
from adasr_jax.core import placement
from adasr_jax.credit import rewards
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.transcript import transcribe
from adasr_jax.run import factories
from benchmarks import timing
from configs import apr

HERE = pathlib.Path(__file__).parent
ROWS = {'parallel': (1, 2, 4, 11), 'serial': (1,)}


def measure(form: str, problems: int) -> dict[str, dict[str, float]]:
  """'form, n rows' -> seconds and accuracy of one policy."""
  s = config_lib.validate(apr.get_config(
      'evaluate' + ',serial' * (form == 'serial')))
  parts = factories.parts(s)
  params = factories.initial_params(s, parts)
  examples = parts.data.evaluation('test', problems)
  sources = [placement.to_devices(parts.data.collate([x]).source)
             for x in (examples[0], *examples)]  # the first compiles
  right = {rows: [] for rows in ROWS[form]}

  def answer(rows, i):
    target = rollout(params, sources[i], jax.random.key(0), samples=1,
                     max_chunks=parts.data.max_chunks, rows=rows,
                     model_config=parts.model_config, protocol=parts.protocol,
                     temperature=0.0)
    if i:
      said = transcribe(placement.to_host(target),
                        np.asarray(sources[i].num_chunks), parts.tokenizer,
                        parts.protocol)
      right[rows] += rewards.outcomes(
          [examples[i - 1]], said, max_chunks=parts.data.max_chunks,
          agrees=parts.data.agrees).accuracy.tolist()
    return target

  times = timing.interleaved(
      {f'{form}, {rows} rows': lambda i, rows=rows: answer(rows, i)
       for rows in ROWS[form]}, problems)
  for rows, row in zip(ROWS[form], times.values()):
    row['accuracy'] = float(np.mean(right[rows]))
  return times


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--problems', type=int, default=20)
  parser.add_argument('--smoke', action='store_true',
                      help='two problems; writes nothing')
  args = parser.parse_args()
  problems = 2 if args.smoke else args.problems
  times = {}
  for form in ROWS:
    times |= measure(form, problems)
  serial = times['serial, 1 rows']['median']
  for row in times.values():
    row['of_serial'] = row['median'] / serial
  timing.show(f'{problems} problems, one at a time', times,
              'accuracy of_serial')
  if not args.smoke:
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True,
                            text=True, check=True).stdout.strip()
    (HERE / 'wall_clock.json').write_text(json.dumps(
        {'commit': commit, 'problems': problems, 'times': times}, indent=1)
        + '\n')


if __name__ == '__main__':
  main()
