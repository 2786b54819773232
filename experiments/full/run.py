"""SFT, GRPO, HRPO and read-then-think on the harder setting, over seeds.

  python -m experiments.full.run [--seeds=3] [--steps=60] [--out=runs/full]

GRPO and read-then-think stop after generating as many tokens as HRPO of the
same seed. Each cell is one run of the main program; finished cells are not run
again. Writes results.json, table.md and accuracy_latency.png beside this file.
"""

import argparse
import json
import pathlib

import numpy as np

from experiments import cells

HERE = pathlib.Path(__file__).parent
METHODS = {'sft': 'StreamingThinker-style SFT', 'grpo': 'AdaSR, GRPO',
           'hrpo': 'AdaSR, HRPO', 'rtt_sft': 'Read then think, SFT',
           'rtt': 'Read then think, GRPO'}
# Configs of the reinforcement-learning methods; HRPO sets the token budget.
CONFIGS = {'hrpo': 'hrpo', 'grpo': 'grpo', 'rtt': 'read_then_think'}
FLAGS = ('--config.eval.every=0', '--config.eval.at_start=False',
         '--config.log.tensorboard=False')
# The values that this compares; the configs have since got others (../front).
VALUES = ('--config.data.prompts=8', '--config.rollout.samples=12',
          '--config.advantage.normaliser=std',
          '--config.reward.think_weight=0.1')
# Chosen by choose.py: the most accurate on validation.
CHOSEN = {'hrpo': ('--config.optim.schedule=constant',),
          'grpo': ('--config.optim.learning_rate=1e-4',),
          'rtt': ('--config.optim.learning_rate=1e-4',)}


def warm_start(out: pathlib.Path, method: str, seed: int) -> pathlib.Path:
  """Where RL starts: the supervised run of the same layout and seed."""
  sft, layout = (('rtt_sft', ',layout=read_then_think') if method == 'rtt'
                 else ('sft', ''))
  workdir = out / f'{sft}_s{seed}'
  cells.run(workdir, f'sft.py:full,seed={seed}{layout}', *FLAGS)
  return workdir / 'model.safetensors'


def run_seed(out: pathlib.Path, seed: int, steps: int) -> None:
  """All cells of one seed."""
  length = (f'--config.steps={steps}',)
  for method, config in CONFIGS.items():
    workdir = out / f'{method}_s{seed}'
    cells.run(workdir, f'{config}.py:full,seed={seed}', *FLAGS, *VALUES,
              *CHOSEN[method], *length,
              f'--config.init={warm_start(out, method, seed)}')
    if method == 'hrpo':
      length = (f'--config.token_budget={cells.generated(workdir)}',
                f'--config.steps={4 * steps}')


def collect(out: pathlib.Path, seeds: int) -> dict:
  """Every method over the finished seeds, and HRPO minus each, paired."""
  results = {}
  for method, label in METHODS.items():
    finished = []
    for seed in range(seeds):
      workdir = out / f'{method}_s{seed}'
      if evals := cells.evaluated(workdir):
        final = evals['final']
        finished.append({
            'seed': seed, 'n': final['n'], 'accuracy': final['accuracy'],
            'accuracy_ci95': final['accuracy_ci95'],
            'tokens_total': final['tokens_total'],
            'tokens_deep': final['tokens_deep'],
            'end_s': final['latency_s']['end'],
            'skip_precision': final['skip_precision'],
            'skip_recall': final['skip_recall'],
            'format_rate': final['format_rate'],
            'generated': cells.generated(workdir)})
    results[method] = {'label': label, 'cells': finished}
    if method != 'hrpo' and (found := cells.paired(
        (out / f'hrpo_s{seed}', out / f'{method}_s{seed}')
        for seed in range(seeds))):
      (results[method]['hrpo_minus'],
       results[method]['hrpo_minus_by_seed']) = found
  return results


def table(results: dict) -> str:
  """The results as Markdown."""
  head = ('| method | seeds | accuracy (over seeds) | HRPO minus it, paired '
          '[95 %] | total tokens | deep tokens | end latency (s) | '
          'skip precision | skip recall |')
  lines = [head, '| --- |' + ' ---: |' * 8]
  for r in results.values():
    c, pair = r['cells'], r.get('hrpo_minus')
    if not c:
      continue
    lines.append('| ' + ' | '.join((
        r['label'], str(len(c)), cells.spread(c, 'accuracy', 3),
        '–' if pair is None else '{:+.3f} [{:+.3f}, {:+.3f}]'.format(
            pair['difference'], *pair['ci95']),
        cells.spread(c, 'tokens_total', 1), cells.spread(c, 'tokens_deep', 1),
        cells.spread(c, 'end_s', 2), cells.spread(c, 'skip_precision', 2),
        cells.spread(c, 'skip_recall', 2))) + ' |')
  return '\n'.join(lines) + '\n'


def figure(results: dict, path: pathlib.Path) -> None:
  """Accuracy against end latency: one point per seed, the mean outlined."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  colours = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#555555')
  fig, axis = plt.subplots(figsize=(7.4, 4.2), layout='constrained')
  for colour, marker, r in zip(colours, 'os^Dv', results.values()):
    if not r['cells']:
      continue
    x, y = ([c[k] for c in r['cells']] for k in ('end_s', 'accuracy'))
    bars = np.abs(np.array([c['accuracy_ci95'] for c in r['cells']]).T - y)
    axis.errorbar(x, y, bars, fmt=marker, color=colour, alpha=0.45, ms=6,
                  capsize=2, lw=1)
    axis.plot(np.mean(x), np.mean(y), marker, color=colour, ms=8,
              mec='black', label=r['label'])
  axis.set_xscale('log')
  axis.set_xticks([0.5, 1, 2, 4], ['0.5', '1', '2', '4'])
  axis.set_xticks([], minor=True)
  axis.set_xlabel('seconds from the last sentence to the end (log)')
  axis.set_ylabel('accuracy (95 % interval per seed)')
  axis.grid(alpha=0.3)
  axis.spines[['top', 'right']].set_visible(False)
  fig.legend(loc='outside right upper', frameon=False)
  fig.savefig(path, dpi=150)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=60)
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/full'))
  args = parser.parse_args()
  for seed in range(args.seeds):
    run_seed(args.out, seed, args.steps)
    results = collect(args.out, args.seeds)
    (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    (HERE / 'table.md').write_text(table(results))
    figure(results, HERE / 'accuracy_latency.png')
  print(table(results))


if __name__ == '__main__':
  main()
