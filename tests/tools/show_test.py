"""What show prints is what the model sees."""

import pathlib
import re
import sys

import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.config import sections
from adasr_jax.data import pipeline
from adasr_jax.run import factories
from adasr_jax.tools import show
from configs import apr
from configs import hrpo

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def parts():
  c = hrpo.get_config('smoke')
  c.init = ''
  config_lib.validate(c)
  return factories.parts(sections(c))


def test_pieces_are_what_training_sees(parts):
  data = parts.data
  examples = data.train(0, 8)
  for layout in pipeline.LAYOUTS:
    batch = pipeline.collate(examples, data.tokenizer, lengths=data.lengths,
                             max_chunks=data.max_chunks, layout=layout)
    for p, e in enumerate(examples):
      pieces = show.source_pieces(e, data.tokenizer, layout=layout)
      valid = batch.source.valid[p]
      for name, mine in (
          ('tokens', [i for x in pieces for i in x.ids]),
          ('phase', [x.phase for x in pieces for _ in x.ids]),
          ('position', [x.start + k for x in pieces
                        for k in range(len(x.ids))])):
        np.testing.assert_array_equal(
            getattr(batch.source, name)[p][valid], mine)
  target = data.traces(examples)
  for b, e in enumerate(examples):
    pieces, = show.target_pieces(e, data.tokenizer, data.protocol,
                                 layout='streaming')
    np.testing.assert_array_equal(
        target.tokens[b][target.valid[b]], [i for x in pieces for i in x.ids])
    np.testing.assert_array_equal(
        target.phase[b][target.valid[b]],
        [x.phase for x in pieces for _ in x.ids])


def test_threads_are_what_training_sees():
  c = apr.get_config('smoke')
  c.init = ''
  parts = factories.parts(config_lib.validate(c))
  data, W = parts.data, parts.protocol.width
  e, = data.train(0, 1)
  target = data.traces([e])
  threads = show.target_pieces(e, data.tokenizer, data.protocol,
                               layout=data.layout)
  for w in range(W):
    ids = [i for x in threads[w] for i in x.ids] if w < len(threads) else []
    np.testing.assert_array_equal(target.tokens[w][target.valid[w]], ids)
  shown = [w for w, pieces in enumerate(threads) if w and pieces]
  assert shown and len(threads) == len(e.threads)
  for w in shown:
    # A root spells what its child begins with.
    assert [x.what for x in threads[w]][:3] == ['prefix', 'brief', 'child']
    brief = threads[w][1].ids
    assert ' '.join(map(str, brief)) in ' '.join(
        str(i) for x in threads[0] if x.what == 'brief' for i in x.ids)
  said = show.describe(e, data.tokenizer, data.protocol, layout=data.layout,
                       target_offset=0, colour=False)
  assert f'child {len(threads) - 1}: ' in said
  assert said.count('not shown in training') == len(threads) - 1 - len(shown)


def test_visibility_by_hand():
  # Columns: preamble, c1, c2, prefix, t1, t2, deep.
  np.testing.assert_array_equal(show.readable(2), [
      [1, 0, 0, 0, 0, 0, 0],
      [2, 1, 0, 0, 0, 0, 0],
      [2, 2, 1, 0, 0, 0, 0],  # sources never read what was written
      [2, 0, 0, 1, 0, 0, 0],
      [2, 2, 0, 2, 1, 0, 0],  # a thought on c1 has not read c2
      [2, 2, 2, 2, 2, 1, 0],
      [2, 2, 2, 2, 2, 2, 1]])
  whole = show.readable(2, 'all')
  np.testing.assert_array_equal(whole[:3], show.readable(2)[:3])
  assert (whole[3:, :3] == 2).all(), 'all that is written has read all'
  np.testing.assert_array_equal(whole[:, 3:], show.readable(2)[:, 3:])


def test_text_and_colour(parts):
  data = parts.data
  e = data.train(1, 1)[0]
  kw = dict(layout='streaming', target_offset=100, note='refused: x')
  plain = show.describe(e, data.tokenizer, data.protocol, colour=False, **kw)
  painted = show.describe(e, data.tokenizer, data.protocol, colour=True, **kw)
  assert '\033' not in plain and '\033[' in painted
  assert re.sub(r'\033\[[0-9;]*m', '', painted) == plain
  for words in ('<skip>', '<EOT>', '</think>', '<eos>', 'refused: x',
                e.chunks[0].strip(), f'{e.answer!r}'):
    assert words in plain
  assert re.search(r'prefix +100-100 ', plain)


@pytest.mark.parametrize('arguments,words', [
    (['--split=validation', '--index=3'], ['who reads whom', 'deep']),
    (['--config.data.layout=read_then_think'], ['layout read_then_think'])])
def test_the_command(arguments, words, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', [
      'show', f'--config={ROOT}/configs/hrpo.py:smoke', '--config.init=',
      *arguments])
  show.main()
  said = capsys.readouterr().out
  for word in words:
    assert word in said


@pytest.mark.parametrize('arguments,message', [
    ([], '--config must have a value'),
    (['--config=nowhere.py'], 'No such file .*nowhere.py'),
    (['--config={}', '--index=-1'], 'index'),
    (['--config={}', '--config.data.sauce=x'], 'sauce'),
    (['--config={}', '--split=dev'], 'dev'),
    (['--config={}', 'word'], 'unknown arguments'),
])
def test_mistakes(arguments, message, monkeypatch):
  path = f'{ROOT}/configs/hrpo.py:smoke'
  monkeypatch.setattr(sys, 'argv', [
      'show', *(a.format(path) for a in arguments),
      *(['--config.init='] if '{}' in ''.join(arguments) else [])])
  with pytest.raises(SystemExit, match=f'error: .*{message}') as e:
    show.main()
  assert '\n' not in str(e.value)
