"""Traces of PubMedQA: own words, the adapter's chunks, the problem's split."""

import collections
import json

import pytest

from adasr_jax.data import adapters
from adasr_jax.data.sources import Jsonl
from adasr_jax.tasks.pubmedqa import traces
from adasr_jax.tasks.pubmedqa.traces import Unexplained
from tests.small import DATA

AIM = 'It is not known whether aspirin lowers the pressure of the eye.'
METHOD = 'We gave 40 patients aspirin or nothing.'
FOUND = ('After a week (7 days), aspirin lowered the pressure [IOP (mean)] by '
         '20% (p<0.01).')
OTHER = 'Nobody fell ill.'
RECORD = {
    'QUESTION': 'Does aspirin lower the pressure of the eye?',
    'CONTEXTS': [f'{AIM} Glaucoma is common.', METHOD, f'{OTHER} {FOUND}'],
    'LABELS': ['BACKGROUND', 'METHODS', 'RESULTS'],
    'LONG_ANSWER': 'Aspirin lowers the pressure. More studies are needed.',
    'final_decision': 'yes'}
THOUGHT = 'After a week, aspirin lowered the pressure by 20%.'


def converted(tmp_path, *found):
  path = tmp_path / 'in.json'
  path.write_text(json.dumps({f'r{i}': r for i, r in enumerate(found)}))
  return [m for _, m in traces.convert(path)]


def but(**changed):
  return {**RECORD, **changed}


def test_a_problem_by_hand(tmp_path):
  got, = converted(tmp_path, RECORD)
  assert got == {
      'chunks': (RECORD['QUESTION'], f'\n{AIM}', ' Glaucoma is common.',
                 f'\n{METHOD}', f'\n{OTHER}', f' {FOUND}'),
      'question_chunk': 0, 'answer': 'yes',
      # The aim shares as much, but it is no result.
      'thoughts': [None] * 5 + [THOUGHT],
      'relevant': [True] + [False] * 4 + [True],
      'deep': 'Aspirin lowers the pressure.'}


def test_weights_and_stems():
  assert traces.stems('Lowers, lowered 2x p-values, DKK3') == {
      'lower', 'valu', 'dkk'}
  # Of four sentences two have 'eye', log 2 = 0.69; all have 'the', log 1.
  got = traces.weights(['The eye', 'the eyes', 'the ear', 'the the nose'])
  assert got['eye'] == pytest.approx(.693147, abs=1e-6) and got['the'] == 0


def test_clauses_are_own_words_up_to_a_number():
  long = ' '.join(f'w{i}' for i in range(traces.WORDS + 1))
  assert list(traces.clauses(f'So, {long}; yes.')) == [
      'So', long[:long.rindex(' ')], long[3:], 'yes.']
  assert list(traces.clauses(' One, two; three.')) == [
      'One', 'One, two', 'One, two; three.', 'two', 'two; three.', 'three.']
  assert list(traces.clauses('Low(er) p = .05 [a (b)], see.')) == [
      'Low p = .05', 'Low p = .05, see.', 'see.']
  assert list(traces.clauses('(Nothing but this)')) == ['']


def test_the_most_evidence_is_that_which_shares_most(tmp_path):
  other = ['Aspirin lowered something.', 'Aspirin lowered a pressure.',
           'It lowered the pressure.', 'The pressure, with aspirin, lowers.']
  got, = converted(tmp_path, but(
      QUESTION='Is it so?', CONTEXTS=[' '.join(other)], LABELS=['Findings']))
  assert sum(t is not None for t in got['thoughts']) == traces.MOST
  assert got['thoughts'][-1] == other[-1]


@pytest.mark.parametrize('changed,reason', [
    ({'LABELS': ['A', 'B', 'C']}, 'no section of results'),
    ({'LONG_ANSWER': 'Bananas ripen quickly.'},
     'no result shares enough with the conclusion'),
    ({'LONG_ANSWER': 'pressure ' * 49},
     'its conclusion has more than 48 words'),
    ({'LONG_ANSWER': '<EOT> Aspirin lowers it.'},
     'its text spells a control token'),
    ({'QUESTION': 'Is it </think>?'}, 'its text spells a control token'),
])
def test_left_out_with_a_reason(tmp_path, changed, reason):
  kept, got = converted(tmp_path, RECORD, but(**changed))
  assert kept['deep'] and isinstance(got, Unexplained) and str(got) == reason


@pytest.mark.parametrize('wrong,says', [
    *((but(**{name: None}), rf"record 'r1': '{name}' is null, not ")
      for name in ('QUESTION', 'CONTEXTS', 'LABELS', 'LONG_ANSWER',
                   'final_decision')),
    *(({k: v for k, v in RECORD.items() if k != name},
       f"record 'r1': no field '{name}'") for name in RECORD),
    (but(LABELS=['RESULTS']),
     "record 'r1': 'LABELS' has 1 entries for 3 paragraphs"),
    (but(final_decision='perhaps'), "record 'r1': 'final_decision' is"),
])
def test_errors_name_the_record_and_the_field(tmp_path, wrong, says):
  with pytest.raises(ValueError, match=rf'in\.json: {says}') as e:
    converted(tmp_path, RECORD, wrong)
  assert '\n' not in str(e.value)


def test_the_command_and_what_it_writes(tmp_path, capsys):
  path, out = tmp_path / 'in.json', tmp_path / 'out.jsonl'
  path.write_text(json.dumps({'a': RECORD, 'b': but(LABELS=['', '', ''])}))
  traces.main([f'--path={path}', f'--out={out}'])
  assert capsys.readouterr().err == (
      '1 of 2 problems have a trace (50.0%)\n'
      '     1 no section of results\n'
      '4 of 5 sentences are skipped (80.0%)\n'
      'evidence sentences per problem: 1 in 1\n'
      'words of a thought: 9 to 9, median 9\n')
  before = out.read_bytes()
  traces.main([f'--path={path}', f'--out={out}'])
  assert out.read_bytes() == before
  with pytest.raises(SystemExit, match='is the file that --path reads'):
    traces.main([f'--path={path}', f'--out={path}'])
  path.write_text('{"a": {')
  with pytest.raises(SystemExit, match=r'error: .*in\.json:1: '):
    traces.main([f'--path={path}', f'--out={out}'])
  assert out.read_bytes() == before  # an error writes nothing


def test_real_problems(tmp_path):
  stored = DATA / 'pubmedqa' / 'ori_pqal.json'
  if not stored.is_file():
    pytest.skip('no pubmedqa/ori_pqal.json')
  path, out = tmp_path / 'some.json', tmp_path / 'out.jsonl'
  path.write_text(json.dumps(dict(
      list(json.loads(stored.read_text(encoding='utf-8')).items())[:400])))
  traces.main([f'--path={path}', f'--out={out}'])
  problems = Jsonl(path, format='pubmedqa', split='all')
  made = Jsonl(out, format='streaming_reasoning', split='all')
  for split in ('train', 'validation', 'test'):
    of_split = {e.id: e for e in problems.part(split)}
    for e in made.part(split):  # the same chunks, in the same split
      assert (e.chunks, e.answer, e.question_chunk) == (
          of_split[e.id].chunks, of_split[e.id].answer, 0)
  kept = made.part('all')
  # 79 % over the whole file; far from it, something has come apart.
  assert 280 < len(kept) < 350
  for e in kept:
    assert e.thoughts[0] is None and any(e.thoughts) and e.deep
    for chunk, thought in zip(e.chunks, e.thoughts):
      if thought is not None:
        assert 0 < len(thought.split()) <= traces.WORDS
        own = collections.Counter(_words(chunk))
        assert not collections.Counter(_words(thought)) - own, thought
  assert set(adapters.PUBMEDQA) == {e.answer for e in kept}


def _words(said):
  """Its words without what is around them; brackets may touch a word."""
  for mark in '()[],;:':
    said = said.replace(mark, ' ')
  return [w.strip('.') for w in said.split()]
