"""Methods: what a step collects, and which loss it learns by.

The training loop knows no method by name; it calls

  collect(params, reference, step=, cursor=) -> Collected
  loss(logp, entropy, batch) -> {name: (sum, weight)}
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from adasr_jax.learn.update import LossFn, UpdateBatch
from adasr_jax.models import decoder


@dataclasses.dataclass(frozen=True)
class Collected:
  """What one step learns from.

  Attributes:
    batch: None where nothing can be learned (no group has an advantage).
    cursor: Data position after the step.
    generated: Tokens that were sampled.
    metrics: Scalars for the log; seconds under 'time/'.
    samples: Readable rollouts for samples.jsonl.
  """
  batch: UpdateBatch | None
  cursor: int
  generated: int
  metrics: dict[str, float]
  samples: list[dict[str, Any]]


class Method(Protocol):
  """What the training loop needs of a method."""
  loss: LossFn
  temperature: float
  needs_reference: bool

  def collect(self, params: decoder.Params, reference: decoder.Params | None,
              *, step: int, cursor: int) -> Collected:
    ...
