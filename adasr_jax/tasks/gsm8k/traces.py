r"""Supervised streaming traces of GSM8K, made without a teacher model.

  python -m adasr_jax.tasks.gsm8k.traces --path=gsm8k_train.jsonl \
      --out=traces.jsonl

GSM8K's solutions carry calculator annotations, `48/2 = <<48/2=24>>24 clips`.
A step (a line of the solution) is thought at the first sentence by which
everything that it uses has been read:

  - its operands: numbers of a sentence, however written (digits, words, 'a
    dozen', 'half', 'twice', '20%', '2/3', '50 cents', a unit that implies a
    constant), or results of earlier steps;
  - its words: it does not speak of what the problem first mentions in a later
    sentence.

The line that gives the answer is thought no earlier than the question. A
sentence whose numbers a later step uses gets a note of them; any other becomes
a skip. A problem is left out, with the reason, where

  - an operand has no source;
  - a number is in several sentences, so that it is not clear when a step can be
    thought;
  - a sentence that would be skipped has a number, or a word such as 'rest',
    'equally', 'each': a step may use it even if none certainly does;
  - the steps do not compute the answer.

configs/gsm8k.py:sft trains on the output; sources.Jsonl reads it with

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

from adasr_jax.core import files
from adasr_jax.data import records
from adasr_jax.tasks.gsm8k import numbers

STYLES = ('text', 'arithmetic')


class Unexplained(ValueError):
  """The problem has no certain trace: the reason, and the text it is about."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason = reason


# --------------------------------------------------------------------- steps
@dataclasses.dataclass(frozen=True)
class Step:
  """A line of the solution.

  Attributes:
    text: The line without its annotations.
    sums: (annotation, its operands with their roles, its result) for each
      annotation; roles are those of _evaluate.
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
        result = numbers.number(right)
      except (ValueError, ZeroDivisionError, IndexError):
        raise Unexplained('an annotation is malformed', said) from None
      # Annotations may be rounded.
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

  An operand comes with its role: '/' for a divisor, '*' for a factor or what is
  divided, '+' for any other.
  """
  tokens = re.findall(rf'{numbers.DIGITS}|[-+*/()]', expression)
  if ''.join(tokens) != expression.replace(' ', ''):
    raise ValueError(expression)
  operands, at = [], 0

  def role():
    before, after = (tokens[k] if 0 <= k < len(tokens) else ''
                     for k in (at - 2, at))
    if before == '/':
      return '/'
    return '*' if '*' in (before, after) or after == '/' else '+'

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
    operands.append((numbers.number(t), role()))
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
# Words by which a sentence without a number may still matter.
_RELATION = re.compile(
    r'\b(equal\w*|even(?:ly)?|same|rest|remain\w*|left|leftover|each|every\w*|'
    r'all|shar\w+|split\w*|divid\w+|none|other|others|both|more|less|fewer|'
    r'only|except|empty|instead|double\w*|halv\w+|sum|difference|average|'
    r'percent\w*|until|again|return\w*|minus|plus|times|per|free|full|'
    r'daily|weekly|monthly|yearly|entire|whole|exactly|enough)\b', re.I)


def _stem(word):
  word = word.lower()
  for end in ('ies', 'ing', 'ed', 'es', 's', 'ly', 'e', 'y'):
    if word.endswith(end) and len(word) - len(end) >= 3:
      return word[:-len(end)]
  return word


# Words that do not show which sentence a step is about.
_FUNCTION = frozenset(map(_stem, '''
the and that this then than they them their there these those with was were
are will would can could has have had her his him she its for from each every
one two all any how many much what when where which who whom why does did per
not but also out into onto over off after before because since while still
only just even both more most less least equal mean some other another same
such few therefore thus first next finally now let know find figure calculate
multiply divide add subtract'''.split()))
# Words that do not show which sentences were read: solutions use these too
# where the problem has not mentioned them yet.
_COMMON = _FUNCTION | frozenset(map(_stem, '''
make made cost costs spend spent pay paid earn earned get got give gave need
take took buy bought sell sold use used number amount money dollar cent price
worth combined total altogether together time day week month year hour minute
second item thing people person'''.split()))


def _content(text, common):
  """Stems of a text's words, except those in `common`."""
  words = {_stem(w) for w in re.findall(r'[A-Za-z]{3,}', text)}
  return words - common


def _has(sentence, unit):
  return (bool(re.search(rf'(?<![a-z]){unit}s?(?![a-z])', sentence))
          if unit.isalpha() else unit in sentence)


class _Reader:
  """The sentences of one problem; finds those that a number may come from."""

  def __init__(self, sentences: tuple[str, ...]):
    self.sentences = sentences
    self.mentions = [numbers.mentions(s) for s in sentences]
    self.words = [_content(s, _COMMON) for s in sentences]
    self.all_words = [_content(s, _FUNCTION) for s in sentences]
    self.lower = [s.lower() for s in sentences]

  def naming(self, value: Fraction, role: str, percent: bool
             ) -> tuple[int, ...]:
    """Indices of sentences with a number that may be the operand."""
    return tuple(i for i, found in enumerate(self.mentions)
                 if any(m.means(value, role, percent) for m in found))

  def implying(self, value: Fraction, step: str) -> tuple[int, ...]:
    """Indices of sentences with a unit that implies the constant."""
    everything, out = [*self.lower, step.lower()], set()
    for one, other, constant in numbers.UNITS:
      if value not in (constant, 1 / constant):
        continue
      if all(any(_has(s, unit) for s in everything for unit in units)
             for units in (one, other) if units):
        out |= {i for i, s in enumerate(self.lower)
                if any(_has(s, unit) for unit in (*one, *other))}
    return tuple(sorted(out))

  def read_by(self, words: set[str]) -> int:
    """The sentence by which all of `words` that the problem has were read."""
    last = 0
    for word in words:
      last = max(last, next((i for i, own in enumerate(self.words)
                             if word in own), 0))
    return last

  def likeliest(self, candidates: tuple[int, ...], step: str
                ) -> tuple[int, ...]:
    """The candidates that share most words with the step."""
    words = _content(step, _FUNCTION)
    shared = [len(words & self.all_words[i]) for i in candidates]
    return tuple(i for i, n in zip(candidates, shared) if n == max(shared))


def trace(question: str, solution: str, *, style: str = 'text'
          ) -> dict[str, Any]:
  """A problem's fields thoughts, relevant and deep; see sources.Examples.

  Args:
    question: The problem.
    solution: With annotations, '#### answer' at its end.
    style: Thoughts are the solution's own words ('text') or only the sums
      ('arithmetic').

  Raises:
    Unexplained: It has no certain trace.
  """
  sentences, asking = records.problem(question)
  reader, done = _Reader(sentences), steps(solution)
  answer = solution.rpartition('####')[2].strip()
  _check_answer(done, answer)
  placed, used = _align(reader, done, asking)
  thoughts = _thoughts(reader, placed, used, asking, style)
  return {'thoughts': thoughts,
          'relevant': [t is not None or i == asking
                       for i, t in enumerate(thoughts)],
          'deep': f'So the answer is {answer}.'}


def _check_answer(done, answer):
  """Refuses a solution whose last step does not give the answer."""
  if not done:
    raise Unexplained('no annotations')
  try:
    wanted = numbers.number(answer.lstrip('$'))
  except ValueError:
    raise Unexplained('the answer is not a number', answer) from None
  if done[-1].sums[-1][2] != wanted:
    raise Unexplained('the last step does not give the answer')


def _align(reader, done, asking):
  """The steps thought at each sentence, and the sentences certainly used."""
  results: list[tuple[Fraction, int]] = []  # of earlier steps, and when known
  used: set[int] = set()
  placed: dict[int, list[Step]] = collections.defaultdict(list)
  for step in done:
    earliest = reader.read_by(_content(step.text, _COMMON))
    if step is done[-1]:
      earliest = max(earliest, asking)
    at, certain = _place(reader, step, earliest, results)
    used |= {at, *certain}
    placed[at].append(step)
    results += [(result, at) for _, _, result in step.sums]
  return placed, used


def _place(reader, step, earliest, results):
  """The sentence at which a step is thought, and those that it surely uses."""
  inside: list[Fraction] = []  # results of the step's own sums
  certain: set[int] = set()
  # Where all that it uses was read, if each operand comes from its first, or
  # from its last possible source.
  low = high = earliest
  for said, operands, result in step.sums:
    for value, role in operands:
      if value in inside:
        continue
      sources, named = _sources(reader, step, said, operands, value, role,
                                results)
      if sources:
        low, high = max(low, min(sources)), max(high, max(sources))
      certain |= named
    inside.append(result)
  if low != high:
    raise Unexplained('a number is in several places', step.text)
  return low, certain


def _sources(reader, step, said, operands, value, role, results):
  """Sentences that an operand may come from, and those it surely comes from.

  A 1 may have none.
  """
  percent = any(v in (100, Fraction(1, 100)) for v, _ in operands)
  named = reader.naming(value, role, percent)
  known = [at for v, at in results if v == value]
  # '3 * 3' uses both of the two threes that there are.
  often = [v for v, _ in operands].count(value)
  every = 1 < len(named) + len(known) == often
  if len(named) > 1 and not every:
    named = reader.likeliest(named, step.text)
  if known and value > 12 and not every:
    named = ()  # a number this large is the earlier result
  sources = [*named, *known]
  if not sources and value != 1:
    sources = reader.implying(value, step.text)[-1:]
    if not sources:
      raise Unexplained('an operand has no source', said)
  return sources, set(named) if len(sources) == 1 or every else set()


def _thoughts(reader, placed, used, asking, style):
  """A thought per sentence: its steps, a note of its numbers, or None."""
  thoughts: list[str | None] = []
  for i, (sentence, found) in enumerate(zip(reader.sentences,
                                            reader.mentions)):
    if placed[i]:
      thoughts.append(_thought(placed[i], style))
    elif i in used:
      found = [m for m in found if not m.weak] or found
      notes = [_note(sentence, m, following)
               for m, following in zip(found, [*found[1:], None])]
      thoughts.append('; '.join(notes) or sentence.strip())
    else:
      thoughts.append(None)
      if any(not m.weak for m in found):
        raise Unexplained('a number is not certainly used', sentence)
      if i != asking and _RELATION.search(sentence):
        raise Unexplained('a sentence may matter without a number', sentence)
  return thoughts


def _thought(own, style):
  """The steps `own` as one thought."""
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
  """The number with the words after it: '48 of her friends'."""
  last = following.start if following else len(sentence)
  after = re.match(r'[^.,;:?!()"]*', sentence[mention.end:last])[0]
  end = mention.end
  for k, word in enumerate(re.finditer(r'\S+', after)):
    if k == 5 or word[0].lower() in _CUT:
      break
    if word[0].lower() not in _WEAK:
      end = mention.end + word.end()
  return ' '.join(sentence[mention.start:end].split())


# ---------------------------------------------------------------------- file
def convert(path: pathlib.Path, *, style: str) -> Iterator[
    tuple[dict[str, Any], dict[str, Any] | Unexplained]]:
  """(record, its trace or why it has none) for each record of a GSM8K file."""
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
      prog='python -m adasr_jax.tasks.gsm8k.traces',
      description=__doc__.split('\n', maxsplit=1)[0])
  parser.add_argument('--path', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--style', choices=STYLES, default='text')
  parser.add_argument('--report', action='store_true',
                      help='show an example of each reason for leaving out')
  args = parser.parse_args(argv)
  if args.out and args.out.resolve() == args.path.resolve():
    sys.exit(f'error: --out={args.out} is the file that --path reads')
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
    if args.out:
      files.write_text(args.out, ''.join(
          json.dumps(made, ensure_ascii=False) + '\n' for made in kept))
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  print(f'{len(kept)} of {total} problems have a trace '
        f'({len(kept) / max(total, 1):.1%}); {skips} of {chunks} sentences '
        f'are skipped')
  for reason, n in reasons.most_common():
    print(f'{n:6} {reason}')
    if args.report:
      print(f'       {first[reason][0]}\n       in: {first[reason][1]}')


if __name__ == '__main__':
  main()
