"""Traces without a teacher use only what was read, or are left out."""

from fractions import Fraction
import json

import pytest

from adasr_jax.data.sources import Jsonl
from adasr_jax.tasks.gsm8k import numbers
from adasr_jax.tasks.gsm8k import traces
from adasr_jax.tasks.gsm8k.traces import Unexplained
from tests.data.adapters_test import stored

CLIPS = ('Natalia sold clips to 48 of her friends in April, and then she sold '
         'half as many clips in May. How many clips did Natalia sell '
         'altogether in April and May?')
CLIPS_SOLVED = (
    'Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = '
    '<<48+24=72>>72 clips altogether in April and May.\n#### 72')


def means(text, value, role='+', percent=False):
  return any(m.means(Fraction(value), role, percent)
             for m in numbers.mentions(text))


@pytest.mark.parametrize('text,value,role', [
    ('48 clips', 48, '+'), ('$1,250.50', '1250.5', '+'), ('10ml', 10, '+'),
    ('twenty-five pens', 25, '+'), ('two hundred and six', 206, '+'),
    ('three thousand', 3000, '+'), ('two million', 2000000, '+'),
    ('a dozen eggs', 12, '+'), ('3 dozen eggs', 36, '+'),
    ('half a dozen', 6, '+'), ('half as many', 2, '/'),
    ('half of them', '1/2', '*'), ('twice as many', 2, '*'),
    ('double that', 2, '*'), ('tripled', 3, '*'), ('a third of', 3, '/'),
    ('two-thirds of', '2/3', '*'), ('three quarters', '3/4', '*'),
    ('1/4 of', '1/4', '*'), ('1/4 of', 4, '/'), ('2 1/2 cups', '2.5', '+'),
    ('two and a half cups', '2.5', '+'), ('20%', '1/5', '*'),
    ('20 percent', 20, '*'), ('20% off', '4/5', '*'), ('25%', 4, '/'),
    ('50 cents', '1/2', '+'), ('$1.50', 150, '+'), ('3 dimes', 10, '*'),
    ('five times more', 6, '*'), ('7:30', '7.5', '+'), ('a pair', 2, '+'),
])
def test_numbers_however_written(text, value, role):
  assert means(text, value, role)


@pytest.mark.parametrize('text,value,role', [
    ('half as many', 2, '*'),  # only as a divisor
    ('twice as many', 2, '+'),  # only in products
    ('10% tax', 90, '*'),  # only beside a 100
    ('48 clips', 8, '+'), ('the second day', 60, '+'), ('someone', 1, '+'),
])
def test_what_a_number_does_not_mean(text, value, role):
  assert not means(text, value, role)


def test_a_percentage_has_a_complement_beside_a_hundred():
  assert means('10% tax', 90, '*', percent=True)


def test_a_problem_by_hand():
  got = traces.trace(CLIPS, CLIPS_SOLVED)
  assert got == {
      'thoughts': ['Natalia sold 48/2 = 24 clips in May.',
                   'Natalia sold 48+24 = 72 clips altogether in April and '
                   'May.'],
      'relevant': [True, True], 'deep': 'So the answer is 72.'}
  got = traces.trace(CLIPS, CLIPS_SOLVED, style='arithmetic')
  assert got['thoughts'] == ['48/2=24', '48+24=72']


def solve(question, *lines, answer):
  return traces.trace(question, '\n'.join(lines) + f'\n#### {answer}')


def test_notes_skips_and_the_question():
  got = solve('Ann bakes bread. She has 6 bags of flour. Each bag makes '
              '4 loaves. How many loaves can she make if she keeps 2 bags?',
              'She uses 6-2=<<6-2=4>>4 bags.',
              'She makes 4*4=<<4*4=16>>16 loaves.', answer=16)
  # One 4 is the loaves per bag, the other the bags that she uses.
  assert got['thoughts'] == [
      None, '6 bags of flour', '4 loaves',
      'She uses 6-2=4 bags. She makes 4*4=16 loaves.']
  assert got['relevant'] == [False, True, True, True]


def test_a_line_of_nothing_but_a_sum():
  got = solve('Ann has 3 pens at $2. How much?', '<<3*2=6>>', answer=6)
  assert got['thoughts'][1] == '3*2=6.'


def test_a_step_waits_for_what_it_speaks_of():
  # Its numbers are in the first sentence, its words in the second.
  got = solve('Tom has 8 red pens and 3 blue pens. His sister Maria took the '
              'red pens home. How many pens are in 2 such packs?',
              'With Maria there are 8+3=<<8+3=11>>11 pens.',
              'That is 11*2=<<11*2=22>>22 pens.', answer=22)
  assert got['thoughts'][0] == '8 red pens; 3 blue pens'
  assert got['thoughts'][1].startswith('With Maria')


def test_constants_that_units_imply():
  got = solve('He walks 3 miles a week. How far in a year?',
              'He walks 3*52=<<3*52=156>>156 miles.', answer=156)
  assert got['thoughts'] == ['3 miles a week',
                             'He walks 3*52=156 miles.']


@pytest.mark.parametrize('question,lines,answer,reason', [
    ('Ann has 3 pens. How many has she with her friends?',
     ['3*5=<<3*5=15>>15'], 15, 'an operand has no source'),
    ('Ann has 3 pens. Bob has 3 hats. Each pen costs $2. How much is it?',
     ['3*2=<<3*2=6>>6'], 6, 'a number is not certainly used'),
    ('Ann has 3 pens. She is 12. Each pen costs $2. How much is it?',
     ['3*2=<<3*2=6>>6'], 6, 'a number is not certainly used'),
    ('Ann has 3 pens. She gave the rest away. A pen costs $2. How much?',
     ['3*2=<<3*2=6>>6'], 6, 'a sentence may matter without a number'),
    ('Ann has 3 pens at $2. How much?', ['3*2=<<3*2=6>>6'], 7,
     'the last step does not give the answer'),
    ('Ann has 3 pens at $2. How much?', ['3*2=<<3*2=7>>7'], 7,
     'an annotation is wrong'),
    ('Ann has 3 pens at $2. How much?', ['<<3*=6>>6'], 6,
     'an annotation is malformed'),
    ('Ann has 3 pens at $2. How much?', ['<<(3*2=6>>6'], 6,
     'an annotation is malformed'),
    ('Ann has 3 pens at $2. How much?', ['<<3/0=6>>6'], 6,
     'an annotation is malformed'),
    ('Ann has 3 pens at $2. How much?', ['it is 6'], 6, 'no annotations'),
    ('Is it so? Yes.', ['<<3=3>>3'], 'yes', 'the answer is not a number'),
])
def test_left_out_with_a_reason(question, lines, answer, reason):
  with pytest.raises(Unexplained) as e:
    solve(question, *lines, answer=answer)
  assert e.value.reason == reason


def test_model_text_is_never_evaluated():
  with pytest.raises(Unexplained, match='malformed'):
    solve('Ann has 3 pens. How many?', '<<__import__("os")=3>>3', answer=3)


def test_the_command_and_what_it_writes(tmp_path, capsys):
  path, out = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  path.write_text('\n'.join(json.dumps(r) for r in (
      {'question': CLIPS, 'answer': CLIPS_SOLVED},
      {'question': 'Ann has 3. How many?', 'answer': 'So.\n#### 3'})))
  traces.main([f'--path={path}', f'--out={out}', '--report'])
  said = capsys.readouterr().out
  assert '1 of 2 problems have a trace (50.0%)' in said
  assert '1 no annotations' in said and 'in: Ann has 3.' in said
  e = Jsonl(out, {k: k for k in ('question', 'answer', 'thoughts', 'relevant',
                                 'deep')})[0]
  assert e.thoughts[0] == 'Natalia sold 48/2 = 24 clips in May.'
  assert (e.answer, e.deep) == ('72', 'So the answer is 72.')
  path.write_text('{"question": "x"}')
  with pytest.raises(SystemExit, match=":1: no field 'answer'"):
    traces.main([f'--path={path}'])


def test_real_problems(tmp_path):
  path = tmp_path / 'some.jsonl'
  with stored('gsm8k_train.jsonl').open(encoding='utf-8') as lines:
    path.write_text(''.join(line for _, line in zip(range(1000), lines)))
  made = [m for _, m in traces.convert(path, style='text')]
  kept = [m for m in made if not isinstance(m, Unexplained)]
  # 58 % over the whole file; far from it, something has come apart.
  assert 520 < len(kept) < 660
  for m in kept:
    said = [t for t in m['thoughts'] if t]
    assert said and len(m['thoughts']) == len(m['relevant'])
    assert all(t.strip() == t and '<<' not in t for t in said)


def test_the_input_is_never_the_output(tmp_path):
  path = tmp_path / 'gsm8k.jsonl'
  path.write_text('{"question": "2 + 3?", "answer": "<<2+3=5>>5\\n#### 5"}\n')
  before = path.read_bytes()
  other = tmp_path / 'x' / '..' / 'gsm8k.jsonl'
  (tmp_path / 'x').mkdir()
  for out in (path, other):
    with pytest.raises(SystemExit, match='is the file that --path reads'):
      traces.main([f'--path={path}', f'--out={out}'])
  assert path.read_bytes() == before
