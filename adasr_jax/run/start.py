"""From a config to a run that can begin: checked, placed, its workdir made."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib

import jax
import ml_collections

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.core import hosts
from adasr_jax.core.options import Sections
from adasr_jax.learn import METHODS
from adasr_jax.learn.method import Method, Parts
from adasr_jax.models import decoder
from adasr_jax.run import checkpoint
from adasr_jax.run import factories
from adasr_jax.run import logs
from adasr_jax.run import workdir as workdir_lib

LOOKED_AT = 64  # examples of a split, before anything is compiled


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that can begin.

  Attributes:
    sections: The config as dataclasses.
    config: The same as a tree, as config.json and checkpoints hold it.
    parts: Tokenizer, protocol, decoder shape, data.
    method: What it learns by; None for an evaluation.
    initial: Parameters at step 0, on their devices.
    teacher: Parameters of the frozen teacher, where the method has one.
    mesh: The devices; set while the run trains or evaluates.
    workdir: Prepared.
    found: Names of what was in it before.
  """
  sections: Sections
  config: dict
  parts: Parts
  method: Method | None
  initial: decoder.Params
  mesh: jax.sharding.Mesh
  workdir: pathlib.Path
  found: frozenset[str]
  teacher: decoder.Params | None = None


def start(config: ml_collections.ConfigDict, workdir: pathlib.Path,
          command: str = '', devices: Sequence[jax.Device] | None = None
          ) -> Run:
  """Checks a config, loads what it names, prepares the workdir.

  Args:
    config: Changed in place: model, to what a Hugging Face folder gave; init,
      to the step that a LoRA run begins from; teacher.init, to its step.
    workdir: Written only when all else has been accepted.
    command: What was typed, for config.json.
    devices: All that the run uses; None = all that there are.

  Raises:
    ValueError, OSError: What the user has to change.
  """
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'workdir={str(workdir)!r} is not a folder')
  s = config_lib.validate(config)
  parts = factories.parts(s)
  trains = s['run'].method != config_lib.EVAL
  method = factories.method(s, parts) if trains else None
  _look(s, parts)
  mesh = factories.mesh(s, devices)
  with jax.set_mesh(mesh):
    initial = factories.initial_params(s, parts)
    teacher = factories.teacher_params(s, parts) if parts.teacher else None
  record(config, parts)
  s = config_lib.sections(config)
  found = workdir_lib.names(workdir)
  workdir_lib.prepare(workdir, config.to_dict(), command)
  if trains:
    hosts.by_first(lambda: workdir_lib.keep_model_folder(
        workdir, s['run'].init, s['tokenizer'].path, parts))
  return Run(sections=s, config=config.to_dict(), parts=parts, method=method,
             initial=initial, mesh=mesh, workdir=workdir, found=found,
             teacher=teacher)


def _look(s: Sections, parts: Parts) -> None:
  """Reads what the run will need late: examples of every split, baselines.

  Raises:
    ValueError: One does not fit; after hours of training it would be no sooner
      mended. Or what the report shall show beside the run is not there.
  """
  for path in map(pathlib.Path, s['eval'].baselines):
    if 'final' not in logs.read_evaluations(path):
      raise ValueError(f'eval.baselines: {str(path)!r} has no final evaluation')
  data, e = parts.data, s['eval']
  first = lambda split, n: data.evaluation(
      split, min(n, LOOKED_AT, data.size(split)))
  train = "split 'train'"
  some = {f'eval.split={e.split!r}': first(e.split, e.examples)}
  entry = METHODS.get(s['run'].method)
  if entry:
    some[train] = data.train(0, LOOKED_AT)
    if e.every:
      some[f'eval.periodic_split={e.periodic_split!r}'] = first(
          e.periodic_split, e.periodic_examples)
  for name, examples in some.items():
    try:
      data.collate(examples)
      if name == train and not entry.rolls_out:
        data.traces(examples)
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error


def record(c: ml_collections.ConfigDict, parts: Parts) -> None:
  """Sets config.model to what a Hugging Face folder gave, and pins steps.

  Those of what is read again: the start of a LoRA run, by all that begins from
  it; the teacher, by a resumed run.
  """
  pinned = [(c, c.lora.rank), (c.teacher, parts.teacher)]
  for section in (section for section, wanted in pinned if wanted):
    init = section.init
    if (files.at_step(init)[0] / 'checkpoints').is_dir():
      section.init = '{}@{}'.format(
          *hosts.by_first(lambda init=init: checkpoint.find(init)))
  if workdir_lib.model_folder(c.init) is not None:
    c.model.update(dataclasses.asdict(parts.model_config))
