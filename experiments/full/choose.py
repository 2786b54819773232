"""Chooses the full experiment's hyper-parameters on the validation split.

  python -m experiments.full.choose [--out=runs/full]

Changes one of the demo's values at a time, for each method: seed 0, 60 steps
from the supervised run of that seed, greedy accuracy on 2,000 validation
problems. The value with the highest accuracy is chosen, or the demo's own
where no other is better by one point. Finished cells are not run again;
writes validation.md beside this file.
"""

import argparse
import pathlib

from experiments import cells
from experiments.full import run

LEARNING_RATE = ('optim.learning_rate=1e-4', 'optim.learning_rate=4e-4',
                 'optim.schedule=constant')
CHANGES = {
    'hrpo': (*LEARNING_RATE, 'reward.think_weight=0.05',
             'reward.think_weight=0.2', 'advantage.lam=0.25',
             'advantage.lam=0.75'),
    'grpo': LEARNING_RATE,
    'rtt': LEARNING_RATE,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/full'))
  out = parser.parse_args().out
  lines = ['| method | change | accuracy [95 %] | total tokens | '
           'end latency (s) |', '| --- | --- | ---: | ---: | ---: |']
  for method, changes in CHANGES.items():
    init = run.warm_start(out, method, seed=0)
    for change in ('', *changes):
      final = cells.run(
          out / 'choose' / f'{method}{"_" * bool(change)}{change}',
          f'{run.CONFIGS[method]}.py:full', f'--config.init={init}',
          *run.FLAGS, *run.VALUES, '--config.steps=60',
          '--config.eval.split=validation',
          '--config.eval.examples=2000',
          *(f'--config.{x}' for x in [change] if x))['final']
      lines.append('| {} | {} | {:.3f} [{:.3f}, {:.3f}] | {:.1f} | {:.2f} |'
                   .format(run.METHODS[method], change or '–',
                           final['accuracy'], *final['accuracy_ci95'],
                           final['tokens_total'], final['latency_s']['end']))
      (run.HERE / 'validation.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
