"""tunix's own sampler on the shape of a DecoderConfig; optional.

Needs google-tunix 0.1.7, in its own environment. The cache has no spare slots,
which is tunix's best case: its default of 1024 slots takes four times as long.
"""

from __future__ import annotations

from flax import nnx
import numpy as np
from tunix.generate import sampler as tunix_sampler
from tunix.models.qwen3 import model as qwen3

from adasr_jax.models.decoder import DecoderConfig


class _Ids:
  """Token ids through tunix's interface, which takes strings."""

  def __init__(self, pad: int):
    self._pad = pad

  def encode(self, text, **_):
    return [int(i) for i in text.split()]

  def decode(self, ids, **_):
    return ' '.join(map(str, ids))

  def bos_id(self):
    return 0  # for 0 tunix adds none

  def eos_id(self):
    return 1

  def pad_id(self):
    return self._pad

  def dedup_bos_ids(self, ids):
    return ids


class Tunix:
  """Generation by tunix.generate.sampler.Sampler."""

  def __init__(self, config: DecoderConfig, *, source: int, new: int):
    """Random weights in the shape of `config`; cache of source + new slots."""
    self._source, self._new = source, new
    model = qwen3.Qwen3(qwen3.ModelConfig(
        num_layers=config.num_layers, vocab_size=config.vocab_size,
        embed_dim=config.d_model, hidden_dim=config.d_ff,
        num_heads=config.num_heads, head_dim=config.head_dim,
        num_kv_heads=config.num_kv_heads, rope_theta=int(config.rope_theta),
        norm_eps=config.norm_eps, use_tied_embedding=config.tie_embedding),
        rngs=nnx.Rngs(0))
    # An id past the vocabulary, as tunix masks every token equal to the pad.
    self._sampler = tunix_sampler.Sampler(
        model, _Ids(config.vocab_size), tunix_sampler.CacheConfig(
            cache_size=source + new, num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads, head_dim=config.head_dim))

  def generate(self, prompts: np.ndarray, seed: int):
    """Tokens and log-probs, each [B, new], of prompts [B, source]."""
    out = self._sampler(
        [' '.join(map(str, row)) for row in prompts.tolist()],
        max_generation_steps=self._new, max_prompt_length=self._source,
        temperature=1.0, top_p=1.0, seed=seed, eos_tokens=[-1],
        return_logprobs=True)
    tokens, logp = np.asarray(out.tokens), np.asarray(out.logprobs)
    if tokens.shape != (len(prompts), self._new):
      raise AssertionError(f'tunix wrote {tokens.shape}')
    return tokens, logp
