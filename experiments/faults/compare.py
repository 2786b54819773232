"""What two runs of one config must have in common, to the bit."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import numpy as np
from safetensors import safe_open

from adasr_jax.run import logs

# Fields of the wall clock, which differ between two runs.
CLOCK = ('time/', 'tokens_per_s/')


def differences(a: pathlib.Path, b: pathlib.Path, without: str = ''
                ) -> list[str]:
  """Where two finished runs differ; empty if they are equal.

  Compared are metrics.jsonl without the wall clock, whose steps must stand
  there once each, in order; samples.jsonl, problems.jsonl, eval.json and
  model.safetensors; of the checkpoints that both have, the last among them,
  parameters, optimizer state and progress.

  Args:
    a, b: Workdirs.
    without: Name of a checkpoint that is left out.
  """
  out = _metrics(a, b)
  for name in ('samples.jsonl', 'problems.jsonl', 'eval.json'):
    if (a / name).read_bytes() != _bytes(b / name):
      out.append(f'{name} differs')
  if _model(a) != _model(b):
    out.append('model.safetensors differs')
  if not (b / 'report.md').is_file():
    out.append('there is no report.md')
  return out + _checkpoints(a, b, without)


def _bytes(path):
  return path.read_bytes() if path.is_file() else None


def _model(workdir):
  """Metadata and tensors; the library writes the former in any order."""
  with safe_open(workdir / 'model.safetensors', 'numpy') as f:
    return f.metadata(), {k: f.get_tensor(k).tobytes() for k in f.keys()}


def _metrics(a, b):
  steady = lambda w: [{k: v for k, v in x.items() if not k.startswith(CLOCK)}
                      for x in logs.read_lines(w / 'metrics.jsonl')]
  x, y = steady(a), steady(b)
  keys = lambda lines: [(r['step'], r['kind']) for r in lines]
  if keys(x) != keys(y):
    return [f'metrics.jsonl has {keys(y)}, not {keys(x)}']
  return [f'metrics.jsonl differs at step {r["step"]} in {k}'
          for r, s in zip(x, y) for k in r.keys() | s.keys()
          if json.dumps(r.get(k)) != json.dumps(s.get(k))]


def steps(workdir: pathlib.Path) -> list[int]:
  """Of the checkpoints that are whole, the oldest first."""
  return sorted(int(p.name) for p in (workdir / 'checkpoints').glob('*')
                if p.name.isdigit())


def _checkpoints(a, b, without):
  common = sorted(set(steps(a)) & set(steps(b)))
  if not common or common[-1] != steps(a)[-1] or 0 not in common:
    return [f'checkpoints are {steps(b)}, not {steps(a)}']
  out = []
  for step in common:
    if str(step) == without:
      continue
    x, y = (_arrays(w / 'checkpoints' / str(step)) for w in (a, b))
    if x.keys() != y.keys():
      out.append(f'checkpoint {step} has other arrays')
      continue
    out += [f'checkpoint {step} differs in {k}' for k in x if x[k] != y[k]]
  return out


def _arrays(step: pathlib.Path) -> dict[str, Any]:
  """Name -> (dtype, shape, bytes) of each array, and the progress."""
  return _read(step.resolve(), (step / 'meta' / 'metadata').stat().st_mtime_ns)


@functools.lru_cache(16)
def _read(step, _):
  import jax
  import orbax.checkpoint as ocp
  reader = ocp.PyTreeCheckpointer()
  tree = reader.metadata(step / 'state').item_metadata.tree
  as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  state = reader.restore(step / 'state', args=ocp.args.PyTreeRestore(
      restore_args=as_numpy))
  out = {}
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    x = np.asarray(x)
    out[jax.tree_util.keystr(path)] = str(x.dtype), x.shape, x.tobytes()
  progress = json.loads((step / 'meta' / 'metadata').read_text())
  del progress['logs']  # checksums of what the wall clock has a part in
  return out | {'progress': progress}
