"""The optimizer: AdamW with a schedule, global-norm clipping, a decay mask."""

from __future__ import annotations

import dataclasses

import jax
import optax

from adasr_jax.core.options import option


SCHEDULES = ('constant', 'cosine', 'linear')


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """The optimizer.

  Attributes:
    learning_rate: Peak.
    schedule: One of SCHEDULES; 'cosine' and 'linear' end at 0.
    warmup: Updates; a step has loss.inner_epochs of them.
    b1, b2, eps: Of Adam.
    weight_decay: Only on matrices.
    mu_dtype: Of Adam's first moment.
    clip_norm: Largest global norm of the gradient.
  """
  learning_rate: float = option(2e-4, above=0, most=1e3)
  schedule: str = option('constant', choices=SCHEDULES)
  warmup: int = option(0, least=0, below=2**31)
  b1: float = option(0.9, least=0, below=1)
  b2: float = option(0.99, least=0, below=1)
  eps: float = option(1e-8, least=1e-30, most=1)
  weight_decay: float = option(0.0, least=0, most=1e3)
  mu_dtype: str = option('float32', choices=('float32', 'bfloat16'))
  clip_norm: float = option(1.0, least=1e-9, most=1e9)


def schedule(learning_rate: float, *, kind: str, warmup: int, steps: int
             ) -> optax.Schedule:
  """Learning rate by optimizer step: linear warm-up, then `kind`.

  Args:
    learning_rate: Peak.
    kind: 'constant', 'cosine' or 'linear' (the latter two end at 0).
    warmup: Steps from 0 to the peak.
    steps: Optimizer steps of the whole run. Where a
      token budget ends the run, the step that is passed is the fraction of
      `steps` that equals the fraction of the budget spent.
  """
  rest = max(steps - warmup, 1)
  if kind == 'constant':
    after = optax.constant_schedule(learning_rate)
  elif kind == 'cosine':
    after = optax.cosine_decay_schedule(learning_rate, rest)
  elif kind == 'linear':
    after = optax.linear_schedule(learning_rate, 0.0, rest)
  else:
    raise ValueError(f'schedule={kind!r} is not constant, cosine or linear')
  if not warmup:
    return after
  return optax.join_schedules(
      [optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def decayed(params):
  """True for matrices; norms and biases are not decayed. Same tree."""
  plain = ('norm', 'bias')
  return jax.tree_util.tree_map_with_path(
      lambda path, _: not any(p in str(path[-1]) for p in plain), params)


def make_optimizer(*, b1: float, b2: float, eps: float, weight_decay: float,
                   clip_norm: float, mu_dtype: str = 'float32'
                   ) -> optax.GradientTransformation:
  """clip_by_global_norm, then AdamW (arXiv 1711.05101) at learning rate 1.

  The update multiplies by the learning rate, which may therefore depend on
  anything that the training loop knows.
  """
  return optax.chain(
      optax.clip_by_global_norm(clip_norm),
      optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay,
                  mask=decayed, mu_dtype=mu_dtype))
