"""Pruned traces: does it pay to ask for the worth of single decisions?

  python -m experiments.front.prune [--seeds=5] [--out=runs/front]

The harder setting. Each seed: HRPO with credit by sentence for 60 steps (as
round `screen` of run.py), then pruned traces of new problems
(adasr_jax.tools.prune_traces), then supervised learning on them. SCHEMES:

  round 1       200 steps of SFT; no more problems than 200 steps of RL read
  round 2, 3    what came out is asked again, about new problems; all three
                together generate no more tokens than 200 steps of RL
  once          one round from as many tokens, 200 steps of SFT
  once, 600     the same with as many steps of SFT as three rounds; seed 0
  beta 0.03     rounds 1 to 3 after RL with less pressure on length; seeds 0, 1
  GRPO          rounds 1 to 3 after GRPO; seed 0
  sampled       rounds 1 to 3 without the question: of four sampled rollouts of
                each problem the shortest right one is imitated; seeds 0, 1
  44 steps      rounds 1 to 3 with so few steps of SFT that RL and all rounds
                together have 200 updates; seed 0

In the first round those skips are tried that the policy thinks likely with
which RL began, in later ones those that the policy itself thinks likely. Beside
them, on the same test problems, what BESIDE has of run.py after 200 steps: HRPO
(stage, and sentence, which is the best on validation), GRPO with the weights of
stage and with the one that is its best, and both as they were before. Last,
FRESH on the next 1,000 test problems, on which nothing had been evaluated. What
is finished is not run again. Writes prune.json and prune.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from adasr_jax.run import logs
from adasr_jax.run import metrics
from adasr_jax.tools import own_traces
from adasr_jax.tools import prune_traces
from adasr_jax.tools import sample_traces
from experiments import cells
from experiments.front import run
from experiments.full import run as full

HERE = pathlib.Path(__file__).parent
SEEDS = (0, 1, 2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Scheme:
  """A round of traces and SFT.

  Attributes:
    problems: How many are asked about.
    first: Position of the first in the training stream; RL has had the first
      2,400 at most.
    after: The scheme whose policy writes the traces; '' = RL's.
    like: The scheme whose traces these are; '' = its own.
    steps: Of SFT.
    rl: With what it begins, 60 steps of it.
    sampled: Traces are sampled (sample_traces) instead of pruned.
    seeds: Those that are run; all of SEEDS on test, too.
  """
  problems: int
  first: int = 2400
  after: str = ''
  like: str = ''
  steps: int = 200
  rl: run.Setting = run.Setting('sentence', 0.3)
  sampled: bool = False
  seeds: tuple[int, ...] = SEEDS


SCHEMES = {'round 1': Scheme(2900),
           'round 2': Scheme(2900, 5300, 'round 1'),
           'round 3': Scheme(2900, 8200, 'round 2'),
           'once': Scheme(7000),
           'once, 600': Scheme(7000, like='once', steps=600, seeds=(0,))}
ROUNDS = {name: s for name, s in SCHEMES.items() if name.startswith('round')}
for _kind, _changed in (
    ('beta 0.03', {'rl': run.Setting('sentence', 0.03), 'seeds': (0, 1)}),
    ('GRPO', {'rl': run.Setting('grpo', 1.0), 'seeds': (0,)}),
    ('sampled', {'sampled': True, 'seeds': (0, 1)}),
    ('44 steps', {'steps': 44, 'seeds': (0,)})):
  SCHEMES |= {f'{name}, {_kind}': dataclasses.replace(
      s, after=s.after and f'{s.after}, {_kind}', **_changed)
              for name, s in ROUNDS.items()}
SCHEMES['round 1, 44 steps'] = dataclasses.replace(
    SCHEMES['round 1, 44 steps'], like='round 1')
SFT = ('--config.data.prompts=96', '--config.optim.learning_rate=1e-3',
       '--config.optim.warmup=10')
BESIDE = {'sentence': run.Setting('sentence', 0.3),
          'stage': run.Setting('stage', 0.3), 'grpo': run.Setting('grpo', 0.3),
          'grpo, beta 1': run.Setting('grpo', 1.0),
          'hrpo 8x12, std': run.Setting('hrpo 8x12, std', 0.5),
          'grpo 8x12, beta 0.1': run.Setting('grpo 8x12', 0.1)}
FRESH = 'round 3', 'once', 'round 1', *BESIDE
SEEN = 1000


def write_traces(of: pathlib.Path, out: pathlib.Path, scheme: Scheme) -> None:
  """Writes a policy's traces, and beside them how many tokens they took."""
  if out.with_suffix('.json').exists():
    return
  print(f'--- {out}', flush=True)
  records, sampled = [], 0
  if scheme.sampled:
    written = sample_traces.sample_traces(
        str(of), problems=scheme.problems, first=scheme.first)
  else:
    written = prune_traces.prune_traces(
        str(of), problems=scheme.problems, first=scheme.first,
        start=str(of) if scheme.after else '')
  for _, some, tokens in written:
    records, sampled = records + some, sampled + tokens
  own_traces.write_records(out, records)
  logs.write_json(out.with_suffix('.json'), {
      'problems': scheme.problems, 'traces': len(records), 'sampled': sampled,
      **quality(records)})


def quality(records: list[dict[str, Any]]) -> dict[str, float]:
  """Shares of sentences that are skipped: of those about somebody else, and of
  those that change a number; by the task, which no policy reads.
  """
  skipped = lambda kinds: float(np.mean([
      thought is None for r in records
      for thought, kind in zip(r['thoughts'], r['kinds']) if kind in kinds]))
  return {'entity_skipped': skipped(('entity',)), 'needed_skipped': skipped(
      ('gain', 'loss', 'transfer', 'more', 'fewer', 'unit'))}


def _trained(runs: run.Runs, name: str, seed: int) -> pathlib.Path:
  """Workdir of one of SCHEMES."""
  short = name.replace(',', '').replace('.', '').replace(' ', '_')
  return runs.out / f'pruned_{short}_s{seed}'


def _traces(runs: run.Runs, name: str, seed: int) -> pathlib.Path:
  """Its traces; what they cost is in a file beside them."""
  return _trained(runs, SCHEMES[name].like or name, seed).with_suffix('.jsonl')


def run_seed(runs: run.Runs, name: str, seed: int) -> None:
  """All that one seed of one of SCHEMES needs."""
  scheme = SCHEMES[name]
  for needed in filter(None, (scheme.after, scheme.like)):
    run_seed(runs, needed, seed)
  if scheme.after:
    of = _trained(runs, scheme.after, seed)
  else:
    runs.run(scheme.rl, 'screen', seed)
    of = runs.trained(scheme.rl, run.STEPS['screen'], seed)
  trained = _trained(runs, name, seed)
  traces = _traces(runs, name, seed)
  write_traces(of, traces, scheme)
  cells.run(trained, f'sft.py:full,seed={seed}', *full.FLAGS, *SFT,
            f'--config.steps={scheme.steps}', f'--config.init={of}',
            f'--config.sft.traces={traces}', '--config.eval.split=validation',
            f'--config.eval.examples={run.VALIDATION}')
  if scheme.seeds == SEEDS:
    cells.run(trained.with_name(f'{trained.name}_test'),
              f'eval.py:of={trained},split=test',
              '--config.log.tensorboard=False')


def workdir(runs: run.Runs, name: str, split: str, seed: int) -> pathlib.Path:
  """Where an evaluation of one of SCHEMES or of a method of BESIDE is."""
  if name in SCHEMES:
    trained = _trained(runs, name, seed)
    return trained.with_name(f'{trained.name}{"_test" * (split == "test")}')
  setting = BESIDE[name]
  trained = runs.trained(setting, run.STEPS['test'], seed)
  return (trained if split == 'validation'
          else runs.workdir(setting, 'test', seed))


def fresh_workdir(runs: run.Runs, name: str, seed: int) -> pathlib.Path:
  """Where one of FRESH is evaluated on 2 * SEEN test problems."""
  trained = workdir(runs, name, 'validation', seed)
  return trained.with_name(f'{trained.name}_fresh')


def run_fresh(runs: run.Runs, seed: int) -> None:
  """All of FRESH, which are trained."""
  for name in FRESH:
    cells.run(fresh_workdir(runs, name, seed),
              f'eval.py:of={workdir(runs, name, "validation", seed)},'
              f'examples={2 * SEEN}', '--config.log.tensorboard=False')


def fresh(runs: run.Runs, seeds: range) -> dict[str, Any]:
  """FRESH on the test problems from SEEN on."""
  points = []
  for name in FRESH:
    found = {s: cells.problems(w)['correct'][SEEN:] for s in seeds
             if cells.evaluated(w := fresh_workdir(runs, name, s))}
    if found:
      correct = np.stack(list(found.values()), 1)
      points.append({
          'name': name, 'seeds': list(found), 'n': int(correct.size),
          'accuracy': float(correct.mean()),
          'accuracy_ci95': metrics.accuracy_interval(correct),
          'accuracy_per_seed': correct.mean(0).tolist()})
  difference = {}
  for pair in itertools.combinations(FRESH, 2):
    if found := cells.paired((tuple(fresh_workdir(runs, n, s) for n in pair)
                              for s in seeds), SEEN):
      difference[' - '.join(pair)] = {**found[0], 'by_seed': found[1]}
  return {'points': points, 'paired': difference}


def point(runs: run.Runs, name: str, split: str, seeds: range
          ) -> dict[str, Any] | None:
  """Of one method on one split; None = nothing is finished."""
  found = {s: w for s in seeds
           if cells.evaluated(w := workdir(runs, name, split, s))}
  if not found:
    return None
  return {
      'name': name, 'split': split, **run.summary(found),
      'generated': float(np.mean([_generated(runs, name, s) for s in found]))}


def _generated(runs, name, seed):
  """Tokens, those of the traces included."""
  if name not in SCHEMES:
    return cells.generated(workdir(runs, name, 'validation', seed))
  scheme = SCHEMES[name]
  traces = logs.read_json(_traces(runs, name, seed).with_suffix('.json'))
  before = (_generated(runs, scheme.after, seed) if scheme.after
            else cells.generated(
                runs.trained(scheme.rl, run.STEPS['screen'], seed)))
  return traces['sampled'] + before


def collect(runs: run.Runs, seeds: range) -> dict[str, Any]:
  """prune.json of what is finished."""
  names = (*SCHEMES, *BESIDE)
  difference = {}
  rounds = [n for n in SCHEMES if n.startswith('round')]
  order = (*reversed(rounds), *(n for n in names if n not in rounds))
  for pair in itertools.combinations(order, 2):
    if found := cells.paired(
        tuple(workdir(runs, n, 'test', s) for n in pair) for s in seeds):
      difference[' - '.join(pair)] = {**found[0], 'by_seed': found[1]}
  traces = [{'name': name} | x for name in SCHEMES for s in seeds if (
      x := logs.read_json(_trained(runs, name, s).with_suffix('.json')))]
  return {'commit': cells.commit(), 'points': [
      p for split in ('validation', 'test') for name in names
      if (p := point(runs, name, split, seeds))],
          'paired_on_test': difference, 'fresh': fresh(runs, seeds),
          'traces': traces}


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = ['| split | method | accuracy [95 %] | per seed | tokens | end (s) '
           '| skip recall | generated |',
           '|---|---|---:|---|---:|---:|---:|---:|']
  for p in results['points']:
    low, high = p['accuracy_ci95']
    lines.append(
        f'| {p["split"]} | {p["name"]} | {p["accuracy"]:.3f} [{low:.3f}, '
        f'{high:.3f}] | ' + ', '.join(
            f'{a:.3f}' for a in p['accuracy_per_seed'])
        + f' | {p["tokens_total"]:.1f} | {p["end_s"]:.2f} '
        f'| {p["skip_recall"]:.2f} | {p["generated"]:,.0f} |')
  lines += run.differences(results['paired_on_test'])
  if results['fresh']['points']:
    lines += ['', '| on the next test problems | accuracy [95 %] | per seed |',
              '|---|---:|---|']
  for p in results['fresh']['points']:
    lines.append('| {} | {:.3f} [{:.3f}, {:.3f}] | {} |'.format(
        p['name'], p['accuracy'], *p['accuracy_ci95'],
        ', '.join(f'{a:.3f}' for a in p['accuracy_per_seed'])))
  lines += run.differences(results['fresh']['paired'])
  return '\n'.join(lines) + '\n'


def write(runs: run.Runs, seeds: range) -> str:
  """Writes what the module's text says; the table."""
  results = collect(runs, seeds)
  (HERE / 'prune.json').write_text(json.dumps(results, indent=1) + '\n')
  (HERE / 'prune.md').write_text(text := table(results))
  return text


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/front'))
  args = parser.parse_args()
  runs, seeds = run.Runs(args.out), range(args.seeds)
  for seed in seeds:
    for name, scheme in SCHEMES.items():
      if seed in scheme.seeds:
        run_seed(runs, name, seed)
        write(runs, seeds)
  for seed in seeds:
    for setting in BESIDE.values():
      runs.run(setting, 'test', seed)
      write(runs, seeds)
  for seed in seeds:
    run_fresh(runs, seed)
  print(write(runs, seeds))


if __name__ == '__main__':
  main()
