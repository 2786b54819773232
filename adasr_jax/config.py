"""The one config tree: composed from the rooms' own dataclasses.

A field, its default, its choices and its range stand in the dataclass that
has the field; METHODS and TASKS bring sections of their own. The files in
configs/ change values. No room above this file sees a ConfigDict: `sections`
turns one into the dataclasses.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
import dataclasses
import importlib.util
import json
import os
from typing import Any

import ml_collections
from ml_collections import config_dict

from adasr_jax.core import files
from adasr_jax.core import options
from adasr_jax.core.options import Sections, option
from adasr_jax.core.sharding import MeshConfig
from adasr_jax.data.dataset import DataConfig
from adasr_jax.data.pipeline import READ_THEN_THINK
from adasr_jax.data.tokenizer import TokenizerConfig
from adasr_jax.learn import METHODS
from adasr_jax.learn.losses import LossSection
from adasr_jax.learn.optim import OptimConfig
from adasr_jax.models.decoder import DecoderConfig
from adasr_jax.models.lora import LoraConfig
from adasr_jax.policy.rollout import RolloutConfig
from adasr_jax.policy.sampling import LEAST_TEMPERATURE
from adasr_jax import tasks

EVAL = 'eval'  # config.method of a run that does not train


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """The fields at the top of the tree.

  Attributes:
    name: Label in reports.
    method: A key of METHODS, or 'eval'.
    steps: Training steps.
    task: A key of TASKS; read where data.source is 'procedural'.
    seed: Of parameters and rollouts.
    token_budget: Stop after this many generated tokens; 0 = never.
    init: Where parameters start: '' = random; a .safetensors file; a workdir,
      whose newest checkpoint is read (workdir@STEP: that one, workdir@best);
      or a Hugging Face model folder (config.json and safetensors). The folder,
      and a workdir that began from one, give the model's architecture too:
      then only model.dtype, remat, attention and target_offset are read.
  """
  name: str = option()
  method: str = option()
  steps: int = option(above=0, below=2**31)
  task: str = option('word_problems')
  seed: int = option(0, least=0, below=2**32)
  token_budget: int = option(0, least=0, below=2**53)
  init: str = option('')


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluations: at the start, every `every` steps, and at the end.

  Attributes:
    every: Steps between periodic evaluations; 0 = none.
    at_start: Whether to evaluate before the first step.
    split, examples: Of the first and the last evaluation.
    batch: Problems per program call.
    samples: Rollouts per problem.
    rows: See RolloutConfig.
    temperature, top_k, top_p: See sampling.draw; 0 = the most probable token.
    decisions: 'policy', or 'gold': think and skip as relevance says.
    periodic_split, periodic_examples: Of the periodic ones.
    baselines: Workdirs shown beside this run in the report.
  """
  every: int = option(0, least=0, below=2**31)
  at_start: bool = option(True)
  split: str = option('test')
  examples: int = option(1000, least=1, most=10**7)
  batch: int = option(250, least=1, most=2**16)
  samples: int = option(1, least=1, most=2**12)
  rows: int = option(0, least=0, most=2**20)
  temperature: float = option(0.0, least=0, most=100)
  top_k: int = option(0, least=0, below=2**31)
  top_p: float = option(1.0, above=0, most=1)
  decisions: str = option('policy', choices=('policy', 'gold'))
  periodic_split: str = option('validation')
  periodic_examples: int = option(250, least=1, most=10**7)
  baselines: tuple[str, ...] = option(())


@dataclasses.dataclass(frozen=True)
class ClockConfig:
  """The virtual clock, see run/latency.py.

  Attributes:
    words_per_minute: Of the stream.
    measure: Whether sigma and tau are measured on this machine.
    sigma, tau: Seconds per source token and per target token.
  """
  words_per_minute: float = option(150.0, least=1e-3, most=1e9)
  measure: bool = option(False)
  sigma: float = option(0.001, least=0, most=1e6)
  tau: float = option(0.05, least=0, most=1e6)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Steps between checkpoints, and how many of the newest are kept."""
  every: int = option(50, least=1, below=2**31)
  keep: int = option(2, least=1, below=2**31)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What is logged.

  Attributes:
    samples_every: Steps between entries of samples.jsonl.
    samples: Problems per entry, with all rollouts of each.
    tensorboard: Whether to write event files.
    wandb_project: '' = off; needs the package wandb.
    profile_step: The step that jax.profiler traces; -1 = none.
  """
  samples_every: int = option(10, least=1, below=2**31)
  samples: int = option(2, least=0, most=2**16)
  tensorboard: bool = option(True)
  wandb_project: str = option('')
  profile_step: int = option(-1, least=-1, below=2**31)


def _registry() -> dict[str, Any]:
  """Section -> its dataclass with the defaults; outer sections first."""
  out = {'data': DataConfig(), 'tokenizer': TokenizerConfig(),
         'model': DecoderConfig(), 'mesh': MeshConfig(), 'lora': LoraConfig(),
         'rollout': RolloutConfig(), 'loss': LossSection(),
         'optim': OptimConfig(), 'eval': EvalConfig(), 'clock': ClockConfig(),
         'checkpoint': CheckpointConfig(), 'log': LogConfig()}
  for entry in (tasks.TEXT, *tasks.TASKS.values(), *METHODS.values()):
    for name, section in entry.sections.items():
      assert out.get(name, section) == section, f'two sections {name!r}'
      out[name] = section
  return out


def base() -> ml_collections.ConfigDict:
  """Every field of a run, with the defaults of the embedded task."""
  def default(f):
    if f.default is dataclasses.MISSING:
      return config_dict.placeholder(options.types(RunConfig)[f.name])
    return f.default
  c = ml_collections.ConfigDict(
      {f.name: default(f) for f in dataclasses.fields(RunConfig)})
  for name, section in _registry().items():
    *outer, last = name.split('.')
    node = c
    for part in outer:
      node = node[part]
    node[last] = ml_collections.ConfigDict(
        {f.name: getattr(section, f.name)
         for f in dataclasses.fields(section)})
  return c


def of_workdir(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config of a run from its config.json; newer fields have defaults.

  Raises:
    ValueError: A field has a value of another type.
  """
  c = base()
  saved = {k: v for k, v in saved.items() if k != 'command'}
  whole = flatten(c.to_dict())
  for name, value in flatten(saved).items():
    if any(k.startswith(f'{name}.') for k in whole):
      raise ValueError(f'config.json: {name}={value!r:.40} is not a section')
  try:
    c.update(saved)
  except (TypeError, ValueError) as e:
    raise ValueError(f'config.json: {e}') from e
  # Earlier versions took values that the run then did not read.
  for name, default in _of_others(c.method):
    c.update_from_flattened_dict(
        {f'{name}.{k}': v for k, v in vars(default).items()})
  return c


def _of_others(method):
  """Sections, with their defaults, that other methods have and this has not."""
  own = METHODS[method].sections if method in METHODS else None
  return [] if own is None else [
      (name, default) for entry in METHODS.values()
      for name, default in entry.sections.items() if name not in own]


def sections(c: ml_collections.ConfigDict) -> Sections:
  """The config as dataclasses.

  Raises:
    ValueError: A field is not set, or has a type or value that it does not
      allow; names the field and its value.
  """
  tree = c.to_dict()
  unset = sorted(k for k, v in flatten(tree).items() if v is None)
  _require(not unset, f'{", ".join(unset)} must be set')
  out = {'run': _section(RunConfig, tree, '')}
  for name, section in _registry().items():
    node = tree
    for part in name.split('.'):
      node = node[part]
    out[name] = _section(type(section), node, f'{name}.')
  return out


def _section(cls, values, prefix):
  tupled = lambda v: (tuple(map(tupled, v)) if isinstance(v, (list, tuple))
                      else v)
  values = {f.name: tupled(values[f.name]) for f in dataclasses.fields(cls)}
  try:
    options.check(cls, values, prefix)
    return cls(**values)
  except ValueError as e:  # a dataclass refuses fields that do not fit
    named = str(e) if str(e).startswith(prefix) else f'{prefix}{e}'
    raise ValueError(f'config: {named}') from e


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Values of a config file's argument, as in `configs/hrpo.py:smoke,lr=1e-4`.

  Args:
    arg: Comma-separated `name=value`; a bare `name` means True.
    **defaults: Known names; a value has the type of its default.

  Raises:
    ValueError: An unknown name, or a value of another type.
  """
  out = ml_collections.ConfigDict(defaults)
  for part in filter(None, (arg or '').split(',')):
    name, has_value, text = part.partition('=')
    if name not in defaults:
      raise ValueError(f'unknown config argument {name!r}; known: '
                       f'{", ".join(sorted(defaults))}')
    kind = type(defaults[name])
    if kind is bool:
      if has_value and text not in ('True', 'False', 'true', 'false', '1',
                                    '0'):
        raise ValueError(f'config argument {part!r}: not a truth value')
      out[name] = not has_value or text in ('True', 'true', '1')
      continue
    try:
      value = text if kind is str else ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = None
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind:  # int(1.5) would be 1
      raise ValueError(f'config argument {part!r}: not a {kind.__name__}')
    out[name] = value
  return out


def _require(condition, message):
  if not condition:
    raise ValueError(f'config: {message}')


def validate(c: ml_collections.ConfigDict, files: bool = True) -> Sections:
  """Refuses what cannot work, before anything is compiled or written.

  Args:
    c: All of it.
    files: Whether the files that it names must be there.

  Returns:
    See `sections`.

  Raises:
    ValueError: Names the field and its value.
  """
  s = sections(c)
  run, data, e = s['run'], s['data'], s['eval']
  for name, value, known, more in (
      ('method', run.method, (*METHODS, EVAL),
       "; GRPO is 'hrpo' with advantage.granularity='sequence'"),
      ('task', run.task, tuple(tasks.TASKS), '')):
    _require(value in known, f'{name}={value!r} is not one of {known}{more}')
  task = tasks.chosen(s)
  for name in ('split', 'periodic_split'):
    value = getattr(e, name)
    _require(value in task.splits,
             f'eval.{name}={value!r} is not one of {tuple(task.splits)}')
  _require(data.prompts % s['loss'].micro_batches == 0,
           f'loss.micro_batches={s["loss"].micro_batches} does not divide '
           f'data.prompts={data.prompts}')
  _require(e.temperature == 0 or e.temperature >= LEAST_TEMPERATURE,
           f'eval.temperature={e.temperature} is neither 0 nor at least '
           f'{LEAST_TEMPERATURE}')
  _require(e.decisions == 'policy' or data.layout != READ_THEN_THINK,
           f'eval.decisions={e.decisions!r}: with data.layout='
           f'{data.layout!r} nothing is decided')
  _require(e.temperature > 0 or e.samples == 1,
           f'eval.samples={e.samples} with eval.temperature=0: all samples '
           f'would be the same')
  _require(run.method != EVAL or run.init, "method='eval' needs init")
  step = s['log'].profile_step
  _require(step < 0 or 1 <= step <= run.steps,
           f'log.profile_step={step} is not one of steps={run.steps}')
  checks = [task.check]
  if run.method != EVAL:
    checks += [_check_unread, METHODS[run.method].check]
  if files:
    checks += [task.check_files, _check_files]
  for check in checks:
    try:
      check(s)
    except ValueError as error:
      raise ValueError(f'config: {error}') from error
  return s


def _check_unread(s):
  """Refuses values in sections that only other methods have."""
  method = s['run'].method
  for name, default in _of_others(method):
    for field, value in vars(default).items():
      if (got := getattr(s[name], field)) != value:
        raise ValueError(f'{name}.{field}={got!r} is not read by '
                         f'method={method!r}')


def _check_files(s):
  init = s['run'].init
  if init and not os.path.exists(files.at_step(init)[0]):
    raise ValueError(f'init={init!r} does not exist')
  project = s['log'].wandb_project
  if project and importlib.util.find_spec('wandb') is None:
    raise ValueError(f'log.wandb_project={project!r}: the package wandb is not '
                     f'installed')
  for path in s['eval'].baselines:
    if not os.path.isfile(os.path.join(path, 'eval.json')):
      raise ValueError(f'eval.baselines: no eval.json in {path!r}')


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A tree as {'section.field': value}."""
  out = {}
  for k, v in tree.items():
    if isinstance(v, dict):
      out |= flatten(v, f'{prefix}{k}.')
    else:
      out[prefix + k] = v
  return out


def difference(old: dict, new: dict) -> list[str]:
  """Lines `field: old -> new` of two config trees, empty where equal.

  A field that `old` does not know yet has its default there.
  """
  # Through JSON, so that tuples and lists compare equal.
  a, b, default = (flatten(json.loads(json.dumps(x)))
                   for x in (old, new, base().to_dict()))
  a = {k: default[k] for k in b.keys() & default.keys()} | a
  return [f'{k}: {a.get(k, "(absent)")!r} -> {b.get(k, "(absent)")!r}'
          for k in sorted(a.keys() | b.keys())
          if a.get(k, ...) != b.get(k, ...)]
