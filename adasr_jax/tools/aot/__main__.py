r"""Ahead of time: does a run fit a TPU slice, and what would bound its speed?

  pip install 'jax[tpu]==0.10.2'
  python -m adasr_jax.tools.aot \
      --config=configs/hrpo.py:qwen3_4b --topology=v5p:2x2x4

Compiles the cast for the rollout, the rollout and the update of a config (and
the scoring of a reference or an old policy, where it has one) for a slice that
this machine has not: libtpu's compiler needs no TPU. The model and the data
need not be there either. What is printed (report.py) is of one chip:

  memory   XLA's own figures for each program, and the training state beside
           the rollout
  work     products of matrices, HBM traffic and collectives with the trip
           counts of their loops (hlo.py), checked against a count by hand
  time     the least that the chip's published rates allow, and XLA's estimate

Every rollout is counted to its last slot: the figures are upper bounds of a
step's work, so lower bounds of how many steps an hour has.
"""

from __future__ import annotations

import sys

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from adasr_jax import config as config_lib
from adasr_jax.tools.aot import programs
from adasr_jax.tools.aot import report


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  c, topology = _CONFIG.value, _TOPOLOGY.value
  told = lambda text: print(text, file=sys.stderr, flush=True)
  try:
    config_lib.validate(c, files=False)
    print(report.report(
        programs.summary(c, topology, programs.compile_run(c, topology, told))))
  except ValueError as e:
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # looks for no TPU
  _CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file.')
  _TOPOLOGY = flags.DEFINE_string('topology', None, 'As in v5p:2x2x4.')
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main)
