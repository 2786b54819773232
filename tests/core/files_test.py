"""JSON from outside: the value, or one line that says what is wrong."""

import json
import pathlib

import pytest

from adasr_jax.core import files


def nested(levels, opened='[', closed=']'):
  return (opened * levels + '1' + closed * levels).encode()


@pytest.mark.parametrize('raw,value', [
    (b'{"a": [1, null]}', {'a': [1, None]}),
    (b'\xef\xbb\xbf{"a": 1}\r\n', {'a': 1}),
    ('"é"'.encode(), 'é'),
    (b'[' + b','.join([b'[1]'] * 500) + b']', [[1]] * 500),
])
def test_values(raw, value):
  assert files.json_value(raw) == value


@pytest.mark.parametrize('opened,closed', [('[', ']'), ('{"a": ', '}')])
@pytest.mark.parametrize('levels', [
    files.MOST_NESTED, files.MOST_NESTED + 1, 500, 5000, 100_000])
def test_nesting_is_bounded(levels, opened, closed):
  raw = nested(levels, opened, closed)
  if levels == files.MOST_NESTED:
    assert files.json_value(raw) == json.loads(raw)
    return
  with pytest.raises(ValueError, match='^JSON that nests deeper than 100'):
    files.json_value(raw)


@pytest.mark.parametrize('raw,message', [
    (b'', 'not JSON: Expecting value, column 1'),
    (b'{"a": 1,}', 'not JSON: Expecting property name .*, column 9'),
    (b'{"a": 1,\n "b": x}\n', 'not JSON: Expecting value, line 2 column 7'),
    (b'{"a": "\xff"}', 'not UTF-8: invalid start byte at byte 7'),
    (b'1' * 5000, 'digits'),
])
def test_errors_are_one_line(raw, message):
  with pytest.raises(ValueError, match=message) as e:
    files.json_value(raw)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('init,path,which', [
    ('runs/x', 'runs/x', ''), ('runs/x@20', 'runs/x', '20'),
    ('runs/x@best', 'runs/x', 'best'), ('/me@my/runs/x', '/me@my/runs/x', ''),
    ('/me@my/runs/x@3', '/me@my/runs/x', '3'), ('@3', '@3', '')])
def test_the_step_of_an_init(init, path, which):
  assert files.at_step(init) == (pathlib.Path(path), which)


def test_a_failed_write_leaves_what_was_there(tmp_path):
  path = tmp_path / 'x.txt'
  files.write_text(path, 'old')
  def fail(new):
    new.write_text('ha')
    raise OSError('no space')
  with pytest.raises(OSError, match='no space'):
    files.whole(path, fail)
  assert [p.name for p in tmp_path.iterdir()] == ['x.txt']
  assert path.read_text() == 'old'


def test_the_file_is_named(tmp_path):
  path = tmp_path / 'x.json'
  files.write_text(path, '{"é": [1]}')
  assert files.read_json(path) == {'é': [1]}
  for raw in (b'{', nested(100_000), b'\xff'):
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r'x\.json: (not|JSON)'):
      files.read_json(path)
  with pytest.raises(OSError, match='none.json'):
    files.read_json(tmp_path / 'none.json')
