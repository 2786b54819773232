r"""What counts as an answer, what as the right one, and what never breaks."""

import time

import pytest

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
    (r'\boxed{5} \boxed{ }', None),  # the last decides, even if empty
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
    ('the answer is 72', None),
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
    ('72 clips', '72'), ('72 Clips', '72 clips'), ('1 clip', '1 clips'),
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
  correct(r'\boxed{x+1}', '1+x+0')  # imports math-verify, half a second
  for noise in NOISES + [n[:1000] for n in NOISES] + SLOW:
    for text in (noise, rf'\boxed{{{noise}}}', f'#### {noise}'):
      for reference in ('7', r'\frac{\sqrt{2}}{2}+x'):
        start = time.perf_counter()
        assert correct(text, reference) is False, text[:40]
        # Milliseconds; the bound leaves room for a busy machine.
        assert time.perf_counter() - start < 0.25, text[:40]


def test_works_outside_the_main_thread():
  # math-verify's own time limit (SIGALRM) raises here.
  import concurrent.futures
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(correct, r'\boxed{2\sqrt{2}}', r'\sqrt{8}').result()
