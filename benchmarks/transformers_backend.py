"""transformers' Qwen3 in torch, on the shape of a DecoderConfig; optional.

Needs torch 2.13.0 and transformers, which tunix brings along. Generation is a
loop around the model with a DynamicCache, its prompts read once for all their
samples: that is quicker here than model.generate, which reads a prompt once per
sample, with a cache of either kind. An update reads each source once per
sample, in a row with the target.

Threads sleep while they wait: where other programs run, too, torch's own way,
to spin, takes several times as long.
"""

from __future__ import annotations

import os

import numpy as np

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # read by torch's import

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402

from adasr_jax.models.decoder import DecoderConfig  # noqa: E402

THREADS = (1, 2)  # both are tried


def model(config: DecoderConfig) -> transformers.Qwen3ForCausalLM:
  """Random float32 weights in the shape of `config`."""
  torch.manual_seed(0)
  return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
      vocab_size=config.vocab_size, hidden_size=config.d_model,
      intermediate_size=config.d_ff, num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
      rope_parameters={'rope_type': 'default',
                       'rope_theta': config.rope_theta},
      rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tie_embedding,
      attn_implementation='sdpa'))


class Sampler:
  """Generation at temperature 1; no row ends early."""

  def __init__(self, config: DecoderConfig, *, samples: int, new: int):
    """Random weights; `new` tokens for each of `samples` of each prompt."""
    self._samples, self._new = samples, new
    self._model = model(config).eval()

  @torch.inference_mode()
  def generate(self, prompts: np.ndarray, seed: int, threads: int):
    """Tokens and log-probs, each [P * samples, new], of prompts [P, S]."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    cache = transformers.DynamicCache(config=self._model.config)
    step = lambda tokens: self._model(
        input_ids=tokens, past_key_values=cache, use_cache=True,
        logits_to_keep=1).logits[:, -1]
    logits = step(torch.from_numpy(prompts).long())
    cache.batch_repeat_interleave(self._samples)
    logits = logits.repeat_interleave(self._samples, 0)
    tokens, logps = [], []
    while True:
      logp = logits.log_softmax(-1)
      token = torch.multinomial(logp.exp(), 1)
      tokens.append(token)
      logps.append(logp.gather(1, token))
      if len(tokens) == self._new:
        return torch.cat(tokens, 1).numpy(), torch.cat(logps, 1).numpy()
      logits = step(token)


class Trainer:
  """The clipped policy gradient at token level, and AdamW."""

  def __init__(self, config: DecoderConfig, *, learning_rate: float, b1: float,
               b2: float, clip_norm: float, clip_low: float, clip_high: float):
    """Random weights; as OptimConfig and LossConfig."""
    self._model = model(config).train()
    self._clip_norm = clip_norm
    self._within = 1 - clip_low, 1 + clip_high
    self._optimizer = torch.optim.AdamW(
        self._model.parameters(), lr=learning_rate, betas=(b1, b2),
        weight_decay=0.0, fused=True)

  def update(self, prompts: np.ndarray, targets: np.ndarray, old: np.ndarray,
             advantage: np.ndarray, threads: int) -> float:
    """One step; the loss.

    Args:
      prompts: [B, S] tokens, a row per target.
      targets: [B, N] tokens.
      old: [B, N] log-probs, nats.
      advantage: [B].
      threads: That compute.
    """
    torch.set_num_threads(threads)
    prompts, targets, old, advantage = map(
        torch.from_numpy, (prompts, targets, old, advantage))
    targets = targets.long()
    logits = self._model(
        input_ids=torch.cat([prompts.long(), targets], 1), use_cache=False,
        logits_to_keep=targets.shape[1] + 1).logits[:, :-1]
    logp = -F.cross_entropy(logits.transpose(1, 2), targets, reduction='none')
    ratio, advantage = (logp - old).exp(), advantage[:, None]
    loss = -torch.minimum(
        ratio * advantage, ratio.clamp(*self._within) * advantage).mean()
    self._optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
    self._optimizer.step()
    return loss.item()
