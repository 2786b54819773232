"""The numbers of a sentence, however they are written, and their values.

Digits, words, 'a dozen', 'half', 'twice', '20%', '2/3', '50 cents'; also
constants that units imply.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
import re

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
_DAY = 'day daily today tomorrow yesterday night nightly evening morning'
_WEEK, _MONTH = 'week weekly', 'month monthly'
_YEAR = 'year yearly annual annually'
_FOOT, _INCH = 'foot feet ft', 'inch inches'
_MONEY, _CENT = '$ dollar', 'cent ¢ penny pennies nickel dime quarter'
# Constants that are not written but implied by two units (by the first only,
# where the second is empty).
UNITS = tuple((a.split(), b.split(), Fraction(c)) for a, b, c in (
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
# Numbers that say little: a trace need not use them.
_WEAK_NUMBERS = frozenset('one once first second single'.split())
# A number in digits.
DIGITS = r'(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+'
_TOKEN = re.compile(
    rf'(?P<clock>\d{{1,2}}:\d\d)'
    rf'|(?:(?P<whole>\d+)(?: +| and |-))?(?P<over>\d+) ?/ ?(?P<under>\d+)'
    rf'|(?P<dollar>\$ ?)?(?P<digits>{DIGITS})(?P<mark> ?%| ?¢)?'
    rf'|(?P<word>[A-Za-z]+)')


@dataclasses.dataclass(frozen=True)
class Mention:
  """A number that a sentence names.

  Attributes:
    start, end: Its range in the sentence.
    values: What it may mean anywhere in a sum.
    factors: What it may also mean in a product or quotient: 2 for 'twice'.
    divisors: What it may also mean as a divisor: 2 for 'half'.
    percents: What it may also mean where the sum has a 100: 80 for '20%'.
    weak: Whether it says little, as 'one' and 'first' do.
  """
  start: int
  end: int
  values: frozenset[Fraction]
  factors: frozenset[Fraction]
  divisors: frozenset[Fraction]
  percents: frozenset[Fraction]
  weak: bool

  def means(self, value: Fraction, role: str, percent: bool) -> bool:
    """Whether it may be this operand.

    Args:
      value: Of the operand.
      role: '/' for a divisor, '*' for a factor or what is divided, else '+'.
      percent: Whether its sum has a 100 or 1/100.
    """
    return (value in self.values
            or value in self.factors and role in '*/'
            or value in self.divisors and role == '/'
            or value in self.percents and percent)


def mentions(text: str) -> list[Mention]:
  """The numbers of a sentence, in order."""
  tokens = list(_TOKEN.finditer(text))
  out, i = [], 0
  word = lambda k: _word(tokens, k)
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
      values, divisors, percents, j = _quantity(tokens, text, i)
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


def _word(tokens, k):
  """Token k in lower case; '' where it is not a word or not there."""
  return (tokens[k]['word'] or '').lower() if 0 <= k < len(tokens) else ''


def _quantity(tokens, text, i):
  """A cardinal number with the unit or fraction after it: '20%', '3 dozen'.

  Returns:
    values, divisors and percents of a Mention; the index of the next token.
  """
  word = lambda k: _word(tokens, k)
  def touching(k, by):  # only `by` is between token k and the one before
    return (k < len(tokens)
            and re.fullmatch(by, text[tokens[k - 1].end():tokens[k].start()]))
  t, divisors, percents = tokens[i], set(), set()
  n, j = _cardinal(tokens, text, i)
  mark = (t['mark'] or '').strip()
  values = {n, *([number(t['digits'])] if t['digits'] else [])}
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
  return values, divisors, percents, j


def number(digits: str) -> Fraction:
  """The value of DIGITS."""
  return Fraction(digits.replace(',', ''))


def _cardinal(tokens, text, i):
  """The value of '12', 'twenty-five', '3 thousand'; index of the next token."""
  total, part, j = Fraction(0), None, i
  while j < len(tokens):
    t, w = tokens[j], _word(tokens, j)
    gap = text[tokens[j - 1].end():t.start()] if j > i else ''
    if j > i and not re.fullmatch('[ -]', gap):
      break
    if t['digits'] and j == i:
      part = number(t['digits'])
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
          and _word(tokens, j + 1) in _ONES | _TENS and tokens[i]['word']):
      pass
    else:
      break
    j += 1
  return total + (part or 0), j


def _fraction(over, under, whole=Fraction(0)):
  """What a fraction may mean anywhere, and as a divisor."""
  if not under or not over:
    return {over}, set()
  f = over / under
  values = {f, over, 1 - f, 1 + f, under - over} - {Fraction(0), Fraction(1)}
  if over == 1 and under > 2:
    values |= {1}
  if whole:
    values |= {whole, whole + f, whole * under + over}
  return values, {under, 1 / f}
