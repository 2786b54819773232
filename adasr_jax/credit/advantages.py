"""Hierarchical group-relative advantages: one for each phase, and a global one.

For the G rollouts of one problem, with z(r) = (r - mean_G r) / (std_G r + eps)
(population standard deviation; exactly 0 where all r are equal):

  A^S = z(R^S),  A^D = z(R^D),  A^G = z(R^G)

  stage (HRPO)     thought token: lam A^S + (1 - lam) A^G
                   deep token:    lam A^D + (1 - lam) A^G
  sequence (GRPO)  every token:   A^G
  sentence         token of the thought on chunk k: lam A^{S,k} + (1-lam) A^G,
                   A^{S,k} = z(R^{S,k}) over the group's thoughts on chunk k;
                   deep tokens as stage
  token            the tokens that decide (a thought's first, and the `<EOT>`
                   or `<skip>` that ends it): as stage; all others: A^G
  prefix           token of the thought on chunk k: lam A^{P,k} + (1-lam) A^G,
                   and of the deep phase: lam A^{P,n+1} + (1-lam) A^G,
                   A^{P,k} = V_k - V_{k-1}, V_k the mean of A^G over the
                   group's rollouts that have written the same through the
                   thought on chunk k; V_0 = 0, V_{n+1} = A^G

Under `prefix` the group is read as the tree that it is: a phase is credited
with what it changed. The A^{P,k} of a rollout add up to its A^G; a thought that
all write alike has none, and the thought by which right and wrong rollouts part
has all of it. A rollout that is alone from some thought on has no credit later.

With threads, `stage` and `sentence` have one more local advantage: a token of
child c gets lam A^c + (1 - lam) A^G, where A^c = z(R^child) over those children
of the group's rollouts that were given the same brief: they began alike. (A
group's n-th children have nothing in common; and over all of them, a child
would be blamed for a brief that leads nowhere.) Tokens of the root are as
above. Under `sequence` all threads share A^G, as under `token` the children do.

lam = 0 is GRPO under every granularity.

Normalisers, of R = sum_k w_k r_k (the components of rewards.py):

  std        A = z(R). It cancels scale: where R^S varies in a group only by
             its thinking term, A^S is the same for every beta > 0, and only lam
             sets the pressure on streaming length.
  constant   A = (R - mean_G R) / constant; 1 is centring alone. Keeps scales.
  decoupled  A = sum_k w_k (r_k - mean_G r_k) / max(std_G r_k, floor), and in
             the end all tokens' advantages over their root mean square in all
             groups that a step has drawn (scale). Each reward keeps its weight,
             whatever else varies in the group. The batch is not centred: a
             group without differences has no advantage, and dynamic sampling
             still sees it. The floor keeps the noise of a reward that hardly
             varies small. What threads earn together with the overlong penalty
             (R^T - ...), the user's reward and R^child are one reward each, of
             weight 1: weights inside them only set their proportions.

Source: three levels and lam, AdaSR (arXiv 2606.14694); one advantage for all
threads, arXiv 2504.15466; centring alone, Dr.GRPO (arXiv 2503.20783);
decoupled, NVlabs/GDPO @ b080e63 (there the batch is centred, too); the forms
are ours.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import numpy as np

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Target
from adasr_jax.credit.rewards import RewardConfig, Rewards

EPSILON = 1e-6
GRANULARITIES = ('sequence', 'stage', 'sentence', 'token', 'prefix')
NORMALISERS = ('std', 'constant', 'decoupled')
SCALES = ('tokens', 'sequences')


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
  """How rewards become advantages.

  Attributes:
    granularity: One of GRANULARITIES.
    lam: lambda in [0, 1], weight of the local advantage.
    normaliser: One of NORMALISERS.
    constant: Divisor under 'constant'.
    floor: Least deviation under 'decoupled', in units of each reward.
    scale: Over what the root mean square is taken under 'decoupled': 'tokens',
      or 'sequences', of which each counts alike (with threads, each thread).
  """
  granularity: str = option('stage', choices=GRANULARITIES)
  lam: float = option(0.5, least=0, most=1)
  normaliser: str = option('std', choices=NORMALISERS)
  constant: float = option(1.0, least=1e-6, most=1e6)
  floor: float = option(0.01, least=0, most=1e6)
  scale: str = option('tokens', choices=SCALES)

  def __post_init__(self):
    options.check(self)


def group_relative(reward: np.ndarray, samples: int, *,
                   normaliser: str = 'std', constant: float = 1.0,
                   floor: float = 0.0) -> np.ndarray:
  """z of each reward in its group of `samples` rows; [B, ...] float64.

  Args:
    reward: [B, ...]; axis 0 holds P groups of G.
    samples: G.
    normaliser: One of NORMALISERS.
    constant, floor: See AdvantageConfig.
  """
  r = reward.reshape(-1, samples, *reward.shape[1:]).astype(np.float64)
  centred = r - r.mean(1, keepdims=True)
  scale = constant
  if normaliser != 'constant':
    scale = np.maximum(r.std(1, keepdims=True) + EPSILON,
                       floor if normaliser == 'decoupled' else 0.0)
  # Rewards are compared exactly: a deviation that is only rounding must not be
  # learned.
  equal = (r == r[:, :1]).all(1, keepdims=True)
  return np.where(equal, 0.0, centred / scale).reshape(reward.shape)


def of_children(reward: np.ndarray, brief: np.ndarray, samples: int,
                **normaliser) -> np.ndarray:
  """A^c of each child, over those of its group with its brief; [B, M].

  Args:
    reward: [B, M]; axis 0 holds P groups of G.
    brief: [B, M] int, a number for each brief; < 0 where there is no child,
      whose advantage is 0.
    samples: G.
    **normaliser: See group_relative.
  """
  out = np.zeros(reward.shape)
  for first in range(0, len(reward), samples):
    r, b, a = (x[first:first + samples] for x in (reward, brief, out))
    for number in np.unique(b[b >= 0]):
      same = b == number
      a[same] = group_relative(r[same], int(same.sum()), **normaliser)
  return out


def levels(rewards: Rewards, weights: RewardConfig,
           z: Callable[[np.ndarray], np.ndarray], decoupled: bool
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """A^S, A^D, A^G [B] and A^{S,k} [B, C].

  Args:
    rewards: Of B rollouts.
    weights: Of their components.
    z: Advantage of one reward.
    decoupled: z of each component, weighted; else of their sum.
  """
  if not decoupled:
    return (z(rewards.streaming), z(rewards.deep), z(rewards.total),
            z(rewards.chunk))
  r, w = rewards, weights
  accuracy = w.accuracy_weight * z(r.accuracy) + z(r.more)
  level = lambda form, think, user: (
      w.format_weight * z(form) + w.think_weight * z(think) + z(user))
  streaming, deep, total = r.user.T
  return (level(r.format_streaming, r.think_streaming, streaming),
          accuracy + level(r.format_deep, r.think_deep, deep),
          accuracy + level(r.format, r.think_global, total),
          level(r.format_chunk, r.think_chunk, r.user[:, :1]))


def by_prefix(advantage: np.ndarray, target: Target, num_chunks: np.ndarray,
              samples: int) -> np.ndarray:
  """A^{P,k} of every phase; [B, C + 2] float64, column k for phase k.

  Args:
    advantage: [B], A^G; axis 0 holds P groups of G.
    target: [B, T], the rollouts (with threads, their roots); host arrays.
    num_chunks: [B] int32.
    samples: G.
  """
  B, C = len(advantage), int(num_chunks.max(initial=0))
  value = np.zeros((B, C + 2))
  value[:, C + 1] = advantage
  for first in range(0, B, samples):
    group = range(first, first + samples)
    for k in range(1, C + 1):
      same: dict[bytes, list[int]] = {}
      for b in group:
        if k <= num_chunks[b]:
          so_far = target.valid[b] & (target.phase[b] <= k)
          same.setdefault(target.tokens[b][so_far].tobytes(), []).append(b)
        else:
          value[b, k] = advantage[b]
      for rows in same.values():
        value[rows, k] = advantage[rows].mean()
  return np.diff(value, axis=1, prepend=0.0)


def magnitude(advantage: np.ndarray, sampled: np.ndarray, scale: str
              ) -> float:
  """Root mean square of the advantages [B, T]; 1 where all are zero.

  Args:
    advantage: [B, T].
    sampled: [B, T] bool.
    scale: One of SCALES.
  """
  square, n = np.where(sampled, advantage, 0.0)**2, sampled.sum(1)
  if scale == 'sequences':
    mean = (square.sum(1)[n > 0] / n[n > 0]).mean() if n.any() else 0.0
  else:
    mean = square.sum() / max(n.sum(), 1)
  return float(np.sqrt(mean)) or 1.0


def token_advantages(rewards: Rewards, target: Target, num_chunks: np.ndarray,
                     samples: int, protocol: Protocol, config: AdvantageConfig,
                     weights: RewardConfig) -> np.ndarray:
  """The advantage of every token, by its phase or thread; [B * W, T] float32.

  Args:
    rewards: Of B rollouts.
    target: [B * W, T], the rollouts, W = protocol.width; host arrays.
    num_chunks: [B] int32.
    samples: G.
    protocol: Knows which tokens end a thought, and threads.
    config: Granularity, lam, normaliser.
    weights: Of the rewards' components.

  Returns:
    0 where a token is not sampled. Under 'decoupled' not yet over magnitude().
  """
  normaliser = dict(normaliser=config.normaliser, constant=config.constant,
                    floor=config.floor)
  z = lambda r: group_relative(r, samples, **normaliser)
  lam, W = config.lam, protocol.width
  if config.granularity == 'sequence':
    lam = 0.0
  phase = target.phase
  rows = lambda a: np.repeat(a, W, 0)
  deep = phase > rows(num_chunks)[:, None]
  tokens = lambda a: np.broadcast_to(rows(a)[:, None], phase.shape)
  decoupled = config.normaliser == 'decoupled'
  of_stream, of_deep, of_all, of_chunk = levels(rewards, weights, z, decoupled)
  total = tokens(of_all)
  local = np.where(deep, tokens(of_deep), tokens(of_stream))
  if config.granularity == 'sentence' and rewards.chunk.shape[1]:
    k = np.clip(phase - 1, 0, rewards.chunk.shape[1] - 1)
    chunk = np.take_along_axis(rows(of_chunk), k, 1)
    local = np.where(deep, local, chunk)
  if config.granularity == 'prefix':
    roots = jax.tree.map(lambda a: a[::W], target)
    parts = by_prefix(of_all, roots, num_chunks, samples)
    local = np.take_along_axis(
        rows(parts), np.minimum(phase, parts.shape[1] - 1), 1)
  elif W > 1:
    local.reshape(-1, W, phase.shape[1])[:, 1:] = of_children(
        rewards.child, rewards.brief, samples, **normaliser)[..., None]
  out = lam * local + (1 - lam) * total
  if config.granularity == 'token':
    cls = protocol.token_class[target.tokens]
    ends = (cls == protocol_lib.EOT) | (cls == protocol_lib.SKIP)
    decides = (target.stage == protocol_lib.FIRST) | (
        (target.stage == protocol_lib.THOUGHT) & ends)
    out = np.where(decides, out, total)
  return np.where(target.sampled, out, 0.0).astype(np.float32)
