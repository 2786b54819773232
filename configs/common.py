"""What several configs share: the warm start, smoke sizes, layouts."""

import os
import pathlib

import ml_collections

from adasr_jax import config as config_lib
from adasr_jax import tasks

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARM_START = ROOT / 'experiments' / 'warm_start' / 'model.safetensors'
WARM_START_READ_THEN_THINK = (
    ROOT / 'experiments' / 'warm_start' / 'read_then_think.safetensors')
INSTRUCTION = (
    'Read the problem sentence by sentence. After each sentence, think about '
    'what it tells you, or skip it if it does not matter. When it has ended, '
    'reason it through and give the answer in \\boxed{}.')


def relative(path: pathlib.Path) -> str:
  """The path as seen from here, so that config.json names no machine."""
  return os.path.relpath(path)


def smoke(c: ml_collections.ConfigDict) -> None:
  """Sizes for a look at every part of a run within two minutes."""
  c.steps = 2
  c.data.prompts = 4
  c.loss.micro_batches = min(c.loss.micro_batches, 4)
  c.rollout.samples = 4
  c.eval.examples = 40
  c.eval.batch = 20
  c.eval.periodic_examples = 20
  c.log.samples_every = 1


def read_then_think(c: ml_collections.ConfigDict) -> None:
  """Everything is read before anything is thought; the same slots in all."""
  r = c.rollout
  c.data.layout = 'read_then_think'
  r.deep_cap += c.data.max_chunks * r.thought_cap


def out_of_distribution(c: ml_collections.ConfigDict) -> None:
  """Room for the longer streams of the out-of-distribution split."""
  more = 19 - c.data.max_chunks
  c.data.lengths, c.data.max_chunks = (128, 152), 19
  if c.data.layout == 'read_then_think':
    c.rollout.deep_cap += more * c.rollout.thought_cap


def task_sections() -> list[str]:
  """Sections at the top of the config that tasks bring."""
  return [name for entry in tasks.TASKS.values() for name in entry.sections
          if '.' not in name]


def base(name: str, method: str) -> ml_collections.ConfigDict:
  """All fields, for a run called `name`."""
  c = config_lib.base()
  c.name, c.method = name, method
  c.eval.rows = 32  # by measurement on two CPU cores, see benchmarks
  return c
