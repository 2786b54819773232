"""Ideas that are no part of the product, as a main program that has one.

  python -m experiments.front.trials --trial=NAME [flags of adasr_jax.main]

  once      length is rewarded in groups whose rollouts are all right
  deciding  the KL term (loss.kl_weight) counts at deciding tokens alone: a
            thought's first, and the `<EOT>` or `<skip>` that ends it
  tree      rollout.samples / 2 rollouts of each problem, and a continuation of
            each from a random boundary of its chunks; with
  tree4     a quarter of them, and three continuations of each; credit `prefix`
            then compares siblings

ablations.py runs them (`--only=ideas`).
"""

from __future__ import annotations

import time

from absl import app
from absl import flags
import jax
import numpy as np

from adasr_jax import main
from adasr_jax.core import placement
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.types import Given, Target
from adasr_jax.credit import rewards
from adasr_jax.credit.advantages import token_advantages
from adasr_jax.learn import groups as groups_lib
from adasr_jax.learn.hrpo import HRPO
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.transcript import transcribe
from adasr_jax.run import command

# Rollouts that begin alike.
BRANCHES = {'tree': 2, 'tree4': 4}
TRIALS = ('once', 'deciding', *BRANCHES)


def once() -> None:
  """See the module."""
  utility = rewards.utility
  rewards.utility = lambda cost, eligible, **how: utility(
      cost, eligible & eligible.all(1, keepdims=True), **how)


def deciding() -> None:
  """Elsewhere the reference is the policy itself (with one update a batch)."""
  scored = HRPO.scored

  def with_reference(self, batch, params, reference):
    out = scored(self, batch, params, reference)
    t, p = batch.target, self.protocol
    cls = p.token_class[np.asarray(t.tokens)]
    decides = (t.stage == protocol_lib.FIRST) | (
        (t.stage == protocol_lib.THOUGHT)
        & ((cls == protocol_lib.EOT) | (cls == protocol_lib.SKIP)))
    return out.replace(reference=np.where(decides, out.reference, out.old))

  HRPO.scored = with_reference


def branching(branches: int) -> None:
  """Rollouts that begin alike in groups of `branches`."""

  def draw(self, params, key, cursor):
    batch = self.data.collate(self.data.train(cursor, self.prompts))
    start = time.perf_counter()
    source = placement.to_devices(batch.source)
    roots = self.samples // branches
    how = dict(model_config=self.model_config, protocol=self.protocol,
               max_chunks=self.data.max_chunks, temperature=self.temperature,
               rows=self.rows)
    root = placement.to_host(rollout(params, source, key, samples=roots, **how))
    given, kept = _begun(
        root, np.repeat(batch.source.num_chunks, roots), branches - 1,
        np.random.default_rng(np.asarray(jax.random.key_data(key))))
    more = placement.to_host(rollout(
        params, source, jax.random.fold_in(key, 1), given=given,
        samples=roots * (branches - 1), **how))
    # As it was written, so that the protocol is seen to be kept.
    again = lambda a: np.repeat(a, branches - 1, 0)
    seen = more.replace(
        sampled=np.where(kept, again(root.sampled), more.sampled),
        logp=np.where(kept, again(root.logp), more.logp))
    def merged(a, b):
      a, b = (x.reshape(self.prompts * roots, -1, x.shape[1]) for x in (a, b))
      return np.concatenate([a, b], 1).reshape(-1, a.shape[2])
    target = jax.tree.map(merged, root, more)  # what is given has no loss
    rolled = time.perf_counter()
    chunks = np.repeat(batch.source.num_chunks, self.samples)
    said = transcribe(jax.tree.map(merged, root, seen), chunks,
                      self.data.tokenizer, self.protocol)
    found = self._rewards(batch, said)
    advantage = token_advantages(found, target, chunks, self.samples,
                                 self.protocol, self.advantage, self.reward)
    return groups_lib.Groups(
        batch=batch, target=target, transcripts=said, rewards=found,
        advantage=advantage,
        signal=(advantage != 0).reshape(self.prompts, -1).any(1),
        rollout_seconds=rolled - start,
        reward_seconds=time.perf_counter() - rolled)

  groups_lib.GroupSampler.draw = draw


def _begun(root: Target, chunks: np.ndarray, times: int, rng
           ) -> tuple[Given, np.ndarray]:
  """What `times` continuations of each root are given, and [n, T] which."""
  thoughts = rng.integers(0, np.maximum(chunks, 1))  # 0 = none is kept
  again = lambda a: np.repeat(a, times, 0)
  kept = again(root.valid & (root.phase <= thoughts[:, None]))
  return Given(tokens=again(root.tokens),
               length=kept.sum(1, dtype=np.int32)), kept


def set_up(trial: str) -> None:
  """Changes the program's parts."""
  if trial in BRANCHES:
    branching(BRANCHES[trial])
  else:
    {'once': once, 'deciding': deciding}[trial]()


_TRIAL = flags.DEFINE_enum('trial', None, TRIALS, 'See the module.')


def _main(argv):
  set_up(_TRIAL.value)
  main.main(argv)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir', 'trial'])
  app.run(_main, flags_parser=command.parse_flags)
