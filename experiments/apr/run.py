"""Parallel against serial search: SFT, RL, budgets; fills results.json.

  python -m experiments.apr.run [--only=NAME,...] [--seeds=3]

What is finished is not run again, and a killed run goes on. Names, in the
order in which they are run:

  sft      parallel.safetensors and serial.safetensors beside this file
           (notes.md has their commands), greedy, and with 8 samples of each
           problem: pass@n and cons@n at their total tokens
  rl       configs/apr.py of each seed, parallel and serial
  credit   the same with hierarchical credit (root and children, lambda)
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
from typing import Any

import numpy as np

from adasr_jax.run import metrics
from experiments import cells

HERE = pathlib.Path(__file__).parent
FORMS = ('parallel', 'serial')
NAMES = ('sft', 'rl', 'credit')
CREDIT = ('--config.advantage.granularity=stage', '--config.advantage.lam=0.5')
QUIET = ('--config.log.tensorboard=False',)
SAMPLES = 8


def argument(form: str, *more: str) -> str:
  """Of configs/apr.py."""
  return 'apr.py:' + ','.join([*['serial'] * (form == 'serial'), *more])


def run_sft(out: pathlib.Path) -> None:
  """Evaluates the shipped policies: an RL run of no steps has their config."""
  for form in FORMS:
    for samples in (1, SAMPLES):
      cells.run(out / f'sft_{form}_{samples}', argument(form, 'evaluate'),
                f'--config.eval.samples={samples}',
                f'--config.eval.temperature={float(samples > 1)}',
                f'--config.eval.examples={1000 if samples == 1 else 500}',
                *QUIET)


def run_rl(out: pathlib.Path, seed: int, credit: bool) -> None:
  """RL of both forms; of the parallel one alone with hierarchical credit."""
  for form in FORMS[:1] if credit else FORMS:
    name = 'credit' if credit else 'rl'
    cells.run(out / f'{name}_{form}_s{seed}', argument(form, f'seed={seed}'),
              *(CREDIT if credit else ()), *QUIET)


def sizes(final: dict[str, Any]) -> dict[str, float]:
  """Total and sequential tokens of an evaluation, and of what they consist."""
  threads = final.get('threads', {})
  total = final['tokens_total']
  return {'tokens_total': total,
          'tokens_sequential': threads.get('tokens_sequential', total),
          'tokens_forced': threads.get('tokens_forced', 0.0),
          'children': threads.get('children', 0.0),
          'end_s': final['latency_s']['end']}


def of_runs(workdirs: list[pathlib.Path], seeds: list[int]
            ) -> dict[str, Any] | None:
  """Accuracy over problems and seeds, with sizes; None = nothing finished."""
  found = [(w, s, e['final']) for w, s in zip(workdirs, seeds)
           if (e := cells.evaluated(w))]
  if not found:
    return None
  correct = np.stack([cells.problems(w)['correct'] for w, _, _ in found], 1)
  each = [sizes(final) for _, _, final in found]
  return {'accuracy': float(correct.mean()),
          'accuracy_ci95': metrics.accuracy_interval(correct),
          'n': int(correct.size), 'seeds': [s for _, s, _ in found],
          'accuracy_per_seed': [f['accuracy'] for _, _, f in found],
          **{k: float(np.mean([x[k] for x in each])) for k in each[0]}}


def collect(out: pathlib.Path, seeds: int) -> dict[str, Any]:
  """results.json of what is finished."""
  commit = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True,
                          text=True, check=True).stdout.strip()
  every = list(range(seeds))
  results = {'commit': commit, 'context': 192, 'sft': {}, 'rl': {},
             'credit': {}, 'samples': {}}
  for form in FORMS:
    results['sft'][form] = of_runs([out / f'sft_{form}_1'], [0])
    for name in ('rl', 'credit'):
      results[name][form] = of_runs(
          [out / f'{name}_{form}_s{s}' for s in every], every)
    many = cells.evaluated(out / f'sft_{form}_{SAMPLES}')
    if many:
      final = many['final']
      results['samples'][form] = {
          'n': final['n'], 'pass_at_k': final['pass_at_k'],
          'cons_at_k': final.get('cons_at_k', {}), **sizes(final)}
  pairs = [(out / f'rl_parallel_s{s}', out / f'rl_serial_s{s}') for s in every]
  results['parallel_minus_serial'] = {
      'sft': cells.paired([(out / 'sft_parallel_1', out / 'sft_serial_1')]),
      'rl': cells.paired(pairs)}
  return results


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = ['| policy | accuracy [95 %] | seeds | n | total tokens | sequential '
           '| forced | children | end (s) |', '|---|---:|---:|---:|---:|---:'
           '|---:|---:|---:|']
  for name in ('sft', 'rl', 'credit'):
    for form in FORMS:
      if r := results[name].get(form):
        low, high = r['accuracy_ci95']
        lines.append(
            f'| {form}, {name} | {r["accuracy"]:.3f} [{low:.3f}, {high:.3f}] '
            f'| {len(r["seeds"])} | {r["n"]} | {r["tokens_total"]:.0f} '
            f'| {r["tokens_sequential"]:.0f} | {r["tokens_forced"]:.0f} '
            f'| {r["children"]:.1f} | {r["end_s"]:.2f} |')
  lines += ['', '| SFT, samples | k | pass@k | cons@k | total tokens |',
            '|---|---:|---:|---:|---:|']
  for form, r in results['samples'].items():
    for k, p in r['pass_at_k'].items():
      lines.append(f'| {form} | {k} | {p:.3f} | {r["cons_at_k"][k]:.3f} '
                   f'| {int(k) * r["tokens_total"]:.0f} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--only', default=','.join(NAMES))
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/apr_cells'))
  args = parser.parse_args()
  only = args.only.split(',')
  if unknown := set(only) - set(NAMES):
    parser.error(f'only={args.only!r}: {min(unknown)!r} is not one of '
                 f'{", ".join(NAMES)}')
  if 'sft' in only:
    run_sft(args.out)
  for seed in range(args.seeds):
    for name in ('rl', 'credit'):
      if name in only:
        run_rl(args.out, seed, credit=name == 'credit')
        write(args.out, args.seeds)
  print(write(args.out, args.seeds))


def write(out: pathlib.Path, seeds: int) -> str:
  """Writes results.json and table.md beside this file; the table."""
  results = collect(out, seeds)
  (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
  (HERE / 'table.md').write_text(text := table(results))
  return text


if __name__ == '__main__':
  main()
