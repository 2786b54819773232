"""Time and memory of a step of distillation at a real vocabulary.

  python -m experiments.distill.vocabulary [--repeats=7] [--smoke]

A student and a teacher of one small shape over 151,936 tokens (that of Qwen3):
rewards of sampled tokens against divergences over the whole vocabulary. Each is
a rollout, which is the same for all, and then the teacher's judgement and one
update, with rows packed and computed as in a run. The divergences are computed
in blocks of the head; `at once` is the same reverse KL with all logits in
memory, as code without blocks has it.

Prints a table and writes vocabulary.json beside this file; memory is that of
the largest program, by the compiler: what it holds between its steps
(temporary), and with its arguments and results (peak). Three minutes on two
idle cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax.core import visibility
from adasr_jax.learn import distill
from adasr_jax.learn.divergences import Divergence
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn import optim
from adasr_jax.learn import packing
from adasr_jax.learn.update import new_state, update
from adasr_jax.models import decoder
from adasr_jax.policy import scoring
from adasr_jax.policy.rollout import rollout
from benchmarks import generation
from benchmarks import learning
from benchmarks import timing
from experiments import cells

HERE = pathlib.Path(__file__).parent
VOCABULARY, PROMPTS, SAMPLES, NEW = 151_936, 2, 4, 64
RATE = 1e-4
ADAM = optim.OptimConfig()
DIVERGENCES = {
    'reverse KL': Divergence('reverse_kl'),
    'forward KL': Divergence('forward_kl'),
    'Bregman, alpha 5': Divergence('bregman', alpha=5.0),
    'top 16 and the rest': Divergence('top_k', k=16)}
REWARD, AT_ONCE = 'power reward, alpha 5', 'reverse KL, at once'


class Steps:
  """The programs of a step, for one shape.

  Args:
    vocabulary: Number of tokens.
  """

  def __init__(self, vocabulary: int):
    self.model = dataclasses.replace(generation.CONFIG, vocab_size=vocabulary)
    self.protocol = dataclasses.replace(
        generation.PROTOCOL, vocab_size=vocabulary, deep_cap=NEW - 2)
    first = generation.prompts()
    self.source = jax.tree.map(lambda a: a[:PROMPTS], first)
    init = jax.jit(decoder.init, static_argnums=0)
    self.student, self.teacher = (init(self.model, jax.random.key(i))
                                  for i in range(2))
    self.optimizer = optim.make_optimizer(
        b1=ADAM.b1, b2=ADAM.b2, eps=ADAM.eps, weight_decay=0.0,
        clip_norm=ADAM.clip_norm, mu_dtype=ADAM.mu_dtype)
    self.static = dict(model_config=self.model, protocol=self.protocol,
                       temperature=1.0)
    self.score = jax.jit(functools.partial(scoring.score, **self.static))
    target = self.write(0)
    written = learning._written(
        target.tokens[:, 1:], target.logp[:, 1:],
        np.zeros(len(target.tokens), np.float32), self.source)
    # As train.py has it: rewards by few rows at once, divergences by all.
    self.rows = packing.rows_at_once(written)
    self.batch, _ = packing.pack(written, self.model.d_model)
    self.few, _ = packing.pack(written, self.model.d_model, rows=self.rows)
    self.state = new_state(jax.tree.map(jnp.array, self.student),
                           self.optimizer)

  def write(self, seed: int):
    """A rollout; host arrays."""
    return jax.device_get(rollout(
        self.student, self.source, jax.random.key(seed), samples=SAMPLES,
        max_chunks=0, **self.static))

  def judged(self):
    """The batch with the teacher's rewards, as Distill.scored has it."""
    b = self.few
    reference, _ = self.score(
        self.teacher, visibility.as_read(b.source, visibility.STREAM),
        b.target, b.packing)
    b = b.replace(reference=jax.device_get(reference))
    return b.replace(advantage=distill.DistillConfig().rewards(b))

  def _update(self, divergence: Divergence | None):
    config = distill.DistillConfig(divergence=divergence.name if divergence
                                   else '')
    against = divergence and scoring.Against(
        self.model, visibility.STREAM, divergence)
    return dict(loss=distill.loss_of(LossConfig(), config), micro_batches=1,
                optimizer=self.optimizer, against=against,
                rows=0 if divergence else self.rows, **self.static)

  def learn(self, divergence: Divergence | None):
    """Judgement and update; None = rewards of sampled tokens."""
    batch = self.judged() if divergence is None else self.batch
    self.state, _ = update(
        self.state, batch, jnp.float32(RATE), None,
        None if divergence is None else self.teacher,
        **self._update(divergence))
    return self.state.params

  def memory(self, divergence: Divergence | None) -> dict[str, float]:
    """Megabytes of the largest program of learn(); see the module."""
    programs = [update.lower(
        self.state, self.batch if divergence else self.few,
        jnp.float32(RATE), None,
        None if divergence is None else self.teacher,
        **self._update(divergence))]
    if divergence is None:
      programs.append(self.score.lower(
          self.teacher, self.few.source, self.few.target, self.few.packing))
    of = [p.compile().memory_analysis() for p in programs]
    return {
        'temporary_mb': max(m.temp_size_in_bytes for m in of) / 2**20,
        'peak_mb': max(m.temp_size_in_bytes + m.argument_size_in_bytes
                       + m.output_size_in_bytes - m.alias_size_in_bytes
                       for m in of) / 2**20}


def whole() -> mock._patch_dict:
  """All logits in one block, while this is entered."""
  return mock.patch.dict(scoring.HEAD_ELEMENTS, cpu=2**40)


def measure(vocabulary: int, repeats: int) -> dict[str, dict[str, float]]:
  """Name -> seconds of rollout, or of judgement and update, and its memory."""
  steps = Steps(vocabulary)
  with whole():
    # Another object than that of DIVERGENCES, so that it is compiled anew.
    big = Divergence('reverse_kl', k=2)
    steps.learn(big)
    memory = {AT_ONCE: steps.memory(big)}
  memory[REWARD] = steps.memory(None)
  for name, d in DIVERGENCES.items():
    memory[name] = steps.memory(d)
  times = timing.interleaved({
      'rollout': lambda i: steps.write(i).tokens,
      REWARD: lambda _: steps.learn(None),
      **{name: lambda _, d=d: steps.learn(d)
         for name, d in DIVERGENCES.items()},
      AT_ONCE: lambda _: steps.learn(big)}, repeats)
  for name, row in times.items():
    if name in memory:
      row |= memory[name]
      row['of_power'] = row['median'] / times[REWARD]['median']
      row['step_of_power'] = (
          (row['median'] + times['rollout']['median'])
          / (times[REWARD]['median'] + times['rollout']['median']))
  return times


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--smoke', action='store_true',
                      help='a small vocabulary, once; writes nothing')
  args = parser.parse_args()
  repeats = 1 if args.smoke else args.repeats
  times = measure(2048 if args.smoke else VOCABULARY, repeats)
  timing.show(f'judgement and update: {PROMPTS * SAMPLES} rollouts of {NEW} '
              f'tokens', times, 'temporary_mb peak_mb of_power step_of_power')
  if not args.smoke:
    (HERE / 'vocabulary.json').write_text(json.dumps(
        {'commit': cells.commit(), 'vocabulary': VOCABULARY, 'rollouts':
         PROMPTS * SAMPLES, 'tokens': NEW, 'repeats': repeats,
         'times': times}, indent=1) + '\n')


if __name__ == '__main__':
  main()
