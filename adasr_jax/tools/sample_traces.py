"""python -m adasr_jax.tools.sample_traces --of=WORKDIR --out=FILE --problems=N

Writes what a policy already does right as supervised traces. Each of N training
problems is rolled out --samples times; of its rollouts that are right and well
formed, the shortest is kept, in tokens. A problem without any is left out.

Supervised learning then makes a habit of what was sampled, see docs/data.md.

Source: STaR (arXiv 2203.14465), and rejection sampling fine-tuning (arXiv
2308.01825); the choice of the shortest is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from adasr_jax.core.types import Example
from adasr_jax.data.dataset import Dataset
from adasr_jax.policy.sampling import LEAST_TEMPERATURE
from adasr_jax.tools import own_traces
from adasr_jax.tools.own_traces import Drawn, Written


def shortest_right(examples: Sequence[Example], drawn: Drawn, data: Dataset
                   ) -> list[Example | None]:
  """Each problem with the shortest right rollout as its trace; [P].

  Args:
    examples: P problems.
    drawn: P * G rollouts, those of a problem side by side.
    data: Says what can be imitated: text that a tokenizer's decoder gave may
      be empty, or become longer than a cap.
  """
  right, cost = (a.reshape(len(examples), -1)
                 for a in (drawn.right, drawn.cost))
  samples = right.shape[1]
  out = []
  for p, example in enumerate(examples):
    order = sorted(np.flatnonzero(right[p]), key=lambda g, c=cost[p]: c[g])
    traces = (own_traces.traced(example, drawn.said[p * samples + g], data)
              for g in order)
    out.append(next(filter(None, traces), None))
  return out


def sample_traces(of: str, *, problems: int, first: int = 0, samples: int = 4,
                  temperature: float = 1.0, seed: int = 0,
                  devices: Sequence[jax.Device] | None = None
                  ) -> Iterator[Written]:
  """(problems, their records, sampled tokens) of one batch after another.

  Args:
    of: See own_traces.opened().
    problems: How many of the run's training stream.
    first: Position of the first one.
    samples: Rollouts of each.
    temperature: Of the rollouts; above 0.
    seed: Of the rollouts.
    devices: Of the run's mesh; None = all.

  Raises:
    ValueError: No such run or checkpoint, or a number is out of range; there
      are fewer training problems.
  """
  for name, value, least in (('samples', samples, 1), ('seed', seed, 0)):
    if not least <= value < 2**32:
      raise ValueError(f'{name}={value} is outside [{least}, 2**32)')
  if not LEAST_TEMPERATURE <= temperature <= 100:
    raise ValueError(f'temperature={temperature} is outside '
                     f'[{LEAST_TEMPERATURE}, 100]')
  with own_traces.opened(of, problems=problems, first=first,
                         devices=devices) as policy:
    size = min(policy.prompts, problems)
    for start in range(first, first + problems, size):
      own = min(size, first + problems - start)
      examples = policy.data.train(start, own)
      drawn = policy.drawn(
          examples, jax.random.fold_in(jax.random.key(seed), start), size=size,
          samples=samples, temperature=temperature)
      kept = shortest_right(examples, drawn, policy.data)
      yield (own, [own_traces.record(e) for e in kept if e],
             drawn.sampled)


def main(argv: list[str] | None = None) -> None:
  parser = own_traces.parser('sample_traces', __doc__.split('\n\n')[1])
  parser.add_argument('--samples', type=int, default=4,
                      help='rollouts of a problem')
  parser.add_argument('--temperature', type=float, default=1.0)
  parser.add_argument('--seed', type=int, default=0)
  own_traces.write(sample_traces, **vars(parser.parse_args(argv)))


if __name__ == '__main__':
  main()
