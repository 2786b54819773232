"""GRPO: HRPO's rewards with one sequence-level advantage.

  python -m adasr_jax.main --config=configs/grpo.py --workdir=runs/grpo

Arguments as in configs/hrpo.py.
"""

from configs import hrpo


# As hrpo.FULL.
FULL = {'learning_rate': 1e-4}


def get_config(arg=None, full=FULL):
  c = hrpo.get_config(arg, full)
  c.name = 'GRPO'
  c.advantage.granularity = 'sequence'
  return c
