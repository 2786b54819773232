"""config.json of Hugging Face model folders, to a DecoderConfig and back.

What the decoder computes (RoPE, epsilon, biases, tied head) is read from the
folder, never from a default; what this decoder cannot do raises an error.

Source: config fields of transformers' Qwen3, Qwen2 and Llama models.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from adasr_jax.models import decoder

CLASSES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
           'qwen3': 'Qwen3ForCausalLM'}


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
  """The folder's config.json.

  Raises:
    ValueError: There is no such folder or file, or its family is unknown.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.parent.is_dir():
    raise ValueError(f'there is no folder {str(folder)!r}')
  if not path.is_file():
    raise ValueError(f'{str(folder)!r} has no config.json (a Hugging Face '
                     f'model has one; a workdir has checkpoints)')
  try:
    raw = json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise ValueError(f'{path} is not JSON: {e}') from e
  if raw.get('model_type') not in CLASSES:
    raise ValueError(f'{path}: model_type={raw.get("model_type")!r} is not '
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
  raw = read_config(folder)
  fields = architecture(raw, f'{folder}/config.json')
  if vocab_size:
    fields['vocab_size'] = vocab_size
  return decoder.DecoderConfig(**fields, dtype=dtype, remat=remat,
                               attention=attention,
                               target_offset=target_offset)


def architecture(raw: dict[str, Any], where: str) -> dict[str, Any]:
  """DecoderConfig's fields, except those that a run chooses.

  Args:
    raw: Content of a config.json.
    where: Its name in error messages.

  Raises:
    ValueError: A field is missing, or asks for what this decoder cannot do.
  """
  def need(name, tree=raw):
    if tree.get(name) is None:
      raise ValueError(f'{where} has no {name}')
    return tree[name]
  family = raw['model_type']
  refused = {k: raw.get(k) for k, fine in (
      ('hidden_act', 'silu'), ('attention_bias', False), ('mlp_bias', False),
      ('use_sliding_window', False), ('partial_rotary_factor', 1),
      ('quantization_config', None)) if raw.get(k) not in (None, fine)}
  if set(raw.get('layer_types') or ()) - {'full_attention'}:
    refused['layer_types'] = sorted(set(raw['layer_types']))
  if refused:
    raise ValueError(f'{where}: this decoder cannot do ' + ', '.join(
        f'{k}={v!r}' for k, v in refused.items()))
  heads, width = need('num_attention_heads'), need('hidden_size')
  # transformers 5 writes rope_parameters, earlier versions rope_theta and
  # rope_scaling. Only Llama and Qwen2 have a default head_dim, from the width.
  rope = raw.get('rope_parameters') or raw.get('rope_scaling') or {}
  head_dim = raw.get('head_dim')
  if head_dim is None:
    head_dim = need('head_dim') if family == 'qwen3' else width // heads
  return dict(
      vocab_size=need('vocab_size'), num_layers=need('num_hidden_layers'),
      d_model=width, num_heads=heads,
      num_kv_heads=need('num_key_value_heads'), head_dim=head_dim,
      d_ff=need('intermediate_size'),
      rope_theta=float(need('rope_theta', {**raw, **rope})),
      rope_scaling=_rope_scaling(rope, where, need),
      norm_eps=float(need('rms_norm_eps')), qk_norm=family == 'qwen3',
      qkv_bias=family == 'qwen2', tie_embedding=need('tie_word_embeddings'))


def _rope_scaling(rope, where, need):
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return ()
  if kind != 'llama3':
    raise ValueError(f'{where}: rope_type={kind!r} is not default or llama3')
  return tuple(float(need(k, rope)) for k in (
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
