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
from adasr_jax.policy import tree as tree_lib
from adasr_jax.policy.tree import Tree

# Where only a cap forces a token of a root.
_CAPPED = (protocol_lib.THOUGHT, protocol_lib.DEEP, protocol_lib.ANSWER,
           *protocol_lib.BRIEFS)


@dataclasses.dataclass(frozen=True)
class Transcript:
  """One target, taken apart by phase; with threads, the root's.

  Attributes:
    thoughts: Text of the thought on each chunk; None = skipped (or never
      reached, see `tokens`).
    tokens: Tokens spent on each chunk, terminators and `<skip>` included; 0
      where the row ended before it.
    bad: Whether each chunk's phase broke the protocol; its children count.
    cut: Whether each chunk's thought reached its cap.
    deep, answer: Text of the two parts of the deep phase.
    deep_tokens: Tokens of the deep phase, answer included.
    answer_start: Deep-phase tokens before the first token of the answer, -1
      where there is none.
    deep_bad, deep_cut: As bad and cut, of the deep phase.
    finished: The answer ended with the end-of-sequence token, which is forced
      at its cap.
    tree: Its threads; None where the protocol has none.
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
  tree: Tree | None = None


def transcribe(target: Target, num_chunks: np.ndarray, tokenizer: Tokenizer,
               protocol: Protocol) -> list[Transcript]:
  """Transcripts of B rollouts.

  Args:
    target: [B * W, T], W = protocol.width; host arrays.
    num_chunks: [B] int32.
    tokenizer: Decodes.
    protocol: Classes of tokens, and what is legal.
  """
  W = protocol.width
  all_cls = protocol.token_class[target.tokens]
  all_bad = (target.valid & target.sampled
             & ~protocol_lib.LEGAL[target.stage, all_cls])
  bad_in = lambda b, c: bool(
      (all_bad[b:b + W] & (target.phase[b:b + W] == c)).any())
  tokens, stage, phase, valid, sampled, cls = (a[::W] for a in (
      target.tokens, target.stage, target.phase, target.valid, target.sampled,
      all_cls))
  cut = valid & ~sampled & (np.isin(stage, _CAPPED) | (
      (stage == protocol_lib.JOINED) & (cls == protocol_lib.EOT)) | (
          (stage == protocol_lib.DEEP_JOINED)
          & (cls == protocol_lib.END_THINK)))
  ended = valid & (stage == protocol_lib.ANSWER) & (cls == protocol_lib.EOS)
  trees = (tree_lib.trees(target, tokenizer, protocol) if protocol.threads
           else [None] * len(tokens))
  out = []
  for b, tree in enumerate(trees):
    C = int(num_chunks[b])
    at = [np.flatnonzero(valid[b] & (phase[b] == c)) for c in range(1, C + 2)]
    bad = [bad_in(b * W, c) for c in range(1, C + 2)]
    text = lambda where: _text(tokenizer, tokens[b, where])
    answer = at[C][stage[b, at[C]] == protocol_lib.ANSWER]
    deep = at[C][stage[b, at[C]] != protocol_lib.ANSWER]
    skipped = lambda w: len(w) == 0 or cls[b, w[0]] == protocol_lib.SKIP
    out.append(Transcript(
        thoughts=tuple(None if skipped(w) else text(w) for w in at[:C]),
        tokens=tuple(len(w) for w in at[:C]), bad=tuple(bad[:C]),
        cut=tuple(bool(cut[b, w].any()) for w in at[:C]),
        deep=text(deep), answer=text(answer), deep_tokens=len(at[C]),
        answer_start=len(deep) if text(answer) else -1, deep_bad=bad[C],
        deep_cut=bool(cut[b, at[C]].any()), finished=bool(ended[b].any()),
        tree=tree))
  return out


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  control = (tokenizer.eot, tokenizer.skip, tokenizer.end_think,
             tokenizer.eos)
  return tokenizer.decode([int(i) for i in ids if i not in control]).strip()


def readable(example: Example, t: Transcript, *, rewards: dict[str, float],
             advantages: dict[str, float]) -> dict[str, Any]:
  """A rollout for samples.jsonl: each sentence beside its thought or skip.

  Args:
    example: The problem.
    t: Its transcript.
    rewards: Components to show; 'accuracy' and 'format' at least.
    advantages: By phase.
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
  threads = ({'threads': tree_lib.lines(t.tree)} if t.tree and t.tree.calls
             else {})
  return {'id': example.id, 'preamble': example.preamble,
          'question': question, 'chunks': chunks, 'deep': t.deep,
          'answer': t.answer, 'reference': example.answer,
          'correct': bool(rewards['accuracy']),
          'format': bool(rewards['format']), 'rewards': rewards,
          'advantages': advantages, **threads}
