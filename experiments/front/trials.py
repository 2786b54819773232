"""Ideas that are no part of the product, as a main program that has one.

  python -m experiments.front.trials --trial=NAME [flags of adasr_jax.main]

  once      length is rewarded in groups whose rollouts are all right
  deciding  the KL term (loss.kl_weight) counts at deciding tokens alone: a
            thought's first, and the `<EOT>` or `<skip>` that ends it
  tree      rollout.samples / 2 rollouts of each problem, and a continuation of
            each from a random boundary of its chunks; with
  tree4     a quarter of them, and three continuations of each; credit `prefix`
            then compares siblings
  supervised  `tree`, whose continuations begin with a token that the policy
            draws with which RL began; loss.behaviour_cap weights it
  larger    twelve rollouts of some problems on which four agree, and four of
            the others: 2 prompts in 3 are new problems, the rest are for these

ablations.py runs them (`--only=ideas`).
"""

from __future__ import annotations

import dataclasses
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
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
from adasr_jax.run import factories

# Trial -> how many rollouts begin alike.
BRANCHES = {'tree': 2, 'tree4': 4, 'supervised': 2}
TRIALS = ('once', 'deciding', 'larger', *BRANCHES)


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


def branching(branches: int, supervised: bool = False) -> None:
  """Rollouts that begin alike in groups of `branches`.

  Args:
    branches: Of which one is the root of the others.
    supervised: The first policy draws the first token of a continuation.
  """
  first = []
  if supervised:
    load = factories.initial_params

    def initial_params(s, p):
      params = load(s, p)
      first[:] = [jax.tree.map(jnp.copy, params)]
      return params

    factories.initial_params = initial_params

  def draw(self, params, key, cursor):
    batch = self.data.collate(self.data.train(cursor, self.prompts))
    start = time.perf_counter()
    source = placement.to_devices(batch.source)
    roots = self.samples // branches
    how = dict(model_config=self.model_config, protocol=self.protocol,
               max_chunks=self.data.max_chunks, temperature=self.temperature,
               rows=self.rows)
    root = placement.to_host(rollout(
        params, source, key, samples=roots, **how))
    given, kept = _begun(
        root, np.repeat(batch.source.num_chunks, roots), branches - 1,
        np.random.default_rng(np.asarray(jax.random.key_data(key))))
    how['samples'] = roots * (branches - 1)
    if supervised:
      other = placement.to_host(rollout(
          first[0], source, jax.random.fold_in(key, 2), given=given, **how))
      given, drawn = _with_next(given, other)
    more = placement.to_host(rollout(
        params, source, jax.random.fold_in(key, 1), given=given, **how))
    if supervised:
      more = more.replace(**{
          name: np.where(drawn, getattr(other, name), getattr(more, name))
          for name in ('sampled', 'logp', 'logp_untruncated')})
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


def _with_next(given: Given, other: Target) -> tuple[Given, np.ndarray]:
  """Given, and the token that `other` has behind it; [n, T] which it is."""
  drawn = np.arange(other.tokens.shape[1]) == given.length[:, None]
  return Given(tokens=np.where(drawn, other.tokens, given.tokens),
               length=given.length + 1), drawn


def larger() -> None:
  """See the module."""

  def draw(self, params, key, cursor):
    new, each = self.prompts * 2 // 3, self.samples
    chosen = (self.prompts - new) // 2  # each takes the place of two more
    examples = self.data.train(cursor, new)
    start = time.perf_counter()
    four = _rolled(self, params, key, examples, each)
    right = _scored(self, examples, four, each)[1].accuracy
    order = agreeing(right.reshape(new, each))
    again, rest = order[:chosen], np.sort(order[chosen:])
    eight = _rolled(self, params, jax.random.fold_in(key, 1),
                    [examples[p] for p in again], 2 * each)
    rolled = time.perf_counter()
    group = lambda a, n: a.reshape(n, -1, a.shape[1])
    flat = lambda a: a.reshape(-1, a.shape[2])
    small = jax.tree.map(lambda a: flat(group(a, new)[rest]), four)
    large = jax.tree.map(lambda a, b: flat(np.concatenate(
        [group(a, new)[again], group(b, chosen)], 1)), four, eight)
    texts, found, advantage = zip(
        _scored(self, [examples[p] for p in rest], small, each),
        _scored(self, [examples[p] for p in again], large, 3 * each))
    advantage = np.concatenate(advantage)
    return groups_lib.Groups(
        # To the update a group of twelve is three of one problem.
        batch=self.data.collate(
            [examples[p] for p in (*rest, *np.repeat(again, 3))]),
        target=jax.tree.map(lambda *a: np.concatenate(a), small, large),
        transcripts=sum(texts, []), rewards=rewards.joined(found),
        advantage=advantage,
        signal=(advantage != 0).reshape(self.prompts, -1).any(1),
        rollout_seconds=rolled - start,
        reward_seconds=time.perf_counter() - rolled)

  groups_lib.GroupSampler.draw = draw


def _rolled(sampler, params, key, examples, samples) -> Target:
  """`samples` rollouts of each of `examples`."""
  return placement.to_host(rollout(
      params, placement.to_devices(sampler.data.collate(examples).source), key,
      model_config=sampler.model_config, protocol=sampler.protocol,
      samples=samples, max_chunks=sampler.data.max_chunks,
      temperature=sampler.temperature, rows=sampler.rows))


def _scored(sampler, examples, target, samples):
  """Transcripts, rewards and advantages of groups of `samples`."""
  batch = sampler.data.collate(examples)
  chunks = np.repeat(batch.source.num_chunks, samples)
  texts = transcribe(target, chunks, sampler.data.tokenizer, sampler.protocol)
  sampler = dataclasses.replace(sampler, prompts=len(examples),
                                samples=samples)
  found = sampler._rewards(batch, texts)
  return texts, found, token_advantages(
      found, target, chunks, samples, sampler.protocol, sampler.advantage,
      sampler.reward)


def agreeing(right: np.ndarray) -> np.ndarray:
  """[P] problems: all wrong, then all right, then those that differ.

  Args:
    right: [P, G].
  """
  mean = right.mean(1)
  return np.argsort(np.where(mean == 0, 0, np.where(mean == 1, 1, 2)),
                    kind='stable')


def set_up(trial: str) -> None:
  """Changes the program's parts."""
  if trial in BRANCHES:
    branching(BRANCHES[trial], trial == 'supervised')
  else:
    {'once': once, 'deciding': deciding, 'larger': larger}[trial]()


_TRIAL = flags.DEFINE_enum('trial', None, TRIALS, 'See the module.')


def _main(argv):
  set_up(_TRIAL.value)
  main.main(argv)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir', 'trial'])
  app.run(_main, flags_parser=command.parse_flags)
