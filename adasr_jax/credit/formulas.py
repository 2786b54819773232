r"""Whether two formulas are equal, in bounded time.

We split lists, intervals and relations ourselves; math-verify reads what is
left, expressions, and we compare these by their values, to hundreds of digits,
where the letters stand for numbers fixed once and for all. We do not let
sympy simplify or solve: that takes seconds on short formulas. Nor do we let
math-verify compare: it finds (3,1) equal to (2,1) (both are empty intervals),
0.3333333 to 1/3 and 5=\sqrt{2} to \sqrt{2}.

What is admitted is bounded by its size alone, so a verdict does not depend on
how busy the machine is. As a last resort the work is done in a process of its
own, which we kill after LIMIT seconds. This file is that process's program and
must not import JAX.
"""

from __future__ import annotations

import atexit
import functools
import gc
import itertools
import json
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import threading

from absl import logging

LIMIT = 5.0  # seconds for one pair; the slowest of 10000 random ones took 0.2
_START_LIMIT = 60.0  # seconds for the imports of the process
_PAIRS = 1000  # that a process compares; the parser keeps 50 KB for each

MAX_LENGTH = 80  # characters
_MAX_DEPTH = 3  # of brackets; math-verify takes seconds for 30
_MAX_COMMANDS = 6
_MAX_BARS = 2  # nobody knows which of many opens and which closes
_MAX_ITEMS = 6  # of a list, in any order: 6! ways to pair two of them
_COMMANDS = frozenset(
    'frac dfrac tfrac sqrt cdot times div pm pi infty cup in sin cos tan log '
    'ln theta alpha beta'.split())
_SPELLINGS = (
    (r'\\(?:left|right)(?![a-zA-Z])', ''), (r'\\leq?(?![a-zA-Z])', '≤'),
    (r'\\geq?(?![a-zA-Z])', '≥'), (r'\\neq?(?![a-zA-Z])', '≠'),
    (r'\\lt(?![a-zA-Z])', '<'), (r'\\gt(?![a-zA-Z])', '>'),
    ('<=', '≤'), ('>=', '≥'), ('!=', '≠'), ('π', r'\\pi '),
    ('∞', r'\\infty '), ('∪', r'\\cup '), ('[×·]', r'\\cdot '),
    ('÷', r'\\div '), ('±', r'\\pm '), (r'\s+', ' '))
# Two numbers side by side; a factor that may or may not belong to the divisor.
_AMBIGUOUS = re.compile(
    r'(?<![_0-9])[0-9]++ +[0-9]'
    r'|/ *(?:[0-9]++|[a-zA-Z]|\([^()]*\)|\\[a-z]++) *'
    r'(?:[0-9a-zA-Z(]|\\(?!cdot|times|div|pm|cup|in(?:fty)?(?![a-z])))')
_FORMULA = re.compile(r'[0-9a-zA-Z \\^+\-*/=<>≤≥≠(),.|{}\[\]_]*')


def equal(said: str, wanted: str) -> bool:
  """Whether two formulas are equal; False where that is hard to tell."""
  a, b = _spelled(said), _spelled(wanted)
  if not (_admitted(a) and _admitted(b)):
    return False
  if a.replace(' ', '') == b.replace(' ', ''):
    return True
  return _worker.equal(a, b)


def _spelled(s):
  if len(s) > 2 * MAX_LENGTH:
    return s
  for pattern, spelling in _SPELLINGS:
    s = re.sub(pattern, spelling, s)
  return s.strip()


def _admitted(s):
  if len(s) > MAX_LENGTH or not _FORMULA.fullmatch(s):
    return False
  if not re.search(r'[\\^+\-*/=<>≤≥≠(),]', s) or '**' in s:
    return False
  commands = re.findall(r'\\([a-zA-Z]+)', s)
  rest = re.sub(r'\\[a-zA-Z]+', ' ', s)
  if (len(commands) > _MAX_COMMANDS or s.count('|') > _MAX_BARS
      or not _COMMANDS.issuperset(commands) or _AMBIGUOUS.search(s)
      or re.search('[a-zA-Z]{3}', rest)):
    return False  # neighbouring letters are a product, but three are a word
  depth = 0
  for c in rest:
    depth += (c in '([{') - (c in ')]}')
    if not 0 <= depth <= _MAX_DEPTH:
      return False
  return depth == 0


def compare(a: str, b: str) -> bool:
  """`equal`, of two admitted formulas, in this process."""
  try:
    return _same_list(_expanded(a), _expanded(b))
  except Exception:  # text that breaks the parser is a wrong answer
    return False


# Structure: a list of items; an item is a relation, or a union of sets, each
# an interval, tuple, set or expression.


def _split(s, separator):
  """The parts of s between separators that no bracket encloses.

  None where a bracket closes that was not opened.
  """
  parts, depth, start = [], 0, 0
  for m in re.finditer(rf'\\[{{}}]|[(\[{{}})\]]|{separator}', s):
    if m[0][-1] in '([{':
      depth += 1
    elif m[0][-1] in ')]}':
      depth -= 1
      if depth < 0:
        return None
    elif depth == 0:
      parts.append(s[start:m.start()])
      start = m.end()
  return [p.strip() for p in (*parts, s[start:])]


def _expanded(s):
  """The items of a list; `a \\pm b` is two of them."""
  items = []
  for item in _split(s, ','):
    items += ([item.replace(r'\pm', sign) for sign in '+-']
              if r'\pm' in item else [item])
  return items


def _same_list(a, b):
  """In any order."""
  if len(a) != len(b) or len(a) > _MAX_ITEMS:
    return False
  same = [[_same_item(x, y) for y in b] for x in a]
  return any(all(row[j] for row, j in zip(same, order))
             for order in itertools.permutations(range(len(b))))


def _same_item(a, b):
  if a.replace(' ', '') == b.replace(' ', ''):
    return True
  relations = [re.findall('[=<>≤≥≠]', s) for s in (a, b)]
  if all(relations):
    return _same_relation(a, b, *relations)
  if any(relations):  # of these only `x = 5` is as good as `5`
    a, b = (_unnamed(s) for s in (a, b))
    if re.search('[=<>≤≥≠]', a + b):
      return False
  a, b = (_split(re.sub(r'^[a-zA-Z] ?\\in(?![a-z])', '', s), r'\\cup(?![a-z])')
          for s in (a, b))
  return len(a) == len(b) and all(_same_set(x, y) for x, y in zip(a, b))


def _unnamed(s):
  return re.sub(r'^(?:[a-zA-Z]|\\[a-z]+)(?: ?\([a-z]\))? ?= ?', '', s)


def _same_relation(a, b, a_signs, b_signs):
  a, b = (re.split('[=<>≤≥≠]', s) for s in (a, b))
  # From the smaller to the larger.
  for sides, signs in ((a, a_signs), (b, b_signs)):
    if set(signs) <= set('>≥'):
      sides.reverse()
      signs[:] = ['<≤'['>≥'.index(s)] for s in reversed(signs)]
  if a_signs != b_signs:
    return False
  if len(a) > 2:
    return all(_same_value(x, y) for x, y in zip(a, b))
  # One is a multiple of the other, a positive one if the sides matter.
  a, b = ([x - y for x, y in zip(*map(_values, sides))] for sides in (a, b))
  if any(abs(x) < _tiny() for x in a + b):
    return False
  factors = [x / y for x, y in zip(a, b)]
  f = factors[0]
  return (all(abs(g - f) < _tiny() * (1 + abs(f)) for g in factors)
          and (a_signs[0] in '=≠' or (abs(f.imag) < _tiny() and f.real > 0)))


def _same_set(a, b):
  for left, right in ((r'\{', r'\}'), ('(', ')'), ('[', ']'), ('(', ']'),
                      ('[', ')')):
    inside = [_inside(s, left, right) for s in (a, b)]
    if all(inside):
      a_items, b_items = inside
      if left == r'\{':
        return _same_list(a_items, b_items)
      return (len(a_items) == len(b_items)
              and all(_same_value(x, y) for x, y in zip(a_items, b_items)))
    if any(inside):
      return False
  return _same_value(a, b)


def _inside(s, left, right):
  """The items between these brackets; None if s is something else."""
  if not (s.startswith(left) and s.endswith(right)):
    return None
  items = _split(s[len(left):-len(right)], ',')
  return items if items and (left == r'\{' or len(items) > 1) else None


# Values.

_LARGEST = 150  # digits before or behind the point that a value may have
_DIGITS = 3 * _LARGEST  # of the arithmetic


@functools.cache
def _mp():
  import mpmath
  mp = mpmath.mp.clone()
  mp.dps = _DIGITS
  return mp


@functools.cache
def _tiny():
  """Closer than this is equal; what is not, differs by more."""
  return _mp().mpf(10) ** -(_LARGEST + 50)


def _same_value(a, b):
  if a.replace(' ', '') == b.replace(' ', ''):
    return bool(a)
  return all(x == y or abs(x - y) < _tiny() * max(1, abs(x), abs(y))
             for x, y in zip(_values(a), _values(b)))


@functools.lru_cache(maxsize=100)  # in lists each item meets each
def _values(s):
  """[3], what an expression is worth at three points."""
  tree = _read(s)
  return [_value(tree, point) for point in range(3)]


def _read(s):
  """The sympy expression that math-verify reads."""
  import math_verify
  from latex2sympy2_extended import NormalizationConfig
  # It adds the factors of 2(3) and drops digits of a float.
  s = re.sub(r'([0-9]*)\.([0-9]+)',
             lambda m: f'({m[1]}{m[2]}/1{"0" * len(m[2])})', s)
  s = re.sub(r'(?<![\^_0-9])([0-9]+) ?(?=\()|(\\pi) ?(?=\()', r'\1\2\\cdot ', s)
  s = re.sub(r'\) ?(?=[0-9(])', r')\\cdot ', s)
  config = math_verify.LatexExtractionConfig(
      normalization_config=NormalizationConfig(
          basic_latex=True, units=False, malformed_operators=True, nits=False,
          boxed='none', equations=False))
  found, = math_verify.parse(f'${s}$', [config], parsing_timeout=None,
                             fallback_mode='no_fallback', raise_on_error=True)
  return found


def _value(tree, point):
  import sympy
  from sympy.core.function import AppliedUndef
  mp = _mp()
  if tree.is_Rational:
    value = mp.mpf(int(tree.p)) / int(tree.q)
  elif tree.is_Symbol or isinstance(tree, AppliedUndef):  # f(x) too
    value = _letter(str(tree), point)
  elif tree in (sympy.oo, -sympy.oo):
    return mp.inf if tree is sympy.oo else -mp.inf
  elif tree in _constants():
    value = _constants()[tree]
  else:
    args = [_value(t, point) for t in tree.args]
    if not all(mp.isfinite(x) for x in args):
      raise ValueError('infinite')
    value = _apply(type(tree).__name__, args)
  size = abs(value)
  if size < _tiny():
    return mp.mpf(0)
  if abs(mp.mag(size)) > _LARGEST * 3.3:  # bits
    raise ValueError('too large or too small')
  return value


@functools.cache
def _constants():
  import sympy
  mp = _mp()
  return {sympy.pi: +mp.pi, sympy.E: +mp.e, sympy.I: mp.mpc(0, 1)}


def _letter(name, point):
  mp = _mp()
  if name == 'i':
    return mp.mpc(0, 1)
  # Too many digits to write a formula that vanishes just there.
  draw = random.Random(f'{name} {point}').getrandbits(160)
  return mp.mpf(draw) / 2**157 * (-1 if point == 1 else 1)


def _apply(name, args):
  mp = _mp()
  if name == 'Add':
    return mp.fsum(args)
  if name == 'Mul':
    return mp.fprod(args)
  if name == 'Pow':
    base, exponent = args
    if abs(exponent) > 1000:
      raise ValueError('too large an exponent')
    return mp.power(base, exponent)
  if name == 'UnevaluatedExpr':
    return args[0]
  if abs(args[0]) > 10**6:
    raise ValueError('too large an argument')
  names = {'Abs': 'fabs', **{n: n for n in (
      'log', 'exp', 'sin', 'cos', 'tan', 'asin', 'acos', 'atan')}}
  return getattr(mp, names[name])(*args)


# The process.


class _Worker:
  """Compares in a process of its own, which starts at the first pair."""

  def __init__(self):
    self._broken = False
    self.forget()

  def forget(self):
    """As if it had not started: a fork must not write into our pipe."""
    self._lock = threading.Lock()
    self._process = None
    self._pairs = 0

  def equal(self, a, b):
    with self._lock:
      for _ in range(2):
        if self._broken or not self._start():
          return compare(a, b)
        answer = self._answer(a, b)
        if answer in (b'0', b'1'):
          return answer == b'1'
        self.stop()
        if answer is None:  # too slow, and would be again
          break
        # It died; whether of these two, another one will show.
      logging.warning('Gave up comparing %r with %r: wrong.', a, b)
      return False

  def _answer(self, a, b):
    """b'0' or b'1'; None after the time limit, b'' where the process died."""
    try:
      self._process.stdin.write(json.dumps([a, b]).encode() + b'\n')
      return self._reply(LIMIT)
    except OSError:
      return b''

  def _start(self):
    if self._process and self._pairs < _PAIRS:
      self._pairs += 1
      return True
    self.stop()
    self._pairs = 1
    try:
      # Not multiprocessing: its children import the main program again, and
      # with it JAX.
      self._process = subprocess.Popen(
          [sys.executable, '-P', __file__], stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
      if self._reply(_START_LIMIT) != b'r':
        raise OSError('it does not start')
      return True
    except (OSError, ValueError) as e:
      self.stop()
      self._broken = True
      logging.warning('Comparing formulas without a time limit: %s', e)
      return False

  def _reply(self, seconds):
    with selectors.DefaultSelector() as ready:
      ready.register(self._process.stdout, selectors.EVENT_READ)
      return self._process.stdout.read(1) if ready.select(seconds) else None

  def stop(self):
    process, self._process = self._process, None
    if process:
      process.kill()
      process.wait()
      process.stdin.close()
      process.stdout.close()


def _serve():
  for stop in (signal.SIGINT, signal.SIGTERM):  # the parent's affair
    signal.signal(stop, signal.SIG_IGN)
  compare(r'\frac{\sqrt{2}}{3}(x+\log_{2}(8))^{2}', 'x+1')  # imports
  gc.disable()  # it pauses for longer than a pair takes; see _PAIRS
  out = sys.stdout.buffer
  out.write(b'r')
  out.flush()
  for line in sys.stdin:  # ends with the parent
    out.write(b'1' if compare(*json.loads(line)) else b'0')
    out.flush()


_worker = _Worker()
atexit.register(_worker.stop)
os.register_at_fork(after_in_child=_worker.forget)

if __name__ == '__main__':
  _serve()
