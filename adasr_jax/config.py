"""The one config tree: its fields, how arguments change it, what is refused.

`base()` holds every field with its meaning; the files in configs/ change
values. Nothing below methods/ reads a config: values are arguments there.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import pathlib
from typing import Any

import ml_collections
from ml_collections import config_dict

from adasr_jax.data import adapters
from adasr_jax.data import records
from adasr_jax.data import sources
from adasr_jax.models import attention
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.tasks import word_problems

METHODS = ('sft', 'hrpo')


def base() -> ml_collections.ConfigDict:
  """Every field of a run, with the defaults of the embedded task."""
  c = ml_collections.ConfigDict()
  c.name = config_dict.placeholder(str)  # label in reports
  c.method = config_dict.placeholder(str)  # one of METHODS, or 'eval'
  c.seed = 0
  c.steps = config_dict.placeholder(int)  # training steps
  c.token_budget = 0  # stop once so many tokens were generated; 0 = never
  # Where parameters start: '' = random; a .safetensors file; a workdir, whose
  # newest checkpoint is read (workdir@STEP: that one, workdir@best); or a
  # Hugging Face model folder (config.json and safetensors). The folder, and a
  # workdir that began from one, give the model's architecture as well.
  c.init = ''

  c.data = d = ml_collections.ConfigDict()
  d.source = 'procedural'  # or 'jsonl', 'huggingface', 'tfds'
  d.layout = 'streaming'  # or 'read_then_think'
  d.prompts = 8  # P, problems a step
  d.lengths = (56, 72)  # buckets of source slots; longer is an error
  d.max_chunks = 9  # C
  d.overlong = 'error'  # or 'drop': leave out what fits no bucket, counted
  d.seed = 0  # of the training stream; evaluation problems are fixed
  # procedural: see Difficulty and Teacher in data/procedural.py
  tree = lambda x: ml_collections.ConfigDict(dataclasses.asdict(x))
  d.task = tree(word_problems.DEFAULT)
  d.ood_task = tree(word_problems.OOD)
  d.teacher = tree(word_problems.UNDISCIPLINED)
  # The other sources: see data/sources.py
  # jsonl: FILE; huggingface: NAME[:SUBSET][@SPLIT], a folder, a file or a name
  # on the hub; tfds: FOLDER[@SPLIT]. SPLIT is the dataset's own, 'train' where
  # none is said; ours are shares of it.
  d.path = ''
  d.test_path = ''  # all of it is the test split; '' = a share of path
  d.format = ''  # of adapters.FORMATS, as 'gsm8k'; '' = as fields says
  d.malformed = 'error'  # or 'drop': leave bad records out, each told
  d.fields = ml_collections.ConfigDict(dict(
      question='question', answer='answer', context='', relevant='',
      thoughts='', deep=''))
  d.question = 'as_is'  # or 'first', 'last'
  d.instruction = ''

  c.tokenizer = t = ml_collections.ConfigDict()
  t.kind = 'embedded'  # or 'folder'
  t.path = ''  # folder with tokenizer.json, tokenizer_config.json

  # Where config.init gives the architecture, dtype, remat, attention and
  # target_offset alone are read; the run's config.json then holds what it gave.
  c.model = m = ml_collections.ConfigDict()
  m.vocab_size = 0  # embedding rows; 0 = as the tokenizer needs
  m.num_layers = 4
  m.d_model = 96
  m.num_heads = 4
  m.num_kv_heads = 2
  m.head_dim = 24
  m.d_ff = 256
  m.rope_theta = 1e4
  m.norm_eps = 1e-6
  m.qk_norm = True
  m.qkv_bias = False
  m.tie_embedding = True
  m.dtype = 'float32'
  # What the backward pass computes again: 'none', each layer ('full'; on CPU
  # quicker, less memory to write), or all of it but matrix products ('dots').
  m.remat = 'full'
  m.attention = 'auto'  # see models/attention.py
  m.target_offset = 0
  m.rope_scaling = ()  # or Llama 3's four numbers, see DecoderConfig

  # Devices along each axis, see sharding.py; one may be -1, what is left.
  c.mesh = ml_collections.ConfigDict(dict(data=1, fsdp=-1, tensor=1))

  # With a rank, the parameters stay as they are and matrices added to those
  # of every layer are trained; see models/lora.py.
  c.lora = ml_collections.ConfigDict(dict(
      rank=0, alpha=16.0, targets=tuple(lora.TARGETS)))

  c.rollout = r = ml_collections.ConfigDict()
  r.samples = 12  # G, rollouts a problem
  r.thought_cap = 16
  r.deep_cap = 24
  r.answer_cap = 4
  r.legality = 'free'  # or 'masked'
  r.temperature = 1.0
  r.top_k = 0  # RL refuses anything else
  r.top_p = 1.0

  c.reward = w = ml_collections.ConfigDict()
  w.format_weight = 0.2
  w.accuracy_weight = 1.0
  w.think_weight = 0.1  # beta
  w.alpha = 0.3  # cost of a streaming token against a deep one
  w.shaping = 'relative'  # or 'budget', 'linear'
  w.budget = 32.0  # tokens, for the shapings that have one
  w.overlong_penalty = 0.0
  w.overlong_window = 0
  w.user = ''  # 'package.module:function', see adasr_jax/rewards

  c.advantage = a = ml_collections.ConfigDict()
  a.granularity = 'stage'  # HRPO; 'sequence' = GRPO; 'sentence'; 'token'
  a.lam = 0.5  # lambda, weight of the local advantage
  a.normaliser = 'std'  # or 'constant'
  a.constant = 1.0

  c.loss = l = ml_collections.ConfigDict()
  l.ratio = 'token'  # or 'sequence' (GSPO)
  l.surrogate = 'clip'  # or 'cispo'
  l.clip_low = 0.2
  l.clip_high = 0.28
  l.aggregation = 'token'  # or 'sequence', 'constant'
  l.constant = 64.0
  l.kl_weight = 0.0
  l.behaviour_cap = 0.0  # truncated importance sampling; 0 = off
  l.mask_overlong = False  # rollouts that met a cap carry no loss
  l.inner_epochs = 1
  l.micro_batches = 1
  # Dynamic sampling: groups without any advantage are dropped; up to this
  # many further batches are rolled out to replace them.
  l.refills = 0

  c.optim = o = ml_collections.ConfigDict()
  o.learning_rate = 2e-4
  o.schedule = 'constant'  # or 'cosine', 'linear' (to 0 at the run's end)
  o.warmup = 0  # steps
  o.b1 = 0.9
  o.b2 = 0.99
  o.eps = 1e-8
  o.weight_decay = 0.0  # on matrices alone
  o.mu_dtype = 'float32'  # of Adam's first moment; or 'bfloat16'
  o.clip_norm = 1.0

  c.eval = e = ml_collections.ConfigDict()
  e.every = 0  # steps; 0 = at the start and the end alone
  e.at_start = True
  e.split = 'test'
  e.examples = 1000
  e.batch = 250  # problems at once
  e.samples = 1
  e.temperature = 0.0
  e.top_k = 0
  e.top_p = 1.0
  e.decisions = 'policy'  # or 'gold': think and skip as relevance says
  e.periodic_split = 'validation'
  e.periodic_examples = 250
  e.baselines = ()  # workdirs shown beside this run in the report

  c.clock = k = ml_collections.ConfigDict()  # see latency.py
  k.words_per_minute = 150.0
  k.measure = False  # True: sigma and tau are measured on this machine
  k.sigma = 0.001  # seconds a source token
  k.tau = 0.05  # seconds a target token

  c.checkpoint = s = ml_collections.ConfigDict()
  s.every = 50
  s.keep = 2

  c.log = g = ml_collections.ConfigDict()
  g.samples_every = 10  # steps between entries of samples.jsonl
  g.samples = 2  # rollouts an entry
  g.tensorboard = True
  g.wandb_project = ''  # '' = off; needs the wandb package
  g.profile_step = -1  # trace this step with jax.profiler; -1 = never
  return c


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
      if text not in ('', 'True', 'False', 'true', 'false', '1', '0'):
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


def validate(c: ml_collections.ConfigDict, files: bool = True) -> None:
  """Refuses what cannot work, before anything is compiled or written.

  Args:
    c: All of it.
    files: Whether the files that it names must be there.

  Raises:
    ValueError: Names the field and its value.
  """
  flat = _flatten(c.to_dict())
  unset = [k for k, v in flat.items() if v is None]
  _require(not unset, f'{", ".join(unset)} must be set')
  _one_of(c, 'method', (*METHODS, 'eval'))
  for name, known in (
      ('data.source', ('procedural', *sources.SOURCES)),
      ('data.layout', ('streaming', 'read_then_think')),
      ('data.overlong', ('error', 'drop')),
      ('data.malformed', sources.MALFORMED),
      ('data.format', ('', *adapters.FORMATS)),
      ('tokenizer.kind', ('embedded', 'folder')),
      ('rollout.legality', ('free', 'masked')),
      ('reward.shaping', ('relative', 'budget', 'linear')),
      ('advantage.granularity', ('sequence', 'stage', 'sentence', 'token')),
      ('advantage.normaliser', ('std', 'constant')),
      ('loss.ratio', ('token', 'sequence')),
      ('loss.surrogate', ('clip', 'cispo')),
      ('loss.aggregation', ('token', 'sequence', 'constant')),
      ('optim.schedule', ('constant', 'cosine', 'linear')),
      ('optim.mu_dtype', ('float32', 'bfloat16')),
      ('model.remat', decoder.REMAT),
      ('model.attention', attention.KERNELS),
      ('eval.decisions', ('policy', 'gold'))):
    _one_of(c, name, known)
  splits = (word_problems if c.data.source == 'procedural' else sources).SPLITS
  for name in ('eval.split', 'eval.periodic_split'):
    _one_of(c, name, tuple(splits))
  for name in ('steps', 'data.prompts', 'data.max_chunks', 'rollout.samples',
               'eval.examples', 'eval.batch', 'eval.samples',
               'loss.inner_epochs', 'loss.micro_batches', 'checkpoint.every',
               'checkpoint.keep', 'log.samples_every',
               'clock.words_per_minute', 'optim.learning_rate',
               'optim.clip_norm', 'reward.budget', 'lora.alpha'):
    _require(flat[name] > 0, f'{name}={flat[name]} must be positive')
  for name in ('data.seed', 'loss.refills', 'lora.rank', 'eval.every',
               'optim.warmup', 'clock.sigma', 'clock.tau',
               'reward.think_weight', 'reward.overlong_window',
               'loss.kl_weight', 'rollout.top_k', 'eval.top_k',
               'eval.temperature', 'optim.weight_decay'):
    _require(flat[name] >= 0, f'{name}={flat[name]} is negative')
  _require(c.lora.targets and set(c.lora.targets) <= set(lora.TARGETS),
           f'lora.targets={tuple(c.lora.targets)} are not of '
           f'{tuple(lora.TARGETS)}')
  for name in ('advantage.lam', 'reward.alpha'):
    _require(0 <= flat[name] <= 1, f'{name}={flat[name]} is outside [0, 1]')
  for name in ('rollout.top_p', 'eval.top_p'):
    _require(0 < flat[name] <= 1, f'{name}={flat[name]} is outside (0, 1]')
  _require(c.data.prompts % c.loss.micro_batches == 0,
           f'loss.micro_batches={c.loss.micro_batches} does not divide '
           f'data.prompts={c.data.prompts}')
  if c.method == 'hrpo':
    _require(c.rollout.temperature > 0,
             f'rollout.temperature={c.rollout.temperature}: RL needs > 0')
    _require(c.rollout.top_k == 0 and c.rollout.top_p == 1,
             f'rollout.top_k={c.rollout.top_k}, rollout.top_p='
             f'{c.rollout.top_p}: RL samples without truncation, since a '
             f'sampled token could get probability 0 after one update')
    _require(c.rollout.samples > 1,
             f'rollout.samples={c.rollout.samples}: a group needs at least 2')
  if c.eval.temperature == 0:
    _require(c.eval.samples == 1, f'eval.samples={c.eval.samples} with '
             f'eval.temperature=0: all samples would be the same')
  if c.data.source != 'procedural':
    of_source = f'data.source={c.data.source!r}'
    _require(c.data.path, f'data.path must be set with {of_source}')
    _require(c.tokenizer.kind == 'folder',
             f"{of_source} needs tokenizer.kind='folder'")
    _require(c.data.question in ('first', 'last', 'as_is'),
             f'data.question={c.data.question!r} is not first, last or as_is')
    _require(c.eval.decisions == 'policy'
             or (c.data.format == 'streaming_reasoning' if c.data.format
                 else c.data.fields.relevant),
             "eval.decisions='gold' needs data.fields.relevant or "
             "data.format='streaming_reasoning'")
  else:
    _require(c.tokenizer.kind == 'embedded',
             "data.source='procedural' needs tokenizer.kind='embedded'")
  _require(c.method != 'eval' or c.init, "method='eval' needs init")
  if files:
    _validate_files(c)


def _validate_files(c):
  for name in ('path', 'test_path'):
    path = c.data[name]
    there, what = {
        'jsonl': (pathlib.Path(path).is_file(), 'file'),
        'tfds': (pathlib.Path(records.address(path)[0]).is_dir(), 'folder'),
    }.get(c.data.source, (True, ''))
    _require(there or not path, f'data.{name}={path!r} is no {what}')
  if c.tokenizer.kind == 'folder':
    _require(pathlib.Path(c.tokenizer.path).is_dir() and c.tokenizer.path,
             f'tokenizer.path={c.tokenizer.path!r} is no folder')
  if c.init:
    _require(pathlib.Path(c.init.partition('@')[0]).exists(),
             f'init={c.init!r} does not exist')
  for path in c.eval.baselines:
    _require((pathlib.Path(path) / 'eval.json').is_file(),
             f'eval.baselines: no eval.json in {path!r}')


def _one_of(c, name, known):
  value = _flatten(c.to_dict())[name]
  _require(value in known, f'{name}={value!r} is not one of {known}')


def _flatten(tree, prefix=''):
  out = {}
  for k, v in tree.items():
    if isinstance(v, dict):
      out |= _flatten(v, f'{prefix}{k}.')
    else:
      out[prefix + k] = v
  return out


def difference(old: dict, new: dict) -> list[str]:
  """Lines `field: old -> new` of two config trees, empty where equal.

  A field that `old` does not know yet has its default there.
  """
  # Through JSON, so that tuples and lists compare equal.
  a, b, default = (_flatten(json.loads(json.dumps(x)))
                   for x in (old, new, base().to_dict()))
  a = {k: default[k] for k in b.keys() & default.keys()} | a
  return [f'{k}: {a.get(k, "(absent)")!r} -> {b.get(k, "(absent)")!r}'
          for k in sorted(a.keys() | b.keys())
          if a.get(k, ...) != b.get(k, ...)]
