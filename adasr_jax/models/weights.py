"""Parameter trees as single safetensors files, with their DecoderConfig."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from flax import traverse_util
import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from adasr_jax.core import files
from adasr_jax.models import decoder


def save(path: str | pathlib.Path, params: decoder.Params,
         config: decoder.DecoderConfig, **notes: str) -> None:
  """Writes a parameter tree, its DecoderConfig and notes (string values)."""
  flat = traverse_util.flatten_dict(jax.device_get(params), sep='.')
  metadata = dict(notes, config=json.dumps(dataclasses.asdict(config)))
  files.whole(pathlib.Path(path), lambda new: save_file(
      {k: np.ascontiguousarray(v) for k, v in flat.items()}, str(new),
      metadata=metadata))


def load(path: str | pathlib.Path, config: decoder.DecoderConfig
         ) -> decoder.Params:
  """Reads what save() wrote, for exactly this DecoderConfig.

  Raises:
    ValueError: Not a safetensors file; or tensors are missing, unknown or of
      another shape than the config says; they are named.
  """
  want = {k: v.shape for k, v in traverse_util.flatten_dict(
      jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))),
      sep='.').items()}
  try:
    with safe_open(str(path), 'numpy') as f:
      flat = {k: f.get_tensor(k) for k in f.keys()}
  except Exception as e:  # the library raises its own untyped error
    raise ValueError(f'{path} is not a readable safetensors file: {e}') from e
  bad = sorted([f'missing {k}' for k in want.keys() - flat.keys()]
               + [f'unknown {k}' for k in flat.keys() - want.keys()]
               + [f'{k} has shape {flat[k].shape}, not {want[k]}'
                  for k in want.keys() & flat.keys()
                  if flat[k].shape != want[k]])
  if bad:
    raise ValueError(f'{path} does not fit the model: {"; ".join(bad)}')
  return traverse_util.unflatten_dict(flat, sep='.')
