"""HRPO, and GRPO as its special case: rollouts, rewards, advantages, loss.

  rollout -> transcripts -> rewards -> per-phase advantages -> clipped loss

`advantage.granularity='sequence'` (or lam = 0) is GRPO with the same rewards.

Source: AdaSR (arXiv 2606.14694); dynamic sampling, DAPO (arXiv 2503.14476).
Here a group is dropped only where every token's combined advantage is zero:
a group whose answers are all right still teaches length.
"""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import numpy as np

from adasr_jax.core import hosts
from adasr_jax.core.options import Sections
from adasr_jax.core import placement
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Target
from adasr_jax.credit.advantages import AdvantageConfig, token_advantages
from adasr_jax.credit import rewards as rewards_lib
from adasr_jax.credit.rewards import RewardConfig, Rewards, UserReward
from adasr_jax.data import dataset
from adasr_jax.data.dataset import Dataset
from adasr_jax.data.pipeline import Batch, resize_target, target_bucket
from adasr_jax.learn import losses
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn.method import Collected, Entry, Parts
from adasr_jax.learn.update import LossFn, UpdateBatch, logps
from adasr_jax.models.decoder import DecoderConfig
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.transcript import Transcript, readable, transcribe


@dataclasses.dataclass(frozen=True)
class Groups:
  """P groups of G scored rollouts; all on the host."""
  batch: Batch
  target: Target  # [P * G, T]
  transcripts: list[Transcript]
  rewards: Rewards
  advantage: np.ndarray  # [P * G, T] float32
  signal: np.ndarray  # [P] bool, some token has an advantage


def _pick(groups: Groups, which: np.ndarray, slots: int, samples: int):
  """Source, Target, mask-ready arrays of some groups, source padded."""
  rows = (which[:, None] * samples + np.arange(samples)).reshape(-1)
  source = jax.tree.map(lambda a: np.asarray(a)[which], groups.batch.source)
  pad = slots - source.tokens.shape[1]
  wide = lambda a: np.pad(a, ((0, 0), (0, pad)), mode='edge')
  source = dataclasses.replace(
      source, tokens=wide(source.tokens), phase=wide(source.phase),
      position=wide(source.position),
      valid=np.pad(source.valid, ((0, 0), (0, pad))))
  return (source, jax.tree.map(lambda a: a[rows], groups.target),
          groups.advantage[rows], groups.rewards.cut[rows],
          np.repeat(groups.signal[which], samples))


@functools.cache  # one object, so one compile
def loss_of(config: LossConfig) -> LossFn:
  """policy_loss of an UpdateBatch."""
  def loss(logp, entropy, batch):
    return losses.policy_loss(
        logp, entropy, old=batch.old, behaviour=batch.target.logp,
        reference=batch.reference, advantage=batch.advantage,
        mask=batch.mask, deep=batch.deep, config=config)
  return loss


@dataclasses.dataclass(frozen=True)
class HRPO:
  """On-policy RL on groups of rollouts.

  Attributes:
    data, protocol, model_config: What is read, written, and by which decoder.
    key: Random key of the run; steps are folded in.
    prompts, samples: P and G.
    temperature: Of the rollouts, and of the policy that is trained.
    reward, advantage, loss_config: The method's knobs.
    user: The user's own reward, or None.
    mask_overlong: Rollouts that met a cap carry no loss.
    refills: Further batches to replace groups without advantage.
    num_samples: Readable rollouts a step.
  """
  data: Dataset
  protocol: Protocol
  model_config: DecoderConfig
  key: jax.Array
  prompts: int
  samples: int
  temperature: float
  reward: RewardConfig
  advantage: AdvantageConfig
  loss_config: LossConfig
  user: UserReward | None
  mask_overlong: bool
  refills: int
  num_samples: int

  @property
  def needs_reference(self) -> bool:
    return self.loss_config.kl_weight > 0

  @property
  def loss(self) -> LossFn:
    return loss_of(self.loss_config)

  def _groups(self, params, key, cursor: int, clock: dict) -> Groups:
    examples = hosts.all_hosts(
        self.data.train(cursor, self.prompts, hosts.shard()))
    batch = self.data.collate(examples)
    t0 = time.perf_counter()
    target = placement.to_host(rollout(
        params, placement.to_devices(batch.source), key,
        model_config=self.model_config,
        protocol=self.protocol, samples=self.samples,
        max_chunks=self.data.max_chunks, temperature=self.temperature))
    t1 = time.perf_counter()
    chunks = np.repeat(batch.source.num_chunks, self.samples)
    transcripts = transcribe(target, chunks, self.data.tokenizer,
                             self.protocol)
    # Each host verifies its own rows.
    own = dataset.host_rows(self.prompts, hosts.shard())
    rewards = rewards_lib.joined(hosts.all_hosts([rewards_lib.rewards(
        [examples[p] for p in own for _ in range(self.samples)],
        transcripts[own.start * self.samples:own.stop * self.samples],
        samples=self.samples, max_chunks=self.data.max_chunks,
        deep_cap=self.protocol.deep_cap + self.protocol.answer_cap,
        config=self.reward, user=self.user)]))
    advantage = token_advantages(rewards, target, chunks, self.samples,
                                 self.protocol, self.advantage)
    signal = (advantage != 0).reshape(self.prompts, -1).any(1)
    clock['time/rollout'] += t1 - t0
    clock['time/reward'] += time.perf_counter() - t1
    return Groups(batch, target, transcripts, rewards, advantage, signal)

  def collect(self, params, reference, *, step: int, cursor: int
              ) -> Collected:
    """Rollouts of P problems (and of replacements), with advantages."""
    key = jax.random.fold_in(self.key, step)
    clock = {'time/rollout': 0.0, 'time/reward': 0.0}
    drawn, picked = [], []
    for _ in range(1 + self.refills):
      groups = self._groups(params, key, cursor, clock)
      cursor += self.prompts
      drawn.append(groups)
      picked += [(groups, p) for p in np.flatnonzero(groups.signal)]
      if len(picked) >= self.prompts:
        break
    # Static shapes: places that stay empty hold groups without a loss mask.
    found = min(len(picked), self.prompts)
    picked += [(drawn[-1], p) for p in np.flatnonzero(~drawn[-1].signal)]
    picked = picked[:self.prompts]
    metrics = _metrics(drawn) | clock
    metrics['groups/dropped'] = 1 - sum(
        g.signal.sum() for g in drawn) / (len(drawn) * self.prompts)
    generated = sum(int(g.target.sampled.sum()) for g in drawn)
    metrics['tokens_per_s/rollout'] = generated / clock['time/rollout']
    chosen = drawn[0]
    samples = [
        readable(chosen.batch.examples[r // self.samples],
                 chosen.transcripts[r], rewards=_row(chosen.rewards, r))
        for r in range(0, self.num_samples * self.samples,
                       self.samples)][:self.num_samples]
    batch = None
    if found:
      batch, more = self._update_batch(params, reference, picked)
      metrics |= more
      if not batch.mask.any():  # every rollout met a cap, and is masked
        batch = None
    return Collected(batch=batch, cursor=cursor, generated=generated,
                     metrics=metrics, samples=samples)

  def _update_batch(self, params, reference, picked):
    slots = max(g.batch.source.tokens.shape[1] for g, _ in picked)
    pieces = [_pick(g, np.array([p]), slots, self.samples)
              for g, p in picked]
    source, target, advantage, cut, signal = jax.tree.map(
        lambda *a: np.concatenate(a), *pieces)
    mask = target.sampled & signal[:, None]
    if self.mask_overlong:
      mask &= ~cut[:, None]
    length = target_bucket(int(target.valid.sum(1).max()),
                           target.tokens.shape[1])
    target = resize_target(target, length)
    mask, advantage = mask[:, :length], advantage[:, :length]
    chunks = np.repeat(source.num_chunks, self.samples)[:, None]
    score = lambda params: placement.to_host(logps(
        params, placement.to_devices(source), placement.to_devices(target),
        model_config=self.model_config, protocol=self.protocol,
        temperature=self.temperature))
    old = target.logp_untruncated
    if self.loss_config.behaviour_cap:
      old = score(params)
    ref = np.zeros_like(target.logp)
    if self.needs_reference:
      ref = score(reference)
    batch = UpdateBatch(source=source, target=target, mask=mask,
                        deep=target.phase > chunks, advantage=advantage,
                        old=old, reference=ref)
    return batch, {
        'tokens/trained': float(mask.sum()),
        'padding/target': float(1 - target.valid.mean()),
        'padding/source': float(1 - source.valid.mean())}


def _metrics(drawn: list[Groups]) -> dict[str, float]:
  """Means over all rollouts of a step: every component of the reward."""
  mean = lambda f: float(np.mean([f(g.rewards).mean() for g in drawn]))
  out = {f'reward/{n}': mean(lambda r, n=n: getattr(r, n)) for n in (
      'accuracy', 'format', 'format_streaming', 'format_deep',
      'think_streaming', 'think_deep', 'think_global', 'streaming', 'deep',
      'total')}
  for name in ('tokens_streaming', 'tokens_deep'):
    out[name.replace('_', '/')] = mean(lambda r: getattr(r, name))
  out['tokens/total'] = out['tokens/streaming'] + out['tokens/deep']
  said = [t for g in drawn for t in g.transcripts]
  thoughts = [x for t in said for x, n in zip(t.thoughts, t.tokens) if n]
  out['skip_rate'] = float(np.mean([x is None for x in thoughts] or [0.0]))
  out['capped/thoughts'] = float(sum(sum(t.cut) for t in said))
  out['capped/deep'] = float(sum(t.deep_cut for t in said))
  return out


def _row(rewards: Rewards, b: int) -> dict[str, float]:
  names = ('accuracy', 'format', 'streaming', 'deep', 'total')
  return {n: round(float(getattr(rewards, n)[b]), 4) for n in names}


def _build(s: Sections, parts: Parts) -> HRPO:
  l, r = s['loss'], s['rollout']
  return HRPO(
      data=parts.data, protocol=parts.protocol,
      model_config=parts.model_config, key=jax.random.key(s['run'].seed),
      prompts=s['data'].prompts, samples=r.samples, temperature=r.temperature,
      reward=s['reward'], advantage=s['advantage'], loss_config=l.loss(),
      user=rewards_lib.user_reward(s['reward'].user),
      mask_overlong=l.mask_overlong, refills=l.refills,
      num_samples=s['log'].samples)


def _check(s: Sections) -> None:
  r = s['rollout']
  if r.temperature <= 0:
    raise ValueError(f'rollout.temperature={r.temperature}: RL needs > 0')
  if r.top_k != 0 or r.top_p != 1:
    raise ValueError(
        f'rollout.top_k={r.top_k}, rollout.top_p={r.top_p}: RL samples without '
        f'truncation, since a sampled token could get probability 0 after one '
        f'update')
  if r.samples < 2:
    raise ValueError(
        f'rollout.samples={r.samples}: a group needs at least 2')
  rewards_lib.user_reward(s['reward'].user)


ENTRY = Entry(
    build=_build, loss=lambda s: loss_of(s['loss'].loss()), check=_check,
    sections={'reward': RewardConfig(), 'advantage': AdvantageConfig()})
