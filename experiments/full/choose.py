"""Hyper-parameters of the full experiment, chosen on the validation split.

  python -m experiments.full.choose [--out=runs/choose] [--init=...]

One change at a time from the demo's values, the same learning rates for HRPO
and GRPO; seed 0, 60 steps, greedy accuracy on 1,000 validation problems.
Resumable cell by cell; writes validation.md beside this file.
"""

import argparse
import pathlib

from experiments.full.run import HERE, cell

GRID = {
    'hrpo': ('hrpo', ()),
    'hrpo_lr1': ('hrpo', ('optim.learning_rate=1e-4',)),
    'hrpo_lr4': ('hrpo', ('optim.learning_rate=4e-4',)),
    'hrpo_lam25': ('hrpo', ('advantage.lam=0.25',)),
    'hrpo_lam75': ('hrpo', ('advantage.lam=0.75',)),
    'hrpo_beta05': ('hrpo', ('reward.think_weight=0.05',)),
    'grpo': ('grpo', ()),
    'grpo_lr1': ('grpo', ('optim.learning_rate=1e-4',)),
    'grpo_lr4': ('grpo', ('optim.learning_rate=4e-4',)),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/choose'))
  parser.add_argument('--init', default='runs/full/sft_s0/model.safetensors')
  args = parser.parse_args()
  lines = ['| method | change | accuracy [95 %] | total tokens | '
           'end latency (s) |', '| --- | --- | ---: | ---: | ---: |']
  for name, (method, changes) in GRID.items():
    final = cell(args.out, name, f'{method}.py:full', *(
        f'--config.{x}' for x in (
            *changes, f'init={args.init}', 'steps=60', 'eval.every=0',
            'eval.at_start=False', 'eval.split=validation',
            'log.tensorboard=False')))['final']
    lines.append('| {} | {} | {:.3f} [{:.3f}, {:.3f}] | {:.1f} | {:.2f} |'
                 .format(method.upper(), ', '.join(changes) or '–',
                         final['accuracy'], *final['accuracy_ci95'],
                         final['tokens_total'], final['latency_s']['end']))
    (HERE / 'validation.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
