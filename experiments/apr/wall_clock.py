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
import functools
import json
import pathlib

import jax

from adasr_jax import config as config_lib
from adasr_jax.core import placement
from adasr_jax.credit import rewards
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.transcript import transcribe
from adasr_jax.run import factories
from benchmarks import timing
from configs import apr
from experiments import cells

HERE = pathlib.Path(__file__).parent
ROWS = {'parallel': (1, 2, 4, 11), 'serial': (1,)}


def calls(form: str, problems: int):
  """How one policy answers, and how that is judged.

  Args:
    form: A key of ROWS.
    problems: Of the test split.

  Returns:
    'form, rows n' -> function of i, the number of a problem from 1 on, to its
    rollout (0 is the first once more, which compiles); and a function of the
    rollouts of all problems, in order, to the share that is right.
  """
  s = config_lib.validate(apr.get_config(
      'evaluate' + ',serial' * (form == 'serial')))
  parts = factories.parts(s)
  params = factories.initial_params(s, parts)
  examples = parts.data.evaluation('test', problems)
  sources = [parts.data.collate([x]).source for x in (examples[0], *examples)]
  placed = list(map(placement.to_devices, sources))

  def answer(rows, i):
    return rollout(params, placed[i], jax.random.key(0), samples=1,
                   max_chunks=parts.data.max_chunks, rows=rows,
                   model_config=parts.model_config, protocol=parts.protocol,
                   temperature=0.0)

  def accuracy(targets):
    said = [transcribe(placement.to_host(t), source.num_chunks,
                       parts.tokenizer, parts.protocol)[0]
            for t, source in zip(targets, sources[1:], strict=True)]
    return float(rewards.outcomes(
        examples, said, max_chunks=parts.data.max_chunks,
        agrees=parts.data.agrees).accuracy.mean())

  return {f'{form}, rows {rows}': functools.partial(answer, rows)
          for rows in ROWS[form]}, accuracy


def measure(problems: int) -> dict[str, dict[str, float]]:
  """'form, rows n' -> seconds, accuracy, and seconds of those of serial."""
  answer, judge, told = {}, {}, {}
  for form in ROWS:
    some, accuracy = calls(form, problems)
    answer |= some
    judge |= dict.fromkeys(some, accuracy)

  def kept(name, i):
    told[name, i] = answer[name](i)
    return told[name, i]

  times = timing.interleaved({name: functools.partial(kept, name)
                              for name in answer}, problems)
  for name, row in times.items():
    row['accuracy'] = judge[name](
        [told[name, i] for i in range(1, problems + 1)])
    row['of_serial'] = row['median'] / times['serial, rows 1']['median']
  return times


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--problems', type=int, default=20)
  parser.add_argument('--smoke', action='store_true',
                      help='two problems; writes nothing')
  args = parser.parse_args()
  problems = 2 if args.smoke else args.problems
  times = measure(problems)
  timing.show(f'{problems} problems, one at a time', times,
              'accuracy of_serial')
  if not args.smoke:
    (HERE / 'wall_clock.json').write_text(json.dumps(
        {'commit': cells.commit(), 'problems': problems, 'times': times},
        indent=1) + '\n')


if __name__ == '__main__':
  main()
