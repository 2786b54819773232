"""Logs lose nothing: only a half-written last line goes."""

import errno
import json

import pytest

from adasr_jax.core import files
from adasr_jax.run import logs
from adasr_jax.run import workdir


def write(path, *lines, end='\n'):
  path.write_text('\n'.join(lines) + end)
  return path


def record(step):
  return json.dumps({'step': step, 'kind': 'train', 'loss': 0.5})


def test_later_steps_and_a_half_written_last_line_go(tmp_path):
  path = write(tmp_path / 'm.jsonl', record(1), record(2), record(3),
               '{"step": 4, "ki', end='')
  logs.truncate_log(path, 2)
  assert path.read_text() == f'{record(1)}\n{record(2)}\n'
  logs.truncate_log(path, 2)
  assert path.read_text() == f'{record(1)}\n{record(2)}\n'


def test_a_last_line_cut_within_a_letter_goes(tmp_path):
  path = tmp_path / 'm.jsonl'
  path.write_bytes((record(1) + '\n{"step": 2, "text": "é').encode()[:-1])
  logs.truncate_log(path, 9)
  assert path.read_text() == record(1) + '\n'


def test_texts_may_hold_any_line_end(tmp_path):
  texts = [{'step': i, 'text': f'a{end}b'}
           for i, end in enumerate('\n\r\x0b\x1c\x85\u2028')]
  path = tmp_path / 's.jsonl'
  path.write_text(''.join(map(logs.line, texts)), encoding='utf-8')
  assert logs.read_lines(path) == texts
  logs.truncate_log(path, 9)
  assert logs.read_lines(path) == texts


def test_a_damaged_line_is_named(tmp_path):
  path = tmp_path / 's.jsonl'
  path.write_bytes(b'{"step": 1}\n{"step": 2, "te')
  with pytest.raises(ValueError, match=r's\.jsonl:2 is damaged: not JSON'):
    logs.read_lines(path)
  assert logs.read_lines(tmp_path / 'none.jsonl') == []


@pytest.mark.parametrize('bad', ['{"step": 2, "ki', '[]', '{"kind": "eval"}',
                                 'null', '\0\0'])
def test_a_bad_line_within_stops_and_is_named(bad, tmp_path):
  path = write(tmp_path / 'm.jsonl', record(1), bad, record(3))
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r'm\.jsonl:2: not a record'):
    logs.truncate_log(path, 9)
  assert path.read_bytes() == before


def test_a_damaged_json_file_is_named(tmp_path):
  (tmp_path / 'eval.json').write_text('{"start": {"accuracy": 0.')
  with pytest.raises(ValueError, match='eval.json is damaged'):
    logs.read_json(tmp_path / 'eval.json')
  assert logs.read_json(tmp_path / 'none.json') is None


def test_a_changed_evaluation_is_noticed(tmp_path):
  evals = {'start': {'pass_at_k': {8: 0.25}, 'interval': (0.1, 0.5)},
           'settings': {'split': 'test'}}
  assert logs.read_evaluations(tmp_path) == {}
  logs.write_evaluations(tmp_path, evals)
  read = logs.read_evaluations(tmp_path)
  assert read == json.loads(json.dumps(evals))
  path = tmp_path / 'eval.json'
  whole = path.read_text()
  for a, b in (('0.25', '0.75'), ('pass_at_k', 'pass_at_m'), ('test', 'tesu'),
               ('start', 'stars'), ('crc32', 'crc33')):
    path.write_text(whole.replace(a, b, 1))
    with pytest.raises(logs.Damaged, match='eval.json is damaged: it is not'):
      logs.read_evaluations(tmp_path)
  path.write_text(json.dumps(evals))  # of an older version: no checksum
  assert logs.read_evaluations(tmp_path) == read
  path.write_text('[]')
  with pytest.raises(logs.Damaged, match='does not hold evaluations'):
    logs.read_evaluations(tmp_path)


def test_what_is_no_json_leaves_the_file_as_it_was(tmp_path):
  path = tmp_path / 'eval.json'
  logs.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    logs.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}


def test_what_is_half_written_is_not_in_place(tmp_path):
  path = tmp_path / 'report.md'
  path.write_text('old')

  def die(new):
    new.write_text('ha')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    files.whole(path, die)
  assert path.read_text() == 'old'
  files.write_text(path, 'new')
  assert [p.name for p in tmp_path.iterdir()] == ['report.md']


def test_events_are_on_disk_at_once_and_a_full_disk_is_told(
    tmp_path, monkeypatch):
  writer = logs.Writer(tmp_path, step=-1, tensorboard=True, wandb_project='',
                       name='', config={})
  writer.scalars(3, 'train', {'some/name': 1.5})
  file, = (tmp_path / 'tensorboard').iterdir()
  assert b'some/name' in file.read_bytes()
  def full(event):
    raise OSError(errno.ENOSPC, 'No space left on device')
  monkeypatch.setattr(writer._tensorboard._writer, 'write_event', full)
  with pytest.raises(OSError, match='No space left.*tensorboard'):
    writer.scalars(4, 'train', {'some/name': 2.5})


def test_a_workdir_has_one_run_at_a_time(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with workdir.held(tmp_path):
    with pytest.raises(OSError, match=f'{tmp_path.name}.*another process'):
      with workdir.held(tmp_path):
        pass
  with workdir.held(tmp_path):
    pass
