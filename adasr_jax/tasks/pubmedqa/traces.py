r"""Supervised streaming traces of PubMedQA, made without a teacher model.

  python -m adasr_jax.tasks.pubmedqa.traces --path=ori_pqal.json \
      --out=pubmedqa_traces.jsonl

PQA-L gives a question, the paragraphs of an abstract with the authors' section
titles (LABELS), the authors' conclusion (LONG_ANSWER) and an expert's yes, no
or maybe (final_decision). The trace of a problem:

  - deep: the first sentence of the conclusion. Those after it mostly ask for
    further studies.
  - A sentence of a results section is evidence where one of its clauses has at
    least LEAST of the weight of the words in `deep`; at most MOST sentences,
    those with the largest share. A word's weight is the logarithm of (number
    of sentences in the file / number with its stem), so 'the' weighs nothing.
  - The thought on evidence is that clause, or neighbouring clauses that
    together have no more than WORDS words, or WORDS words of a longer clause.
    What is in brackets is left out, nothing is added: no thought knows what
    has not been read yet.
  - All other sentences are skips, the question too.

Without the section titles it would not work: of all sentences of PQA-L with
such a clause 41 % are results, of all sentences 43 %. An aim or a method shares
as much with the conclusion.

What it gets wrong:

  - Evidence in other words is missed: synonyms, abbreviations, a number where
    the conclusion says 'higher'.
  - A shared topic is taken for support ('134 women were randomized ...'), even
    where the sentence says the opposite.
  - A clause may lose its subject, its 'not' or its end when it is cut, and a
    percentage where it stands in brackets.
  - Results come last, so a policy may learn to skip by position.

The traces teach the protocol and where to look. They are no proof of the
answer: the conclusion may say what the abstract does not.

A record is one of the format `streaming_reasoning`, with the chunks that the
adapter `pubmedqa` makes, so it has the id of the problem and is in its split:

  data.format=streaming_reasoning

Source: Jin et al., PubMedQA, arXiv 1909.06146.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator, Mapping
import json
import math
import pathlib
import re
import statistics
import sys
from typing import Any

from adasr_jax.core import files
from adasr_jax.core.types import Example
from adasr_jax.data import adapters
from adasr_jax.data import records
from adasr_jax.data import text
from adasr_jax.data import tokenizer

LEAST = 0.15  # share of the weight of `deep`
MOST = 3  # evidence sentences of a problem
WORDS = 24  # of a thought
DEEP_WORDS = 48  # of `deep`
_RESULTS = re.compile(r'RESULT|FINDING')
_CONTROLS = (tokenizer.EOT, tokenizer.SKIP, tokenizer.OPEN_THINK,
             tokenizer.END_THINK)


class Unexplained(ValueError):
  """The problem has no trace by the rule: the reason."""


# ---------------------------------------------------------------------- rule
def stems(said: str) -> set[str]:
  """The stems of a text's words of two letters or more."""
  return {_stem(w) for w in re.findall(r'[^\W\d_]{2,}', said.lower())}


def _stem(word):
  for end in ('ies', 'ing', 'ed', 'es', 's', 'ly', 'e', 'y'):
    if word.endswith(end) and len(word) - len(end) >= 3:
      return word[:-len(end)]
  return word


def weights(sentences: list[str]) -> dict[str, float]:
  """Stem -> log(number of sentences / number of those that have it)."""
  having = collections.Counter(s for x in sentences for s in stems(x))
  return {s: math.log(len(sentences) / n) for s, n in having.items()}


def clauses(sentence: str) -> Iterator[str]:
  """What a thought on a sentence may be: its own words, at most WORDS."""
  said, before = sentence, ''
  while said != before:  # inner brackets first
    before, said = said, re.sub(r'\([^()]*\)|\[[^][]*\]', ' ', said)
  said = re.sub(r'\s+(?=[.,;:](\s|$))', '', said)
  parts = [p.split() for p in re.split(r'(?<=[,;:])\s', said)]
  for i in range(len(parts)):
    for start in range(max(len(parts[i]) - WORDS, 0) + 1):
      yield _clean(parts[i][start:start + WORDS])
    for j in range(i + 2, len(parts) + 1):
      run = sum(parts[i:j], [])
      if len(run) > WORDS:
        break
      yield _clean(run)


def _clean(words):
  return ' '.join(words).strip(' ,;:')


def trace(e: Example, found: list[bool], conclusion: str,
          weight: Mapping[str, float]) -> dict[str, Any]:
  """A problem's fields thoughts, relevant and deep; see adapters.

  Args:
    e: Its question is the first chunk.
    found: Whether each chunk stands in a section of results.
    conclusion: LONG_ANSWER.
    weight: Of stems; one that is not there weighs as much as the rarest.

  Raises:
    Unexplained: It has no trace by the rule.
  """
  deep = text.split_sentences(conclusion.strip())[0].strip()
  if any(c in said for c in _CONTROLS for said in (*e.chunks, deep)):
    raise Unexplained('its text spells a control token')
  if text.words(deep) > DEEP_WORDS:
    raise Unexplained(f'its conclusion has more than {DEEP_WORDS} words')
  if not any(found):
    raise Unexplained('no section of results')
  rarest = max(weight.values())
  total = lambda said: sum(weight.get(s, rarest) for s in sorted(said))
  wanted = stems(deep)
  best = {}  # chunk -> (share, its words, the thought)
  for i, chunk in enumerate(e.chunks):
    if found[i]:
      share, n, said = max(
          ((total(stems(x) & wanted), text.words(x), x)
           for x in clauses(chunk)), key=lambda x: x[:2])
      if said and share >= LEAST * total(wanted):
        best[i] = share, n, said
  if not best:
    raise Unexplained('no result shares enough with the conclusion')
  chosen = sorted(best, key=lambda i: -best[i][0])[:MOST]
  thoughts = [best[i][2] if i in chosen else None
              for i in range(len(e.chunks))]
  return {'thoughts': thoughts,
          'relevant': [t is not None or i == e.question_chunk
                       for i, t in enumerate(thoughts)],
          'deep': deep}


# ---------------------------------------------------------------------- file
def convert(path: pathlib.Path) -> Iterator[
    tuple[str, dict[str, Any] | Unexplained]]:
  """(where, its trace or why it has none) for each record of a PQA-L file.

  Raises:
    ValueError: A record is malformed, as `where: what is wrong`.
  """
  read = [(where, *_parsed(where, record))
          for where, record in records.read(path)]
  weight = weights([c for _, e, _, _ in read for c in e.chunks])
  for where, e, found, conclusion in read:
    try:
      yield where, {'chunks': e.chunks, 'question_chunk': e.question_chunk,
                    'answer': e.answer,
                    **trace(e, found, conclusion, weight)}
    except Unexplained as why:
      yield where, why


def _parsed(where, record):
  """The example, which chunks are results, the conclusion."""
  try:
    records.field(record, 'QUESTION')  # the adapter knows other names too
    parts, labels = (
        records.items(records.field(record, name), name, str, 'text')
        for name in ('CONTEXTS', 'LABELS'))
    conclusion = records.text(records.field(record, 'LONG_ANSWER'),
                              'LONG_ANSWER')
    e = adapters.pubmedqa(record)
    if len(labels) != len(parts):
      raise ValueError(f"'LABELS' has {len(labels)} entries for {len(parts)} "
                       f"paragraphs")
  except ValueError as why:
    raise ValueError(f'{where}: {why}') from why
  found = [False]  # the question
  for label, part in zip(labels, parts):
    found += ([bool(_RESULTS.search(label.upper()))]
              * len(records.paragraphs(part, 'CONTEXTS')))
  return e, found, conclusion


def report(made: list[dict[str, Any] | Unexplained]) -> str:
  """How many problems have a trace, why others have none, sizes of traces."""
  kept = [m for m in made if not isinstance(m, Unexplained)]
  thoughts = [t for m in kept for t in m['thoughts'][1:]]  # no question
  said = [t for t in thoughts if t is not None]
  lines = [f'{len(kept)} of {len(made)} problems have a trace '
           f'({len(kept) / max(len(made), 1):.1%})']
  reasons = collections.Counter(
      str(m) for m in made if isinstance(m, Unexplained))
  lines += [f'{n:6} {reason}' for reason, n in reasons.most_common()]
  if kept:
    each = collections.Counter(len(m['thoughts']) - m['thoughts'].count(None)
                               for m in kept)
    n = sorted(map(text.words, said))
    lines += [
        f'{len(thoughts) - len(said)} of {len(thoughts)} sentences are skipped '
        f'({1 - len(said) / len(thoughts):.1%})',
        'evidence sentences per problem: ' + ', '.join(
            f'{k} in {each[k]}' for k in sorted(each)),
        f'words of a thought: {n[0]} to {n[-1]}, median '
        f'{statistics.median(n):g}']
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      prog='python -m adasr_jax.tasks.pubmedqa.traces',
      description=__doc__.split('\n', maxsplit=1)[0])
  parser.add_argument('--path', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args = parser.parse_args(argv)
  if args.out.resolve() == args.path.resolve():
    sys.exit(f'error: --out={args.out} is the file that --path reads')
  try:
    made = [m for _, m in convert(args.path)]
    files.write_text(args.out, ''.join(
        json.dumps(m, ensure_ascii=False) + '\n' for m in made
        if not isinstance(m, Unexplained)))
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  print(report(made), file=sys.stderr)


if __name__ == '__main__':
  main()
