"""From a validated config to the parts of a run. Configs are read only here,
in the training loop and in main."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import importlib
import json
import pathlib
import shutil

from absl import logging
import jax
import ml_collections
import optax

from adasr_jax import config as config_lib
from adasr_jax.core import hosts
from adasr_jax.core.protocol import Protocol
from adasr_jax.core import placement
from adasr_jax.core import sharding
from adasr_jax.credit.advantages import AdvantageConfig
from adasr_jax.credit.rewards import RewardConfig, UserReward
from adasr_jax.data import dataset as dataset_lib
from adasr_jax.data import pipeline
from adasr_jax.data import sources
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.learn.hrpo import HRPO
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn.method import Method
from adasr_jax.learn import optim
from adasr_jax.learn.sft import SFT
from adasr_jax.models import decoder
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.models import lora
from adasr_jax.models import weights
from adasr_jax.run import checkpoint
from adasr_jax.run import logs
from adasr_jax.tasks import word_problems

# In a workdir that began from a Hugging Face folder: that folder without its
# weights, with the control tokens.
KEPT = 'huggingface'


@dataclasses.dataclass(frozen=True)
class Parts:
  """What training and evaluation share."""
  tokenizer: tokenizer_lib.Tokenizer
  protocol: Protocol
  model_config: decoder.DecoderConfig
  data: dataset_lib.Dataset


def mesh(c: ml_collections.ConfigDict,
         devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """The mesh of config.mesh over all devices, or over those given.

  Raises:
    ValueError: It does not fit the devices, or does not divide a step's rows.
  """
  out = sharding.make_mesh(c.mesh, devices)
  ways = out.shape['data'] * out.shape['fsdp']
  rows = c.data.prompts // c.loss.micro_batches * (
      c.rollout.samples if c.method == 'hrpo' else 1)
  if c.method == 'eval':
    return out
  if c.data.prompts % jax.process_count():
    raise ValueError(f'data.prompts={c.data.prompts} cannot be shared by '
                     f'{jax.process_count()} hosts')
  if rows % ways:
    raise ValueError(
        f'mesh axes data·fsdp={ways} do not divide the {rows} rows of a '
        f'micro-batch (data.prompts={c.data.prompts}, rollout.samples='
        f'{c.rollout.samples}, loss.micro_batches={c.loss.micro_batches})')
  if c.data.prompts // c.loss.micro_batches % ways:
    logging.warning(
        'mesh axes data·fsdp=%d do not divide the %d prompts of a micro-batch: '
        'every device reads all of them', ways,
        c.data.prompts // c.loss.micro_batches)
  return out


def parts(c: ml_collections.ConfigDict) -> Parts:
  """Tokenizer, protocol, decoder shape and data of a config.

  Raises:
    ValueError: A file is missing or malformed, or sizes do not fit.
  """
  tokenizer, config = tokenizer_and_decoder(c)
  protocol = Protocol(
      vocab_size=tokenizer.vocab_size, eot=tokenizer.eot, skip=tokenizer.skip,
      end_think=tokenizer.end_think, eos=tokenizer.eos,
      undecodable=tokenizer.undecodable, prefix=tokenizer.prefix,
      thought_cap=c.rollout.thought_cap, deep_cap=c.rollout.deep_cap,
      answer_cap=c.rollout.answer_cap, legality=c.rollout.legality)
  return Parts(tokenizer=tokenizer, protocol=protocol, model_config=config,
               data=_dataset(c, tokenizer, protocol))


def tokenizer_and_decoder(c: ml_collections.ConfigDict) -> tuple[
    tokenizer_lib.Tokenizer, decoder.DecoderConfig]:
  """Tokenizer and decoder shape; they agree on the rows of the embedding.

  Raises:
    ValueError: A file is missing or malformed, or sizes do not fit.
  """
  folder, m = model_folder(c.init), c.model
  if folder is None:
    tokenizer = (word_problems.embedded() if c.tokenizer.kind == 'embedded'
                 else tokenizer_lib.from_folder(c.tokenizer.path,
                                                m.vocab_size))
    if m.vocab_size not in (0, tokenizer.vocab_size):
      raise ValueError(f'model.vocab_size={m.vocab_size}, the tokenizer has '
                       f'{tokenizer.vocab_size}')
    return tokenizer, decoder.DecoderConfig(**dict(
        m, vocab_size=tokenizer.vocab_size,
        rope_scaling=tuple(m.rope_scaling)))
  if c.tokenizer.kind != 'folder':
    raise ValueError(f"init={c.init!r} is a Hugging Face model: it needs "
                     f"tokenizer.kind='folder'")
  config = hf_config.decoder_config(
      folder, dtype=m.dtype, remat=m.remat, attention=m.attention,
      target_offset=m.target_offset)
  tokenizer = tokenizer_lib.from_folder(c.tokenizer.path, config.vocab_size,
                                        resize=True)
  return tokenizer, dataclasses.replace(config,
                                        vocab_size=tokenizer.vocab_size)


def model_folder(init: str) -> pathlib.Path | None:
  """The Hugging Face folder that describes the model of config.init.

  The folder itself, or what a workdir kept of the one it began from; None
  where parameters start otherwise.
  """
  if not init:
    return None
  if _is_model(init):
    return pathlib.Path(init)
  path = pathlib.Path(init.partition('@')[0])
  kept = (path.parent if path.is_file() else path) / KEPT
  return kept if kept.is_dir() else None


def _is_model(init):
  """Whether config.init is a folder and no workdir."""
  path = pathlib.Path(init)
  if not path.is_dir() or (path / 'checkpoints').is_dir():
    return False
  try:  # a workdir without checkpoints: every run's config has a method
    return 'method' not in json.loads((path / 'config.json').read_text())
  except (OSError, ValueError):
    return True  # reading it as a model tells what is wrong


def keep_model_folder(c: ml_collections.ConfigDict, p: Parts,
                      workdir: pathlib.Path) -> None:
  """Writes workdir/huggingface, for later runs and exports.

  config.json, generation_config.json and the tokenizer with the control
  tokens; nothing where the model came from no folder.
  """
  folder, out = model_folder(c.init), workdir / KEPT
  if folder is None or (out / 'config.json').is_file():
    return
  tokenizer_lib.copy_folder(c.tokenizer.path, out)
  if (folder / 'generation_config.json').is_file():
    shutil.copyfile(folder / 'generation_config.json',
                    out / 'generation_config.json')
  raw = dict(hf_config.read_config(folder),
             vocab_size=p.model_config.vocab_size)
  # Last: a folder that has it is whole.
  (out / 'config.json').write_text(json.dumps(raw, indent=2) + '\n')


def record_start(c: ml_collections.ConfigDict, p: Parts) -> None:
  """Sets config.model to what a Hugging Face folder gave, and pins the start
  of a LoRA run, which is read again by all that begins from it."""
  if c.lora.rank and (pathlib.Path(c.init.partition('@')[0])
                      / 'checkpoints').is_dir():
    c.init = '{}@{}'.format(*hosts.by_first(lambda: checkpoint.find(c.init)))
  if model_folder(c.init) is not None:
    c.model.update(dataclasses.asdict(p.model_config))


def _dataset(c, tokenizer, protocol) -> dataset_lib.Dataset:
  d = c.data
  fit = dict(lengths=tuple(d.lengths), max_chunks=d.max_chunks)
  make = lambda train, evaluation: dataset_lib.Dataset(
      train, evaluation, tokenizer, protocol, layout=d.layout, **fit)
  if d.source == 'procedural':
    task = word_problems.Task(
        seed=d.seed, difficulty=word_problems.Difficulty(**d.task),
        ood_difficulty=word_problems.Difficulty(**d.ood_task),
        teacher=word_problems.Teacher(**d.teacher))
    # Evaluated on the same problems whatever the seed of the training stream.
    fixed = dataclasses.replace(task, seed=0)
    return make(lambda i: task.example('train', i),
                lambda split: _Endless(fixed, split))
  @functools.cache
  def source(path):
    return sources.SOURCES[d.source](
        path, d.fields.to_dict(), format=d.format, question=d.question,
        instruction=d.instruction, malformed=d.malformed)
  @functools.cache
  def read(split):
    path, part = d.path, split
    if d.test_path and split == 'test':
      path, part = d.test_path, 'all'
    elif d.test_path and split == 'train':
      part = 'train+test'
    trace = None
    if c.method == 'sft' and split == 'train':
      trace = lambda some: pipeline.supervised_target(
          some, tokenizer, protocol, max_chunks=d.max_chunks, layout=d.layout)
    return dataset_lib.fitting(source(path).part(part), tokenizer,
                               overlong=d.overlong, what=f'{path} ({split})',
                               trace=trace, **fit)
  data = make(dataset_lib.shuffled(read('train'), d.seed), read)
  e = c.eval
  for name, split, n in (
      ('examples', e.split, e.examples),
      *([('periodic_examples', e.periodic_split, e.periodic_examples)]
        if e.every else [])):
    if n > len(read(split)):
      raise ValueError(f'eval.{name}={n}: the split {split!r} has '
                       f'{len(read(split))} examples')
  return data


@dataclasses.dataclass(frozen=True)
class _Endless:
  """A split of the embedded task as a sequence."""
  task: word_problems.Task
  split: str

  def __len__(self):
    return 2**31

  def __getitem__(self, i):
    return self.task.example(self.split, i)


def initial_params(c: ml_collections.ConfigDict, p: Parts) -> decoder.Params:
  """Where the run starts: random, a file, a model folder or a checkpoint.

  Raises:
    ValueError: The file, folder or checkpoint does not fit the model.
  """
  return _params(c, p.model_config)


def _params(c, config):
  if not c.init:
    return placement.born(
        lambda: decoder.init(config, jax.random.key(c.seed)))
  if c.init.endswith('.safetensors'):
    return placement.place(weights.load(c.init, config))
  if _is_model(c.init):
    return hf.load(c.init, config)
  return restored_params(c.init, config)


def restored_params(init: str, config: decoder.DecoderConfig
                    ) -> decoder.Params:
  """The parameters of `workdir`, `workdir@STEP` or `workdir@best`.

  A LoRA run's checkpoint is added to what the run began from.

  Raises:
    ValueError: No such checkpoint, it has another shape, or what a LoRA run
      began from is not there any more.
  """
  shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  workdir = init.partition('@')[0]
  run = logs.read_json(pathlib.Path(workdir) / 'config.json')
  if not (run or {}).get('lora', {}).get('rank'):
    return placement.place(
        checkpoint.restore_params(init, placement.places(shapes)))
  c = config_lib.base()
  run.pop('command', None)
  c.update(run)
  if c.init and not pathlib.Path(c.init.partition('@')[0]).exists():
    raise ValueError(f'{workdir!r} is LoRA on {c.init!r}, which does not '
                     f'exist')
  tree = placement.place(checkpoint.restore_params(
      init, placement.places(jax.eval_shape(_lora_init(c, shapes)))))
  frozen = lora.Frozen(_params(c, config), scale=c.lora.alpha / c.lora.rank)
  return lora.merge(frozen, tree)


def lora_tree(c: ml_collections.ConfigDict, params: decoder.Params
              ) -> decoder.Params:
  """The LoRA tree that a run begins with."""
  return placement.born(_lora_init(c, jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)))


def _lora_init(c, shapes):
  return lambda: lora.init(jax.random.key(c.seed), shapes, rank=c.lora.rank,
                           targets=c.lora.targets)


def optimizer(c: ml_collections.ConfigDict) -> optax.GradientTransformation:
  """The optimizer of config.optim, at learning rate 1."""
  o = c.optim
  return optim.make_optimizer(
      b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay,
      clip_norm=o.clip_norm, mu_dtype=o.mu_dtype)


def loss_config(c: ml_collections.ConfigDict) -> LossConfig:
  """The fields of config.loss that the loss reads."""
  return LossConfig(**{f.name: c.loss[f.name]
                       for f in dataclasses.fields(LossConfig)})


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
      data=p.data, protocol=p.protocol, model_config=p.model_config,
      key=jax.random.key(c.seed), prompts=c.data.prompts,
      samples=c.rollout.samples, temperature=float(c.rollout.temperature),
      reward=reward_config(c), advantage=AdvantageConfig(**c.advantage),
      loss_config=loss_config(c),
      user=user_reward(c.reward.user), mask_overlong=l.mask_overlong,
      refills=l.refills, num_samples=c.log.samples)
