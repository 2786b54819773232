"""A few of the faults of experiments/faults, on its smallest run."""

import asyncio
import dataclasses
import errno
import json
import logging
import shutil

import jax
import pytest

from adasr_jax.core import files
from adasr_jax.live.server import Server
from adasr_jax.models import decoder
from adasr_jax.models import weights
from adasr_jax.run import logs
from experiments.faults import compare
from experiments.faults import sessions
from experiments.faults import trials
from tests.live import serving
from tests.small import make_config


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A process that runs it, an undisturbed run, how many points that has."""
  out = tmp_path_factory.mktemp('faults')
  worker = trials.Worker(out, trials.COMMANDS['disk'])
  try:
    got = worker.run(out / 'reference')
    assert got['status'] == 0, got['log']
    yield worker, out / 'reference', got['points']
  finally:
    worker.close()


@pytest.fixture(scope='module')
def half(tiny):
  """A workdir whose run has ended in its last step."""
  worker, reference, points = tiny
  workdir = reference.with_name('half')
  got = worker.run(workdir, do='full', kind='write',
                   at=int(0.75 * points['write']))
  assert got['status'] == 1 and compare.steps(workdir)[-1] > 0
  return workdir


def test_the_run_has_points_of_all_kinds(tiny):
  _, reference, points = tiny
  assert points['change'] > points['write'] > 100
  assert points['update'] == 2 and points['rollout'] >= 2
  assert points['evaluate'] == 4  # two batches before, two after
  assert compare.differences(reference, reference) == []


@pytest.mark.parametrize('do', ['full', 'readonly'])
@pytest.mark.parametrize('share', [0.03, 0.4, 0.99])
def test_a_disk_that_fails(do, share, tiny, tmp_path):
  worker, reference, points = tiny
  got = trials.broken_disk(worker, reference, tmp_path / 'run', do,
                           int(share * points['write']))
  assert got['ok'], got
  assert ('No space left' if do == 'full' else 'Read-only') in got['said']


@pytest.mark.parametrize('name', [
    'metrics.jsonl', 'samples.jsonl', 'config.json', 'checksums.json', 'state'])
@pytest.mark.parametrize('seed', [0, 1])
def test_a_flipped_bit(name, seed, tiny, half, tmp_path):
  worker, reference, _ = tiny
  step = half / 'checkpoints' / str(compare.steps(half)[-1])
  path = (half / name if (half / name).exists() else
          step / name if (step / name).is_file() else
          max((p for p in (step / name).rglob('*') if p.is_file()),
              key=lambda p: p.stat().st_size))
  got = trials.flip(worker, reference, half, tmp_path / 'run',
                    path.relative_to(half).as_posix(), seed)
  assert got['ok'], got


def test_differences_are_seen(tiny, tmp_path):
  _, reference, _ = tiny
  other = tmp_path / 'run'
  shutil.copytree(reference, other)
  lines = (other / 'metrics.jsonl').read_text().splitlines(keepends=True)
  record = json.loads(lines[1])
  record['loss'] *= 1 + 1e-9
  lines[1] = logs.line(record)
  (other / 'metrics.jsonl').write_text(''.join(lines))
  assert compare.differences(reference, other) == [
      'metrics.jsonl differs at step 1 in loss']
  (other / 'metrics.jsonl').write_text(''.join([*lines, lines[-1]]))
  assert 'metrics.jsonl has' in compare.differences(reference, other)[0]


def test_a_log_that_has_changed_is_named(tmp_path, caplog):
  def writer(step, sums=None):
    return logs.Writer(tmp_path, step=step, tensorboard=False,
                       wandb_project='', name='', config={}, sums=sums)
  w = writer(-1)
  w.scalars(1, 'train', {'loss': 0.5})
  w.samples(1, [{'text': 'a'}])
  sums = w.sums()
  w.scalars(1, 'test', {'loss': 0.25})  # after the save, of the same step
  with caplog.at_level(logging.WARNING):
    writer(1, sums)
    assert not caplog.records
    path = tmp_path / 'metrics.jsonl'
    path.write_text(path.read_text().replace('0.5', '0.4'))
    writer(1, sums)
  assert [r.getMessage() for r in caplog.records] == [
      f'{path} is not what it was when step 1 was saved']


def test_parameters_that_have_changed_are_refused(tmp_path):
  config = make_config()
  params = decoder.init(config, jax.random.key(0))
  path = tmp_path / 'model.safetensors'
  weights.save(path, params, config)
  weights.load(path, config)
  good = path.read_bytes()
  start = 8 + int.from_bytes(good[:8], 'little')
  for at in (start, start + 1000, len(good) - 1):
    data = bytearray(good)
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
      weights.load(path, config)
  path.write_bytes(good)
  other = dataclasses.replace(config, rope_theta=5e5, target_offset=7)
  with pytest.raises(ValueError, match='of another decoder: rope_theta='
                                       '.*, not 500000.0$'):
    weights.load(path, other)
  narrow = jax.tree.map(lambda a: a.astype('float16'), params)
  weights.save(path, narrow, config)
  with pytest.raises(ValueError, match='has dtype float16, not float32'):
    weights.load(path, config)


def test_a_full_disk_names_the_file(tmp_path):
  def fail(_):
    raise OSError(errno.ENOSPC, 'No space left on device')
  with pytest.raises(OSError, match="No space left on device: '.*x.json'"):
    files.whole(tmp_path / 'x.json', fail)


def test_what_is_said_is_told_from_logs_and_bars():
  log = ('I1124 19:00:00.123456 1 train.py:1] resumed at step 4\n'
         'HRPO:   0%|          | 0/8 [00:00<?, ?step/s]\r'
         'HRPO:  50%|#####     | 4/8 [00:01<00:01, 2.9step/s]\n'
         'error: no space\n')
  assert trials.said(log) == ['error: no space'] and trials.one_line(log)
  assert not trials.one_line(log + 'Traceback (most recent call last):\n')


def test_cut_sessions_disturb_no_others():
  policies = [serving.make_policy(
      serving.embedded().tokenizer, mode, problem=serving.problem,
      problems=1000)
      for mode in ('streaming', 'read_then_think')]
  server = Server(policies, 8, 1.0)
  with serving.running(server) as address:
    server.warm()
    got = asyncio.run(sessions.campaign(address, 8, 0, lambda: None))
  assert got['free'] is not None
  assert got['equal'] >= 8 and got['unequal'] == 0
