"""Credit of a thought: what it adds to the likelihood of the right answer.

With V(prefix) = log p(`</think>` is followed by the gold answer and the end |
prefix), or p itself, under the policy that wrote the rollout:

  r_k = V(chunks <= k, thoughts < k, thought k)
        - V(chunks <= k, thoughts < k, <skip>)

0 for a skip. Both branches read chunks up to k, and no deep text. No rollout is
made for it: all branches of a rollout are computed with it, in one pass
(decoder.branch_hidden). The `<EOT>` of the thought is fed again in its branch,
since in the rollout it reads chunk k + 1 already.

At the end of the stream, hiding a thought from the answer alone is its *direct
effect*, d_k = V(all) - V(all, thought k not read): later thoughts have read it,
so it is not what would have happened without it. (The last thought's `<EOT>` is
fed again, as above.) For that the suffix has to be read again
(`without_thought`): the *recomputed effect*.

No method trains with it: experiments/likelihood measures what it predicts.

Source: likelihood of the answer as a reward of steps, IGPO (arXiv 2510.14967);
the difference to a skip, which keeps out what the sentence itself revealed, is
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Array, Source, Target
from adasr_jax.core import visibility
from adasr_jax.core.visibility import Branches
from adasr_jax.models import decoder
from adasr_jax.policy import scoring


class Places(NamedTuple):
  """Where the branches of thoughts are; arrays of one entry per branch.

  Attributes:
    row: Target.
    chunk: Chunk, from 0; C = the end of the stream.
    kind: THOUGHT, SKIP, END or HIDDEN.
    start, stop: Entries of the branch.
  """
  row: np.ndarray
  chunk: np.ndarray
  kind: np.ndarray
  start: np.ndarray
  stop: np.ndarray


THOUGHT, SKIP, END, HIDDEN = range(4)


def branches(target: Target, num_chunks: np.ndarray,
             golds: Sequence[Sequence[int]], protocol: Protocol, *,
             direct: bool = False) -> tuple[Branches, Places]:
  """The branches of all thoughts of B targets.

  Args:
    target: [B, T]; host arrays.
    num_chunks: [B] int32.
    golds: B gold answers, token ids, without the end of the sequence.
    protocol: Control tokens.
    direct: Instead, those at the end of the stream: one that reads all, and one
      for each thought that does not read it.

  Returns:
    Host arrays [B, N], N a multiple of 16; where each branch is.
  """
  B = len(golds)
  rows, places = [[] for _ in range(B)], []

  def add(b, chunk, kind, first, prefix, phase, hole=(0, 0)):
    tokens = [first, protocol.end_think, *golds[b], protocol.eos]
    start = len(rows[b])
    places.append((b, chunk, kind, start, start + len(tokens)))
    rows[b] += [(t, start, prefix, *hole, phase) for t in tokens]

  for b in range(B):
    n = int(num_chunks[b])
    spans = [np.flatnonzero(target.valid[b] & (target.phase[b] == k + 1))
             for k in range(n)]
    end = next((w[-1] for w in reversed(spans) if len(w)), None)
    if direct and end is not None and len(spans[n - 1]):
      add(b, n, END, target.tokens[b, end], end, n)
    for k, where in enumerate(spans):
      last = len(where) and target.tokens[b, where[-1]] == protocol.eot
      if not last:
        continue  # a skip, or nothing, or broken off
      if direct:
        if len(spans[n - 1]):
          add(b, k, HIDDEN, target.tokens[b, end], end, n,
              (where[0], where[-1] + 1))
        continue
      add(b, k, THOUGHT, protocol.eot, where[-1], k + 1)
      add(b, k, SKIP, protocol.skip, where[0], k + 1)
  N = -(-max(1, *map(len, rows)) // 16) * 16
  table = np.zeros((B, N, 6), np.int32)
  table[..., 1] = -1
  for b, row in enumerate(rows):
    if row:
      table[b, :len(row)] = row
  tokens, begin, prefix, low, high, phase = np.moveaxis(table, -1, 0)
  return Branches(
      tokens=tokens, begin=begin, prefix=prefix, hole=(low, high), phase=phase,
      stage=np.full((B, N), protocol_lib.ANSWER, np.int32)), Places(
          *np.array(places, np.int64).reshape(-1, 5).T)


def branch_logps(params: decoder.Params, source: Source, target: Target,
                 branches: Branches, *, model_config: decoder.DecoderConfig,
                 protocol: Protocol, temperature: float = 1.0) -> Array:
  """[B, N] float32, nats, of each token given those before it in its branch.

  A branch's first two tokens, the end of the thought and `</think>`, are given:
  0 there.
  """
  hidden = decoder.branch_hidden(
      params, model_config, source, target.tokens[:, :-1],
      visibility.query_phase(target.phase), target.valid[:, :-1], branches)
  logp, _ = scoring.of_hidden(
      params, hidden[:, :-1], branches.tokens[:, 1:], branches.stage[:, 1:],
      model_config=model_config, protocol=protocol, temperature=temperature)
  at = jnp.arange(branches.tokens.shape[1])[None]
  answer = (branches.begin >= 0) & (at >= branches.begin + 2)
  return jnp.where(answer, jnp.pad(logp, ((0, 0), (1, 0))), 0.0)


def values(logps: np.ndarray, places: Places) -> np.ndarray:
  """V of each branch, nats: the log-likelihood of the gold answer."""
  total = np.cumsum(np.pad(np.asarray(logps, np.float64), ((0, 0), (1, 0))), 1)
  return (total[places.row, places.stop] - total[places.row, places.start])


def credits(value: np.ndarray, places: Places, shape: tuple[int, int], *,
            log: bool = False) -> np.ndarray:
  """r_k of each chunk, 0 where nothing was thought; `shape` is [B, C].

  Args:
    value: Of each branch of branches(), nats.
    places: Where they are.
    shape: B, C.
    log: Differences of log-likelihoods; else of likelihoods, in [-1, 1].
  """
  worth = value if log else np.exp(value)
  out = np.zeros(shape)
  sign = np.where(places.kind == THOUGHT, 1.0, -1.0)
  np.add.at(out, (places.row, places.chunk), sign * worth)
  return out


def direct_effects(value: np.ndarray, places: Places, shape: tuple[int, int], *,
                   log: bool = False) -> np.ndarray:
  """d_k of each chunk, of branches(direct=True); see credits().

  0 for skips.
  """
  worth = value if log else np.exp(value)
  all_read = np.zeros(shape[0])
  end, hidden = places.kind == END, places.kind == HIDDEN
  all_read[places.row[end]] = worth[end]
  out = np.zeros(shape)
  row = places.row[hidden]
  out[row, places.chunk[hidden]] = all_read[row] - worth[hidden]
  return out


def without_thought(target: Target, row: int, chunk: int, protocol: Protocol
                    ) -> Target:
  """One target, [1, T], with `<skip>` in the place of a thought.

  Args:
    target: [B, T]; host arrays.
    row: Which target.
    chunk: Of the thought, from 0.
    protocol: Knows `<skip>`.

  Raises:
    ValueError: There is nothing at this chunk.
  """
  where = np.flatnonzero(target.valid[row] & (target.phase[row] == chunk + 1))
  if not len(where):
    raise ValueError(f'row {row} has no thought on chunk {chunk}')
  first, after = int(where[0]), int(where[-1]) + 1

  def edited(name, a):
    fill = protocol_lib.DONE if name == 'stage' else 0
    put = {'tokens': protocol.skip, 'stage': protocol_lib.FIRST,
           'phase': chunk + 1, 'valid': True, 'sampled': True}.get(name, 0)
    out = np.full_like(a[row], fill)
    kept = [*a[row, :first], put, *a[row, after:]]
    out[:len(kept)] = kept
    return out[None]

  return Target(**{name: edited(name, np.asarray(getattr(target, name)))
                   for name in Target.__dataclass_fields__})
