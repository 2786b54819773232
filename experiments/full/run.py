"""SFT, GRPO, HRPO and read-then-think on the harder setting, by seeds.

  python -m experiments.full.run [--seeds=3] [--steps=60] [--out=runs/full]

Each cell is a run of the main program in a workdir of its own, so a stopped
experiment goes on where it was. GRPO and read-then-think stop once they have
generated as many tokens as HRPO of the same seed. Writes results.json,
table.md and accuracy_latency.png beside this file.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

from adasr_jax.run import metrics

HERE = pathlib.Path(__file__).parent
METHODS = {'sft': 'StreamingThinker-style SFT', 'grpo': 'AdaSR, GRPO',
           'hrpo': 'AdaSR, HRPO', 'rtt_sft': 'Read then think, SFT',
           'rtt': 'Read then think, GRPO'}
# Configs of the methods that learn by reinforcement; HRPO sets the budget.
CONFIGS = {'hrpo': 'hrpo', 'grpo': 'grpo', 'rtt': 'read_then_think'}
FLAGS = ('--config.eval.every=0', '--config.eval.at_start=False',
         '--config.log.tensorboard=False')


def cell(out: pathlib.Path, name: str, config: str, *flags: str) -> dict:
  """Runs a cell unless it is done; its eval.json."""
  workdir = out / name
  done = workdir / 'eval.json'
  if not done.exists() or 'final' not in json.loads(done.read_text()):
    print(f'--- {name}', flush=True)
    subprocess.run([sys.executable, '-m', 'adasr_jax.main',
                    f'--config=configs/{config}', f'--workdir={workdir}',
                    *flags], check=True)
  return json.loads(done.read_text())


def generated(workdir: pathlib.Path) -> int:
  """Tokens that a finished run generated while it trained."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return int(max(json.loads(x).get('tokens/generated') or 0 for x in lines))


def warm_start(out: pathlib.Path, method: str, seed: int) -> pathlib.Path:
  """Where RL starts: the supervised run of its layout and seed."""
  sft, layout = (('rtt_sft', ',layout=read_then_think') if method == 'rtt'
                 else ('sft', ''))
  name = f'{sft}_s{seed}'
  cell(out, name, f'sft.py:full,seed={seed}{layout}', *FLAGS)
  return out / name / 'model.safetensors'


def run_seed(out: pathlib.Path, seed: int, steps: int) -> None:
  """All cells of a seed."""
  length = (f'--config.steps={steps}',)
  for method, config in CONFIGS.items():
    name = f'{method}_s{seed}'
    cell(out, name, f'{config}.py:full,seed={seed}', *FLAGS, *length,
         f'--config.init={warm_start(out, method, seed)}')
    if method == 'hrpo':
      length = (f'--config.token_budget={generated(out / name)}',
                f'--config.steps={4 * steps}')


def problems(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Columns of a run's problems.jsonl."""
  rows = [json.loads(x)
          for x in (workdir / 'problems.jsonl').read_text().splitlines()]
  return {k: np.array([r[k] for r in rows]) for k in rows[0]}


def collect(out: pathlib.Path, seeds: int) -> dict:
  """Every method over the finished seeds, and HRPO against each, paired."""
  results = {}
  for method, label in METHODS.items():
    cells = []
    for seed in range(seeds):
      path = out / f'{method}_s{seed}' / 'eval.json'
      if path.exists() and 'final' in (e := json.loads(path.read_text())):
        final = e['final']
        cells.append({
            'seed': seed, 'n': final['n'], 'accuracy': final['accuracy'],
            'accuracy_ci95': final['accuracy_ci95'],
            'tokens_total': final['tokens_total'],
            'tokens_deep': final['tokens_deep'],
            'end_s': final['latency_s']['end'],
            'skip_precision': final['skip_precision'],
            'skip_recall': final['skip_recall'],
            'format_rate': final['format_rate'],
            'generated': generated(path.parent)})
    results[method] = {'label': label, 'cells': cells}
  for method in METHODS:
    pairs = []
    for seed in range(seeds):
      a, b = out / f'hrpo_s{seed}', out / f'{method}_s{seed}'
      if all((x / 'problems.jsonl').exists() for x in (a, b)):
        a, b = problems(a), problems(b)
        assert np.array_equal(a['id'], b['id'])
        pairs.append((a['correct'], b['correct']))
    if pairs and method != 'hrpo':
      results[method]['hrpo_minus'] = metrics.paired(
          *(np.concatenate(x) for x in zip(*pairs)))
      results[method]['hrpo_minus_by_seed'] = [
          metrics.paired(*p)['difference'] for p in pairs]
  return results


def spread(cells: list[dict], key: str, digits: int) -> str:
  """'mean (low-high over seeds)'."""
  values = [c[key] for c in cells if c[key] is not None]
  if not values:
    return '–'
  f = f'.{digits}f'
  return (f'{np.mean(values):{f}} ({min(values):{f}}–{max(values):{f}})')


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
        r['label'], str(len(c)), spread(c, 'accuracy', 3),
        '–' if pair is None else '{:+.3f} [{:+.3f}, {:+.3f}]'.format(
            pair['difference'], *pair['ci95']),
        spread(c, 'tokens_total', 1), spread(c, 'tokens_deep', 1),
        spread(c, 'end_s', 2), spread(c, 'skip_precision', 2),
        spread(c, 'skip_recall', 2))) + ' |')
  return '\n'.join(lines) + '\n'


def figure(results: dict, path: pathlib.Path) -> None:
  """Accuracy against end latency: a point a seed, the mean as a cross."""
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
  axis.set_ylabel('accuracy (95 % interval a seed)')
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
