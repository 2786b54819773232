"""Ablations of the harder setting's recipe (`stage` of run.py).

  python -m experiments.front.ablations [--only=NAME,...] [--out=runs/front]

  parts      one part of the recipe changed at a time: rewards, alpha, lambda,
             granularity; 60 steps, seed 0, 2,000 validation problems, as many
             generated tokens as run.py's screening
  ideas      what might keep alternatives alive, and other normalisers, changed
             in `sentence` (trials.py has what is no field of the config); the
             same budget
  supervised what perfect traces teach the same start: as many problems as the
             recipe reads in 200 steps, and as many as it has rollouts; 2,000
             validation problems
  question   the question last, or in the middle, in SFT and RL; the same budget
  ood        the policies of TRAINED, 200 steps, and pruned traces, round 3 (of
             prune.py), on the out-of-distribution split: longer streams, larger
             numbers; 1,000 problems
  tau        seconds per token from 0.01 to 0.2: when does the answer end, and
             when that of read-then-think after the same supervised training?
             1,000 test problems

What is finished is not run again. Writes ablations.json and ablations.md beside
this file; what --only leaves out stays there as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
import json
import pathlib
from typing import Any

import numpy as np

from adasr_jax.run import logs
from adasr_jax.run import metrics
from experiments import cells
from experiments.front import prune
from experiments.front import run
from experiments.full import run as full

HERE = pathlib.Path(__file__).parent
NAMES = ('parts', 'ideas', 'supervised', 'question', 'ood', 'tau')
BASE, SENTENCE = run.Setting('stage', 0.3), run.Setting('sentence', 0.3)
# Flags of the recipe, or what run.py has in its screening.
PARTS = {
    'no thinking reward': ('reward.think_weight=0',),
    'no format reward': ('reward.format_weight=0',),
    'accuracy only as condition of the thinking reward': (
        'reward.accuracy_weight=0',),
    'alpha = 0': ('reward.alpha=0',),
    'alpha = 1': run.Setting('stage, alpha 1', 0.3),
    'lambda = 0, which is GRPO': run.Setting('grpo', 0.3),
    'lambda = 0.25': ('advantage.lam=0.25',),
    'lambda = 1': ('advantage.lam=1',),
    'sentence': SENTENCE,
    'token': run.Setting('token', 0.3)}
# Flags, and a trial of trials.py or ''.
_PREFIX = ('advantage.granularity=prefix',)
IDEAS = {
    'refills of groups without advantage': (('loss.refills=3',), ''),
    'length where all of a group are right': ((), 'once'),
    'KL to the first policy, weight 0.1': (('loss.kl_weight=0.1',), ''),
    'the same at deciding tokens alone': (('loss.kl_weight=0.1',), 'deciding'),
    'weight 1 at deciding tokens alone': (('loss.kl_weight=1.0',), 'deciding'),
    'normaliser std': (('advantage.normaliser=std',), ''),
    'normaliser constant': (('advantage.normaliser=constant',), ''),
    'scale over sequences': (('advantage.scale=sequences',), ''),
    'floor 0.5, no division by a deviation': (('advantage.floor=0.5',), ''),
    'beta = 1': (('reward.think_weight=1.0',), ''),
    'prefix': (_PREFIX, ''),
    'tree: two rollouts, a continuation of each': (_PREFIX, 'tree'),
    'tree: two rollouts, three continuations of each': (
        (*_PREFIX, 'rollout.samples=8'), 'tree4'),
    'tree, whose continuations begin with a token of the first policy': (
        (*_PREFIX, 'loss.behaviour_cap=5'), 'supervised'),
    'twelve rollouts of problems on which four agree': ((), 'larger')}
SUPERVISED = (200, 800)  # steps
PLACES = ('last', 'middle')
TRAINED = (BASE, SENTENCE, run.Setting('grpo', 0.3), run.Setting('grpo', 1.0),
           run.Setting('grpo 8x12', 0.3))
SEEDS = (0, 1)
TAUS = (0.01, 0.02, 0.05, 0.1, 0.2)


def _workdir(out: pathlib.Path, name: str) -> pathlib.Path:
  return out / ('ablation_' + '_'.join(
      ''.join(c if c.isalnum() or c == '.' else ' ' for c in name).split()))


def _train(out: pathlib.Path, workdir: pathlib.Path, init: pathlib.Path,
           *flags: str, base: run.Setting = BASE, trial: str = '') -> None:
  """One run of the recipe for the screening's tokens."""
  runs, first = run.Runs(out), run.settings()[0]
  runs.run(first, 'screen', 0)
  tokens = cells.generated(runs.trained(first, 60, 0))
  cells.run(workdir, 'hrpo.py:full', *full.FLAGS,
            f'--config.token_budget={tokens}', '--config.steps=120',
            f'--config.init={init}', '--config.optim.learning_rate=2e-4',
            '--config.optim.schedule=constant',
            '--config.eval.split=validation',
            f'--config.eval.examples={run.VALIDATION}', *base.flags(),
            *(f'--config.{f}' for f in flags),
            *[f'--trial={trial}'] * bool(trial),
            program='experiments.front.trials' if trial
            else 'adasr_jax.main')


def _part(out: pathlib.Path, name: str) -> pathlib.Path:
  change = PARTS[name]
  return (run.Runs(out).trained(change, 60, 0)
          if isinstance(change, run.Setting) else _workdir(out, name))


def run_parts(out: pathlib.Path) -> None:
  """The recipe, and each change of PARTS."""
  runs, start = run.Runs(out), full.warm_start(out, 'hrpo', 0)
  runs.run(BASE, 'screen', 0)
  for name, change in PARTS.items():
    if isinstance(change, run.Setting):
      runs.run(change, 'screen', 0)
    else:
      _train(out, _workdir(out, name), start, *change)


def run_ideas(out: pathlib.Path) -> None:
  """Credit by sentence, and each of IDEAS."""
  runs, start = run.Runs(out), full.warm_start(out, 'hrpo', 0)
  runs.run(SENTENCE, 'screen', 0)
  for name, (change, trial) in IDEAS.items():
    _train(out, _workdir(out, name), start, *change, base=SENTENCE,
           trial=trial)


def _supervised(out: pathlib.Path, steps: int) -> pathlib.Path:
  return _workdir(out, f'perfect {24 * steps}')


def run_supervised(out: pathlib.Path) -> None:
  """Each of SUPERVISED, after the recipe."""
  run.Runs(out).run(BASE, 'long', 0)
  for steps in SUPERVISED:
    cells.run(_supervised(out, steps), 'sft.py:full,traces=perfect',
              *full.FLAGS, f'--config.init={full.warm_start(out, "hrpo", 0)}',
              f'--config.steps={steps}', '--config.data.prompts=24',
              '--config.optim.learning_rate=1e-3', '--config.optim.warmup=10',
              '--config.eval.split=validation',
              f'--config.eval.examples={run.VALIDATION}')


def run_question(out: pathlib.Path) -> None:
  """Each of PLACES."""
  cells.run(out / 'sft_first', f'eval.py:of={out / "sft_s0"},split=validation,'
            f'examples={run.VALIDATION}', '--config.log.tensorboard=False')
  for place in PLACES:
    flag, start = f'data.task.question={place}', out / f'sft_{place}'
    cells.run(start, 'sft.py:full', *full.FLAGS, f'--config.{flag}',
              '--config.eval.split=validation',
              f'--config.eval.examples={run.VALIDATION}')
    _train(out, _workdir(out, place), start / 'model.safetensors', flag)


def _trained(out: pathlib.Path, seed: int) -> dict[str, pathlib.Path]:
  """Whose streams become longer."""
  runs = run.Runs(out)
  return {f'{s.method}, {s.name}': runs.trained(s, 200, seed)
          for s in TRAINED} | {'pruned traces, round 3': prune.workdir(
              runs, 'round 3', 'validation', seed)}


def _ood(workdir: pathlib.Path) -> pathlib.Path:
  return workdir.with_name(f'{workdir.name}_ood')


def run_ood(out: pathlib.Path) -> None:
  """Each of TRAINED, as in run.py's round `long`, and pruned traces."""
  runs = run.Runs(out)
  for seed in SEEDS:
    for setting in TRAINED:
      runs.run(setting, 'long', seed)
    prune.run_seed(runs, 'round 3', seed)
    for workdir in _trained(out, seed).values():
      cells.run(_ood(workdir), f'eval.py:of={workdir},split=ood',
                '--config.log.tensorboard=False')


def _timed(out: pathlib.Path) -> dict[str, pathlib.Path]:
  """Policies whose waiting is compared."""
  return {'read_then_think': full.warm_start(out, 'rtt', 0).parent,
          'streaming': out / 'sft_s0',
          'stage': run.Runs(out).trained(BASE, 200, 0)}


def run_tau(out: pathlib.Path) -> None:
  """Each policy at each of TAUS."""
  for name, workdir in _timed(out).items():
    for tau in TAUS:
      cells.run(_workdir(out, f'{name} tau {tau}'), f'eval.py:of={workdir}',
                f'--config.clock.tau={tau}', '--config.log.tensorboard=False')


def _row(workdir: pathlib.Path) -> dict[str, Any] | None:
  if not (found := cells.evaluated(workdir)):
    return None
  f = found['final']
  return {'n': f['n'], 'tokens_total': f['tokens_total'],
          'end_s': f['latency_s']['end'], 'skip_recall': f.get('skip_recall'),
          **{k: f[k] for k in ('accuracy', 'accuracy_ci95')}}


def collect(out: pathlib.Path, groups: Iterable[str] = NAMES,
            before: dict[str, Any] | None = None) -> dict[str, Any]:
  """ablations.json of what is finished.

  Args:
    out: Where it is.
    groups: Those of NAMES that are read there.
    before: ablations.json as it was, where the others are.
  """
  sentence = run.Runs(out).trained(SENTENCE, 60, 0)
  base, long = (run.Runs(out).trained(BASE, n, 0) for n in (60, 200))
  rows = lambda workdirs: {name: r for name, w in workdirs.items()
                           if (r := _row(w))}
  results = {
      'parts': rows({'none': base} | {p: _part(out, p) for p in PARTS}),
      'ideas': rows({'none': sentence} | {
          n: _workdir(out, n) for n in IDEAS}),
      'supervised': rows({'HRPO': long} | {
          f'{24 * n:,} problems': _supervised(out, n) for n in SUPERVISED}),
      'question': rows({
          k: w for p in ('first', *PLACES) for k, w in (
              (f'{p}, SFT', out / f'sft_{p}'),
              (p, base if p == 'first' else _workdir(out, p)))}),
      'ood': {}, 'tau': {}}
  beside = [(results['parts'].get(p), _part(out, p), base) for p in PARTS]
  beside += [(results['ideas'].get(n), _workdir(out, n), sentence)
             for n in IDEAS]
  beside += [(results['supervised'].get(f'{24 * n:,} problems'),
              _supervised(out, n), long) for n in SUPERVISED]
  for row, workdir, first in beside:
    if row and (found := cells.paired([(workdir, first)])):
      row['difference'] = {k: found[0][k] for k in ('difference', 'ci95')}
  streams = {seed: _trained(out, seed) for seed in SEEDS}
  first = next(iter(streams[SEEDS[0]]))
  for name in streams[SEEDS[0]]:
    found = {seed: w for seed in SEEDS
             if cells.evaluated(w := _ood(streams[seed][name]))}
    if found:
      correct = np.stack([cells.problems(w)['correct']
                          for w in found.values()], 1)
      each = [_row(w) for w in found.values()]
      results['ood'][name] = row = {
          'seeds': list(found), 'n': int(correct.size),
          'accuracy': float(correct.mean()),
          'accuracy_ci95': metrics.accuracy_interval(correct),
          **{k: float(np.mean([r[k] for r in each]))
             for k in ('tokens_total', 'end_s', 'skip_recall')}}
      if name != first:
        d, by_seed = cells.paired((w, _ood(streams[seed][first]))
                                  for seed, w in found.items())
        row['difference'] = {k: d[k] for k in ('difference', 'ci95')} | {
            'by_seed': by_seed}
  for name in ('read_then_think', 'streaming', 'stage'):
    results['tau'][name] = {f'{tau:g}': r for tau in TAUS if (
        r := _row(_workdir(out, f'{name} tau {tau}')))}
  return {name: results[name] if name in groups or not before
          else before.get(name, {}) for name in NAMES}


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = []
  titles = {'parts': 'changed', 'ideas': 'idea', 'supervised': 'perfect traces',
            'question': 'place of the question',
            'ood': 'out of distribution'}
  for group, title in titles.items():
    if len(results[group]) < 2:
      continue  # nothing to compare
    lines += [f'| {title} | accuracy [95 %] | minus the first, paired | n '
              '| tokens | end (s) | skip recall |',
              '|---|---:|---:|---:|---:|---:|---:|']
    for name, r in results[group].items():
      d = r.get('difference')
      minus = ('{:+.3f} [{:+.3f}, {:+.3f}]'.format(d['difference'], *d['ci95'])
               if d else '–')
      lines.append('| {} | {:.3f} [{:.3f}, {:.3f}] | {} | {} | {:.1f} | {:.2f} '
                   '| {:.2f} |'.format(
                       name, r['accuracy'], *r['accuracy_ci95'], minus, r['n'],
                       r['tokens_total'], r['end_s'], r['skip_recall']))
    lines.append('')
  if all(len(of) == len(TAUS) for of in results['tau'].values()):
    lines += ['| seconds per token | end: read then think, SFT (s) '
              '| streaming, SFT | ratio | streaming, HRPO |',
              '|---:|---:|---:|---:|---:|']
    for t in TAUS:
      a, b, c = (r[f'{t:g}']['end_s'] for r in results['tau'].values())
      lines.append(f'| {t:g} | {a:.2f} | {b:.2f} | {a / b:.1f} | {c:.2f} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--only', default=','.join(NAMES))
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/front'))
  args = parser.parse_args()
  go = {'parts': run_parts, 'ideas': run_ideas, 'supervised': run_supervised,
        'question': run_question, 'ood': run_ood, 'tau': run_tau}
  only = cells.chosen(parser, args.only, NAMES)
  for name in only:
    go[name](args.out)
  results = collect(args.out, only, logs.read_json(HERE / 'ablations.json'))
  (HERE / 'ablations.json').write_text(json.dumps(results, indent=1) + '\n')
  (HERE / 'ablations.md').write_text(text := table(results))
  print(text)


if __name__ == '__main__':
  main()
