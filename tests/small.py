"""Small decoders, protocols, ragged batches and tokenizers for the tests."""

import json
import os
import pathlib

import numpy as np
import tokenizers

from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Source
from adasr_jax.models import decoder

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Real data, see docs/data.md; tests that need it are skipped without.
DATA = pathlib.Path(os.environ.get('ADASR_DATA') or next(filter(
    pathlib.Path.is_dir, (_ROOT / 'data', _ROOT / '../shared/data')),
    _ROOT / 'data'))
VOCAB, EOT, SKIP, END_THINK, EOS = 40, 2, 3, 4, 5


def make_config(**changes) -> decoder.DecoderConfig:
  fields = dict(
      vocab_size=VOCAB, num_layers=2, d_model=32, num_heads=4,
      num_kv_heads=2, head_dim=8, d_ff=48, rope_theta=1e4, norm_eps=1e-6,
      qk_norm=True, qkv_bias=False, tie_embedding=True, dtype='float32',
      remat='none')
  return decoder.DecoderConfig(**(fields | changes))


def make_protocol(**changes) -> Protocol:
  fields = dict(
      vocab_size=VOCAB, eot=EOT, skip=SKIP, end_think=END_THINK, eos=EOS,
      undecodable=(0, 1), prefix=(1,), thought_cap=6, deep_cap=7,
      answer_cap=4, legality='free')
  return Protocol(**(fields | changes))


def make_source(num_chunks=(4, 2, 3, 0), slots=20, seed=0) -> Source:
  """Ragged rows: own numbers and lengths of chunks, own total lengths."""
  r = np.random.default_rng(seed)
  P = len(num_chunks)
  phase, valid = np.zeros((P, slots), np.int32), np.zeros((P, slots), bool)
  for p, chunks in enumerate(num_chunks):
    n = int(r.integers(slots // 2, slots + 1))
    own = np.sort(np.concatenate([np.arange(chunks + 1), r.integers(
        0, chunks + 1, n - chunks - 1)]))
    phase[p], valid[p, :n] = chunks, True
    phase[p, :n] = own
  return Source(
      tokens=r.integers(6, VOCAB, (P, slots)).astype(np.int32),
      position=np.broadcast_to(np.arange(slots, dtype=np.int32), (P, slots)),
      phase=phase, valid=valid, num_chunks=np.array(num_chunks, np.int32),
      problem_id=np.arange(P).astype(np.uint32) + 7)


def save_tokenizer(folder, words, template) -> None:
  """A word-level Hugging Face tokenizer with '<end>' and '<unk>' of `words`."""
  t = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {w: i for i, w in enumerate(words)}, unk_token='<unk>'))
  t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  t.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<end>',
      'unk_token': '<unk>', 'chat_template': template}))
