"""On-policy distillation: a teacher rewards each token that the student drew.

  python -m adasr_jax.main --config=configs/distill.py:teacher=runs/demo \
      --workdir=runs/distill

Student: the shipped warm start, on the problems of configs/hrpo.py. Teacher:
any policy of the same vocabulary, of whatever shape, such as a run of
configs/hrpo.py or configs/sft.py.

Arguments:
  smoke         two steps of everything
  full          the harder setting of experiments/full
  teacher=INIT  WORKDIR, WORKDIR@STEP, a .safetensors file or a Hugging Face
                folder; '' = the warm start itself, from which nothing is
                learned
  reads=stream  all: the teacher has read the whole source, see sft.reads
  alpha=5.0     exponent of the power reward
  seed=N        seed of the run
"""

from adasr_jax.config import parse_arg
from configs import common
from configs import hrpo


def get_config(arg=None):
  a = parse_arg(arg, smoke=False, full=False, teacher='', reads='stream',
                alpha=5.0, seed=0)
  c = hrpo.get_config(f'seed={a.seed}' + ',full' * a.full)
  c.name, c.method = 'Distillation', 'distill'
  c.teacher.init = a.teacher or c.init
  c.teacher.reads = a.reads

  d = c.distill
  d.reward, d.alpha = 'power', a.alpha
  c.optim.schedule = 'constant'
  if a.smoke:
    common.smoke(c)
  return c
