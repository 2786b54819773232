"""The baseline that reads everything, then thinks: GRPO on its deep phase.

  python -m adasr_jax.main --config=configs/read_then_think.py \
      --workdir=runs/read_then_think

Same decoder, positions and number of slots; its own warm start on the same
problems and the same imperfect teacher, all steps moved into the deep phase.

Arguments as in configs/hrpo.py.
"""

from configs import common
from configs import grpo


def get_config(arg=None):
  c = grpo.get_config(arg)
  c.name = 'Read then think'
  common.read_then_think(c)
  if c.init == common.relative(common.WARM_START):
    c.init = common.relative(common.WARM_START_READ_THEN_THINK)
  return c
