"""The verifier, compared with a brute-force checker that shares no code."""

import random

import pytest

from adasr_jax.tasks import countdown
from experiments.apr.fuzz import LARGEST, disagreements, random_path


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


def test_who_found_nothing_does_not_vote():
  same = countdown.ENTRY.same
  assert same(' 3 + 4 = 7 , 7 * 5 = 35') == '3 + 4 = 7 , 7 * 5 = 35'
  assert same('none') == same('') == same('35') == ''


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
