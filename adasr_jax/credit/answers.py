"""The one verifier: what a text answers, and whether that is right.

Training and evaluation share it. It never evaluates a model's text as code,
never raises on one, and takes time linear in its length.

What counts as the same answer:
  - the same words, whatever their case and spacing; 'B' and '(B)';
  - the same number, exactly (as fractions, never as floats): '1,234.50' and
    '$1234.5', '1/2' and '0.5', '1e5' and '100000'; 0.33 is not 1/3;
  - a number with a unit where the reference has that unit or none:
    '72 clips' for '72'; but not '72' for '72 clips'. '%' is such a unit:
    '50%' is right for '50%' and for '50', '0.5' is right for neither;
  - two formulas that math-verify finds equal. A formula is never right for a
    plain number: '70+2' does not answer '72'.
"""

from __future__ import annotations

from fractions import Fraction
import logging
import re

MAX_ANSWER = 1000  # characters; a longer one does not count

# Only ASCII: other digits, '½' and '²' are not read.
_UNSIGNED = r'(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+'
_NUMBER = re.compile(
    rf'(?P<sign>[-+]?) ?\$? ?(?P<inner>-?)(?:(?P<whole>[0-9]+) )?'
    rf'(?P<value>{_UNSIGNED})'
    rf'(?:e(?P<exponent>[-+]?[0-9]{{1,3}})|/(?P<below>{_UNSIGNED}))?'
    # A letter that touches the number is a factor: '2x'.
    rf'(?P<unit> ?%| ?[a-z]{{2,}}(?: [a-z]+){{0,2}}| [a-z](?: [a-z]+){{0,2}}|)')
# After a number these are no unit, they change it: '72 thousand', '72 or more'.
_NO_UNIT = frozenset(
    'hundred hundreds thousand thousands million millions billion billions '
    'trillion dozen dozens half halves third thirds quarter and or to plus '
    'minus over not than point squared cubed e k x y z pi sqrt'.split())
_WORD_ANSWERS = ('yes', 'no', 'maybe')
_CHOICE = re.compile(r'\(?([a-z])[).:]?')


def extract(text: str) -> str | None:
  r"""The answer that a text gives, or None where it gives none.

  The content of the last balanced \boxed{...} (the inner one, if nested);
  else the rest of the line after the last '####'; else the whole text, if it
  is a bare answer: one number, with a unit of at most three words; yes, no or
  maybe; the letter of a choice.
  """
  found = _last_boxed(text)
  if found is None and '####' in text:
    found = (text.rpartition('####')[2].splitlines() or [''])[0]
  if found is None and _is_bare(text):
    found = text
  return (found or '').strip() or None


def correct(text: str, reference: str) -> bool:
  """Whether the answer that a text gives is the reference answer.

  Args:
    text: What the model wrote.
    reference: The answer, bare, or as in `extract`.
  """
  said = extract(text)
  wanted = extract(reference) or reference.strip()
  if not said or not wanted or max(len(said), len(wanted)) > MAX_ANSWER:
    return False
  said, wanted = _plain(said), _plain(wanted)
  if said == wanted:
    return said != ''
  a, b = _number(said), _number(wanted)
  if a and b:
    return a[0] == b[0] and b[1] in ('', a[1])
  return not a and not b and _same_formula(said, wanted)


def _last_boxed(text):
  """What the last balanced box holds; one pass, however deep they nest."""
  last, opened = None, []
  for token in re.finditer(r'\\boxed *\{|\\.|[{}]', text):
    if token[0] == '}':
      if opened:
        start, boxed = opened.pop()
        if boxed and (last is None or start > last[0]):
          last = start, token.start()
    elif token[0][-1] == '{' and token[0] != r'\{':
      opened.append((token.end(), len(token[0]) > 1))
  return None if last is None else text[slice(*last)]


def _is_bare(text):
  if len(text) > MAX_ANSWER:
    return False
  plain = _plain(text)
  return (plain in _WORD_ANSWERS or bool(re.fullmatch('[a-z]', plain))
          or _number(plain) is not None)


def _plain(answer):
  """One spelling for answers that differ only in notation."""
  s = answer.replace('\u2212', '-').strip()
  s = re.sub(r'\\(?:text|mathrm|mbox|textbf) ?\{([^{}]*)\}', r' \1', s)
  s = re.sub(r'\\[dt]?frac ?\{(-?[0-9]+)\}\{([0-9]+)\}', r' \1/\2', s)
  s = re.sub(r'\\[dt]?frac ?([0-9])([0-9])(?![0-9])', r' \1/\2', s)
  s = re.sub(r'\\(?:left|right|displaystyle)(?![a-zA-Z])', ' ', s)
  s = re.sub(r'\\[!,;: ()\[\]]', ' ', s)
  s = s.replace(r'\$', '$').replace(r'\%', '%').replace('{,}', ',')
  if len(s) > 2 and s[0] == s[-1] == '$':
    s = s.strip('$')
  s = re.sub(r'\s+', ' ', s).strip().rstrip('.').strip('"\'` ')
  if '\\' in s:  # in a formula x and X are two things
    return s
  s = s.casefold()
  s = re.sub(r'\bpercent$', '%', s)
  choice = _CHOICE.fullmatch(s)
  return choice[1] if choice else s


def _number(plain):
  """(value, unit) of a number in words that `_plain` made; else None."""
  m = _NUMBER.fullmatch(plain)
  if not m or _NO_UNIT.intersection(m['unit'].split()):
    return None
  if (m['sign'] and m['inner']) or (m['whole'] and not m['below']):
    return None
  value = Fraction(m['value'].replace(',', ''))
  below = Fraction((m['below'] or '1').replace(',', ''))
  if not below:
    return None
  value = Fraction(m['whole'] or 0) + value / below
  value *= Fraction(10) ** int(m['exponent'] or 0)
  negative = '-' in m['sign'] + m['inner']
  return -value if negative else value, m['unit'].strip().removesuffix('s')


# What math-verify may read. It stops slow input with SIGALRM, which works
# only in the main thread and not inside a big power. So we set no time limit
# and admit nothing that can be slow: 9^{9^9}, 10000!, 30 nested parentheses
# (3 s), (x+y+z+w)^9 (a+b+c)^9 (4 s).
_COMMANDS = frozenset(
    'frac dfrac tfrac sqrt cdot times div pm pi circ infty cup cap in le leq '
    'ge geq ne neq lt gt sin cos tan log ln theta alpha beta'.split())


def _is_cheap_formula(s):
  if len(s) > 80 or not re.search(r'[\\^+\-*/=<>(),]', s) or '!' in s:
    return False
  commands = re.findall(r'\\([a-zA-Z]+)', s)
  rest = re.sub(r'\\[a-zA-Z]+', ' ', s)
  if not _COMMANDS.issuperset(commands) or re.search(r'[a-zA-Z]{3}', rest):
    return False
  depth, power = 0, 1
  for c in rest:
    depth += (c in '([{') - (c in ')]}')
    if not 0 <= depth <= 4:
      return False
  exponents = re.findall(r'\^ *(-?[0-9]+|[a-z]|\{[ 0-9a-z+\-/]*\})', rest)
  if len(exponents) < rest.count('^') or '**' in rest:
    return False
  for n in re.findall('[0-9]+', ' '.join(exponents)):
    power *= max(int(n), 1)
  letters = len(set(re.findall('[a-zA-Z]', rest)))
  return depth == 0 and letters <= 3 and power <= (16 if letters else 64)


def _same_formula(said, wanted):
  if not (_is_cheap_formula(said) and _is_cheap_formula(wanted)):
    return False
  if said.replace(' ', '') == wanted.replace(' ', ''):
    return True
  import math_verify
  # It warns at every start about callers that set no time limit.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  try:
    # No fallback to strings, nor to a part where the whole does not parse.
    a, b = (math_verify.parse(f'${s}$', parsing_timeout=None,
                              fallback_mode='no_fallback')
            for s in (said, wanted))
    return bool(a and b) and math_verify.verify(b, a, timeout_seconds=None)
  except Exception:  # text that breaks the parser is a wrong answer
    return False
