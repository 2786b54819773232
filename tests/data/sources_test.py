"""Files become the examples one would write by hand, or raise a clear error."""

import json

from absl import logging
import pytest

from adasr_jax.data.sources import Jsonl, SPLITS
from tests.small import DATA

FIELDS = {'question': 'q', 'answer': 'a'}
TEXT = 'Tom has 3 pens. How many has he? He gave none away.'
RECORD = {'q': TEXT, 'a': 'He has 3.\n#### 3', 'c': 'One. Two.',
          'r': [True, False, True], 't': ['3', None, 'so 3'], 'd': 'so 3'}


@pytest.fixture
def write(tmp_path):
  def to(*records):
    path = tmp_path / 'x.jsonl'
    path.write_bytes(b''.join(
        (r if isinstance(r, bytes) else json.dumps(r).encode()) + b'\n'
        for r in records))
    return path
  return to


@pytest.mark.parametrize('placement,preamble,chunks,at', [
    ('as_is', 'Solve.\n', ('Tom has 3 pens.', ' How many has he?',
                           ' He gave none away.'), 1),
    ('first', 'Solve.\nHow many has he?\n', ('Tom has 3 pens.',
                                             ' He gave none away.'), -1),
    ('last', 'Solve.\n', ('Tom has 3 pens.', ' He gave none away.',
                          ' How many has he?'), 2),
])
def test_placements(write, placement, preamble, chunks, at):
  e = Jsonl(write(RECORD), FIELDS, instruction='Solve.', question=placement)[0]
  assert (e.preamble, e.chunks, e.question_chunk, e.answer) == (
      preamble, chunks, at, '3')


@pytest.mark.parametrize('text,at', [
    ('One. What is it? What else? Two.', 2),  # the last that asks
    ('One. Two. Find it.', 2),  # none asks: the last
])
def test_which_sentence_is_the_question(write, text, at):
  assert Jsonl(write(RECORD | {'q': text}), FIELDS)[0].question_chunk == at


def test_a_question_that_opens_the_text_moves_without_its_neighbour(write):
  path = write(RECORD | {'q': 'How many? Tom has 3.'})
  assert Jsonl(path, FIELDS, question='first')[0].chunks == ('Tom has 3.',)
  assert Jsonl(path, FIELDS, question='last')[0].chunks == (
      'Tom has 3.', ' How many?')


def test_a_problem_of_one_sentence_stays_in_the_stream(write):
  e = Jsonl(write(RECORD | {'q': 'How many?'}), FIELDS, question='first')[0]
  assert (e.preamble, e.chunks, e.question_chunk) == ('', ('How many?',), 0)


@pytest.mark.parametrize('context', ['One. Two.\nThree.',
                                     ['One. Two.', 'Three. ']])
def test_context(write, context):
  path = write(RECORD | {'c': context, 'q': 'Is it? Or not?'})
  fields = FIELDS | {'context': 'c'}
  e = Jsonl(path, fields)[0]
  assert e.chunks == ('One.', ' Two.', '\nThree.', '\nIs it? Or not?')
  assert e.question_chunk == 3
  e = Jsonl(path, fields, question='first')[0]
  assert e.preamble == 'Is it? Or not?\n'
  assert e.chunks == ('One.', ' Two.', '\nThree.')


def test_all_questions_on_one_context_are_in_one_split(write):
  fields = FIELDS | {'context': 'c'}
  path = write(*(RECORD | {'c': f'Text {i % 40}.', 'q': f'Is it {i}?'}
                 for i in range(400)))
  where = {}
  for split in ('train', 'validation', 'test'):
    for e in Jsonl(path, fields, split=split):
      where.setdefault(e.chunks[0], set()).add(split)
  assert len(where) == 40 and all(len(x) == 1 for x in where.values())


def test_traces(write):
  fields = FIELDS | {'relevant': 'r', 'thoughts': 't', 'deep': 'd',
                     'context': ''}  # '' = not there
  e = Jsonl(write(RECORD), fields)[0]
  assert e.relevant == (True, False, True)
  assert e.thoughts == ('3', None, 'so 3') and e.deep == 'so 3'
  with pytest.raises(ValueError, match="relevant, thoughts.*'as_is'"):
    Jsonl(write(RECORD), fields, question='first')


def test_answers(write):
  assert Jsonl(write(RECORD | {'a': ' yes '}), FIELDS)[0].answer == 'yes'
  assert Jsonl(write(RECORD | {'a': 'so #### 1 #### 22'}), FIELDS)[
      0].answer == '22'


def test_the_id_depends_only_on_the_text(write):
  ids = {Jsonl(write(RECORD | {'a': a}), FIELDS, question=q,
               instruction=i)[0].id
         for a in '12' for q in ('as_is', 'first', 'last') for i in ('', 'Go.')}
  assert len(ids) == 1
  assert Jsonl(write(RECORD | {'q': TEXT + '!'}), FIELDS)[0].id not in ids


def test_splits_partition_the_file_whatever_its_order(write):
  records = [RECORD | {'q': f'Tom has {i} pens. How many?'}
             for i in range(2000)]
  parts = {s: [e.id for e in Jsonl(write(*records), FIELDS, split=s)]
           for s in SPLITS}
  assert sorted(parts['train'] + parts['validation'] + parts['test']
                ) == sorted(parts['all'])
  # Binomial: 2000 * 0.05 = 100 with a standard deviation of 9.7.
  assert 60 < len(parts['validation']) < 140 and 60 < len(parts['test']) < 140
  backwards = Jsonl(write(*records[::-1]), FIELDS, split='test')
  assert [e.id for e in backwards] == parts['test'][::-1]


@pytest.mark.parametrize('bad,message', [
    (b'{"q": ', 'not JSON'),
    (b'{"q": "\xff"}', 'not UTF-8: invalid start byte at byte 7'),
    (b'{"q": ' + b'[' * 100_000, 'nests deeper than 100 levels'),
    (b'{"q": "\\ud800?", "a": "1"}', 'surrogates'),
    ([1], 'a list, not an object'),
    ({'q': TEXT}, "no field 'a'"),
    (RECORD | {'q': '  '}, "'q' is empty"),
    (RECORD | {'q': None}, "'q' is null, not text"),
    (RECORD | {'a': 3}, "'a' is a number, not text"),
    (RECORD | {'a': 'so #### '}, "'a' gives an empty answer"),
    (RECORD | {'c': []}, "'c' is empty"),
    (RECORD | {'c': ['One.', '']}, "'c[1]' is empty"),
    (RECORD | {'c': {}}, "'c' is an object, not text"),
    (RECORD | {'r': 'yes'}, "'r' is text, not a list"),
    (RECORD | {'r': [True, 1, True]}, "'r'[1] is a number, not a truth value"),
    (RECORD | {'t': [None]}, "'t' has 1 entries for 3 sentences"),
    (RECORD | {'t': [None, True, None]}, "'t'[1] is a truth value, not text"),
    (RECORD | {'d': None}, "'d' is null, not text"),
])
def test_errors_name_file_line_and_fault(write, bad, message):
  fields = FIELDS | {'relevant': 'r', 'thoughts': 't', 'deep': 'd'}
  if isinstance(bad, bytes):
    fields = FIELDS
  elif isinstance(bad, dict) and bad.get('c') != RECORD['c']:
    fields = FIELDS | {'context': 'c'}
  path = write(RECORD, bad, RECORD)
  with pytest.raises(ValueError) as e:
    Jsonl(path, fields)
  assert str(e.value).startswith(f'{path}:2: ')
  assert message in str(e.value) and '\n' not in str(e.value)


def test_blank_lines_a_mark_and_windows_line_ends_are_fine(write):
  raw = json.dumps(RECORD).encode()
  for content in (raw + b'\n\n \n', b'\n' + raw + b'\r\n\r\n' + raw,
                  b'\xef\xbb\xbf' + raw + b'\r\n',
                  b'\xef\xbb\xbf\n[' + raw + b']\n'):
    source = Jsonl(write(content), FIELDS)
    assert {e.chunks for e in source.part('all')} == {
        Jsonl(write(raw), FIELDS)[0].chunks}
    assert len(source) == content.count(raw)
  path = write(RECORD, b'', [1])  # a blank line has a number too
  with pytest.raises(ValueError, match=r'x.jsonl:3: a list'):
    Jsonl(path, FIELDS)


@pytest.mark.parametrize('raw', [b'[' * 100_000, b'[[{"q": "x"}],\n{"q":',
                                 b'[{"q": "\xff"}]'])
def test_an_array_that_cannot_be_read(write, raw):
  path = write(raw)
  with pytest.raises(ValueError, match=r'x.jsonl: (not|JSON)') as e:
    Jsonl(path, FIELDS)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('bad', [2, 3, 5])
def test_dropped_records_are_told_once(write, monkeypatch, bad):
  logged = []
  monkeypatch.setattr(logging, 'warning', lambda m, *a: logged.append(m % a))
  faults = (b'{"q": ', b'\xff', b'[' * 1000, {'q': 'x'}, {})[:bad]
  path = write(RECORD, *faults, RECORD | {'q': 'Another?'})
  assert len(Jsonl(path, FIELDS, malformed='drop')) == 2
  line, = logged
  assert line.startswith(f'{path}: left out {bad} of {bad + 2} records: ')
  shown = [f'{path}:2: not JSON', f'{path}:3: not UTF-8',
           f'{path}:4: JSON that nests'][:bad]
  for part in shown:
    assert part in line
  assert f'{path}:5' not in line and line.endswith('; ...') == (bad > 3)


@pytest.mark.parametrize('fields,changes,message', [
    (FIELDS | {'topic': 'x'}, {}, 'topic not among'),
    ({'question': 'q'}, {}, 'answer must be set'),
    (FIELDS, dict(question='middle'), "question='middle'"),
    (FIELDS, dict(split='dev'), "split='dev'"),
])
def test_bad_arguments(write, fields, changes, message):
  with pytest.raises(ValueError) as e:
    Jsonl(write(RECORD), fields, **changes)
  assert message in str(e.value)


def test_missing_and_empty_files(write, tmp_path):
  with pytest.raises(ValueError, match='none.jsonl: no such file'):
    Jsonl(tmp_path / 'none.jsonl', FIELDS)
  with pytest.raises(ValueError, match="no examples in split='all'"):
    Jsonl(write(), FIELDS)


def test_gsm8k():
  path = DATA / 'gsm8k_train.jsonl'
  if not path.is_file():
    pytest.skip(f'no {path.name}')
  fields = {'question': 'question', 'answer': 'answer'}
  source = Jsonl(path, fields)
  with path.open(encoding='utf-8') as lines:
    records = [json.loads(line) for line in lines]
  assert len(source) == len(records) == 7473
  for e, r in zip(source, records):
    assert ''.join(e.chunks) == r['question'].strip()
    assert e.answer == r['answer'].split('####')[1].strip()
  assert source[0].answer == '72'
  assert '?' in source[0].chunks[source[0].question_chunk]
