"""Compiles the paper's sizes of Qwen3 for TPU slices; fills table.md.

  pip install 'jax[tpu]==0.10.2'
  python -m experiments.aot.run

Each cell is compiled in a process of its own and kept in results.json as soon
as it is known, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import sys
from typing import Any

import tqdm

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / 'results.json'
MODELS = ('qwen3_0_6b', 'qwen3_1_7b', 'qwen3_4b', 'qwen3_8b', 'qwen3_32b')
TOPOLOGIES = ('v5e:4x4', 'v5e:8x8', 'v5p:2x2x2', 'v5p:4x4x4', 'v6e:8x8')
# Devices that share a matrix, for chips of 16 and 32 GB; the config's on v5p.
TENSOR = {'v5e': {'qwen3_1_7b': 2, 'qwen3_4b': 4, 'qwen3_8b': 8},
          'v6e': {'qwen3_4b': 2, 'qwen3_8b': 4}}


def config(model: str, topology: str):
  """hrpo.py:MODEL with one prompt for each group of chips with all rows."""
  from adasr_jax import aot
  from configs import hrpo
  c = hrpo.get_config(model)
  chip = topology.partition(':')[0]
  c.mesh.tensor = TENSOR.get(chip, {}).get(model, c.mesh.tensor)
  c.data.prompts = len(aot.devices(topology)) // c.mesh.tensor
  c.loss.micro_batches = 1
  return c


def cell(model: str, topology: str) -> dict[str, Any]:
  """The summary of one cell, or {'error': why it cannot run, ...}."""
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from adasr_jax import aot
  c = config(model, topology)
  about = {'model': model, 'topology': topology, 'tensor': c.mesh.tensor,
           'prompts': c.data.prompts, 'samples': c.rollout.samples}
  try:
    return about | aot.summary(c, topology, aot.compile_run(c, topology))
  except aot.DoesNotFit as e:
    return about | {'error': str(e)}


def table(results: dict[str, Any]) -> str:
  """Markdown, a row for each cell that is known."""
  lines = [
      '| model | slice | mesh (data x fsdp x tensor) | prompts x G | peak of '
      'the rollout, update (GB) | sent by a chip (GB) | rollout (s) | update '
      '(s) | MFU of the update |',
      '| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: |']
  for model in MODELS:
    for topology in TOPOLOGIES:
      r = results.get(f'{model} {topology}')
      if r is None:
        continue
      name = model.replace('qwen3_', 'Qwen3-').replace('_', '.').upper(
          ).replace('QWEN', 'Qwen')
      head = f'| {name} | {topology} | '
      rows = f"{r['prompts']} x {r['samples']} | "
      if 'error' in r:
        lines.append(f"{head}tensor={r['tensor']} | {rows}{r['error']} "
                     f'| | | | |')
        continue
      mesh = ' x '.join(str(r['mesh'][k]) for k in ('data', 'fsdp', 'tensor'))
      p = r['programs']
      peak = ', '.join(f"{p[n]['peak'] / 1e9:.1f}" for n in (
          'rollout', 'update'))
      sent = ', '.join(
        f"{sum(x['sent'] for x in p[n]['collectives']) / 1e9:.0f}"
        for n in ('rollout', 'update'))
      lines.append(
          f"{head}{mesh} | {rows}{peak} of {r['hbm'] / 1e9:.0f} | {sent} | "
          f"{p['rollout']['seconds']['XLA']:.0f} | "
          f"{p['update']['seconds']['XLA']:.0f} | "
          f"{r['mfu_bound']['update']:.0%} |")
  return '\n'.join(lines) + '\n'


def main() -> None:
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  cells = [(m, t) for m in MODELS for t in TOPOLOGIES]
  with multiprocessing.get_context('spawn').Pool(
      1, maxtasksperchild=1) as pool:
    for model, topology in tqdm.tqdm(cells, file=sys.stderr, unit='cell'):
      key = f'{model} {topology}'
      if key not in results:
        results[key] = pool.apply(cell, (model, topology))
        RESULTS.write_text(json.dumps(results, indent=1) + '\n')
        (HERE / 'table.md').write_text(table(results))
  print(table(results))


if __name__ == '__main__':
  main()
