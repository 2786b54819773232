r"""What counts as an answer, what as the right one, and what never breaks."""

from fractions import Fraction
import random
import time

import pytest

from adasr_jax.credit import answers
from adasr_jax.credit.answers import correct, extract


@pytest.mark.parametrize('text,want', [
    (r'so \boxed{72}', '72'),
    (r'\boxed{1} then \boxed{2}.', '2'),  # the last
    (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{\boxed{72}}', '72'),  # nested: the inner
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
    (r'\boxed{a\}b}', r'a\}b'),  # an escaped brace closes nothing
    (r'{ \boxed{5}', '5'),
    (r'} \boxed {5}', '5'),
    (r'\boxed{5} or \boxed{6', '5'),  # the last that is closed
    (r'\boxed{6', None),
    (r'\boxed{{6}', None),
    (r'\boxed{}', None),
    (r'\boxed{5} \boxed{ }', '5'),  # the last that holds something
    (r'\boxed{\boxed{}}', None),
    (r'\boxed{} #### 6', '6'),
    (r'\boxed 5', None),
    ('a #### 1\n#### 1,234 \nmore', '1,234'),
    (r'\boxed{5} #### 6', '5'),
    ('#### ', None),
    ('####', None),
    ('72', '72'),
    (' -1/2\n', '-1/2'),
    ('$1,234.50', '$1,234.50'),
    ('50%', '50%'),
    ('72 clips', '72 clips'),
    ('5 miles per hour', '5 miles per hour'),
    ('(B)', '(B)'),
    ('Maybe', 'Maybe'),
    ('yes.', 'yes.'),
    ('', None),
    (' \n', None),
    ('7 2', None),
    ('72 or 73', None),
    ('72 clips in all of it', None),
    ('the answer is 72', '72'),
    ('Answer: 72 clips', '72 clips'),
    ('The final answer is: $72.', '$72.'),
    ('Final answer: B', 'B'),
    ('#### Answer: 72', '72'),
    ('the answer is not 72', None),
    ('Answer 72', None),
    ('x = 72', 'x = 72'),
    ('72 grand', '72 grand'),  # an answer, if not that of 72
    ('yes and no', None),
    ('inf', None),
    ('nan', None),
    ('٧٢', None),
    ('７２', None),
])
def test_extract(text, want):
  assert extract(text) == want


RIGHT = [
    ('72', '72'), ('72.0', '72'), ('72.', '72'), ('+72', '72'),
    ('$1,234.50', '1234.5'), ('1,234', '1234'), (r'\$18', '18'),
    ('18', '$18'), ('.5', '0.5'), ('1/2', '0.5'), (r'\frac{1}{2}', '0.5'),
    (r'\dfrac12', '1/2'), (r'-\frac{1}{2}', '-0.5'), ('1 1/2', '1.5'),
    (r'1\frac{1}{2}', '3/2'), (r'\frac{-1}{2}', '-.5'), ('-5', '-5'),
    ('\u22125', '-5'), ('-$5', '$-5'), ('1e5', '100000'), ('1,000/4', '250'),
    ('50%', '50%'), ('50 percent', r'50\%'), ('50%', '50'),
    ('72 Clips', '72 clips'), ('1 clip', '1 clips'),
    (r'5\text{ cm}', '5 cm'), ('5cm', '5'), ('5 m', '5'),
    ('$72$', '72'), (r'\(72\)', '72'), ('9' * 400, '9' * 400),
    ('YES', 'yes'), ('No.', 'no'), (r'\text{maybe}', 'maybe'),
    ('(B)', 'B'), ('b', '(B)'), ('C.', 'c'), (r'\text{(D)}', 'D'),
    ('Ada  Lovelace', 'ada lovelace'), ('nan', 'nan'),
    (r'2\sqrt{2}', r'\sqrt{8}'), ('(x+1)^2', 'x^2+2x+1'),
    (r'\frac{\sqrt{2}}{2}', r'\frac{1}{\sqrt{2}}'),
    (r'\pi/2', r'\frac{\pi}2'),
    (r'2 \cdot 10^3', r'2\times 10^{3}'), ('( 1, 2 )', '(1,2)'),
]

WRONG = [
    ('73', '72'), ('-72', '72'), ('--72', '72'), ('-$-72', '72'),
    ('0.333', '1/3'), ('50%', '0.5'), ('0.5', '50%'), ('50', '50%'),
    ('72', '72 clips'), ('72 pens', '72 clips'), ('72 thousand', '72'),
    ('72 or more', '72'), ('72 and a half', '72'), ('2x', '2'),
    ('3 pi', '3'), ('72 73', '72'), ('72, 73', '72'), ('12,34', '1234'),
    ('1.234,50', '1234.5'), ('5 1.5', '6.5'), ('1/0', '1'), ('0/0', '0'),
    ('70+2', '72'), (r'\sqrt{16}', '4'), ('4', r'\sqrt{16}'),
    ('inf', '72'), ('nan', '72'), ('٧٢', '72'), ('７２', '72'), ('7²', '72'),
    ('½', '0.5'), ('9' * 400, '9' * 399 + '8'), ('1e999', '1e998'),
    ('0x48', '72'), ('7_2', '72'), ('(A)', 'B'), ('(B) or (C)', 'B'),
    ('yes', 'no'), ('not yes', 'yes'), ('__import__("os")', '72'),
    (r'\sqrt{2}', r'-\sqrt{2}'), ('(1,2)', '(2,1)'), ('(1,2)', '[1,2]'),
    ('x>3', 'x<3'), ('x^2 or 3', 'x^2+0'), (r'\frac{x}{0}', r'\frac{y}{0}'),
]


@pytest.mark.parametrize('said,reference', RIGHT)
def test_right(said, reference):
  assert correct(rf'\boxed{{{said}}}', reference)
  assert correct(f'think\n#### {said}', rf'so \boxed{{{reference}}}')


@pytest.mark.parametrize('said,reference', WRONG)
def test_wrong(said, reference):
  assert not correct(rf'\boxed{{{said}}}', reference)
  assert not correct(f'think\n#### {said}', f'because\n#### {reference}')


@pytest.mark.parametrize('text,reference,want', [
    ('72', 'It is so.\n#### 72', True),
    ('think 72', '72', False),  # no answer is given
    ('', '72', False), ('72', '', False), ('', '', False),
    (r'\boxed{}', '', False), ('.', '.', False),
    (r'\boxed{the red house}', 'The red house.', True),
    ('the red house', 'the red house', False),  # neither marked nor bare
])
def test_correct(text, reference, want):
  assert correct(text, reference) is want


CLIPS = 'How many clips did Ada sell per box of pies? Half a million or more.'
CENTS = 'A pen is 72 cents; 5 per cent of them are cheaper.'


@pytest.mark.parametrize('said,reference,problem,want', [
    # Units: real ones, and the nouns of the problem.
    ('72 clips', '72', CLIPS, True), ('72 clips', '72', '', False),
    ('72 clips', 'She sold her clips.\n#### 72', '', True),
    ('72 clip', '72', CLIPS, True), ('72 boxes of pies', '72', CLIPS, True),
    ('72 clips per box', '72', CLIPS, True), ('72 pens', '72', CLIPS, False),
    ('72 clips in total', '72', CLIPS, True), ('72 total', '72', '', True),
    ('72 hours', '72', '', True), ('72 km/h', '72', '', True),
    ('72 km/h', '72 km per h', '', True), ('72 square feet', '72', '', True),
    ('72 cm^2', '72', '', True), (r'72\text{ m}^2', '72 square m', '', True),
    ('72 cm²', '72 cm^3', '', False), ('72 square', '72', '', False),
    ('72 kg', '72', '', True), ('72 clips of', '72', CLIPS, False),
    *((f'72 {word}', '72', CLIPS + f' It is {word}.', False) for word in (
        'grand lakh lakhs crore million billion thousand hundred dozen k b '
        'negative wrong double half twice or more squared times bn mln tenths '
        'pi five fifths minus not over').split()),
    ('72 million clips', '72', CLIPS, False),
    ('72 or more', '72', CLIPS, False),
    ('72 more clips', '72', CLIPS, False),
    ('72 more clips', '72', 'How many more clips?', True),
    ('72 more', '72', 'How many more clips?', True),
    ('72 more than', '72', 'How many more clips than pies?', False),
    ('72 fewer', '72', 'How many more clips?', False),
    ('72 cents', '72', '', False), ('72 cents', '72', CENTS, True),
    ('72 cents', '72', '5 per cent', False), ('72¢', '72', CENTS, True),
    ('72 cents', '$72', CENTS, False), ('$72 cents', '72', CENTS, False),
    ('72 cents', '72 cents', '', True), ('72 cents', '0.72', CENTS, False),
    # Money.
    ('€72', '72', '', True), ('£72', '72', '', True), ('¥72', '72', '', True),
    ('₹72', '72', '', True), ('72', '€72', '', True), ('72 €', '72', '', True),
    ('€72', '$72', '', False), ('€72', '72 euros', '', True),
    ('$72', '72 dollars', '', True), ('72 dollars', '$72', '', True),
    ('72 euros', '$72', '', False), ('72', '72 dollars', '', False),
    ('$72 per hour', '72', '', True), ('$72 m', '72', '', False),
    ('$72 k', '72', '', False), ('$72%', '72', '', False),
    ('$72€', '72', '', False), ('72 clips', '$72', CLIPS, False),
    # Percent and degrees.
    ('72 per cent', '72%', '', True), ('72 percent', '72', '', True),
    ('72°', '72', '', True), (r'72^\circ', '72°', '', True),
    (r'72^{\circ}', '72 degrees', '', True), ('72', '72°', '', False),
    ('72°C', '72', '', True), ('72°C', '72°F', '', False),
    # Names.
    ('x=72', '72', '', True), ('72', 'x = 72', '', True),
    ('x = 72', 'x=72.0', '', True), ('x=72', 'y=72', '', False),
    ('x=72 clips', '72', CLIPS, True), ('x=73', '72', '', False),
    ('x=y=72', '72', '', False), ('3=72', '72', '', False),
    (r'x=\frac12', '0.5', '', True), (r'\theta = 72', '72', '', True),
    (r'x=\sqrt{2}', r'\sqrt{2}', '', True),
    (r'x=\sqrt{2}', r'y=\sqrt{2}', '', False),
    (r'5=\sqrt{2}', r'\sqrt{2}', '', False),
    # Notation.
    ('{72}', '72', '', True), ('{{72}', '72', '', False),
    (r'\{72\}', '72', '', False), (r'\mathbf{72}', '72', '', True),
    (r'\textbf{72}', '72', '', True), (r'\bf 72', '72', '', True),
    (r'{\bf{72}}', '72', '', True), (r'\mathbf{\frac{1}{2}}', '.5', '', True),
    (r'\text{72 \textbf{clips}}', '72', CLIPS, True),
    ('1/-2', '-0.5', '', True), (r'\frac{1}{-2}', '-1/2', '', True),
    (r'\frac{1.5}{3}', '1/2', '', True), ('-1/-2', '0.5', '', True),
    ('1 1/-2', '0.5', '', False), ('--1/2', '0.5', '', False),
    (r'1\times 10^3', '1000', '', True), (r'1.5 \cdot 10^{-3}', '.0015', '',
                                          True),
    (r'1 \cdot 10^3', '1e3', '', True), ('2×10^2', '200', '', True),
    ('2*10^2', '200', '', True), (r'2\times 10^3', '2001', '', False),
    (r'1\times 10^10', '10', '', False), ('10^3', '1000', '', False),
    (r'\frac{1}{2}x', r'\frac{1}{2x}', '', False),
    (r'2\sqrt{2} cm', r'2\sqrt{2}', '', True),
    (r'2\sqrt{2} clips', r'\sqrt{8}', CLIPS, True),
    (r'2\sqrt{2} million', r'\sqrt{8}', CLIPS, False),
    (r'2\sqrt{2}', r'\sqrt{8} cm', '', False),
    (r'The answer is $\sqrt{8}$', r'2\sqrt{2}', '', True),
])
def test_what_a_user_accepts(said, reference, problem, want):
  assert correct(rf'so \boxed{{{said}}}', reference, problem=problem) is want
  if '\n' not in reference:
    assert correct(f'#### {said}', f'#### {reference}',
                   problem=problem) is want


@pytest.mark.parametrize('text,want', [
    ('Answer: 72', True), ('The answer is 72', True),
    ('Final answer: 72', True), ('the final answer is: 72.', True),
    ('Answer: 72 grand', False), ('The answer is not 72', False),
    (r'\boxed{72} or \boxed{}', True), (r'\boxed{72} \boxed{73}', False),
    (r'\boxed{\boxed{}72}', False), ('x=72', True), ('{72}', True),
])
def test_bare_answers(text, want):
  assert correct(text, '72') is want


NOISE = 10_000
NOISES = [
    ' ' * NOISE, '9' * NOISE, '9,' * (NOISE // 2), '(' * NOISE,
    r'\boxed{' * (NOISE // 7), r'\boxed{1}' * (NOISE // 9), '{}' * NOISE,
    r'\boxed{' * 1000 + '}' * 1000, '#### ' * (NOISE // 5), '\\' * NOISE,
    '1 ' * (NOISE // 2), 'a ' * (NOISE // 2), '\\boxed' + ' ' * NOISE + '{',
    '$' * NOISE, '\x00\ud800\u202e' * (NOISE // 3), '%' * NOISE,
    r'\text{' * (NOISE // 6), r'\frac{1}{' * (NOISE // 9), '1/' * NOISE,
]
SLOW = [  # each takes math-verify seconds, or for ever
    '9^{9^{9^{9}}}', '9^{{99999999}}', '9^(99999999)', '9**9**9**9', '99999!',
    '(' * 30 + '1' + ')' * 30, '(x+y+z+w)^{9}(a+b+c)^9',
    r'\sum_{n=1}^{99999} n^{n}', r'\int_0^1 e^{-x^2} dx',
    '(((x+1)^9+1)^9+1)^9',
]


def test_noise_is_wrong_at_once():
  correct(r'\boxed{x+1}', '1+x+0')  # starts a process, half a second
  for noise in NOISES + [n[:1000] for n in NOISES] + SLOW:
    for text in (noise, rf'\boxed{{{noise}}}', f'#### {noise}'):
      for reference in ('7', r'\frac{\sqrt{2}}{2}+x'):
        start = time.perf_counter()
        assert correct(text, reference) is False, text[:40]
        # Milliseconds; the bound leaves room for a busy machine.
        assert time.perf_counter() - start < 1.0, text[:40]


def test_works_outside_the_main_thread():
  # math-verify's own time limit (SIGALRM) raises here.
  import concurrent.futures
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(correct, r'\boxed{2\sqrt{2}}', r'\sqrt{8}').result()


PROBLEM = 'How many clips and pies for 3 million cents, negative or not?'
_SCALES = ('thousand million grand lakh crore k dozen hundred double half '
           'negative wrong squared or tenths pi cubed not x').split()
_GARBAGE = ('²', '½', '٣', '!', ' or 73', ' 73', ',5', ' = 5', '\\', '^2',
            ' + 1', 'x', '\u200b5', ' (no)', '/0', 'e9999', ' %%', '-1', ';0')


def _spelled(rng, value):
  """A spelling of the number, made without the code under test."""
  sign = rng.choice(('-', '\u2212', '- ')) if value < 0 else rng.choice(
      ('', '', '+'))
  n, d = abs(value.numerator), value.denominator
  k = rng.randrange(1, 4)
  kinds = [f'{n * k}/{d * k}', rf'\frac{{{n * k}}}{{{d * k}}}',
           rf'\dfrac{{{n}}}{{{d}}}']
  if not sign:
    kinds += [f'-{n}/-{d}', rf'\frac{{-{n}}}{{-{d}}}']
  if n > d > 1:
    kinds += [f'{n // d} {n % d}/{d}', rf'{n // d}\frac{{{n % d}}}{{{d}}}']
  if d == 1:
    kinds += [f'{n}', f'{n:,}', f'{n}.', f'{n:,}.00', f'0{n}']
  if 10**4 % d == 0:  # four digits say all of it
    places = n * 10**4 // d
    decimal = f'{places // 10**4}.{places % 10**4:04d}'
    kinds += [decimal, decimal.rstrip('0').rstrip('.'),
              f'{places}e-4', rf'{places} \times 10^{{-4}}',
              rf'{places}\cdot 10^{{-4}}']
  return sign + rng.choice(kinds)


def _dressed(rng, s):
  """The same number, as a user writes it; no two of what excludes another."""
  k = rng.randrange(16)
  if k < 5:
    s += ' ' + rng.choice(('clips', 'pies', 'km/h', 'hours', 'clips in total',
                           'cents', 'kg', 'square miles', 'per cent', 'pie'))
  elif k == 5:
    s = rng.choice('xyn') + rng.choice(('=', ' = ')) + s
  elif k == 6 and s[0].isdigit():
    s = rng.choice(('$', r'\$', '€', '£', '¥', '₹')) + s
  elif k == 7:
    s += rng.choice((r'^\circ', '°', r'^{\circ}', r'\%', '%'))
  if rng.random() < .3:
    s = rng.choice((r'\text{%s}', '{%s}', r'\mathbf{%s}', r'\(%s\)', '$%s$',
                    r'\textbf{%s}', ' %s ', r'%s\,')) % s
  return s


def _written(rng, s):
  return rng.choice((
      r'\boxed{%s}', r'so \boxed{%s}.', r'\boxed{1} then \boxed{%s}',
      r'\boxed{\boxed{%s}}', r'\boxed{%s} \boxed{}', '#### %s',
      'a #### 1\n#### %s', 'Answer: %s', 'The answer is %s', '%s')) % s


def fuzz(cases, seed=0):
  """Checks that many answers against fractions; how many were right, wrong."""
  rng = random.Random(seed)
  counts = [0, 0]
  for _ in range(cases):
    d = rng.choice((1, 1, 1, 2, 3, 4, 5, 8, 100, 7, 625))
    value = Fraction(rng.randrange(-10**rng.randrange(1, 9), 10**6), d)
    reference = _spelled(rng, value)
    kind = rng.randrange(7)
    if kind < 3:  # the same
      text, want = _written(rng, _dressed(rng, _spelled(rng, value))), True
    elif kind == 3:  # another number
      other = rng.choice((
          value + 1, value * 10, -value, value / 100, value * 1000,
          value + Fraction(1, 10**4), value + Fraction(1, 3), value * 2))
      text = _written(rng, _dressed(rng, _spelled(rng, other)))
      want = other == value
    elif kind == 4:  # a word that changes it, or garbage
      said = _spelled(rng, value)
      said += (' ' + rng.choice(_SCALES) + rng.choice(('', ' clips'))
               if rng.random() < .5 else rng.choice(_GARBAGE))
      text, want = _written(rng, said), False
    elif kind == 5:  # some characters are others
      said = list(_spelled(rng, value))
      for _ in range(rng.randrange(1, 3)):
        said[rng.randrange(len(said))] = rng.choice(
            '0123456789-+.,/e $%{}\\x٣²')
      said = ''.join(said)
      text = _written(rng, said)
      try:
        plain = said.replace('\u2212', '-')
        if len(plain.rpartition('e')[2]) > 3 and 'e' in plain:
          raise ValueError('not read, and slow in the oracle')
        if set(plain) & set('{}\\'):
          raise ValueError('a box may end earlier, and hold another number')
        want = plain.isascii() and Fraction(plain) == value
      except (ValueError, ZeroDivisionError):
        want = None  # no plain number: it must not raise
    else:  # anything
      text = ''.join(chr(rng.choice((
          rng.randrange(32, 127), rng.randrange(0x3000), rng.randrange(0x110000)
      ))) for _ in range(rng.randrange(30)))
      text = _written(rng, text)
      want = None
    found = correct(text, reference, problem=PROBLEM)
    assert found in (True, False)
    assert want is None or found is want, (text, reference, want)
    counts[0 if found else 1] += 1
  return counts


def test_fuzz():
  right, wrong = fuzz(10_000)
  assert right > 2000 and wrong > 2000


def test_what_votes_together():
  same = lambda *texts: {answers.same(t) for t in texts}
  assert same('72', r'\boxed{72}', 'The answer is 72.', '#### 72', '72 clips',
              '$72', 'x = 72', '144/2') == {'72'}
  assert same('50%', r'\boxed{50 \%}') == {'50%'}
  assert same('Yes', 'yes.') == {'yes'}
  assert same('', 'it may be 71 or 72', 'so 7 and 8') == {''}
  assert len(same('72', '71', '0.72', '-72', '72%')) == 5
