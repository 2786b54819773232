"""Two processes on one machine are one run.

Both train the same tiny run as one process with two devices does: two hosts
with a device each, joined over gloo.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors import safe_open

from adasr_jax.core import hosts
from tests.run.resume_test import CONFIG as TINY

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = TINY.replace('  return c', """\
  c.steps, c.eval.every, c.checkpoint.every = 9, 2, 1
  c.mesh.data, c.mesh.fsdp = 1, 2
  # The last batch is not full.
  c.eval.examples, c.eval.batch = 7, 4
  c.eval.samples, c.eval.temperature = 2, 1.0
  c.clock.measure = True
  return c""") + """

import json
import sys

from adasr_jax.core import hosts
from adasr_jax.credit import rewards
from adasr_jax.run import evaluate

verify, measure = rewards.outcomes, evaluate.measure_clock


def told(examples, transcripts, **more):
  print('verified', json.dumps([e.id for e in examples]), file=sys.stderr,
        flush=True)
  return verify(examples, transcripts, **more)


def fixed(*args):  # as if each host had a watch of its own
  assert min(measure(*args)) >= 0
  return 0.01, 0.02 + hosts.shard()[0]


rewards.outcomes, evaluate.measure_clock = told, fixed
"""
# Fields of the wall clock, which differ between two runs.
CLOCK = ('time/', 'tokens_per_s/')
TIMEOUT = 240


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Hosts:
  """One run by `count` processes."""

  def __init__(self, folder: pathlib.Path, name: str, count: int,
               *flags: str):
    self.workdir, self.count = folder / name, count
    self.folder = folder
    (folder / f'{name}.py').write_text(CONFIG)
    self._command = [
        sys.executable, '-m', 'adasr_jax.main', f'--workdir={self.workdir}',
        f'--config={folder / name}.py', *flags]

  def start(self) -> list[subprocess.Popen]:
    env = os.environ | dict(
        PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu',
        JAX_DISABLE_MOST_OPTIMIZATIONS='1',
        JAX_NUM_CPU_DEVICES=str(2 // self.count),
        JAX_COMPILATION_CACHE_DIR=str(self.folder / f'compiled{self.count}'),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')
    join = [[]] if self.count == 1 else [
        [f'--coordinator=127.0.0.1:{port}', f'--num_processes={self.count}',
         f'--process_id={i}'] for port in [free_port()]
        for i in range(self.count)]
    out = []
    for i, args in enumerate(join):
      log = (self.folder / f'{self.workdir.name}_{i}.log').open('a')
      out.append(subprocess.Popen(self._command + args, cwd=ROOT, env=env,
                                  stdout=log, stderr=log))
    return out

  def finish(self, processes) -> list[int]:
    end = time.monotonic() + TIMEOUT
    try:
      return [p.wait(max(1, end - time.monotonic())) for p in processes]
    finally:
      for p in processes:
        p.kill()

  def log(self, i: int) -> str:
    return (self.folder / f'{self.workdir.name}_{i}.log').read_text()

  def verified(self, i: int) -> list[list[int]]:
    """Batch by batch, the problems of the rows that evaluations verified."""
    return [json.loads(x)
            for x in re.findall(r'verified (\[.*?\])', self.log(i))]

  def saved(self) -> int:
    """The newest checkpoint's step, 0 without any."""
    return max((int(p.name) for p in (self.workdir / 'checkpoints').glob('*')
                if p.name.isdigit()), default=0)

  def start_and_go_on(self) -> list[subprocess.Popen]:
    """Processes that have joined, and gone beyond what was saved before."""
    before, processes = self.saved(), self.start()
    end = time.monotonic() + TIMEOUT
    while self.saved() <= before:
      if time.monotonic() > end or any(p.poll() for p in processes):
        raise AssertionError(self.log(0) + self.log(1))
      time.sleep(0.02)
    return processes

  def lines(self) -> list[dict]:
    return [{k: v for k, v in json.loads(x).items()
             if not k.startswith(CLOCK)} for x in
            (self.workdir / 'metrics.jsonl').read_text().splitlines()]

  def params(self) -> dict[str, np.ndarray]:
    with safe_open(self.workdir / 'model.safetensors', 'np') as f:
      return {k: f.get_tensor(k) for k in f.keys()}


def assert_same(a: Hosts, b: Hosts) -> None:
  """Same evaluations and samples; lines and parameters, but for rounding."""
  rows = list(zip(a.lines(), b.lines(), strict=True))
  for x, y in rows:
    assert x.keys() == y.keys()
    for k in x:
      if isinstance(x[k], float):
        np.testing.assert_allclose(x[k], y[k], atol=2e-5, rtol=1e-4,
                                   err_msg=f'{k} of step {x["step"]}')
      else:
        assert x[k] == y[k], k
  for name in ('samples.jsonl', 'eval.json', 'problems.jsonl'):
    assert ((a.workdir / name).read_text()
            == (b.workdir / name).read_text()), name
  want, got = a.params(), b.params()
  for k in want:
    np.testing.assert_allclose(got[k], want[k], atol=1e-4, err_msg=k)


def test_two_hosts_are_one_run_whatever_befalls_them(tmp_path):
  alone, pair = Hosts(tmp_path, 'alone', 1), Hosts(tmp_path, 'pair', 2)
  assert alone.finish(alone.start()) == [0], alone.log(0)
  logs = lambda: pair.log(0) + pair.log(1)

  # SIGTERM to the host that does not write: both checkpoint and exit.
  processes = pair.start_and_go_on()
  processes[1].send_signal(signal.SIGTERM)
  assert pair.finish(processes) == [0, 0], logs()
  assert 'another host: checkpointed at step' in pair.log(0)

  # One dies, the coordinator first: the other says so and stops.
  for victim in (0, 1):
    processes = pair.start_and_go_on()
    processes[victim].kill()
    start = time.monotonic()
    codes = pair.finish(processes)
    assert time.monotonic() - start < 120
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] != 0
    # Our own line where a collective fails, else that of JAX's service, which
    # ends a process whose heartbeats nobody answers.
    said = pair.log(1 - victim)
    assert ('if another is gone, the same command on all resumes' in said
            or 'JAX distributed service detected fatal errors' in said
            ), said[-2000:]

  assert not (pair.workdir / 'model.safetensors').exists()
  assert pair.finish(pair.start()) == [0, 0], logs()
  assert_same(alone, pair)

  # Of the last evaluation's two batches each host verified its half.
  halves = list(zip(pair.verified(0)[-2:], pair.verified(1)[-2:]))
  assert [(len(a), len(b)) for a, b in halves] == [(4, 4)] * 2
  assert [a + b for a, b in halves] == alone.verified(0)[-2:]

  # Both begin from a run, whose checkpoints the first alone looks through. An
  # earlier one is their teacher: each judges its own rows.
  teacher = min(int(p.name) for p in (pair.workdir / 'checkpoints').glob('*')
                if p.name.isdigit())
  flags = (f'--config.init={pair.workdir}', '--config.method=distill',
           f'--config.teacher.init={pair.workdir}@{teacher}',
           '--config.distill.normalise=zscore', '--config.loss.refills=0',
           '--config.steps=1', '--config.eval.every=0')
  single, further = (Hosts(tmp_path, name, n, *flags)
                     for name, n in (('single', 1), ('further', 2)))
  for run in (single, further):
    assert run.finish(run.start()) == [0] * run.count, run.log(0)
  assert_same(single, further)
  row, = (r for r in further.lines() if r['kind'] == 'train')
  assert abs(row['teacher_reward/deep']) > 1e-6 and row['grad_norm'] > 1e-3
  start, end = (json.loads((w / 'eval.json').read_text())[which] for w, which
                in ((further.workdir, 'start'), (pair.workdir, 'final')))
  assert start['tokens_total'] == end['tokens_total']


def test_a_coordinator_that_never_comes_is_named(tmp_path):
  port = free_port()
  start = 'import runpy; from adasr_jax.core import hosts; hosts.JOIN = 1; ' + (
      'runpy.run_module("adasr_jax.main", run_name="__main__")')
  got = subprocess.run(
      [sys.executable, '-c', start, '--config=configs/hrpo.py:smoke',
       f'--workdir={tmp_path / "run"}', f'--coordinator=127.0.0.1:{port}',
       '--num_processes=2', '--process_id=1'], cwd=ROOT, capture_output=True,
      text=True, timeout=TIMEOUT, env=os.environ | dict(PYTHONPATH=str(ROOT)))
  assert got.returncode == 1
  waits, line = got.stderr.splitlines()
  assert f'waiting for 127.0.0.1:{port}, at most 1 s' in waits
  assert line.startswith(f'error: no coordinator answers at 127.0.0.1:{port} '
                         f'within 1 s: ')


def test_a_host_waits_for_a_coordinator_that_comes_later():
  port = free_port()
  with socket.socket() as s:
    s.bind(('127.0.0.1', port))
    later = threading.Timer(0.7, s.listen)
    later.start()
    start = time.monotonic()
    hosts._wait_for('127.0.0.1', port)
    assert time.monotonic() - start > 0.6
    later.join()


@pytest.mark.parametrize('coordinator', ['here', ':80', 'here:', 'here:65536'])
def test_a_coordinator_is_a_host_and_a_port(coordinator):
  with pytest.raises(ValueError, match='neither .auto. nor HOST:PORT'):
    hosts.join(coordinator, 2, 0)
