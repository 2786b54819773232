"""python -m benchmarks.bench [--only PART] [--repeats N] [--json [FILE]]

Speed of generation, streaming and the RL step. Alternatives are timed in turns
in one process; results are medians. Absolute times depend on the machine and
its load, so compare ratios. Two to four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

import jax

from adasr_jax.config import sections
from adasr_jax.run import factories
from benchmarks import generation
from benchmarks import step
from benchmarks import streaming
from configs import common
from configs import hrpo

PARTS = ('generation', 'streaming', 'step')
RESULTS = pathlib.Path(__file__).with_name('results.json')


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.bench', description=__doc__.split('\n')[2])
  parser.add_argument('--only', choices=PARTS, action='append',
                      help='measure only this part (may be repeated)')
  parser.add_argument('--repeats', type=int, default=7,
                      help='timed calls per alternative, at least 5')
  parser.add_argument('--json', nargs='?', const=str(RESULTS), metavar='FILE',
                      help='also write the numbers (benchmarks/results.json)')
  args = parser.parse_args()
  if args.repeats < 5:
    parser.error('--repeats must be at least 5')
  chosen = args.only or PARTS

  device = jax.devices()[0]
  machine = dict(jax=jax.__version__, platform=device.platform,
                 device=device.device_kind, cores=os.cpu_count(),
                 load=round(os.getloadavg()[0], 2))
  print(' '.join(f'{k}={v}' for k, v in machine.items()))
  results = {'machine': machine}
  if 'generation' in chosen:
    results['generation'] = generation.run(args.repeats)
  if {'streaming', 'step'} & set(chosen):
    config = hrpo.get_config()
    trained = common.WARM_START.exists()
    if not trained:
      print('\nno warm start: random parameters, synthetic lengths')
      config.init = ''
    s = sections(config)
    parts = factories.parts(s)
    params = factories.initial_params(s, parts)
  if 'streaming' in chosen:
    source = parts.data.collate(
        parts.data.train(0, config.data.prompts)).source
    results['streaming'] = {
        str(source.tokens.shape[0] * samples): streaming.measure(
            params, source, model_config=parts.model_config,
            protocol=parts.protocol, max_chunks=config.data.max_chunks,
            samples=samples, trained=trained, repeats=args.repeats)
        for samples in (config.rollout.samples, 6)}
  if 'step' in chosen:
    results['step'] = step.run(config, parts, params, args.repeats)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nwrote {args.json}')


if __name__ == '__main__':
  main()
