"""python -m adasr_jax.main --config=FILE[:args] --workdir=DIR [--config.x.y=v]

Trains what the config says, or resumes it; with configs/eval.py, evaluates.
"""

import contextlib
import os
import pathlib
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from adasr_jax.run import command

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with its arguments after a colon.',
    lock_config=True)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', "Joins other hosts: 'auto' on TPU VMs and SLURM, else "
    'HOST:PORT of process 0, with --num_processes and --process_id.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None,
                                      'With --coordinator.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator.')
_WORKDIR = flags.DEFINE_string('workdir', None,
                               'Folder of checkpoints, logs and report.')


def main(argv: list[str]) -> None:
  command.one_failure_of_a_save()
  command.no_arguments(argv)
  command.show_log(logging.INFO)
  import jax  # after flags: a fast --help
  from adasr_jax.core import hosts
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  try:
    if not _COORDINATOR.value and (_NUM_PROCESSES.present
                                   or _PROCESS_ID.present):
      raise ValueError('--num_processes and --process_id need --coordinator')
    if _COORDINATOR.value:
      hosts.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    from adasr_jax.run import evaluate
    from adasr_jax.run import logs
    from adasr_jax.run import train
    from adasr_jax.run.start import start
    from adasr_jax.run import workdir as workdir_lib
    spec = sys.modules['__main__'].__spec__  # another may call this
    run = start(config, workdir, command=' '.join(
        [f'python -m {spec.name if spec else "adasr_jax.main"}',
         *sys.argv[1:]]))
  # Taken as the user's to mend; other exceptions keep their traceback.
  except (ValueError, OSError) as e:
    command.fail(e)
  try:
    (train.train if run.method else evaluate.run)(run)
  except train.Interrupted as e:
    logging.info('%s; the same command resumes', e)
  except Exception as e:
    if jax.process_count() == 1:
      # A full disk may leave half a line, a read-only one nothing to remove.
      with contextlib.suppress(OSError, ValueError):
        if not isinstance(e, workdir_lib.Busy):
          workdir_lib.withdraw(workdir, run.found)
      # The run's or the disk's, not a fault of ours.
      if isinstance(e, (FloatingPointError, OSError, logs.Damaged)):
        command.fail(e)
      raise
    traceback.print_exc()
    print(f'error: host {jax.process_index()} stopped; if another is gone, '
          f'the same command on all resumes', file=sys.stderr, flush=True)
    os._exit(1)  # without waiting for hosts that do not answer


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main, flags_parser=command.parse_flags)
