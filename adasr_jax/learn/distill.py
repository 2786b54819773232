"""On-policy distillation: a teacher judges what the student has sampled.

  rollout of the student -> log-probs of a frozen teacher -> reward per token
  -> A_t = advantage_weight A^HRPO_t + weight r_t -> the loss of losses.py

r_t is computed once per rollout from the policy that drew it (batch.old) and
stays fixed in inner epochs; the clipped ratio is 1 in the first. Student and
teacher are softmax(logits / temperature) under one legality. With
`distill.divergence` the loss is instead the weighted exact divergence over the
vocabulary, which depends on the current policy in every inner epoch.

The teacher is also the reference of `loss.kl_weight`. As the rewards, that
penalty is an estimate at sampled tokens.

Source: PowerOPD, arXiv 2606.17199; see divergences.py for rewards. There every
token has the weight 1 / N without ratio or clipping, which is what
loss.aggregation='token' and one inner epoch give; and rollouts are truncated
(top-p, top-k), which biases the gradient: here they are not.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from adasr_jax.core import options
from adasr_jax.core.options import option, Sections
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Array, Source, Target
from adasr_jax.core import visibility
from adasr_jax.learn import divergences
from adasr_jax.learn.divergences import Divergence, TopMass
from adasr_jax.learn import groups as groups_lib
from adasr_jax.learn import hrpo
from adasr_jax.learn.hrpo import HRPO
from adasr_jax.learn import losses
from adasr_jax.learn.losses import LossConfig, masked_sum
from adasr_jax.learn.method import Entry, Parts
from adasr_jax.learn.update import LossFn, UpdateBatch
from adasr_jax.models import decoder
from adasr_jax.policy.scoring import Against, score_against

# Name, first slot and end of the bins of metrics().
SLOTS = (('0_7', 0, 8), ('8_15', 8, 16), ('16_31', 16, 32), ('32_63', 32, 64),
         ('64_up', 64, 2**31))
_COMPARED = {'reverse_kl': Divergence('reverse_kl'),
             'forward_kl': Divergence('forward_kl'),
             'top_mass_1': TopMass(1), 'top_mass_4': TopMass(4)}


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
  """Who judges.

  Attributes:
    init: As config.init, but not random. The shape of the decoder is its own;
      model.dtype, model.attention and the vocabulary are the student's.
    reads: 'stream': what the student has read at that token; 'all': the whole
      source. Such a teacher must have been trained so (sft.reads).
  """
  init: str = option('')
  reads: str = option(visibility.STREAM, choices=visibility.READS)

  def __post_init__(self):
    options.check(self)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """What the student learns from the teacher.

  Attributes:
    reward: One of divergences.REWARDS.
    alpha: Exponent of the reward 'power' and of the divergence 'bregman'.
    clip: Nats; bound of 'log_ratio_clip'.
    scale: Nats; of 'log_ratio_tanh'.
    normalise: One of divergences.NORMALISERS, over all tokens of a step.
    terminal: 'keep', or 'mask': end-of-sequence tokens carry no loss.
    divergence: '' = rewards of sampled tokens; else a key of
      divergences.DIVERGENCES, exactly over the vocabulary.
    top_k: Tokens of the divergence 'top_k'.
    weight: Of the reward, or of the divergence.
    advantage_weight: Of HRPO's advantage; 0 = the teacher alone.
  """
  reward: str = option('power', choices=divergences.REWARDS)
  alpha: float = option(5.0, least=1e-4, most=1e4)
  clip: float = option(1.0, above=0, most=1e6)
  scale: float = option(5.0, above=0, most=1e6)
  normalise: str = option('none', choices=divergences.NORMALISERS)
  terminal: str = option('keep', choices=('keep', 'mask'))
  divergence: str = option('', choices=('', *divergences.DIVERGENCES))
  top_k: int = option(16, least=1, most=2**24)
  weight: float = option(1.0, above=0, most=1e6)
  advantage_weight: float = option(0.0, least=0, most=1e6)

  def __post_init__(self):
    options.check(self)

  def rewards(self, batch: UpdateBatch) -> np.ndarray:
    """r of each token, before normalisation; [B, T] float32, host arrays."""
    return divergences.reward(
        self.reward, np.asarray(batch.reference), np.asarray(batch.old),
        alpha=self.alpha, clip=self.clip, scale=self.scale)


@functools.cache  # one object, so one compile
def loss_of(loss_config: LossConfig, config: DistillConfig) -> LossFn:
  """HRPO's loss and, where the config has one, the divergence.

  Terms beside those of policy_loss: 'teacher_kl/streaming', 'teacher_kl/deep',
  nats per token: mean of log q - log p at the tokens that the student sampled,
  an estimate of KL(student || teacher); 'divergence/streaming' and '/deep'.
  """
  policy = hrpo.loss_of(loss_config)

  def loss(logp, entropy, batch):
    terms = policy(logp, entropy, batch)
    seen = {'teacher_kl': batch.old - batch.reference}
    if config.divergence:
      seen['divergence'] = batch.divergence
      w, _ = losses.token_weights(
          batch.mask, loss_config.aggregation, loss_config.constant,
          None if batch.packing is None else batch.packing.target)
      objective, total = terms['loss']
      terms['loss'] = (
          objective + config.weight * (w * batch.divergence).sum(), total)
    for name, values in seen.items():
      terms |= {f'{name}/streaming': masked_sum(values,
                                                batch.mask & ~batch.deep),
                f'{name}/deep': masked_sum(values, batch.mask & batch.deep)}
    return terms
  return loss


@dataclasses.dataclass(frozen=True)
class Distill(HRPO):
  """HRPO with a teacher's reward at every token.

  Attributes (others: see HRPO):
    config: What is learned.
    teacher_config: Shape of the teacher's decoder.
    reads: What the teacher reads.
  """
  config: DistillConfig
  teacher_config: decoder.DecoderConfig
  reads: str

  @property
  def needs_reference(self) -> bool:
    return False  # the teacher is the reference

  @property
  def loss(self) -> LossFn:
    return loss_of(self.loss_config, self.config)

  def draw(self, params, key, cursor: int) -> groups_lib.Groups:
    """See GroupSampler.draw; every group can be learned from."""
    groups = super().draw(params, key, cursor)
    return dataclasses.replace(groups, signal=np.ones_like(groups.signal))

  def _teaches(self, groups: groups_lib.Groups) -> np.ndarray:
    if not self.mask_overlong:
      return groups.signal
    return ~groups.rewards.cut.reshape(len(groups.signal), -1).all(1)

  def _batch(self, chosen) -> UpdateBatch:
    batch = super()._batch(chosen)
    batch = batch.replace(advantage=batch.advantage * np.float32(
        self.config.advantage_weight))
    if self.config.terminal == 'mask':
      ends = batch.target.tokens == self.protocol.eos
      batch = batch.replace(mask=batch.mask & ~ends)
    return batch

  def scored(self, batch: UpdateBatch, params, reference) -> UpdateBatch:
    """The batch with the teacher's log-probs and rewards.

    Args:
      batch: Of collect(), packed; host arrays.
      params: The policy that drew it.
      reference: The teacher. With a divergence it is asked in the update.
    """
    batch = super().scored(batch, params, None)
    if self.config.divergence:
      return batch
    seen = batch.replace(source=visibility.as_read(batch.source, self.reads))
    batch = batch.replace(
        reference=self.logps(reference, seen, self.teacher_config))
    reward = divergences.normalised(self.config.rewards(batch), batch.mask,
                                    self.config.normalise)
    return batch.replace(
        advantage=batch.advantage + np.float32(self.config.weight) * reward)


def metrics(s: Sections, batch: UpdateBatch) -> dict[str, float]:
  """The rewards of a step, before normalisation.

  Their mean and variance by phase; the variance by slot of the target, in the
  bins of SLOTS; 'teacher_reward_peak', the largest magnitude. Nothing with a
  divergence, which has no rewards, and nothing of a phase or bin without
  tokens.
  """
  d, out = s['distill'], {}
  if d.divergence or not batch.mask.any():
    return out
  rewards = d.rewards(batch).astype(np.float64)
  out['teacher_reward_peak'] = float(np.abs(rewards[batch.mask]).max())
  for phase, mask in (('streaming', batch.mask & ~batch.deep),
                      ('deep', batch.mask & batch.deep)):
    if mask.any():
      out[f'teacher_reward/{phase}'] = float(rewards[mask].mean())
      out[f'teacher_reward_variance/{phase}'] = float(rewards[mask].var())
  slot = target_slots(batch)
  for name, first, end in SLOTS:
    mask = batch.mask & (first <= slot) & (slot < end)
    if mask.any():
      out[f'teacher_reward_variance/slots_{name}'] = float(rewards[mask].var())
  return out


def target_slots(batch: UpdateBatch) -> np.ndarray:
  """[B, T] int, each token's slot in its own target, also where rows share."""
  shape = batch.mask.shape
  slot = np.broadcast_to(np.arange(shape[1]), shape)
  if batch.packing is None:
    return slot
  segment = np.asarray(batch.packing.target)
  begins = np.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))
  return slot - np.maximum.accumulate(np.where(begins, slot, 0), 1)


# ---------------------------------------------------- on held-out problems
def beside(params: decoder.Params, teacher: decoder.Params, source: Source,
           target: Target, *, teacher_config: decoder.DecoderConfig,
           reads: str, model_config: decoder.DecoderConfig,
           protocol: Protocol, temperature: float) -> dict[str, Array]:
  """How far a student is from its teacher, at all tokens of some rollouts.

  Args:
    params, model_config: The student.
    teacher, teacher_config, reads: The teacher, see TeacherConfig.
    source, target: P problems and B rollouts of the student, without packing.
    protocol, temperature: Of the rollouts.

  Returns:
    Means over the sampled tokens of a phase, [] float32, NaN where it has none,
    each with '/streaming' and '/deep': 'reverse_kl' and 'forward_kl', nats,
    over the whole vocabulary; 'top_mass_1' and 'top_mass_4', see TopMass.
  """
  chunks = jnp.repeat(source.num_chunks, target.tokens.shape[0]
                      // source.tokens.shape[0])[:, None]
  deep, out = target.phase > chunks, {}
  for name, compare in _COMPARED.items():
    values = score_against(
        params, teacher, source, target,
        against=Against(teacher_config, reads, compare),
        model_config=model_config, protocol=protocol,
        temperature=temperature)[3]
    for phase, mask in (('streaming', target.sampled & ~deep),
                        ('deep', target.sampled & deep)):
      out[f'{name}/{phase}'] = (jnp.where(mask, values, 0.0).sum()
                                / mask.sum())
  return out


def _against(s: Sections, parts: Parts) -> Against | None:
  d = s['distill']
  if not d.divergence:
    return None
  return Against(parts.teacher, s['teacher'].reads,
                 Divergence(d.divergence, alpha=d.alpha, k=d.top_k))


def _build(s: Sections, parts: Parts) -> Distill:
  return Distill(**hrpo.fields(s, parts), config=s['distill'],
                 teacher_config=parts.teacher, reads=s['teacher'].reads)


def _check(s: Sections) -> None:
  d = s['distill']
  hrpo.check_rollout(s, samples=2 if d.advantage_weight else 1)
  if not s['teacher'].init:
    raise ValueError("teacher.init='': distillation needs a teacher")
  if s['loss'].refills:
    raise ValueError(f'loss.refills={s["loss"].refills}: distillation learns '
                     f'from every group and replaces none')
  if d.divergence and d.normalise != 'none':
    raise ValueError(
        f'distill.normalise={d.normalise!r} is of rewards; '
        f'distill.divergence={d.divergence!r} has none')


ENTRY = Entry(
    build=_build, loss=lambda s: loss_of(s['loss'].loss(), s['distill']),
    check=_check, teacher=True, against=_against, metrics=metrics,
    sections={**hrpo.ENTRY.sections, 'distill': DistillConfig(),
              'teacher': TeacherConfig()})
