"""The embedded task: seeded word problems that arrive sentence by sentence.

A problem is a chain of small arithmetic steps, one a relevant sentence, with
distractors in between. Three families, each with its own wording of the
question, so that question and what was read so far decide what is relevant:

  running     'how many apples does tom have in the end ?'
              what tom has, gets, loses or gives away; others do not matter
  comparison  'how many apples does bob have compared with others ?'
              everyone with apples is a link of one chain that ends in bob
  units       'how many cups are in the boxes of tom ?' and
              'how many coins do the cups in the boxes of tom cost ?'
              the boxes of tom, then what each box holds and each cup costs

Relevant kinds: start, gain, loss, transfer, more, fewer, unit, question.
Distractors: scene (no number), entity (someone else), object (another
object), rate (what another container or an animal takes).

Where the question comes last or in the middle, relevance and traces are still
those of a reader who knows the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np
import tokenizers

from adasr_jax.core.types import Example
from adasr_jax.data.tokenizer import Tokenizer

CONTROL = ('<pad>', '<bos>', '<eos>', '<EOT>', '<skip>', '</think>')

NAMES = ('tom', 'amy', 'bob', 'eve', 'sam', 'lea', 'max', 'ida', 'leo', 'zoe',
         'ben', 'mia')
# Singular, plural.
ITEMS = (('apple', 'apples'), ('hat', 'hats'), ('pen', 'pens'),
         ('cup', 'cups'), ('ball', 'balls'), ('book', 'books'),
         ('egg', 'eggs'), ('key', 'keys'))
CONTAINERS = (('box', 'boxes'), ('bag', 'bags'), ('jar', 'jars'),
              ('crate', 'crates'))
COIN = ('coin', 'coins')
FEEDS = (('dog', ('bone', 'bones')), ('goat', ('leaf', 'leaves')))
SCENES = ('the sky is blue', 'it is a cold day', 'the park is green',
          'it is a warm morning', 'the road is long', 'the door is green')
VERBS = {'start': ('has',), 'gain': ('buys', 'finds', 'gets'),
         'loss': ('loses', 'drops', 'sells', 'breaks'), 'transfer': ('gives',)}
GRAMMAR = ('. ? + - * = so still first then asked how many does do have are in '
           'the of end compared with others cost costs each holds eats more '
           'fewer than to').split()

FAMILIES = ('running', 'comparison', 'units')
QUESTIONS = ('first', 'last', 'middle', 'mixed')
RELEVANT = ('start', 'gain', 'loss', 'transfer', 'more', 'fewer', 'unit')
DISTRACTORS = ('scene', 'entity', 'object', 'rate')
# The residues (mod 10) of the content hash that belong to each split.
SPLITS = {'train': (3, 4, 5, 6, 7, 8, 9), 'validation': (1,), 'test': (0,),
          'ood': (2,)}

_LOSS, _TRANSFER = 0.25, 0.25  # of the steps that change a count
_CHANGE = 9  # most that one step adds or takes
_ATTEMPTS = 1000  # all fail with probability 0.9 ** 1000


@dataclasses.dataclass(frozen=True)
class Difficulty:
  """The size of the problems.

  Attributes:
    min_steps, max_steps: Relevant sentences (the question not counted).
    min_distractors, max_distractors: Irrelevant sentences.
    max_number: Largest number, intermediate results included; at most 99.
    question: Where it stands: 'first' (the preamble), 'last', 'middle', or
      'mixed'.
    families: Which families are drawn, each as often.
  """
  min_steps: int = 3
  max_steps: int = 5
  min_distractors: int = 1
  max_distractors: int = 3
  max_number: int = 40
  question: str = 'first'
  families: tuple[str, ...] = FAMILIES

  def __post_init__(self):
    if not 2 <= self.min_steps <= self.max_steps <= len(NAMES):
      raise ValueError(
          f'min_steps={self.min_steps}, max_steps={self.max_steps}: need 2 <= '
          f'min_steps <= max_steps <= {len(NAMES)}')
    if not 0 <= self.min_distractors <= self.max_distractors:
      raise ValueError(
          f'min_distractors={self.min_distractors}, max_distractors='
          f'{self.max_distractors}: need 0 <= min_distractors <= '
          'max_distractors')
    # Every step must find room for a change by one, also before a unit.
    if not max(16, 4 * self.max_steps) <= self.max_number <= 99:
      raise ValueError(
          f'max_number={self.max_number} is outside '
          f'{max(16, 4 * self.max_steps)}..99 for max_steps={self.max_steps}')
    if self.question not in QUESTIONS:
      raise ValueError(f'question={self.question!r} is not one of {QUESTIONS}')
    if not self.families or set(self.families) - set(FAMILIES):
      raise ValueError(f'families={self.families} are not among {FAMILIES}')


EASY = Difficulty(2, 3, 0, 1)
DEFAULT = Difficulty()
HARD = Difficulty(5, 7, 3, 5)
OOD = Difficulty(8, 10, 5, 8)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """How the supervised traces think; each attribute is an imperfection.

  Without any, irrelevant sentences are skipped, each relevant one gets its
  step ('7', then '7 + 3 = 10'), the deep reasoning is 'so 8'. The question,
  where it is a chunk, always gets 'asked tom apples'. Thoughts have at most 13
  tokens and the terminator, the deep reasoning at most 2 * max_steps + 2.

  Attributes:
    skip: (kind, probability) that a relevant sentence gets no thought. The
      running value is then not updated: all later steps and the trace's
      answer are right for that stale value (0 before any step).
    dwell: (kind, probability) that a distractor gets a thought, which leaves
      the value as it is: 'bob 4 apples'.
    restate: Probability that a thought first repeats its sentence: 'tom buys
      3 apples so 7 + 3 = 10', 'bob buys 4 apples so still 10'.
    ramble: Probability that the deep reasoning first recalls all values:
      'first 7 then 10 then 8 so 8'.
    slip: Probability that a step's result is one too small (1 in place of 0).

  Calibration of UNDISCIPLINED on DEFAULT (3000 problems): 52 % have no
  sentence of a kind that is skipped more often than not, which is what a
  greedy imitation scores; its own traces are right in 68 %. A trace has 46.4
  tokens in the mean, terminators included, 27.0 for PERFECT (ratio 0.58).
  """
  skip: tuple[tuple[str, float], ...] = ()
  dwell: tuple[tuple[str, float], ...] = ()
  restate: float = 0.0
  ramble: float = 0.0
  slip: float = 0.0

  def __post_init__(self):
    for name, known in (('skip', RELEVANT), ('dwell', DISTRACTORS)):
      for kind, _ in getattr(self, name):
        if kind not in known:
          raise ValueError(f'{name}: kind {kind!r} is not one of {known}')
    for name, p in (*self.skip, *self.dwell, ('restate', self.restate),
                    ('ramble', self.ramble), ('slip', self.slip)):
      if not 0 <= p <= 1:
        raise ValueError(f'{name}={p} is not a probability')


PERFECT = Teacher()
UNDISCIPLINED = Teacher(
    skip=(('loss', 0.6), ('fewer', 0.6)),
    dwell=(('entity', 0.6), ('object', 0.6), ('rate', 0.6), ('scene', 0.3)),
    restate=0.5, ramble=0.7)


class _Sentence(NamedTuple):
  """One sentence. `op` is '=', '+', '-' or '*'; '' marks a distractor."""
  kind: str
  text: str
  gist: str
  op: str = ''
  number: int = 0


class _Problem(NamedTuple):
  question: str
  asked: str
  relevant: list[_Sentence]
  distractors: Sequence[Callable[[], _Sentence]]


class _Draws:
  """Choices from one counter-based stream; uniforms come in blocks."""

  def __init__(self, seed: int, stream: int, *counter: int):
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64),
                            counter=np.array([0, *counter], np.uint64))
    self._random = np.random.Generator(bits).random
    self._block: list[float] = []

  def uniform(self) -> float:
    if not self._block:
      self._block = self._random(64).tolist()
    return self._block.pop()

  def coin(self, p: float) -> bool:
    return self.uniform() < p

  def between(self, low: int, high: int) -> int:
    return low + int(self.uniform() * (high - low + 1))

  def pick(self, options, *but):
    if but:
      options = [x for x in options if x not in but]
    return options[int(self.uniform() * len(options))]


def _count(n, noun):
  return f'{n} {noun[n != 1]}'


def _event(draw, kind, who, n, noun, *but):
  """'tom buys 3 apples'; what is given never goes to someone in `but`."""
  text = f'{who} {draw.pick(VERBS[kind])} {_count(n, noun)}'
  if kind == 'transfer':
    text += f' to {draw.pick(NAMES, who, *but)}'
  return text


def _scene(draw):
  text = draw.pick(SCENES)
  return _Sentence('scene', text, text)


def _noise(draw, kind, who, noun, *but):
  """A distractor that reads like a step of the running family."""
  n = draw.between(1, _CHANGE)
  text = _event(draw, draw.pick(tuple(VERBS)), who, n, noun, *but)
  return _Sentence(kind, text, f'{who} {_count(n, noun)}')


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
  """The sentences that tell how many of `noun` `who` has in the end."""
  out = []
  for op, n in _changes(draw, steps, cap, _LOSS + _TRANSFER):
    kind = {'=': 'start', '+': 'gain'}.get(op) or (
        'loss' if draw.coin(_LOSS / (_LOSS + _TRANSFER)) else 'transfer')
    out.append(_Sentence(kind, _event(draw, kind, who, n, noun),
                         f'{who} {_count(n, noun)}', op, n))
  return out


def _running(draw, steps, cap):
  who, noun = draw.pick(NAMES), draw.pick(ITEMS)
  return _Problem(
      f'how many {noun[1]} does {who} have in the end ?', f'{who} {noun[1]}',
      _holdings(draw, who, noun, steps, cap),
      (lambda: _scene(draw),
       lambda: _noise(draw, 'entity', draw.pick(NAMES, who),
                      draw.pick((noun, draw.pick(ITEMS))), who),
       lambda: _noise(draw, 'object', who, draw.pick(ITEMS, noun))))


def _compare(draw, kind, op, n, noun, who, than):
  gist = f'{who} {_count(n, noun)}'
  if op == '=':
    return _Sentence(kind or 'start', f'{who} has {_count(n, noun)}', gist,
                     '' if kind else op, n)
  word = 'more' if op == '+' else 'fewer'
  text = f'{who} has {n} {word} {noun[n != 1]} than {than}'
  return _Sentence(kind or word, text, gist, '' if kind else op, n)


def _comparison(draw, steps, cap):
  noun, people = draw.pick(ITEMS), []
  for _ in range(steps):
    people.append(draw.pick(NAMES, *people))
  def other():
    who = draw.pick(NAMES)
    return _compare(draw, 'object', draw.pick('=+-'), draw.between(1, _CHANGE),
                    draw.pick(ITEMS, noun), who, draw.pick(NAMES, who))
  return _Problem(
      f'how many {noun[1]} does {people[-1]} have compared with others ?',
      f'{people[-1]} {noun[1]}',
      [_compare(draw, '', op, n, noun, who, than) for (op, n), who, than in
       zip(_changes(draw, steps, cap, _LOSS), people, [None, *people])],
      (lambda: _scene(draw), other))


def _rate(kind, subject, verb, n, noun):
  return _Sentence(kind, f'each {subject} {verb} {_count(n, noun)}',
                   f'{subject} {_count(n, noun)}',
                   '*' if kind == 'unit' else '', n)


def _units(draw, steps, cap):
  who = draw.pick(NAMES)
  box, noun = draw.pick(CONTAINERS), draw.pick(ITEMS)
  # How large the product of the units may be if `n` steps count boxes.
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
  return _Problem(
      f'how many {asked[1]} {question}', f'{who} {asked[1]}',
      _holdings(draw, who, box, count, cap // unit) + units,
      (lambda: _scene(draw),
       lambda: _noise(draw, 'entity', draw.pick(NAMES, who), box, who),
       lambda: _noise(draw, 'object', who, draw.pick(ITEMS, noun)), rate))


_MAKE = {'running': _running, 'comparison': _comparison, 'units': _units}


def _candidate(draw, difficulty):
  """question, what it asks, its place (-1 = preamble), sentences."""
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
  """64-bit hash of a problem, wherever its question stands."""
  text = '\n'.join((question, *sentences)).encode()
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big')


def split_of(content: int) -> str:
  """The split to which the problem of this content hash belongs."""
  # The low 32 bits are the id; the residue is taken from the others.
  residue = (content >> 32) % 10
  return next(s for s, residues in SPLITS.items() if residue in residues)


def _apply(op, value, number):
  """A step's result; stale values may be too small to take from."""
  return {'=': number, '+': value + number, '-': max(0, value - number),
          '*': value * number}[op]


def _trace(sentences, teacher, draw):
  """Thoughts (None = skip), deep reasoning, answer of the teacher's trace."""
  skip, dwell = dict(teacher.skip), dict(teacher.dwell)
  thoughts, values = [], []
  for s in sentences:
    # Drawn also where not used: what comes later does not shift.
    chance, restate, slip = (draw.uniform() for _ in range(3))
    restate = restate < teacher.restate
    thought = None
    if not s.op:
      if chance < dwell.get(s.kind, 0):
        still = f' so still {values[-1]}' if values else ''
        thought = s.text + still if restate else s.gist
    elif chance >= skip.get(s.kind, 0):
      before = values[-1] if values else 0
      value = _apply(s.op, before, s.number)
      if s.op != '=' and slip < teacher.slip:
        value = value - 1 if value else 1
      values.append(value)
      thought = (f'{value}' if s.op == '=' else
                 f'{before} {s.op} {s.number} = {value}')
      if restate:
        thought = f'{s.text} so {thought}'
    thoughts.append(thought)
  answer = str(values[-1] if values else 0)
  deep = f'so {answer}'
  if draw.coin(teacher.ramble) and values:
    deep = f"first {' then '.join(map(str, values))} {deep}"
  return thoughts, deep, answer


@dataclasses.dataclass(frozen=True)
class Task:
  """A family of problems; example() is a pure function, there is no state.

  Which split a problem belongs to is read off a hash of its content, so no
  two splits share a problem, whatever the seeds and difficulties.

  Attributes:
    seed: In [0, 2**64).
    difficulty: Of 'train', 'validation' and 'test'.
    teacher: Writes the traces; the problems do not depend on it.
    ood_difficulty: Of 'ood'.
  """
  seed: int = 0
  difficulty: Difficulty = DEFAULT
  teacher: Teacher = PERFECT
  ood_difficulty: Difficulty = OOD

  def __post_init__(self):
    if not 0 <= self.seed < 2**64:
      raise ValueError(f'seed={self.seed} is outside [0, 2**64)')

  def example(self, split: str, index: int) -> Example:
    """Problem `index` of `split`, with its trace.

    Args:
      split: 'train', 'validation', 'test' or 'ood'.
      index: Any integer >= 0; a split has no end.

    Raises:
      ValueError: No such split or index.
    """
    if split not in SPLITS:
      raise ValueError(f'split={split!r} is not one of {tuple(SPLITS)}')
    if not 0 <= index < 2**64:
      raise ValueError(f'index={index} is outside [0, 2**64)')
    difficulty = self.ood_difficulty if split == 'ood' else self.difficulty
    where = (index, tuple(SPLITS).index(split))
    for attempt in range(_ATTEMPTS):
      question, asked, at, sentences = _candidate(
          _Draws(self.seed, 0, attempt, *where), difficulty)
      lines = [f'{s.text} .' for s in sentences]
      content = content_hash(question, lines)
      if split_of(content) == split:
        break
    else:
      raise ValueError(f'no {split} problem in {_ATTEMPTS} candidates of '
                       f'{difficulty}')
    value = 0
    for s in sentences:
      value = _apply(s.op, value, s.number) if s.op else value
    thoughts, deep, trace_answer = _trace(
        sentences, self.teacher, _Draws(self.seed, 1, 0, *where))
    relevant = [bool(s.op) for s in sentences]
    kinds = [s.kind for s in sentences]
    if at >= 0:
      for column, entry in ((lines, question), (relevant, True),
                            (kinds, 'question'), (thoughts, f'asked {asked}')):
        column.insert(at, entry)
    return Example(
        id=content % 2**32, preamble='' if at >= 0 else question,
        chunks=(lines[0], *(f' {line}' for line in lines[1:])),
        answer=str(value), question_chunk=at, relevant=tuple(relevant),
        thoughts=tuple(thoughts), deep=deep, kinds=tuple(kinds),
        trace_answer=trace_answer)


def vocabulary() -> tuple[str, ...]:
  """All words that any problem or trace may contain, numbers first."""
  nouns = (*ITEMS, *CONTAINERS, COIN, *(food for _, food in FEEDS))
  words = [*map(str, range(100)), *GRAMMAR, *NAMES,
           *(word for noun in nouns for word in noun),
           *(animal for animal, _ in FEEDS),
           *(verb for verbs in VERBS.values() for verb in verbs),
           *(word for scene in SCENES for word in scene.split())]
  return tuple(dict.fromkeys(words))


def build_tokenizer() -> tokenizers.Tokenizer:
  """A word-level tokenizer: CONTROL, then vocabulary(). Other words raise."""
  words = (*CONTROL, *vocabulary())
  out = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='<unk>'))
  out.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  out.add_special_tokens(list(CONTROL))
  return out


def embedded() -> Tokenizer:
  """The word-level tokenizer of the embedded task."""
  words = build_tokenizer()
  ids = lambda text: words.encode(text, add_special_tokens=False).ids
  token = words.token_to_id
  bos, pad = token('<bos>'), token('<pad>')
  return Tokenizer(
      encode=ids, decode=words.decode,
      spell=lambda t: words.decode(t, skip_special_tokens=False),
      vocab_size=words.get_vocab_size(),
      eot=token('<EOT>'), skip=token('<skip>'), end_think=token('</think>'),
      eos=token('<eos>'), pad=pad, undecodable=(pad, bos), head=(bos,),
      tail=(), prefix=(bos,), answer_format='{}')
