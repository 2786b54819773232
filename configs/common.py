"""What several configs share: the warm start, real text, smoke sizes."""

import dataclasses
import os
import pathlib

import ml_collections

from adasr_jax import config as config_lib
from adasr_jax.models import presets
from adasr_jax.tasks import word_problems

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
  c.rollout.samples = 4
  c.eval.examples = 40
  c.eval.batch = 20
  c.eval.periodic_examples = 20
  c.log.samples_every = 1


def full(c: ml_collections.ConfigDict) -> None:
  """The harder setting: longer streams, more distractors."""
  c.data.task = ml_collections.ConfigDict(
      dataclasses.asdict(word_problems.HARD))
  c.data.lengths = (88, 104)
  c.data.max_chunks = 13
  c.rollout.deep_cap = 32


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


def gsm8k(c: ml_collections.ConfigDict, folder: str) -> None:
  """Real text: GSM8K through the Qwen3 tokenizer, a small random Qwen3.

  Args:
    c: Changed in place.
    folder: Holds gsm8k_train.jsonl and qwen3_tokenizer/; '' = $ADASR_DATA, or
      ../shared/data.
  """
  folder = folder or os.environ.get('ADASR_DATA', '../shared/data')
  c.init = ''
  c.data.source = 'jsonl'
  c.data.path = os.path.join(folder, 'gsm8k_train.jsonl')
  c.data.instruction = INSTRUCTION
  c.data.lengths = (192, 256, 384, 512)
  c.data.max_chunks = 16
  c.tokenizer.kind = 'folder'
  c.tokenizer.path = os.path.join(folder, 'qwen3_tokenizer')
  m = c.model
  m.vocab_size = 151936
  m.num_layers, m.d_model, m.d_ff = 2, 64, 192
  m.num_heads, m.num_kv_heads, m.head_dim = 4, 2, 16
  m.rope_theta = 1e6
  c.rollout.thought_cap, c.rollout.deep_cap, c.rollout.answer_cap = 8, 16, 8
  c.rollout.samples = 4
  c.data.prompts = 2
  c.steps = 3
  c.eval.examples = c.eval.periodic_examples = 8
  c.eval.batch = 8
  c.log.samples_every = 1
  # A random policy meets every cap, so that AdaSR's own rewards are all zero;
  # this one has something to say about noise.
  c.reward.user = 'configs.user_reward:short_words'


# Argument of configs/hrpo.py -> preset, and devices that share a matrix.
QWEN3 = {'qwen3_0_6b': ('qwen3-0.6b', 1), 'qwen3_1_7b': ('qwen3-1.7b', 1),
         'qwen3_4b': ('qwen3-4b', 2), 'qwen3_8b': ('qwen3-8b', 4),
         'qwen3_14b': ('qwen3-14b', 4), 'qwen3_32b': ('qwen3-32b', 8)}


def qwen3(c: ml_collections.ConfigDict, name: str, folder: str) -> None:
  """The paper's sizes on a Qwen3: 12 rollouts of prompts up to 8,192 tokens.

  1,024 target slots: 32 thoughts of 16, 475 of deep reasoning, 32 of answer
  and a prefix of 5. (Chunks and caps are ours; the paper gives the first two.)

  Args:
    c: Changed in place.
    name: Of QWEN3.
    folder: Holds the model's folder, as Qwen3-4B, and train.jsonl.
  """
  preset, tensor = QWEN3[name]
  c.model.update(presets.PRESETS[preset].fields)
  c.model.dtype = 'bfloat16'
  c.tokenizer.kind = 'folder'
  c.init = c.tokenizer.path = os.path.join(
      folder, preset.replace('qwen', 'Qwen').replace('b', 'B'))
  d, r = c.data, c.rollout
  d.source, d.path = 'jsonl', os.path.join(folder, 'train.jsonl')
  d.instruction, d.overlong = INSTRUCTION, 'drop'
  d.lengths, d.max_chunks, d.prompts = (2048, 4096, 8192), 32, 16
  r.samples, r.thought_cap, r.deep_cap, r.answer_cap = 12, 16, 475, 32
  c.loss.micro_batches = 2
  c.mesh.tensor = tensor
  c.optim.learning_rate, c.optim.schedule = 1e-6, 'constant'
  c.eval.examples = c.eval.periodic_examples = 100
  c.eval.batch = 20


def base(name: str, method: str) -> ml_collections.ConfigDict:
  """All fields, for a run called `name`."""
  c = config_lib.base()
  c.name, c.method = name, method
  return c
