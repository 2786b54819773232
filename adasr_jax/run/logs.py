"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from adasr_jax.core import files



class Writer:
  """Writes scalars of a step to every place that is switched on."""

  def __init__(self, workdir: pathlib.Path, *, step: int, tensorboard: bool,
               wandb_project: str, name: str, config: dict[str, Any],
               active: bool = True):
    """Opens the logs after `step`; later lines of a killed run are dropped.

    A writer that is not active writes nothing: that of all hosts but one.
    """
    self._active = active
    self._tensorboard = self._wandb = None
    if not active:
      return
    self._path = workdir / 'metrics.jsonl'
    self._samples = workdir / 'samples.jsonl'
    for path in (self._path, self._samples):
      truncate_log(path, step)
    lines = self._path.read_text().splitlines() if self._path.exists() else []
    self._written = {(r['step'], r['kind']) for r in map(json.loads, lines)}
    if tensorboard:
      import tensorboardX
      self._tensorboard = tensorboardX.SummaryWriter(
          str(workdir / 'tensorboard'), purge_step=step + 1)
    if wandb_project:
      import wandb
      self._wandb = wandb.init(project=wandb_project, name=name,
                               config=config, dir=str(workdir),
                               id=name, resume='allow')

  def scalars(self, step: int, kind: str, values: dict[str, float]) -> None:
    """One line {"step", "kind", name: value}; NaN and inf become null.

    A line that is there already (of a run that was killed after its last
    checkpoint) is not written twice.
    """
    if not self._active or (step, kind) in self._written:
      return
    self._written.add((step, kind))
    clean = {k: (float(v) if math.isfinite(v) else None)
             for k, v in values.items()}
    _append(self._path, {'step': step, 'kind': kind, **clean})
    finite = {k: v for k, v in clean.items() if v is not None}
    if self._tensorboard:
      for k, v in finite.items():
        self._tensorboard.add_scalar(k, v, step)
    if self._wandb:
      self._wandb.log(finite, step=step)

  def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
    """Readable rollouts, one line each."""
    for sample in samples if self._active else ():
      _append(self._samples, {'step': step, **sample})

  def close(self) -> None:
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()


def _append(path: pathlib.Path, record: dict[str, Any]) -> None:
  with path.open('a') as f:
    f.write(line(record))


def line(record: dict[str, Any]) -> str:
  """A record as a line of JSONL."""
  return json.dumps(record, ensure_ascii=False) + '\n'


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all."""
  files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_json(path: pathlib.Path) -> Any:
  """The value in a JSON file, None where there is no file.

  Raises:
    ValueError: It is not JSON; names the file.
  """
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as e:  # UnicodeDecodeError is one
    raise ValueError(f'{path} is damaged: {e}') from e


def truncate_log(path: pathlib.Path, step: int) -> None:
  """Drops the lines of a JSONL log after `step`, and a half-written last one.

  A run that was killed after its last checkpoint does those steps again; so
  no step stands in the log twice.

  Raises:
    ValueError: Another line than the last is not a record; the file stays as
      it is.
  """
  if not path.exists():
    return
  lines, kept = path.read_text().split('\n'), []
  for number, text in enumerate(lines, 1):
    try:
      record = json.loads(text)
      if record['step'] <= step:
        kept.append(text + '\n')
    except (ValueError, KeyError, TypeError) as e:
      if number == len(lines):  # after the last '\n': half-written, or nothing
        break
      raise ValueError(f'{path}:{number}: not a record of this log; mend or '
                       f'remove the line') from e
  files.write_text(path, ''.join(kept))
