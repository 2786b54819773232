"""What a run compiled ahead of time needs on a chip: bytes, work, seconds.

The chips, what their memory holds, operations counted by hand, seconds at
published rates, and the printed report. programs.py compiles.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adasr_jax.core.protocol import Protocol
from adasr_jax.core import sharding
from adasr_jax.models import attention
from adasr_jax.models import decoder
from adasr_jax.models import pallas
from adasr_jax.policy.engine import Engine
from adasr_jax.policy.rollout import cache_sizes
from adasr_jax.tools.aot import hlo

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published rates of one chip.

  Attributes:
    flops: bfloat16 operations per second.
    hbm: Bytes of memory that a program may use, as XLA reports it for one that
      does not fit: a little less than the advertised 16, 95 and 32 GiB.
    hbm_rate: Bytes per second.
    axis_rate: Bytes per second that a chip sends along one axis of the torus,
      both ways: half the bidirectional rate, shared by the axes.
    clock: Cycles per second, from `flops` and the arrays of the chip; turns
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


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program, on one chip.

  Attributes:
    name: 'cast', 'rollout', 'reference', 'old' or 'update'.
    cost: What it does.
    arguments, outputs, temporaries, code: Bytes in HBM; outputs without those
      that reuse the memory of arguments.
    resident: Other bytes of the run that stay in HBM meanwhile.
    compiled_in: Seconds of compilation.
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
    """Bytes in HBM while it runs, including `resident`."""
    return (self.arguments + self.outputs + self.temporaries + self.code
            + self.resident)


# ------------------------------------------------------------------- memory
def nbytes(tree: Any) -> int:
  """Bytes that one device holds of a tree.

  Args:
    tree: Of arrays or jax.ShapeDtypeStruct, each with a sharding.
  """
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
             for a in jax.tree.leaves(tree))


def memory(c: ml_collections.ConfigDict, model_config: decoder.DecoderConfig,
           protocol: Protocol, shapes: dict[str, Any]) -> dict[str, int]:
  """Bytes on one chip by their purpose, on the current mesh.

  Args:
    c, model_config, protocol: The run.
    shapes: Its arguments on that mesh; see programs.shapes.

  Returns:
    A key of KNOBS -> bytes. 'activations' are the layers' inputs of one
    micro-batch, which every remat policy keeps. 'reference' is left out where
    there is none.
  """
  k, mesh = model_config, jax.sharding.get_mesh()
  P, S = c.data.prompts, max(c.data.lengths)
  T = protocol.max_target(c.data.max_chunks)
  B = P * c.rollout.samples * protocol.width
  ways = lambda rows: (sharding.row_ways()
                       if rows % sharding.row_ways() == 0 else 1)
  width = jnp.dtype(k.dtype).itemsize
  engine = Engine(
      model_config=k, protocol=protocol, prompts=P, samples=c.rollout.samples,
      max_chunks=c.data.max_chunks, temperature=1.0, rows=c.rollout.rows)
  rows = engine.queues * engine.rows_per_queue
  kv = (2 * k.num_layers * k.num_kv_heads * k.head_dim
        // mesh.shape['tensor'] * width
        * (P // ways(P) * S + rows // ways(rows) * T))
  slots = P // ways(P) * S + B // ways(B) * T
  params = nbytes(shapes['state'].params)
  out = {
      'parameters': params,
      'optimizer': nbytes(shapes['state'].opt_state),
      'rollout copy': nbytes(shapes['policy']),
      'KV cache': kv,
      'gradients': params,
      'activations': (k.num_layers * k.d_model * width * slots
                      // c.loss.micro_batches),
  }
  if c.loss.kl_weight:
    out['reference'] = nbytes(shapes['reference'])
  return out


# How to reduce each part of `memory`.
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
# What each program holds besides parameters, optimizer and reference.
HELD = {'cast': ('rollout copy',), 'rollout': ('rollout copy', 'KV cache'),
        'old': ('rollout copy',), 'reference': ('rollout copy',),
        'update': ('gradients', 'activations')}


def held(name: str, parts: dict[str, int]) -> dict[str, int]:
  """The parts of `memory` that a program holds.

  Args:
    name: Of the program.
    parts: Of `memory`.
  """
  all_have = 'parameters', 'optimizer', 'reference'
  return {k: v for k, v in parts.items() if k in all_have + HELD[name]}


def refusal(name: str, needed: float, parts: dict[str, int], hbm: float, *,
            least: str = '') -> str:
  """What does not fit, what it consists of, and what helps most.

  Args:
    name: Of the program.
    needed: Bytes, including what stays in memory meanwhile.
    parts: Of `memory`; the rest of `needed` is called scratch.
    hbm: Bytes that the chip has.
    least: Text before `needed`.
  """
  has = held(name, parts)
  most = max(has, key=has.get)
  has['scratch'] = max(0, needed - sum(has.values()))
  listed = ', '.join(f'{k} {v / GB:.1f}' for k, v in has.items())
  return (f'does not fit: the {name} needs {least}{needed / GB:.1f} GB of '
          f'{hbm / GB:.1f} GB per chip ({listed}); what helps most: '
          f'{KNOBS[most]}')


# --------------------------------------------------------------------- work
def flops(c: ml_collections.ConfigDict, model_config: decoder.DecoderConfig,
          protocol: Protocol) -> dict[str, tuple[float, float]]:
  """Operations of all chips together, counted by hand; on the current mesh.

  A token costs 2 operations per weight of a layer's matrices; a pair of query
  and key costs 4 N H (scores and values). The backward pass costs two forward
  passes plus what is recomputed; in blockwise attention it has five products
  where the forward pass has two. The head is always recomputed.

  Args:
    c, model_config, protocol: The run; every rollout counts to its last slot.

  Returns:
    Program -> (what the program does, with all blocks and all of the cache;
    what the mathematics needs: each visible pair once, nothing recomputed).

  Raises:
    ValueError: See attention.choose.
  """
  k, L = model_config, model_config.num_layers
  P, S = c.data.prompts, max(c.data.lengths)
  G, T = c.rollout.samples, protocol.max_target(c.data.max_chunks) - 1
  B = P * G * protocol.width
  heads = k.num_heads * k.head_dim
  layer = k.d_model * (2 * heads + 2 * k.num_kv_heads * k.head_dim
                       + 3 * k.d_ff)
  token, head, pair = 2 * L * layer, 2 * k.vocab_size * k.d_model, 4 * L * heads
  prefill = lambda pairs: P * S * token + P * pairs * pair
  seen = S * (S + 1) / 2
  skips_unwritten = decoder.decodes_by_pallas(k, P)
  sizes = cache_sizes(T + 1, skips_unwritten)
  steps = [b - a for a, b in zip([1] + sizes, sizes)]
  cache, read = sum(n * size for n, size in zip(steps, sizes)), S
  if skips_unwritten:
    # The kernel multiplies with its whole group's caches, and masks.
    whole = lambda slots, rows: math.prod(pallas.decode_blocks(slots, rows))
    cache, read = T * G * whole(T + 1, G), whole(S, 1)
  rollout_ = lambda pairs, own, source: (
      prefill(pairs) + B * T * (token + head) + B * (T * source + own) * pair)
  products = (P * S + B * T) * token
  # The output of a layer's last matrix is not recomputed.
  again = 0 if k.remat != 'full' else 1 - k.d_ff * k.d_model / layer
  pairs = P * S * S + B * T * (S + T)
  visible = P * seen + B * T * (S + (T + 1) / 2)
  backward = 2 if attention.choose(k.attention) == 'einsum' else 2.5
  update_ = ((3 + again) * products + 4 * B * T * head
             + (1 + (k.remat != 'none') + backward) * pairs * pair)
  forward = lambda pairs: products + B * T * head + pairs * pair
  scored = forward(pairs), forward(visible)
  return {'cast': (0.0, 0.0), 'old': scored, 'reference': scored,
          'rollout': (rollout_(S * S, cache, read),
                      rollout_(seen, T * (T + 1) / 2, S)),
          'update': (update_, 3 * forward(visible))}


def on_links(collective: hlo.Collective) -> float:
  """Bytes that a chip sends along its axis for a collective, on a ring.

  Returns:
    Bytes of one run of the program, over all of its `times`.
  """
  n, size = collective.group, collective.bytes * collective.times
  return size * {'all-reduce': 2 * (n - 1) / n,
                 'collective-permute': 1.0}.get(collective.kind, (n - 1) / n)


def seconds(program: Program, chip: Chip) -> dict[str, float]:
  """Seconds of each part of a program at the chip's published rates.

  Returns:
    Seconds of one run: 'products', 'HBM', 'links' and 'kernels', each by
    itself; 'XLA', XLA's estimate plus kernels and collectives at published
    rates, run sequentially.
  """
  links = sum(map(on_links, program.cost.collectives)) / chip.axis_rate
  kernels = sum(k.times * max(k.flops / chip.flops, k.bytes / chip.hbm_rate)
                for k in program.cost.kernels)
  return {'products': program.cost.flops / chip.flops,
          'HBM': program.cost.bytes / chip.hbm_rate, 'links': links,
          'kernels': kernels,
          'XLA': program.cost.cycles / chip.clock + kernels + links}


# ------------------------------------------------------------------- report
def report(s: dict[str, Any]) -> str:
  """The summary as text.

  Args:
    s: See programs.summary.
  """
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
