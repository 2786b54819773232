"""A run that is killed again and again ends as one that never was.

One uninterrupted run is compared with one that is killed in the middle of
steps, killed while it writes a checkpoint, and stopped by SIGTERM; the same
command restarts it each time.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """
from configs import hrpo


def get_config():
  c = hrpo.get_config('smoke')
  c.init = ''
  c.steps = 6
  c.data.prompts, c.data.max_chunks, c.data.lengths = 2, 8, (72,)
  c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 48
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 16
  r = c.rollout
  r.samples, r.thought_cap, r.deep_cap, r.answer_cap = 3, 3, 4, 2
  # A random policy has no other reward that differs within a group.
  c.reward.user = 'configs.user_reward:short_words'
  c.loss.inner_epochs, c.loss.refills = 2, 1
  c.optim.learning_rate = 3e-3
  c.eval.examples = c.eval.periodic_examples = c.eval.batch = 8
  c.eval.every = 3
  c.checkpoint.every = 2
  c.log.tensorboard = False
  return c
"""
TIMEOUT = 120  # seconds of one process, compilation on busy cores included


class Run:
  """One command, started as often as needed."""

  def __init__(self, folder: pathlib.Path, name: str):
    self.workdir = folder / name
    self._log = folder / f'{name}.log'
    self._command = [
        sys.executable, '-m', 'adasr_jax.main', f'--workdir={self.workdir}',
        f'--config={folder / "tiny.py"}']
    self._env = os.environ | dict(
        PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu',
        JAX_DISABLE_MOST_OPTIMIZATIONS='1',
        # Compiled once for all processes; also what makes restarts quick.
        JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled'),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')

  def start(self, until=None, send=None) -> int:
    """Runs until it ends, or until `until()` and then sends a signal."""
    with self._log.open('a') as log:
      process = subprocess.Popen(self._command, cwd=ROOT, env=self._env,
                                 stdout=log, stderr=log)
    end = time.monotonic() + TIMEOUT
    try:
      while process.poll() is None and time.monotonic() < end:
        if until is not None and until():
          process.send_signal(send)
          return process.wait(TIMEOUT)
        time.sleep(0.001)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()
    return process.returncode

  def log(self) -> str:
    return self._log.read_text()

  def lines(self, name='metrics.jsonl'):
    path = self.workdir / name
    out = []
    for line in path.read_text().splitlines() if path.exists() else ():
      try:
        out.append(json.loads(line))
      except json.JSONDecodeError:  # half written
        break
    return out

  def trained(self, step) -> bool:
    return any(r['step'] >= step and r['kind'] == 'train'
               for r in self.lines())

  def saving(self) -> bool:
    return any(self._saves('*.orbax-checkpoint-tmp*'))

  def saved(self) -> list[int]:
    return sorted(int(p.name) for p in self._saves('[0-9]*')
                  if p.name.isdigit())

  def _saves(self, pattern):
    return (self.workdir / 'checkpoints').glob(pattern)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('resume')
  (folder / 'tiny.py').write_text(CONFIG)
  whole, broken = Run(folder, 'whole'), Run(folder, 'broken')
  assert whole.start() == 0, whole.log()
  kill, events = signal.SIGKILL, {}
  assert broken.start(lambda: broken.trained(1), kill) == -kill
  events['after_step_1'] = broken.saved()
  for _ in range(3):  # the rename may be quicker than the kill
    assert broken.start(lambda: broken.trained(1) and broken.saving(),
                        kill) == -kill, broken.log()
    if broken.saving():
      break
  events['tmp_left'] = broken.saving()
  events['code'] = broken.start(lambda: broken.trained(3), signal.SIGTERM)
  events['stopped_at'] = broken.lines()[-1]['step']
  events['after_term'] = broken.saved()
  assert broken.start(lambda: broken.trained(5), kill) == -kill
  events['unfinished'] = not (broken.workdir / 'model.safetensors').exists()
  assert broken.start() == 0, broken.log()
  return whole, broken, events


def _steady(record):
  """A line of metrics.jsonl without what the wall clock says."""
  return {k: v for k, v in record.items()
          if not k.startswith(('time/', 'tokens_per_s/'))}


def test_the_kills_hit_what_they_aim_at(runs):
  _, broken, events = runs
  assert events['after_step_1'] == [0]  # step 1 has to be done again
  assert events['tmp_left'] and events['unfinished']
  assert broken.log().count('resumed at step') >= 4
  assert not broken.saving()  # half a checkpoint is cleaned up


def test_the_run_has_something_to_lose(runs):
  whole, _, _ = runs
  train = [r for r in whole.lines() if r['kind'] == 'train']
  assert [r['step'] for r in train] == list(range(1, 7))
  assert sum(r.get('grad_norm', 0) > 0 for r in train) >= 4
  assert len({r['data/cursor'] for r in train}) == 6


def test_sigterm_checkpoints_its_step_and_exits_0(runs):
  _, broken, events = runs
  assert events['code'] == 0, broken.log()
  assert events['after_term'][-1] == events['stopped_at'] < 6
  assert 'the same command resumes' in broken.log()


def test_metrics_are_equal_line_by_line(runs):
  whole, broken, _ = runs
  a, b = whole.lines(), broken.lines()
  keys = [(r['step'], r['kind']) for r in b]
  assert len(keys) == len(set(keys)), 'a step stands there twice'
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert _steady(x) == _steady(y)


def test_samples_and_evaluation_are_equal(runs):
  whole, broken, _ = runs
  samples = whole.lines('samples.jsonl')
  assert len(samples) == 6 * 2 * 3 and samples == broken.lines('samples.jsonl')
  a, b = (json.loads((r.workdir / 'eval.json').read_text())
          for r in (whole, broken))
  assert {'start', 'final', 'settings', 'crc32'} == set(a) and a == b


def test_parameters_are_equal_to_the_bit(runs):
  def load(run):
    with safe_open(run.workdir / 'model.safetensors', 'numpy') as f:
      return {k: f.get_tensor(k) for k in f.keys()}
  a, b = map(load, runs[:2])
  assert a.keys() == b.keys()
  for k in a:
    assert np.array_equal(a[k], b[k]), k
