"""Targets as people and reward functions read them: thoughts, answer, flags."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example, Target
from adasr_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Transcript:
  """One target, taken apart by phase.

  Attributes:
    thoughts: Text of the thought on each chunk; None = skipped (or never
      reached, see `tokens`).
    tokens: Tokens spent on each chunk, terminators and `<skip>` included; 0
      where the row ended before it.
    bad: Whether each chunk's phase broke the protocol.
    cut: Whether each chunk's thought reached its cap.
    deep, answer: Text of the two parts of the deep phase.
    deep_tokens: Tokens of the deep phase, answer included.
    answer_start: Deep-phase tokens before the first token of the answer, -1
      where there is none.
    deep_bad, deep_cut: As bad and cut, of the deep phase.
    finished: The answer ended with the end-of-sequence token.
  """
  thoughts: tuple[str | None, ...]
  tokens: tuple[int, ...]
  bad: tuple[bool, ...]
  cut: tuple[bool, ...]
  deep: str
  answer: str
  deep_tokens: int
  answer_start: int
  deep_bad: bool
  deep_cut: bool
  finished: bool


def transcribe(target: Target, num_chunks: np.ndarray, tokenizer: Tokenizer,
               protocol: Protocol) -> list[Transcript]:
  """Transcripts of B targets.

  Args:
    target: [B, T]; host arrays.
    num_chunks: [B] int32.
    tokenizer: Decodes.
    protocol: Classes of tokens, and what is legal.
  """
  cls = protocol.token_class[target.tokens]
  stage, phase, valid = target.stage, target.phase, target.valid
  bad = valid & target.sampled & ~protocol_lib.LEGAL[stage, cls]
  cut = valid & ~target.sampled & np.isin(
      stage, (protocol_lib.THOUGHT, protocol_lib.DEEP, protocol_lib.ANSWER))
  ended = valid & (stage == protocol_lib.ANSWER) & (cls == protocol_lib.EOS)
  out = []
  for b in range(target.tokens.shape[0]):
    C = int(num_chunks[b])
    at = [np.flatnonzero(valid[b] & (phase[b] == c)) for c in range(1, C + 2)]
    text = lambda where: _text(tokenizer, target.tokens[b, where])
    deep = at[C][stage[b, at[C]] == protocol_lib.DEEP]
    answer = at[C][stage[b, at[C]] == protocol_lib.ANSWER]
    skipped = lambda w: len(w) == 0 or cls[b, w[0]] == protocol_lib.SKIP
    out.append(Transcript(
        thoughts=tuple(None if skipped(w) else text(w) for w in at[:C]),
        tokens=tuple(len(w) for w in at[:C]),
        bad=tuple(bool(bad[b, w].any()) for w in at[:C]),
        cut=tuple(bool(cut[b, w].any()) for w in at[:C]),
        deep=text(deep), answer=text(answer), deep_tokens=len(at[C]),
        answer_start=len(deep) if text(answer) else -1,
        deep_bad=bool(bad[b, at[C]].any()),
        deep_cut=bool(cut[b, at[C]].any()), finished=bool(ended[b].any())))
  return out


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  control = (tokenizer.eot, tokenizer.skip, tokenizer.end_think,
             tokenizer.eos)
  return tokenizer.decode([int(i) for i in ids if i not in control]).strip()


def readable(example: Example, t: Transcript, *, rewards: dict[str, float]
             ) -> dict[str, Any]:
  """A rollout for samples.jsonl: each sentence beside its thought or skip.

  Args:
    example: The problem.
    t: Its transcript.
    rewards: Components to show; 'accuracy' and 'format' at least.
  """
  n = len(t.thoughts)  # 0 under read-then-think
  chunks = [
      {'text': text, 'thought': t.thoughts[k] if k < n else None,
       'tokens': t.tokens[k] if k < n else 0,
       'relevant': None if example.relevant is None else example.relevant[k],
       'cut': t.cut[k] if k < n else False}
      for k, text in enumerate(example.chunks)]
  question = ('' if example.question_chunk < 0
              else example.chunks[example.question_chunk])
  return {'id': example.id, 'preamble': example.preamble,
          'question': question, 'chunks': chunks, 'deep': t.deep,
          'answer': t.answer, 'reference': example.answer,
          'correct': bool(rewards['accuracy']),
          'format': bool(rewards['format']), 'rewards': rewards}
