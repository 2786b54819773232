"""Hierarchical Relative Policy Optimization (HRPO); GRPO is a special case.

  rollout -> transcripts -> rewards -> per-phase advantages -> clipped loss

`advantage.granularity='sequence'` (or lam = 0) is GRPO with the same rewards.

Source: AdaSR (arXiv 2606.14694); dynamic sampling, DAPO (arXiv 2503.14476).
Here a group is dropped only where every token's combined advantage is zero:
a group whose answers are all right still teaches length.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from adasr_jax.core.options import Sections
from adasr_jax.core import placement
from adasr_jax.core.protocol import CHILD, RESULT
from adasr_jax.credit.advantages import AdvantageConfig
from adasr_jax.credit import rewards as rewards_lib
from adasr_jax.credit.rewards import RewardConfig
from adasr_jax.credit.threads import ThreadReward
from adasr_jax.learn import groups as groups_lib
from adasr_jax.learn.groups import GroupSampler, Groups
from adasr_jax.learn import losses
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn.method import Collected, Entry, Parts
from adasr_jax.learn.update import LossFn, UpdateBatch, logps
from adasr_jax.models import decoder
from adasr_jax.policy.sampling import LEAST_TEMPERATURE


@functools.cache  # one object, so one compile
def loss_of(config: LossConfig) -> LossFn:
  """policy_loss of an UpdateBatch."""
  def loss(logp, entropy, batch):
    stage = batch.target.stage
    return losses.policy_loss(
        logp, entropy, old=batch.old, behaviour=batch.target.logp,
        reference=batch.reference, advantage=batch.advantage,
        mask=batch.mask, deep=batch.deep, config=config,
        sample=None if batch.packing is None else batch.packing.target,
        child=(stage == CHILD) | (stage == RESULT))
  return loss


@dataclasses.dataclass(frozen=True)
class HRPO(GroupSampler):
  """On-policy RL on groups of rollouts.

  Attributes (others: see GroupSampler):
    key: Random key of the run; steps are folded in.
    loss_config: The loss.
    mask_overlong: Rollouts that reached a cap carry no loss.
    refills: Most further batches that replace groups without advantage.
    num_logged: Problems per step whose rollouts are logged, readable.
  """
  key: jax.Array
  loss_config: LossConfig
  mask_overlong: bool
  refills: int
  num_logged: int

  @property
  def needs_reference(self) -> bool:
    return self.loss_config.kl_weight > 0

  @property
  def loss(self) -> LossFn:
    return loss_of(self.loss_config)

  def collect(self, params, *, step: int, cursor: int) -> Collected:
    """Rollouts of P problems (and of replacements), with advantages."""
    key = jax.random.fold_in(self.key, step)
    drawn, found = [], 0
    for i in range(1 + self.refills):
      # A problem that comes again is not the same rollouts again.
      groups = self.draw(params, jax.random.fold_in(key, i) if i else key,
                         cursor)
      cursor += self.prompts
      drawn.append(groups)
      found += int(self._teaches(groups).sum())
      if found >= self.prompts:
        break
    if self.advantage.normaliser == 'decoupled':
      drawn = groups_lib.scaled(drawn, self.advantage.scale)
    chosen = [(groups, p) for groups in drawn
              for p in np.flatnonzero(self._teaches(groups))]
    metrics = groups_lib.metrics(drawn, len(chosen))
    if self.user:
      metrics |= groups_lib.of_user(drawn)
    generated = sum(int(g.target.sampled.sum()) for g in drawn)
    metrics['tokens_per_s/rollout'] = generated / metrics['time/rollout']
    batch = None
    if chosen:
      # Shapes are static: groups without tokens fill the places left.
      last = drawn[-1]
      chosen += [(last, p) for p in np.flatnonzero(~self._teaches(last))]
      batch = self._batch(chosen[:self.prompts])
    return Collected(
        batch=batch, cursor=cursor, generated=generated, metrics=metrics,
        samples=groups_lib.samples_of(drawn[0], self.num_logged,
                                      self.samples))

  def _teaches(self, groups: Groups) -> np.ndarray:
    """[P] bool, whether a rollout that is not masked has an advantage."""
    if not self.mask_overlong:
      return groups.signal
    rows = lambda a: a.reshape(len(groups.signal), -1)
    kept = ~np.repeat(groups.rewards.cut, self.protocol.width)
    return groups.signal & rows(
        kept & (groups.advantage != 0).any(1)).any(1)

  def _batch(self, chosen: list[tuple[Groups, int]]) -> UpdateBatch:
    """The chosen groups as the update reads them."""
    picked = groups_lib.pick(chosen, self.samples)
    target = picked.target
    mask = target.sampled & picked.signal[:, None]
    if self.mask_overlong:
      mask &= ~picked.cut[:, None]
    # What teaches nothing is not computed: packing leaves out empty rows.
    target = target.replace(valid=target.valid & mask.any(1)[:, None])
    chunks = np.repeat(picked.source.num_chunks,
                       self.samples * self.protocol.width)[:, None]
    return UpdateBatch(
        source=picked.source, target=target, mask=mask,
        deep=target.phase > chunks,  # else of some chunk
        advantage=picked.advantage, old=target.logp_untruncated,
        reference=np.zeros_like(target.logp))

  def scored(self, batch: UpdateBatch, params, reference) -> UpdateBatch:
    """The batch with what other policies make of it."""
    more = {}
    if self.loss_config.behaviour_cap:
      more['old'] = self.logps(params, batch, self.model_config)
    if self.needs_reference:
      more['reference'] = self.logps(reference, batch, self.model_config)
    return batch.replace(**more)

  def logps(self, params, batch: UpdateBatch,
            model_config: decoder.DecoderConfig) -> np.ndarray:
    """[B, T] log-probs of a policy at the batch's tokens; host arrays."""
    return placement.to_host(logps(
        params, *placement.to_devices(
            (batch.source, batch.target, batch.packing)),
        model_config=model_config, protocol=self.protocol,
        temperature=self.temperature))


def fields(s: Sections, parts: Parts) -> dict[str, Any]:
  """The fields of HRPO of a run.

  Raises:
    ValueError: Names a field that cannot work with the task or with threads.
  """
  loss, rollout, threads = s['loss'], s['rollout'], s['reward.threads']
  if parts.protocol.threads and loss.aggregation == 'sequence':
    raise ValueError("loss.aggregation='sequence' does not know which threads "
                     "are one rollout; 'constant' counts rollouts")
  if threads.verify and parts.data.agrees is None:
    raise ValueError('reward.threads.verify=True: the task has no verifier of '
                     'its own')
  solvable = None
  if threads.oracle:
    solvable = parts.data.solvable
    if solvable is None:
      raise ValueError('reward.threads.oracle=True: the task has no solver')
  return dict(
      data=parts.data, protocol=parts.protocol,
      model_config=parts.model_config, key=jax.random.key(s['run'].seed),
      prompts=s['data'].prompts, samples=rollout.samples,
      temperature=rollout.temperature, rows=rollout.rows,
      reward=s['reward'], advantage=s['advantage'], loss_config=loss.loss(),
      user=rewards_lib.user_reward(s['reward'].user),
      threads=threads, solvable=solvable,
      mask_overlong=loss.mask_overlong, refills=loss.refills,
      num_logged=s['log'].samples)


def check_rollout(s: Sections, samples: int) -> None:
  """Refuses rollouts that no policy can be trained on.

  Args:
    s: 'rollout' and 'reward' are read.
    samples: Fewest per prompt.

  Raises:
    ValueError: Names the field and its value.
  """
  r = s['rollout']
  if r.temperature < LEAST_TEMPERATURE:
    raise ValueError(f'rollout.temperature={r.temperature}: RL needs at least '
                     f'{LEAST_TEMPERATURE}')
  if r.top_k != 0 or r.top_p != 1:
    raise ValueError(
        f'rollout.top_k={r.top_k}, rollout.top_p={r.top_p}: RL samples without '
        f'truncation, since a sampled token could get probability 0 after one '
        f'update')
  if r.samples < samples:
    raise ValueError(
        f'rollout.samples={r.samples}: a group needs at least {samples}')
  reward = s['reward']
  if reward.overlong_penalty and reward.overlong_window >= r.deep_cap:
    raise ValueError(
        f'reward.overlong_window={reward.overlong_window} is not below '
        f'rollout.deep_cap={r.deep_cap}: every rollout would pay')
  rewards_lib.user_reward(reward.user)


ENTRY = Entry(
    build=lambda s, parts: HRPO(**fields(s, parts)),
    loss=lambda s: loss_of(s['loss'].loss()),
    check=lambda s: check_rollout(s, samples=2),
    sections={'reward': RewardConfig(), 'reward.threads': ThreadReward(),
              'advantage': AdvantageConfig()})
