"""Programs of a run, compiled for a TPU slice without having one."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adasr_jax.config import sections
from adasr_jax.core import files
from adasr_jax.core import placement
from adasr_jax.core.protocol import Protocol, Threads
from adasr_jax.core.types import Packing, Source, Target
from adasr_jax.learn import METHODS
from adasr_jax.learn.update import UpdateBatch, logps, new_state, update
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from adasr_jax.run import factories
from adasr_jax.tools.aot import hlo
from adasr_jax.tools.aot import report as aot_report


class DoesNotFit(ValueError):
  """A program needs more memory than the chip has."""


# ----------------------------------------------------------------- topology
def devices(topology: str) -> list[Any]:
  """The devices of a topology, for a mesh to compile for.

  Args:
    topology: Chip and shape of the slice, as 'v5p:2x2x4'.

  Returns:
    One per chip; programs can be compiled for them, but not run.

  Raises:
    ValueError: An unknown chip, an impossible shape, or no libtpu.
  """
  chip, _, shape = topology.partition(':')
  if chip not in aot_report.CHIPS or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise ValueError(f'topology={topology!r} is not CHIP:AxB or CHIP:AxBxC '
                     f'with a chip of {", ".join(aot_report.CHIPS)}')
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError("compiling for a TPU needs libtpu: pip install "
                     f"'jax[tpu]=={jax.__version__}'")
  # libtpu must not look for a TPU, ask a cloud about it, or lock it.
  for name, value in (('TPU_SKIP_MDS_QUERY', '1'),
                      ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
                      ('TPU_ACCELERATOR_TYPE', f'{chip}-8'),
                      ('TPU_WORKER_HOSTNAMES', 'localhost'),
                      ('TPU_WORKER_ID', '0')):
    os.environ.setdefault(name, value)
  from jax.experimental import topologies
  try:
    out = topologies.get_topology_desc(
        platform='tpu', topology_name=topology).devices
  except Exception as e:  # libtpu raises several types
    raise ValueError(f'topology={topology!r}: {str(e).splitlines()[0]}'
                     ) from e
  if len(out) != math.prod(map(int, shape.split('x'))):
    raise ValueError(f'topology={topology!r} is a slice of {len(out)} chips')
  return out


# ----------------------------------------------------------------- programs
def decoder_config(c: ml_collections.ConfigDict) -> decoder.DecoderConfig:
  """The decoder of a config; from its fields where the folder is missing.

  Raises:
    ValueError: The folder or the tokenizer is malformed, or sizes do not fit.
  """
  if (c.init and os.path.exists(files.at_step(c.init)[0])
      or not c.model.vocab_size):
    return factories.tokenizer_and_decoder(sections(c))[1]
  return sections(c)['model']


def protocol_of(c: ml_collections.ConfigDict, vocab_size: int) -> Protocol:
  """A protocol that compiles to the run's programs.

  The ids of the control tokens make no difference, only the length of the
  prefix: for a tokenizer in a folder that of Qwen3's.

  Args:
    c: Its `rollout` has the caps, in tokens.
    vocab_size: Rows of the embedding.
  """
  r = c.rollout
  threads = Threads(spawn=6, join=7, result=8, none=9, children=r.children,
                    cap=r.child_cap) if r.children else None
  return Protocol(
      vocab_size=vocab_size, eot=1, skip=2, end_think=3, eos=4,
      undecodable=(0,),
      prefix=(5,) * (5 if c.tokenizer.kind == 'folder' else 1),
      thought_cap=r.thought_cap, deep_cap=r.deep_cap,
      answer_cap=r.answer_cap, legality=r.legality, threads=threads)


def shapes(c: ml_collections.ConfigDict, model_config: decoder.DecoderConfig,
           protocol: Protocol) -> dict[str, Any]:
  """Arguments of the programs as shapes, placed on the current mesh.

  Returns:
    Trees of jax.ShapeDtypeStruct with shardings: 'state' (TrainState),
    'reference' (parameters in the compute dtype, sharded like the state's),
    'policy' (the rollout's copy), 'batch' (UpdateBatch of P*G*W rows, packed:
    at most so many), 'source' (of P rows).

  Raises:
    ValueError: See sharding.shardings.
  """
  optimizer = factories.optimizer(sections(c))
  P, S = c.data.prompts, max(c.data.lengths)
  B = P * c.rollout.samples * protocol.width
  T = protocol.max_target(c.data.max_chunks)
  of = jax.ShapeDtypeStruct
  params = jax.eval_shape(lambda: decoder.init(model_config, jax.random.key(0)))
  state = jax.eval_shape(lambda p: new_state(p, optimizer), params)
  ints, bools = of((P, S), jnp.int32), of((P, S), bool)
  source = Source(tokens=ints, position=ints, phase=ints, valid=bools,
                  num_chunks=of((P,), jnp.int32),
                  problem_id=of((P,), jnp.uint32))
  ints, bools = of((B, T), jnp.int32), of((B, T), bool)
  floats = of((B, T), jnp.float32)
  target = Target(tokens=ints, phase=ints, stage=ints, valid=bools,
                  sampled=bools, logp=floats, logp_untruncated=floats)
  batch = UpdateBatch(
      source=source, target=target, mask=bools, deep=bools, advantage=floats,
      old=floats, reference=floats, packing=Packing(
          source=of((P, S), jnp.int32), target=ints, reads=ints))
  return {'state': placement.places(state),
          'reference': placement.places(jax.eval_shape(
              lambda p: placement.narrow(p, model_config.dtype), params)),
          'policy': placement.rollout_places(params, model_config.dtype),
          'batch': placement.row_places(batch),
          'source': placement.row_places(source)}


def compile_run(c: ml_collections.ConfigDict, topology: str,
                say: Callable[[str], None] = lambda text: None
                ) -> list[aot_report.Program]:
  """The programs of a run, compiled for a topology.

  Args:
    c: Validated; a method with rollouts, without LoRA.
    topology: See `devices`.
    say: Called with a line before the first and after each program.

  Returns:
    The programs, in the order of a step.

  Raises:
    ValueError: See `devices`, `decoder_config`, factories.mesh and
      sharding.shardings; or another method.
    DoesNotFit: A program does not fit; says what would help.
  """
  method = METHODS.get(c.method)
  if (method is None or not method.rolls_out or method.teacher
      or c.lora.rank):
    raise ValueError(f'method={c.method!r}, lora.rank={c.lora.rank}: only a '
                     f'method with rollouts and without a teacher, on all '
                     f'parameters, is compiled ahead of time')
  chips = devices(topology)
  hbm = aot_report.CHIPS[topology.partition(':')[0]].hbm
  model_config = decoder_config(c)
  protocol = protocol_of(c, model_config.vocab_size)
  out = []
  with jax.set_mesh(factories.mesh(sections(c), chips)):
    s = shapes(c, model_config, protocol)
    parts = aot_report.memory(c, model_config, protocol, s)
    for name in aot_report.HELD:
      if (least := sum(aot_report.held(name, parts).values())) > hbm:
        raise DoesNotFit(aot_report.refusal(
            name, least, parts, hbm, least='at least '))
    say(f'{decoder.kernels(model_config, c.data.prompts)}, '
        f'{len(chips)} chips')
    for name, resident, lower in _programs(c, model_config, protocol, s):
      out.append(_compile(name, resident, lower, parts, hbm))
      say(f'{name}: compiled in {out[-1].compiled_in:.0f} s')
  return out


def _programs(c, model_config, protocol, s
              ) -> list[tuple[str, int, Callable[[], jax.stages.Lowered]]]:
  """(name, bytes that lie beside it, how to lower it), as a step runs them.

  Args:
    c, model_config, protocol: The run.
    s: Of `shapes`.
  """
  r = c.rollout
  static = dict(model_config=model_config, protocol=protocol,
                temperature=float(r.temperature))
  key, rate = jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))
  cast = jax.jit(lambda p: placement.for_rollout(p, model_config.dtype))
  score = lambda params: lambda: logps.lower(
      params, s['batch'].source, s['batch'].target, s['batch'].packing,
      **static)
  state = aot_report.nbytes(s['state'])
  params = aot_report.nbytes(s['state'].params)
  reference = aot_report.nbytes(s['reference']) if c.loss.kl_weight else 0
  out = [
      ('cast', state - params + reference,
       lambda: cast.lower(s['state'].params)),
      ('rollout', state + reference, lambda: rollout.lower(
          s['policy'], s['source'], key, samples=r.samples, rows=r.rows,
          max_chunks=c.data.max_chunks, **static))]
  if c.loss.behaviour_cap:
    out.append(('old', state + reference, score(s['policy'])))
  if c.loss.kl_weight:
    out.append(('reference', state + aot_report.nbytes(s['policy']),
                score(s['reference'])))
  loss, optimizer = METHODS[c.method].loss(sections(c)), factories.optimizer(
      sections(c))
  out.append(('update', reference, lambda: update.lower(
      s['state'], s['batch'], rate, None, loss=loss, optimizer=optimizer,
      micro_batches=c.loss.micro_batches, **static)))
  return out


def _compile(name, resident, lower, parts, hbm) -> aot_report.Program:
  start = time.perf_counter()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e) or 'vmem' in str(e):
      raise
    used = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT])', str(e))
    if used is None:
      raise
    needed = float(used[1]) * 1024**('KMGT'.index(used[2]) + 1)
    raise DoesNotFit(aot_report.refusal(
        name, needed + resident, parts, hbm)) from e
  m = compiled.memory_analysis()
  out = aot_report.Program(
      name=name, cost=hlo.analyse(compiled.as_text()),
      arguments=m.argument_size_in_bytes,
      outputs=m.output_size_in_bytes - m.alias_size_in_bytes,
      temporaries=m.temp_size_in_bytes, code=m.generated_code_size_in_bytes,
      resident=resident, compiled_in=time.perf_counter() - start)
  if out.peak > hbm:
    raise DoesNotFit(aot_report.refusal(name, out.peak, parts, hbm))
  return out


# ------------------------------------------------------------------ summary
def summary(c: ml_collections.ConfigDict, topology: str,
            programs: list[aot_report.Program]) -> dict[str, Any]:
  """The figures that aot_report.report prints.

  Args:
    c, topology: See `compile_run`.
    programs: What it returned.

  Returns:
    topology, chips, mesh: The slice, and axis -> devices.
    prompts, samples, micro_batches, source_slots, target_slots: The step.
    hbm: Bytes that a program may use.
    memory: See aot_report.memory.
    programs: Name -> figures of one chip: peak, arguments, outputs,
      temporaries, code, resident (bytes, see Program); flops, flops_by_hand,
      flops_needed; bytes (HBM traffic); cycles; seconds (see
      aot_report.seconds); compiled_in (seconds); sent (bytes); collectives
      (see hlo.Collective).
    step_seconds: Sum of the programs' XLA estimates.
    mfu_bound: Name -> flops_needed per second of XLA's estimate, as a share of
      the chip's peak; without the cast.

  Raises:
    ValueError: See `compile_run`.
  """
  chip = aot_report.CHIPS[topology.partition(':')[0]]
  chips = devices(topology)
  model_config = decoder_config(c)
  protocol = protocol_of(c, model_config.vocab_size)
  with jax.set_mesh(factories.mesh(sections(c), chips)):
    mesh = jax.sharding.get_mesh()
    parts = aot_report.memory(c, model_config, protocol,
                              shapes(c, model_config, protocol))
    by_hand = aot_report.flops(c, model_config, protocol)
  out = {'topology': topology, 'chips': len(chips), 'mesh': dict(mesh.shape),
         'prompts': c.data.prompts, 'samples': c.rollout.samples,
         'micro_batches': c.loss.micro_batches,
         'source_slots': max(c.data.lengths),
         'target_slots': protocol.max_target(c.data.max_chunks),
         'hbm': chip.hbm, 'memory': parts, 'programs': {}}
  for p in programs:
    done, needed = by_hand[p.name]
    out['programs'][p.name] = {
        'peak': p.peak, 'arguments': p.arguments, 'outputs': p.outputs,
        'temporaries': p.temporaries, 'code': p.code, 'resident': p.resident,
        'flops': p.cost.flops, 'flops_by_hand': done / len(chips),
        'flops_needed': needed / len(chips), 'bytes': p.cost.bytes,
        'cycles': p.cost.cycles,
        'seconds': aot_report.seconds(p, chip), 'compiled_in': p.compiled_in,
        'sent': sum(map(aot_report.on_links, p.cost.collectives)),
        'collectives': [dataclasses.asdict(x) for x in p.cost.collectives]}
  step = sum(p['seconds']['XLA'] for p in out['programs'].values())
  out['step_seconds'] = step
  out['mfu_bound'] = {
      name: p['flops_needed'] / chip.flops / p['seconds']['XLA']
      for name, p in out['programs'].items() if p['flops_needed']}
  return out
