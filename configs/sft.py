"""Supervised warm start on the imperfect teacher's streaming traces.

  python -m adasr_jax.main --config=configs/sft.py --workdir=runs/sft

1,200 steps of 64 examples, about 10 minutes on two cores.

Arguments:
  smoke                   two steps of everything
  full                    the harder setting of experiments/full
  layout=read_then_think  the baseline's warm start: all steps in the deep
                          phase
  seed=N                  seed of the run
"""

from adasr_jax.config import parse_arg
from configs import common


def get_config(arg=None):
  a = parse_arg(arg, smoke=False, full=False, layout='streaming', seed=0)
  c = common.base('SFT', 'sft')
  c.seed = c.data.seed = a.seed
  c.steps = 1200
  c.data.prompts = 64
  c.optim.learning_rate = 3e-3
  c.optim.schedule = 'cosine'
  c.optim.warmup = 100
  c.optim.b2 = 0.98
  c.optim.weight_decay = 0.01
  c.eval.at_start = False
  c.eval.every = c.checkpoint.every = 400
  if a.full:
    common.full(c)
    c.steps = 250
    c.optim.learning_rate = 1e-3
    c.init = common.relative(common.WARM_START if a.layout == 'streaming'
                             else common.WARM_START_READ_THEN_THINK)
  if a.layout == 'read_then_think':
    common.read_then_think(c)
    c.name = 'SFT, read then think'
  elif a.layout != 'streaming':
    raise ValueError(f'layout={a.layout!r} is not streaming or '
                     f'read_then_think')
  if a.smoke:
    common.smoke(c)
  return c
