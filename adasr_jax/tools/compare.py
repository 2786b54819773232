"""python -m adasr_jax.tools.compare --of=WORKDIR [--beside=WORKDIR,...]

Writes the report of a run anew: of one that was stopped, or beside other
finished runs than those of its config (eval.baselines).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib

from adasr_jax.run import command
from adasr_jax.run import logs
from adasr_jax.run import report
from adasr_jax.run import workdir as workdir_lib


def compare(of: pathlib.Path, beside: Sequence[pathlib.Path] | None = None
            ) -> pathlib.Path:
  """Writes report.md and its figures into `of`; the path of report.md.

  Args:
    of: Workdir of a run.
    beside: Workdirs of other runs; None = those of its config.

  Raises:
    ValueError: One of them holds no run, or no evaluation to compare.
  """
  if workdir_lib.read_config(of) is None:
    raise ValueError(f'of={str(of)!r} is not a run: it has no config.json')
  for path in beside or ():
    if 'final' not in logs.read_evaluations(path):
      raise ValueError(f'beside={str(path)!r} has no final evaluation')
  report.write_report(of, beside)
  return of / 'report.md'


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      prog='python -m adasr_jax.tools.compare',
      description=__doc__.split('\n\n', 1)[1])
  parser.add_argument('--of', type=pathlib.Path, required=True)
  parser.add_argument('--beside', default='', help='workdirs, with commas')
  args = parser.parse_args(argv)
  beside = [pathlib.Path(x) for x in args.beside.split(',')]
  try:
    print(compare(args.of, beside if args.beside else None))
  except (ValueError, OSError) as e:
    command.fail(e)


if __name__ == '__main__':
  main()
