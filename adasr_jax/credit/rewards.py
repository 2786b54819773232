"""Rewards of a rollout: protocol format, accuracy, adaptive thinking.

For G rollouts of one problem (method of HRPO; R^* are sums of components):

  R^S = w_f fmt^S         + beta u(l_S)               streaming-local
  R^D = w_f fmt^D + w_a acc + beta u(l_D)             deep-local
  R^G = w_f fmt   + w_a acc + beta u(alpha l_S + l_D) global
  R^{S,k} = w_f fmt^{S,k} + beta u(l_k)               the thought on chunk k

R^D and R^G lose the overlong penalty, and threads.py adds what threads earn;
the user's own reward is added to all (its streaming part to R^S and R^{S,k}).
Tokens are those of the root: children are priced in threads.py.

Source: components and levels, AdaSR (arXiv 2606.14694); the sums are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import importlib
import inspect

import numpy as np

from adasr_jax.core.options import option
from adasr_jax.core.types import Example
from adasr_jax.credit import answers
from adasr_jax.credit.thinking import SHAPINGS, utility
from adasr_jax.credit.threads import Solvable, ThreadReward, thread_rewards
from adasr_jax.data.dataset import Agrees
from adasr_jax.policy.transcript import Transcript

# A user's reward: (examples [B], transcripts [B]) -> [B, 3] floats, added to
# the streaming, deep and global rewards.
UserReward = Callable[[Sequence[Example], Sequence[Transcript]], np.ndarray]


def user_reward(name: str) -> UserReward | None:
  """The function `package.module:function`, None for ''.

  Raises:
    ValueError: There is no such function, or it does not take examples and
      transcripts.
  """
  if not name:
    return None
  module, _, function = name.partition(':')
  try:
    found = getattr(importlib.import_module(module), function)
    inspect.signature(found).bind([], [])  # examples, transcripts
    return found
  except (ImportError, AttributeError, TypeError, ValueError) as e:
    raise ValueError(f'reward.user={name!r}: {e}') from e


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Weights and shape of the rewards.

  Attributes:
    format_weight: w_f.
    accuracy_weight: w_a, 1 in the method; 0 for ablations.
    think_weight: beta.
    alpha: In [0, 1], cost of a streaming token relative to a deep one.
    shaping: One of thinking.SHAPINGS.
    budget: Tokens; used by 'budget' and 'linear' shaping.
    overlong_penalty: Subtracted from R^D and R^G of a rollout whose deep
      reasoning or answer reached its cap; a share of it already in the window
      before the cap of deep reasoning.
    overlong_window: Tokens over which that share rises linearly to 1, fewer
      than rollout.deep_cap; 0 = no window.
    user: The user's own reward, 'package.module:function'; '' = none.
  """
  format_weight: float = option(0.2, least=-1e6, most=1e6)
  accuracy_weight: float = option(1.0, least=-1e6, most=1e6)
  think_weight: float = option(0.1, least=0, most=1e6)
  alpha: float = option(0.3, least=0, most=1)
  shaping: str = option('relative', choices=SHAPINGS)
  budget: float = option(32.0, above=0, most=1e9)
  overlong_penalty: float = option(0.0, least=0, most=1e6)
  overlong_window: int = option(0, least=0, most=2**20)
  user: str = option('')


@dataclasses.dataclass(frozen=True)
class Outcomes:
  """What rollouts did, before anything is weighted; float64 unless said.

  Attributes:
    accuracy, format, format_streaming, format_deep: [B] bool.
    format_chunk: [B, C] bool, the phase of the chunk kept to the protocol.
    tokens_streaming, tokens_deep: [B].
    tokens_chunk: [B, C].
    cut: [B] bool, some part reached its cap.
    deep_cut: [B] bool, the deep phase did.
  """
  accuracy: np.ndarray
  format: np.ndarray
  format_streaming: np.ndarray
  format_deep: np.ndarray
  format_chunk: np.ndarray
  tokens_streaming: np.ndarray
  tokens_deep: np.ndarray
  tokens_chunk: np.ndarray
  cut: np.ndarray
  deep_cut: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rewards(Outcomes):
  """Outcomes, and the rewards that they earn; float64.

  Attributes:
    think_streaming, think_deep, think_global: [B], u of each cost.
    streaming, deep, total: [B], R^S, R^D and the global R^G, which is not the
      sum of the other two.
    chunk: [B, C], R^{S,k}.
    more: [B], what is added to R^D and R^G: R^T, minus the overlong penalty.
    user: [B, 3], the user's own, added to R^S, R^D and R^G.
    think_chunk: [B, C], u of each thought's cost.
    threads: [B], R^T.
    child: [B, M], R^child; NaN where there is none.
    brief: [B, M] int, the same number for the same brief of a group.
  """
  think_streaming: np.ndarray
  think_deep: np.ndarray
  think_global: np.ndarray
  streaming: np.ndarray
  deep: np.ndarray
  total: np.ndarray
  chunk: np.ndarray
  more: np.ndarray
  user: np.ndarray
  think_chunk: np.ndarray
  threads: np.ndarray
  child: np.ndarray
  brief: np.ndarray


def joined(parts: Sequence[Rewards]) -> Rewards:
  """The rows of all parts, in order."""
  return Rewards(**{f.name: np.concatenate([getattr(p, f.name) for p in parts])
                    for f in dataclasses.fields(Rewards)})


def well_formed(t: Transcript, answered: bool) -> tuple[bool, bool]:
  """fmt^S and fmt^D of one rollout; fmt is both.

  fmt^S: every chunk got exactly one thought or `<skip>`, none was cut, no
  token broke the protocol. fmt^D: the deep phase closed, nothing in it was cut
  or broke the protocol, and an answer can be parsed.
  """
  streaming = (t.deep_tokens > 0 and not any(t.bad) and not any(t.cut))
  deep = t.finished and answered and not t.deep_bad and not t.deep_cut
  return streaming, deep


def is_right(answer: str, example: Example, agrees: Agrees | None = None
             ) -> bool:
  """Whether what was written as the answer is as right as the reference.

  Args:
    answer: As it was written; '' = nothing.
    example: Of the answer.
    agrees: See outcomes().
  """
  if not answer:
    return False
  if agrees:
    return bool(agrees(answer, example.answer))
  return answers.correct(answer, example.answer,
                         problem=example.preamble + ''.join(example.chunks))


def outcomes(examples: Sequence[Example], transcripts: Sequence[Transcript],
             *, max_chunks: int, agrees: Agrees | None = None) -> Outcomes:
  """What B rollouts did.

  Args:
    examples: B examples, one per rollout.
    transcripts: B transcripts.
    max_chunks: C.
    agrees: The task's own verifier, which takes any text that is not empty as
      an answer; None = answers.correct.
  """
  B, C = len(examples), max_chunks
  said = [(t.answer or None) if agrees else answers.extract(t.answer)
          for t in transcripts]
  accuracy = np.array([is_right(t.answer, e, agrees)
                       for t, e in zip(transcripts, examples)])
  forms = np.array([well_formed(t, s is not None)
                    for t, s in zip(transcripts, said)])
  tokens_chunk = np.zeros((B, C))
  format_chunk = np.zeros((B, C), bool)
  for b, t in enumerate(transcripts):
    tokens_chunk[b, :len(t.tokens)] = t.tokens
    format_chunk[b, :len(t.tokens)] = [
        n > 0 and not bad and not cut
        for n, bad, cut in zip(t.tokens, t.bad, t.cut)]
  return Outcomes(
      accuracy=accuracy, format=forms.all(1), format_streaming=forms[:, 0],
      format_deep=forms[:, 1], format_chunk=format_chunk,
      tokens_streaming=tokens_chunk.sum(1),
      tokens_deep=np.array([float(t.deep_tokens) for t in transcripts]),
      tokens_chunk=tokens_chunk,
      cut=np.array([t.deep_cut or any(t.cut) for t in transcripts]),
      deep_cut=np.array([t.deep_cut for t in transcripts]))


def rewards(examples: Sequence[Example], transcripts: Sequence[Transcript], *,
            samples: int, max_chunks: int, deep_cap: int, config: RewardConfig,
            user: UserReward | None = None, agrees: Agrees | None = None,
            children: int = 0, threads: ThreadReward | None = None,
            solvable: Solvable | None = None) -> Rewards:
  """Rewards of B rollouts, in groups of G; see the module for the equations.

  Args:
    examples: B examples, one per rollout (those of a group are the same).
    transcripts: B transcripts.
    samples: G.
    max_chunks: C.
    deep_cap: See Protocol.
    config: Weights.
    user: The user's own reward.
    agrees: See outcomes().
    children: M; 0 = the protocol has no threads.
    threads, solvable: See thread_rewards().

  Raises:
    ValueError: The user's reward has the wrong shape or is not finite.
  """
  c = config
  found = outcomes(examples, transcripts, max_chunks=max_chunks,
                   agrees=agrees)
  group = lambda x: x.reshape(-1, samples)
  eligible = group(found.accuracy & found.format)
  u = lambda cost: utility(group(cost), eligible, shaping=c.shaping,
                           budget=c.budget).reshape(-1)
  think_streaming = u(found.tokens_streaming)
  think_deep = u(found.tokens_deep)
  think_global = u(c.alpha * found.tokens_streaming + found.tokens_deep)
  think_chunk = np.stack([u(found.tokens_chunk[:, k])
                          for k in range(max_chunks)], 1)
  accuracy = c.accuracy_weight * found.accuracy
  w, beta = c.format_weight, c.think_weight
  B = len(transcripts)
  of_threads, child = np.zeros(B), np.zeros((B, 0))
  brief = np.zeros((B, 0), int)
  if children:
    of_threads, child, brief = thread_rewards(
        examples, transcripts, found.accuracy, children=children,
        config=threads or ThreadReward(), agrees=agrees, solvable=solvable)
  more = of_threads - _overlong(transcripts, deep_cap, c)
  streaming = w * found.format_streaming + beta * think_streaming
  deep = accuracy + w * found.format_deep + beta * think_deep + more
  total = accuracy + w * found.format + beta * think_global + more
  chunk = w * found.format_chunk + beta * think_chunk
  extra = np.zeros((B, 3))
  if user is not None:
    extra = _user_rewards(user, examples, transcripts)
    streaming, deep, total = (x + e for x, e in zip(
        (streaming, deep, total), extra.T))
    chunk = chunk + extra[:, :1]
  return Rewards(
      **vars(found), think_streaming=think_streaming, think_deep=think_deep,
      think_global=think_global, streaming=streaming, deep=deep, total=total,
      chunk=chunk, more=more, user=extra, think_chunk=think_chunk,
      threads=of_threads, child=child, brief=brief)


def _overlong(transcripts, cap, c):
  """[B], what is lost at a cap, or by deep reasoning near its own."""
  reasoning = np.array([
      t.answer_start if t.answer_start >= 0 else t.deep_tokens
      for t in transcripts])
  left = cap - reasoning
  near = np.clip(1.0 - left / max(c.overlong_window, 1), 0.0, 1.0)
  share = np.where([t.deep_cut for t in transcripts], 1.0,
                   near if c.overlong_window else 0.0)
  return share * c.overlong_penalty


def _user_rewards(user, examples, transcripts):
  shape = (len(examples), 3)
  extra = np.asarray(user(examples, transcripts), np.float64)
  name = getattr(user, '__name__', user)
  if extra.shape != shape:
    raise ValueError(f'reward.user: {name} must return shape {shape}, got '
                     f'shape {extra.shape}')
  if not np.isfinite(extra).all():
    b = int(np.argmin(np.isfinite(extra).all(1)))
    raise ValueError(f'reward.user: {name} returned {extra[b].tolist()} for '
                     f'rollout {b}')
  return extra
