"""python -m adasr_jax.tools.flip_traces --of=WORKDIR --out=FILE --problems=N

Writes traces without thoughts that are not needed. Each of N training problems
is solved greedily. Then its decisions are turned round, one after the other,
from the first sentence on: what was thought on is skipped and, as long as the
answer is wrong, what was skipped is thought on. The rest is written anew. If
the answer is right then, and was wrong before or took more tokens, the new
rollout takes the place of the old one. A problem that stays wrong is left out.

So two rollouts that differ in one decision tell what it is worth, not a group
of rollouts that differ in all. Of the data, only the answers are read.

Supervised learning then makes a habit of it, see docs/data.md.

Source: ours. Near to it are values of steps by continuations from inside a
rollout, VinePPO (arXiv 2410.01679), and imitation of one's own right rollouts,
STaR (arXiv 2203.14465).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from adasr_jax.core.types import Example, Target
from adasr_jax.policy.rollout import OWN, SKIP, THINK
from adasr_jax.tools import own_traces
from adasr_jax.tools.own_traces import Drawn, Policy, Written

# Problems whose decisions on one sentence are turned round together.
POOL = 480
KEY = jax.random.key(0)  # what is greedy reads no random numbers

# Rollouts of some problems, by index, that begin as they did, and decisions.
Again = Callable[[list[int], np.ndarray, Target], Drawn]


def flip(now: Drawn, again: Again, chunks: int) -> None:
  """Turns round each decision of each rollout, and keeps what is better.

  Args:
    now: n rollouts of as many problems, which are replaced in place.
    again: Writes the rest of some of them anew.
    chunks: Most of a problem.
  """
  for k in range(chunks):
    asked = [i for i, t in enumerate(now.said)
             if k < len(t.tokens) and t.tokens[k]
             and (t.thoughts[k] is not None or not now.right[i])]
    if not asked:
      continue
    decisions = np.full((len(asked), chunks), OWN, np.int32)
    decisions[:, k] = [
        THINK if now.said[i].thoughts[k] is None else SKIP for i in asked]
    begun = jax.tree.map(lambda a, asked=asked: a[asked], now.target)
    new = again(asked, decisions, begun.replace(
        valid=begun.valid & (begun.phase <= k)))
    better = new.right & (~now.right[asked] | (new.cost < now.cost[asked]))
    for j in np.flatnonzero(better):
      now.put(asked[j], new, j)


def _flipped(policy: Policy, examples: Sequence[Example], size: int
             ) -> tuple[Drawn, int]:
  """The rollouts after flip(), and the tokens that were sampled."""
  sampled = 0

  def run(asked, decisions=None, begun=None):
    nonlocal sampled
    parts = []
    for at in range(0, len(asked), size):
      some = slice(at, at + size)
      parts.append(policy.drawn(
          [examples[i] for i in asked[some]], KEY, size=size, samples=1,
          temperature=0.0,
          decisions=None if decisions is None else decisions[some],
          begun=jax.tree.map(lambda a, some=some: a[some], begun)))
    out = own_traces.joined(parts)
    sampled += out.sampled
    return out

  now = run(range(len(examples)))
  flip(now, run, policy.data.max_chunks)
  return now, sampled


def flip_traces(of: str, *, problems: int, first: int = 0,
                devices: Sequence[jax.Device] | None = None
                ) -> Iterator[Written]:
  """(problems, their records, sampled tokens) of one pool after another.

  Args:
    of: See own_traces.opened().
    problems: How many of the run's training stream.
    first: Position of the first one.
    devices: Of the run's mesh; None = all.

  Raises:
    ValueError: No such run or checkpoint, or a number is out of range; there
      are fewer training problems.
  """
  own_traces.check(problems=(problems, 1), first=(first, 0))
  with own_traces.opened(of, devices) as policy:
    policy.check_has(first, problems)
    size = min(policy.prompts * policy.rollout.samples, problems)
    for start in range(first, first + problems, POOL):
      examples = policy.data.train(
          start, min(POOL, first + problems - start))
      now, sampled = _flipped(policy, examples, size)
      traces = (own_traces.traced(e, t, policy.data) for e, t, right in zip(
          examples, now.said, now.right, strict=True) if right)
      yield (len(examples), [own_traces.record(e) for e in traces if e],
             sampled)


def main(argv: list[str] | None = None) -> None:
  parser = own_traces.parser('flip_traces', __doc__.split('\n\n')[1])
  own_traces.write(flip_traces, **vars(parser.parse_args(argv)))


if __name__ == '__main__':
  main()
