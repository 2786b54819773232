"""Published sizes of the families, as fields of DecoderConfig.

They are for random weights of a real size, and say what a folder should hold.
A model that is read from a folder takes its fields from the folder.

Source: config.json of Qwen/Qwen3-*, Qwen/Qwen2.5-*, meta-llama/Llama-3.*,
HuggingFaceTB/SmolLM2-*; the counts of parameters are those of the published
weights, with a tied head counted once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from adasr_jax.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Preset:
  """Fields of DecoderConfig, and the number of parameters that they give."""
  fields: dict[str, Any]
  parameters: int


def _fields(layers, width, ff, heads, kv_heads, head_dim, rows, tied, *,
            theta, eps, qk_norm=False, qkv_bias=False, scaling=()):
  return dict(
      vocab_size=rows, num_layers=layers, d_model=width, num_heads=heads,
      num_kv_heads=kv_heads, head_dim=head_dim, d_ff=ff, rope_theta=theta,
      norm_eps=eps, qk_norm=qk_norm, qkv_bias=qkv_bias, tie_embedding=tied,
      rope_scaling=scaling)


def _qwen3(*size, parameters):
  layers, width, ff, heads, tied = size
  return Preset(_fields(layers, width, ff, heads, 8, 128, 151936, tied,
                        theta=1e6, eps=1e-6, qk_norm=True), parameters)


def _qwen25(*size, parameters):
  layers, width, ff, heads, kv_heads, rows, tied = size
  return Preset(_fields(layers, width, ff, heads, kv_heads, width // heads,
                        rows, tied, theta=1e6, eps=1e-6, qkv_bias=True),
                parameters)


def _llama3(*size, factor, parameters):
  layers, width, ff, heads, tied = size
  return Preset(_fields(layers, width, ff, heads, 8, width // heads, 128256,
                        tied, theta=5e5, eps=1e-5,
                        scaling=(factor, 1.0, 4.0, 8192.0)), parameters)


def _smollm2(*size, theta, parameters):
  layers, width, ff, heads, kv_heads = size
  return Preset(_fields(layers, width, ff, heads, kv_heads, 64, 49152, True,
                        theta=theta, eps=1e-5), parameters)


PRESETS = {
    'qwen3-0.6b': _qwen3(28, 1024, 3072, 16, True, parameters=596_049_920),
    'qwen3-1.7b': _qwen3(28, 2048, 6144, 16, True, parameters=1_720_574_976),
    'qwen3-4b': _qwen3(36, 2560, 9728, 32, True, parameters=4_022_468_096),
    'qwen3-8b': _qwen3(36, 4096, 12288, 32, False, parameters=8_190_735_360),
    'qwen3-14b': _qwen3(40, 5120, 17408, 40, False,
                        parameters=14_768_307_200),
    'qwen3-32b': _qwen3(64, 5120, 25600, 64, False,
                        parameters=32_762_123_264),
    'qwen2.5-0.5b': _qwen25(24, 896, 4864, 14, 2, 151936, True,
                            parameters=494_032_768),
    'qwen2.5-1.5b': _qwen25(28, 1536, 8960, 12, 2, 151936, True,
                            parameters=1_543_714_304),
    'qwen2.5-3b': _qwen25(36, 2048, 11008, 16, 2, 151936, True,
                          parameters=3_085_938_688),
    'qwen2.5-7b': _qwen25(28, 3584, 18944, 28, 4, 152064, False,
                          parameters=7_615_616_512),
    'llama-3.2-1b': _llama3(16, 2048, 8192, 32, True, factor=32.0,
                            parameters=1_235_814_400),
    'llama-3.2-3b': _llama3(28, 3072, 8192, 24, True, factor=32.0,
                            parameters=3_212_749_824),
    'llama-3.1-8b': _llama3(32, 4096, 14336, 32, False, factor=8.0,
                            parameters=8_030_261_248),
    'smollm2-135m': _smollm2(30, 576, 1536, 9, 3, theta=1e5,
                             parameters=134_515_008),
    'smollm2-360m': _smollm2(32, 960, 2560, 15, 5, theta=1e5,
                             parameters=361_821_120),
    'smollm2-1.7b': _smollm2(24, 2048, 8192, 32, 32, theta=13e4,
                             parameters=1_711_376_384),
}


def preset(name: str, *, dtype: str, remat: str,
           target_offset: int = 0) -> DecoderConfig:
  """The decoder of a published size.

  Args:
    name: Key of PRESETS.
    dtype, remat, target_offset: As in DecoderConfig; a run chooses them.

  Raises:
    ValueError: An unknown name.
  """
  if name not in PRESETS:
    raise ValueError(f'preset {name!r} is not one of '
                     f'{", ".join(sorted(PRESETS))}')
  return DecoderConfig(**PRESETS[name].fields, dtype=dtype, remat=remat,
                       target_offset=target_offset)
