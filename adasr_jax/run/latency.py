"""The virtual clock: seconds that a user waits for the answer.

The preamble has arrived at time 0. Chunk k (the question counts as one) arrives
whole at a_k and is prefilled as soon as the chunks before it are, in parallel
with thinking; a thought starts when its chunk is prefilled and the previous
thought has ended. With w_k words and n_k source tokens in chunk k, and l_k
tokens of the thought on it:

  a_k = a_{k-1} + 60 w_k / words_per_minute     a_0 = 0
  p_k = max(a_k, p_{k-1}) + sigma n_k           p_0 = sigma n_0
  f_k = max(p_k, f_{k-1}) + tau l_k             f_0 = p_0

The deep phase starts at f_C. In read-then-think every l_k is 0, so f_k = p_k
and the deep phase starts at p_C.

A root that calls threads waits for the longest of them: the children of a call
run beside each other, each at tau per token. With g_c tokens given to child c
(`<spawn>` and brief), o_c of its own, j written by the join, and phi the cost
of a token that is forced as a share of tau, a call adds

  max_c (phi g_c + o_c) - (1 - phi) j

to the tokens l_k (which hold j) of its thought, or of the deep phase. phi = 1
where forced tokens are fed one by one, as policy/engine.py does; sigma / tau
where they are fed together, as a source is.

Source: AdaSR (arXiv 2606.14694) reports user-perceived latency from the last
input token on, at 150 words per minute; the exact clock is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from adasr_jax.policy.transcript import Transcript


@dataclasses.dataclass(frozen=True)
class Clock:
  """Speeds of the virtual clock.

  Attributes:
    words_per_minute: Of the stream.
    sigma: Seconds to prefill one source token.
    tau: Seconds to generate one target token.
    source: 'given' or 'measured': where sigma and tau come from.
  """
  words_per_minute: float
  sigma: float
  tau: float
  source: str = 'given'

  def __post_init__(self):
    if not self.words_per_minute > 0:
      raise ValueError(f'words_per_minute={self.words_per_minute} must be '
                       'positive')
    for name in ('sigma', 'tau'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} is negative')
    if self.source not in ('given', 'measured'):
      raise ValueError(f"source={self.source!r} is not 'given' or 'measured'")


def waits(transcripts: Sequence[Transcript], max_chunks: int, *,
          fed: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """What calls add to the tokens of thoughts and deep phases; see the module.

  Args:
    transcripts: B of them.
    max_chunks: C.
    fed: phi.

  Returns:
    [B, C+1] float64, column k for the thought on chunk k; [B] float64, for the
    deep phase, before its answer. 0 without threads.
  """
  thought = np.zeros((len(transcripts), max_chunks + 1))
  deep = np.zeros(len(transcripts))
  for b, t in enumerate(transcripts):
    for call in t.tree.calls if t.tree else ():
      more = max((fed * c.given + c.tokens for c in call.children),
                 default=0.0) - (1 - fed) * call.joined
      if call.phase <= len(t.thoughts):
        thought[b, call.phase] += more
      else:
        deep[b] += more
  return thought, deep


def clock(words: np.ndarray, source_tokens: np.ndarray,
          num_chunks: np.ndarray, target_tokens: np.ndarray,
          deep_tokens: np.ndarray, answer_start: np.ndarray, *,
          words_per_minute: float, sigma: float, tau: float,
          streamed: bool | np.ndarray = True) -> dict[str, np.ndarray]:
  """Seconds after the arrival of the last chunk, a_C; each [B] float64.

  Args:
    words: [B, C+1] int; column 0 is the preamble, which takes no time to
      arrive, column k is chunk k.
    source_tokens: [B, C+1] int, n_k.
    num_chunks: [B] int, chunks that arrive; later columns are ignored.
    target_tokens: [B, C+1], l_k, including the terminator or `<skip>`;
      column 0 is ignored, 0 = the row ended before chunk k.
    deep_tokens: [B], deep reasoning, answer and end-of-sequence.
    answer_start: [B], deep tokens before the first token of the answer,
      including `</think>`; -1 = no answer. (With threads these three have the
      waits, which need not be whole.)
    words_per_minute, sigma, tau: See Clock.
    streamed: bool or [B] bool, False = target_tokens are ignored.

  Returns:
    first_deep_token: When the first deep token is written, f_C + tau - a_C;
      NaN where there is none.
    first_answer_token: When the first token of the answer is written; NaN
      where there is none.
    end: When the last token is written; NaN where there is no deep phase.
    lag: Mean of f_k - a_k over the chunks on which anything was written, so
      not from a_C; NaN where there is none.

  Raises:
    ValueError: Shapes do not fit.
  """
  Clock(words_per_minute, sigma, tau)  # checks the values
  words, source_tokens, target_tokens = (
      np.asarray(x) for x in (words, source_tokens, target_tokens))
  B, columns = words.shape
  for name, value, shape in (
      ('source_tokens', source_tokens, (B, columns)),
      ('target_tokens', target_tokens, (B, columns)),
      ('num_chunks', num_chunks, (B,)), ('deep_tokens', deep_tokens, (B,)),
      ('answer_start', answer_start, (B,))):
    if np.shape(value) != shape:
      raise ValueError(f'{name} has shape {np.shape(value)}, words '
                       f'{words.shape}')
  num_chunks, deep_tokens, answer_start = (
      np.asarray(x) for x in (num_chunks, deep_tokens, answer_start))
  exists = np.arange(columns) <= num_chunks[:, None]  # [B, C+1]
  arrives = exists & (np.arange(columns) > 0)
  thinks = arrives & np.broadcast_to(streamed, B)[:, None]
  # After a row's last chunk all increments are 0: a, p and f don't change.
  a = np.cumsum(np.where(arrives, words, 0), 1) * 60.0 / words_per_minute
  prefill = sigma * np.where(exists, source_tokens, 0)
  spoken = np.where(thinks, target_tokens, 0)
  p = f = prefill[:, 0]
  late = np.zeros(B)
  for k in range(1, columns):
    p = np.maximum(a[:, k], p) + prefill[:, k]
    f = np.maximum(p, f) + tau * spoken[:, k]
    late += np.where(spoken[:, k] > 0, f - a[:, k], 0.0)
  thoughts = (spoken > 0).sum(1)
  start = f - a[:, -1]
  return {
      'first_deep_token': np.where(deep_tokens > 0, start + tau, np.nan),
      'first_answer_token': np.where(
          answer_start >= 0, start + tau * (answer_start + 1), np.nan),
      'end': np.where(deep_tokens > 0, start + tau * deep_tokens, np.nan),
      'lag': np.where(thoughts > 0, late / np.maximum(thoughts, 1), np.nan)}
