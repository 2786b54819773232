"""python -m adasr_jax.tools.import_gguf --file=FILE --out=DIR

Writes a GGUF file as a Hugging Face folder: config, weights in float32,
generation config, and the tokenizer with its chat template. FILE may be a wheel
or zip that holds one .gguf. Supported are models of architecture `llama` with
the tokenizer of Llama 3 or SmolLM2.

Source: conventions of llama.cpp, convert_hf_to_gguf.py and llama-vocab.cpp.
They are also followed where transformers 5.23 ignores part of a GGUF file:
SmolLM2's single digits, Llama 3's tokens that no merges produce, and the tensor
with Llama 3.1's RoPE scaling.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import sys
import tempfile
from typing import Any
import zipfile

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from adasr_jax.core import files
from adasr_jax.models import block
from adasr_jax.models import decoder
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.run import logs
from adasr_jax.tools import gguf_file

# Metadata that describes the decoder. Other keys of the architecture change
# what it computes or describe experts, so they are refused.
KNOWN = {f'llama.{k}' for k in (
    'attention.head_count', 'attention.head_count_kv', 'attention.key_length',
    'attention.layer_norm_rms_epsilon', 'attention.value_length',
    'block_count', 'context_length', 'embedding_length', 'feed_forward_length',
    'rope.dimension_count', 'rope.freq_base', 'vocab_size')}
# By tokenizer.ggml.pre: how text is split before merges apply.
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS = {
    'smollm': [pre_tokenizers.Digits(individual_digits=True), _GPT2],
    'llama-bpe': [pre_tokenizers.Split(Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'), 'isolated'),
                  _BYTES],
}
# Of a zip: a wheel of one model has few files and hardly shrinks them.
MOST_FILES, MOST_GROWTH = 10_000, 20
ENDS = dict(bos='bos', eos='eos', unk='unknown', pad='padding')


def import_gguf(file: str | pathlib.Path, out: str | pathlib.Path) -> None:
  """Writes a GGUF file's model and tokenizer as a Hugging Face folder.

  The host holds one tensor at a time, in float32; the file is memory-mapped.
  config.json is written last: a folder without it is not a model.

  Args:
    file: .gguf, or a wheel or zip that holds exactly one.
    out: Folder to create.

  Raises:
    ValueError: `out` holds a model already; the file is damaged, or needs what
      the decoder or tokenizer here does not support. The message is one line.
  """
  file, out = pathlib.Path(file), pathlib.Path(out)
  if (out / 'config.json').exists():
    raise ValueError(f'{str(out)!r} holds a model already')
  if not file.is_file():
    raise ValueError(f'{str(file)!r} is not a file')
  try:
    with _unpacked(file) as path:
      _convert(path, out)
  except ValueError as e:
    raise ValueError(f'{file}: {e}') from e


def _convert(path, out):
  meta, tensors = gguf_file.read(path)
  family = _need(meta, 'general.architecture', str)
  if family != 'llama':
    raise ValueError(f'general.architecture={family!r} is not llama')
  config = _decoder_config(meta, tensors)
  tokenizer, tokenizer_config, ids = _tokenizer(meta)
  raw = ids | hf_config.config_json(
      config, dtype='float32',
      max_position=_need(meta, 'llama.context_length', int))
  sources = _sources(config, tensors)
  out.mkdir(parents=True, exist_ok=True)
  files.whole(out / hf.SINGLE, lambda new: _write_weights(new, sources))
  files.whole(out / 'tokenizer.json', lambda new: tokenizer.save(str(new)))
  for name, tree in (('tokenizer_config', tokenizer_config),
                     ('generation_config', ids), ('config', raw)):
    logs.write_json(out / f'{name}.json', tree)


# ----------------------------------------------------------------- the file
@contextlib.contextmanager
def _unpacked(file: pathlib.Path) -> Iterator[pathlib.Path]:
  """The .gguf file; from a zip, unpacked until the context ends."""
  with file.open('rb') as f:
    if f.read(4) == gguf_file.MAGIC or not zipfile.is_zipfile(f):
      yield file
      return
  with tempfile.TemporaryDirectory() as folder:
    yield _unpack(file, folder)


def _unpack(file, folder):
  """Unpacks the one .gguf of a zip, unless it grows beyond all reason."""
  try:
    z = zipfile.ZipFile(file)
  except Exception as e:  # zipfile, zlib and others each raise their own
    raise ValueError(f'is not a whole zip: {e}') from e
  with z:
    if len(z.infolist()) > MOST_FILES:
      raise ValueError(f'holds {len(z.infolist())} files, more than '
                       f'{MOST_FILES}')
    inside = [x for x in z.infolist() if x.filename.endswith('.gguf')]
    if len(inside) != 1:
      raise ValueError(f'holds {len(inside)} files .gguf, not one')
    name, size = inside[0].filename, inside[0].file_size
    if size > MOST_GROWTH * file.stat().st_size:
      raise ValueError(f'{name!r} would unpack to {size} bytes, more than '
                       f'{MOST_GROWTH} times the size of the zip')
    try:  # never gives more bytes than the size above
      return pathlib.Path(z.extract(inside[0], folder))
    except Exception as e:
      raise ValueError(f'{name!r} cannot be unpacked: {e}') from e


def _need(meta, key, kind):
  value = meta.get(key)
  if not value:  # 0 describes nothing either
    raise ValueError(f'has no {key}')
  if not isinstance(value, kind):
    raise ValueError(f'{key}={value!r:.40} is not {kind.__name__}')
  return value


# -------------------------------------------------------------- the decoder
def _decoder_config(meta, tensors) -> decoder.DecoderConfig:
  unknown = {k: meta[k] for k in sorted(meta.keys() - KNOWN)
             if k.startswith('llama.')}
  if unknown:
    raise ValueError('this decoder cannot do ' + ', '.join(
        f'{k}={v!r:.40}' for k, v in unknown.items()))
  need = lambda key, kind=int: _need(meta, f'llama.{key}', kind)
  H, theta = need('rope.dimension_count'), need('rope.freq_base', float)
  return decoder.DecoderConfig(
      vocab_size=len(_need(meta, 'tokenizer.ggml.tokens', list)),
      num_layers=need('block_count'), d_model=need('embedding_length'),
      num_heads=need('attention.head_count'),
      num_kv_heads=need('attention.head_count_kv'), head_dim=H,
      d_ff=need('feed_forward_length'), rope_theta=theta,
      # The float32 1e-5 would be 9.999999747378752e-06 in float64.
      norm_eps=float(str(np.float32(
          need('attention.layer_norm_rms_epsilon', float)))),
      qk_norm=False, qkv_bias=False,
      tie_embedding='output.weight' not in tensors, dtype='float32',
      remat='none', rope_scaling=_rope_scaling(tensors, H, theta))


def _rope_scaling(tensors, H, theta):
  """Llama 3.1's scaling, from the divisors [H/2] that a file has instead."""
  if 'rope_freqs.weight' not in tensors:
    return ()
  divisors = tensors['rope_freqs.weight'].float32()
  scaling = (float(divisors.max()), 1.0, 4.0, 8192.0)
  want = np.divide(*(block.rope_frequencies(H // 2, theta, s)
                     for s in ((), scaling)))
  if divisors.shape != want.shape or not np.allclose(divisors, want, 1e-3):
    raise ValueError('rope_freqs.weight is not the RoPE scaling of Llama 3.1')
  return scaling


def _sources(config, tensors) -> dict[
    str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
  """Published name of each tensor -> (shape, function that reads it)."""
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
  want = {names.get_name(name, ('.weight',)): (name, place.shape)
          for name, place in hf.places('llama', config,
                                       config.vocab_size).items()}
  bad = [f'missing {k}' for k in want.keys() - tensors.keys()]
  bad += [f'unknown {k}'
          for k in tensors.keys() - want.keys() - {'rope_freqs.weight'}]
  for key in want.keys() & tensors.keys():
    if tensors[key].shape != want[key][1]:
      bad.append(f'{key} has shape {tensors[key].shape}, not {want[key][1]}')
    tensors[key].float32(1)  # refuses an unknown type before any writing
  if bad:
    more = f' and {len(bad) - 6} more' if len(bad) > 6 else ''
    raise ValueError(f'does not fit the model: {"; ".join(sorted(bad)[:6])}'
                     f'{more}')
  heads = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads}
  def reader(key):
    n = heads.get(key.split('.')[-2])
    if n is None:
      return tensors[key].float32
    return lambda: _halves_apart(tensors[key].float32(), n)
  return {name: (shape, reader(key)) for key, (name, shape) in want.items()}


def _halves_apart(rows, heads):
  """[N H, D] rows of q or k in the published order.

  RoPE rotates the two halves of a head against each other. llama.cpp
  interleaves them: row 2 i is row i of the first half, 2 i + 1 of the second.
  """
  return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(
      rows.shape)


def _write_weights(path, sources):
  """Writes safetensors one by one; the library needs all at once."""
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  for name, (shape, _) in sources.items():
    start, end = end, end + 4 * int(np.prod(shape))
    header[name] = dict(dtype='F32', shape=shape, data_offsets=[start, end])
  head = json.dumps(header).encode()
  head += b' ' * (-len(head) % 8)
  with open(path, 'wb') as f:
    f.write(len(head).to_bytes(8, 'little') + head)
    for _, read in sources.values():
      f.write(np.ascontiguousarray(read(), '<f4').data)


# ------------------------------------------------------------ the tokenizer
def _tokenizer(meta) -> tuple[Tokenizer, dict[str, Any], dict[str, int]]:
  """The tokenizer, its tokenizer_config.json, and the model's token ids."""
  need = lambda key, kind: _need(meta, f'tokenizer.ggml.{key}', kind)
  kind, pre = need('model', str), meta.get('tokenizer.ggml.pre')
  if kind != 'gpt2' or pre not in SPLITS:
    raise ValueError(f'tokenizer.ggml.model={kind!r} with pre={pre!r} is not '
                     f'gpt2 with {" or ".join(SPLITS)}')
  tokens, types = need('tokens', list), need('token_type', list)
  if not len(set(tokens)) == len(tokens) == len(types):
    raise ValueError(f'has {len(tokens)} tokens, {len(set(tokens))} of them '
                     f'different, and {len(types)} token types')
  kinds = gguf.TokenType
  try:
    tokenizer = Tokenizer(models.BPE(
        {t: i for i, t in enumerate(tokens) if types[i] != kinds.UNUSED},
        [tuple(m.split(' ')) for m in need('merges', list)],
        ignore_merges=pre == 'llama-bpe'))
  except Exception as e:  # the library raises its own untyped error
    raise ValueError(f'tokenizer.ggml.merges: {e}') from e
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[pre])
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_tokens([
      AddedToken(t, normalized=False, special=k == kinds.CONTROL)
      for t, k in zip(tokens, types)
      if k in (kinds.CONTROL, kinds.USER_DEFINED)])
  ids = {f'{name}_token_id': meta[key] for name, theirs in ENDS.items()
         if (key := f'tokenizer.ggml.{theirs}_token_id') in meta}
  for name, i in ids.items():
    if type(i) is not int or not 0 <= i < len(tokens):
      raise ValueError(f'{name}={i!r:.40} is outside the {len(tokens)} tokens')
  config = {name.removesuffix('_id'): tokens[i] for name, i in ids.items()}
  # llama.cpp's default; files of Llama 3 do not have it.
  if meta.get('tokenizer.ggml.add_bos_token', pre == 'llama-bpe'):
    if 'bos_token' not in config:
      raise ValueError('has no tokenizer.ggml.bos_token_id')
    bos = config['bos_token']
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, '$A'], special_tokens=[(bos, ids['bos_token_id'])])
  if 'tokenizer.chat_template' in meta:
    config['chat_template'] = _need(meta, 'tokenizer.chat_template', str)
  config |= dict(
      clean_up_tokenization_spaces=False,
      model_max_length=_need(meta, 'llama.context_length', int),
      tokenizer_class='PreTrainedTokenizerFast')
  ids.pop('unk_token_id', None)
  return tokenizer, dict(sorted(config.items())), ids


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m adasr_jax.tools.import_gguf', allow_abbrev=False)
  parser.add_argument('--file', required=True,
                      help='.gguf, or a wheel or zip that holds one')
  parser.add_argument('--out', required=True, help='folder to create')
  args = parser.parse_args()
  try:
    import_gguf(args.file, args.out)
  except (ValueError, OSError) as e:  # what the user gave
    sys.exit(f'error: {e}')


if __name__ == '__main__':
  main()
