"""What experiments share: runs of the main program, compared over seeds.

A cell is one run of the main program in its own workdir. A finished cell is
not run again, so an interrupted experiment continues where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import scipy.stats

from adasr_jax.run import logs
from adasr_jax.run import metrics


def chosen(parser: argparse.ArgumentParser, only: str, names: Iterable[str]
           ) -> list[str]:
  """The names that --only gives; an unknown one ends the program."""
  out = only.split(',')
  if unknown := set(out) - set(names):
    parser.error(f'only={only!r}: {min(unknown)!r} is not one of '
                 f'{", ".join(names)}')
  return out


def commit() -> str:
  """The hash of the commit that is checked out."""
  return subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True,
                        text=True, check=True).stdout.strip()


def evaluated(workdir: pathlib.Path) -> dict[str, Any] | None:
  """eval.json of a finished run; None = not finished."""
  evals = logs.read_evaluations(workdir)
  return evals if 'final' in evals else None


def run(workdir: pathlib.Path, config: str, *flags: str,
        program: str = 'adasr_jax.main') -> dict[str, Any]:
  """Runs a cell unless it is finished.

  Args:
    workdir: Of the run.
    config: File in configs/ with its argument, as 'sft.py:full'.
    *flags: Further flags of the main program.
    program: The module that is run: the main one, or one with its flags.

  Returns:
    Its eval.json.

  Raises:
    subprocess.CalledProcessError: The run failed.
  """
  if (evals := evaluated(workdir)) is None:
    print(f'--- {workdir}', flush=True)
    subprocess.run([sys.executable, '-m', program,
                    f'--config=configs/{config}', f'--workdir={workdir}',
                    *flags], check=True)
    evals = logs.read_evaluations(workdir)
  return evals


def generated(workdir: pathlib.Path) -> int:
  """Tokens that a finished run generated during training."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return int(max(json.loads(x).get('tokens/generated') or 0 for x in lines))


def series(workdir: pathlib.Path, key: str) -> np.ndarray:
  """[steps] float64, a metric at each training step; NaN where it is not."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [r for r in map(json.loads, lines) if r['kind'] == 'train']
  return np.array([np.nan if (v := r.get(key)) is None else v for r in rows],
                  np.float64)


def seconds(workdir: pathlib.Path) -> float:
  """Seconds of all training steps but the first, which compiles."""
  return float(series(workdir, 'time/step')[1:].sum())


def problems(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Columns of a run's problems.jsonl."""
  rows = logs.read_lines(workdir / 'problems.jsonl')
  return {k: np.array([r[k] for r in rows]) for k in rows[0]}


def paired(workdirs: Iterable[tuple[pathlib.Path, pathlib.Path]],
           first: int = 0) -> tuple[dict[str, Any], list[float]] | None:
  """Accuracy of a minus accuracy of b on the same problems.

  Args:
    workdirs: (a, b) of each seed; a pair with an unfinished run is left out.
    first: The first problem that counts.

  Returns:
    metrics.paired over the problems, each under all seeds, and the difference
    of each seed; None = no pair is complete.

  Raises:
    ValueError: Two runs were evaluated on different problems.
  """
  pairs, ids = [], None
  for pair in workdirs:
    if not all((x / 'problems.jsonl').exists() for x in pair):
      continue
    a, b = map(problems, pair)
    ids = a['id'] if ids is None else ids
    if not all(np.array_equal(x['id'], ids) for x in (a, b)):
      raise ValueError('{} and {} have different problems'.format(*pair))
    pairs.append((a['correct'][first:], b['correct'][first:]))
  if not pairs:
    return None
  return (metrics.paired(*(np.stack(x, 1) for x in zip(*pairs))),
          [metrics.paired(*p)['difference'] for p in pairs])


def over_seeds(values: Sequence[float]) -> list[float] | None:
  """95 % interval of the mean over seeds, as Student's t gives it.

  That of `paired` holds for these seeds and other problems, this one for these
  problems and other seeds. None = there is but one.
  """
  if len(values) < 2:
    return None
  half = (scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1)
          / len(values)**0.5)
  return [float(np.mean(values) - half), float(np.mean(values) + half)]


def spread(cells: Iterable[dict[str, Any]], key: str, digits: int) -> str:
  """'mean (lowest–highest over seeds)' of the cells that have a value."""
  values = [c[key] for c in cells if c[key] is not None]
  if not values:
    return '–'
  f = f'.{digits}f'
  return f'{np.mean(values):{f}} ({min(values):{f}}–{max(values):{f}})'
