r"""Ahead of time: does a run fit a TPU slice, and what would bound its speed?

  pip install 'jax[tpu]==0.10.2'
  python -m adasr_jax.aot --config=configs/hrpo.py:qwen3_4b --topology=v5p:2x2x4

Compiles the cast for the rollout, the rollout and the update of a config (and
the scoring of a reference or an old policy, where it has one) for a slice that
this machine has not: libtpu's compiler needs no TPU. The model and the data
need not be there either. What is printed is of one chip:

  memory   XLA's own figures for each program, and the training state beside
           the rollout
  work     products of matrices, HBM traffic and collectives with the trip
           counts of their loops (see hlo.py), checked against the count by
           hand of `flops` below
  time     the least that the chip's published rates allow, and XLA's estimate

Every rollout is counted to its last slot: the figures are upper bounds of a
step's work, so lower bounds of how many steps an hour has.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_flags

from adasr_jax import build
from adasr_jax import config as config_lib
from adasr_jax import hlo
from adasr_jax import sharding
from adasr_jax.methods.hrpo import loss_of
from adasr_jax.models import attention
from adasr_jax.models import decoder
from adasr_jax.protocol import Protocol
from adasr_jax.rollout import cache_sizes, rollout
from adasr_jax.types import Source, Target
from adasr_jax.update import UpdateBatch, logps, new_state, update

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published rates of one chip.

  Attributes:
    flops: bfloat16 operations a second.
    hbm: Bytes of memory that a program may use: what XLA says of it where one
      does not fit, a little less than the 16, 95 and 32 GiB that are sold.
    hbm_rate: Bytes a second.
    axis_rate: Bytes a second that a chip sends along one axis of the torus,
      both ways: half the bidirectional rate, shared by the axes.
    clock: Cycles a second, from `flops` and the arrays of the chip; turns
      XLA's cycles into seconds. (v6e: assumed to be v5p's.)

  Source: docs.cloud.google.com/tpu/docs/v5e, v5p and v6e.
  """
  flops: float
  hbm: float
  hbm_rate: float
  axis_rate: float
  clock: float


CHIPS = {
    'v5e': Chip(197e12, 15.75 * 2**30, 819e9, 400e9 / 2 / 2, 1.5e9),
    'v5p': Chip(459e12, 95.74 * 2**30, 2765e9, 1200e9 / 2 / 3, 1.75e9),
    'v6e': Chip(918e12, 31.25 * 2**30, 1638e9, 800e9 / 2 / 2, 1.75e9),
}


class DoesNotFit(ValueError):
  """A program needs more memory than the chip has."""


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program, on one chip.

  Attributes:
    name: 'cast', 'rollout', 'reference', 'old' or 'update'.
    cost: What it does.
    arguments, outputs, temporaries, code: Bytes in HBM; outputs without those
      that take the place of arguments.
    resident: Bytes of the run that lie there beside it.
    compiled_in: Seconds.
  """
  name: str
  cost: hlo.Cost
  arguments: int
  outputs: int
  temporaries: int
  code: int
  resident: int
  compiled_in: float

  @property
  def peak(self) -> int:
    return (self.arguments + self.outputs + self.temporaries + self.code
            + self.resident)


# ----------------------------------------------------------------- topology
def devices(topology: str) -> list[Any]:
  """The devices of a topology such as 'v5p:2x2x4'.

  Raises:
    ValueError: An unknown chip, a shape that there is not, or no libtpu.
  """
  chip, _, shape = topology.partition(':')
  if chip not in CHIPS or not re.fullmatch(r'\d+(x\d+)*', shape):
    raise ValueError(f'topology={topology!r} is not CHIP:AxB or CHIP:AxBxC '
                     f'with a chip of {", ".join(CHIPS)}')
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError("compiling for a TPU needs libtpu: pip install "
                     f"'jax[tpu]=={jax.__version__}'")
  # There is no TPU, no cloud to ask about it, and nobody to share it with.
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
  except Exception as e:  # libtpu's own, of several kinds
    raise ValueError(f'topology={topology!r}: {str(e).splitlines()[0]}'
                     ) from e
  if len(out) != math.prod(map(int, shape.split('x'))):
    raise ValueError(f'topology={topology!r} is a slice of {len(out)} chips')
  return out


# ----------------------------------------------------------------- programs
def decoder_config(c: ml_collections.ConfigDict) -> decoder.DecoderConfig:
  """The decoder of a config; from its fields where the folder is not here."""
  if os.path.exists(c.init.partition('@')[0]) or not c.model.vocab_size:
    return build.tokenizer_and_decoder(c)[1]
  return decoder.DecoderConfig(**dict(
      c.model, rope_scaling=tuple(c.model.rope_scaling)))


def protocol_of(c: ml_collections.ConfigDict, vocab_size: int) -> Protocol:
  """The protocol; which tokens control it makes no difference here."""
  r = c.rollout
  return Protocol(
      vocab_size=vocab_size, eot=1, skip=2, end_think=3, eos=4,
      undecodable=(0,), prefix=(5,), thought_cap=r.thought_cap,
      deep_cap=r.deep_cap, answer_cap=r.answer_cap, legality=r.legality)


def shapes(c: ml_collections.ConfigDict, config: decoder.DecoderConfig,
           protocol: Protocol) -> dict[str, Any]:
  """Arguments of the programs as shapes, placed on the mesh that is set."""
  optimizer = build.optimizer(c)
  P, S = c.data.prompts, c.data.lengths[-1]
  B, T = P * c.rollout.samples, protocol.max_target(c.data.max_chunks)
  of = jax.ShapeDtypeStruct
  params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  state = jax.eval_shape(lambda p: new_state(p, optimizer), params)
  ints, bools = of((P, S), jnp.int32), of((P, S), bool)
  source = Source(tokens=ints, position=ints, phase=ints, valid=bools,
                  num_chunks=of((P,), jnp.int32),
                  problem_id=of((P,), jnp.uint32))
  ints, bools = of((B, T), jnp.int32), of((B, T), bool)
  floats = of((B, T), jnp.float32)
  target = Target(tokens=ints, phase=ints, stage=ints, valid=bools,
                  sampled=bools, logp=floats, logp_untruncated=floats)
  batch = UpdateBatch(source=source, target=target, mask=bools, deep=bools,
                      advantage=floats, old=floats, reference=floats)
  return {'state': sharding.places(state),
          'reference': sharding.places(jax.eval_shape(
              lambda p: sharding.narrow(p, config.dtype), params)),
          'policy': sharding.rollout_places(params, config.dtype),
          'batch': sharding.row_places(batch),
          'source': sharding.row_places(source)}


def compile_run(c: ml_collections.ConfigDict, topology: str,
                told=lambda text: None) -> list[Program]:
  """The programs of a run, compiled for a topology.

  Args:
    c: Validated; method 'hrpo' without LoRA.
    topology: As of `devices`.
    told: Called with a line before and after each program.

  Raises:
    ValueError: See `devices`, build.mesh and sharding.shardings.
    DoesNotFit: With what does not, and what helps.
  """
  if c.method != 'hrpo' or c.lora.rank:
    raise ValueError(f'method={c.method!r}, lora.rank={c.lora.rank}: only '
                     f"'hrpo' on all parameters is compiled ahead of time")
  chips = devices(topology)
  config = decoder_config(c)
  protocol = protocol_of(c, config.vocab_size)
  r, optimizer = c.rollout, build.optimizer(c)
  static = dict(config=config, protocol=protocol,
                temperature=float(r.temperature))
  out = []
  with jax.set_mesh(build.mesh(c, chips)):
    s = shapes(c, config, protocol)
    state = nbytes(s['state'])
    reference = nbytes(s['reference']) if c.loss.kl_weight else 0
    hbm = CHIPS[topology.partition(':')[0]].hbm
    parts = memory(c, config, protocol)
    for name in HELD:
      if (least := sum(held(name, parts).values())) > hbm:
        raise DoesNotFit(refusal(name, least, parts, hbm, 'at least '))
    key, rate = jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))
    loss = loss_of(build.loss_config(c))
    told(f'{attention.choose(config.attention)} attention, '
         f'{len(chips)} chips')
    cast = jax.jit(lambda p: sharding.for_rollout(p, config.dtype))
    score = lambda params: lambda: logps.lower(
        params, s['batch'].source, s['batch'].target, **static)
    params = nbytes(s['state'].params)
    programs = [
        ('cast', state - params + reference,
         lambda: cast.lower(s['state'].params)),
        ('rollout', state + reference, lambda: rollout.lower(
            s['policy'], s['source'], key, samples=r.samples,
            max_chunks=c.data.max_chunks, **static)),
        ('update', reference, lambda: update.lower(
            s['state'], s['batch'], rate, None, loss=loss,
            optimizer=optimizer, micro_batches=c.loss.micro_batches,
            **static))]
    if c.loss.kl_weight:
      programs.insert(2, ('reference', state, score(s['reference'])))
    if c.loss.behaviour_cap:
      programs.insert(2, ('old', state - params + reference,
                          score(s['state'].params)))
    for name, resident, lower in programs:
      out.append(_compile(name, resident, lower, parts, hbm))
      told(f'{name}: compiled in {out[-1].compiled_in:.0f} s')
  return out


def _compile(name, resident, lower, parts, hbm):
  start = time.perf_counter()
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    used = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT])', str(e))
    if used is None:
      raise
    needed = float(used[1]) * 1024**('KMGT'.index(used[2]) + 1)
    raise DoesNotFit(refusal(name, needed + resident, parts, hbm)) from e
  m = compiled.memory_analysis()
  out = Program(
      name=name, cost=hlo.analyse(compiled.as_text()),
      arguments=m.argument_size_in_bytes,
      outputs=m.output_size_in_bytes - m.alias_size_in_bytes,
      temporaries=m.temp_size_in_bytes, code=m.generated_code_size_in_bytes,
      resident=resident, compiled_in=time.perf_counter() - start)
  if out.peak > hbm:
    raise DoesNotFit(refusal(name, out.peak, parts, hbm))
  return out


# ------------------------------------------------------------------- memory
def nbytes(tree: Any) -> int:
  """Bytes that one device holds of shapes with shardings."""
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
             for a in jax.tree.leaves(tree))


def memory(c: ml_collections.ConfigDict, config: decoder.DecoderConfig,
           protocol: Protocol) -> dict[str, int]:
  """Bytes of one chip, by what they are; on the mesh that is set.

  'activations' are the layers' inputs, which every policy of remat keeps, of
  one micro-batch.
  """
  mesh = jax.sharding.get_mesh()
  s = shapes(c, config, protocol)
  P, S = c.data.prompts, c.data.lengths[-1]
  B, T = P * c.rollout.samples, protocol.max_target(c.data.max_chunks)
  ways = lambda rows: (sharding.row_ways()
                       if rows % sharding.row_ways() == 0 else 1)
  width = jnp.dtype(config.dtype).itemsize
  slots = P // ways(P) * S + B // ways(B) * T
  kv = (2 * config.num_layers * config.num_kv_heads * config.head_dim
        // mesh.shape['tensor'] * slots * width)
  params = nbytes(s['state'].params)
  out = {
      'parameters': params,
      'optimizer': nbytes(s['state'].opt_state),
      'rollout copy': nbytes(s['policy']),
      'KV cache': kv,
      'gradients': params,
      'activations': (config.num_layers * config.d_model * width * slots
                      // c.loss.micro_batches),
  }
  if c.loss.kl_weight:
    out['reference'] = nbytes(s['reference'])
  return out


KNOBS = {
    'parameters': 'more chips (mesh.fsdp)',
    'optimizer': "more chips (mesh.fsdp), or optim.mu_dtype='bfloat16'",
    'rollout copy': 'a larger mesh.tensor',
    'KV cache': 'fewer data.prompts or rollout.samples, a larger mesh.tensor',
    'gradients': 'more chips (mesh.fsdp)',
    'activations': 'more loss.micro_batches, fewer rollout.samples, shorter '
                   'data.lengths',
    'reference': 'more chips (mesh.fsdp), or loss.kl_weight=0',
}
# What each program holds beside parameters, optimizer and reference.
HELD = {'cast': ('rollout copy',), 'rollout': ('rollout copy', 'KV cache'),
        'old': (), 'reference': (), 'update': ('gradients', 'activations')}


def held(name: str, parts: dict[str, int]) -> dict[str, int]:
  """What of `memory` a program holds."""
  all_have = 'parameters', 'optimizer', 'reference'
  return {k: v for k, v in parts.items() if k in all_have + HELD[name]}


def refusal(name: str, needed: float, parts: dict[str, int], hbm: float,
            least: str = '') -> str:
  """What does not fit, of what it is made, and what helps most."""
  has = held(name, parts)
  most = max(has, key=has.get)
  has['scratch'] = max(0, needed - sum(has.values()))
  listed = ', '.join(f'{k} {v / GB:.1f}' for k, v in has.items())
  return (f'does not fit: the {name} needs {least}{needed / GB:.1f} GB of '
          f'{hbm / GB:.1f} GB a chip ({listed}); what helps most: '
          f'{KNOBS[most]}')


# --------------------------------------------------------------------- work
def flops(c: ml_collections.ConfigDict, config: decoder.DecoderConfig,
          protocol: Protocol) -> dict[str, tuple[float, float]]:
  """Operations of all chips together, counted by hand.

  A token passes the matrices of a layer at 2 operations a weight; a pair of
  query and key costs 4 N H (scores and values). The backward pass costs two
  forward passes, and what is computed again; in attention by blocks five
  products to the forward's two. The head is always computed again.

  Returns:
    Program -> (what the program does, all blocks and all of the cache
    included; what the mathematics needs: each visible pair once, nothing
    computed again).
  """
  k, L = config, config.num_layers
  P, S = c.data.prompts, c.data.lengths[-1]
  B, T = P * c.rollout.samples, protocol.max_target(c.data.max_chunks) - 1
  heads = k.num_heads * k.head_dim
  layer = k.d_model * (2 * heads + 2 * k.num_kv_heads * k.head_dim
                       + 3 * k.d_ff)
  token, head, pair = 2 * L * layer, 2 * k.vocab_size * k.d_model, 4 * L * heads
  prefill = lambda pairs: P * S * token + P * pairs * pair
  seen = S * (S + 1) / 2
  sizes = cache_sizes(T + 1)
  steps = [b - a for a, b in zip([1] + sizes, sizes)]
  cache = sum(n * size for n, size in zip(steps, sizes))
  rollout_ = lambda pairs, own: (prefill(pairs) + B * T * (token + head)
                                 + B * (T * S + own) * pair)
  products = (P * S + B * T) * token
  # Nothing needs the output of a layer's last matrix again.
  again = 0 if k.remat != 'full' else 1 - k.d_ff * k.d_model / layer
  pairs = P * S * S + B * T * (S + T)
  visible = P * seen + B * T * (S + (T + 1) / 2)
  backward = 2 if attention.choose(k.attention) == 'einsum' else 2.5
  update_ = ((3 + again) * products + 4 * B * T * head
             + (1 + (k.remat != 'none') + backward) * pairs * pair)
  forward = lambda pairs: products + B * T * head + pairs * pair
  scored = forward(pairs), forward(visible)
  return {'cast': (0.0, 0.0), 'old': scored, 'reference': scored,
          'rollout': (rollout_(S * S, cache), rollout_(seen, T * (T + 1) / 2)),
          'update': (update_, 3 * forward(visible))}


def on_links(collective: hlo.Collective) -> float:
  """Bytes that a chip sends along its axis for one collective, on a ring."""
  n, size = collective.group, collective.bytes * collective.times
  return size * {'all-reduce': 2 * (n - 1) / n,
                 'collective-permute': 1.0}.get(collective.kind, (n - 1) / n)


def seconds(program: Program, chip: Chip) -> dict[str, float]:
  """What each part of a program takes at the chip's published rates.

  'products', 'HBM' and 'links' alone, as if nothing else were done; 'XLA',
  its own estimate of all but kernels and collectives, and these at the
  published rates, all behind one another.
  """
  links = sum(map(on_links, program.cost.collectives)) / chip.axis_rate
  kernels = sum(k.times * max(k.flops / chip.flops, k.bytes / chip.hbm_rate)
                for k in program.cost.kernels)
  return {'products': program.cost.flops / chip.flops,
          'HBM': program.cost.bytes / chip.hbm_rate, 'links': links,
          'kernels': kernels,
          'XLA': program.cost.cycles / chip.clock + kernels + links}


def summary(c: ml_collections.ConfigDict, topology: str,
            programs: list[Program]) -> dict[str, Any]:
  """What `report` prints, as numbers: bytes, operations and seconds a chip."""
  chip = CHIPS[topology.partition(':')[0]]
  chips = devices(topology)
  config = decoder_config(c)
  protocol = protocol_of(c, config.vocab_size)
  with jax.set_mesh(build.mesh(c, chips)):
    mesh = jax.sharding.get_mesh()
    parts, by_hand = memory(c, config, protocol), flops(c, config, protocol)
  out = {'topology': topology, 'chips': len(chips), 'mesh': dict(mesh.shape),
         'prompts': c.data.prompts, 'samples': c.rollout.samples,
         'micro_batches': c.loss.micro_batches,
         'source_slots': c.data.lengths[-1],
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
        'seconds': seconds(p, chip), 'compiled_in': p.compiled_in,
        'sent': sum(map(on_links, p.cost.collectives)),
        'collectives': [dataclasses.asdict(x) for x in p.cost.collectives]}
  step = sum(p['seconds']['XLA'] for p in out['programs'].values())
  out['step_seconds'] = step
  out['mfu_bound'] = {
      name: p['flops_needed'] / chip.flops / p['seconds']['XLA']
      for name, p in out['programs'].items() if p['flops_needed']}
  return out


# ------------------------------------------------------------------- report
def report(s: dict[str, Any]) -> str:
  """The summary as text."""
  programs = s['programs']
  names = list(programs)
  row = lambda label, values: f'  {label:<26}' + ''.join(
      f'{v:>12}' for v in values)
  num = lambda x: f'{x:,.3g}' if x < 100 else f'{x:,.0f}'
  part = lambda key, unit: [num(programs[n][key] / unit) for n in names]
  mesh = ' '.join(f'{k}={v}' for k, v in s['mesh'].items())
  lines = [
      f"{s['topology']}: {s['chips']} chips, mesh {mesh}; {s['prompts']} "
      f"prompts x {s['samples']} rollouts, {s['source_slots']:,} source and "
      f"{s['target_slots']:,} target slots, {s['micro_batches']} "
      f"micro-batches", '',
      'Memory of one chip, GB' + ' ' * 6 + ''.join(
          f'{n:>12}' for n in names)]
  for name in s['memory']:
    lines.append(row(name, [
        num(s['memory'][name] / GB) if name in held(n, s['memory']) else ''
        for n in names]))
  lines += [
      row('peak, by XLA', part('peak', GB)),
      row('of', [num(s['hbm'] / GB)] * len(names)), '', 'Work of one chip',
      row('products, TFLOP', part('flops', 1e12)),
      row('  the same by hand', part('flops_by_hand', 1e12)),
      row('  needed', part('flops_needed', 1e12)),
      row('HBM traffic, GB', part('bytes', GB)),
      row('sent to other chips, GB', part('sent', GB)), '',
      'Seconds at the published rates']
  for name in ('products', 'HBM', 'links', 'kernels', 'XLA'):
    label = "all, XLA's estimate" if name == 'XLA' else name
    lines.append(row(label, [num(programs[n]['seconds'][name])
                             for n in names]))
  lines += [row('MFU at that estimate', [
      f"{s['mfu_bound'][n]:.1%}" if n in s['mfu_bound'] else ''
      for n in names]), '', 'Largest collectives, MB x times, chips']
  for n in names:
    for x in programs[n]['collectives'][:6]:
      lines.append(f"  {n:<8} {x['kind']:<18} {x['shape']:<26} "
                   f"{x['bytes'] / 1e6:>9,.2f} x {x['times']:>9,.0f} "
                   f"{x['group']:>4}  {x['where'][-60:]}")
  lines += ['', f"A step: {s['step_seconds']:,.1f} s, if every rollout runs "
            f"to its last slot"]
  return '\n'.join(lines)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  c, topology = _CONFIG.value, _TOPOLOGY.value
  told = lambda text: print(text, file=sys.stderr, flush=True)
  try:
    config_lib.validate(c, files=False)
    print(report(summary(c, topology, compile_run(c, topology, told))))
  except ValueError as e:
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  _CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file.')
  _TOPOLOGY = flags.DEFINE_string('topology', None, 'As in v5p:2x2x4.')
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main)
