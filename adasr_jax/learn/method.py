"""What a method brings: one entry in METHODS (see __init__).

The training loop knows no method by name. It builds the entry's method and
calls

  collect(params, step=, cursor=) -> Collected
  scored(batch, params, reference) -> batch, with others' log-probs
  loss(logp, entropy, batch) -> {name: (sum, weight)}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol

from adasr_jax.core.options import Sections
from adasr_jax.core.protocol import Protocol as TargetProtocol
from adasr_jax.core import visibility
from adasr_jax.data.dataset import Dataset
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.learn.update import LossFn, UpdateBatch
from adasr_jax.models import decoder
from adasr_jax.policy.scoring import Against


@dataclasses.dataclass(frozen=True)
class Collected:
  """What one step learns from.

  Attributes:
    batch: One sample per row, on the host; the loop packs it. None where
      nothing can be learned (no rollout that is not masked has an advantage).
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

  def collect(self, params: decoder.Params, *, step: int, cursor: int
              ) -> Collected:
    ...

  def scored(self, batch: UpdateBatch, params: decoder.Params,
             reference: decoder.Params | None) -> UpdateBatch:
    ...


@dataclasses.dataclass(frozen=True)
class Parts:
  """What training and evaluation share: tokenizer, protocol, decoder, data.

  `teacher` is the shape of the teacher's decoder, where the method has one.
  """
  tokenizer: Tokenizer
  protocol: TargetProtocol
  model_config: decoder.DecoderConfig
  data: Dataset
  teacher: decoder.DecoderConfig | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
  """A method, as METHODS holds it.

  Attributes:
    build: Makes the method of a run.
    loss: Its loss, for compiling an update without data.
    sections: Sections of the config that are its own: name -> dataclass with
      the defaults.
    check: Refuses values that cannot work together, with a ValueError that
      names field and value.
    rolls_out: Whether a step samples rollout.samples rows per prompt (else it
      learns from one supervised trace per prompt).
    traces: A file of traces that are imitated in place of the data's own; ''
      = none.
    reads: What the policy has read when it thinks, see visibility.as_read.
    teacher: Whether it has a teacher: section 'teacher' says which, and
      scored() gets its parameters as the reference.
    against: The teacher as the update compares the policy with it, over the
      whole vocabulary; None = it does not.
    metrics: Scalars of a scored batch, for the log.
  """
  build: Callable[[Sections, Parts], Method]
  loss: Callable[[Sections], LossFn]
  sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  check: Callable[[Sections], None] = lambda sections: None
  rolls_out: bool = True
  traces: Callable[[Sections], str] = lambda sections: ''
  reads: Callable[[Sections], str] = lambda sections: visibility.STREAM
  teacher: bool = False
  against: Callable[[Sections, Parts], Against | None] = (
      lambda sections, parts: None)
  metrics: Callable[[Sections, UpdateBatch], Mapping[str, float]] = (
      lambda sections, batch: {})
