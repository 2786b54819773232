"""Parallel against serial search: SFT, RL, budgets; fills results.json.

  python -m experiments.apr.run [--only=NAME,...] [--seeds=3]

What is finished is not run again, and a killed run goes on. Names, in the
order in which they are run:

  sft      parallel.safetensors and serial.safetensors beside this file
           (notes.md has their commands), greedy, and with 8 samples (serial 12)
           of each problem: pass@n and cons@n at their total tokens
  rl       configs/apr.py of each seed, parallel and serial
  credit   the same with hierarchical credit: a child is compared with those of
           its brief, and what it returned is judged by itself
  drawn    the parallel policy after 200 more supervised steps on searches that
           call 2 to 10 children, by lot, and RL from that (seed 0): what does
           it change where their number is open?
  hot      the policies of seed 0 at temperature 1, as RL has them
  sweep    the policies after SFT and after RL (seed 0) with smaller budgets:
           fewer slots per thread, fewer children (what is called beyond them
           returns nothing); serial search with more slots too than it was
           trained with; 500 problems each

Writes results.json, table.md and curves.png beside this file.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from adasr_jax import config as config_lib
from adasr_jax.run import factories
from adasr_jax.run import metrics
from adasr_jax.tasks.countdown import solve
from configs import apr
from experiments.apr import figures
from experiments import cells

HERE = pathlib.Path(__file__).parent
FORMS = ('parallel', 'serial')
NAMES = ('sft', 'rl', 'credit', 'drawn', 'hot', 'sweep')
CREDIT = ('--config.advantage.granularity=stage', '--config.advantage.lam=0.8',
          '--config.reward.threads.verify=True')
DRAWN = ('--config.data.search.min_beam=2',)
QUIET = ('--config.log.tensorboard=False',)
# Twelve serial samples have as many tokens as one parallel rollout.
SAMPLES, SWEPT = {'parallel': 8, 'serial': 12}, 500
CONTEXTS = {'parallel': (96, 128, 160), 'serial': (96, 128, 160, 256, 384)}
CHILDREN = (1, 2, 4, 7)
BUDGETS = {'context': '{} slots per thread', 'children': 'at most {} children'}
# What RL may change in a rollout.
CHANGED = ('spawns', 'children', 'returned', 'tokens_total')


def argument(form: str, *more: str) -> str:
  """Of configs/apr.py."""
  return 'apr.py:' + ','.join([*['serial'] * (form == 'serial'), *more])


def run_sft(out: pathlib.Path) -> None:
  """Evaluates the shipped policies."""
  for form in FORMS:
    for samples in (1, SAMPLES[form]):
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


def run_drawn(out: pathlib.Path) -> None:
  """SFT in which the number of children is open, and RL from it."""
  cells.run(out / 'drawn_sft', argument('parallel', 'sft', 'seed=2'),
            f'--config.init={apr.STARTS / "parallel.safetensors"}',
            '--config.steps=200', '--config.optim.learning_rate=1e-3',
            '--config.eval.every=0', *DRAWN, *QUIET)
  cells.run(out / 'drawn_rl', argument('parallel'), *DRAWN, *QUIET,
            '--config.eval.every=0', '--config.eval.at_start=False',
            f'--config.init={out / "drawn_sft" / "model.safetensors"}')


def policies(out: pathlib.Path) -> dict[str, tuple[str, str]]:
  """Finished policies of seed 0: name -> form, config.init."""
  every = {f'sft_{form}': (form, apr.STARTS / f'{form}.safetensors')
           for form in FORMS}
  every |= {f'rl_{form}': (form, out / f'rl_{form}_s0') for form in FORMS}
  every |= {name: ('parallel', out / name)
            for name in ('drawn_sft', 'drawn_rl')}
  return {name: (form, str(init)) for name, (form, init) in every.items()
          if init.is_file() or cells.evaluated(init)}


def run_hot(out: pathlib.Path) -> None:
  """Evaluates what is finished at temperature 1."""
  for name, (form, init) in policies(out).items():
    cells.run(out / f'hot_{name}', argument(form, 'evaluate'),
              f'--config.init={init}', '--config.eval.temperature=1.0', *QUIET)


def sweeps(out: pathlib.Path, form: str, stage: str
           ) -> list[tuple[pathlib.Path, dict[str, int]]]:
  """Workdirs of the smaller budgets of a policy, and what is smaller.

  Args:
    out: Of all runs.
    form: One of FORMS.
    stage: 'sft' or 'rl'.
  """
  budgets = [{'context': n} for n in CONTEXTS[form]]
  if form == 'parallel':
    budgets += [{'children': n} for n in CHILDREN]
  return [(out / '_'.join(['sweep', stage, form, *(
      f'{k}{v}' for k, v in b.items())]), b) for b in budgets]


def run_sweeps(out: pathlib.Path) -> None:
  """Evaluates finished policies with smaller budgets."""
  for form in FORMS:
    for stage in ('sft', 'rl'):
      more = ()
      if stage == 'rl':
        trained = out / f'rl_{form}_s0'
        if not cells.evaluated(trained):
          continue
        more = (f'--config.init={trained}',)
      for workdir, budget in sweeps(out, form, stage):
        context = [f'context={n}' for k, n in budget.items() if k == 'context']
        fewer = [f'--config.rollout.children={n}' for k, n in budget.items()
                 if k == 'children']
        cells.run(workdir, argument(form, 'evaluate', *context), *more, *fewer,
                  f'--config.eval.examples={SWEPT}', *QUIET)


def sizes(final: dict[str, Any]) -> dict[str, float]:
  """Total and sequential tokens of an evaluation, and of what they consist."""
  threads = final.get('threads', {})
  total = final['tokens_total']
  return {'tokens_total': total,
          'tokens_sequential': threads.get('tokens_sequential', total),
          'tokens_forced': threads.get('tokens_forced', 0.0),
          'spawns': threads.get('spawns', 0.0),
          'children': threads.get('children', 0.0),
          'returned': threads.get('returned', 0.0),
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


def changes(after: pathlib.Path, before: pathlib.Path) -> dict[str, Any]:
  """What differs between two evaluations of the same problems; {} = unfinished.

  Accuracy as cells.paired has it; of CHANGED the mean difference per rollout,
  with a 95 % interval (normal).
  """
  if not all(map(cells.evaluated, (after, before))):
    return {}
  a, b = ({'tokens_total': rows['tokens_deep']} | rows
          for rows in map(cells.problems, (after, before)))
  found, _ = cells.paired([(after, before)])
  out = {'accuracy': {k: found[k] for k in ('n', 'difference', 'ci95')}}
  for key in (k for k in CHANGED if k in a):
    gap = a[key] - b[key]
    half = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
    out[key] = {'difference': float(gap.mean()),
                'ci95': [float(gap.mean() - half), float(gap.mean() + half)]}
  return out


def voted(workdir: pathlib.Path, samples: int) -> dict[str, list[Any]]:
  """k -> [pass@k, its interval, cons@k, its interval]; bootstrap over problems.

  Args:
    workdir: Of an evaluation.
    samples: Of each problem, which lie side by side.
  """
  rows = cells.problems(workdir)
  correct, answer = (rows[k].reshape(-1, samples)
                     for k in ('correct', 'answer'))
  draws = np.random.default_rng(0).integers(
      len(correct), size=(2000, len(correct)))

  def interval(each):
    return [float(each.mean()), *map(float, np.quantile(
        each[draws].mean(1), (0.025, 0.975)))]

  rows = np.arange(len(correct))[:, None]
  return {str(k): [
      interval(np.array([metrics.pass_at_k(correct[i], k) for i in rows])),
      interval(np.array([metrics.cons_at_k(answer[i], correct[i], k)
                         for i in rows]))]
          for k in sorted({samples, *(2**i for i in range(
              samples.bit_length()))})}


def difficulty(n: int) -> np.ndarray:
  """[n] in [0, 1], how hard the first n test problems are.

  The share of first steps after which the target can no longer be made.
  """
  c = apr.get_config('evaluate')
  largest, out = c.data.countdown.largest, []
  parts = factories.parts(config_lib.validate(c))
  for example in parts.data.evaluation('test', n):
    target, numbers = example.chunks[0].split(' from ')
    after = solve.steps(tuple(map(int, numbers.split())), largest)
    out.append(np.mean([not solve.solvable(state, int(target), largest)
                        for _, state in after]))
  return np.array(out)


def by_difficulty(workdirs: list[pathlib.Path]) -> list[dict[str, float]]:
  """Of each third of the problems, the easy ones first; [] = not finished.

  Each with `hard`, the least difficulty in it, and means over problems and
  runs of accuracy, spawns, children, what they returned, and total tokens.
  """
  found = [cells.problems(w) for w in workdirs if cells.evaluated(w)]
  if not found:
    return []
  hard = difficulty(len(found[0]['correct']))
  out = []
  for third in np.array_split(np.argsort(hard, kind='stable'), 3):
    mean = lambda key, third=third: float(np.mean(
        [f[key][third] for f in found if key in f] or [0.0]))
    out.append({'hard': float(hard[third].min()), 'accuracy': mean('correct'),
                'spawns': mean('spawns'), 'children': mean('children'),
                'returned': mean('returned'),
                'tokens_total': float(np.mean(
                    [(f['tokens_total'] if 'tokens_total' in f
                      else f['tokens_deep'])[third] for f in found]))})
  return out


def collect(out: pathlib.Path, seeds: int) -> dict[str, Any]:
  """results.json of what is finished."""
  every = list(range(seeds))
  results = {'commit': cells.commit(), 'context': 192, 'sft': {}, 'rl': {},
             'credit': {}, 'samples': {}, 'sweep': {}, 'by_difficulty': {},
             'rl_minus_sft': {
                 form: found for form in FORMS if (found := cells.paired(
                     (out / f'rl_{form}_s{s}', out / f'sft_{form}_1')
                     for s in every))},
             'changed_by_rl': {
                 name: found for name, after, before in (
                     *((f, f'hot_rl_{f}', f'hot_sft_{f}') for f in FORMS),
                     ('drawn', 'hot_drawn_rl', 'hot_drawn_sft'))
                 if (found := changes(out / after, out / before))},
             'drawn': {name: r for name in ('drawn_sft', 'drawn_rl')
                       if (r := of_runs([out / name], [0]))},
             'hot': {name: r for name in policies(out)
                     if (r := of_runs([out / f'hot_{name}'], [0]))}}
  for form in FORMS:
    results['sft'][form] = of_runs([out / f'sft_{form}_1'], [0])
    for name in ('rl', 'credit'):
      if r := of_runs([out / f'{name}_{form}_s{s}' for s in every], every):
        results[name][form] = r
    for stage in ('sft', 'rl'):
      if rows := [{'budget': budget, **r}
                  for workdir, budget in sweeps(out, form, stage)
                  if (r := of_runs([workdir], [0]))]:
        results['sweep'][f'{stage}_{form}'] = rows
    for stage, workdirs in (
        ('sft', [out / f'sft_{form}_1']),
        ('rl', [out / f'rl_{form}_s{s}' for s in every])):
      if rows := by_difficulty(workdirs):
        results['by_difficulty'][f'{stage}_{form}'] = rows
    workdir = out / f'sft_{form}_{SAMPLES[form]}'
    if many := cells.evaluated(workdir):
      final, ks = many['final'], voted(workdir, SAMPLES[form])
      results['samples'][form] = {
          'n': final['n'], **{f'{name}_at_k{ci}': {
              k: v[i][1:] if ci else v[i][0] for k, v in ks.items()}
                              for i, name in enumerate(('pass', 'cons'))
                              for ci in ('', '_ci95')}, **sizes(final)}
  pairs = [(out / f'rl_parallel_s{s}', out / f'rl_serial_s{s}') for s in every]
  results['parallel_minus_serial'] = {
      'sft': cells.paired([(out / 'sft_parallel_1', out / 'sft_serial_1')]),
      'rl': cells.paired(pairs)}
  return results


def _row(name, r):
  low, high = r['accuracy_ci95']
  return (f'| {name} | {r["accuracy"]:.3f} [{low:.3f}, {high:.3f}] '
          f'| {len(r["seeds"])} | {r["n"]} | {r["tokens_total"]:.0f} '
          f'| {r["tokens_sequential"]:.0f} | {r["tokens_forced"]:.0f} '
          f'| {r["spawns"]:.1f} | {r["children"]:.1f} '
          f'| {r["returned"]:.1f} | {r["end_s"]:.2f} |')


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  lines = ['| policy | accuracy [95 %] | seeds | n | total tokens | sequential '
           '| forced | spawns | children | returned | end (s) |',
           '|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|']
  for name in ('sft', 'rl', 'credit'):
    for form in FORMS:
      if r := results[name].get(form):
        lines.append(_row(f'{form}, {name}', r))
  for group, more in (('drawn', ''), ('hot', ', temperature 1')):
    lines += [_row(name.replace('_', ', ') + more, r)
              for name, r in results[group].items()]
  lines += ['', '| SFT, samples | k | pass@k [95 %] | cons@k [95 %] '
            '| total tokens |', '|---|---:|---:|---:|---:|']
  spell = lambda r, name, k: '{:.3f} [{:.3f}, {:.3f}]'.format(
      r[f'{name}_at_k'][k], *r[f'{name}_at_k_ci95'][k])
  for form, r in results['samples'].items():
    for k in r['pass_at_k']:
      lines.append(f'| {form} | {k} | {spell(r, "pass", k)} '
                   f'| {spell(r, "cons", k)} '
                   f'| {int(k) * r["tokens_total"]:.0f} |')
  lines += ['', '| RL minus SFT, temperature 1 | accuracy [95 %] '
            + ''.join(f'| {k.replace("_", " ")} ' for k in CHANGED) + '|',
            '|---' * (2 + len(CHANGED)) + '|']
  for name, r in results['changed_by_rl'].items():
    lines.append(f'| {name} ' + ''.join(
        '| {:+.3f} [{:+.3f}, {:+.3f}] '.format(
            r[k]['difference'], *r[k]['ci95']) if k in r else '| – '
        for k in ('accuracy', *CHANGED)) + '|')
  lines += ['', '| greedy, on the same problems | difference [95 %] '
            '| by seed |', '|---|---:|---|']
  pairs = {f'{form}, RL minus SFT': found
           for form, found in results['rl_minus_sft'].items()}
  pairs |= {f'parallel minus serial, {stage}': found
            for stage, found in results['parallel_minus_serial'].items()}
  for name, (d, seeds) in ((n, f) for n, f in pairs.items() if f):
    lines.append('| {} | {:+.3f} [{:+.3f}, {:+.3f}] | {} |'.format(
        name, d['difference'], *d['ci95'],
        ', '.join(f'{x:+.3f}' for x in seeds)))
  if results['sweep']:
    lines += _swept(results['sweep'])
  lines += ['', '| first steps that lead nowhere | policy | accuracy '
            '| spawns | children | returned | total tokens |',
            '|---|---|---:|---:|---:|---:|---:|']
  for of, rows in results['by_difficulty'].items():
    for i, r in enumerate(rows):
      to = rows[i + 1]['hard'] if i + 1 < len(rows) else 1.0
      lines.append(
          f'| {r["hard"]:.2f} to {to:.2f} | {of.replace("_", ", ")} '
          f'| {r["accuracy"]:.3f} | {r["spawns"]:.1f} | {r["children"]:.1f} '
          f'| {r["returned"]:.1f} | {r["tokens_total"]:.0f} |')
  return '\n'.join(lines) + '\n'


def _swept(sweep: dict[str, Any]) -> list[str]:
  lines = ['', '| budget | of | accuracy [95 %] | total tokens '
            '| sequential | children | end (s) |',
            '|---|---|---:|---:|---:|---:|---:|']
  for of, rows in sweep.items():
    for r in rows:
      name = ', '.join(BUDGETS[k].format(n) for k, n in r['budget'].items())
      low, high = r['accuracy_ci95']
      lines.append(
          f'| {name} | {of.replace("_", ", ")} | {r["accuracy"]:.3f} '
          f'[{low:.3f}, {high:.3f}] | {r["tokens_total"]:.0f} '
          f'| {r["tokens_sequential"]:.0f} | {r["children"]:.1f} '
          f'| {r["end_s"]:.2f} |')
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--only', default=','.join(NAMES))
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/apr_cells'))
  args = parser.parse_args()
  only = cells.chosen(parser, args.only, NAMES)
  if 'sft' in only:
    run_sft(args.out)
  for seed in range(args.seeds):
    for name in ('rl', 'credit'):
      if name in only:
        run_rl(args.out, seed, credit=name == 'credit')
        write(args.out, args.seeds)
  if 'drawn' in only:
    run_drawn(args.out)
  if 'hot' in only:
    run_hot(args.out)
  if 'sweep' in only:
    run_sweeps(args.out)
  print(write(args.out, args.seeds))


def write(out: pathlib.Path, seeds: int) -> str:
  """Writes what the module's text says; the table."""
  results = collect(out, seeds)
  (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
  (HERE / 'table.md').write_text(text := table(results))
  figures.curves(results, HERE / 'curves.png')
  return text


if __name__ == '__main__':
  main()
