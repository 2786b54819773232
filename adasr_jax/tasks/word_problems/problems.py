"""Problems: their size, three families of sentences, splits by content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import NamedTuple


from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.tasks import draws
from adasr_jax.tasks.word_problems.vocabulary import (
    COIN, CONTAINERS, FEEDS, ITEMS, NAMES, SCENES, VERBS)

FAMILIES = ('running', 'comparison', 'units')
QUESTIONS = ('first', 'last', 'middle', 'mixed')
RELEVANT = ('start', 'gain', 'loss', 'transfer', 'more', 'fewer', 'unit')
DISTRACTORS = ('scene', 'entity', 'object', 'rate')
# The residues (mod 10) of the content hash that belong to each split.
SPLITS = {'train': (3, 4, 5, 6, 7, 8, 9), 'validation': (1,), 'test': (0,),
          'ood': (2,)}

_LOSS, _TRANSFER = 0.25, 0.25  # shares of the steps that change a count
_CHANGE = 9  # the most that one step adds or takes away


@dataclasses.dataclass(frozen=True)
class Difficulty:
  """The size of the problems.

  Attributes:
    min_steps, max_steps: Relevant sentences (the question not counted).
    min_distractors, max_distractors: Irrelevant sentences.
    max_number: Largest number, intermediate results included; at most 99.
    question: Its place: 'first' (in the preamble), 'last', 'middle', or
      'mixed', any of the three.
    families: The families that are drawn, all equally often.
  """
  min_steps: int = option(3, least=2, most=len(NAMES))
  max_steps: int = option(5, least=2, most=len(NAMES))
  min_distractors: int = option(1, least=0, most=1000)
  max_distractors: int = option(3, least=0, most=1000)
  max_number: int = option(40, least=16, most=99)
  question: str = option('first', choices=QUESTIONS)
  families: tuple[str, ...] = option(FAMILIES, choices=FAMILIES, some=True)

  def __post_init__(self):
    options.check(self)
    if not 2 <= self.min_steps <= self.max_steps <= len(NAMES):
      raise ValueError(
          f'min_steps={self.min_steps}, max_steps={self.max_steps}: need 2 <= '
          f'min_steps <= max_steps <= {len(NAMES)}')
    if not 0 <= self.min_distractors <= self.max_distractors:
      raise ValueError(
          f'min_distractors={self.min_distractors}, max_distractors='
          f'{self.max_distractors}: need 0 <= min_distractors <= '
          'max_distractors')
    # Every step must have room for a change by 1, also if units multiply it.
    if not max(16, 4 * self.max_steps) <= self.max_number <= 99:
      raise ValueError(
          f'max_number={self.max_number} is outside '
          f'{max(16, 4 * self.max_steps)}..99 for max_steps={self.max_steps}')


EASY = Difficulty(2, 3, 0, 1)
DEFAULT = Difficulty()
HARD = Difficulty(5, 7, 3, 5)
OOD = Difficulty(8, 10, 5, 8)


class Sentence(NamedTuple):
  """One sentence; `gist` is its short form in a thought.

  `op` is '=', '+', '-' or '*'; '' marks a distractor.
  """
  kind: str
  text: str
  gist: str
  op: str = ''
  number: int = 0


class Problem(NamedTuple):
  """What a family makes: see candidate()."""
  question: str
  asked: str
  relevant: list[Sentence]
  distractors: Sequence[Callable[[], Sentence]]


def _count(n, noun):
  return f'{n} {noun[n != 1]}'


def _event(draw, kind, who, n, noun, *but):
  """'tom buys 3 apples'; nothing is given to anyone in `but`."""
  text = f'{who} {draw.pick(VERBS[kind])} {_count(n, noun)}'
  if kind == 'transfer':
    text += f' to {draw.pick(NAMES, who, *but)}'
  return text


def _scene(draw):
  text = draw.pick(SCENES)
  return Sentence('scene', text, text)


def _noise(draw, kind, who, noun, *but):
  """A distractor that reads like a step of the running family."""
  n = draw.between(1, _CHANGE)
  text = _event(draw, draw.pick(tuple(VERBS)), who, n, noun, *but)
  return Sentence(kind, text, f'{who} {_count(n, noun)}')


def _changes(draw, steps, cap, minus):
  """Yields (op, number): a start and the changes after it.

  The value stays in 1..cap, and below cap even if no loss were counted, so a
  teacher who skips losses never leaves the range. `minus` is the probability
  of a loss.
  """
  value = number = draw.between(2, cap // 2)
  room = cap - value
  yield '=', number
  for left in range(steps - 1, 0, -1):
    if draw.coin(minus) and value > 1:
      number = draw.between(1, min(_CHANGE, value - 1))
      value -= number
      yield '-', number
    else:
      number = draw.between(1, min(_CHANGE, room // left))
      value, room = value + number, room - number
      yield '+', number


def _holdings(draw, who, noun, steps, cap):
  """The sentences that say how many of `noun` `who` has in the end."""
  out = []
  for op, n in _changes(draw, steps, cap, _LOSS + _TRANSFER):
    kind = {'=': 'start', '+': 'gain'}.get(op) or (
        'loss' if draw.coin(_LOSS / (_LOSS + _TRANSFER)) else 'transfer')
    out.append(Sentence(kind, _event(draw, kind, who, n, noun),
                         f'{who} {_count(n, noun)}', op, n))
  return out


def _running(draw, steps, cap):
  who, noun = draw.pick(NAMES), draw.pick(ITEMS)
  return Problem(
      f'how many {noun[1]} does {who} have in the end ?', f'{who} {noun[1]}',
      _holdings(draw, who, noun, steps, cap),
      (lambda: _scene(draw),
       lambda: _noise(draw, 'entity', draw.pick(NAMES, who),
                      draw.pick((noun, draw.pick(ITEMS))), who),
       lambda: _noise(draw, 'object', who, draw.pick(ITEMS, noun))))


def _compare(draw, kind, op, n, noun, who, than):
  gist = f'{who} {_count(n, noun)}'
  if op == '=':
    return Sentence(kind or 'start', f'{who} has {_count(n, noun)}', gist,
                     '' if kind else op, n)
  word = 'more' if op == '+' else 'fewer'
  text = f'{who} has {n} {word} {noun[n != 1]} than {than}'
  return Sentence(kind or word, text, gist, '' if kind else op, n)


def _comparison(draw, steps, cap):
  noun, people = draw.pick(ITEMS), []
  for _ in range(steps):
    people.append(draw.pick(NAMES, *people))
  def other():
    who = draw.pick(NAMES)
    return _compare(draw, 'object', draw.pick('=+-'), draw.between(1, _CHANGE),
                    draw.pick(ITEMS, noun), who, draw.pick(NAMES, who))
  return Problem(
      f'how many {noun[1]} does {people[-1]} have compared with others ?',
      f'{people[-1]} {noun[1]}',
      [_compare(draw, '', op, n, noun, who, than) for (op, n), who, than in
       zip(_changes(draw, steps, cap, _LOSS), people, [None, *people])],
      (lambda: _scene(draw), other))


def _rate(kind, subject, verb, n, noun):
  return Sentence(kind, f'each {subject} {verb} {_count(n, noun)}',
                   f'{subject} {_count(n, noun)}',
                   '*' if kind == 'unit' else '', n)


def _units(draw, steps, cap):
  who = draw.pick(NAMES)
  box, noun = draw.pick(CONTAINERS), draw.pick(ITEMS)
  # The largest product of the units if `n` steps count boxes.
  most = lambda n: cap // max(4, 2 * n)
  costs = steps > 2 and most(steps - 2) >= 4 and draw.coin(0.5)
  count = steps - 1 - costs
  unit = draw.between(2, min(_CHANGE, most(count) // (1 + costs)))
  units = [_rate('unit', box[0], 'holds', unit, noun)]
  question, asked = f'are in the {box[1]} of {who} ?', noun
  if costs:
    price = draw.between(2, min(_CHANGE, most(count) // unit))
    units.append(_rate('unit', noun[0], 'costs', price, COIN))
    question, asked = f'do the {noun[1]} in the {box[1]} of {who} cost ?', COIN
    unit *= price
  def rate():
    n = draw.between(1, _CHANGE)
    if draw.coin(0.5):
      animal, food = draw.pick(FEEDS)
      return _rate('rate', animal, 'eats', n, food)
    return _rate('rate', draw.pick(CONTAINERS, box)[0], 'holds', n, noun)
  return Problem(
      f'how many {asked[1]} {question}', f'{who} {asked[1]}',
      _holdings(draw, who, box, count, cap // unit) + units,
      (lambda: _scene(draw),
       lambda: _noise(draw, 'entity', draw.pick(NAMES, who), box, who),
       lambda: _noise(draw, 'object', who, draw.pick(ITEMS, noun)), rate))


_MAKE = {'running': _running, 'comparison': _comparison, 'units': _units}


def candidate(draw, difficulty):
  """A problem of any split.

  Returns:
    The question; its gist ('tom apples'); its place among the sentences, -1 =
    in the preamble; the sentences.
  """
  d = difficulty
  steps = draw.between(d.min_steps, d.max_steps)
  extra = draw.between(d.min_distractors, d.max_distractors)
  make = _MAKE[draw.pick(d.families)]
  question, asked, relevant, distractors = make(draw, steps, d.max_number)
  sentences = list(relevant)
  for _ in range(extra):
    sentences.insert(draw.between(0, len(sentences)), draw.pick(distractors)())
  place = draw.pick(QUESTIONS[:3]) if d.question == 'mixed' else d.question
  at = {'first': -1, 'last': len(sentences),
        'middle': draw.between(1, len(sentences) - 1)}[place]
  return question, asked, at, sentences


def content_hash(question: str, sentences: Sequence[str]) -> int:
  """64-bit hash of a problem; the place of its question does not matter."""
  return draws.hashed('\n'.join((question, *sentences)))


def split_of(content: int) -> str:
  """The split to which the problem of this content hash belongs."""
  return draws.split_of(content, SPLITS)
