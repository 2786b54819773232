"""Rewards of threads: what parallel work earns, and what it costs.

Of a rollout with L tokens in all, L_c of them on its critical path, and n
children (policy/tree.py: total, sequential):

  R^T = w_p acc (1 - L_c / L) - w_t L - w_c n

is added to R^D and R^G. Without a right answer parallel work earns nothing.

Of a child with o tokens of its own, without its brief:

  R^child = useful - w_t o

It is useful if it returned something that the root's right answer contains,
word by word. With `verify` what it returned is judged as an answer by itself,
whatever the root made of it: useful is 1 where the task's verifier accepts it,
-1 where not, 0 where nothing was returned. With the oracle, a child is useful
too that returned nothing where there was nothing to find; only a solver knows
that, so it is off by default.

Source: threads that share the rollout's reward, arXiv 2504.15466; the forms
are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.core.types import Example
from adasr_jax.data.dataset import Agrees
from adasr_jax.policy.transcript import Transcript
from adasr_jax.policy import tree as tree_lib
from adasr_jax.policy.tree import Child

# (text of a child's brief, the reference answer) -> whether the problem can
# still be solved from there.
Solvable = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class ThreadReward:
  """Weights; without effect where nothing is spawned.

  Attributes:
    parallel_weight: w_p.
    token_penalty: w_t, per token.
    child_penalty: w_c, per child.
    verify: Whether what a child returned is judged as an answer by itself.
    oracle: Whether a child is rewarded for what only a solver knows.
  """
  parallel_weight: float = option(0.0, least=0, most=1e6)
  token_penalty: float = option(0.0, least=0, most=1e6)
  child_penalty: float = option(0.0, least=0, most=1e6)
  verify: bool = option(False)
  oracle: bool = option(False)

  def __post_init__(self):
    options.check(self)


def thread_rewards(examples: Sequence[Example],
                   transcripts: Sequence[Transcript], accuracy: np.ndarray, *,
                   children: int, config: ThreadReward,
                   agrees: Agrees | None = None,
                   solvable: Solvable | None = None
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rewards of the threads of B rollouts.

  Args:
    examples, transcripts: B of them; with trees.
    accuracy: [B] bool.
    children: M.
    config: Weights.
    agrees: The task's verifier, where the config has `verify`.
    solvable: The oracle, where the config has one.

  Returns:
    R^T: [B].
    R^child: [B, M], NaN where there is no child.
    brief: [B, M] int, the same number for the same brief, -1 where there is no
      child.
  """
  counts = tree_lib.counts([t.tree for t in transcripts])
  share = 1 - counts.tokens_sequential / np.maximum(counts.tokens_total, 1)
  rollout = (config.parallel_weight * accuracy * share
             - config.token_penalty * counts.tokens_total
             - config.child_penalty * counts.children)
  child = np.full((len(transcripts), children), np.nan)
  brief = np.full(child.shape, -1)
  numbers: dict[str, int] = {}
  for b, (example, t) in enumerate(zip(examples, transcripts)):
    for c, it in enumerate(t.tree.children):
      brief[b, c] = numbers.setdefault(it.brief, len(numbers))
      if config.verify:
        useful = 0 if it.result is None else (
            1 if agrees(it.result, example.answer) else -1)
      else:
        useful = bool(accuracy[b]) and _used(it, t.answer)
      if config.oracle and it.result is None:
        useful = not solvable(it.brief, example.answer)
      child[b, c] = useful - config.token_penalty * it.tokens
  return rollout, child, brief


def _used(child: Child, answer: str) -> bool:
  return bool(child.result) and f' {child.result} ' in f' {answer} '
