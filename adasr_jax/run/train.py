"""The training loop of every method: collect, update, log, evaluate, save."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
import time

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from adasr_jax.core import hosts
from adasr_jax.core import placement
from adasr_jax.learn import optim
from adasr_jax.learn.update import new_state, update
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.models import weights
from adasr_jax.run import checkpoint
from adasr_jax.run.evaluate import evaluate, make_clock, settings
from adasr_jax.run import factories
from adasr_jax.run import logs
from adasr_jax.run import report


class Interrupted(Exception):
  """SIGTERM or SIGINT came; the run has been checkpointed."""


@contextlib.contextmanager
def _stop_signals():
  """Yields a list that is not empty once SIGTERM or SIGINT has come."""
  seen = []
  old = {s: signal.signal(s, lambda n, _: seen.append(signal.Signals(n)))
         for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield seen
  finally:
    for s, handler in old.items():
      signal.signal(s, handler)


def prepare_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict,
                    command: str) -> None:
  """Writes config.json, or checks that the one there is the same.

  Raises:
    ValueError: The workdir holds a run with another config; shows the fields.
  """
  hosts.by_first(lambda: _write_config(workdir, config, command))
  if not all(hosts.all_hosts([(workdir / 'config.json').exists()])):
    raise ValueError(f'{workdir} is not the same folder on all hosts')


def _write_config(workdir, config, command):
  from adasr_jax.config import difference
  path = workdir / 'config.json'
  old, new = logs.read_json(path), config.to_dict()
  if old is not None:
    old.pop('command')
    if changed := difference(old, new):
      raise ValueError(
          f'{workdir} holds a run with another config; use a new workdir, or '
          f'the old values of:\n  ' + '\n  '.join(changed))
  else:
    workdir.mkdir(parents=True, exist_ok=True)
    logs.write_json(path, {'command': command, **new})


def train(config: ml_collections.ConfigDict, parts: factories.Parts, initial,
          workdir: pathlib.Path) -> None:
  """Runs, or resumes, the training that `config` describes.

  Args:
    config: Validated.
    parts: Of factories.parts(config).
    initial: Parameters at step 0, on their devices. They are donated, or
      with LoRA stay as they are: there is no second copy.
    workdir: Prepared by prepare_workdir.

  Raises:
    Interrupted: A signal came; the same command goes on from here.
    FloatingPointError: A loss or gradient is not finite; the batch is saved.
  """
  c = config
  method = factories.method(c, parts)
  optimizer_steps = c.steps * c.loss.inner_epochs
  learning_rate = optim.schedule(
      c.optim.learning_rate, kind=c.optim.schedule, warmup=c.optim.warmup,
      steps=optimizer_steps)
  optimizer = factories.optimizer(c)

  # What is trained, and from it the policy.
  frozen, start = None, initial
  if c.lora.rank:
    frozen = lora.Frozen(initial, scale=c.lora.alpha / c.lora.rank)
    start = factories.lora_tree(c, initial)
  policy = lambda state: placement.for_rollout(
      lora.merge(frozen, state.params), parts.model_config.dtype)

  # ---------------------------------------------------------------- resume
  shapes = placement.places(
      jax.eval_shape(lambda p: new_state(p, optimizer), start))
  saved = checkpoint.Checkpoints(workdir / 'checkpoints', c.checkpoint.keep)
  step = hosts.by_first(saved.latest)
  meta = {'cursor': 0, 'generated': 0, 'best': None}
  if step is None:
    state = new_state(start, optimizer)
  else:
    if frozen is None:  # no second copy beside what is restored
      jax.tree.map(lambda a: a.delete(), initial)
    state, meta = saved.restore(step, shapes)
    logging.info('resumed at step %d', step)
  reference = None
  if method.needs_reference:
    reference = initial if frozen else placement.narrow(
        (saved.restore(0, shapes)[0] if step else state).params,
        parts.model_config.dtype)
  logging.info('%s: %s parameters trained, %d x %s, %s', c.name,
               f'{decoder.num_params(state.params):,}', jax.device_count(),
               jax.devices()[0].device_kind,
               decoder.kernels(parts.model_config, c.data.prompts))
  writer = logs.Writer(
      workdir, step=-1 if step is None else step,
      tensorboard=c.log.tensorboard, wandb_project=c.log.wandb_project,
      name=f'{c.name}-{workdir.name}', config=c.to_dict(),
      active=hosts.first())
  clock = make_clock(c, parts, lambda: policy(state))
  eval_path = workdir / 'eval.json'

  def evaluate_now(split, examples, problems_path=None):
    return evaluate(policy(state), parts, c, split=split, examples=examples,
                    clock=clock, problems_path=problems_path)

  def record(which, summary):
    if hosts.first():
      done = logs.read_json(eval_path) or {}
      logs.write_json(eval_path, done | {
          which: summary, 'settings': settings(c, clock)})

  def save(accuracy=None):
    saved.save(step, state, {**meta, 'config': c.to_dict()}, accuracy)

  # ----------------------------------------------------------------- start
  if step is None:
    step = 0
    if c.eval.at_start:
      summary = evaluate_now(c.eval.split, c.eval.examples)
      record('start', summary)
      writer.scalars(0, 'test', _flat_eval(summary, 'test'))
    save()

  # ------------------------------------------------------------------ loop
  bar = tqdm.tqdm(total=c.steps, initial=step, unit='step', file=sys.stderr,
                  dynamic_ncols=True, desc=c.name, disable=not hosts.first())
  stop = False
  with _stop_signals() as stopped:
    while (step < c.steps and _share_spent(c, meta) < 1
           and not (stop := hosts.any_of(stopped))):
      tracing = step + 1 == c.log.profile_step
      if tracing:
        jax.profiler.start_trace(str(workdir / 'profile'))
      t0 = time.perf_counter()
      got = method.collect(policy(state), reference, step=step,
                           cursor=meta['cursor'])
      metrics = dict(got.metrics, **{'groups/none_left': got.batch is None})
      t1 = time.perf_counter()
      if got.batch is None:
        state = state.replace(step=state.step + 1)
      else:
        batch = placement.to_devices(got.batch)
        for epoch in range(c.loss.inner_epochs):
          rate = learning_rate(max(
              step * c.loss.inner_epochs + epoch,
              _share_spent(c, meta) * optimizer_steps))
          state, learned = update(
              state, batch, jnp.float32(rate), frozen,
              model_config=parts.model_config, protocol=parts.protocol,
              temperature=method.temperature, loss=method.loss,
              optimizer=optimizer, micro_batches=c.loss.micro_batches)
          learned = jax.device_get(learned)
          _check_finite(learned, got.batch, workdir, step + 1)
          # The first epoch alone compares one policy with itself.
          metrics |= {k: v for k, v in learned.items()
                      if epoch == 0 or not k.startswith('mismatch')}
        seconds = time.perf_counter() - t1
        metrics['time/update'] = seconds
        metrics['learning_rate'] = float(rate)
        metrics['tokens_per_s/update'] = (
            got.metrics['tokens/trained'] * c.loss.inner_epochs / seconds)
      if tracing:
        jax.profiler.stop_trace()
      step += 1
      meta |= {'cursor': got.cursor,
               'generated': meta['generated'] + got.generated}
      metrics |= {'time/step': time.perf_counter() - t0,
                  'tokens/generated': meta['generated'],
                  'data/cursor': got.cursor}
      writer.scalars(step, 'train', metrics)
      if step % c.log.samples_every == 0 or step == 1:
        writer.samples(step, got.samples)
      bar.update()
      bar.set_postfix_str(_postfix(metrics))

      accuracy = None
      if c.eval.every and step % c.eval.every == 0 and step < c.steps:
        summary = evaluate_now(c.eval.periodic_split,
                               c.eval.periodic_examples)
        accuracy = summary['accuracy']
        if meta['best'] is None or accuracy > meta['best']['accuracy']:
          meta['best'] = {'step': step, 'accuracy': accuracy}
        writer.scalars(step, 'eval', _flat_eval(summary, 'eval'))
      if step % c.checkpoint.every == 0 or accuracy is not None:
        save(accuracy)
  bar.close()
  if saved.latest() != step:
    save()
  if stop:
    writer.close()
    raise Interrupted(f'{stopped[0].name if stopped else "another host"}: '
                      f'checkpointed at step {step}')

  # ------------------------------------------------------------------- end
  if hosts.any_of(hosts.first() and 'final' not in (
      logs.read_json(eval_path) or {})):
    summary = evaluate_now(c.eval.split, c.eval.examples,
                           workdir / 'problems.jsonl')
    writer.scalars(step, 'test', _flat_eval(summary, 'test'))
    record('final', summary)
  final = placement.params_to_host(lora.merge(frozen, state.params))
  writer.close()
  saved.close()
  if hosts.first():
    weights.save(workdir / 'model.safetensors', final, parts.model_config,
                 steps=str(step), name=c.name)
    report.write_report(workdir, [pathlib.Path(p) for p in c.eval.baselines])
    logging.info('wrote %s', workdir / 'report.md')
  hosts.wait('written')


def _share_spent(c, meta) -> float:
  """Share of the budget of generated tokens that is spent; 0 without one."""
  return meta['generated'] / c.token_budget if c.token_budget else 0.0


def _flat_eval(summary, prefix):
  """The scalars of an evaluation, for the log."""
  out = {f'{prefix}/{k}': v for k, v in summary.items()
         if isinstance(v, (int, float))}
  return out | {f'{prefix}/latency_{k}': v
                for k, v in summary['latency_s'].items() if v is not None}


def _postfix(metrics) -> str:
  shown = (('reward/accuracy', 'acc'), ('tokens/total', 'tokens'),
           ('loss', 'loss'), ('entropy', 'H'))
  return ' '.join(f'{short} {metrics[k]:.3g}' for k, short in shown
                  if k in metrics)


def _check_finite(metrics, batch, workdir, step):
  bad = [k for k in ('loss', 'grad_norm') if not np.isfinite(metrics[k])]
  if not bad:
    return
  path = workdir / f'nonfinite_step{step}.npz'
  if hosts.first():
    np.savez(path, **{jax.tree_util.keystr(k): np.asarray(v) for k, v in
                      jax.tree_util.tree_leaves_with_path(batch)})
  raise FloatingPointError(
      f'step {step}: {", ".join(f"{k}={metrics[k]}" for k in bad)}; the batch '
      f'is in {path}')
