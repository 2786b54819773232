"""A mistake on the command line ends the program with one line."""

import asyncio
import gc
import logging
import sys
import warnings

from absl import flags
from ml_collections import config_flags
import pytest

from adasr_jax.run import command

GOOD = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({'steps': 1})
"""


@pytest.mark.parametrize('program,arguments,message', [
    (GOOD, ['--config.steps=x'], r"flag --config.steps=x: .* 'x'"),
    (GOOD, ['--config.stepz=1'], "no such config field: .*stepz.*steps"),
    (GOOD, ['--cofnig.steps=1'], 'cofnig'),
    ('x = 1', [], r'the file of --config has no get_config\(\)'),
    ('def get_config():\n  1 / 0', [], r'c\.py:2: ZeroDivisionError: division'),
    ('import os\ndef get_config(:', [], r'c\.py:2: SyntaxError: invalid'),
    ('import nothing_such', [], r'c\.py:1: ModuleNotFoundError: .*nothing_su'),
])
def test_mistakes(program, arguments, message, tmp_path, monkeypatch):
  path, values = tmp_path / 'c.py', flags.FlagValues()
  path.write_text(program)
  argv = ['main', f'--config={path}', *arguments]
  # config_flags reads it itself, and keeps the file as a module.
  monkeypatch.setattr('sys.argv', argv)
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  config_flags.DEFINE_config_file('config', flag_values=values)
  flags.mark_flag_as_required('config', flag_values=values)
  with pytest.raises(SystemExit, match=f'^error: .*{message}') as e:
    command.parse_flags(argv, values)
  assert '\n' not in str(e.value)


def test_other_arguments():
  command.no_arguments(['main'])
  with pytest.raises(SystemExit, match=r"unknown arguments: \['smoke'\]"):
    command.no_arguments(['main', 'smoke'])


def test_a_failed_save_fails_once(caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('asyncio'), 'filters', [])

  async def fail(name):
    raise ValueError(name)

  async def save():
    asyncio.create_task(fail('other'))
    waits = [fail('never')]
    await asyncio.sleep(0)
    waits.clear()

  def run():
    caplog.clear()
    with warnings.catch_warnings(record=True) as seen:
      warnings.simplefilter('always')
      if told:
        command.one_failure_of_a_save()
      asyncio.run(save())
      gc.collect()
    return [r.name for r in caplog.records], [str(w.message) for w in seen]

  told = False
  logged, warned = run()
  assert logged == ['asyncio'] and 'never awaited' in warned[0]
  told = True
  assert run() == ([], [])
