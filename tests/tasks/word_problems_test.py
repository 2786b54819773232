"""The embedded task, compared with an interpreter that only reads the text."""

import dataclasses
import functools
import re

import pytest

from adasr_jax.tasks import word_problems
from adasr_jax.tasks.word_problems import Difficulty, Task, Teacher

PRESETS = {'easy': word_problems.EASY, 'default': word_problems.DEFAULT,
           'hard': word_problems.HARD, 'ood': word_problems.OOD}
SLOPPY = Teacher(
    skip=tuple((k, 0.3) for k in word_problems.RELEVANT), slip=0.3, restate=0.5,
    dwell=tuple((k, 0.5) for k in word_problems.DISTRACTORS), ramble=0.5)
TEACHERS = {'perfect': word_problems.PERFECT, 'sloppy': SLOPPY,
            'undisciplined': word_problems.UNDISCIPLINED}


@functools.cache
def draw(n=300, split='train', **kwargs):
  task = Task(**kwargs)
  return [task.example(split, i) for i in range(n)]


def split_text(example):
  """The question, and the other sentences."""
  lines = [c.strip() for c in example.chunks]
  if example.question_chunk >= 0:
    return lines.pop(example.question_chunk), lines
  return example.preamble, lines


def stem(noun):
  return noun.rstrip('es')  # apple and apples, box and boxes


def interpret(question, lines):
  """The answer and which sentences matter, from nothing but the text."""
  state, known, value = [], {}, None
  ends = re.fullmatch(r'how many (\w+) does (\w+) have in the end \?', question)
  chain = re.fullmatch(
      r'how many (\w+) does (\w+) have compared with others \?', question)
  rates = re.fullmatch(
      r'how many (\w+) (?:are|do the (\w+)) in the (\w+) of (\w+)'
      r'(?: cost)? \?', question)
  for line in lines:
    words = line.split()
    assert words.pop() == '.'
    used = False
    if chain:
      noun = stem(chain[1])
      if m := re.fullmatch(r'(\w+) has (\d+) (\w+)', ' '.join(words)):
        if used := stem(m[3]) == noun:
          known[m[1]] = int(m[2])
      elif m := re.fullmatch(r'(\w+) has (\d+) (more|fewer) (\w+) than (\w+)',
                             ' '.join(words)):
        if used := stem(m[4]) == noun:
          change = int(m[2]) if m[3] == 'more' else -int(m[2])
          known[m[1]] = known.get(m[5], 0) + change
      value = known.get(chain[2], 0)
    else:
      who, noun = (ends[2], ends[1]) if ends else (rates[4], rates[3])
      value = value or 0
      if words[0] == who and stem(words[3]) == stem(noun):
        n, used = int(words[2]), True
        if words[1] == 'has':
          value = n
        elif words[1] in ('buys', 'finds', 'gets'):
          value += n
        else:
          assert words[1] in ('loses', 'drops', 'sells', 'breaks', 'gives')
          value -= n
      elif words[-2:] == ['to', who] and stem(words[3]) == stem(noun):
        value, used = value + int(words[2]), True
      elif rates and words[0] == 'each':
        links = {(stem(rates[3]), 'holds', stem(rates[2] or rates[1]))}
        if rates[2]:
          links.add((stem(rates[2]), 'costs', 'coin'))
        if used := (stem(words[1]), words[2], stem(words[4])) in links:
          value *= int(words[3])
    state.append(used)
  return value, state


def test_random_access_is_pure():
  task = Task(seed=5, teacher=SLOPPY)
  forward = [task.example('test', i) for i in range(20)]
  for i in reversed(range(20)):
    assert Task(seed=5, teacher=SLOPPY).example('test', i) == forward[i]
  assert len(set(map(str, forward))) == 20


def test_splits_are_disjoint():
  ids, texts = {}, {}
  # Equal difficulties: nothing but the hash can keep the splits apart.
  easy = Difficulty(2, 2, 0, 0, question='mixed')
  for split in word_problems.SPLITS:
    examples = draw(2000, split, difficulty=easy, ood_difficulty=easy, seed=1)
    content = [split_text(e) for e in examples]
    texts[split] = {(q, *lines) for q, lines in content}
    ids[split] = {e.id for e in examples}
    for e, (question, lines) in zip(examples, content):
      full = word_problems.content_hash(question, lines)
      assert word_problems.split_of(full) == split and e.id == full % 2**32
  for a in word_problems.SPLITS:
    for b in word_problems.SPLITS:
      if a != b:
        assert not texts[a] & texts[b], (a, b)
        assert not ids[a] & ids[b], (a, b)
  residues = [r for rs in word_problems.SPLITS.values() for r in rs]
  assert sorted(residues) == list(range(10))


def test_hash_is_fixed():
  # It depends only on the text, not on the process or the platform.
  assert word_problems.content_hash('how many ?', ['a .', 'b .']) == (
      17415935884857601500)


def test_seeds_differ():
  a, b = ({str(split_text(e)) for e in draw(200, seed=s)} for s in (0, 1))
  assert not a & b


def test_teacher_does_not_change_problems():
  strip = lambda e: dataclasses.replace(e, thoughts=None, deep=None,
                                        trace_answer=None)
  for split in ('train', 'ood'):
    sets = [[strip(e) for e in draw(100, split, teacher=t)]
            for t in TEACHERS.values()]
    assert all(s == sets[0] for s in sets)


@pytest.mark.parametrize('question', word_problems.QUESTIONS)
@pytest.mark.parametrize('preset', PRESETS)
def test_answers_and_relevance(preset, question):
  d = dataclasses.replace(PRESETS[preset], question=question)
  places = set()
  for e in draw(150, difficulty=d, seed=2):
    asked, lines = split_text(e)
    flags, kinds, at = list(e.relevant), list(e.kinds), e.question_chunk
    places.add('first' if at < 0 else
               'last' if at == len(lines) else 'middle')
    assert bool(e.preamble) == (at < 0)
    if at >= 0:
      assert flags.pop(at) and kinds.pop(at) == 'question'
      assert at > 0
    value, used = interpret(asked, lines)
    assert (str(value), used) == (e.answer, flags), e
    kept = [line for line, flag in zip(lines, flags) if flag]
    assert interpret(asked, kept)[0] == value
    for i, kind in enumerate(kinds):
      assert flags[i] == (kind in word_problems.RELEVANT)
      if flags[i] and kind != 'start':
        assert interpret(asked, lines[:i] + lines[i + 1:])[0] != value, e
    steps = sum(flags)
    assert d.min_steps <= steps <= d.max_steps
    assert d.min_distractors <= len(lines) - steps <= d.max_distractors
  assert places == ({'first', 'last', 'middle'} if question == 'mixed' else
                    {question})


def test_chunks_are_the_text():
  for e in draw(100, difficulty=Difficulty(question='middle')):
    text = ''.join(e.chunks)
    assert text == ' '.join(text.split())
    assert all(c[0] == ' ' and c[-1] in '.?' for c in e.chunks[1:])


def follow(e):
  """Values in order, checking each thought of a trace by stale semantics."""
  values = []
  for chunk, thought, kind in zip(e.chunks, e.thoughts, e.kinds):
    text = chunk.strip()[:-2]
    if thought is None:
      continue
    if kind == 'question':
      assert re.fullmatch(r'asked (\w+) (\w+)', thought)
    elif kind in word_problems.DISTRACTORS:
      still = f' so still {values[-1]}' if values else ''
      number = re.search(r'(\d+) (?:more |fewer )?(\w+)', text)
      gist = text if kind == 'scene' else ' '.join(
          (text.split()[kind == 'rate'], *number.groups()))
      assert thought in (text + still, gist)
    else:
      step = thought.removeprefix(f'{text} so ').split()
      n = int(re.search(r'\d+', text)[0])
      if kind == 'start':
        assert step == [str(n)]
        values.append(n)
        continue
      before, op, number, equals, after = step
      assert (int(before), int(number), equals) == (
          values[-1] if values else 0, n, '=')
      assert op == {'loss': '-', 'transfer': '-', 'fewer': '-',
                    'unit': '*'}.get(kind, '+')
      right = max(0, {'+': int(before) + n, '-': int(before) - n,
                      '*': int(before) * n}[op])
      assert int(after) in (right, right - 1 if right else 1)
      values.append(int(after))
  last = values[-1] if values else 0
  assert e.trace_answer == str(last)
  recap = ' then '.join(map(str, values))
  assert e.deep in (f'so {last}', f'first {recap} so {last}')
  return values


@pytest.mark.parametrize('teacher', TEACHERS)
def test_traces_follow_the_running_value(teacher):
  d = Difficulty(question='mixed')
  for e in draw(difficulty=d, teacher=TEACHERS[teacher], seed=3):
    follow(e)
    if teacher == 'perfect':
      assert e.trace_answer == e.answer and e.deep == f'so {e.answer}'
      assert [t is not None for t in e.thoughts] == list(e.relevant)
    if teacher == 'undisciplined':
      # Without slips the trace is the problem without what it skipped.
      question, lines = split_text(e)
      kept = [t is not None or not r for t, r in zip(e.thoughts, e.relevant)]
      if e.question_chunk >= 0:
        kept.pop(e.question_chunk)
      if 'compared' not in question:
        assert e.trace_answer == str(
            interpret(question, [x for x, k in zip(lines, kept) if k])[0])
      assert (e.trace_answer == e.answer) == all(kept)


def test_slips_and_skips_happen():
  wrong = lambda t: sum(e.trace_answer != e.answer for e in draw(teacher=t))
  assert wrong(word_problems.PERFECT) == 0
  assert wrong(Teacher(slip=0.5)) > 150
  assert wrong(Teacher(skip=(('gain', 1.0),))) > 100


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('teacher', TEACHERS)
def test_words_bounds_and_tokens(preset, teacher):
  d = dataclasses.replace(PRESETS[preset], question='mixed')
  tokenizer = word_problems.build_tokenizer()
  words = word_problems.vocabulary()
  for e in draw(100, difficulty=d, teacher=TEACHERS[teacher], seed=4):
    thoughts = [t for t in e.thoughts if t is not None]
    assert all(len(t.split()) <= 13 for t in thoughts)
    assert len(e.deep.split()) <= 2 * d.max_steps + 2
    text = ' '.join([e.preamble, ''.join(e.chunks), *thoughts, e.deep,
                     e.answer, e.trace_answer]).strip()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text and min(ids) >= len(
        word_problems.CONTROL)
    assert set(text.split()) <= set(words)
    assert all(0 <= int(w) <= d.max_number for w in text.split()
               if w.isdigit())


def test_tokenizer():
  tokenizer = word_problems.build_tokenizer()
  words = word_problems.vocabulary()
  assert len(set(words)) == len(words) <= 200
  assert [tokenizer.token_to_id(w)
          for w in (*word_problems.CONTROL, *words)] == (
      list(range(tokenizer.get_vocab_size())))
  assert tokenizer.encode('7 <EOT> <skip>').ids[1:] == [3, 4]
  assert tokenizer.decode([3, 4, 6]) == '0'
  with pytest.raises(Exception, match='WordLevel'):
    tokenizer.encode('zebra')


def test_calibration():
  risky = {k for k, p in word_problems.UNDISCIPLINED.skip if p > 0.5}
  def tokens(e):
    thoughts = sum(1 if t is None else len(t.split()) + 1 for t in e.thoughts)
    return thoughts + len(e.deep.split()) + 1 + 2
  mean = lambda teacher: sum(map(tokens, draw(3000, teacher=teacher))) / 3000
  examples = draw(3000, teacher=word_problems.UNDISCIPLINED)
  safe = sum(not risky & set(e.kinds) for e in examples) / 3000
  right = sum(e.trace_answer == e.answer for e in examples) / 3000
  assert 0.49 < safe < 0.55
  assert 0.65 < right < 0.71
  undisciplined = mean(word_problems.UNDISCIPLINED)
  assert 44 < undisciplined < 48
  assert mean(word_problems.PERFECT) < 0.6 * undisciplined


@pytest.mark.parametrize('make, named', [
    (lambda: Difficulty(min_steps=1), 'min_steps=1'),
    (lambda: Difficulty(min_steps=6), 'min_steps=6, max_steps=5'),
    (lambda: Difficulty(max_steps=13), 'max_steps=13'),
    (lambda: Difficulty(min_distractors=-1), 'min_distractors=-1'),
    (lambda: Difficulty(max_distractors=0), 'max_distractors=0'),
    (lambda: Difficulty(max_number=100), 'max_number=100'),
    (lambda: Difficulty(max_number=19), 'max_number=19'),
    (lambda: Difficulty(question='late'), "question='late'"),
    (lambda: Difficulty(families=('chess',)), 'chess'),
    (lambda: Difficulty(families=()), r'families=\(\)'),
    (lambda: Teacher(skip=(('scene', 0.5),)), "skip: kind 'scene'"),
    (lambda: Teacher(dwell=(('loss', 0.5),)), "dwell: kind 'loss'"),
    (lambda: Teacher(skip=(('loss', 1.5),)), 'loss=1.5'),
    (lambda: Teacher(restate=-0.1), 'restate=-0.1'),
    (lambda: Task(seed=-1), 'seed=-1'),
    (lambda: Task().example('dev', 0), "split='dev'"),
    (lambda: Task().example('train', -1), 'index=-1'),
])
def test_bad_arguments(make, named):
  with pytest.raises(ValueError, match=named):
    make()


@pytest.mark.parametrize('family', word_problems.FAMILIES)
@pytest.mark.parametrize('max_number', [16, 99])
def test_tight_and_wide_numbers(family, max_number):
  d = Difficulty(2, 4 if max_number == 16 else 12, 0, 4, max_number,
                 families=(family,))
  for e in draw(200, difficulty=d, teacher=SLOPPY):
    assert interpret(*split_text(e)) == (int(e.answer), list(e.relevant))
    text = ' '.join([*filter(None, e.thoughts), *e.chunks])
    assert all(int(w) <= max_number for w in text.split() if w.isdigit())
