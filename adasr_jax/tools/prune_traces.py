"""python -m adasr_jax.tools.prune_traces --of=WORKDIR --out=FILE --problems=N

Writes traces without thoughts that are not needed. Each of N training problems
is solved greedily. Then, from the first sentence on, a thought is skipped and
the rest written anew. If the answer is right then, and was wrong before or
took more tokens, the new rollout takes the place of the old one. A problem that
stays wrong is left out.

So two rollouts that differ in one decision tell what it is worth, not a group
of rollouts that differ in all. Of the data, only the answers are read. A skip
may be right by chance, so only those are tried that the policy thought likely
with which the run began: it still has both alternatives where RL has made up
its mind. A policy that has learned from such traces may judge itself
(--start=WORKDIR, as --of) in a further round.

Supervised learning then makes a habit of it, see docs/data.md.

Source: ours. Near to it are values of steps by continuations from inside a
rollout, VinePPO (arXiv 2410.01679), and imitation of one's own right rollouts,
STaR (arXiv 2203.14465).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools

import jax
import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.types import Example, Target
from adasr_jax.models import decoder
from adasr_jax.policy import scoring
from adasr_jax.policy.rollout import OWN, SKIP
from adasr_jax.tools import own_traces
from adasr_jax.tools.own_traces import Drawn, Policy, Written

# Problems of which the thoughts on one sentence are tried together, so many at
# once.
POOL, BATCH = 480, 96

# Rollouts of some problems, by index: those skips are forced, these targets
# were begun. With them [n, C] bool, the skips that are worth a trial.
Again = Callable[[Sequence[int], np.ndarray | None, Target | None],
                 tuple[Drawn, np.ndarray]]


def prune(problems: int, again: Again) -> Drawn:
  """Rollouts of all problems without the thoughts that can go.

  Args:
    problems: How many.
    again: Writes rollouts, or the rest of them.
  """
  now, likely = again(range(problems), None, None)
  for k in range(likely.shape[1]):
    asked = [i for i, t in enumerate(now.said)
             if likely[i, k] and k < len(t.thoughts)
             and t.thoughts[k] is not None]
    if not asked:
      continue
    decisions = np.full((len(asked), likely.shape[1]), OWN, np.int32)
    decisions[:, k] = SKIP
    begun = jax.tree.map(lambda a, asked=asked: a[asked], now.target)
    new, new_likely = again(asked, decisions, begun.replace(
        valid=begun.valid & (begun.phase <= k)))
    better = new.right & (~now.right[asked] | (new.cost < now.cost[asked]))
    for j in np.flatnonzero(better):
      now.put(asked[j], new, j)
      likely[asked[j]] = new_likely[j]
  return now


@dataclasses.dataclass
class Writer:
  """Writes rollouts of some problems; see Again.

  Attributes:
    policy: Whose.
    judge: Parameters that say which skips are worth a trial; None = all are.
    examples: The problems.
    size: Problems of a batch.
    least: Probability of a skip from which on it is tried.
    sampled: Tokens that have been sampled.
  """
  policy: Policy
  judge: decoder.Params | None
  examples: Sequence[Example]
  size: int
  least: float
  sampled: int = 0

  def __call__(self, asked, decisions, begun):
    drawn, likely = [], []
    for at in range(0, len(asked), self.size):
      some = slice(at, at + self.size)
      mine = [self.examples[i] for i in asked[some]]
      drawn.append(self.policy.drawn(
          mine, jax.random.key(0), size=self.size, samples=1, temperature=0.0,
          decisions=None if decisions is None else decisions[some],
          begun=jax.tree.map(lambda a, some=some: a[some], begun)))
      likely.append(self._likely(mine, drawn[-1].target))
    out = own_traces.joined(drawn)
    self.sampled += out.sampled
    return out, np.concatenate(likely)

  def _likely(self, examples, target):
    """[n, C] bool, where a skip has that probability."""
    parts = self.policy.parts
    if self.judge is None:
      return np.ones((len(examples), parts.data.max_chunks), bool)
    fill = functools.partial(own_traces.filled, size=self.size)
    logp = np.asarray(_skip_logp(
        self.judge, parts.data.collate(fill(examples)).source,
        jax.tree.map(fill, target), model_config=parts.model_config,
        protocol=parts.protocol))[:len(examples)]
    first = target.valid & (target.stage == protocol_lib.FIRST)
    row, slot = np.nonzero(first & (logp >= np.log(self.least)))
    out = np.zeros((len(examples), parts.data.max_chunks), bool)
    out[row, target.phase[row, slot] - 1] = True
    return out


_skip_logp = jax.jit(scoring.skip_logp,
                     static_argnames=('model_config', 'protocol'))


def prune_traces(of: str, *, problems: int, first: int = 0,
                 least: float = 0.05, start: str = '',
                 devices: Sequence[jax.Device] | None = None
                 ) -> Iterator[Written]:
  """(problems, their records, sampled tokens) of one pool after another.

  Args:
    of: See own_traces.opened().
    problems: How many of the run's training stream.
    first: Position of the first one.
    least: Probability of a skip from which on it is tried; 0 = all are.
    start: config.init of the policy whose probability it is; '' = of that with
      which the run began.
    devices: Of the run's mesh; None = all.

  Raises:
    ValueError: No such run or checkpoint, or a number is out of range; there
      are fewer training problems.
  """
  if not 0 <= least <= 1:
    raise ValueError(f'least={least} is outside [0, 1]')
  with own_traces.opened(of, problems=problems, first=first,
                         devices=devices) as policy:
    judge = _judge(of, policy, start) if least else None
    for at in range(first, first + problems, POOL):
      examples = policy.data.train(at, min(POOL, first + problems - at))
      again = Writer(policy=policy, judge=judge, examples=examples,
                     size=min(BATCH, problems), least=least)
      now = prune(len(examples), again)
      traces = (own_traces.traced(e, t, policy.data) for e, t, right in zip(
          examples, now.said, now.right, strict=True) if right)
      yield (len(examples), [own_traces.record(e) for e in traces if e],
             again.sampled)


def _judge(of, policy, start):
  init = start or policy.init
  name = 'start' if start else f'of={of!r}: config.init'
  if not init:
    raise ValueError(f'{name}={init!r}: the run began with random parameters; '
                     'name another policy as start, or let least be 0')
  try:
    return policy.other(init)
  except ValueError as e:
    raise ValueError(f'{name}={init!r}: {e}') from e


def main(argv: list[str] | None = None) -> None:
  parser = own_traces.parser('prune_traces', __doc__.split('\n\n')[1])
  parser.add_argument('--least', type=float, default=0.05, help='probability '
                      'of a skip from which on it is tried')
  parser.add_argument('--start', default='', help='config.init of the policy '
                      'whose probability it is; the default is that with which '
                      'the run began')
  own_traces.write(prune_traces, **vars(parser.parse_args(argv)))


if __name__ == '__main__':
  main()
