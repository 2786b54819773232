"""python -m benchmarks.bench [--only PART] [--repeats N] [--json [FILE]]

Speed of generation, streaming, the update and the RL step. Alternatives take
turns; results are medians. Absolute times depend on the machine and its load,
so compare ratios. Four to eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

import jax

from adasr_jax.config import sections
from adasr_jax.run import factories
from benchmarks import before
from benchmarks import generation
from benchmarks import learning
from benchmarks import refill
from benchmarks import step
from benchmarks import streaming
from configs import common
from configs import hrpo

PARTS = ('generation', 'streaming', 'refill', 'update', 'step', 'before')
RESULTS = pathlib.Path(__file__).with_name('results.json')
# Name -> (keys of what ours is compared with, of ours) in the results; the last
# key is a name's beginning, and of several the quickest counts.
RATIOS = {
    'generation_vs_tunix': (('generation', 'tunix'),
                            ('generation', 'adasr_jax rollout')),
    'generation_vs_transformers': (('generation', 'transformers'),
                                   ('generation', 'adasr_jax rollout')),
    'streaming_vs_chunk_by_chunk': (
        ('streaming', '96', 'chunk by chunk (replayed)'),
        ('streaming', '96', 'adasr_jax rollout, live')),
    **{f'{part}_vs_before': (('before', f'{part}, before'),
                             ('before', f'{part}, now'))
       for part in before.PARTS},
    'update_vs_torch': (('update', 'beside_torch', 'transformers'),
                        ('update', 'beside_torch', 'adasr_jax')),
}


def _median(results: dict, keys: tuple[str, ...]) -> float | None:
  """Seconds; None where that was not measured."""
  *path, name = keys
  for key in path:
    results = results.get(key) or {}
  return min((row['median'] for key, row in results.items()
              if key.startswith(name)), default=None)


def ratios(results: dict) -> dict[str, float | None]:
  """How many times as fast ours is; None where one was not measured."""
  out = {}
  for name, (theirs, ours) in RATIOS.items():
    slow, fast = _median(results, theirs), _median(results, ours)
    out[name] = None if slow is None or fast is None else slow / fast
  return out


def commit() -> dict:
  """What is measured: the commit, and whether the tree was as it is there."""
  head, changes = before.git('rev-parse', 'HEAD'), before.git(
      'status', '--porcelain')
  return {'commit': head and head.decode().strip(),
          'clean': None if changes is None else not changes.strip()}


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.bench', description=__doc__.split('\n')[2])
  parser.add_argument('--only', choices=PARTS, action='append',
                      help='measure only this part (may be repeated)')
  parser.add_argument('--repeats', type=int, default=7,
                      help='timed calls per alternative, at least 5')
  parser.add_argument('--before', default=before.COMMIT, metavar='COMMIT',
                      help='what the RL step is compared with')
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
  results = {'machine': machine, **commit()}
  if 'generation' in chosen:
    results['generation'] = generation.run(args.repeats)
  if {'streaming', 'refill', 'update', 'step'} & set(chosen):
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
            samples=samples, trained=trained, repeats=args.repeats,
            rows=config.rollout.rows)
        for samples in (config.rollout.samples, 6)}
  if 'refill' in chosen:
    results['refill'] = refill.run(config, parts, params, args.repeats)
  if 'update' in chosen:
    results['update'] = {
        'rows': learning.packed_against_padded(config, parts, params,
                                               args.repeats),
        'beside_torch': learning.beside_torch(args.repeats)}
  if 'step' in chosen:
    results['step'] = step.run(config, parts, params, args.repeats)
  if 'before' in chosen:
    results['before'] = before.run(args.repeats, args.before)
  results['ratios'] = ratios(results)
  print('\nours is so many times as fast (- where a part was not run, or what '
        'it\nis compared with is not there)')
  for name, ratio in results['ratios'].items():
    print(f'  {name:30}' + ('    -' if ratio is None else f'{ratio:5.2f}'))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nwrote {args.json}')


if __name__ == '__main__':
  main()
