"""Parameter trees as single safetensors files, with their DecoderConfig."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any
import zlib

from flax import traverse_util
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from adasr_jax.core import files
from adasr_jax.models import decoder


def save(path: str | pathlib.Path, params: decoder.Params,
         config: decoder.DecoderConfig, **notes: str) -> None:
  """Writes a parameter tree, its DecoderConfig and notes (string values).

  Raises:
    OSError: It cannot be written.
  """
  flat = {k: np.ascontiguousarray(v) for k, v in traverse_util.flatten_dict(
      jax.device_get(params), sep='.').items()}
  metadata = dict(notes, config=json.dumps(dataclasses.asdict(config)))
  metadata['crc32'] = _sum(flat, metadata['config'])
  try:
    files.whole(pathlib.Path(path), lambda new: (
        save_file(flat, str(new), metadata=metadata),
        new.chmod(0o644)))  # save_file lets only the owner read
  except SafetensorError as e:  # what the library makes of a full disk
    raise OSError(f'{path} could not be written: {e}') from e


def _sum(flat, config):
  """CRC32 of a config and of all tensors, with their names."""
  crc = zlib.crc32(config.encode())
  for name in sorted(flat):
    crc = zlib.crc32(name.encode(), crc)
    crc = zlib.crc32(flat[name].reshape(-1).view(np.uint8), crc)
  return f'{crc:08x}'


# Of a DecoderConfig, what parameters do not depend on.
_FREE = frozenset({'vocab_size', 'dtype', 'remat', 'attention',
                   'target_offset'})


def unlike(saved: Mapping[str, Any], config: decoder.DecoderConfig) -> str:
  """What makes parameters compute something else, though their shapes fit.

  Args:
    saved: Fields of the DecoderConfig that they were trained with.
    config: The one that shall read them.

  Returns:
    'rope_theta=1e6, not 1e4'; '' where they agree.
  """
  saved, want = (json.loads(json.dumps(x))  # tuples become lists
                 for x in (dict(saved), dataclasses.asdict(config)))
  return ', '.join(f'{k}={saved[k]!r}, not {v!r}' for k, v in want.items()
                   if k in saved and k not in _FREE and saved[k] != v)


def load(path: str | pathlib.Path, config: decoder.DecoderConfig
         ) -> decoder.Params:
  """Reads what save() wrote, for exactly this DecoderConfig.

  Raises:
    ValueError: Not a safetensors file; or tensors are missing, unknown, not
      float32 or of another shape than the config says, they are named; or they
      are of a decoder that computes something else; or are not what was saved.
      (Files of before checksums were kept have none.)
  """
  want = {k: v.shape for k, v in traverse_util.flatten_dict(
      jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))),
      sep='.').items()}
  try:
    with safe_open(str(path), 'numpy') as f:
      flat = {k: f.get_tensor(k) for k in f.keys()}
      metadata = f.metadata() or {}
  except Exception as e:  # the library raises its own untyped error
    raise ValueError(f'{path} is not a readable safetensors file: {e}') from e
  bad = sorted([f'missing {k}' for k in want.keys() - flat.keys()]
               + [f'unknown {k}' for k in flat.keys() - want.keys()]
               + [f'{k} has shape {flat[k].shape}, not {want[k]}'
                  for k in want.keys() & flat.keys()
                  if flat[k].shape != want[k]]
               + [f'{k} has dtype {flat[k].dtype}, not float32'
                  for k in want.keys() & flat.keys()
                  if flat[k].dtype != np.float32])
  if bad:
    raise ValueError(f'{path} does not fit the model: {"; ".join(bad)}')
  if found := unlike(json.loads(metadata.get('config', '{}')), config):
    raise ValueError(f'{path} is of another decoder: {found}')
  if metadata.get('crc32') not in (None, _sum(flat,
                                              metadata.get('config', ''))):
    raise ValueError(f'{path} is damaged: it is not what was saved')
  return traverse_util.unflatten_dict(flat, sep='.')
