"""Evaluates a checkpoint by itself.

  python -m adasr_jax.main --config=configs/eval.py:of=runs/demo \
      --workdir=runs/demo_eval

The run's own config gives data, model and caps; eval fields are this file's.

Arguments:
  of=WORKDIR        the run; WORKDIR@STEP or WORKDIR@best for a checkpoint.
                    '' = the shipped warm start
  split=test        train, validation, test, ood (word problems) or all (files)
  samples=1         samples a problem; more than one samples at temperature 1
                    and reports pass@k
  decisions=policy  gold: think and skip as the gold relevance says
  examples=1000     problems
  smoke             40 problems
"""

from adasr_jax import config
from adasr_jax.core import files
from configs import common


def get_config(arg=None):
  a = config.parse_arg(arg, of='', split='test', samples=1, decisions='policy',
                       examples=1000, smoke=False)
  c = common.base('Evaluation', 'eval')
  c.init = common.relative(common.WARM_START)
  if a.of:
    path = files.at_step(a.of)[0] / 'config.json'
    if not path.is_file():
      raise ValueError(f'of={a.of!r}: there is no {path}')
    run = files.read_json(path)
    try:
      run = config.of_workdir(run)
      config.sections(run)
    except (AttributeError, ValueError) as e:
      raise ValueError(f'of={a.of!r}: {path}: {e}') from e
    for name in ('data', 'tokenizer', 'model', 'rollout', 'reward', 'clock',
                 'sft', *common.task_sections()):
      c[name].update(run[name])
    c.name, c.init, c.task = run.name, a.of, run.task
  c.steps = 1
  if a.split == 'ood':
    common.out_of_distribution(c)
  c.eval.split, c.eval.samples = a.split, a.samples
  c.eval.decisions, c.eval.examples = a.decisions, a.examples
  c.eval.temperature = 0.0 if a.samples == 1 else 1.0
  if a.smoke:
    c.eval.examples, c.eval.batch = 40, 20
  return c
