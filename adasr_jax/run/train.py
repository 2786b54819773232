"""The training loop of every method: collect, update, log, evaluate, save."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import signal
import sys
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from adasr_jax.core import files
from adasr_jax.core import hosts
from adasr_jax.core import placement
from adasr_jax.learn import METHODS
from adasr_jax.learn import optim
from adasr_jax.learn import packing
from adasr_jax.learn.update import UpdateBatch, new_state, update
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.models import weights
from adasr_jax.policy.engine import Engine
from adasr_jax.run.checkpoint import Checkpoints, Progress
from adasr_jax.run.evaluate import (Plan, evaluate, in_words, make_clock,
                                    settings)
from adasr_jax.run import factories
from adasr_jax.run.latency import Clock
from adasr_jax.run import logs
from adasr_jax.run import report
from adasr_jax.run.start import Run
from adasr_jax.run import workdir as workdir_lib


class Interrupted(Exception):
  """SIGTERM or SIGINT came; the run has been checkpointed."""


def train(run: Run) -> None:
  """Trains a run, or resumes it at its newest checkpoint.

  Args:
    run: Of start(). Its initial parameters are donated, or with LoRA stay as
      they are: there is no second copy but a KL reference.

  Raises:
    Interrupted: A signal came; the same command goes on from here.
    FloatingPointError: A loss, gradient or update is not finite (the batch is
      saved), or the parameters are not.
    OSError: Another process is running in the workdir, or the disk fails.
  """
  if hosts.by_first(lambda: finished(run.workdir)):
    logging.info('%s is finished', run.workdir)
    return
  with workdir_lib.held(run.workdir), jax.set_mesh(run.mesh):
    _train(run)


def finished(workdir: pathlib.Path) -> bool:
  """Whether the run has ended with a last evaluation, model and report."""
  return ('final' in logs.read_evaluations(workdir)
          and all((workdir / name).is_file()
                  for name in ('model.safetensors', 'report.md')))


def _train(run):
  trainer, s = Trainer(run), run.sections
  if (trainer.fresh and s['eval'].at_start
      or METHODS[s['run'].method].rolls_out):
    logging.info('compiling the rollout')  # which nothing shows for a while
  if trainer.fresh:
    trainer.evaluate_start()
    trainer.save()
  bar = tqdm.tqdm(total=s['run'].steps, initial=trainer.progress.step,
                  unit='step', file=sys.stderr, dynamic_ncols=True,
                  desc=s['run'].name, disable=not hosts.first())
  with bar, _stop_signals() as stopped:  # an error gets a line of its own
    while not (stop := hosts.any_of(stopped)) and trainer.unfinished():
      metrics = trainer.step()
      bar.update()
      bar.set_postfix_str(_postfix(metrics))
      accuracy = trainer.evaluate_if_due()
      if (trainer.progress.step % s['checkpoint'].every == 0
          or accuracy is not None):
        trainer.save(accuracy)
  if trainer.saved.latest() != trainer.progress.step:
    trainer.save()
  if stop:
    trainer.writer.close()
    raise Interrupted(f'{stopped[0].name if stopped else "another host"}: '
                      f'checkpointed at step {trainer.progress.step}')
  trainer.finish()


class Trainer:
  """A run under way: its state, how far it has come, and where it writes.

  Attributes:
    state: What an update changes.
    progress: How far the run has come.
    fresh: Whether there was no checkpoint to resume from.
    saved: The checkpoints.
    writer: The logs.
  """

  def __init__(self, run: Run):
    s = self._s = run.sections
    self._run, self._parts, self._method = run, run.parts, run.method
    self._entry = METHODS[s['run'].method]
    self._against = self._entry.against(s, run.parts)
    self._optimizer = factories.optimizer(s)
    o = s['optim']
    self._updates = s['run'].steps * s['loss'].inner_epochs
    self._learning_rate = optim.schedule(
        o.learning_rate, kind=o.schedule, warmup=o.warmup,
        steps=self._updates)
    self.saved = Checkpoints(run.workdir / 'checkpoints',
                             s['checkpoint'].keep)
    self._resume()
    logging.info(
        '%s: %s parameters trained, %d x %s, %s', s['run'].name,
        f'{decoder.num_params(self.state.params):,}', jax.device_count(),
        jax.devices()[0].device_kind,
        decoder.kernels(self._parts.model_config, self._sources()))
    self.writer = logs.Writer(
        run.workdir, step=-1 if self.fresh else self.progress.step,
        tensorboard=s['log'].tensorboard,
        wandb_project=s['log'].wandb_project,
        name=f'{s["run"].name}-{run.workdir.name}', config=run.config,
        sums=self.progress.logs)
    self._clock = (Clock(**self.progress.clock) if self.progress.clock else
                   make_clock(s['clock'], self._parts, self._policy))
    self.progress = dataclasses.replace(
        self.progress, clock=dataclasses.asdict(self._clock))

  def _sources(self) -> int:
    """Sources that the rows of a step read."""
    s, p = self._s, self._parts
    if not self._entry.rolls_out:
      return s['data'].prompts
    r = s['rollout']
    return Engine(
        model_config=p.model_config, protocol=p.protocol,
        prompts=s['data'].prompts, samples=r.samples,
        max_chunks=p.data.max_chunks, temperature=float(r.temperature),
        rows=r.rows).sources

  # ---------------------------------------------------------------- resume
  def _resume(self) -> None:
    """Sets what is trained, the state, the progress and the reference."""
    s, initial = self._s, self._run.initial
    self._frozen, begin = None, initial
    if s['lora'].rank:
      self._frozen = factories.frozen(s, initial)
      begin = factories.lora_tree(s, initial)
    like = placement.places(
        jax.eval_shape(lambda p: new_state(p, self._optimizer), begin))
    step = hosts.by_first(self.saved.latest)
    self.fresh, self.progress = step is None, Progress()
    if self.fresh:
      self.state = new_state(begin, self._optimizer)
    else:
      if self._frozen is None:  # no second copy beside what is restored
        jax.tree.map(lambda a: a.delete(), initial)
      self.state, self.progress = self.saved.restore(step, like)
      logging.info('resumed at step %d', step)
    self._reference = self._run.teacher
    if self._method.needs_reference:
      self._reference = initial if self._frozen else placement.narrow(
          (self.saved.restore(0, like)[0] if step else self.state).params,
          self._parts.model_config.dtype)

  # ------------------------------------------------------------------ loop
  def _policy(self) -> decoder.Params:
    """The parameters as rollouts read them."""
    return placement.for_rollout(lora.merge(self._frozen, self.state.params),
                                 self._parts.model_config.dtype)

  def _share_spent(self) -> float:
    """Share of the budget of generated tokens that is spent; 0 without one."""
    budget = self._s['run'].token_budget
    return self.progress.generated / budget if budget else 0.0

  def unfinished(self) -> bool:
    """Whether steps and tokens are left."""
    return (self.progress.step < self._s['run'].steps
            and self._share_spent() < 1)

  def step(self) -> dict[str, float]:
    """One training step; its metrics, which are logged."""
    before, log = self.progress, self._s['log']
    tracing = before.step + 1 == log.profile_step
    if tracing:
      jax.profiler.start_trace(str(self._run.workdir / 'profile'))
    start = time.perf_counter()
    policy = self._policy()
    got = self._method.collect(policy, step=before.step, cursor=before.cursor)
    metrics = dict(got.metrics, **{'groups/none_left': got.batch is None})
    shapes = before.shapes
    if got.batch is None:
      self.state = self.state.replace(
          step=self.state.step + self._s['loss'].inner_epochs)
    else:
      rows = 0 if self._against else packing.rows_at_once(got.batch)
      batch, shapes = self._packed(got.batch, rows)
      batch = self._method.scored(batch, policy, self._reference)
      del policy
      metrics |= self._entry.metrics(self._s, batch)
      metrics |= self._update(batch, rows)
    if tracing:
      jax.profiler.stop_trace()
    self.progress = dataclasses.replace(
        before, step=before.step + 1, cursor=got.cursor, shapes=shapes,
        generated=before.generated + got.generated)
    metrics |= {'time/step': time.perf_counter() - start,
                'tokens/generated': self.progress.generated,
                'data/cursor': got.cursor}
    step = self.progress.step
    self.writer.scalars(step, 'train', metrics)
    if step % log.samples_every == 0 or step == 1:
      self.writer.samples(step, got.samples)
    return metrics

  def _packed(self, batch: UpdateBatch, rows: int
              ) -> tuple[UpdateBatch, tuple[packing.Shape, ...]]:
    """The batch in packed rows, and the shapes that are compiled by now."""
    batch, shapes = packing.pack(
        batch, self._parts.model_config.d_model,
        self._s['loss'].micro_batches, self.progress.shapes, rows)
    if len(shapes) > len(self.progress.shapes):
      logging.info('compiling the update for %s', shapes[-1])
    return batch, shapes

  def _update(self, batch: UpdateBatch, rows: int) -> dict[str, float]:
    """The updates of a batch, one per inner epoch; their metrics."""
    start = time.perf_counter()
    metrics = packing.metrics(batch, rows)
    there = placement.to_devices(batch)
    loss, step = self._s['loss'], self.progress.step
    for epoch in range(loss.inner_epochs):
      done = step * loss.inner_epochs + epoch
      # A token budget moves the decay along, not the warm-up.
      rate = self._learning_rate(
          done if done < self._s['optim'].warmup
          else max(done, self._share_spent() * self._updates))
      self.state, learned = update(
          self.state, there, jnp.float32(rate), self._frozen,
          self._reference if self._against else None, against=self._against,
          model_config=self._parts.model_config,
          protocol=self._parts.protocol,
          temperature=self._method.temperature, loss=self._method.loss,
          optimizer=self._optimizer, micro_batches=loss.micro_batches,
          rows=rows)
      learned = jax.device_get(learned)
      _check_finite(learned, batch, self._run.workdir, step + 1)
      # Only the first epoch compares one policy with itself, where it wrote.
      same = epoch == 0 and self._entry.rolls_out
      metrics |= {k: v for k, v in learned.items()
                  if same or not k.startswith('mismatch')}
    seconds = time.perf_counter() - start
    return metrics | {
        'time/update': seconds, 'learning_rate': float(rate),
        'tokens_per_s/update': (metrics['tokens/trained']
                                * loss.inner_epochs / seconds)}

  # ------------------------------------------------------------ evaluation
  def _evaluate(self, split: str, examples: int,
                problems_path: pathlib.Path | None = None) -> dict[str, Any]:
    plan = Plan(split=split, examples=examples, sampling=self._s['eval'],
                seed=self._s['run'].seed, clock=self._clock)
    return evaluate(self._policy(), self._parts, plan,
                    problems_path=problems_path)

  def _record(self, which: str, summary: dict[str, Any]) -> None:
    """Writes an evaluation into eval.json, beside those that are there."""
    workdir, s = self._run.workdir, self._s
    made = settings(s['eval'], s['run'].seed, self._clock)
    hosts.by_first(lambda: logs.write_evaluations(
        workdir, logs.read_evaluations(workdir) | {which: summary,
                                                   'settings': made}))

  def evaluate_start(self) -> None:
    """The evaluation before the first step, where the config wants one."""
    e = self._s['eval']
    if e.at_start:
      summary = self._evaluate(e.split, e.examples)
      self._record('start', summary)
      logging.info('start: %s', in_words(summary))
      self.writer.scalars(0, 'test', _flat_eval(summary, 'test'))

  def evaluate_if_due(self) -> float | None:
    """The periodic evaluation's accuracy; None where none is due."""
    e, step = self._s['eval'], self.progress.step
    if not e.every or step % e.every or step >= self._s['run'].steps:
      return None
    summary = self._evaluate(e.periodic_split, e.periodic_examples)
    self.writer.scalars(step, 'eval', _flat_eval(summary, 'eval'))
    return summary['accuracy']

  # ------------------------------------------------------------------- end
  def save(self, accuracy: float | None = None) -> None:
    """Writes a checkpoint.

    Raises:
      FloatingPointError: Parameters are not finite; nothing is written.
    """
    if bad := placement.nonfinite(self.state.params):
      raise FloatingPointError(
          f'step {self.progress.step}: parameters are not finite in '
          f'{", ".join(bad)}; the newest checkpoint is step '
          f'{self.saved.latest()}')
    self.progress = dataclasses.replace(self.progress,
                                        logs=self.writer.sums())
    self.saved.save(self.progress, self.state, self._run.config, accuracy)

  def finish(self) -> None:
    """The last evaluation, the parameters and the report."""
    workdir, e = self._run.workdir, self._s['eval']
    step, name = self.progress.step, self._s['run'].name
    if not hosts.by_first(
        lambda: 'final' in logs.read_evaluations(workdir)):
      summary = self._evaluate(e.split, e.examples,
                               workdir / 'problems.jsonl')
      self.writer.scalars(step, 'test', _flat_eval(summary, 'test'))
      self._record('final', summary)
      logging.info('final: %s', in_words(summary))
    final = placement.params_to_host(
        lora.merge(self._frozen, self.state.params))
    self.writer.close()
    self.saved.close()
    if hosts.first():
      weights.save(workdir / 'model.safetensors', final,
                   self._parts.model_config, steps=str(step), name=name)
      report.write_report(workdir, list(map(pathlib.Path, e.baselines)))
      logging.info('wrote %s', workdir / 'report.md')
    hosts.wait('written')


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
  """Yields a list that is not empty once SIGTERM or SIGINT has come."""
  seen = []
  old = {s: signal.signal(s, lambda n, _: seen.append(signal.Signals(n)))
         for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield seen
  finally:
    for s, handler in old.items():
      signal.signal(s, handler)


def _flat_eval(summary, prefix):
  """The scalars of an evaluation, for the log."""
  nested = {'latency_s': 'latency_{}', 'threads': 'threads_{}',
            'pass_at_k': 'pass_at_{}', 'cons_at_k': 'cons_at_{}'}
  out = {f'{prefix}/{k}': v for k, v in summary.items()
         if isinstance(v, (int, float))}
  return out | {f'{prefix}/{name.format(k)}': v
                for key, name in nested.items()
                for k, v in summary.get(key, {}).items() if v is not None}


def _postfix(metrics) -> str:
  shown = (('reward/accuracy', 'acc'), ('tokens/total', 'tokens'),
           ('loss', 'loss'), ('entropy', 'H'))
  return ' '.join(f'{short} {metrics[k]:.3g}' for k, short in shown
                  if k in metrics)


def _check_finite(metrics, batch, workdir, step):
  bad = [k for k in ('loss', 'grad_norm', 'update_norm')
         if not np.isfinite(metrics[k])]
  if not bad:
    return
  path = workdir / f'nonfinite_step{step}.npz'
  if hosts.first():
    arrays = {jax.tree_util.keystr(k): np.asarray(v) for k, v in
              jax.tree_util.tree_leaves_with_path(batch)}
    def write(new):
      with new.open('wb') as f:  # given a name, savez would add to it
        np.savez(f, **arrays)
    files.whole(path, write)
  raise FloatingPointError(
      f'step {step}: {", ".join(f"{k}={metrics[k]}" for k in bad)}; the batch '
      f'is in {path}')
