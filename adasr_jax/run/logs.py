"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from adasr_jax.run.checkpoint import truncate_log


class Writer:
  """Writes scalars of a step to every place that is switched on."""

  def __init__(self, workdir: pathlib.Path, *, step: int, tensorboard: bool,
               wandb_project: str, name: str, config: dict[str, Any],
               active: bool = True):
    """Opens the logs behind `step`; later lines of a killed run are dropped.

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

    A line that stands there already (a run that was killed behind its last
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
  new = path.with_suffix('.tmp')
  new.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n')
  new.replace(path)


def read_json(path: pathlib.Path) -> Any:
  """The value in a JSON file, None where there is no file."""
  return json.loads(path.read_text()) if path.exists() else None
