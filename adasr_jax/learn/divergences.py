"""Rewards of a token, and the divergences that learning from them descends.

At a sampled token o, q = pi(o|c) of the student and p of the teacher:

  log_ratio       r = log p - log q                              unbounded
  log_ratio_clip  r = clip(log p - log q, -clip, clip)
  log_ratio_tanh  r = tanh((log p - log q) / scale)              in [-1, 1]
  power           r = p^alpha - q^alpha                          in [-1, 1]

alpha = 0.5 and 1 are the differences of square roots and of probabilities;
(power / alpha) -> log_ratio as alpha -> 0. Over the vocabulary, [..., V]:

  reverse_kl  KL(q || p) = sum_o q (log q - log p)
  forward_kl  KL(p || q) = sum_o p (log p - log q)
  bregman     sum_o q^(1+a) / (1+a) - q p^a + a / (1+a) p^(1+a),  a = alpha
  top_k       KL(q || p) of the teacher's k most probable tokens and of one
              bucket that holds all others

With r held fixed, E_{o~q} [r grad log q(o)] is exactly -grad reverse_kl for
log_ratio and -grad bregman for power. bregman / alpha -> reverse_kl as
alpha -> 0; alpha = 1 is half the squared distance.

In float32 p^alpha is 0 where alpha log p < -103.97, and loses digits below
-87.3: for p below 9.3e-10 at alpha = 5, below 0.125 at 50, below 0.81 at 500.
Where both powers are 0, so is the reward.

Source: PowerOPD, arXiv 2606.17199, section 3; EIT-NLP/PowerOPD at 65819e1.
There a power is a difference of two exponentials; here it is computed from the
log-ratio by expm1, so that near p = q no digits are lost. That the tail is a
bucket, and the value of the Bregman divergence, are ours.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax.core.types import Array
from adasr_jax.models.attention import MASKED

REWARDS = ('log_ratio', 'log_ratio_clip', 'log_ratio_tanh', 'power')
NORMALISERS = ('none', 'zscore', 'sign_max')


def _np_of(*arrays):
  """numpy for host arrays, else jax.numpy."""
  return np if all(isinstance(a, np.ndarray) for a in arrays) else jnp


def power(teacher: Array, student: Array, alpha: float) -> Array:
  """p^alpha - q^alpha of log-probabilities; in [-1, 1], of their dtype.

  Args:
    teacher, student: log p and log q, nats, <= 0, of one shape.
    alpha: > 0.
  """
  xp = _np_of(teacher, student)
  gap = teacher - student
  # The larger power times (1 - ratio of the smaller to it): never inf - inf.
  larger = xp.exp(alpha * xp.maximum(teacher, student))
  return xp.sign(gap) * larger * -xp.expm1(-alpha * xp.abs(gap))


def reward(name: str, teacher: Array, student: Array, *, alpha: float,
           clip: float, scale: float) -> Array:
  """The reward of each token; see the module.

  Args:
    name: One of REWARDS.
    teacher, student: [...] log-probabilities of the token, nats.
    alpha: Exponent of 'power'.
    clip: Nats, of 'log_ratio_clip'.
    scale: Nats, of 'log_ratio_tanh'.
  """
  xp = _np_of(teacher, student)
  gap = teacher - student
  if name == 'log_ratio':
    return gap
  if name == 'log_ratio_clip':
    return xp.clip(gap, -clip, clip)
  if name == 'log_ratio_tanh':
    return xp.tanh(gap / scale)
  if name == 'power':
    return power(teacher, student, alpha)
  raise ValueError(f'reward={name!r} is not one of {REWARDS}')


FLOOR = 1e-3  # of what rewards are divided by


def normalised(values: np.ndarray, mask: np.ndarray, how: str) -> np.ndarray:
  """Rewards of a whole batch, normalised over the tokens of the mask.

  none: as they are. zscore: (r - mean) / max(std, FLOOR), population standard
  deviation; changes signs. sign_max: positive rewards over the largest,
  negative ones over the largest magnitude among them, neither below FLOOR;
  keeps signs. FLOOR is ours: where teacher and student are nearly equal, only
  rounding differs, and it shall not become a reward of full size.

  Args:
    values: [B, T].
    mask: [B, T] bool; other entries become 0.
    how: One of NORMALISERS.
  """
  r = np.where(mask, values, 0).astype(np.float64)
  if not mask.any() or how == 'none':
    return r.astype(values.dtype)
  if how == 'zscore':
    r = np.where(mask, (r - r[mask].mean()) / max(r[mask].std(), FLOOR), 0)
  elif how == 'sign_max':
    r = np.where(r > 0, r / max(r.max(), FLOOR), r / max(-r.min(), FLOOR))
  else:
    raise ValueError(f'normalise={how!r} is not one of {NORMALISERS}')
  return r.astype(values.dtype)


# ---------------------------------------------------- over the vocabulary
@dataclasses.dataclass(frozen=True)
class Divergence:
  """A divergence of two policies at each token. Hashable, so static.

  Attributes:
    name: A key of DIVERGENCES.
    alpha: Exponent of 'bregman'.
    k: Tokens of 'top_k' that stand alone; at ties there are more.
  """
  name: str
  alpha: float = 1.0
  k: int = 1

  def __call__(self, student: Array, teacher: Array) -> Array:
    """[...] of log-probs [..., V], nats; differentiable in the student's.

    Tokens that are not legal have log-probs near MASKED in both.
    """
    return DIVERGENCES[self.name](self, student, teacher)


def _reverse_kl(_, student, teacher):
  return (jnp.exp(student) * (student - teacher)).sum(-1)


def _forward_kl(_, student, teacher):
  return (jnp.exp(teacher) * (teacher - student)).sum(-1)


def _bregman(d, student, teacher):
  """q (q^a - p^a) - a/(1+a) (q^(1+a) - p^(1+a)); d/dq of it is q^a - p^a."""
  a, hold = d.alpha, jax.lax.stop_gradient
  q, slope = jnp.exp(student), hold(-power(teacher, student, a))
  value = hold(q) * slope + a / (1 + a) * hold(power(teacher, student, 1 + a))
  # As autodiff would give it, without terms that cancel.
  return (value + slope * (q - hold(q))).sum(-1)


def _highest(teacher, k):
  """[..., V] bool, the k highest, and what equals the last of them."""
  k = min(k, teacher.shape[-1])
  # Not the last of them: from a slice XLA makes a sort of the vocabulary.
  return teacher >= jax.lax.top_k(teacher, k)[0].min(-1, keepdims=True)


def _top_k(d, student, teacher):
  own = _highest(teacher, d.k)
  rest = lambda x: jax.nn.logsumexp(jnp.where(own, MASKED, x), -1)
  tail_q, tail_p = rest(student), rest(teacher)
  return (jnp.where(own, jnp.exp(student) * (student - teacher), 0.0).sum(-1)
          + jnp.exp(tail_q) * (tail_q - tail_p))


DIVERGENCES: dict[str, Callable[[Divergence, Array, Array], Array]] = {
    'reverse_kl': _reverse_kl, 'forward_kl': _forward_kl, 'bregman': _bregman,
    'top_k': _top_k}


@dataclasses.dataclass(frozen=True)
class TopMass:
  """What the student gives to the teacher's k most probable tokens.

  Stands where a Divergence does, but is no divergence: 1 at most, and 1 - this
  is what the student spends on tokens that the teacher thinks little of.

  Attributes:
    k: At ties there are more.
  """
  k: int = 1

  def __call__(self, student: Array, teacher: Array) -> Array:
    """[...] in [0, 1] of log-probs [..., V], nats."""
    return jnp.where(_highest(teacher, self.k), jnp.exp(student), 0.0).sum(-1)
