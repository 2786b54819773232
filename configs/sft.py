"""Supervised warm start on the imperfect teacher's streaming traces.

  python -m adasr_jax.main --config=configs/sft.py --workdir=runs/sft

1,200 steps of 64 examples, about 8 minutes on two cores. With traces=perfect
it makes a teacher for configs/distill.py.

Arguments:
  smoke                   two steps of everything
  full                    the harder setting of experiments/full
  layout=read_then_think  the baseline's warm start: all steps in the deep
                          phase
  traces=perfect          those of the teacher without bad habits; undisciplined
                          (the default): those with them
  reads=all               a thought has read the whole source, see sft.reads;
                          stream (the default): what has arrived
  seed=N                  seed of the run
"""

import dataclasses

from adasr_jax.config import parse_arg
from adasr_jax.tasks import word_problems
from configs import common
from configs import hrpo

TRACES = {'undisciplined': word_problems.UNDISCIPLINED,
          'perfect': word_problems.PERFECT}


def get_config(arg=None):
  a = parse_arg(arg, smoke=False, full=False, layout='streaming',
                traces='undisciplined', reads='stream', seed=0)
  c = common.base('SFT', 'sft')
  c.seed = c.data.seed = a.seed
  c.steps = 1200

  # 64 problems of 3 to 5 relevant sentences and 1 to 3 distractors per step.
  d = c.data
  d.prompts, d.lengths, d.max_chunks = 64, (56, 72), 9
  d.task.min_steps, d.task.max_steps = 3, 5
  d.task.min_distractors, d.task.max_distractors = 1, 3
  d.task.max_number = 40
  if a.traces not in TRACES:
    raise ValueError(f'traces={a.traces!r} is not one of {tuple(TRACES)}')
  d.teacher.update(dataclasses.asdict(TRACES[a.traces]))
  c.sft.reads = a.reads

  m = c.model
  m.num_layers, m.d_model, m.d_ff = 4, 96, 256
  m.num_heads, m.num_kv_heads, m.head_dim = 4, 2, 24
  r = c.rollout
  r.thought_cap, r.deep_cap, r.answer_cap = 16, 24, 4

  o = c.optim
  o.learning_rate, o.schedule, o.warmup = 3e-3, 'cosine', 100
  o.b1, o.b2, o.weight_decay, o.clip_norm = 0.9, 0.98, 0.01, 1.0

  c.eval.at_start = False
  c.eval.every = c.checkpoint.every = 400
  if a.full:
    hrpo.full(c)
    c.steps, o.learning_rate = 250, 1e-3
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
