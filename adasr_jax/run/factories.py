"""From the config's dataclasses to the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from absl import logging
import jax
import optax

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.core.options import Sections
from adasr_jax.core import placement
from adasr_jax.core.protocol import Protocol, Threads
from adasr_jax.core import sharding
from adasr_jax.core import visibility
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.learn import METHODS
from adasr_jax.learn.method import Method, Parts
from adasr_jax.learn import optim
from adasr_jax.models import decoder
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.models import lora
from adasr_jax.models import weights
from adasr_jax.policy.rollout import RolloutConfig
from adasr_jax.run import checkpoint
from adasr_jax.run import teacher as teacher_lib
from adasr_jax.run import workdir as workdir_lib
from adasr_jax import tasks


def mesh(s: Sections, devices: Sequence[jax.Device] | None = None
         ) -> jax.sharding.Mesh:
  """The mesh of config.mesh over all devices, or over those given.

  Raises:
    ValueError: It does not fit the devices, or does not divide a step's rows.
  """
  out = sharding.make_mesh(vars(s['mesh']), devices)
  if s['run'].method == config_lib.EVAL:
    return out
  ways = out.shape['data'] * out.shape['fsdp']
  prompts, parts = s['data'].prompts, s['loss'].micro_batches
  r, rolls_out = s['rollout'], METHODS[s['run'].method].rolls_out
  # Rows of a prompt: its samples, and the threads that each may have.
  samples = r.samples if rolls_out else 1
  rows = prompts // parts * samples * (1 + r.children)
  if prompts % jax.process_count():
    raise ValueError(f'data.prompts={prompts} cannot be shared by '
                     f'{jax.process_count()} hosts')
  if rows % ways:
    raise ValueError(
        f'mesh axes data·fsdp={ways} do not divide the {rows} rows of a '
        f'micro-batch (data.prompts={prompts}, '
        f'{f"rollout.samples={r.samples}, " if rolls_out else ""}'
        f'rollout.children={r.children}, loss.micro_batches={parts})')
  if prompts // parts % ways:
    logging.warning(
        'mesh axes data·fsdp=%d do not divide the %d prompts of a micro-batch: '
        'every device reads all of them', ways, prompts // parts)
  return out


def parts(s: Sections) -> Parts:
  """Tokenizer, protocol, decoder shape and data of a config.

  Raises:
    ValueError: A file is missing or malformed, or sizes do not fit.
  """
  tokenizer, model_config = tokenizer_and_decoder(s)
  protocol = protocol_of(tokenizer, s['rollout'])
  entry = METHODS.get(s['run'].method)
  task, file = tasks.chosen(s), entry.traces(s) if entry else ''
  data = task.dataset(
      s, tokenizer, protocol,
      traces=entry is not None and not entry.rolls_out and not file)
  if file:
    try:
      data = data.imitating(file, overlong=s['data'].overlong,
                            seed=s['data'].seed)
    except ValueError as e:
      raise ValueError(f'{s["run"].method}.traces: {e}') from e
  if task.agrees is not None:
    data = data.judged_by(task.agrees(s), task.same,
                          task.solvable(s) if task.solvable else None)
  # An evaluation has no method; the field says how its run has read.
  reads = {e.reads(s) for e in ([entry] if entry else METHODS.values())}
  teacher = None
  if entry is not None and entry.teacher:
    teacher = dataclasses.replace(
        teacher_lib.shape(s, tokenizer, model_config),
        vocab_size=model_config.vocab_size)
  return Parts(
      tokenizer=tokenizer, protocol=protocol, model_config=model_config,
      data=data.reading(visibility.ALL if visibility.ALL in reads
                        else visibility.STREAM), teacher=teacher)


def protocol_of(tokenizer: Tokenizer, r: RolloutConfig) -> Protocol:
  """The protocol of a tokenizer's control tokens.

  Raises:
    ValueError: Children shall be spawned, and there are no tokens for that.
  """
  threads, own = None, tokenizer.of_threads
  if r.children:
    if not own:
      raise ValueError(f'rollout.children={r.children}: the tokenizer has no '
                       f'tokens of threads')
    threads = Threads(*own, children=r.children, cap=r.child_cap)
  return Protocol(
      vocab_size=tokenizer.vocab_size, eot=tokenizer.eot, skip=tokenizer.skip,
      end_think=tokenizer.end_think, eos=tokenizer.eos,
      undecodable=tuple(i for i in tokenizer.undecodable
                        if threads is None or i not in own),
      prefix=tokenizer.prefix, thought_cap=r.thought_cap, deep_cap=r.deep_cap,
      answer_cap=r.answer_cap, legality=r.legality, threads=threads)


def tokenizer_and_decoder(s: Sections) -> tuple[Tokenizer,
                                                decoder.DecoderConfig]:
  """Tokenizer and decoder shape; they agree on the rows of the embedding.

  Raises:
    ValueError: A file is missing or malformed, or sizes do not fit.
  """
  init, m = s['run'].init, s['model']
  folder, task = workdir_lib.model_folder(init), tasks.chosen(s)
  if folder is None:
    model_config = m
    tokenizer = task.tokenizer(s, m.vocab_size)
  else:
    if s['tokenizer'].kind != 'folder':
      raise ValueError(f"init={init!r} is a Hugging Face model: it needs "
                       f"tokenizer.kind='folder'")
    model_config = hf_config.decoder_config(
        folder, dtype=m.dtype, remat=m.remat, attention=m.attention,
        target_offset=m.target_offset)
    tokenizer = task.tokenizer(s, model_config.vocab_size, resize=True)
  return tokenizer, dataclasses.replace(model_config,
                                        vocab_size=tokenizer.vocab_size)


def method(s: Sections, p: Parts) -> Method:
  """The method of config.method."""
  return METHODS[s['run'].method].build(s, p)


def optimizer(s: Sections) -> optax.GradientTransformation:
  """The optimizer of config.optim, at learning rate 1."""
  o = s['optim']
  return optim.make_optimizer(
      b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay,
      clip_norm=o.clip_norm, mu_dtype=o.mu_dtype)


def initial_params(s: Sections, p: Parts) -> decoder.Params:
  """Where the run starts: random, a file, a model folder or a checkpoint.

  Raises:
    ValueError: The file, folder or checkpoint does not fit the model, or holds
      a number that is not finite.
  """
  out = _params(s['run'], p.model_config, p.tokenizer)
  if bad := placement.nonfinite(out):
    raise ValueError(f'init={s["run"].init!r} is not finite in '
                     f'{", ".join(bad)}')
  return out


def teacher_params(s: Sections, p: Parts) -> decoder.Params:
  """The frozen teacher, as a rollout's copy: in its dtype, without fsdp.

  Raises:
    ValueError: As `initial_params`, of teacher.init.
  """
  stored = teacher_lib.shape(s, p.tokenizer, p.model_config)
  run = dataclasses.replace(s['run'], init=s['teacher'].init)
  try:
    out = _params(run, stored, p.tokenizer)
  except ValueError as e:
    raise ValueError(f'teacher.{e}' if str(e).startswith('init=')
                     else f'teacher.init={run.init!r}: {e}') from e
  if bad := placement.nonfinite(out):
    raise ValueError(f'teacher.init={run.init!r} is not finite in '
                     f'{", ".join(bad)}')
  return placement.for_rollout(
      teacher_lib.fitted(out, p.model_config.vocab_size), stored.dtype)


def _params(run, model_config, tokenizer):
  init = run.init
  if not init:
    # Rollouts fold their step into the same key, so that steps 0 to 2 share
    # the bits of init's three draws, in other shapes. To part them would give
    # every seed another policy.
    return placement.born(
        lambda: decoder.init(model_config, jax.random.key(run.seed)))
  if init.endswith('.safetensors'):
    return placement.place(weights.load(init, model_config))
  if workdir_lib.is_model(init):
    rows = hf_config.read_config(init)['vocab_size']
    return hf.load(init, model_config,
                   tokenizer_lib.spelled(tokenizer, init, rows))
  return restored_params(init, model_config)


def restored_params(init: str, model_config: decoder.DecoderConfig
                    ) -> decoder.Params:
  """The parameters of `workdir`, `workdir@STEP` or `workdir@best`.

  A LoRA run's checkpoint is added to what the run began from.

  Raises:
    ValueError: No such checkpoint, it has another shape or is of another
      decoder, or what a LoRA run began from is not there any more.
  """
  shapes = jax.eval_shape(lambda: decoder.init(model_config,
                                               jax.random.key(0)))
  workdir, _ = files.at_step(init)
  saved = workdir_lib.read_config(workdir)
  if saved and (found := weights.unlike(
      config_lib.of_workdir(saved).model.to_dict(), model_config)):
    raise ValueError(f'{init!r} is of another decoder: {found}')
  if saved is None or not config_lib.of_workdir(saved).lora.rank:
    return placement.place(
        checkpoint.restore_params(init, placement.places(shapes)))
  s = config_lib.sections(config_lib.of_workdir(saved))
  base = s['run'].init
  if base and not files.at_step(base)[0].exists():
    raise ValueError(f'{str(workdir)!r} is LoRA on {base!r}, which does not '
                     f'exist')
  tree = placement.place(checkpoint.restore_params(
      init, placement.places(jax.eval_shape(_lora_init(s, shapes)))))
  tokenizer = None
  if base and workdir_lib.is_model(base):
    tokenizer = tokenizer_lib.from_folder(
        workdir_lib.model_folder(init) or s['tokenizer'].path,
        model_config.vocab_size)
  return lora.merge(
      frozen(s, _params(s['run'], model_config, tokenizer)), tree)


def frozen(s: Sections, params: decoder.Params) -> lora.Frozen:
  """What a LoRA tree is added to."""
  return lora.Frozen(params, scale=s['lora'].alpha / s['lora'].rank)


def lora_tree(s: Sections, params: decoder.Params) -> decoder.Params:
  """The LoRA tree that a run begins with."""
  return placement.born(_lora_init(s, jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)))


def _lora_init(s, shapes):
  # No step is that late, so no rollout has this key.
  key = lambda: jax.random.fold_in(jax.random.key(s['run'].seed), 2**32 - 1)
  return lambda: lora.init(key(), shapes, rank=s['lora'].rank,
                           targets=s['lora'].targets)
