"""Checkpoints: everything that a killed run needs to go on exactly.

One orbax step holds `state` (parameters, optimizer state, step) and `meta`
(Progress and the config). Saves are atomic:
a step that was being written when the process died is not there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from adasr_jax.core import files
from adasr_jax.core import hosts
from adasr_jax.core.types import TrainState
from adasr_jax.run import logs


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run has come.

  Attributes:
    step: Training steps done.
    cursor: Data position of the next example.
    generated: Tokens that were sampled so far.
    shapes: Of the packed batches so far: which one a batch gets depends on
      them, see packing.pack.
    logs: Of when the step was saved, see logs.Writer.sums.
    clock: Of the run's evaluations, which a resumed run does not measure anew.
  """
  step: int = 0
  cursor: int = 0
  generated: int = 0
  shapes: tuple[tuple[int, int, int, int], ...] = ()
  logs: dict[str, str] = dataclasses.field(default_factory=dict)
  clock: dict[str, Any] | None = None


SUMS = 'checksums.json'  # in the folder of a step


class Damaged(logs.Damaged):
  """Files of a checkpoint are missing or have changed since it was saved."""


def _files(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file()
                and p.name != SUMS)


def _sum(path):
  """'SIZE CRC32' of a file, read in pieces."""
  crc, size = 0, 0
  with path.open('rb') as f:
    while piece := f.read(1 << 22):
      crc, size = zlib.crc32(piece, crc), size + len(piece)
  return f'{size} {crc:08x}'


def _write_sums(folder: pathlib.Path) -> None:
  """Writes the checksums of a step's files beside them."""
  logs.write_json(folder / SUMS, {
      p.relative_to(folder).as_posix(): _sum(p) for p in _files(folder)})


def _fault(folder: pathlib.Path) -> str:
  """What is wrong with a step's files, '' if nothing is.

  A step of before checksums were kept, or of a run that was killed just after
  its save, has none: then only what has to be there is checked.
  """
  for name in ('state', 'meta'):
    if not (folder / name).is_dir():
      return f'{folder / name} is not there'
  try:
    sums = logs.read_json(folder / SUMS) or {}
  except ValueError as e:
    return str(e)
  if not isinstance(sums, dict):
    return f'{folder / SUMS} does not hold checksums'
  for name, saved in sums.items():
    path = folder / name
    if not path.is_file():
      return f'{path} is not there'
    if _sum(path) != saved:
      return f'{path} is not what was saved'
  return ''


def check(directory: pathlib.Path, step: int) -> None:
  """Verifies a step's files against their checksums; asked by one host.

  Raises:
    Damaged: Names the file, and the newest step that is whole.
  """
  if fault := hosts.by_first(lambda: _fault(directory / str(step))):
    raise _damaged(directory, step, fault)


def _damaged(directory, step, fault) -> Damaged:
  whole = hosts.by_first(lambda: [
      int(p.name) for p in directory.iterdir() if p.name.isdigit()
      and int(p.name) != step and not _fault(p)])
  advice = ('no other step is whole' if not whole else
            f'the newest step that is whole is {max(whole)}: a new run with '
            f'init={directory.parent}@{max(whole)} begins from it')
  return Damaged(f'checkpoint {step} is damaged: {fault}; {advice}')


class Checkpoints:
  """The checkpoints of one workdir.

  Step 0, where the run started, is kept for ever; besides it the newest
  `keep`, and the one with the best evaluation.
  """

  def __init__(self, directory: pathlib.Path, keep: int = 2,
               read_only: bool = False):
    self._directory = directory.absolute()
    self._manager = ocp.CheckpointManager(
        self._directory, item_names=('state', 'meta'),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([
                policies.LatestN(keep), policies.CustomSteps([0]),
                policies.BestN(get_metric_fn=lambda m: m['accuracy'], n=1,
                               keep_checkpoints_without_metrics=False)]),
            best_fn=lambda m: m['accuracy'],
            enable_async_checkpointing=False, read_only=read_only,
            # Else all hosts would have to meet here, also where one looks.
            save_root_metadata=not read_only,
            cleanup_tmp_directories=not read_only))

  def save(self, progress: Progress, state: TrainState,
           config: dict[str, Any], accuracy: float | None = None) -> None:
    """Writes a checkpoint; `config` holds what JSON can hold.

    Raises:
      OSError: It cannot be written.
    """
    meta = dataclasses.asdict(progress)
    step = meta.pop('step')
    meta['config'] = config
    try:
      self._manager.save(
          step, args=ocp.args.Composite(state=ocp.args.StandardSave(state),
                                        meta=ocp.args.JsonSave(meta)),
          metrics=None if accuracy is None else {'accuracy': accuracy},
          force=True)
    except ValueError as e:  # what tensorstore makes of a full disk
      raise OSError(f'checkpoint {step} of {self._directory} could not be '
                    f'written: {e}') from e
    if hosts.first():
      _write_sums(self._directory / str(step))
    hosts.wait('checkpoint')

  def latest(self) -> int | None:
    """The newest step, None where there is none."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """The step with the best evaluation, None where none was evaluated."""
    return self._manager.best_step()

  def steps(self) -> list[int]:
    """All steps that are there, the oldest first."""
    return sorted(self._manager.all_steps())

  def restore(self, step: int, like: TrainState
              ) -> tuple[TrainState, Progress]:
    """A step's state and progress; `like` gives shapes, dtypes, shardings.

    Raises:
      Damaged: Files of the step are missing or have changed.
    """
    check(self._directory, step)
    try:
      out = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()))
    except Exception as e:  # orbax's own, of many kinds
      # Verified files are whole; with other hosts it may be one of them.
      if (self._directory / str(step) / SUMS).exists() or (
          jax.process_count() > 1):
        raise
      raise _damaged(self._directory, step, f'{type(e).__name__}') from e
    known = {f.name for f in dataclasses.fields(Progress)}
    meta = {k: v for k, v in out.meta.items() if k in known}
    meta['shapes'] = tuple(map(tuple, meta.get('shapes', ())))
    return out.state, Progress(step=step, **meta)

  def close(self) -> None:
    self._manager.close()


def _number(init, which):
  if not which.isdecimal():
    raise ValueError(f'init={init!r}: {which!r} is neither a step nor best')
  return int(which)


def find(init: str) -> tuple[pathlib.Path, int]:
  """Workdir and step of `workdir`, `workdir@STEP` or `workdir@best`.

  Raises:
    ValueError: No such checkpoint.
  """
  workdir, which = files.at_step(init)
  directory = workdir / 'checkpoints'
  if not directory.is_dir():
    raise ValueError(f'{str(workdir)!r} has no checkpoints')
  manager = Checkpoints(directory, read_only=True)
  try:
    step = (manager.best() if which == 'best' else
            _number(init, which) if which else manager.latest())
    steps = manager.steps()
  finally:
    manager.close()
  if step not in steps:
    raise ValueError(f'{str(workdir)!r} has no checkpoint '
                     f'{which or "at all"}; steps: {steps}')
  return workdir, step


def restore_params(init: str, like: Any) -> Any:
  """Parameters of a checkpoint, without the moments.

  Args:
    init: Where to read, see `find`.
    like: Parameter tree of the wanted shapes, with the shardings that the
      arrays get (ShapeDtypeStructs); without any, host arrays come back.

  Raises:
    ValueError: No such checkpoint, or it has another shape.
  """
  workdir, step = hosts.by_first(lambda: find(init))
  check((workdir / 'checkpoints').absolute(), step)
  state = (workdir / 'checkpoints' / str(step) / 'state').absolute()
  reader = ocp.PyTreeCheckpointer()
  saved = reader.metadata(state).item_metadata.tree['params']
  shapes = lambda t: {jax.tree_util.keystr(k): tuple(v.shape) for k, v in
                      jax.tree_util.tree_leaves_with_path(t)}
  if shapes(saved) != shapes(like):
    bad = sorted(set(shapes(saved).items()) ^ set(shapes(like).items()))
    raise ValueError(f'{init!r} has another shape: {bad[:4]}')
  item = {'params': like}
  return reader.restore(state, args=ocp.args.PyTreeRestore(
      item=item, partial_restore=True,
      restore_args=ocp.checkpoint_utils.construct_restore_args(item)))['params']
