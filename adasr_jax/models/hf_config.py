"""config.json of Hugging Face model folders, to a DecoderConfig and back.

What the decoder computes (RoPE, epsilon, biases, tied head) is read from the
folder, never from a default; what this decoder cannot do raises an error.

Source: config fields of transformers' Qwen3, Qwen2 and Llama models.
"""

from __future__ import annotations

import pathlib
from typing import Any

from adasr_jax.core import files
from adasr_jax.core import options
from adasr_jax.models import decoder

CLASSES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
           'qwen3': 'Qwen3ForCausalLM'}


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
  """The folder's config.json.

  Raises:
    ValueError: There is no such folder or file, it is not a JSON object, or
      its family is unknown.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.parent.is_dir():
    raise ValueError(f'there is no folder {str(folder)!r}')
  if not path.is_file():
    raise ValueError(f'{str(folder)!r} has no config.json (a Hugging Face '
                     f'model has one; a workdir has checkpoints)')
  raw = files.read_json(path)
  if not isinstance(raw, dict):
    raise ValueError(f'{path} does not hold a JSON object')
  if raw.get('model_type') not in [*CLASSES]:
    raise ValueError(f'{path}: model_type={raw.get("model_type")!r:.40} is not '
                     f'one of {", ".join(sorted(CLASSES))}')
  return raw


def decoder_config(folder: str | pathlib.Path, *, dtype: str, remat: str,
                   attention: str = 'auto', target_offset: int = 0,
                   vocab_size: int = 0
                   ) -> decoder.DecoderConfig:
  """The decoder that the folder's config.json describes.

  Args:
    folder: Hugging Face folder.
    dtype, remat, attention, target_offset: As in DecoderConfig; a run chooses
      them.
    vocab_size: Rows of the embedding; 0 = as many as the folder has.

  Raises:
    ValueError: A field is missing, or asks for what this decoder cannot do.
  """
  raw, where = read_config(folder), f'{folder}/config.json'
  fields = architecture(raw, where)
  if vocab_size:
    fields['vocab_size'] = vocab_size
  try:
    return decoder.DecoderConfig(**fields, dtype=dtype, remat=remat,
                                 attention=attention,
                                 target_offset=target_offset)
  except ValueError as e:
    raise ValueError(f'{where}: {e}') from e


def architecture(raw: dict[str, Any], where: str) -> dict[str, Any]:
  """DecoderConfig's fields, except those that a run chooses.

  Args:
    raw: Content of a config.json.
    where: Its name in error messages.

  Raises:
    ValueError: A field is missing, of another type, or asks for what this
      decoder cannot do.
  """
  def need(name, tree=raw, kind=int):
    value = tree.get(name)
    if value is None:
      raise ValueError(f'{where} has no {name}')
    if not options.fits(value, kind):
      raise ValueError(f'{where}: {name}={value!r:.40} is not of type '
                       f'{kind.__name__}')
    return kind(value)
  family = raw['model_type']
  refused = {k: raw.get(k) for k, fine in (
      ('hidden_act', 'silu'), ('attention_bias', False), ('mlp_bias', False),
      ('use_sliding_window', False), ('partial_rotary_factor', 1),
      ('quantization_config', None)) if raw.get(k) not in (None, fine)}
  layers = raw.get('layer_types') or []
  kinds = {str(x) for x in (layers if isinstance(layers, list) else [layers])}
  if kinds - {'full_attention'}:
    refused['layer_types'] = sorted(kinds)
  if refused:
    raise ValueError(f'{where}: this decoder cannot do ' + ', '.join(
        f'{k}={v!r:.80}' for k, v in refused.items()))
  heads, width = need('num_attention_heads'), need('hidden_size')
  # transformers 5 writes rope_parameters, earlier versions rope_theta and
  # rope_scaling. Only Llama and Qwen2 have a default head_dim, from the width.
  told = [{k: v for k, v in raw[name].items() if k != 'rope_theta'}
          for name in ('rope_parameters', 'rope_scaling')
          if isinstance(raw.get(name), dict) and raw[name]]
  if len(told) == 2 and told[0] != told[1]:
    raise ValueError(f'{where}: rope_parameters={told[0]!r:.80} and '
                     f'rope_scaling={told[1]!r:.80} differ')
  name = 'rope_parameters' if raw.get('rope_parameters') else 'rope_scaling'
  rope = need(name, kind=dict) if raw.get(name) else {}
  if rope.get('partial_rotary_factor') not in (None, 1):
    raise ValueError(f'{where}: this decoder cannot do partial_rotary_factor='
                     f'{rope["partial_rotary_factor"]!r:.80}')
  head_dim = raw.get('head_dim')
  if head_dim is None:
    head_dim = (need('head_dim') if family == 'qwen3'
                else width // max(heads, 1))
  return dict(
      vocab_size=need('vocab_size'), num_layers=need('num_hidden_layers'),
      d_model=width, num_heads=heads,
      num_kv_heads=need('num_key_value_heads'), head_dim=head_dim,
      d_ff=need('intermediate_size'),
      rope_theta=need('rope_theta', {**raw, **rope}, float),
      rope_scaling=_rope_scaling(rope, where, need),
      norm_eps=need('rms_norm_eps', kind=float), qk_norm=family == 'qwen3',
      qkv_bias=family == 'qwen2',
      tie_embedding=need('tie_word_embeddings', kind=bool))


def _rope_scaling(rope, where, need):
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return ()
  if kind != 'llama3':
    raise ValueError(f'{where}: rope_type={kind!r:.40} is not default or '
                     f'llama3')
  return tuple(need(k, rope, float) for k in (
      'factor', 'low_freq_factor', 'high_freq_factor',
      'original_max_position_embeddings'))


def config_json(config: decoder.DecoderConfig, *, dtype: str,
                max_position: int) -> dict[str, Any]:
  """config.json of a decoder that did not come from a folder.

  Args:
    config: Shape of the decoder.
    dtype: Dtype of the tensors.
    max_position: Number of tokens that the model is declared to read.

  Raises:
    ValueError: No family known here has such a decoder.
  """
  c = config
  if c.qk_norm and c.qkv_bias:
    raise ValueError('no family has both qk_norm and qkv_bias')
  family = 'qwen3' if c.qk_norm else 'qwen2' if c.qkv_bias else 'llama'
  out = dict(
      architectures=[CLASSES[family]], attention_dropout=0.0,
      head_dim=c.head_dim, hidden_act='silu', hidden_size=c.d_model,
      initializer_range=0.02, intermediate_size=c.d_ff,
      max_position_embeddings=max_position, model_type=family,
      num_attention_heads=c.num_heads, num_hidden_layers=c.num_layers,
      num_key_value_heads=c.num_kv_heads, rms_norm_eps=c.norm_eps,
      rope_scaling=None, rope_theta=c.rope_theta,
      tie_word_embeddings=c.tie_embedding, torch_dtype=dtype, use_cache=True,
      vocab_size=c.vocab_size)
  if family != 'qwen2':
    out['attention_bias'] = False
  elif c.head_dim * c.num_heads != c.d_model:
    raise ValueError(f'Qwen2 has no head_dim={c.head_dim} with d_model='
                     f'{c.d_model} and {c.num_heads} heads')
  if c.rope_scaling:
    factor, low, high, context = c.rope_scaling
    out['rope_scaling'] = dict(
        factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=int(context), rope_type='llama3')
  return dict(sorted(out.items()))
