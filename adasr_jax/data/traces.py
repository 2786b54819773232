"""Supervised streaming traces of GSM8K, made without a teacher model.

  python -m adasr_jax.data.traces --path=gsm8k_train.jsonl --out=traces.jsonl

GSM8K's solutions carry calculator annotations, `48/2 = <<48/2=24>>24 clips`.
A step (a line of the solution) is thought at the first sentence by which all
that it uses has been read:

  - its operands: numbers of a sentence, however written (digits, words, 'a
    dozen', 'half', 'twice', '20%', '2/3', '50 cents', a unit that implies a
    constant), or results of earlier steps;
  - its words: what the problem mentions for the first time in a later sentence
    is not foretold.

A line speaks of what the question asks for where it gives the answer: it is
thought with the question. A sentence whose numbers a later step uses gets a
note of them; any other becomes a skip. A problem is left out, with its reason,

  - where an operand has no source;
  - where it is open when a step can be thought, since a number stands in
    several sentences;
  - where a sentence would be skipped that has a number, or a word as 'rest',
    'equally', 'each': a number that no step uses certainly may still be used;
  - where the steps do not compute the answer.

The output is read by sources.Jsonl with

  fields = dict(question='question', answer='answer', thoughts='thoughts',
                relevant='relevant', deep='deep')
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator
import dataclasses
from fractions import Fraction
import json
import pathlib
import re
import sys
from typing import Any

from adasr_jax.data import records

STYLES = ('text', 'arithmetic')


class Unexplained(ValueError):
  """The problem has no certain trace; the reason, and what it met."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason = reason


# ------------------------------------------------------------------- numbers
_ONES = dict(zip(
    'zero one two three four five six seven eight nine ten eleven twelve '
    'thirteen fourteen fifteen sixteen seventeen eighteen nineteen'.split(),
    range(20)))
_TENS = dict(zip('twenty thirty forty fifty sixty seventy eighty ninety'
                 .split(), range(20, 100, 10)))
_SCALES = {'hundred': 100, 'thousand': 1000, 'million': 10**6}
_PARTS = {'half': 2, 'halves': 2, 'halve': 2, 'third': 3, 'quarter': 4,
          'fourth': 4, 'fifth': 5, 'sixth': 6, 'seventh': 7, 'eighth': 8,
          'ninth': 9, 'tenth': 10, 'twelfth': 12, 'hundredth': 100}
_ORDINALS = {'first': 1, 'second': 2}
_COUNTS = {'couple': 2, 'pair': 2, 'pairs': 2, 'both': 2, 'twins': 2,
           'dozen': 12, 'dozens': 12, 'triplets': 3, 'single': 1, 'once': 1,
           'alternate': 2}
_FACTORS = {'twice': 2, 'double': 2, 'doubled': 2, 'doubles': 2,
            'doubling': 2, 'thrice': 3, 'triple': 3, 'tripled': 3,
            'triples': 3, 'tripling': 3, 'quadruple': 4, 'quadrupled': 4}
_COINS = {'penny': 1, 'pennies': 1, 'nickel': 5, 'nickels': 5, 'dime': 10,
          'dimes': 10, 'quarter': 25, 'quarters': 25}
# A constant that no number says but two units imply (or one, where the second
# is empty).
_DAY = 'day daily today tomorrow yesterday night nightly evening morning'
_WEEK, _MONTH = 'week weekly', 'month monthly'
_YEAR = 'year yearly annual annually'
_FOOT, _INCH = 'foot feet ft', 'inch inches'
_MONEY, _CENT = '$ dollar', 'cent ¢ penny pennies nickel dime quarter'
_UNITS = tuple((a.split(), b.split(), Fraction(c)) for a, b, c in (
    ('second', 'minute', 60), ('minute', 'hour', 60), ('second', 'hour', 3600),
    ('hour', _DAY, 24), (_DAY, _WEEK, 7), (_WEEK, _YEAR, 52),
    (_MONTH, _YEAR, 12), (_DAY, _YEAR, 365), (_DAY, _MONTH, 30),
    (_WEEK, _MONTH, 4), ('weekday workday', '', 5), ('weekend', '', 2),
    ('decade', '', 10), ('century centuries', '', 100),
    (_INCH, _FOOT, 12), (_FOOT, 'yard', 3), (_INCH, 'yard', 36),
    ('mile', _FOOT, 5280), ('ounce oz', 'pound lb', 16),
    ('ounce oz', 'cup', 8), ('quart', 'gallon', 4), ('pint', 'quart', 2),
    ('cup', 'gallon', 16), ('cup', 'pint', 2), ('cup', 'quart', 4),
    ('ounce oz', 'gallon', 128), ('pint', 'gallon', 8), ('pound', 'ton', 2000),
    ('cm centimeter', 'm meter', 100), ('mm millimeter', 'cm centimeter', 10),
    ('m meter', 'km kilometer', 1000), ('g gram', 'kg kilogram', 1000),
    ('ml milliliter', 'l liter', 1000), (_MONEY, _CENT, 100),
    ('% percent percentage', '', 100), ('leap', '', 366), ('average', '', 2),
    ('bike bicycle', 'wheel tire', 2), ('tricycle', 'wheel tire', 3),
    ('car', 'wheel tire', 4), ('dozen', '', 12)))
# Numbers that say little: they may go unused.
_WEAK_NUMBERS = frozenset('one once first second single'.split())
# Without a number, these may matter all the same.
_RELATION = re.compile(
    r'\b(equal\w*|even(?:ly)?|same|rest|remain\w*|left|leftover|each|every\w*|'
    r'all|shar\w+|split\w*|divid\w+|none|other|others|both|more|less|fewer|'
    r'only|except|empty|instead|double\w*|halv\w+|sum|difference|average|'
    r'percent\w*|until|again|return\w*|minus|plus|times|per|free|full|'
    r'daily|weekly|monthly|yearly|entire|whole|exactly|enough)\b', re.I)
_DIGITS = r'(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+'
_TOKEN = re.compile(
    rf'(?P<clock>\d{{1,2}}:\d\d)'
    rf'|(?:(?P<whole>\d+)(?: +| and |-))?(?P<over>\d+) ?/ ?(?P<under>\d+)'
    rf'|(?P<dollar>\$ ?)?(?P<digits>{_DIGITS})(?P<mark> ?%| ?¢)?'
    rf'|(?P<word>[A-Za-z]+)')


@dataclasses.dataclass(frozen=True)
class Mention:
  """A number that a sentence names.

  Attributes:
    start, end: Where in the sentence.
    values: What it stands for, anywhere in a sum.
    factors: What it stands for in products and quotients: 2 for 'twice'.
    divisors: What it stands for as a divisor: 2 for 'half'.
    percents: What it stands for beside a 100: 80 for '20%'.
    weak: It says little, as 'one' and 'first' do.
  """
  start: int
  end: int
  values: frozenset[Fraction]
  factors: frozenset[Fraction]
  divisors: frozenset[Fraction]
  percents: frozenset[Fraction]
  weak: bool

  def means(self, value: Fraction, role: str, percent: bool) -> bool:
    """Whether it may be this operand; role and percent as Step has them."""
    return (value in self.values
            or value in self.factors and role in '*/'
            or value in self.divisors and role == '/'
            or value in self.percents and percent)


def mentions(text: str) -> list[Mention]:
  """The numbers of a sentence, in order."""
  tokens = list(_TOKEN.finditer(text))
  out, i = [], 0
  word = lambda k: ((tokens[k]['word'] or '').lower()
                    if 0 <= k < len(tokens) else '')
  def touching(k, by):  # token k stands behind its neighbour by no more
    return (k < len(tokens)
            and re.fullmatch(by, text[tokens[k - 1].end():tokens[k].start()]))
  while i < len(tokens):
    t, j = tokens[i], i + 1
    values, factors, divisors, percents = set(), set(), set(), set()
    if t['clock']:
      hours, minutes = map(int, t['clock'].split(':'))
      values = {hours, hours + 12, minutes, hours + Fraction(minutes, 60)}
    elif t['over']:
      values, divisors = _fraction(Fraction(t['over']), Fraction(t['under']),
                                   Fraction(t['whole'] or 0))
    elif t['digits'] or word(i) in _ONES | _TENS | _SCALES:
      n, j = _cardinal(tokens, text, i)
      mark = (t['mark'] or '').strip()
      values = {n, *([_number(t['digits'])] if t['digits'] else [])}
      after = word(j)
      if mark == '%' or after == 'percent':
        values = {n, n / 100, 1 - n / 100, 1 + n / 100}
        percents = {100 - n, 100 + n}
        divisors = {100 / n} if n else set()
      elif mark == '¢' or after in ('cent', 'cents'):
        values |= {n / 100}
      elif t['dollar'] or after in ('dollar', 'dollars'):
        values |= {n * 100} if n.denominator > 1 else set()
      elif after in ('dozen', 'dozens'):
        values |= {n * 12, 12}
        j += 1
      elif after == 'hundredths':
        values |= {n / 100}
      elif after in ('time', 'times') and word(j + 1) in ('more', 'longer',
                                                          'bigger', 'larger',
                                                          'greater', 'older'):
        values |= {n + 1}
      elif (after.rstrip('s') in _PARTS or after in _PARTS) and touching(
          j, r'[- ]'):
        below = _PARTS.get(after) or _PARTS[after.rstrip('s')]
        more, divisors = _fraction(n, Fraction(below))
        values |= more
        j += 1
      elif after == 'and' and word(j + 1) in ('a', 'one') and (
          word(j + 2) in _PARTS):
        values |= {n + Fraction(1, _PARTS[word(j + 2)])}
        j += 3
      elif after == 'and' and word(j + 1) == 'half':
        values |= {n + Fraction(1, 2)}
        j += 2
      if after in _COINS:
        values |= {Fraction(_COINS[after]), Fraction(_COINS[after], 100)}
    elif word(i) in _PARTS or word(i).rstrip('s') in _PARTS:
      below = _PARTS.get(word(i)) or _PARTS[word(i).rstrip('s')]
      values, divisors = _fraction(Fraction(1), Fraction(below))
      if below > 2:  # 'the third day'
        values |= {below}
      if word(i) in _COINS:
        values |= {25, Fraction(1, 4)}
      if word(i) == 'half' and word(i + 1) == 'a' and word(i + 2) == 'dozen':
        values, j = {6}, i + 3
    elif word(i) in _FACTORS:
      factors = {_FACTORS[word(i)]}
    elif word(i) in _COUNTS:
      values = {_COUNTS[word(i)]}
    elif word(i) in _COINS:
      values = {Fraction(_COINS[word(i)]), Fraction(_COINS[word(i)], 100)}
    elif word(i) in _ORDINALS and word(i) != 'second':
      values = {_ORDINALS[word(i)]}
    elif word(i) == 'every' and word(i + 1) == 'other':
      values, j = {2}, i + 2
    if values or factors:
      start, end = t.start(), tokens[j - 1].end()
      out.append(Mention(
          start, end, *(frozenset(map(Fraction, x))
                        for x in (values, factors, divisors, percents)),
          weak=text[start:end].lower() in _WEAK_NUMBERS))
    i = j
  return out


def _number(digits):
  return Fraction(digits.replace(',', ''))


def _cardinal(tokens, text, i):
  """The value of '12', 'twenty-five', '3 thousand'; the next token's index."""
  total, part, j = Fraction(0), None, i
  while j < len(tokens):
    t, w = tokens[j], (tokens[j]['word'] or '').lower()
    gap = text[tokens[j - 1].end():t.start()] if j > i else ''
    if j > i and not re.fullmatch('[ -]', gap):
      break
    if t['digits'] and j == i:
      part = _number(t['digits'])
    elif w in _SCALES:
      part = (Fraction(1) if part is None else part) * _SCALES[w]
      if _SCALES[w] > 100:
        total, part = total + part, Fraction(0)
    elif w in _TENS and (part is None or part % 100 == 0 and j > i):
      part = (part or 0) + _TENS[w]
    elif w in _ONES and (part is None or j > i and (
        part % 100 == 0 or part % 10 == 0 and part % 100 >= 20
        and _ONES[w] < 10)):
      part = (part or Fraction(0)) + _ONES[w]
    elif (w == 'and' and j > i and part and part % 100 == 0
          and j + 1 < len(tokens) and (tokens[j + 1]['word'] or '').lower()
          in _ONES | _TENS and tokens[i]['word']):
      pass
    else:
      break
    j += 1
  return total + (part or 0), j


def _fraction(over, under, whole=Fraction(0)):
  """What a fraction stands for anywhere, and as a divisor."""
  if not under or not over:
    return {over}, set()
  f = over / under
  values = {f, over, 1 - f, 1 + f, under - over} - {Fraction(0), Fraction(1)}
  if over == 1 and under > 2:
    values |= {1}
  if whole:
    values |= {whole, whole + f, whole * under + over}
  return values, {under, 1 / f}


# --------------------------------------------------------------------- steps
@dataclasses.dataclass(frozen=True)
class Step:
  """A line of the solution.

  Attributes:
    text: Without the annotations.
    sums: Each annotation, its operands with their roles (see _evaluate), and
      its result.
  """
  text: str
  sums: tuple[tuple[str, tuple[tuple[Fraction, str], ...], Fraction], ...]


_ANNOTATION = re.compile(r'<<([^<>]*)>>')


def steps(solution: str) -> list[Step]:
  """The lines of a solution that compute something.

  Raises:
    Unexplained: An annotation is malformed or wrong.
  """
  out = []
  for line in solution.split('####')[0].splitlines():
    sums = []
    for said in _ANNOTATION.findall(line):
      left, equals, right = said.rpartition('=')
      try:
        value, operands = _evaluate(left)
        result = _number(right)
      except (ValueError, ZeroDivisionError, IndexError):
        raise Unexplained('an annotation is malformed', said) from None
      # The annotations round.
      if not equals or abs(value - result) > max(
          abs(result) / 100, Fraction(1, 100)):
        raise Unexplained('an annotation is wrong', said)
      sums.append((said, operands, result))
    if sums:
      text = ' '.join(_ANNOTATION.sub('', line).split())
      out.append(Step(text, tuple(sums)))
  return out


def _evaluate(expression):
  """Value and operands of +, -, *, / and parentheses.

  An operand comes with its role: '/' for a divisor, '*' for what stands in a
  product or is divided, '+' for the rest.
  """
  tokens = re.findall(rf'{_DIGITS}|[-+*/()]', expression)
  if ''.join(tokens) != expression.replace(' ', ''):
    raise ValueError(expression)
  operands, at = [], 0

  def role():
    before, behind = (tokens[k] if 0 <= k < len(tokens) else ''
                      for k in (at - 2, at))
    if before == '/':
      return '/'
    return '*' if '*' in (before, behind) or behind == '/' else '+'

  def peek(signs):
    return at < len(tokens) and tokens[at] in signs

  def take():
    nonlocal at
    at += 1
    return tokens[at - 1]

  def atom():
    t = take()
    if t == '(':
      value = plus()
      if take() != ')':
        raise ValueError(expression)
      return value
    if t == '-':
      return -atom()
    operands.append((_number(t), role()))
    return operands[-1][0]

  def times():
    value = atom()
    while peek('*/'):
      value = value * atom() if take() == '*' else value / atom()
    return value

  def plus():
    value = times()
    while peek('+-'):
      value = value + times() if take() == '+' else value - times()
    return value

  value = plus()
  if at < len(tokens):
    raise ValueError(expression)
  return value, tuple(operands)


# ----------------------------------------------------------------- alignment
def _stem(word):
  word = word.lower()
  for end in ('ies', 'ing', 'ed', 'es', 's', 'ly', 'e', 'y'):
    if word.endswith(end) and len(word) - len(end) >= 3:
      return word[:-len(end)]
  return word


# Words that say nothing of which sentence a step speaks of.
_FUNCTION = frozenset(map(_stem, '''
the and that this then than they them their there these those with was were
are will would can could has have had her his him she its for from each every
one two all any how many much what when where which who whom why does did per
not but also out into onto over off after before because since while still
only just even both more most less least equal mean some other another same
such few therefore thus first next finally now let know find figure calculate
multiply divide add subtract'''.split()))
# Nor these, of which sentence was read: a solution uses them as it likes.
_COMMON = _FUNCTION | frozenset(map(_stem, '''
make made cost costs spend spent pay paid earn earned get got give gave need
take took buy bought sell sold use used number amount money dollar cent price
worth combined total altogether together time day week month year hour minute
second item thing people person'''.split()))


def _content(text, common):
  """Stems of a text's words."""
  words = {_stem(w) for w in re.findall(r'[A-Za-z]{3,}', text)}
  return words - common


def _has(sentence, unit):
  return (bool(re.search(rf'(?<![a-z]){unit}s?(?![a-z])', sentence))
          if unit.isalpha() else unit in sentence)


class _Reader:
  """The sentences of one problem, and which of them a number comes from."""

  def __init__(self, sentences: tuple[str, ...]):
    self.sentences = sentences
    self.mentions = [mentions(s) for s in sentences]
    self.words = [_content(s, _COMMON) for s in sentences]
    self.all_words = [_content(s, _FUNCTION) for s in sentences]
    self.lower = [s.lower() for s in sentences]

  def naming(self, value: Fraction, role: str, percent: bool
             ) -> tuple[int, ...]:
    """Sentences with a number that may be the operand."""
    return tuple(i for i, found in enumerate(self.mentions)
                 if any(m.means(value, role, percent) for m in found))

  def implying(self, value: Fraction, step: str) -> tuple[int, ...]:
    """Sentences with a unit that implies the constant."""
    everything, out = [*self.lower, step.lower()], set()
    for one, other, constant in _UNITS:
      if value not in (constant, 1 / constant):
        continue
      if all(any(_has(s, unit) for s in everything for unit in units)
             for units in (one, other) if units):
        out |= {i for i, s in enumerate(self.lower)
                if any(_has(s, unit) for unit in (*one, *other))}
    return tuple(sorted(out))

  def read_by(self, words: set[str]) -> int:
    """The sentence by which every word that the problem has was read."""
    last = 0
    for word in words:
      last = max(last, next((i for i, own in enumerate(self.words)
                             if word in own), 0))
    return last

  def likeliest(self, candidates: tuple[int, ...], step: str
                ) -> tuple[int, ...]:
    """Those whose words the step shares most."""
    words = _content(step, _FUNCTION)
    shared = [len(words & self.all_words[i]) for i in candidates]
    return tuple(i for i, n in zip(candidates, shared) if n == max(shared))


def trace(question: str, solution: str, *, style: str = 'text'
          ) -> dict[str, Any]:
  """thoughts, relevant and deep of a problem; see sources.Jsonl.

  Args:
    question: The problem.
    solution: With annotations, '#### answer' at its end.
    style: Thoughts are the solution's own words ('text') or the sums alone
      ('arithmetic').

  Raises:
    Unexplained: There is no certain trace.
  """
  sentences, asking = records.problem(question)
  reader, done = _Reader(sentences), steps(solution)
  answer = solution.rpartition('####')[2].strip()
  if not done:
    raise Unexplained('no annotations')
  try:
    wanted = _number(answer.lstrip('$'))
  except ValueError:
    raise Unexplained('the answer is no number', answer) from None
  if done[-1].sums[-1][2] != wanted:
    raise Unexplained('the last step does not give the answer')

  results: list[tuple[Fraction, int]] = []  # of earlier steps, and when known
  used: set[int] = set()
  placed: dict[int, list[Step]] = collections.defaultdict(list)
  for step in done:
    inside: list[Fraction] = []
    ranges = [reader.read_by(_content(step.text, _COMMON))] * 2
    if step is done[-1]:
      ranges = [max(at, asking) for at in ranges]
    for said, operands, result in step.sums:
      percent = any(v in (100, Fraction(1, 100)) for v, _ in operands)
      for value, role in operands:
        if value in inside:
          continue
        named = reader.naming(value, role, percent)
        known = [at for v, at in results if v == value]
        # '3 * 3' uses both of the two threes that there are.
        often = [v for v, _ in operands].count(value)
        every = 1 < len(named) + len(known) == often
        if len(named) > 1 and not every:
          named = reader.likeliest(named, step.text)
        if known and value > 12 and not every:
          named = ()  # a number as large is the same one
        sources = [*named, *known]
        if not sources and value == 1:
          continue
        if not sources:
          sources = reader.implying(value, step.text)[-1:]
          if not sources:
            raise Unexplained('an operand has no source', said)
        ranges = [max(ranges[0], min(sources)), max(ranges[1], max(sources))]
        if len(sources) == 1 or every:  # else its use is not certain
          used |= set(named)
      inside.append(result)
    if ranges[0] != ranges[1]:
      raise Unexplained('a number stands in several places', step.text)
    used.add(ranges[0])
    placed[ranges[0]].append(step)
    results += [(result, ranges[0]) for _, _, result in step.sums]

  thoughts: list[str | None] = []
  for i, found in enumerate(reader.mentions):
    if placed[i]:
      thoughts.append(_thought(placed[i], style))
    elif i in used:
      found = [m for m in found if not m.weak] or found
      thoughts.append('; '.join(_note(sentences[i], m, rest) for m, rest in zip(
          found, [*found[1:], None])) or sentences[i].strip())
    else:
      thoughts.append(None)
      if any(not m.weak for m in found):
        raise Unexplained('a number is not certainly used', sentences[i])
      if i != asking and _RELATION.search(sentences[i]):
        raise Unexplained('a sentence may matter without a number',
                          sentences[i])
  return {'thoughts': thoughts,
          'relevant': [t is not None or i == asking
                       for i, t in enumerate(thoughts)],
          'deep': f'So the answer is {answer}.'}


def _thought(own, style):
  if style == 'arithmetic':
    return '; '.join(said for step in own for said, _, _ in step.sums)
  lines = [step.text.rstrip(' ,;:') or step.sums[-1][0] for step in own]
  return ' '.join(x if x[-1] in '.!?' else f'{x}.' for x in lines)


_WEAK = frozenset('a an the and or of in on at to for from with by per her his '
                  'their its he she they it is are was were be that which who '
                  'if but so as than into every'.split())
_CUT = frozenset('and or but because when while if who which that so then over '
                 'since where until before after is are was were has have had '
                 'he she they it'.split())


def _note(sentence, mention, following):
  """The number with the words behind it: '48 of her friends'."""
  last = following.start if following else len(sentence)
  behind = re.match(r'[^.,;:?!()"]*', sentence[mention.end:last])[0]
  end = mention.end
  for k, word in enumerate(re.finditer(r'\S+', behind)):
    if k == 5 or word[0].lower() in _CUT:
      break
    if word[0].lower() not in _WEAK:
      end = mention.end + word.end()
  return ' '.join(sentence[mention.start:end].split())


# ---------------------------------------------------------------------- file
def convert(path: pathlib.Path, *, style: str) -> Iterator[
    tuple[dict[str, Any], dict[str, Any] | Unexplained]]:
  """Each record of a GSM8K file, and its trace or why there is none."""
  for where, record in records.read(path):
    try:
      question, solution = (records.text(records.field(record, n), n)
                            for n in ('question', 'answer'))
      if '####' not in solution:
        raise ValueError("'answer' has no '####'")
    except ValueError as e:
      raise ValueError(f'{where}: {e}') from e
    try:
      yield record, {
          'question': question,
          'answer': solution.rpartition('####')[2].strip(),
          **trace(question, solution, style=style)}
    except Unexplained as e:
      yield record, e


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      prog='python -m adasr_jax.data.traces',
      description=__doc__.split('\n', maxsplit=1)[0])
  parser.add_argument('--path', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--style', choices=STYLES, default='text')
  parser.add_argument('--report', action='store_true',
                      help='an example of each reason for leaving out')
  args = parser.parse_args(argv)
  kept, reasons, first = [], collections.Counter(), {}
  skips = chunks = total = 0
  try:
    for record, made in convert(args.path, style=args.style):
      total += 1
      if isinstance(made, Unexplained):
        reasons[made.reason] += 1
        first.setdefault(made.reason, (made, record['question']))
        continue
      kept.append(made)
      chunks += len(made['thoughts'])
      skips += made['thoughts'].count(None)
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  if args.out:
    with args.out.open('w', encoding='utf-8') as out:
      for made in kept:
        out.write(json.dumps(made, ensure_ascii=False) + '\n')
  print(f'{len(kept)} of {total} problems have a trace '
        f'({len(kept) / max(total, 1):.1%}); {skips} of {chunks} sentences '
        f'are skipped')
  for reason, n in reasons.most_common():
    print(f'{n:6} {reason}')
    if args.report:
      print(f'       {first[reason][0]}\n       in: {first[reason][1]}')


if __name__ == '__main__':
  main()
