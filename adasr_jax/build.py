"""From a validated config to the parts of a run. Configs are read only here,
in the training loop and in main."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import jax
import ml_collections

from adasr_jax import checkpoint
from adasr_jax import tokenizer as tokenizer_lib
from adasr_jax.advantages import AdvantageConfig
from adasr_jax.data import dataset as dataset_lib
from adasr_jax.data import procedural
from adasr_jax.data import sources
from adasr_jax.losses import LossConfig
from adasr_jax.methods import Method
from adasr_jax.methods.hrpo import HRPO
from adasr_jax.methods.sft import SFT
from adasr_jax.models import decoder
from adasr_jax.models import weights
from adasr_jax.protocol import Protocol
from adasr_jax.rewards import RewardConfig, UserReward


@dataclasses.dataclass(frozen=True)
class Parts:
  """What training and evaluation share."""
  tokenizer: tokenizer_lib.Tokenizer
  protocol: Protocol
  config: decoder.DecoderConfig
  data: dataset_lib.Dataset


def parts(c: ml_collections.ConfigDict) -> Parts:
  """Tokenizer, protocol, decoder shape and data of a config.

  Raises:
    ValueError: A file is missing or malformed, or sizes do not fit.
  """
  tokenizer = (tokenizer_lib.embedded() if c.tokenizer.kind == 'embedded'
               else tokenizer_lib.from_folder(c.tokenizer.path,
                                              c.model.vocab_size))
  if c.model.vocab_size not in (0, tokenizer.vocab_size):
    raise ValueError(f'model.vocab_size={c.model.vocab_size}, the tokenizer '
                     f'has {tokenizer.vocab_size}')
  protocol = Protocol(
      vocab_size=tokenizer.vocab_size, eot=tokenizer.eot, skip=tokenizer.skip,
      end_think=tokenizer.end_think, eos=tokenizer.eos,
      undecodable=tokenizer.undecodable, prefix=tokenizer.prefix,
      thought_cap=c.rollout.thought_cap, deep_cap=c.rollout.deep_cap,
      answer_cap=c.rollout.answer_cap, legality=c.rollout.legality)
  model = dict(c.model, vocab_size=tokenizer.vocab_size)
  return Parts(tokenizer=tokenizer, protocol=protocol,
               config=decoder.DecoderConfig(**model),
               data=_dataset(c, tokenizer, protocol))


def _dataset(c, tokenizer, protocol) -> dataset_lib.Dataset:
  d = c.data
  fit = dict(lengths=tuple(d.lengths), max_chunks=d.max_chunks)
  make = lambda train, evaluation: dataset_lib.Dataset(
      train, evaluation, tokenizer, protocol, layout=d.layout, **fit)
  if d.source == 'procedural':
    task = procedural.Task(
        seed=d.seed, difficulty=procedural.Difficulty(**d.task),
        ood_difficulty=procedural.Difficulty(**d.ood_task),
        teacher=procedural.Teacher(**d.teacher))
    return make(lambda i: task.example('train', i),
                lambda split: _Endless(task, split))
  def read(split):
    examples = sources.Jsonl(
        d.path, d.fields.to_dict(), question=d.question,
        instruction=d.instruction, split=split)
    return dataset_lib.fitting(examples, tokenizer, overlong=d.overlong,
                               what=f'{d.path} ({split})', **fit)
  return make(dataset_lib.shuffled(read('train'), d.seed),
              functools.cache(read))


@dataclasses.dataclass(frozen=True)
class _Endless:
  """A split of the embedded task as a sequence."""
  task: procedural.Task
  split: str

  def __len__(self):
    return 2**31

  def __getitem__(self, i):
    return self.task.example(self.split, i)


def initial_params(c: ml_collections.ConfigDict, p: Parts) -> decoder.Params:
  """Where the run starts: random, a safetensors file, or a checkpoint.

  Raises:
    ValueError: The file or checkpoint does not fit the model.
  """
  if not c.init:
    return jax.jit(decoder.init, static_argnums=0)(
        p.config, jax.random.key(c.seed))
  if c.init.endswith('.safetensors'):
    return weights.load(c.init, p.config)
  return checkpoint.restore_params(c.init, jax.eval_shape(
      lambda: decoder.init(p.config, jax.random.key(0))))


def reward_config(c: ml_collections.ConfigDict) -> RewardConfig:
  """The reward's fields, without the user's own function."""
  return RewardConfig(**{k: v for k, v in c.reward.items() if k != 'user'})


def user_reward(name: str) -> UserReward | None:
  """The function `package.module:function`, None for ''.

  Raises:
    ValueError: There is no such function.
  """
  if not name:
    return None
  module, _, function = name.partition(':')
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError) as e:
    raise ValueError(f'reward.user={name!r}: {e}') from e


def method(c: ml_collections.ConfigDict, p: Parts) -> Method:
  """The method of config.method."""
  if c.method == 'sft':
    return SFT(data=p.data, protocol=p.protocol, prompts=c.data.prompts)
  l = c.loss
  return HRPO(
      data=p.data, protocol=p.protocol, config=p.config,
      key=jax.random.key(c.seed), prompts=c.data.prompts,
      samples=c.rollout.samples, temperature=float(c.rollout.temperature),
      reward=reward_config(c), advantage=AdvantageConfig(**c.advantage),
      loss_config=LossConfig(**{
          f.name: l[f.name] for f in dataclasses.fields(LossConfig)}),
      user=user_reward(c.reward.user), mask_overlong=l.mask_overlong,
      refills=l.refills, num_samples=c.log.samples)
