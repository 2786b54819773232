r"""Ahead of time: does a run fit a TPU slice, and what would bound its speed?

  pip install 'jax[tpu]==0.10.2'
  python -m adasr_jax.tools.aot \
      --config=configs/hrpo.py:qwen3_4b --topology=v5p:2x2x4

Compiles the cast for the rollout, the rollout and the update of a config (and
the scoring of a reference or an old policy, where there is one) for a TPU
slice. libtpu's compiler needs no TPU, and the model and the data need not exist
on this machine. Prints (report.py), for one chip:

  memory   XLA's figures for each program, and the training state beside the
           rollout
  work     matrix products, HBM traffic and collectives, multiplied by the trip
           counts of loops (hlo.py), and a count by hand to compare
  time     the least time at the chip's published rates, and XLA's estimate

Every rollout is counted to its last slot: the figures are upper bounds of the
work of a step.
"""

from __future__ import annotations

import sys

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from adasr_jax import config as config_lib
from adasr_jax.run import command
from adasr_jax.tools.aot import programs
from adasr_jax.tools.aot import report


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  c, topology = _CONFIG.value, _TOPOLOGY.value
  say = lambda text: print(text, file=sys.stderr, flush=True)
  try:
    config_lib.validate(c, files=False)
    print(report.report(
        programs.summary(c, topology, programs.compile_run(c, topology, say))))
  except (ValueError, OSError) as e:
    command.fail(e)


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # do not look for a TPU
  _CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file.')
  _TOPOLOGY = flags.DEFINE_string('topology', None, 'As v5p:2x2x4.')
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main, flags_parser=command.parse_flags)
