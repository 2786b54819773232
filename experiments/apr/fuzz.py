"""The verifier of countdown beside a brute-force checker, on changed answers.

  python -m experiments.apr.fuzz [--answers=1000000] [--seed=0]

The checker shares no code with the verifier. Answers are right ones and what is
left of them after some random changes, of words and of characters. Prints how
many are right, and every answer on which the two differ; exit status 1 if there
is one. Four minutes on one core.
"""

import argparse
import fractions
import itertools
import random
import re
import sys

import tqdm

from adasr_jax.tasks import countdown
from adasr_jax.tasks.countdown import solve

LARGEST = 99
OPERATIONS = {'+': fractions.Fraction.__add__, '-': fractions.Fraction.__sub__,
              '*': fractions.Fraction.__mul__,
              '/': fractions.Fraction.__truediv__}
_STEP = r'(0|[1-9]\d*) ([-+*/]) (0|[1-9]\d*) = (0|[1-9]\d*)'
_ANSWER = re.compile(f'{_STEP}( , {_STEP})*', re.ASCII)


def brute_force(text, numbers, target):
  """Tries every pair of what is there for every step, in exact fractions."""
  if not _ANSWER.fullmatch(text.strip(' ')):
    return False
  said = [m.groups() for m in re.finditer(_STEP, text, re.ASCII)]

  def search(there, i):
    if i == len(said):
      return list(there) == [target]
    a, op, b, result = said[i]
    for j, k in itertools.permutations(range(len(there)), 2):
      if there[j] != int(a) or there[k] != int(b):
        continue
      if op == '/' and there[k] == 0:
        continue
      value = OPERATIONS[op](fractions.Fraction(there[j]),
                             fractions.Fraction(there[k]))
      if (value.denominator != 1 or not 0 <= value <= LARGEST
          or value != int(result)):
        continue
      rest = [x for n, x in enumerate(there) if n not in (j, k)]
      if search([*rest, int(value)], i + 1):
        return True
    return False
  return search(list(numbers), 0)


def random_path(r, numbers):
  """Right steps from the numbers to anything; some are too large."""
  state, path, largest = tuple(numbers), [], r.choice((LARGEST, 400))
  while len(state) > 1 and (after := solve.steps(state, largest)):
    step, state = r.choice(after)
    path.append(step)
  return path


def mutate(r, text, numbers):
  """The text with one small change, of words or of characters."""
  words = text.split(' ')
  i, j = r.randrange(len(words)), r.randrange(len(words))
  kind = r.randrange(11)
  if kind == 0:
    words[i] = str(r.choice([*numbers, r.randrange(120)]))
  elif kind == 1:
    words[i] = r.choice('+-*/=,')
  elif kind == 2:
    words[i], words[j] = words[j], words[i]
  elif kind == 3:
    del words[i]
  elif kind == 4:
    words.insert(i, words[j])
  elif kind == 5:  # operands of a step change places
    s = 6 * r.randrange((len(words) + 1) // 6 or 1)
    if s + 2 < len(words):
      words[s], words[s + 2] = words[s + 2], words[s]
  elif kind == 6:  # steps change places
    parts = text.split(' , ')
    r.shuffle(parts)
    return ' , '.join(parts)
  elif kind == 7:
    words[i] = r.choice(['-', '+', '0', '', ' ', '\n', '.']) + words[i]
  elif kind == 8:
    words[i] += r.choice(['0', '.0', ' ', '\t', '\u0660', '\u00b2', ' ,', ')'])
  elif kind == 9:  # a right step of numbers that may be used already
    there = [*numbers, *(int(w) for w in words if w.isascii() and w.isdigit())]
    a, b = sorted((r.choice(there), r.choice(there)), reverse=True)
    op = r.choice('+-*/')
    parts = text.split(' , ')
    parts[r.randrange(len(parts))] = f'{a} {op} {b} = {solve.apply(a, op, b)}'
    return ' , '.join(parts)
  else:
    parts = text.split(' , ')
    parts.insert(r.randrange(len(parts) + 1), r.choice(parts))
    return ' , '.join(parts)
  return ' '.join(words)


def disagreements(n, seed):
  """Answers on which the two checkers differ; how many of n are right."""
  r, wrong, right = random.Random(seed), [], 0
  while n:
    k = r.randint(2, 4)
    numbers = tuple(r.randint(0, 20) for _ in range(k))
    path = random_path(r, numbers)
    target = path[-1].result if path else numbers[0]
    if r.random() < 0.2:
      target = r.randrange(50)
    text = countdown.spell(path)
    for _ in range(min(n, 8)):
      said = countdown.right(text, numbers, target, LARGEST)
      right += said
      if said != brute_force(text, numbers, target):
        wrong.append((text, numbers, target))
      n -= 1
      # From the right answer again and again, or on from the last change.
      text = mutate(r, text if r.random() < 0.5 else countdown.spell(path),
                    numbers)
  return wrong, right


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--answers', type=int, default=1_000_000)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  part, wrong, right = 10_000, [], 0
  parts = -(-args.answers // part)
  for i in tqdm.tqdm(range(parts), unit='answer', unit_scale=part):
    found, good = disagreements(min(part, args.answers - i * part),
                                f'{args.seed} {i}')
    wrong, right = wrong + found, right + good
  print(f'{args.answers} answers, {right} right, {len(wrong)} on which the '
        f'two differ')
  if wrong:
    sys.exit('\n'.join(map(repr, wrong)))


if __name__ == '__main__':
  main()
