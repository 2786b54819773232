"""Public datasets become the examples one would write by hand, or an error."""

import collections
import json

from absl import logging
import pytest

from adasr_jax.data import adapters
from adasr_jax.data.sources import Jsonl
from adasr_jax.data.text import content_id
from tests.small import DATA

GSM8K = {'question': 'Tom has 3 pens. How many has he?',
         'answer': 'He has <<3=3>>3.\n#### 3'}
SYMBOLIC = GSM8K | {
    'id': 7, 'instance': 4, 'original_id': 12,
    'original_question': 'Ann has 9 pens. How many has she?',
    'original_answer': '#### 9', 'canary': 'x'}
META = {'query': 'Tom has x pens. Twice that is 6. What is x?',
        'response': '2x = 6, so\n#### 3\nThe answer is: 3',
        'type': 'GSM_FOBAR', 'original_question': 'Tom has 3 pens. Twice?'}
PUBMED = {'QUESTION': 'Does it help?', 'LABELS': ['AIM', 'RESULTS'],
          'CONTEXTS': ['We asked. We saw.', 'It did (p<0.05).'],
          'final_decision': 'maybe', 'LONG_ANSWER': 'Perhaps.'}
INFINITE = {
    'problem': 'The number of owl in Elm equals 2. The number of crow in Oak '
               'equals the number of owl in Elm. ',
    'question': 'How many crow does Oak have?',
    'solution': 'Define owl in Elm as E; so E = 2. Define crow in Oak as c; '
                'so c = E = 2. Answer: 2.',
    'op': 3, 'id': 16, 'template': 'crazy_zootopia', 'mode': 'normalforward',
    'length': 'zero_context', 'd': 2}
STORY = {'facts': ['Ann is not soft.', 'Bob is smart.'],
         'rules': ['If someone is smart, then he is kind.'],
         'statements': ['Bob is kind.', 'Ann is soft.'],
         'labels': ['entailment', 'contradiction']}
COT = {
    'Instruct_Context': {
        'context': 'Tom has 3 pens.<EOS> He buys 4.<EOS> It rains.<EOS>',
        'instruct': 'How many pens has he?'},
    'streaming_reasoning':
        'We count pens.<EOQ>  \n3 pens.<EOT>  \n3+4=7.<EOT>  \n<skip><EOT>',
    'deep_reasoning':
        'So 7 <EOR> Therefore, the answer is \\box{7}.<EOA>\n',
    'answer': '\\boxed{7}'}


def make(record, format):
  return adapters.example(record, format=format, line='here')


def test_gsm8k():
  e = make(GSM8K, 'gsm8k')
  assert e.chunks == ('Tom has 3 pens.', ' How many has he?')
  assert (e.question_chunk, e.answer, e.preamble, e.group) == (1, '3', '',
                                                               None)


def test_gsm_symbolic_keeps_template_and_instance():
  e = make(SYMBOLIC, 'gsm_symbolic')
  assert (e.answer, e.instance) == ('3', 4)
  # The template's group is the id of GSM8K's own problem.
  assert e.group == make({'question': SYMBOLIC['original_question'],
                          'answer': '#### 9'}, 'gsm8k').id


def test_over_sets():
  make_set = lambda i: make(SYMBOLIC | {'instance': i}, 'gsm_symbolic')
  examples = [make_set(i) for i in (0, 0, 1, 1)]
  # Sets of accuracy 1 and 1/2: mean 3/4, deviation 1/4.
  assert adapters.over_sets(examples, [True, True, True, False]) == (.75, .25)
  with pytest.raises(ValueError, match='does not belong to a set'):
    adapters.over_sets([make(GSM8K, 'gsm8k')], [True])


@pytest.mark.parametrize('response,answer', [
    (META['response'], '3'), ('so\n#### 3', '3'),
    ('x\nThe answer is: \\frac{1}{2}', '\\frac{1}{2}')])
def test_metamathqa(response, answer):
  e = make(META | {'response': response}, 'metamathqa')
  assert e.answer == answer
  assert e.group == content_id(META['original_question'])
  assert e.chunks[e.question_chunk] == ' What is x?'


@pytest.mark.parametrize('record', [PUBMED, {
    'question': PUBMED['QUESTION'], 'final_decision': 'maybe',
    'context': {'contexts': PUBMED['CONTEXTS']}}])
def test_pubmedqa(record):
  e = make(record, 'pubmedqa')
  assert e.chunks == ('Does it help?', '\nWe asked.', ' We saw.',
                      '\nIt did (p<0.05).')
  assert (e.question_chunk, e.answer) == (0, 'maybe')


def test_gsm_infinite():
  e = make(INFINITE, 'gsm_infinite')
  assert e.chunks == (
      'The number of owl in Elm equals 2.',
      ' The number of crow in Oak equals the number of owl in Elm.',
      '\nHow many crow does Oak have?')
  assert (e.question_chunk, e.answer) == (2, '2')


def test_logicnli_stories_and_rows_agree():
  stories = [make(r, 'logicnli')
             for r in adapters.expand(STORY, format='logicnli')]
  # As on Hugging Face: no space between the last fact and the first rule.
  row = make({'premise': 'Ann is not soft.\nBob is smart.If someone is smart, '
                         'then he is kind.',
              'hypothesis': 'Ann is soft.', 'label': 'contradiction'},
             'logicnli')
  assert stories[1] == row
  assert row.chunks == (
      'Ann is not soft.', '\nBob is smart.',
      '\nIf someone is smart, then he is kind.',
      '\nIs this entailment, contradiction, neutral or self_contradiction: '
      'Ann is soft.')
  assert [e.answer for e in stories] == STORY['labels']
  assert len({e.group for e in stories}) == 1
  assert len({e.id for e in stories}) == 2


def test_streaming_cot():
  e = make(COT, 'streaming_cot')
  assert e.chunks == ('How many pens has he?', '\nTom has 3 pens.',
                      ' He buys 4.', ' It rains.')
  assert e.thoughts == ('We count pens.', '3 pens.', '3+4=7.', None)
  assert e.deep == 'So 7 Therefore, the answer is \\box{7}.'
  assert (e.answer, e.question_chunk) == ('7', 0)


@pytest.mark.parametrize('answer,bare', [
    ('\\boxed{\\frac{1}{2}}', '\\frac{1}{2}'), ('\\box{285}', '285'),
    ('first \\boxed{1}, then \\boxed{2}', '2'), ('285', '285')])
def test_streaming_cot_answers(answer, bare):
  assert make(COT | {'answer': answer}, 'streaming_cot').answer == bare


def test_streaming_cot_keeps_a_tail_of_the_context():
  changed = COT | {'Instruct_Context': COT['Instruct_Context'] | {
      'context': 'Tom has 3 pens.<EOS> He buys 4.<EOS> It rains.'}}
  assert make(changed, 'streaming_cot') == make(COT, 'streaming_cot')


def context(text):
  return {'Instruct_Context': COT['Instruct_Context'] | {'context': text}}


@pytest.mark.parametrize('format,record,message', [
    ('gsm8k', GSM8K | {'answer': '3'}, "'answer' has no '####'"),
    ('gsm8k', GSM8K | {'answer': '#### '}, 'empty answer'),
    ('gsm8k', [1], 'a list, not an object'),
    ('gsm8k', {'question': 'x'}, "no field 'answer'"),
    ('gsm_symbolic', GSM8K, "no field 'instance'"),
    ('gsm_symbolic', SYMBOLIC | {'instance': -1}, "'instance' is -1"),
    ('metamathqa', META | {'response': '3'}, "no 'The answer is:' or '####'"),
    ('pubmedqa', PUBMED | {'final_decision': 'no way'}, "'no way', not one"),
    ('pubmedqa', PUBMED | {'CONTEXTS': []}, "'CONTEXTS' is empty"),
    ('pubmedqa', {'question': 'x', 'context': 'y'},
     'text, not an object'),
    ('gsm_infinite', INFINITE | {'solution': 'so 2'}, "no 'Answer:'"),
    ('gsm_infinite', INFINITE | {'answer_list': ['V1']}, 'symbolic'),
    ('logicnli', {'premise': 'A.', 'hypothesis': 'B.', 'label': 'paradox'},
     "'paradox', not one of"),
    ('streaming_cot', COT | context('Tom has 3 pens.<EOS> He buys 4.<EOS>'),
     '4 thoughts for the question and 2 sentences'),
    ('streaming_cot', COT | context('One.<EOS> <EOS> Two.<EOS>'),
     'sentence 2'),
    ('streaming_cot', COT | context('One.<EOS> T<EOT>wo.<EOS> x<EOS>'),
     '<EOT> inside'),
    ('streaming_cot', COT | {'streaming_reasoning':
                             COT['streaming_reasoning'] + ' tail'},
     "after its last mark: 'tail'"),
    ('streaming_cot', COT | {'streaming_reasoning': 'x<EOT>y<EOT>'},
     'no <EOQ>'),
    ('streaming_cot', COT | {'deep_reasoning': None}, 'not text'),
    ('streaming_cot', COT | {'deep_reasoning': 'a <SEP> b'}, '<SEP> inside'),
    ('streaming_cot', {'reasoning': 'x', 'result': 'y'},
     "no field 'Instruct_Context"),
])
def test_errors_name_the_place_and_the_fault(format, record, message):
  with pytest.raises(ValueError) as e:
    make(record, format)
  assert str(e.value).startswith('here: ') and message in str(e.value)


# --------------------------------------------------------------- whole files
@pytest.mark.parametrize('text,records', [
    (json.dumps(GSM8K) + '\n' + json.dumps(GSM8K) + '\n', 2),
    (json.dumps(GSM8K), 1),
    (json.dumps([GSM8K] * 3), 3), (json.dumps([GSM8K] * 3, indent=2), 3),
    (json.dumps({'a': GSM8K, 'b': GSM8K}), 2),
    (json.dumps({'a': GSM8K, 'b': GSM8K}, indent=1), 2),
])
def test_lines_arrays_and_objects(tmp_path, text, records):
  path = tmp_path / 'x.json'
  path.write_text(text)
  assert len(Jsonl(path, format='gsm8k')) == records


@pytest.mark.parametrize('text,where', [
    (json.dumps([GSM8K, {}]), ': record 2: '),
    (json.dumps({'a': GSM8K, 'b': {}}), ": record 'b': "),
    (json.dumps(GSM8K) + '\n{}', ':2: '), ('[{', ': not JSON'),
    ('{"a": \n', ':1: not JSON'),
])
def test_errors_of_files(tmp_path, text, where):
  path = tmp_path / 'x.json'
  path.write_text(text)
  with pytest.raises(ValueError) as e:
    Jsonl(path, format='gsm8k')
  assert str(e.value).startswith(f'{path}{where}')


def test_bad_records_can_be_left_out(tmp_path, monkeypatch):
  path, logged = tmp_path / 'x.json', []
  monkeypatch.setattr(logging, 'warning', lambda m, *a: logged.append(m % a))
  path.write_text(json.dumps([COT, COT | {'answer': ''}, {}, COT]))
  assert len(Jsonl(path, format='streaming_cot', malformed='drop')) == 2
  line, = logged
  assert 'left out 2 of 4' in line and 'record 2' in line and 'record 3' in line


def test_placement_and_instruction(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps([PUBMED]))
  read = lambda **kw: Jsonl(path, format='pubmedqa', instruction='Go.',
                            **kw)[0]
  assert read().preamble == 'Go.\n' and read().question_chunk == 0
  e = read(question='first')
  assert e.preamble == 'Go.\nDoes it help?\n' and e.question_chunk == -1
  assert e.chunks[0] == 'We asked.'
  e = read(question='last')
  assert e.chunks[-1] == ' Does it help?' and e.question_chunk == 3
  path.write_text(json.dumps([COT]))
  with pytest.raises(ValueError, match="'as_is'"):
    Jsonl(path, format='streaming_cot', question='first')
  with pytest.raises(ValueError, match="format='gsm9k'"):
    Jsonl(path, format='gsm9k')


def test_a_group_stays_in_one_split(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join(json.dumps(SYMBOLIC | {
      'instance': i, 'question': f'Tom has {i} pens. How many?',
      'original_question': f'q{t}'}) for i in range(10) for t in range(100)))
  seen = collections.defaultdict(set)
  for split in ('train', 'validation', 'test'):
    for e in Jsonl(path, format='gsm_symbolic', split=split):
      seen[e.group].add(split)
  assert len(seen) == 100 and all(len(s) == 1 for s in seen.values())


def stored(name):
  path = DATA / name
  if not path.is_file():
    pytest.skip(f'no {name}')
  return path


def test_real_gsm_symbolic():
  source = Jsonl(stored('gsm_symbolic/GSM_p2.jsonl'), format='gsm_symbolic')
  assert len(source) == 2500
  counts = collections.Counter(e.group for e in source)
  assert len(counts) == 50 and set(counts.values()) == {50}
  assert {e.instance for e in source} == set(range(50))
  assert source[0].answer == '32.5'
  # 20 sets of accuracy 1, 30 of 0: mean 0.4, deviation sqrt(0.4 * 0.6).
  mean, deviation = adapters.over_sets(
      source, [e.instance < 20 for e in source])
  assert (mean, deviation) == (pytest.approx(.4), pytest.approx(.24**.5))


def test_real_pubmedqa():
  path = stored('pubmedqa/ori_pqal.json')
  source = Jsonl(path, format='pubmedqa', question='first')
  assert len(source) == 1000
  records = json.loads(path.read_text()).values()
  for e, r in zip(source, records):
    assert e.preamble == r['QUESTION'].strip() + '\n'
    assert ''.join(e.chunks).split() == ' '.join(r['CONTEXTS']).split()
  assert collections.Counter(e.answer for e in source) == {
      'yes': 552, 'no': 338, 'maybe': 110}
