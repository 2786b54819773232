"""Checkpoints: everything that a killed run needs to go on exactly.

One orbax step holds `state` (parameters, optimizer state, step) and `meta`
(Progress and the config). Saves are atomic:
a step that was being written when the process died is not there.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from adasr_jax.core import hosts
from adasr_jax.core.types import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run has come.

  Attributes:
    step: Training steps done.
    cursor: Data position of the next example.
    generated: Tokens that were sampled so far.
    best: 'step' and 'accuracy' of the best periodic evaluation; None before.
  """
  step: int = 0
  cursor: int = 0
  generated: int = 0
  best: dict[str, Any] | None = None


class Checkpoints:
  """The checkpoints of one workdir.

  Step 0, where the run started, is kept for ever; besides it the newest
  `keep`, and the one with the best evaluation.
  """

  def __init__(self, directory: pathlib.Path, keep: int = 2,
               read_only: bool = False):
    self._manager = ocp.CheckpointManager(
        directory.absolute(), item_names=('state', 'meta'),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([
                policies.LatestN(keep), policies.CustomSteps([0]),
                policies.BestN(get_metric_fn=lambda m: m['accuracy'], n=1,
                               keep_checkpoints_without_metrics=False)]),
            best_fn=lambda m: m['accuracy'],
            enable_async_checkpointing=False, read_only=read_only,
            cleanup_tmp_directories=not read_only))

  def save(self, progress: Progress, state: TrainState,
           config: dict[str, Any], accuracy: float | None = None) -> None:
    """Writes a checkpoint; `config` holds what JSON can hold."""
    meta = dataclasses.asdict(progress)
    step = meta.pop('step')
    meta['config'] = config
    self._manager.save(
        step, args=ocp.args.Composite(state=ocp.args.StandardSave(state),
                                      meta=ocp.args.JsonSave(meta)),
        metrics=None if accuracy is None else {'accuracy': accuracy},
        force=True)

  def latest(self) -> int | None:
    """The newest step, None where there is none."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """The step with the best evaluation, None where none was evaluated."""
    return self._manager.best_step()

  def restore(self, step: int, like: TrainState
              ) -> tuple[TrainState, Progress]:
    """A step's state and progress; `like` gives shapes, dtypes, shardings."""
    out = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()))
    return out.state, Progress(step=step, **{
        k: v for k, v in out.meta.items() if k != 'config'})

  def close(self) -> None:
    self._manager.close()


def find(init: str) -> tuple[pathlib.Path, int]:
  """Workdir and step of `workdir`, `workdir@STEP` or `workdir@best`.

  Raises:
    ValueError: No such checkpoint.
  """
  workdir, _, which = init.partition('@')
  directory = pathlib.Path(workdir) / 'checkpoints'
  if not directory.is_dir():
    raise ValueError(f'{workdir!r} has no checkpoints')
  manager = Checkpoints(directory, read_only=True)
  try:
    step = (manager.best() if which == 'best' else
            int(which) if which else manager.latest())
    steps = sorted(manager._manager.all_steps())
  finally:
    manager.close()
  if step not in steps:
    raise ValueError(f'{workdir!r} has no checkpoint {which or "at all"}; '
                     f'steps: {steps}')
  return pathlib.Path(workdir), step


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


def truncate_log(path: pathlib.Path, step: int) -> None:
  """Drops the lines of a JSONL log after `step`, and a half-written last one.

  A run that was killed after its last checkpoint does those steps again; so
  no step stands in the log twice.
  """
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except (json.JSONDecodeError, KeyError):
      break
  new = path.with_suffix('.tmp')
  new.write_text(''.join(kept))
  new.replace(path)
