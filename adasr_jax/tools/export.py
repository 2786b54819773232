"""python -m adasr_jax.tools.export --of=WORKDIR[@STEP|@best] --out=DIR

Writes a checkpoint as a Hugging Face folder for `transformers` and vLLM:
weights, config, generation config, and the tokenizer with control tokens and
chat template. A run that began from such a folder keeps that folder's config
and dtype; any other is declared as Qwen3, Qwen2 or Llama, depending on its
layers.
"""

from __future__ import annotations

import pathlib

from absl import app
from absl import flags
from absl import logging

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.run import command
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
           shard_gb: float = 5.0, max_position: int = 4096) -> None:
  """Writes the checkpoint `of` as a Hugging Face folder.

  Args:
    of: WORKDIR, WORKDIR@STEP or WORKDIR@best.
    out: Folder to create.
    dtype: Of the tensors; '' = that of the folder that the run began from, else
      float32, which loses nothing.
    shard_gb: Maximum gigabytes of a file.
    max_position: Declared maximum number of positions; ignored if the run
      began from a folder, whose value is kept.

  Raises:
    ValueError: No such run or checkpoint; `out` holds a model already.
  """
  workdir, out = files.at_step(of)[0], pathlib.Path(out)
  run = workdir_lib.read_config(workdir)
  if run is None:
    raise ValueError(f'{str(workdir)!r} is not a workdir: it has no '
                     f'config.json')
  if not 0.001 <= shard_gb <= 10**6:  # also where it is no number
    raise ValueError(f'shard_gb={shard_gb} is outside [0.001, 10**6]')
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
  out.mkdir(parents=True, exist_ok=True)
  if c.tokenizer.kind == 'folder':
    tokenizer_lib.copy_folder(c.tokenizer.path, out)
  generation = kept and logs.read_json(kept / 'generation_config.json')
  logs.write_json(out / 'generation_config.json', generation or ends)
  # Last: its config.json shows that the folder is whole.
  hf.save(out, params, config, raw, dtype=dtype,
          shard_bytes=int(shard_gb * 10**9))


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  command.show_log(logging.WARNING)
  try:
    export(_OF.value, _OUT.value, dtype=_DTYPE.value,
           shard_gb=_SHARD_GB.value, max_position=_MAX_POSITION.value)
  except (ValueError, OSError) as e:  # what the user gave
    command.fail(e)


if __name__ == '__main__':
  flags.mark_flags_as_required(['of', 'out'])
  app.run(main, flags_parser=command.parse_flags)
