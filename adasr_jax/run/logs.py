"""Where numbers go: metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import pathlib
import time
from typing import Any
import zlib

from absl import logging

from adasr_jax.core import files
from adasr_jax.core import hosts


EVALUATIONS = 'eval.json'


class Damaged(ValueError):
  """A file of a run is missing, or is not what was written."""


class Writer:
  """Writes scalars of a step to every place that is switched on."""

  def __init__(self, workdir: pathlib.Path, *, step: int, tensorboard: bool,
               wandb_project: str, name: str, config: dict[str, Any],
               sums: Mapping[str, str] | None = None):
    """Opens the logs after `step`; later lines of a killed run are dropped.

    The first host alone writes. A log that does not begin as sums() says, of
    when `step` was saved, is named in a warning.

    Raises:
      ValueError: A log is damaged, see truncate_log(); on all hosts.
    """
    self._active = hosts.first()
    self._tensorboard = self._wandb = None
    self._path = workdir / 'metrics.jsonl'
    self._samples = workdir / 'samples.jsonl'
    hosts.by_first(lambda: self._truncate(step, sums or {}))
    if not self._active:
      return
    self._written = {(r['step'], r['kind']) for r in read_lines(self._path)}
    if tensorboard:
      self._tensorboard = _Events(workdir / 'tensorboard', step + 1)
    if wandb_project:
      import wandb
      self._wandb = wandb.init(project=wandb_project, name=name,
                               config=config, dir=str(workdir),
                               id=f'{name}-{_crc(str(workdir.resolve()))}',
                               resume='allow')

  def _truncate(self, step, sums):
    for path in (self._path, self._samples):
      truncate_log(path, step)
      saved = sums.get(path.name, '0 00000000')
      if _sum(_read(path)[:int(saved.split()[0])]) != saved:
        logging.warning('%s is not what it was when step %d was saved', path,
                        step)

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
      self._tensorboard.scalars(step, finite)
    if self._wandb:
      self._wandb.log(finite, step=step)

  def samples(self, step: int, samples: list[dict[str, Any]]) -> None:
    """Readable rollouts, one line each."""
    for sample in samples if self._active else ():
      _append(self._samples, {'step': step, **sample})

  def sums(self) -> dict[str, str]:
    """Name -> 'SIZE CRC32' of each log as it is now."""
    return {path.name: _sum(_read(path)) for path in (
        self._path, self._samples)} if self._active else {}

  def close(self) -> None:
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()


class _Events:
  """TensorBoard's file, written by the thread that trains.

  One of its own, as SummaryWriter has it, would die of a full disk unseen, and
  the run would wait for it for ever; and a kill would lose what is queued.
  """

  def __init__(self, folder: pathlib.Path, purge: int):
    """A new file; steps from `purge` on, in older ones, do not count."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar
    self._folder, self._event, self._scalar = folder, event_pb2.Event, scalar
    with files.named(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = EventsWriter(str(folder / 'events'))
      self._writer.write_event(event_pb2.Event(
          wall_time=time.time(), step=purge, session_log=event_pb2.SessionLog(
              status=event_pb2.SessionLog.START)))
      self._writer.flush()

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    with files.named(self._folder):
      for k, v in values.items():
        self._writer.write_event(self._event(
            wall_time=time.time(), step=step, summary=self._scalar(k, v)))
      self._writer.flush()

  def close(self) -> None:
    self._writer.close()


def _read(path):
  return path.read_bytes() if path.exists() else b''


def _crc(text):
  return f'{zlib.crc32(text.encode()):08x}'


def _sum(data):
  return f'{len(data)} {zlib.crc32(data):08x}'


def _append(path: pathlib.Path, record: dict[str, Any]) -> None:
  with files.named(path), path.open('a', encoding='utf-8') as f:
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
    Damaged: It is not JSON; names the file.
  """
  if not path.exists():
    return None
  try:
    return files.json_value(path.read_bytes())
  except ValueError as e:
    raise Damaged(f'{path} is damaged: {e}') from e


def write_evaluations(workdir: pathlib.Path, evals: Mapping[str, Any]) -> None:
  """Writes eval.json, with a checksum of its content."""
  whole = json.loads(json.dumps(evals))  # keys are text, as when it is read
  write_json(workdir / EVALUATIONS, whole | {'crc32': _content(whole)})


def read_evaluations(workdir: pathlib.Path) -> dict[str, Any]:
  """What write_evaluations() wrote there; {} where there is none.

  Raises:
    Damaged: It is not what was written; names the file. One without a
      checksum is taken as it is.
  """
  path = workdir / EVALUATIONS
  out = read_json(path)
  if out is None:
    return {}
  if not isinstance(out, dict):
    raise Damaged(f'{path} is damaged: it does not hold evaluations')
  sum_ = out.pop('crc32', None)
  if (out.keys() - {'start', 'final', 'settings'}
      or sum_ not in (None, _content(out))):
    raise Damaged(f'{path} is damaged: it is not what was written; restore '
                  f'or remove it')
  return out


def _content(value):
  return _crc(json.dumps(value, sort_keys=True))


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records of a JSONL file, none where there is no file.

  Raises:
    Damaged: A line is not JSON; names file and line.
  """
  out = []
  # Texts may hold line ends of Unicode, at which str.splitlines() cuts too.
  lines = path.read_bytes().split(b'\n') if path.exists() else []
  for number, text in enumerate(lines, 1):
    try:
      out += [files.json_value(text)] if text else []
    except ValueError as e:
      raise Damaged(f'{path}:{number} is damaged: {e}') from e
  return out


def truncate_log(path: pathlib.Path, step: int) -> None:
  """Drops the lines of a JSONL log after `step`, and a half-written last one.

  A run that was killed after its last checkpoint does those steps again; so
  no step stands in the log twice.

  Raises:
    Damaged: Another line than the last is not a record; the file stays as it
      is.
  """
  if not path.exists():
    return
  # As bytes: a line may be cut within a letter.
  lines, kept = path.read_bytes().split(b'\n'), []
  for number, text in enumerate(lines, 1):
    try:
      if files.json_value(text)['step'] <= step:
        kept.append(text + b'\n')
    except (ValueError, KeyError, TypeError) as e:
      if number == len(lines):  # after the last line end
        break
      raise Damaged(f'{path}:{number}: not a record of this log; mend or '
                    f'remove the line') from e
  files.whole(path, lambda new: new.write_bytes(b''.join(kept)))
