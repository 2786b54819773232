"""Compiles the paper's sizes of Qwen3 for TPU slices; fills table.md.

  pip install 'jax[tpu]==0.10.2'
  python -m experiments.aot.run

Each cell is compiled in its own process and cached in runs/aot/results.json, so
an interrupted command continues where it stopped. results.json beside this file
has only the figures of table.md and the operations. On two cores the table
takes an hour and a half.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import sys
from typing import Any

import tqdm

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path('runs/aot/results.json')
MODELS = ('qwen3_0_6b', 'qwen3_1_7b', 'qwen3_4b', 'qwen3_8b', 'qwen3_32b')
TOPOLOGIES = ('v5e:4x4', 'v5e:8x8', 'v5p:2x2x2', 'v5p:4x4x4', 'v6e:8x8')
# Devices that share a matrix on chips of 16 and 32 GB; on v5p, as the config.
TENSOR = {'v5e': {'qwen3_1_7b': 2, 'qwen3_4b': 4, 'qwen3_8b': 8},
          'v6e': {'qwen3_4b': 2, 'qwen3_8b': 4}}
# The figures of a cell and of its programs that are committed.
FIGURES = ('error', 'prompts', 'samples', 'tensor', 'mesh', 'hbm', 'programs',
           'mfu_bound')
PROGRAMS = ('rollout', 'update')
PROGRAM_FIGURES = ('peak', 'sent', 'flops', 'flops_by_hand', 'seconds')


def config(model: str, topology: str):
  """hrpo.py:MODEL with one prompt per group of `tensor` chips."""
  from adasr_jax.tools.aot import programs as aot
  from configs import hrpo
  c = hrpo.get_config(model)
  chip = topology.partition(':')[0]
  c.mesh.tensor = TENSOR.get(chip, {}).get(model, c.mesh.tensor)
  c.data.prompts = len(aot.devices(topology)) // c.mesh.tensor
  c.loss.micro_batches = 1
  return c


def cell(args: tuple[str, str]) -> tuple[str, dict[str, Any]]:
  """The cell's name and its summary, or {'error': why it cannot run, ...}."""
  model, topology = args
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from adasr_jax.tools.aot import programs as aot
  c = config(model, topology)
  about = {'model': model, 'topology': topology, 'tensor': c.mesh.tensor,
           'prompts': c.data.prompts, 'samples': c.rollout.samples}
  try:
    found = aot.summary(c, topology, aot.compile_run(c, topology))
    for program in found['programs'].values():
      program['collectives'] = program['collectives'][:12]  # the largest
  except aot.DoesNotFit as e:
    found = {'error': str(e)}
  return name(*args), about | found


def name(model: str, topology: str) -> str:
  return f'{model} {topology}'


def compact(found: dict[str, Any]) -> dict[str, Any]:
  """The figures of a cell that are committed."""
  out = {k: found[k] for k in FIGURES if k in found}
  if 'programs' in out:
    out['programs'] = {
        name: {k: out['programs'][name][k] for k in PROGRAM_FIGURES}
        for name in PROGRAMS}
  return out


def write(results: dict[str, Any]) -> None:
  """Writes results.json, one line per cell, and table.md."""
  lines = [f' {json.dumps(key)}: {json.dumps(compact(results[key]))}'
           for key in (name(m, t) for m in MODELS for t in TOPOLOGIES)
           if key in results]
  (HERE / 'results.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')
  (HERE / 'table.md').write_text(table(results))


def table(results: dict[str, Any]) -> str:
  """The results as Markdown, one row per known cell.

  Args:
    results: Name of the cell -> its summary, whole or as of `compact`.
  """
  lines = [
      '| model | slice | data x fsdp x tensor | prompts x G | peak, GB | '
      'sent, GB | products, s | HBM, s | links, s | XLA, s | MFU |',
      '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |']
  both = lambda f: ' / '.join(map(f, PROGRAMS))
  num = lambda x: (f'{x:.0f}' if x >= 9.95 else f'{x:.2g}' if x >= .005
                   else '0')
  for model in MODELS:
    for topology in TOPOLOGIES:
      r = results.get(name(model, topology))
      if r is None:
        continue
      size = model.removeprefix('qwen3_').replace('_', '.').upper()
      rows = f"{r['prompts']} x {r['samples']}"
      if 'error' in r:
        lines.append(f"| {size} | {topology} | tensor={r['tensor']} | {rows} "
                     f"| {r['error']} | | | | | | |")
        continue
      mesh = ' x '.join(str(r['mesh'][k]) for k in ('data', 'fsdp', 'tensor'))
      p = r['programs']
      took = lambda which: both(lambda n: num(p[n]['seconds'][which]))
      peak = both(lambda n: f"{p[n]['peak'] / 1e9:.1f}")
      sent = both(lambda n: num(p[n]['sent'] / 1e9))
      mfu = both(lambda n: f"{100 * r['mfu_bound'][n]:.0f} %")
      lines.append(
          f"| {size} | {topology} | {mesh} | {rows} | {peak} of "
          f"{r['hbm'] / 1e9:.0f} | {sent} | {took('products')} | "
          f"{took('HBM')} | {took('links')} | {took('XLA')} | {mfu} |")
  return '\n'.join(lines) + '\n'


def main() -> None:
  argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawTextHelpFormatter).parse_args()
  results = json.loads(CACHE.read_text()) if CACHE.exists() else {}
  CACHE.parent.mkdir(parents=True, exist_ok=True)
  left = [(m, t) for m in MODELS for t in TOPOLOGIES
          if name(m, t) not in results]
  with multiprocessing.get_context('spawn').Pool(
      2, maxtasksperchild=1) as pool:
    for key, found in tqdm.tqdm(pool.imap_unordered(cell, left),
                                total=len(left), file=sys.stderr,
                                unit='cell'):
      results[key] = found
      CACHE.write_text(json.dumps(results, indent=1) + '\n')
  write(results)
  print(table(results))


if __name__ == '__main__':
  main()
