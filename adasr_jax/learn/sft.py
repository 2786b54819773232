"""Supervised fine-tuning on streaming traces."""

from __future__ import annotations

import dataclasses

import numpy as np

from adasr_jax.core import hosts
from adasr_jax.core import options
from adasr_jax.core.options import option, Sections
from adasr_jax.core.protocol import Protocol
from adasr_jax.core import visibility
from adasr_jax.data.dataset import Dataset
from adasr_jax.learn import losses
from adasr_jax.learn.method import Collected, Entry
from adasr_jax.learn.update import UpdateBatch


@dataclasses.dataclass(frozen=True)
class SFTConfig:
  """How traces are imitated.

  Attributes:
    reads: 'stream': each thought has read the stream up to its chunk; 'all':
      the whole source, as a teacher with foresight does (teacher.reads). Then
      evaluations read all, too.
    traces: JSON lines of adapters.streaming_reasoning that are imitated in
      place of the data's own traces; '' = none. Evaluations keep their splits.
      A resumed run needs the same file.
  """
  reads: str = option(visibility.STREAM, choices=visibility.READS)
  traces: str = option('')

  def __post_init__(self):
    options.check(self)


def loss(logp, entropy, batch: UpdateBatch) -> losses.Terms:
  """Cross-entropy of the trace's tokens; see losses.cross_entropy."""
  return losses.cross_entropy(logp, entropy, mask=batch.mask, deep=batch.deep)


@dataclasses.dataclass(frozen=True)
class SFT:
  """Imitates the traces of P examples per step."""
  data: Dataset
  protocol: Protocol
  prompts: int
  temperature: float = 1.0
  needs_reference: bool = False
  loss = staticmethod(loss)

  def collect(self, params, *, step: int, cursor: int) -> Collected:
    """The next P examples with their traces as targets."""
    del params, step
    examples = hosts.all_hosts(
        self.data.train(cursor, self.prompts, hosts.shard()))
    batch = self.data.collate(examples)
    target = self.data.traces(examples)
    # Rows of an example are its threads.
    chunks = np.repeat(np.asarray(batch.source.num_chunks),
                       len(target.tokens) // len(examples))[:, None]
    zero = np.zeros_like(target.logp)
    return Collected(
        batch=UpdateBatch(source=batch.source, target=target,
                          mask=target.sampled, deep=target.phase > chunks,
                          advantage=zero, old=zero, reference=zero),
        cursor=cursor + self.prompts, generated=0, samples=[], metrics={})

  def scored(self, batch: UpdateBatch, params, reference) -> UpdateBatch:
    """The batch: no other policy is asked."""
    del params, reference
    return batch


# Of section loss, what only rollouts have.
_OF_ROLLOUTS = ('ratio', 'surrogate', 'clip_low', 'clip_high', 'aggregation',
                'constant', 'kl_weight', 'behaviour_cap', 'mask_overlong',
                'refills')


def check(s: Sections) -> None:
  """Refuses what asks for rollouts, since nothing is generated."""
  if budget := s['run'].token_budget:
    raise ValueError(f"token_budget={budget}: method='sft' generates nothing")
  default = losses.LossSection()
  for name in _OF_ROLLOUTS:
    if (value := getattr(s['loss'], name)) != getattr(default, name):
      raise ValueError(f"loss.{name}={value!r} is not read by method='sft'")


ENTRY = Entry(
    build=lambda s, parts: SFT(data=parts.data, protocol=parts.protocol,
                               prompts=s['data'].prompts),
    loss=lambda s: loss, rolls_out=False, reads=lambda s: s['sft'].reads,
    traces=lambda s: s['sft'].traces,
    sections={'sft': SFTConfig()}, check=check)
