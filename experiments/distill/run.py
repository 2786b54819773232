"""On-policy distillation of the warm start: teachers, rewards, controls.

  python -m experiments.distill.run [--seeds=3] [--only=NAME,...] [--smoke]

Teachers are trained by SFT on perfect traces, once; each cell is one run of the
main program on the demo's problems for 100 steps. What is finished is not run
again, and a killed run goes on. First groups A, D and E, seed after seed, then
B and C. Writes results.json and table.md beside this file, after every seed.

Groups:
  A  the power reward from each teacher
  B  other rewards and exponents, from BEST
  C  divergences over the whole vocabulary, from BEST
  D  what distillation is compared with, and HRPO with a teacher
  E  HRPO, the power reward from BEST and SFT again, evaluated on test every
     five steps: how soon does each have 0.85 with at most 30 tokens?

A name of --only is a group, a teacher or a cell. With --smoke every run takes
two steps, and results are written into the folder of the runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from adasr_jax.learn.distill import SLOTS
from adasr_jax.run import logs
from adasr_jax.run import metrics
from experiments import cells

HERE = pathlib.Path(__file__).parent
WARM_START = 'experiments/warm_start/model.safetensors'
FLAGS = ('--config.eval.at_start=False', '--config.log.tensorboard=False',
         '--config.eval.periodic_examples=500')
# Four times the student's parameters.
LARGE = ('--config.model.num_layers=6', '--config.model.d_model=160',
         '--config.model.d_ff=432', '--config.model.head_dim=40',
         '--config.optim.learning_rate=2e-3')
# As the supervised runs of experiments/full, which begin there too.
SAME = (f'--config.init={WARM_START}', '--config.steps=400',
        '--config.eval.every=200', '--config.optim.learning_rate=1e-3')
# By validation at step 75, seed 0: 0.888, the others' students 0.862 to 0.872.
BEST = 'same_stream'


@dataclasses.dataclass(frozen=True)
class Teacher:
  """One that is trained here: by SFT on perfect traces.

  Attributes:
    reads: See sft.reads.
    flags: Further flags of the main program.
  """
  reads: str
  flags: tuple[str, ...]


TEACHERS = {'same_stream': Teacher('stream', SAME),
            'same_foresight': Teacher('all', SAME),
            'large_stream': Teacher('stream', LARGE),
            'large_foresight': Teacher('all', LARGE)}
TEACHER_SEED = 9  # no cell is trained on its problems
HRPO = 'hrpo'  # the teacher that is the cell of this name, seed 0


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run per seed.

  Attributes:
    name: Of its workdirs.
    groups: Letters.
    config: File in configs/.
    argument: Of that file, without seed and teacher.
    flags: Further flags of the main program.
    teacher: A key of TEACHERS, or HRPO; '' = none.
    program: See cells.run.
  """
  name: str
  groups: str
  config: str = 'distill.py'
  argument: str = ''
  flags: tuple[str, ...] = ()
  teacher: str = ''
  program: str = 'adasr_jax.main'


IMITATE = 'experiments.distill.imitate'
OFTEN = ('--config.eval.every=5', '--config.eval.periodic_split=test',
         '--config.eval.periodic_examples=1000')
GOAL = 0.85, 30.0  # accuracy at least, tokens at most


def supervised(name: str, rate: float, prompts: int, *flags: str,
               groups: str = 'D', **more: str) -> Cell:
  """SFT of the student on perfect traces, one per problem."""
  return Cell(name, groups, 'sft.py', 'traces=perfect', (
      f'--config.init={WARM_START}', '--config.steps=100',
      '--config.eval.every=25', '--config.optim.warmup=10',
      f'--config.optim.learning_rate={rate}',
      f'--config.data.prompts={prompts}', *flags), **more)


def _cells() -> list[Cell]:
  """All, the most important first; each once, whatever its groups."""
  def power(alpha, teacher, groups):
    return Cell(f'power{alpha:g}_{teacher}', groups,
                argument=f'alpha={alpha}', teacher=teacher)
  def best(name, groups, *flags):
    return Cell(f'{name}_{BEST}', groups, flags=flags, teacher=BEST)
  return [
      Cell(HRPO, 'D', 'hrpo.py'),
      # As many targets per step as the others have, 96; then as many problems.
      supervised('sft', 2e-4, 96), supervised('sft_fast', 1e-3, 96),
      supervised('sft_few', 1e-3, 8),
      # On rollouts of the teacher instead of traces.
      supervised(f'sft_rollouts_{BEST}', 1e-3, 96, teacher=BEST,
                 program=IMITATE),
      *(power(5.0, t, 'AB' if t == BEST else 'A')
        for t in dict.fromkeys((BEST, HRPO, *TEACHERS))),
      best('mixed', 'D', '--config.distill.advantage_weight=1.0'),
      Cell('hrpo_often', 'E', 'hrpo.py', flags=OFTEN),
      best('power5_often', 'E', *OFTEN),
      supervised('sft_often', 1e-3, 96, *OFTEN, groups='E'),
      best('log_ratio', 'B', '--config.distill.reward=log_ratio'),
      *(power(a, BEST, 'B') for a in (0.5, 1.0, 50.0)),
      best('log_ratio_clip', 'B', '--config.distill.reward=log_ratio_clip'),
      best('log_ratio_tanh', 'B', '--config.distill.reward=log_ratio_tanh'),
      best('reverse_kl', 'C', '--config.distill.divergence=reverse_kl'),
      best('bregman5', 'C', '--config.distill.divergence=bregman'),
      *(power(a, BEST, 'B') for a in (0.1, 10.0)),
      best('forward_kl', 'C', '--config.distill.divergence=forward_kl'),
      best('bregman1', 'C', '--config.distill.divergence=bregman',
           '--config.distill.alpha=1.0'),
      best('top_k', 'C', '--config.distill.divergence=top_k')]


CELLS = _cells()
# Cells that are compared on the same problems, seed by seed.
PAIRS = [(a, f'power5_{BEST}') for a in (
    HRPO, 'sft_fast', f'mixed_{BEST}', 'power5_hrpo', 'power5_same_foresight',
    'power5_large_stream', 'power5_large_foresight')] + [
        ('sft_fast', HRPO), (HRPO, 'sft_few'), ('sft_fast', 'sft_few'),
        ('sft_fast', f'sft_rollouts_{BEST}'), (f'mixed_{BEST}', HRPO),
        ('power5_hrpo', 'power5_same_foresight'),
        ('power5_large_foresight', 'power5_large_stream')]


@dataclasses.dataclass(frozen=True)
class Runs:
  """Where the runs are.

  Attributes:
    out: Their folder.
    smoke: Whether they take two steps.
  """
  out: pathlib.Path
  smoke: bool

  def teacher(self, name: str) -> pathlib.Path:
    """Its workdir."""
    return (self.out / f'{HRPO}_s0' if name == HRPO
            else self.out / f'teacher_{name}')

  def cell(self, cell: Cell, seed: int) -> pathlib.Path:
    """Its workdir."""
    return self.out / f'{cell.name}_s{seed}'

  def _run(self, workdir, config, arguments, flags, program='adasr_jax.main'):
    arguments = [*filter(None, arguments), *['smoke'] * self.smoke]
    more = ('--config.eval.every=0', '--config.steps=2') if self.smoke else ()
    if self.smoke:  # it sets sizes, which the flags would change again
      flags = [f for f in flags if '.prompts=' not in f]
    cells.run(workdir, f'{config}:{",".join(arguments)}', *FLAGS, *flags,
              *more, program=program)

  def run_teacher(self, name: str) -> None:
    """Trains a teacher, unless it is finished."""
    if name == HRPO:
      self.run_cell(next(c for c in CELLS if c.name == HRPO), 0)
    else:
      t = TEACHERS[name]
      self._run(self.teacher(name), 'sft.py',
                ['traces=perfect', f'reads={t.reads}',
                 f'seed={TEACHER_SEED}'],
                (*t.flags, f'--config.name=Teacher {name}'))

  def run_cell(self, cell: Cell, seed: int) -> None:
    """Runs a cell, its teacher before it, unless they are finished."""
    arguments, flags = [cell.argument, f'seed={seed}'], [*cell.flags]
    if cell.teacher:
      self.run_teacher(cell.teacher)
      teacher = self.teacher(cell.teacher)
      if cell.program == IMITATE:
        flags += ['--config.method=imitate',
                  f'--config.teacher.init={teacher}']
      else:
        arguments.append(f'teacher={teacher}')
        if cell.teacher != HRPO:
          arguments.append(f'reads={TEACHERS[cell.teacher].reads}')
    self._run(self.cell(cell, seed), cell.config, arguments, flags,
              cell.program)

  def held_out(self) -> None:
    """Compares what a teacher has judged with it; see heldout.py."""
    todo = [str(w) for c in CELLS if c.teacher and c.program != IMITATE
            for w in sorted(self.out.glob(f'{c.name}_s[0-9]*'))
            if cells.evaluated(w) and not (w / 'teacher.json').exists()]
    if todo:
      subprocess.run([sys.executable, '-m', 'experiments.distill.heldout',
                      *todo], check=True)


# ---------------------------------------------------------------- results
def of_cell(cell: Cell, runs: Runs, seeds: int) -> dict[str, Any] | None:
  """A row of results.json, over the finished seeds; None = there is none.

  Its keys: accuracy and its interval (of the problems, with the seeds as
  samples of each), tokens_total, end_s of the test split; grad_norm, the
  median over steps of the mean over seeds, and the largest of all;
  entropy_end, nats, mean of the last ten steps; seconds, of a run's steps but
  the first (with what later ones compile); step_s, the median step;
  teacher_seconds, the first of these of its teacher; validation, accuracy by
  step (of group E test in its place); reward_peak, the largest |reward|;
  reward_variance, medians over steps of the means over seeds, by phase and slot
  of the target; steps_to_goal, the first step of each seed whose periodic
  evaluation is as accurate and as short as GOAL says, None = there is none;
  seconds_to_goal, the sum of its steps up to that but the first; held_out, see
  heldout.py.
  """
  found = {seed: evals for seed in range(seeds)
           if (evals := cells.evaluated(runs.cell(cell, seed)))}
  if not found:
    return None
  workdirs = [runs.cell(cell, seed) for seed in found]
  finals = [e['final'] for e in found.values()]
  mean = lambda values: float(np.mean(list(values)))
  correct = np.stack([cells.problems(w)['correct'] for w in workdirs], 1)
  norms = _stacked(workdirs, 'grad_norm')
  peaks = _stacked(workdirs, 'teacher_reward_peak')
  often = set(OFTEN) <= set(cell.flags)
  out = {
      'name': cell.name, 'groups': cell.groups, 'teacher': cell.teacher,
      'seeds': list(found), 'accuracy': float(correct.mean()),
      'accuracy_ci95': metrics.accuracy_interval(correct),
      'accuracy_per_seed': [f['accuracy'] for f in finals],
      'tokens_total': mean(f['tokens_total'] for f in finals),
      'tokens_deep': mean(f['tokens_deep'] for f in finals),
      'end_s': mean(f['latency_s']['end'] for f in finals),
      'skip_precision': mean(f['skip_precision'] for f in finals),
      'skip_recall': mean(f['skip_recall'] for f in finals),
      'grad_norm': float(np.nanmedian(np.nanmean(norms, 0))),
      'grad_norm_max': float(np.nanmax(norms)),
      'entropy_end': float(np.nanmean(
          _stacked(workdirs, 'entropy')[:, -10:])),
      'seconds': mean(map(cells.seconds, workdirs)),
      'step_s': float(np.nanmedian(_stacked(workdirs, 'time/step'))),
      'teacher_seconds': (cells.seconds(runs.teacher(cell.teacher))
                          if cell.teacher else 0.0),
      'test' if often else 'validation': _curve(workdirs),
      'reward_peak': (None if np.isnan(peaks).all()
                      else float(np.nanmax(peaks)))}
  out['steps_to_goal'] = goals = [to_goal(w) for w in workdirs]
  if often:
    out['seconds_to_goal'] = [
        n and float(cells.series(w, 'time/step')[1:n].sum())
        for w, n in zip(workdirs, goals)]
  out['reward_variance'] = {}
  for part in ('streaming', 'deep', *(f'slots_{n}' for n, *_ in SLOTS)):
    v = _stacked(workdirs, f'teacher_reward_variance/{part}')
    v = v[:, ~np.isnan(v).all(0)]  # steps that have such targets
    if v.size:
      out['reward_variance'][part] = float(np.median(np.nanmean(v, 0)))
  held = [h['final'] for w in workdirs
          if (h := logs.read_json(w / 'teacher.json'))]
  out['held_out'] = {k: mean(h[k] for h in held)
                     for k in (held[0] if held else ())
                     if all(h[k] is not None for h in held)}
  return out


def to_goal(workdir: pathlib.Path) -> int | None:
  """The first evaluated step at which a run has GOAL; None = none."""
  return next((step for step, accuracy, tokens in _evaluations(workdir)
               if accuracy >= GOAL[0] and tokens <= GOAL[1]), None)


def _stacked(workdirs, key):
  """[seeds, steps] of a metric; NaN where a run has stopped before others."""
  rows = [cells.series(w, key) for w in workdirs]
  length = max(map(len, rows))
  return np.stack([np.pad(r, (0, length - len(r)), constant_values=np.nan)
                   for r in rows])


def _evaluations(workdir) -> list[tuple[int, float, float]]:
  """Step, accuracy and tokens of each periodic evaluation."""
  return [(r['step'], r['eval/accuracy'], r['eval/tokens_total'])
          for r in logs.read_lines(workdir / 'metrics.jsonl')
          if r['kind'] == 'eval']


def _curve(workdirs) -> dict[str, float]:
  """Mean accuracy over seeds at each periodic evaluation, by step."""
  found = {}
  for w in workdirs:
    for step, accuracy, _ in _evaluations(w):
      found.setdefault(str(step), []).append(accuracy)
  return {k: float(np.mean(v)) for k, v in found.items()}


def of_teacher(name: str, runs: Runs) -> dict[str, Any] | None:
  """What a teacher can do, and what it cost; None = it is not finished."""
  workdir = runs.teacher(name)
  if (evals := cells.evaluated(workdir)) is None:
    return None
  final = evals['final']
  config = logs.read_json(workdir / 'config.json')
  return {'name': name, 'reads': config['sft']['reads'],
          'layers': config['model']['num_layers'],
          'd_model': config['model']['d_model'],
          'steps': config['steps'], 'accuracy': final['accuracy'],
          'accuracy_ci95': final['accuracy_ci95'],
          'tokens_total': final['tokens_total'],
          'end_s': final['latency_s']['end'],
          'validation': _curve([workdir]),
          'seconds': cells.seconds(workdir)}


def collect(runs: Runs, seeds: int, before: dict[str, Any]) -> dict[str, Any]:
  """results.json of what is finished.

  Args:
    runs: Where it is.
    seeds: How many count.
    before: results.json as it was. An entry stays where the folder of the runs
      has fewer of its seeds, or no run of it.
  """
  commit = cells.commit()
  old = {kind: {x['name']: {'commit': before['commit']} | x
                for x in before.get(kind, ())}
         for kind in ('teachers', 'cells', 'paired')}
  def newest(kind, name, entry):
    """With the commit at which it came out so."""
    was = old[kind].get(name)
    new = entry and json.loads(json.dumps({'commit': commit} | entry))
    same = was and new and was == new | {'commit': was['commit']}
    fewer = (was and new
             and len(new.get('seeds', ())) < len(was.get('seeds', ())))
    return was if same or fewer or not new else new

  teachers = [newest('teachers', n, of_teacher(n, runs)) for n in TEACHERS]
  rows = [newest('cells', x.name, of_cell(x, runs, seeds)) for x in CELLS]
  differences = [newest('paired', f'{a} - {b}', _paired(a, b, runs, seeds))
                 for a, b in PAIRS]
  return {'commit': commit, 'teachers': [t for t in teachers if t],
          'cells': [r for r in rows if r],
          'paired': [d for d in differences if d]}


def _paired(a: str, b: str, runs: Runs, seeds: int) -> dict[str, Any] | None:
  """Accuracy of cell a minus that of b on the same test problems."""
  one, other = (next(c for c in CELLS if c.name == n) for n in (a, b))
  both = [s for s in range(seeds) if all(
      cells.evaluated(runs.cell(c, s)) for c in (one, other))]
  found = cells.paired((runs.cell(one, s), runs.cell(other, s)) for s in both)
  return found and {'name': f'{a} - {b}', 'seeds': both, **found[0],
                    'by_seed': found[1]}


def _lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  head = list(head)
  lines = [head, ['---'] + ['---:'] * (len(head) - 1), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def table(results: dict[str, Any]) -> str:
  """The results as Markdown: teachers, then cells."""
  interval = lambda r: '{:.3f} [{:.3f}, {:.3f}]'.format(
      r['accuracy'], *r['accuracy_ci95'])
  teachers = _lines(
      ('teacher', 'layers', 'd_model', 'reads', 'steps', 'seconds',
       'accuracy [95 %]', 'tokens', 'end (s)'),
      ((t['name'], str(t['layers']), str(t['d_model']), t['reads'],
        str(t['steps']), f'{t["seconds"]:.0f}', interval(t),
        f'{t["tokens_total"]:.1f}', f'{t["end_s"]:.2f}')
       for t in results['teachers']))
  held = lambda c, key: ' / '.join(
      f'{v:.3f}' if (v := c['held_out'].get(f'{key}/{phase}')) is not None
      else '–' for phase in ('streaming', 'deep'))
  variance = lambda c: ' / '.join(
      f'{v:.2g}' if (v := c.get('reward_variance', {}).get(f'slots_{slots}'))
      is not None else '–' for slots in ('0_7', '32_63'))
  rows = _lines(
      ('cell', 'groups', 'seeds', 'accuracy [95 %]', 'per seed', 'tokens',
       'end (s)', 'gradient norm (largest)',
       'variance of rewards, slots 0 to 7 / 32 to 63', 'entropy at the end',
       'median step (s)', 'seconds', "teacher's seconds",
       'KL(student, teacher)', 'mass on top token'),
      ((c['name'], c['groups'], str(len(c['seeds'])), interval(c),
        ', '.join(f'{a:.3f}' for a in c['accuracy_per_seed']),
        f'{c["tokens_total"]:.1f}', f'{c["end_s"]:.2f}',
        f'{c["grad_norm"]:.3g} ({c["grad_norm_max"]:.3g})', variance(c),
        f'{c["entropy_end"]:.3f}', f'{c["step_s"]:.2f}', f'{c["seconds"]:.0f}',
        f'{c["teacher_seconds"]:.0f}', held(c, 'reverse_kl'),
        held(c, 'top_mass_1')) for c in results['cells']))
  paired = _lines(
      ('on the same test problems', 'seeds', 'difference [95 %]', 'by seed'),
      ((d['name'], str(len(d['seeds'])),
        '{:+.3f} [{:+.3f}, {:+.3f}]'.format(d['difference'], *d['ci95']),
        ', '.join(f'{x:+.3f}' for x in d['by_seed']))
       for d in results.get('paired', ())))
  soon = _lines(
      ('group E', 'steps to the goal, by seed', 'seconds', 'median step (s)'),
      ((c['name'], *(', '.join('–' if x is None else f'{x:{f}}'
                               for x in c[key])
                     for key, f in (('steps_to_goal', 'd'),
                                    ('seconds_to_goal', '.1f'))),
        f'{c["step_s"]:.2f}')
       for c in results['cells'] if 'seconds_to_goal' in c))
  return f'{teachers}\n\n{rows}\n\n{paired}\n\n{soon}\n'


def write(runs: Runs, seeds: int) -> dict[str, Any]:
  """Writes results.json and table.md; the results."""
  folder = runs.out if runs.smoke else HERE
  results = collect(runs, seeds,
                    logs.read_json(folder / 'results.json') or {})
  (folder / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
  (folder / 'table.md').write_text(table(results))
  return results


# -------------------------------------------------------------------- main
def chosen(only: str) -> tuple[list[str], list[Cell]]:
  """Teachers and cells that --only names; '' = no teacher alone, all cells.

  Raises:
    ValueError: A name is unknown.
  """
  if not only:
    return [], CELLS
  names = only.split(',')
  known = {*'ABCDE', *TEACHERS, *(c.name for c in CELLS)}
  if unknown := [n for n in names if n not in known]:
    raise ValueError(f'only={only!r}: {unknown[0]!r} is not one of '
                     f'{", ".join(sorted(known))}')
  return ([n for n in TEACHERS if n in names],
          [c for c in CELLS if {c.name, *c.groups} & set(names)])


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--only', default='')
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/distill'))
  parser.add_argument('--smoke', action='store_true')
  args = parser.parse_args()
  try:
    teachers, some = chosen(args.only)
  except ValueError as e:
    parser.error(str(e))
  if args.smoke:
    args.out = args.out.with_name(f'{args.out.name}_smoke')
  runs, failed = Runs(args.out, args.smoke), []
  for name in teachers:
    runs.run_teacher(name)
  first = [c for c in some if set('ADE') & set(c.groups)]
  for part in (first, [c for c in some if c not in first]):
    for seed in range(args.seeds if part else 0):
      for cell in part:
        try:
          runs.run_cell(cell, seed)
        except subprocess.CalledProcessError as e:
          # A reward without bound may well end in NaN, which is a result.
          failed.append(f'{cell.name}, seed {seed}: exit status '
                        f'{e.returncode}')
      try:
        runs.held_out()
      except subprocess.CalledProcessError as e:
        failed.append(f'heldout: exit status {e.returncode}')
      write(runs, args.seeds)
  print(table(write(runs, args.seeds)))
  if failed:
    sys.exit('\n'.join(['error: these have failed:', *failed]))


if __name__ == '__main__':
  main()
