"""A damaged workdir: one line names the file, and what is whole goes on."""

import json
import shutil

import jax
import numpy as np
import pytest

from adasr_jax.run import checkpoint
from adasr_jax.run.start import start
from adasr_jax.run import train
from configs import sft
from tests.run.train_test import small


def config():
  c = small(sft.get_config('smoke'))
  c.steps, c.checkpoint.every, c.checkpoint.keep = 3, 1, 3
  c.eval.examples = c.eval.batch = 2
  c.data.prompts = 2
  c.eval.every = 0
  return c


def go(c, workdir):
  begun = start(c, workdir, 'test', jax.devices()[:1])
  train.train(begun)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('damage') / 'run'
  go(config(), workdir)
  return workdir


@pytest.fixture
def unfinished(run, tmp_path):
  """The run as if it had been killed before its last evaluation."""
  workdir = tmp_path / 'run'
  shutil.copytree(run, workdir)
  for name in ('model.safetensors', 'report.md', 'eval.json'):
    (workdir / name).unlink()
  return workdir


def largest(folder):
  return max((p for p in folder.rglob('*') if p.is_file()),
             key=lambda p: p.stat().st_size)


def flip(step):
  path = largest(step)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return path.name


def cut(step):
  path = largest(step)
  path.write_bytes(path.read_bytes()[:-7])
  return path.name


def remove(step):
  path = largest(step)
  path.unlink()
  return path.name


def empty(step):
  shutil.rmtree(step)
  step.mkdir()
  return 'state'


def sums(text):
  def damage(step):
    (step / checkpoint.SUMS).write_bytes(text)
    return checkpoint.SUMS
  return damage


@pytest.mark.parametrize('damage', [
    flip, cut, remove, empty, sums(b'{"state/x": "1'), sums(b'[1]'),
    sums(b'\xff\x00')])
def test_a_damaged_checkpoint(damage, unfinished, tmp_path):
  name = damage(unfinished / 'checkpoints' / '3')
  with pytest.raises(checkpoint.Damaged, match='checkpoint 3 is damaged') as e:
    go(config(), unfinished)
  said = str(e.value)
  assert name in said and len(said.splitlines()) == 1
  assert f'init={unfinished}@2' in said
  # What it advises works.
  c = config()
  c.init, c.steps = f'{unfinished}@2', 1
  go(c, tmp_path / 'again')
  assert (tmp_path / 'again' / 'model.safetensors').is_file()
  # Reading it from another run is refused too.
  c.init = f'{unfinished}@3'
  with pytest.raises(ValueError, match='3'):
    start(c, tmp_path / 'other', 'test', jax.devices()[:1])
  assert not (tmp_path / 'other').exists()


def test_damage_is_seen_without_checksums(unfinished):
  step = unfinished / 'checkpoints' / '3'
  (step / checkpoint.SUMS).unlink()
  for path in (step / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(checkpoint.Damaged, match=f'init={unfinished}@2'):
    go(config(), unfinished)


def test_a_checkpoint_of_before_checksums_is_read(unfinished):
  for path in (unfinished / 'checkpoints').glob('*/checksums.json'):
    path.unlink()
  go(config(), unfinished)
  assert (unfinished / 'report.md').is_file()


@pytest.mark.parametrize('name,text,match', [
    ('config.json', '{"command": "x", "me', 'config.json is damaged'),
    ('config.json', '[1, 2]', 'config.json is not the config of a run'),
    ('config.json', '{"a": 1}', 'config.json is not the config of a run'),
    ('eval.json', '{"start": {"acc', 'eval.json is damaged')])
def test_damaged_json(name, text, match, unfinished):
  (unfinished / name).write_text(text)
  before = {p: p.read_bytes() for p in unfinished.iterdir() if p.is_file()}
  with pytest.raises(ValueError, match=match):
    go(config(), unfinished)
  assert before == {p: p.read_bytes() for p in unfinished.iterdir()
                    if p.is_file()}


def test_a_finished_run_is_left_as_it_is(run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(run, workdir)
  log = workdir / 'metrics.jsonl'
  log.write_text(log.read_text()[:-9])  # cut by somebody
  before = {p: p.read_bytes() for p in workdir.iterdir() if p.is_file()}
  go(config(), workdir)
  assert before == {p: p.read_bytes() for p in workdir.iterdir()
                    if p.is_file()}


def test_resumed_from_a_whole_step_it_ends_as_before(run, unfinished):
  shutil.rmtree(unfinished / 'checkpoints' / '3')
  go(config(), unfinished)
  a, b = (json.loads((x / 'eval.json').read_text())['final']
          for x in (run, unfinished))
  assert a == b
  assert (np.array_equal(*((x / 'problems.jsonl').read_text().splitlines()
                           for x in (run, unfinished))))


@pytest.mark.parametrize('which', ['x', '-1', '1.5', '7'])
def test_a_step_that_is_none(which, run):
  with pytest.raises(ValueError, match=which):
    checkpoint.find(f'{run}@{which}')


@pytest.mark.parametrize('text,match', [
    ('[1]', 'config.json is not the config of a run'),
    ('{"command": "x", "method": "sft", "lora": 5}', 'lora=5 is not a section'),
    ('{"command": "x", "method": 3}', "config.json: .*field 'method'"),
    ('[' * 100_000, 'config.json is damaged: JSON that nests deeper')])
def test_a_damaged_config_of_the_workdir_it_begins_from(text, match, run,
                                                        tmp_path):
  shutil.copytree(run, tmp_path / 'old')
  (tmp_path / 'old' / 'config.json').write_text(text)
  c = config()
  c.init = str(tmp_path / 'old')
  with pytest.raises(ValueError, match=match):
    start(c, tmp_path / 'new', 'test', jax.devices()[:1])
  assert not (tmp_path / 'new').exists()


def test_a_workdir_that_is_a_file(tmp_path):
  (tmp_path / 'x').write_text('')
  with pytest.raises(ValueError, match="workdir='.*x' is not a folder"):
    start(config(), tmp_path / 'x', 'test', jax.devices()[:1])
