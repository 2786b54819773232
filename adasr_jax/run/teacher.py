"""The teacher of a run: its decoder's shape, and that it speaks our tokens.

The shape comes from where the parameters do: the metadata of a .safetensors
file, the config of a run, or the config.json of a Hugging Face folder. The
student gives dtype, attention and remat.

Two tokenizers of folders are compared token by token; the embedded vocabulary
belongs to its task. Then the embedding may have more or fewer rows that stand
for no token. Of a .safetensors file outside a run only the number of rows is
known, which must be the student's.
"""

from __future__ import annotations

import dataclasses
import json
import os

import jax.numpy as jnp
from safetensors import safe_open

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.core.options import Sections
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.models import decoder
from adasr_jax.models import hf_config
from adasr_jax.run import workdir as workdir_lib

# How a decoder computes, which is not what its parameters are.
_FROM_STUDENT = ('dtype', 'remat', 'attention')


def shape(s: Sections, tokenizer: Tokenizer, student: decoder.DecoderConfig
          ) -> decoder.DecoderConfig:
  """The teacher's decoder as its parameters are stored.

  Args:
    s: 'teacher', 'run' and 'tokenizer' are read.
    tokenizer: The student's.
    student: Its decoder.

  Raises:
    ValueError: There is no such teacher, its vocabulary is another, or
      supervised learning has taught it to read something else.
  """
  init = s['teacher'].init
  path, _ = files.at_step(init)
  if not os.path.exists(path):
    raise ValueError(f'teacher.init={init!r} does not exist')
  try:
    out, theirs = _read(init, path, student, s['teacher'].reads)
  except (OSError, ValueError, TypeError) as e:
    raise ValueError(f'teacher.init={init!r}: {e}') from e
  if theirs is not None:
    ours = _vocabulary(s['run'].task, s['tokenizer'])
    if difference := _difference(theirs, ours, tokenizer):
      raise ValueError(f'teacher.init={init!r} has another vocabulary: '
                       f'{difference}')
  rows, V = out.vocab_size or student.vocab_size, student.vocab_size
  if path.is_dir() and workdir_lib.is_model(init):
    rows = max(rows, V)  # hf.load adds those of control tokens
  known = isinstance(theirs, dict)
  missing = set(range(rows, V)) - set(tokenizer.undecodable)
  if rows != V and (not known or missing):
    raise ValueError(f'teacher.init={init!r} has another vocabulary: '
                     f'{rows} rows, not {V}')
  return dataclasses.replace(
      out, vocab_size=rows,
      **{name: getattr(student, name) for name in _FROM_STUDENT})


def fitted(params: decoder.Params, rows: int) -> decoder.Params:
  """The parameters with `rows` rows of embedding and head.

  What is cut off, or added as zeros, stands for no token: its logits are
  masked.
  """
  def fit(a):
    return jnp.pad(a[:rows], ((0, max(0, rows - len(a))), (0, 0)))
  tables = {k: fit(params[k]) for k in ('embedding', 'head')
            if k in params and len(params[k]) != rows}
  return params | tables


def _read(init, path, student, reads):
  """The stored shape; and the vocabulary, None where it is not known."""
  workdir = path.parent if path.is_file() else path
  saved = None if path.is_dir() and workdir_lib.is_model(init) else (
      workdir_lib.read_config(workdir))
  sections = None if saved is None else config_lib.sections(
      config_lib.of_workdir(saved))
  if sections is not None and sections['run'].method == 'sft' and (
      sections['sft'].reads != reads):
    raise ValueError(f"trained with sft.reads={sections['sft'].reads!r}, not "
                     f'teacher.reads={reads!r}')
  if path.is_file():
    shape = _of_file(path)
  elif sections is not None:
    shape = sections['model']
  else:
    shape = hf_config.decoder_config(
        path, target_offset=student.target_offset,
        **{name: getattr(student, name) for name in _FROM_STUDENT})
  folder = workdir_lib.model_folder(init)
  if folder is not None:
    return shape, tokenizer_lib.vocabulary(folder)
  if sections is None:
    return shape, None
  return shape, _vocabulary(sections['run'].task, sections['tokenizer'])


def _of_file(path):
  """The DecoderConfig that weights.save wrote."""
  try:
    with safe_open(str(path), 'numpy') as f:
      metadata = f.metadata() or {}
  except Exception as e:  # the library raises its own untyped error
    raise ValueError(f'not a readable safetensors file: {e}') from e
  if 'config' not in metadata:
    raise ValueError('its metadata has no config')
  fields = {k: v for k, v in json.loads(metadata['config']).items()
            if k not in _FROM_STUDENT}
  known = {f.name for f in dataclasses.fields(decoder.DecoderConfig)}
  if unknown := sorted(fields.keys() - known):
    raise ValueError(f'its config has the unknown {", ".join(unknown)}')
  return decoder.DecoderConfig(**{
      k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _vocabulary(task, tokenizer) -> dict[str, int] | str:
  """Token -> id of a folder; else whose vocabulary it is."""
  if tokenizer.kind == 'folder':
    return tokenizer_lib.vocabulary(tokenizer.path)
  return f'the one of task={task!r}'


def _difference(theirs, ours, tokenizer) -> str:
  """In what two vocabularies differ; '' = in nothing."""
  name = lambda v: v if isinstance(v, str) else f'{len(v)} tokens of a folder'
  if isinstance(theirs, str) or isinstance(ours, str):
    return '' if theirs == ours else f'{name(theirs)}, not {name(ours)}'
  # Control tokens are added where a folder does not have them.
  ours = ours | tokenizer.control
  theirs = tokenizer.control | theirs
  both = theirs.keys() | ours.keys()
  differ = sorted(t for t in both if theirs.get(t) != ours.get(t))
  if not differ:
    return ''
  t = differ[0]
  return (f'{len(differ)} tokens differ, {t!r} is {theirs.get(t)} there and '
          f'{ours.get(t)} here')
