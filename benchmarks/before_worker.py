"""before_worker.py CHECKOUT: times one checkout's RL step and evaluation.

Runs alone in a process, with the package of CHECKOUT, which may be of this
commit or of one whose update is not packed yet. Each line of its input is a
request, answered by a line of JSON:

  step N        step N of the demo; 0 begins anew. Seconds of `rollout`,
                `update` and the whole `step`; `tokens`, generated.
  evaluation    of the first 1,000 test problems. Seconds; `accuracy`.
"""

from __future__ import annotations

import json
import os
import sys
import time

PROBLEMS = 1000


class Worker:
  """The demo of the checkout on sys.path."""

  def __init__(self):
    import jax
    from adasr_jax.config import sections
    from adasr_jax.run import factories
    from configs import common
    from configs import hrpo

    self._config = hrpo.get_config()
    if not common.WARM_START.exists():
      self._config.init = ''
    self._sections = sections(self._config)
    self._parts = factories.parts(self._sections)
    self._method = factories.method(self._sections, self._parts)
    self._optimizer = factories.optimizer(self._sections)
    self._initial = jax.device_get(
        factories.initial_params(self._sections, self._parts))

  def step(self, n: int) -> dict[str, float]:
    """Step n; those before it have been done."""
    import jax
    import jax.numpy as jnp
    from adasr_jax.learn import update
    if n == 0:
      self._state = update.new_state(
          jax.tree.map(jnp.array, self._initial), self._optimizer)
      self._cursor, self._shapes = 0, ()
    start = time.perf_counter()
    got, batch, more = self._collected(n)
    self._cursor = got.cursor
    seconds = {'rollout': got.metrics['time/rollout'],
               'tokens': got.generated}
    if batch is not None:
      learn = time.perf_counter()
      self._state, _ = jax.block_until_ready(update.update(
          self._state, batch, jnp.float32(self._config.optim.learning_rate),
          model_config=self._parts.model_config,
          protocol=self._parts.protocol,
          temperature=self._method.temperature, loss=self._method.loss,
          optimizer=self._optimizer,
          micro_batches=self._config.loss.micro_batches, **more))
      seconds['update'] = time.perf_counter() - learn
    return seconds | {'step': time.perf_counter() - start}

  def _collected(self, n):
    """Rollouts with their rewards, and what the update reads."""
    policy, at = self._state.params, dict(step=n, cursor=self._cursor)
    try:
      from adasr_jax.learn import packing
    except ImportError:  # not packed yet
      got = self._method.collect(policy, None, **at)
      return got, got.batch, {}
    got = self._method.collect(policy, **at)
    if got.batch is None:
      return got, None, {}
    rows = packing.rows_at_once(got.batch)
    batch, self._shapes = packing.pack(
        got.batch, self._parts.model_config.d_model,
        self._config.loss.micro_batches, self._shapes, rows)
    return got, self._method.scored(batch, policy, None), {'rows': rows}

  def evaluation(self) -> dict[str, float]:
    """Of the initial parameters."""
    import jax
    from adasr_jax.run import evaluate
    s = self._sections
    clock = evaluate.make_clock(s['clock'], self._parts, lambda: self._initial)
    plan = evaluate.Plan(split='test', examples=PROBLEMS, sampling=s['eval'],
                         seed=s['run'].seed, clock=clock)
    params = jax.device_put(self._initial)
    start = time.perf_counter()
    summary = evaluate.evaluate(params, self._parts, plan)
    return {'evaluation': time.perf_counter() - start,
            'accuracy': summary['accuracy']}


def main() -> None:
  # Not the folder of this file: another commit's modules are there.
  sys.path[0] = os.path.abspath(sys.argv[1])
  os.chdir(sys.path[0])
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what else is printed is no answer
  worker = Worker()
  for line in sys.stdin:
    name, *args = line.split()
    answer = getattr(worker, name)(*map(int, args))
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()
