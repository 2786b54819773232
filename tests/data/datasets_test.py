"""JSONL, Hugging Face and TFDS give the same examples, or one clear error."""

import json
import pathlib
import sys

import datasets
import pytest

from adasr_jax import config as config_lib
from adasr_jax.config import sections
from adasr_jax.core.types import Example
from adasr_jax.data import adapters
from adasr_jax.data.sources import HuggingFace, Jsonl, Tfds
from adasr_jax.data.text import content_id
from adasr_jax.data import tfds_builder
from adasr_jax.run import factories
from configs import common
from tests.data.tokenizer_test import TEMPLATE
from tests.small import save_tokenizer

OWN = 'streaming_reasoning'
# All that an example may lack, with and without it; '' is not None.
EXAMPLES = [
    Example(id=content_id('Élan. How many?'), preamble='',
            chunks=('Élan.', ' How many?'), answer='1', question_chunk=1),
    Example(id=content_id('Q?\nA.\nB.'), preamble='Q?\n',
            chunks=('A.', '\nB.'), answer='2', relevant=(True, False),
            thoughts=(None, 'so 2'), deep='', kinds=('gain', 'scene'),
            trace_answer='3', group=0, instance=4),
    Example(id=content_id('C.'), preamble='', chunks=('C.',), answer='x',
            thoughts=(None,), deep='d', group=2**32 - 1, instance=0)]
RECORDS = [
    {'chunks': ['Élan.', ' How many?'], 'answer': '1', 'question_chunk': 1,
     'preamble': None, 'id': 1},
    {'chunks': ['A.', '\nB.'], 'answer': '2', 'preamble': 'Q?\n',
     'relevant': [True, False], 'thoughts': [None, 'so 2'], 'deep': '',
     'kinds': ['gain', 'scene'], 'trace_answer': '3', 'group': 0,
     'instance': 4, 'id': 2},
    {'chunks': ['C.'], 'answer': 'x', 'thoughts': [None], 'deep': 'd',
     'group': 2**32 - 1, 'instance': 0, 'id': 3}]
TRACES = [{'question': f'Tom has {i} pens. He is {i}. How many?',
           'answer': f'{i}', 'thoughts': [f'{i}', None, None],
           'relevant': [True, False, True], 'deep': 'd'} for i in range(5)]
GSM8K = [{'question': f'Tom has {i} pens. How many?', 'answer': f'#### {i}'}
         for i in range(5)]
FIELDS = {k: k for k in TRACES[0]}


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
  """No network, no TensorFlow, no cache but our own."""
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  monkeypatch.delitem(sys.modules, 'tensorflow', raising=False)
  yield
  assert 'tensorflow' not in sys.modules


def write(path, records):
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  return path


def prepare(out, *arguments):
  tfds_builder.main([f'--out={out}', *map(str, arguments)])
  return out / OWN / '1.0.0'


@pytest.mark.parametrize('records,options', [
    (RECORDS, dict(format=OWN)),
    (RECORDS, dict(format=OWN, instruction='Go.')),
    (TRACES, dict(fields=FIELDS)),
    (GSM8K, dict(format='gsm8k', question='first', instruction='Go.')),
    (GSM8K, dict(format='gsm8k', question='last', split='train+validation')),
], ids=['own', 'own instructed', 'fields', 'question first', 'part'])
def test_three_sources_one_example(tmp_path, records, options):
  path = write(tmp_path / 'x.jsonl', records)
  want = list(Jsonl(path, **options))
  folder = tmp_path / 'hf'
  datasets.Dataset.from_json(str(path)).save_to_disk(folder)
  assert list(HuggingFace(folder, **options)) == want
  assert list(HuggingFace(path, **options)) == want
  # The builder reads the file as it is; the run then places the question.
  reading = (['--format', options['format']] if 'format' in options else
             ['--fields', *(f'{k}={v}' for k, v in FIELDS.items())])
  made = prepare(tmp_path / 'tfds', f'--path={path}', *reading)
  placing = {k: v for k, v in options.items() if k not in ('format', 'fields')}
  assert list(Tfds(made, format=OWN, **placing)) == want
  if options == dict(format=OWN):
    assert want == EXAMPLES  # and not three times the same mistake


def test_records_that_are_no_example():
  make = lambda **changes: adapters.example(
      RECORDS[1] | changes, format=OWN, line='here')
  for changes, message in (
      (dict(chunks=[]), "'chunks' is empty"),
      (dict(chunks=['A.', ' ']), r"'chunks\[1\]' is empty"),
      (dict(answer=2), "'answer' is a number, not text"),
      (dict(thoughts=['x']), r'here: example \d+: 1 thoughts for 2 chunks'),
      (dict(relevant=[1, 0]), r"'relevant'\[0\] is a number, not a truth"),
      (dict(group=-1), "'group' is -1"), (dict(group=.5), "'group' is a numb"),
      (dict(question_chunk=2), 'question_chunk=2 with 2 chunks')):
    with pytest.raises(ValueError, match=message):
      make(**changes)
  bare = make(relevant=[], thoughts=None, group='the original')
  assert bare.relevant is bare.thoughts is None
  assert bare.group == content_id('the original')


def test_a_question_in_the_preamble_stays_there(tmp_path):
  plain = {'chunks': ['A.', ' B.'], 'answer': '2', 'preamble': 'Q?\n'}
  path = write(tmp_path / 'x.jsonl', [plain])
  e = Jsonl(path, format=OWN, question='first', instruction='Go.')[0]
  assert (e.preamble, e.chunks) == ('Go.\nQ?\n', ('A.', ' B.'))
  with pytest.raises(ValueError, match=r'x.jsonl:1: its question stands in'):
    Jsonl(path, format=OWN, question='last')


def write_splits(folder):
  """A TFDS and two Hugging Face folders of the same two splits."""
  train = write(folder / 'train.jsonl', GSM8K)
  test = write(folder / 'test.jsonl', GSM8K[:2])
  (folder / 'files').mkdir()
  splits = datasets.DatasetDict(train=datasets.Dataset.from_list(GSM8K),
                                test=datasets.Dataset.from_list(GSM8K[:2]))
  splits.save_to_disk(folder / 'dict')
  for name, split in splits.items():
    split.to_parquet(folder / 'files' / f'{name}-0.parquet')
  return {'tfds': prepare(folder / 'tfds', f'--path={train}',
                          f'--test_path={test}', '--format=gsm8k'),
          'dict': folder / 'dict', 'files': folder / 'files'}


def test_own_splits(tmp_path):
  for name, path in write_splits(tmp_path).items():
    kind, format = ((Tfds, OWN) if name == 'tfds' else (HuggingFace, 'gsm8k'))
    sizes = [len(kind(f'{path}{split}', format=format))
             for split in ('', '@train', '@test')]
    assert sizes == [5, 5, 2], name
    with pytest.raises(ValueError, match=r'(?i)@dev: (no|unknown) split .dev'):
      kind(f'{path}@dev', format=format)


@pytest.mark.parametrize('path,message', [
    ('no/such:main@test', "Couldn't reach 'no/such' on the Hub"),
    ('one@test', 'a dataset without splits'), ('empty', 'any data files'),
    ('bad.json', 'JSON parse error'), ('x.txt', 'not a file of type .parquet'),
    ('good.json', "record 2: 'answer' has no '####'"),
    ('other.json', "record 1: no field 'question'")])
def test_what_hugging_face_cannot_give_is_one_line(tmp_path, monkeypatch, path,
                                                   message):
  monkeypatch.chdir(tmp_path)
  datasets.Dataset.from_list(GSM8K).save_to_disk('one')
  pathlib.Path('empty').mkdir()
  pathlib.Path('bad.json').write_text('{"question": ')
  pathlib.Path('x.txt').write_text('')
  write(pathlib.Path('good.json'), [GSM8K[0], GSM8K[1] | {'answer': '3'}])
  write(pathlib.Path('other.json'), [{'q': 'x'}])
  with pytest.raises(ValueError) as e:
    HuggingFace(path, format='gsm8k')
  assert str(e.value).startswith(f'{path}: ') and message in str(e.value)
  assert '\n' not in str(e.value)


def test_what_tfds_cannot_give_is_one_line(tmp_path):
  path = write(tmp_path / 'x.jsonl', GSM8K)
  arguments = f'--path={path}', '--format=gsm8k'
  made = prepare(tmp_path / 'out', *arguments)
  with pytest.raises(SystemExit, match='exists already'):
    prepare(tmp_path / 'out', *arguments)
  with pytest.raises(SystemExit, match=r"x.jsonl:1: no field 'q'"):
    prepare(tmp_path / 'other', f'--path={path}', '--fields', 'question=q',
            'answer=answer')
  with pytest.raises(ValueError, match='no dataset_info.json in'):
    Tfds(tmp_path / 'out', format=OWN)
  info = made / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(ValueError, match='tfrecord, not array_record'):
    Tfds(made, format=OWN)


def test_any_dataset_of_tfds(tmp_path):
  """Another builder's features are records, for fields or a format."""
  made = prepare(tmp_path / 'out',
                 f'--path={write(tmp_path / "x.jsonl", RECORDS)}',
                 f'--format={OWN}')
  for file in made.glob('*.json'):
    file.write_text(file.read_text().replace(OWN, 'another'))
  for file in made.glob('*array_record*'):
    file.rename(str(file).replace(f'{OWN}-', 'another-'))
  record = next(tfds_builder.read(made))[1]
  assert record['chunks'] == ['Élan.', ' How many?'] and record['deep'] == []
  assert type(record['id']) is int


# ------------------------------------------------------------------ in a run
def make_config(folder, source, path, **data):
  words = ['<end>', 'user', 'assistant', '<unk>', 'Tom', 'has', 'pens.']
  save_tokenizer(folder, words, TEMPLATE)
  c = common.base('test', 'hrpo')
  common.smoke(c)
  c.eval.examples = c.eval.periodic_examples = 2
  c.tokenizer.kind, c.tokenizer.path = 'folder', str(folder)
  c.data.update(dict(source=source, path=str(path), lengths=(64,),
                     max_chunks=4, format='gsm8k', **data))
  config_lib.validate(c)
  return c


def many(n):
  return [{'question': f'Tom has {i} pens. How many?', 'answer': f'#### {i}'}
          for i in range(n)]


def test_a_test_split_of_its_own(tmp_path):
  """Then the rest of the other file is for training."""
  path = write(tmp_path / 'x.jsonl', many(200))
  ids = lambda split: {e.id for e in Jsonl(path, format='gsm8k', split=split)}
  datasets.DatasetDict(train=datasets.Dataset.from_list(many(200)),
                       test=datasets.Dataset.from_list(many(202)[200:])
                       ).save_to_disk(tmp_path / 'hf')
  test = write(tmp_path / 'test.jsonl', many(202)[200:])
  for source, where, its in (('jsonl', path, test),
                             ('huggingface', tmp_path / 'hf',
                              f'{tmp_path / "hf"}@test')):
    data = factories.parts(sections(make_config(
        tmp_path, source, where, test_path=str(its)))).data
    tested = data.evaluation('test', 2)
    assert [e.answer for e in tested] == ['200', '201']
    n = 200 - len(ids('validation'))
    seen = {e.id for e in data.train(0, n)}
    assert seen == ids('train') | ids('test')
    assert {e.id for e in data.evaluation('validation', 2)} <= ids('validation')


@pytest.mark.parametrize('changes,message', [
    ({'examples': 30}, r"eval.examples=30: the split 'test' has \d+ examples"),
    ({'periodic_examples': 30, 'every': 1},
     r"eval.periodic_examples=30: the split 'validation'"),
    ({'periodic_examples': 30}, None)])
def test_more_examples_than_a_split_has(tmp_path, changes, message):
  c = make_config(tmp_path, 'jsonl', write(tmp_path / 'x.jsonl', many(200)))
  c.eval.update(changes)
  if message is None:  # never evaluated
    factories.parts(sections(c))
    return
  with pytest.raises(ValueError, match=message):
    factories.parts(sections(c))
