r"""The one verifier: what a text answers, and whether that is right.

Training and evaluation share it. It never evaluates a model's text as code,
never raises on one, and takes time linear in its length.

What counts as the same answer:
  - the same words, whatever their case and spacing; 'B' and '(B)';
  - the same number, exactly (as fractions, never as floats): '1,234.50' and
    '$1234.5', '1/2' and '0.5', '1e5' and '100000'; 0.33 is not 1/3. It may
    have a name, the same in both where both have one: 'x = 72' for '72';
  - a number with a unit where the reference has that unit or none:
    '72 clips' for '72'; but not '72' for '72 clips'. '%' is such a unit:
    '50%' is right for '50%' and for '50', '0.5' is right for neither. A sign
    of money is one that either may leave out: '$18' for '18', '18' for '$18';
  - two formulas that are equal (`formulas`), which may have units too. A
    formula is never right for a plain number: '70+2' does not answer '72'.

Where the reference has no unit, a unit is one of _UNITS, or a word of the
problem or of the reference: '72 clips' needs a problem about clips, and is
wrong for '72' where no problem is passed. What changes a number is never a
unit: '72 thousand', '72 or so', and '72 more' unless that is the question.
"""

from __future__ import annotations

from fractions import Fraction
import re
from typing import NamedTuple

from adasr_jax.credit import formulas

MAX_ANSWER = 1000  # characters; a longer one does not count

_UNITS = frozenset('''
    % total altogether each apiece unit
    second sec s minute min hour hr h day week month year yr decade century
    millimeter millimetre mm centimeter centimetre cm decimeter decimetre dm
    meter metre m kilometer kilometre km inch in foot feet ft yard yd mile mi
    milligram mg gram g kilogram kg ton tonne ounce oz pound lb
    milliliter millilitre ml liter litre l gallon quart pint cup
    acre hectare ha mph kph degree radian celsius fahrenheit kelvin
    watt kilowatt volt joule calorie kcal newton hertz byte kb mb gb
    dollar euro yen yuan rupee peso buck usd eur gbp'''.split())
_CONNECTORS = frozenset('of per a an the square sq cubic cu'.split())
# Other words of a problem may follow its numbers; not these.
_CHANGES = frozenset('''
    zero one two three four five six seven eight nine ten tens eleven twelve
    twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds
    thousand thousands million millions billion billions trillion trillions
    grand lakh lakhs lac lacs crore crores mil mln mn bn tn mega giga dozen
    dozens gross score half halves third thirds fourth fourths quarter quarters
    fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth
    tenths hundredth hundredths thousandth thousandths millionth millionths
    double doubled twice triple tripled thrice quadruple quadrupled halved
    squared cubed root power factorial mod modulo base log binary hex octal
    hexadecimal pi sqrt inverse reciprocal opposite negative negated minus plus
    times over under above below more less fewer most least and or nor not but
    except without excluding than then to point about approximately approx
    roughly almost nearly around wrong incorrect false never no'''.split())
_MONEY = {'$': 'dollar', '€': 'euro', '£': 'pound', '¥': 'yen', '₹': 'rupee'}

# Only ASCII: other digits, '½' and '²' are not read.
_UNSIGNED = r'(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+'
_NUMBER = re.compile(
    rf'(?P<sign>[-+]?) ?(?P<money>[$€£¥₹]?) ?(?P<inner>-?)'
    rf'(?:(?P<whole>[0-9]+) )?(?P<value>{_UNSIGNED})'
    rf'(?:e(?P<exponent>[-+]?[0-9]{{1,3}})|/(?P<below>-?(?:{_UNSIGNED})))?'
    # A letter that touches the number is a factor: '2x'.
    rf'(?P<unit> ?[%$€£¥₹]| ?[a-z]{{2,}}(?:[ /][a-z]+){{0,2}}'
    rf'| [a-z](?:[ /][a-z]+){{0,2}}|)')
_DIGITS = r'[0-9]+(?:\.[0-9]+)?'
_FRACTION = re.compile(
    rf'\\[dtc]?frac ?(?:\{{ ?(-?{_DIGITS}) ?\}} ?\{{ ?(-?{_DIGITS}) ?\}}'
    rf'|([0-9]) ?([0-9])(?![0-9]))')
_SCIENTIFIC = re.compile(
    r'(?<=[0-9.]) ?(?:\\times|\\cdot|[×·*]) ?10 ?\^ ?'
    r'(?:\{ ?([-+]?[0-9]{1,3}) ?\}|([0-9]))(?![0-9])')
_DEGREES = re.compile(
    r'([^a-df-zA-Z\\]*[0-9]\.?) ?(?:\^ ?\{? ?\\circ ?\}?|°) ?([CF]?)')
_SQUARE = re.compile(
    r'([^a-zA-Z\\]*[0-9]\.?) ?(mm|cm|dm|km|in|ft|yd|mi|units?|(?<= )m)'
    r' ?(?:\^ ?\{?([23])\}?|([²³]))')
_LEAD = re.compile(r'\s*(?:the )?(?:final )?answer(?: is ?:?|:)\s*', re.I)
_NAME = re.compile(r'([a-zA-Z]|\\(?:alpha|beta|theta)) ?= ?(.+)')
_FORMULA_UNIT = re.compile(r'(.*[0-9)}\]]) ?([a-z]{2,}(?: [a-z]+){0,2})')
_WORD_ANSWERS = ('yes', 'no', 'maybe')
_CHOICE = re.compile(r'\(?([a-z])[).:]?')


def extract(text: str) -> str | None:
  r"""The answer that a text gives, or None where it gives none.

  The content of the last balanced \boxed{...} that holds something (the inner
  one, if nested); else the rest of the line after the last '####'; else the
  whole text, if it is a bare answer: one number, perhaps with a name ('x =')
  and up to three words behind it, units or not; yes, no or maybe; the letter
  of a choice. Any of them may follow 'The answer is' or 'Answer:'.
  """
  found = _last_boxed(text)
  if found is None and '####' in text:
    found = (text.rpartition('####')[2].splitlines() or [''])[0]
  if found is None:
    found = text if _is_bare(_without_lead(text)) else ''
  return _without_lead(found) or None


def same(text: str) -> str:
  """One text for all that give the same answer; '' where none is given.

  Spelling, notation, a name and units but '%' do not count.
  """
  found = extract(text)
  if found is None or len(found) > MAX_ANSWER:
    return ''
  plain = _plain(found)
  number = _number(_named(plain)[1])
  return (f'{number.value}{"%" * ("%" in number.unit)}' if number
          else plain)


def correct(text: str, reference: str, *, problem: str = '') -> bool:
  """Whether the answer that a text gives is the reference answer.

  Args:
    text: What the model wrote.
    reference: The answer, bare, or as in `extract`.
    problem: The problem's text, whose words may be units.
  """
  said = extract(text)
  wanted = extract(reference) or reference.strip()
  if not said or not wanted or max(len(said), len(wanted)) > MAX_ANSWER:
    return False
  said, wanted = _plain(said), _plain(wanted)
  if said == wanted:
    return said != ''
  units = lambda a, b: _same_unit(a, b, f'{problem}\n{reference}')
  (said_name, a), (wanted_name, b) = _named(said), _named(wanted)
  x, y = _number(a), _number(b)
  if x and y:
    return (x.value == y.value and units(x, y)
            and (said_name == wanted_name or not (said_name and wanted_name)))
  if x or y:
    return False
  (a, x), (b, y) = _with_unit(said), _with_unit(wanted)
  return units(x, y) and formulas.equal(a, b)


def _without_lead(text):
  lead = _LEAD.match(text)
  return text[lead.end() if lead else 0:].strip()


def _last_boxed(text):
  """What the last full balanced box holds; one pass, however deep they nest."""
  last, opened, ink = None, [], -1
  for token in re.finditer(r'\\boxed *\{|\\.|[{}]|[^\\{}\s]+', text):
    if token[0] == '}':
      if opened:
        start, boxed = opened.pop()
        if boxed and ink >= start and (last is None or start > last[0]):
          last = start, token.start()
    elif token[0][-1] == '{' and token[0] != r'\{':
      opened.append((token.end(), len(token[0]) > 1))
    else:
      ink = token.start()
  return None if last is None else text[slice(*last)]


def _is_bare(text):
  if len(text) > MAX_ANSWER:
    return False
  plain = _plain(text)
  return (plain in _WORD_ANSWERS or bool(re.fullmatch('[a-z]', plain))
          or _number(_named(plain)[1]) is not None)


def _plain(answer):
  """One spelling for answers that differ only in notation."""
  s = answer.replace('\u2212', '-').strip()
  for _ in range(2):  # one may be in another
    s = re.sub(r'\\(?:text|mathrm|mbox|textbf|textrm|mathbf|bf|boldsymbol) ?'
               r'\{((?:[^{}]|\{[^{}]*\})*)\}', r' \1', s)
  s = re.sub(r'\\(?:left|right|displaystyle|bf)(?![a-zA-Z])', ' ', s)
  s = re.sub(r'\\[!,;: ()\[\]]', ' ', s)
  s = s.replace(r'\$', '$').replace(r'\%', '%').replace('{,}', ',')
  if len(s) > 2 and s[0] == s[-1] == '$':
    s = s.strip('$')
  s = re.sub(r'\s+', ' ', s).strip().rstrip('.').strip('"\'` ')
  for _ in range(2):
    braced = re.fullmatch(r'\{((?:[^{}]|\{[^{}]*\})*)\}', s)
    s = braced[1].strip() if braced else s
  s = _plain_number(s)
  if '\\' in s:  # in a formula x and X are two things
    return s
  s = s.casefold()
  choice = _CHOICE.fullmatch(s)
  return choice[1] if choice else s


def _plain_number(s):
  """A number's LaTeX in plain text; anything else as it is."""
  # '1/2x' is not what `\\frac{1}{2}x` is, so formulas keep theirs.
  flat = _FRACTION.sub(lambda m: f' {m[1] or m[3]}/{m[2] or m[4]}', s)
  flat = _SCIENTIFIC.sub(lambda m: f'e{m[1] or m[2]}', flat)
  flat = re.sub(' +', ' ', flat).strip()
  name, value = _named(flat)
  if m := _DEGREES.fullmatch(value):
    value = f'{m[1]} degrees ' + {'C': 'celsius', 'F': 'fahrenheit'}.get(
        m[2], '')
  elif m := _SQUARE.fullmatch(value):
    power = {'2': 'square', '²': 'square'}.get(m[3] or m[4], 'cubic')
    value = f'{m[1]} {power} {m[2]}'
  value = value.strip().casefold().replace('¢', ' cents').replace('  ', ' ')
  value = re.sub(r'(?<=[0-9]) ?per ?cent$', '%', value)
  if _NUMBER.fullmatch(value):
    return f'{name} = {value}' if name else value
  return s


def _named(plain):
  """('x', '72') of 'x = 72', else ('', plain)."""
  named = _NAME.fullmatch(plain)
  return named.groups() if named else ('', plain)


class _Number(NamedTuple):
  value: Fraction | None  # None for a formula's
  unit: tuple[str, ...]
  signed: bool = False  # the first word of the unit is a sign of money


def _number(plain):
  """The number in words that `_plain` made; None if it is none."""
  m = _NUMBER.fullmatch(plain)
  if not m or (m['sign'] and m['inner']):
    return None
  fraction = lambda s: Fraction(s.replace(',', ''))
  value, below = fraction(m['value']), fraction(m['below'] or '1')
  if not below or (m['whole'] and not (m['below'] and below > 0)):
    return None
  value = fraction(m['whole'] or '0') + value / below
  value *= Fraction(10) ** int(m['exponent'] or 0)
  unit = m['unit'].replace('/', ' per ').split()
  money = m['money']
  if unit and unit[0] in _MONEY:
    if money:
      return None
    money, unit = unit[0], []
  signs = [_MONEY[money]] if money else []
  return _Number(-value if '-' in m['sign'] + m['inner'] else value,
                 (*signs, *unit), bool(money))


def _with_unit(formula):
  """A formula without its unit, and that."""
  m = _FORMULA_UNIT.fullmatch(formula)
  return ((m[1], _Number(None, tuple(m[2].split()))) if m
          else (formula, _Number(None, ())))


def _same_unit(said, wanted, context):
  """Whether the reference has the unit said, or none and that is a unit."""
  a, b = said.unit, wanted.unit
  if len(a) == len(b) and all(_forms(x) & _forms(y) for x, y in zip(a, b)):
    return True
  if wanted.signed and len(b) == 1:
    if a and not _forms(a[0]) & _forms(b[0]):
      return False
  elif b:
    return False
  if said.signed:
    a = a[1:]
    if any(len(w) == 1 or 'cent' in _forms(w) for w in a):  # '$72 m', '$72 %'
      return False
  return not a or (a[-1] not in _CONNECTORS and _are_units(a, context))


def _are_units(words, context):
  plain = re.sub(r'per ?cent', ' ', context.casefold()).replace('¢', ' cents ')
  known = set()
  for word in set(re.findall('[a-z]{3,}', plain)) - _CONNECTORS:
    known |= _forms(word)
  asked = re.findall(r'how (?:many|much) (more|less|fewer)\b', plain)
  return all(
      w in asked or w not in _CHANGES and (
          w in _CONNECTORS or not _forms(w).isdisjoint(_UNITS | known))
      for w in words)


def _forms(word):
  """A word, and what it may be the plural of."""
  forms = {word}
  if len(word) > 2:
    for ending, singular in (('s', ''), ('es', ''), ('ies', 'y')):
      if word.endswith(ending):
        forms.add(word.removesuffix(ending) + singular)
  return forms
