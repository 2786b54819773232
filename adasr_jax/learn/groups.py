"""Groups of G rollouts of one prompt: drawn, scored, picked for an update."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

from flax import struct
import jax
import numpy as np

from adasr_jax.core import hosts
from adasr_jax.core import placement
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Array, Source, Target
from adasr_jax.credit.advantages import (
    AdvantageConfig, magnitude, token_advantages)
from adasr_jax.credit import rewards as rewards_lib
from adasr_jax.credit.rewards import RewardConfig, Rewards, UserReward
from adasr_jax.credit.threads import Solvable, ThreadReward
from adasr_jax.data import dataset
from adasr_jax.data.dataset import Dataset
from adasr_jax.data.pipeline import Batch
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.transcript import Transcript, readable, transcribe
from adasr_jax.policy import tree as tree_lib


@dataclasses.dataclass(frozen=True)
class Groups:
  """P groups of G scored rollouts, each of W rows; all on the host.

  Attributes:
    batch: P prompts.
    target: B = P * G * W targets, W = protocol.width.
    transcripts: Of P * G rollouts.
    rewards: Of P * G rollouts.
    advantage: [B, T] float32.
    signal: [P] bool, some token of the group has an advantage.
    rollout_seconds, reward_seconds: Time they took.
  """
  batch: Batch
  target: Target
  transcripts: list[Transcript]
  rewards: Rewards
  advantage: np.ndarray
  signal: np.ndarray
  rollout_seconds: float
  reward_seconds: float


@struct.dataclass
class Picked:
  """Groups that an update learns from.

  Attributes:
    source: P prompts.
    target: B = P * G * W targets.
    advantage: [B, T] float32.
    cut: [B] bool, some part of the row's rollout reached its cap; not those of
      children.
    signal: [B] bool, some token of the row's group has an advantage.
  """
  source: Source
  target: Target
  advantage: Array
  cut: Array
  signal: Array


@dataclasses.dataclass(frozen=True)
class GroupSampler:
  """Draws groups of rollouts and scores them.

  Attributes:
    data, protocol, model_config: What is read, written, and by which decoder.
    prompts, samples: P and G.
    temperature: Of the rollouts.
    rows: See RolloutConfig.
    reward, advantage: How rollouts are scored.
    user: The user's own reward, or None.
    threads: What threads earn and cost.
    solvable: The oracle of `threads`, or None.
  """
  data: Dataset
  protocol: Protocol
  model_config: decoder.DecoderConfig
  prompts: int
  samples: int
  temperature: float
  rows: int
  reward: RewardConfig
  advantage: AdvantageConfig
  user: UserReward | None
  threads: ThreadReward
  solvable: Solvable | None

  def draw(self, params: decoder.Params, key: jax.Array, cursor: int
           ) -> Groups:
    """Groups of the P problems at `cursor`; `key` is folded with the step."""
    batch = self.data.collate(hosts.all_hosts(
        self.data.train(cursor, self.prompts, hosts.shard())))
    start = time.perf_counter()
    target = placement.to_host(rollout(
        params, placement.to_devices(batch.source), key,
        model_config=self.model_config, protocol=self.protocol,
        samples=self.samples, max_chunks=self.data.max_chunks,
        temperature=self.temperature, rows=self.rows))
    rolled = time.perf_counter()
    chunks = np.repeat(batch.source.num_chunks, self.samples)
    transcripts = transcribe(target, chunks, self.data.tokenizer,
                             self.protocol)
    rewards = self._rewards(batch, transcripts)
    advantage = token_advantages(rewards, target, chunks, self.samples,
                                 self.protocol, self.advantage, self.reward)
    signal = (advantage != 0).reshape(self.prompts, -1).any(1)
    return Groups(
        batch=batch, target=target, transcripts=transcripts, rewards=rewards,
        advantage=advantage, signal=signal, rollout_seconds=rolled - start,
        reward_seconds=time.perf_counter() - rolled)

  def _rewards(self, batch: Batch, transcripts: list[Transcript]) -> Rewards:
    """Of all rows; each host verifies its own."""
    own = dataset.host_rows(self.prompts, hosts.shard())
    return rewards_lib.joined(hosts.all_hosts([rewards_lib.rewards(
        [batch.examples[p] for p in own for _ in range(self.samples)],
        transcripts[own.start * self.samples:own.stop * self.samples],
        samples=self.samples, max_chunks=self.data.max_chunks,
        deep_cap=self.protocol.deep_cap, config=self.reward, user=self.user,
        agrees=self.data.agrees, children=self.protocol.width - 1,
        threads=self.threads, solvable=self.solvable)]))


def scaled(drawn: Sequence[Groups], scale: str) -> list[Groups]:
  """The same with advantages over their root mean square in all of them.

  Args:
    drawn: Groups of one step.
    scale: One of advantages.SCALES.
  """
  size = magnitude(*(np.concatenate(x) for x in zip(*(
      (g.advantage, g.target.sampled) for g in drawn))), scale)
  return [dataclasses.replace(g, advantage=g.advantage / np.float32(size))
          for g in drawn]


def pick(chosen: Sequence[tuple[Groups, int]], samples: int) -> Picked:
  """The chosen groups as one batch.

  Args:
    chosen: (groups, index of one of their prompts) for each group.
    samples: G.
  """
  slots = max(g.batch.source.tokens.shape[1] for g, _ in chosen)
  one = [_pick(g, p, slots, samples) for g, p in chosen]
  return jax.tree.map(lambda *a: np.concatenate(a), *one)


def _pick(groups: Groups, p: int, slots: int, samples: int) -> Picked:
  """One group, its source padded to `slots`."""
  rollouts = slice(p * samples, (p + 1) * samples)
  each = len(groups.target.tokens) // len(groups.signal)  # rows of a prompt
  rows = slice(p * each, (p + 1) * each)
  source = jax.tree.map(lambda a: np.asarray(a)[p:p + 1], groups.batch.source)
  pad = (0, 0), (0, slots - source.tokens.shape[1])
  wide = lambda a: np.pad(a, pad, mode='edge')
  source = dataclasses.replace(
      source, tokens=wide(source.tokens), phase=wide(source.phase),
      position=wide(source.position), valid=np.pad(source.valid, pad))
  return Picked(
      source=source, target=jax.tree.map(lambda a: a[rows], groups.target),
      advantage=groups.advantage[rows],
      cut=np.repeat(groups.rewards.cut[rollouts], each // samples),
      signal=np.repeat(groups.signal[p:p + 1], each))


def metrics(drawn: Sequence[Groups], taught: int) -> dict[str, float]:
  """Means over all rollouts of a step: every component of the reward.

  Args:
    drawn: All of the step.
    taught: Groups in them from which something can be learned.
  """
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
  if said and said[0].tree:
    out |= _of_threads(drawn, said)
  out['skip_rate'] = float(np.mean([x is None for x in thoughts] or [0.0]))
  out['capped/thoughts'] = float(np.mean([any(t.cut) for t in said]))
  out['capped/deep'] = float(np.mean([t.deep_cut for t in said]))
  out['time/rollout'] = sum(g.rollout_seconds for g in drawn)
  out['time/reward'] = sum(g.reward_seconds for g in drawn)
  out['groups/dropped'] = 1 - taught / sum(len(g.signal) for g in drawn)
  return out


def of_user(drawn: Sequence[Groups]) -> dict[str, float]:
  """Means of what the user's own reward adds to R^S, R^D and R^G."""
  added = np.concatenate([g.rewards.user for g in drawn]).mean(0)
  return {f'reward/user_{name}': float(x) for name, x in zip(
      ('streaming', 'deep', 'total'), added)}


def _of_threads(drawn, said) -> dict[str, float]:
  """Means of the sizes of trees, and of the rewards of threads."""
  out = {f'threads/{name}': float(values.mean()) for name, values in vars(
      tree_lib.counts([t.tree for t in said])).items()}
  out['tokens/total'] = out.pop('threads/tokens_total')
  out['threads/cut'] = float(np.mean(
      [c.cut for t in said for c in t.tree.children] or [0.0]))
  out['reward/threads'] = float(np.mean([g.rewards.threads for g in drawn]))
  child = np.concatenate([g.rewards.child for g in drawn])
  if not np.isnan(child).all():
    out['reward/child'] = float(np.nanmean(child))
  return out


def samples_of(groups: Groups, count: int, samples: int
               ) -> list[dict[str, Any]]:
  """All rollouts of the first `count` prompts, for samples.jsonl.

  With each, its rewards, and the mean advantage of the tokens that it sampled
  in thoughts ('streaming') and in the deep phase ('deep').
  """
  names = ('accuracy', 'format', 'streaming', 'deep', 'total')
  rounded = lambda x: round(float(x), 4)
  width = len(groups.target.tokens) // len(groups.transcripts)
  chunks = groups.batch.source.num_chunks
  out = []
  for b in range(min(count, len(groups.batch.examples)) * samples):
    rows = slice(b * width, (b + 1) * width)
    sampled = groups.target.sampled[rows]
    deep = groups.target.phase[rows] > chunks[b // samples]
    phases = {'streaming': sampled & ~deep, 'deep': sampled & deep}
    out.append(readable(
        groups.batch.examples[b // samples], groups.transcripts[b],
        rewards={n: rounded(getattr(groups.rewards, n)[b]) for n in names},
        advantages={n: rounded(groups.advantage[rows][at].mean())
                    for n, at in phases.items() if at.any()}))
  return out
