"""Fronts: what accuracy does a method reach with how many tokens?

  python -m experiments.front.run [--only=screen,long,test] [--out=runs/front]

The harder setting (configs/hrpo.py:full), from one supervised start. Each
method is swept over a knob that sets its pressure on length: beta where the
rewards are normalised one by one ('decoupled'), lambda where their sum is
('std', under which beta cancels). All runs of a round stop after as many
generated tokens as the first one of METHODS. Halving:

  screen   60 steps, seeds 0 and 1, 2,000 validation problems: every setting
  long     200 steps, cosine, seeds 0 and 1, the same problems: all settings of
           BASES and of the two best other methods, by their most accurate
           setting within TOKENS (or of all, where none is)
  test     the best setting, those of BASES, and the best one with GRPO's
           credit; seeds 0 to 4, 1,000 test problems

What is finished is not run again, and a killed run goes on. Writes
results.json, table.md and fronts.png beside this file; rounds that --only
leaves out stay there as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
import dataclasses
import itertools
import json
import pathlib
import re
from typing import Any

import numpy as np

from adasr_jax.run import logs
from adasr_jax.run import metrics
from experiments import cells
from experiments.front import figures
from experiments.full import run as full

HERE = pathlib.Path(__file__).parent
TOKENS = 45
ROUNDS = ('screen', 'long', 'test')
STEPS = {'screen': 60, 'long': 200, 'test': 200}
SEEDS = {'screen': (0, 1), 'long': (0, 1), 'test': (0, 1, 2, 3, 4)}
SPLIT = {'screen': 'validation', 'long': 'validation', 'test': 'test'}
VALIDATION = 2000

BETA, LAMBDA = 'reward.think_weight', 'advantage.lam'
BETAS = (0.03, 0.1, 0.3)
BETAS_GRPO = (0.1, 0.3, 1.0)  # it shortens less
KEPT = 2  # methods beside BASES in the round `long`


def _flags(granularity: str, normaliser: str = 'decoupled', prompts: int = 24,
           alpha: float = 0.3) -> tuple[str, ...]:
  return (f'advantage.granularity={granularity}',
          f'advantage.normaliser={normaliser}', f'reward.alpha={alpha:g}',
          f'data.prompts={prompts}', f'rollout.samples={96 // prompts}')


# Name -> (flags, knob, its values). 96 rollouts a step: 4 of each of 24
# problems, or 12 of each of 8. Alpha 1: a streaming token costs what a deep one
# does.
METHODS = {
    'hrpo 8x12, std': ((*_flags('stage', 'std', 8), f'{BETA}=0.1'), LAMBDA,
                       (0.5, 0.25, 0.1)),
    'grpo 8x12': (_flags('sequence', prompts=8), BETA, BETAS_GRPO),
    'prefix 8x12': (_flags('prefix', prompts=8), BETA, BETAS),
    'grpo': (_flags('sequence'), BETA, BETAS_GRPO),
    'stage': (_flags('stage'), BETA, BETAS),
    'sentence': (_flags('sentence'), BETA, BETAS),
    'token': (_flags('token'), BETA, BETAS),
    'grpo, alpha 1': (_flags('sequence', alpha=1), BETA, BETAS_GRPO),
    'stage, alpha 1': (_flags('stage', alpha=1), BETA, BETAS),
    'sentence, alpha 1': (_flags('sentence', alpha=1), BETA, BETAS),
}
# Name -> how those of prune.py's schemes are named that are its points.
PRUNED = {
    'pruned traces, round 1 to 3': r'round \d(, beta .*)?',
    'pruned traces, one large round': 'once.*',
    'sampled traces, round 1 to 3': r'round \d, sampled'}
BASES = ('grpo', 'grpo, alpha 1', 'stage')


@dataclasses.dataclass(frozen=True)
class Setting:
  """A method at one value of its knob.

  Attributes:
    method: A key of METHODS.
    value: Of the knob.
  """
  method: str
  value: float

  @property
  def name(self) -> str:
    """'reward.think_weight=0.1'."""
    return f'{METHODS[self.method][1]}={self.value:g}'

  def flags(self) -> list[str]:
    """Of the main program."""
    return [f'--config.{x}' for x in (*METHODS[self.method][0], self.name)]


def settings() -> list[Setting]:
  """All; the first sets the number of generated tokens."""
  return [Setting(m, v) for m, (_, _, values) in METHODS.items()
          for v in values]


@dataclasses.dataclass(frozen=True)
class Runs:
  """Where the runs are.

  Attributes:
    out: Their folder.
  """
  out: pathlib.Path

  def trained(self, setting: Setting, steps: int, seed: int) -> pathlib.Path:
    """Workdir of a training run, evaluated on the validation split."""
    method = setting.method.replace(',', '').replace(' ', '_')
    return self.out / f'{method}_{setting.value:g}_{steps}_s{seed}'

  def workdir(self, setting: Setting, of: str, seed: int) -> pathlib.Path:
    """Where a round's evaluation is."""
    trained = self.trained(setting, STEPS[of], seed)
    return (trained if SPLIT[of] == 'validation'
            else trained.with_name(f'{trained.name}_test'))

  def run(self, setting: Setting, of: str, seed: int) -> None:
    """Trains and evaluates, unless that is done."""
    steps, first = STEPS[of], settings()[0]
    trained = self.trained(setting, steps, seed)
    if not cells.evaluated(trained):
      length = [f'--config.steps={steps}']
      if setting != first:
        budget = self.trained(first, steps, 0)
        if not cells.evaluated(budget):
          self.run(first, of, 0)
        # A step more or fewer: the schedule follows the tokens.
        length = [f'--config.token_budget={cells.generated(budget)}',
                  f'--config.steps={2 * steps}']
      schedule = 'constant' if of == 'screen' else 'cosine'
      cells.run(trained, f'hrpo.py:full,seed={seed}', *full.FLAGS, *length,
                f'--config.init={full.warm_start(self.out, "hrpo", 0)}',
                '--config.optim.learning_rate=2e-4',
                f'--config.optim.schedule={schedule}',
                '--config.eval.split=validation',
                f'--config.eval.examples={VALIDATION}', *setting.flags())
    workdir = self.workdir(setting, of, seed)
    if workdir != trained:
      cells.run(workdir, f'eval.py:of={trained},split=test',
                '--config.log.tensorboard=False')

  def point(self, setting: Setting, of: str) -> dict[str, Any] | None:
    """One entry of results.json; None = nothing is finished."""
    found = [s for s in SEEDS[of]
             if cells.evaluated(self.workdir(setting, of, s))]
    if not found:
      return None
    mean = lambda values: float(np.mean(list(values)))
    return {
        'setting': setting.name, 'split': SPLIT[of], 'steps': STEPS[of],
        **summary({s: self.workdir(setting, of, s) for s in found}),
        'generated': mean(cells.generated(
            self.trained(setting, STEPS[of], s)) for s in found),
        'seconds': mean(cells.seconds(
            self.trained(setting, STEPS[of], s)) for s in found)}


def summary(workdirs: dict[int, pathlib.Path]) -> dict[str, Any]:
  """Of finished evaluations of the same problems, by seed."""
  finals = [cells.evaluated(w)['final'] for w in workdirs.values()]
  correct = np.stack([cells.problems(w)['correct']
                      for w in workdirs.values()], 1)
  mean = lambda values: float(np.mean(list(values)))
  return {'seeds': list(workdirs), 'n': int(correct.size),
          'accuracy': float(correct.mean()),
          'accuracy_ci95': metrics.accuracy_interval(correct),
          'accuracy_per_seed': [f['accuracy'] for f in finals],
          'tokens_total': mean(f['tokens_total'] for f in finals),
          'end_s': mean(f['latency_s']['end'] for f in finals),
          'skip_recall': mean(f['skip_recall'] for f in finals)}


def kept(runs: Runs, of: str) -> list[Setting]:
  """What a round tries; see the text above."""
  if of == 'screen':
    return settings()
  before = ROUNDS[ROUNDS.index(of) - 1]
  best = {}
  for method in METHODS:
    points = [(p, s) for s in settings() if s.method == method
              if (p := runs.point(s, before))]
    within = [x for x in points if x[0]['tokens_total'] <= TOKENS]
    if points:
      best[method] = max(within or points, key=lambda x: x[0]['accuracy'])
  ranked = sorted(best, key=lambda m: (
      best[m][0]['tokens_total'] > TOKENS, -best[m][0]['accuracy']))
  first = ([m for m in ranked if m not in BASES][:KEPT] if of == 'long'
           else ranked[:1])
  if of == 'long':
    return [s for s in settings()
            if s.method in best and s.method in (*first, *BASES)]
  out = [best[m][1] for m in METHODS if m in best and m in (*first, *BASES)]
  if first:
    same = alike(best[first[0]][1])
    out += [same] * (same not in out)
    out.sort(key=lambda s: s.method == first[0])  # the best one last
  return out


def alike(setting: Setting) -> Setting:
  """The same with one advantage for all tokens; itself if METHODS has none."""
  flags, *_ = METHODS[setting.method]
  want = {*flags[1:], 'advantage.granularity=sequence'}
  return next((Setting(m, setting.value) for m, (f, _, _) in METHODS.items()
               if set(f) == want), setting)


def at_tokens(points: list[dict[str, Any]], tokens: float) -> float | None:
  """Accuracy along the front; None = no points on both sides of `tokens`.

  Where only worse points are longer, it is that of the last one of the front.
  """
  x = [p['tokens_total'] for p in points]
  if not x or not min(x) <= tokens <= max(x):
    return None
  line = figures.front(points, 'tokens_total')
  return float(np.interp(tokens, [p['tokens_total'] for p in line],
                         [p['accuracy'] for p in line]))


def collect(runs: Runs, rounds: Iterable[str] = ROUNDS,
            before: dict[str, Any] | None = None) -> dict[str, Any]:
  """results.json of what is finished.

  Args:
    runs: Where it is.
    rounds: Those that are read there.
    before: results.json as it was, where the other rounds are.
  """
  before = before or {'methods': {}, 'paired_on_test': {}}
  methods = {m: [] for m in METHODS}
  for of in ROUNDS:
    if of not in rounds:
      for m, mine in methods.items():
        mine += [p for p in before['methods'].get(m, ()) if p['round'] == of]
      continue
    for s in settings():
      if p := runs.point(s, of):
        methods[s.method].append({'round': of, 'commit': cells.commit()} | p)
  methods |= {name: pruned(named) for name, named in PRUNED.items()}
  at = lambda of: {
      m: at_tokens([p for p in points if p['round'] == of], TOKENS)
      for m, points in methods.items()}
  return {'methods': methods, f'at_{TOKENS}_tokens': at('long'),
          f'at_{TOKENS}_tokens_after_{STEPS["screen"]}_steps': at('screen'),
          'paired_on_test': (paired(runs) if 'test' in rounds
                             else before['paired_on_test'])}


def pruned(named: str) -> list[dict[str, Any]]:
  """Points of prune.py, which has its own rounds."""
  found = logs.read_json(HERE / 'prune.json') or {'points': []}
  return [{'round': 'long' if p['split'] == 'validation' else 'test',
           'setting': p['name'], **p}
          for p in found['points'] if re.fullmatch(named, p['name'])]


def paired(runs: Runs) -> dict[str, dict[str, Any]]:
  """Each method of the last round minus each that comes before it, on test."""
  chosen, out = kept(runs, 'test'), {}
  for a, b in itertools.combinations(reversed(chosen), 2):
    found = cells.paired(tuple(runs.workdir(x, 'test', s) for x in (a, b))
                         for s in SEEDS['test'])
    if found:
      out[' - '.join(f'{x.method} ({x.value:g})' for x in (a, b))] = {
          **found[0], 'by_seed': found[1]}
  return out


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = ['| round | method | setting | seeds | accuracy [95 %] | per seed '
           '| tokens | end (s) | skip recall |',
           '|---|---|---|---:|---:|---|---:|---:|---:|']
  for of in ROUNDS:
    for method, points in results['methods'].items():
      for p in points:
        if p['round'] == of:
          low, high = p['accuracy_ci95']
          lines.append(
              f'| {of} | {method} | {p["setting"]} | {len(p["seeds"])} '
              f'| {p["accuracy"]:.3f} [{low:.3f}, {high:.3f}] | '
              + ', '.join(f'{a:.3f}' for a in p['accuracy_per_seed'])
              + f' | {p["tokens_total"]:.1f} | {p["end_s"]:.2f} '
              f'| {p["skip_recall"]:.2f} |')
  return '\n'.join([*lines, *differences(results['paired_on_test'])]) + '\n'


def differences(paired_on_test: dict[str, dict[str, Any]]) -> list[str]:
  """Lines of a table of them, after an empty one; [] = there are none."""
  lines = ['', '| on the same test problems | difference [95 %, problems] '
           '| by seed | [95 %, seeds] |', '|---|---:|---|---:|']
  for name, d in paired_on_test.items():
    seeds = cells.over_seeds(d['by_seed'])
    lines.append('| {} | {:+.3f} [{:+.3f}, {:+.3f}] | {} | {} |'.format(
        name, d['difference'], *d['ci95'],
        ', '.join(f'{x:+.3f}' for x in d['by_seed']),
        '[{:+.3f}, {:+.3f}]'.format(*seeds) if seeds else '–'))
  return lines if paired_on_test else []


def write(runs: Runs, rounds: Iterable[str]) -> str:
  """Writes what the module's text says; the table."""
  results = collect(runs, rounds, logs.read_json(HERE / 'results.json'))
  (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
  (HERE / 'table.md').write_text(text := table(results))
  figures.fronts(results['methods'], HERE / 'fronts.png')
  return text


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--only', default=','.join(ROUNDS))
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/front'))
  args = parser.parse_args()
  only = cells.chosen(parser, args.only, ROUNDS)
  runs = Runs(args.out)
  for of in filter(only.__contains__, ROUNDS):
    for seed in SEEDS[of]:
      for setting in kept(runs, of):
        runs.run(setting, of, seed)
        write(runs, only)
  print(write(runs, only))


if __name__ == '__main__':
  main()
