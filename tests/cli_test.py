"""The command line: a mistake costs seconds and is told in one line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.small import DATA

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = ['--config=configs/hrpo.py:smoke', '--config.init=']
UNSET = """
from adasr_jax import config


def get_config():
  c = config.base()
  c.method = 'hrpo'
  return c
"""


def run(*arguments, workdir, platform='none'):
  """The finished process.

  The platform that does not exist makes whatever touches a device fail: what
  is refused is refused before anything is compiled.
  """
  return subprocess.run(
      [sys.executable, '-m', 'adasr_jax.main', f'--workdir={workdir}',
       *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
      env=os.environ | dict(PYTHONPATH=str(ROOT), JAX_PLATFORMS=platform))


@pytest.mark.parametrize('arguments,words', [
    ([*SMOKE, '--config.rollout.sampels=3'], ['sampels', 'samples']),
    ([*SMOKE, '--config.rollout.samples=few'], ['rollout.samples', 'few']),
    (['--config=configs/hrpo.py:sead=1'], ['sead', 'known', 'seed']),
    (['--config=configs/none.py'], ['configs/none.py', 'No such file']),
    (['--config=configs/hrpo.py:smoke', '--config.init=nowhere'],
     ['init', 'nowhere', 'does not exist']),
    ([*SMOKE, '--config.loss.clip_low=-1.0'], ['clip_low=-1.0']),
    ([*SMOKE, '--config.reward.user=nothing:here'], ['reward.user', 'nothing']),
    ([*SMOKE, '--config.eval.split=tset'], ['eval.split', 'tset']),
], ids=lambda a: a[-1].partition('.')[2] if a[0][0] == '-' else '')
def test_mistakes_are_told_in_one_line(arguments, words, tmp_path):
  workdir = tmp_path / 'run'
  # A method holds a random key, so that building one needs a device.
  method = any(w in arguments[-1] for w in ('loss.', 'reward.'))
  got = run(*arguments, workdir=workdir, platform='cpu' if method else 'none')
  assert got.returncode not in (0, None), got.stdout
  assert 'Traceback' not in got.stderr
  lines = got.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), got.stderr
  for word in words:
    assert word in lines[0]
  assert not workdir.exists()


def test_required_fields_are_named(tmp_path):
  (tmp_path / 'unset.py').write_text(UNSET)
  got = run(f'--config={tmp_path / "unset.py"}', workdir=tmp_path / 'run')
  assert got.returncode == 1
  assert got.stderr == 'error: config: name, steps must be set\n'
  assert not (tmp_path / 'run').exists()


def test_a_workdir_of_another_config_is_refused(tmp_path):
  sys.path.insert(0, str(ROOT))
  from configs import hrpo
  c = hrpo.get_config('smoke')
  c.init = ''
  c.rollout.samples, c.optim.learning_rate = 5, 0.5
  old = {'command': 'an older one', **c.to_dict()}
  (tmp_path / 'config.json').write_text(json.dumps(old))
  got = run(*SMOKE, workdir=tmp_path, platform='cpu')
  assert got.returncode == 1 and 'Traceback' not in got.stderr
  head, *fields = got.stderr.splitlines()
  assert head.startswith(f'error: {tmp_path} holds a run with another config')
  assert [f.strip() for f in fields] == [
      'optim.learning_rate: 0.5 -> 0.0002', 'rollout.samples: 5 -> 4']
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']


def test_a_malformed_line_of_data_is_named(tmp_path):
  if not (DATA / 'qwen3_tokenizer').is_dir():
    pytest.skip(f'no Qwen3 tokenizer in {DATA}')
  data = tmp_path / 'data.jsonl'
  good = json.dumps({'question': 'Tom has 2 hats. How many?', 'answer': '2'})
  data.write_text(f'{good}\n{good}\n{{"question": "Tom\n')
  got = run(f'--config=configs/hrpo.py:data=gsm8k,folder={DATA}',
            f'--config.data.path={data}', workdir=tmp_path / 'run')
  assert got.returncode == 1
  line, = got.stderr.strip().splitlines()
  assert line.startswith(f'error: {data}:3: not JSON')
  assert not (tmp_path / 'run').exists()


def test_a_reward_that_fails_leaves_the_workdir_to_the_next_command(tmp_path):
  (tmp_path / 'mine.py').write_text(
      'def reward(examples, transcripts):\n  raise KeyError("oops")\n')
  got = subprocess.run(
      [sys.executable, '-m', 'adasr_jax.main', *SMOKE,
       f'--workdir={tmp_path / "run"}', '--config.reward.user=mine:reward',
       '--config.eval.at_start=False', '--config.model.num_layers=1'],
      cwd=ROOT, capture_output=True, text=True, timeout=300,
      env=os.environ | dict(PYTHONPATH=f'{ROOT}:{tmp_path}',
                            JAX_PLATFORMS='cpu'))
  assert got.returncode == 1 and 'oops' in got.stderr
  assert 'compiling the rollout' in got.stderr
  assert not (tmp_path / 'run').exists()
