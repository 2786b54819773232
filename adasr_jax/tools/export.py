"""python -m adasr_jax.tools.export --of=WORKDIR[@STEP|@best] --out=DIR

Writes a checkpoint as a Hugging Face folder for `transformers` and vLLM:
weights, config, generation config, and the tokenizer with control tokens and
chat template. A run that began from such a folder keeps that folder's config
and dtype; any other is declared as Qwen3, Qwen2 or Llama, depending on its
layers.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging

from adasr_jax import config as config_lib
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.run import factories
from adasr_jax.run import logs
from adasr_jax.run import workdir as workdir_lib

_OF = flags.DEFINE_string('of', None, 'WORKDIR, WORKDIR@STEP, WORKDIR@best.')
_OUT = flags.DEFINE_string('out', None, 'Folder to create.')
_DTYPE = flags.DEFINE_enum(
    'dtype', '', ['', *hf.DTYPES.values()],
    "Of the tensors; '' = as in the run's start folder, else float32.")
_SHARD_GB = flags.DEFINE_float('shard_gb', 5.0, 'Maximum gigabytes per file.')
_MAX_POSITION = flags.DEFINE_integer(
    'max_position', 4096, 'Declared maximum number of positions; ignored if '
    'the run began from a folder, whose value is kept.')


def export(of: str, out: str | pathlib.Path, *, dtype: str = '',
           shard_bytes: int = 5 * 10**9, max_position: int = 4096) -> None:
  """Writes the checkpoint `of` as a Hugging Face folder.

  Args:
    of: WORKDIR, WORKDIR@STEP or WORKDIR@best.
    out: Folder to create.
    dtype: Of the tensors; '' = that of the folder that the run began from, else
      float32, which loses nothing.
    shard_bytes: Maximum size of a file.
    max_position: Declared maximum number of positions; ignored if the run
      began from a folder, whose value is kept.

  Raises:
    ValueError: No such run or checkpoint; `out` holds a model already.
  """
  workdir, out = pathlib.Path(of.partition('@')[0]), pathlib.Path(out)
  run = logs.read_json(workdir / 'config.json')
  if run is None:
    raise ValueError(f'{str(workdir)!r} is not a workdir: it has no '
                     f'config.json')
  if shard_bytes < 10**6:
    raise ValueError(f'shard_gb={shard_bytes / 10**9} is below 0.001')
  if max_position < 1:
    raise ValueError(f'max_position={max_position} must be positive')
  if (out / 'config.json').exists():
    raise ValueError(f'{str(out)!r} holds a model already')
  c = config_lib.of_workdir(run)
  c.init = of
  kept = workdir_lib.model_folder(of)
  if kept is not None:
    c.tokenizer.path = str(kept)  # the run's own may be gone
  tokenizer, config = factories.tokenizer_and_decoder(config_lib.sections(c))
  params = factories.restored_params(of, config)
  ends = {'eos_token_id': tokenizer.eos, 'pad_token_id': tokenizer.pad}
  if kept is not None:
    raw = hf_config.read_config(kept)
    dtype = dtype or raw.get('dtype') or raw.get('torch_dtype') or 'float32'
  else:
    dtype = dtype or 'float32'
    raw = ends | hf_config.config_json(config, dtype=dtype,
                                       max_position=max_position)
  hf.save(out, params, config, raw, dtype=dtype, shard_bytes=shard_bytes)
  if c.tokenizer.kind == 'folder':
    tokenizer_lib.copy_folder(c.tokenizer.path, out)
  generation = kept and logs.read_json(kept / 'generation_config.json')
  (out / 'generation_config.json').write_text(
      json.dumps(generation or ends, indent=2) + '\n')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  logging.set_verbosity(logging.WARNING)
  try:
    export(_OF.value, _OUT.value, dtype=_DTYPE.value,
           shard_bytes=int(_SHARD_GB.value * 10**9),
           max_position=_MAX_POSITION.value)
  except (ValueError, OSError) as e:  # what the user gave
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['of', 'out'])
  app.run(main)
