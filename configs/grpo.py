"""GRPO: HRPO's rewards with one sequence-level advantage.

  python -m adasr_jax.main --config=configs/grpo.py --workdir=runs/grpo

Arguments as in configs/hrpo.py.
"""

from configs import hrpo


def get_config(arg=None):
  c = hrpo.get_config(arg)
  c.name = 'GRPO'
  c.advantage.granularity = 'sequence'
  return c
