"""The verifier, compared with a brute-force checker that shares no code."""

import fractions
import itertools
import random
import re

import pytest

from adasr_jax.tasks import countdown
from adasr_jax.tasks.countdown import solve

LARGEST = 99
OPERATIONS = {'+': fractions.Fraction.__add__, '-': fractions.Fraction.__sub__,
              '*': fractions.Fraction.__mul__,
              '/': fractions.Fraction.__truediv__}
_STEP = r'(0|[1-9]\d*) ([-+*/]) (0|[1-9]\d*) = (0|[1-9]\d*)'
_ANSWER = re.compile(f'{_STEP}( , {_STEP})*', re.ASCII)


def brute_force(text, numbers, target):
  """Tries every pair of what is there for every step, in exact fractions."""
  if not _ANSWER.fullmatch(text.strip(' ')):
    return False
  said = [m.groups() for m in re.finditer(_STEP, text, re.ASCII)]

  def search(there, i):
    if i == len(said):
      return list(there) == [target]
    a, op, b, result = said[i]
    for j, k in itertools.permutations(range(len(there)), 2):
      if there[j] != int(a) or there[k] != int(b):
        continue
      if op == '/' and there[k] == 0:
        continue
      value = OPERATIONS[op](fractions.Fraction(there[j]),
                             fractions.Fraction(there[k]))
      if (value.denominator != 1 or not 0 <= value <= LARGEST
          or value != int(result)):
        continue
      rest = [x for n, x in enumerate(there) if n not in (j, k)]
      if search([*rest, int(value)], i + 1):
        return True
    return False
  return search(list(numbers), 0)


def random_path(r, numbers):
  """Right steps from the numbers to anything; some are too large."""
  state, path, largest = tuple(numbers), [], r.choice((LARGEST, 400))
  while len(state) > 1 and (after := solve.steps(state, largest)):
    step, state = r.choice(after)
    path.append(step)
  return path


def mutate(r, text, numbers):
  """The text with one small change, of words or of characters."""
  words = text.split(' ')
  i, j = r.randrange(len(words)), r.randrange(len(words))
  kind = r.randrange(11)
  if kind == 0:
    words[i] = str(r.choice([*numbers, r.randrange(120)]))
  elif kind == 1:
    words[i] = r.choice('+-*/=,')
  elif kind == 2:
    words[i], words[j] = words[j], words[i]
  elif kind == 3:
    del words[i]
  elif kind == 4:
    words.insert(i, words[j])
  elif kind == 5:  # operands of a step change places
    s = 6 * r.randrange((len(words) + 1) // 6 or 1)
    if s + 2 < len(words):
      words[s], words[s + 2] = words[s + 2], words[s]
  elif kind == 6:  # steps change places
    parts = text.split(' , ')
    r.shuffle(parts)
    return ' , '.join(parts)
  elif kind == 7:
    words[i] = r.choice(['-', '+', '0', '', ' ', '\n', '.']) + words[i]
  elif kind == 8:
    words[i] += r.choice(['0', '.0', ' ', '\t', '\u0660', '\u00b2', ' ,', ')'])
  elif kind == 9:  # a right step of numbers that may be used already
    there = [*numbers, *(int(w) for w in words if w.isascii() and w.isdigit())]
    a, b = sorted((r.choice(there), r.choice(there)), reverse=True)
    op = r.choice('+-*/')
    parts = text.split(' , ')
    parts[r.randrange(len(parts))] = f'{a} {op} {b} = {solve.apply(a, op, b)}'
    return ' , '.join(parts)
  else:
    parts = text.split(' , ')
    parts.insert(r.randrange(len(parts) + 1), r.choice(parts))
    return ' , '.join(parts)
  return ' '.join(words)


def disagreements(n, seed):
  """Answers on which the two checkers differ; how many of n are right."""
  r, wrong, right = random.Random(seed), [], 0
  while n:
    k = r.randint(2, 4)
    numbers = tuple(r.randint(0, 20) for _ in range(k))
    path = random_path(r, numbers)
    target = path[-1].result if path else numbers[0]
    if r.random() < 0.2:
      target = r.randrange(50)
    text = countdown.spell(path)
    for _ in range(min(n, 8)):
      said = countdown.right(text, numbers, target, LARGEST)
      right += said
      if said != brute_force(text, numbers, target):
        wrong.append((text, numbers, target))
      n -= 1
      # From the right answer again and again, or on from the last change.
      text = mutate(r, text if r.random() < 0.5 else countdown.spell(path),
                    numbers)
  return wrong, right


def test_fuzz_against_brute_force():
  wrong, right = disagreements(10_000, seed=0)
  assert not wrong, wrong[:5]
  assert 1000 < right < 5000  # both outcomes are there


def test_a_number_is_used_once():
  # The verifier of Stream of Search+ accepts this (four is there once).
  said = '4 * 4 = 16 , 16 * 4 = 64'
  assert not countdown.right(said, (4, 3, 7, 12), 64, LARGEST)
  assert not countdown.right(said, (4, 4, 4, 3), 64, LARGEST)  # three unused
  assert countdown.right(said, (4, 4, 4), 64, LARGEST)
  assert not countdown.right('4 + 4 = 8', (4, 8), 8, LARGEST)


@pytest.mark.parametrize('text,right', [
    ('9 / 3 = 3 , 4 * 3 = 12', True),
    ('9 / 3 = 3 , 3 * 4 = 12', True),
    (' 9 / 3 = 3 , 3 * 4 = 12 ', True),
    ('9 / 3 = 3 , 3 * 4 = 13', False),
    ('9 / 3 = 3', False),
    ('', False), ('none', False), (',', False),
    ('9 / 3 = 3 , 4 * 3 = 12 ,', False),
    ('9 / 3 = 3, 4 * 3 = 12', False),
    ('09 / 3 = 3 , 4 * 3 = 12', False),
    ('9 / 3 = 3.0 , 4 * 3 = 12', False),
    ('9 // 3 = 3 , 4 * 3 = 12', False),
    ('9 / 3 == 3 , 4 * 3 = 12', False),
    ('9 / 3 = 3 , 4 * 3 = 1\u0662', False),
    ('9 / 3 = 3 , 4 * 3 = ' + '1' * 2000, False),
    ('3 * 4 = 12 , 9 + 12 = 21 , 21 - 9 = 12', False),
    ('__import__("os").abort() / 3 = 3 , 4 * 3 = 12', False)])
def test_answers(text, right):
  assert countdown.right(text, (3, 9, 4), 12, LARGEST) == right
  assert countdown.agrees(text, '4 * 9 = 36 , 36 / 3 = 12', LARGEST) == right


@pytest.mark.parametrize('text,numbers,target', [
    ('3 - 9 = -6', (3, 9), -6),  # negative
    ('9 - 3 = 6', (3, 9), 7),  # not the target
    ('9 / 2 = 4', (2, 9), 4),  # not exact
    ('9 / 0 = 0', (0, 9), 0),  # by zero
    ('50 + 50 = 100', (50, 50), 100)])  # above the largest
def test_what_no_step_may_do(text, numbers, target):
  assert not countdown.right(text, numbers, target, LARGEST)


def test_zero_is_a_number():
  assert countdown.right('9 - 9 = 0 , 0 / 4 = 0 , 0 + 12 = 12',
                         (9, 9, 4, 12), 12, LARGEST)


def test_a_reference_that_is_not_right_is_refused():
  for reference in ('none', '4 * 9 = 35', '4 * 9 = 36 , 2 + 3 = 5'):
    with pytest.raises(ValueError, match='reference='):
      countdown.agrees('4 * 9 = 36', reference, LARGEST)


def test_agrees_knows_the_problem():
  # An intermediate result equal to a given number must not hide that number.
  reference = '3 + 4 = 7 , 7 * 2 = 14 , 14 - 7 = 7'
  assert countdown.agrees(reference, reference, LARGEST)
  assert countdown.agrees('4 - 3 = 1 , 2 - 1 = 1 , 7 * 1 = 7', reference,
                          LARGEST)
  assert not countdown.agrees('4 + 3 = 7 , 7 + 7 = 14 , 14 / 2 = 7 , 7 - 0 = 7',
                              reference, LARGEST)
  assert countdown.agrees('7 - 7 = 0', '7 - 7 = 0', LARGEST)
  assert not countdown.agrees('3 + 4 = 7', reference, LARGEST)
  assert not countdown.agrees('none', reference, LARGEST)


def test_spell_and_parse_are_inverse():
  r = random.Random(1)
  for _ in range(200):
    path = tuple(random_path(r, [r.randint(0, 20) for _ in range(4)]))
    assert countdown.parse(countdown.spell(path)) == path


@pytest.mark.parametrize('steps,can', [
    ('9 / 3 = 3', True), ('9 / 3 = 3 , 3 * 4 = 12', True),
    ('9 / 3 = 3 , 3 * 4 = 12 , 12 + 5 = 17', True),  # done
    ('9 / 3 = 3 , 3 * 4 = 12 , 12 - 5 = 7', False),  # done, wrongly
    ('4 + 5 = 9', False),  # of 3 9 9
    ('9 / 3 = 3 , 3 + 4 = 7', False),  # of 5 7
    ('9 / 3 = 4', False), ('8 / 2 = 4', False),  # wrong, not given
    ('no', False), ('', False)])
def test_steps_that_can_be_completed(steps, can):
  # 17 from 3 4 5 9; what is left, by hand.
  reference = '9 / 3 = 3 , 3 * 4 = 12 , 12 + 5 = 17'
  assert countdown.answers.solvable_after(steps, reference, 99) == can
