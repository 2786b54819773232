"""Problems from files, as index-addressable examples.

A source has `len(source)` and `source[i] -> Example`, no more: whatever reads
another format needs these two to serve a run.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

from adasr_jax.data.text import content_id, split_sentences
from adasr_jax.types import Example

PLACEMENTS = ('as_is', 'first', 'last')
# Splits partition the problems by their hash: [from, to) in percent of the
# hash's range. The same text is in the same split whatever file, order or
# placement it comes in.
SPLITS = {'train': (0, 90), 'validation': (90, 95), 'test': (95, 100),
          'all': (0, 100)}
_REQUIRED = ('question', 'answer')
_OPTIONAL = ('context', 'relevant', 'thoughts', 'deep')


class Jsonl:
  """The problems of a JSON-lines file, all read and checked at once."""

  def __init__(self, path: str | pathlib.Path, fields: Mapping[str, str], *,
               instruction: str = '', question: str = 'as_is',
               answer_pattern: str = '', split: str = 'all',
               limit: int | None = None):
    """Reads the file.

    Args:
      path: One JSON object a line, UTF-8.
      fields: Which name in the file holds what; '' or absent = not there.
        question: Text. Without a context it is the whole problem, and its last
          sentence with a '?' (else its last) is taken for the question.
        answer: Text.
        context: Text, or a list of paragraphs, which the question follows.
        relevant, thoughts, deep: As in Example, one entry a sentence of the
          context and one for the question, in the file's order; they need
          question='as_is'.
      instruction: Opens every preamble; a new line parts it from what follows.
      question: 'as_is': where the file has it; 'first': in the preamble;
        'last': at the end of the stream. A problem of one sentence stays in
        the stream, so that there is one.
      answer_pattern: Regular expression whose last match's first group is the
        answer; '' = what follows the last '####' (as GSM8K writes), or all of
        it where there is no '####'.
      split: One of SPLITS, shares by hash of the problem's text.
      limit: Most examples, the file's first ones of that split; None = all.

    Raises:
      ValueError: A bad argument, or `file:line: what` is wrong in the file.
    """
    fields = {k: v for k, v in dict(fields).items() if v}
    if unknown := sorted(fields.keys() - {*_REQUIRED, *_OPTIONAL}):
      raise ValueError(f'fields: {", ".join(unknown)} not among '
                       f'{", ".join(_REQUIRED + _OPTIONAL)}')
    if missing := [k for k in _REQUIRED if k not in fields]:
      raise ValueError(f'fields: {", ".join(missing)} must be set')
    if question not in PLACEMENTS:
      raise ValueError(f'question={question!r} is not one of {PLACEMENTS}')
    traced = [k for k in ('relevant', 'thoughts') if k in fields]
    if traced and question != 'as_is':
      raise ValueError(f'fields: {", ".join(traced)} follow the order of the '
                       f"file; question={question!r} must be 'as_is'")
    if split not in SPLITS:
      raise ValueError(f'split={split!r} is not one of {tuple(SPLITS)}')
    if limit is not None and limit < 1:
      raise ValueError(f'limit={limit} must be positive')
    path = pathlib.Path(path)
    if not path.is_file():
      raise ValueError(f'{path}: no such file')
    try:
      pattern = re.compile(answer_pattern)
    except re.error as e:
      raise ValueError(f'answer_pattern={answer_pattern!r}: {e}') from e
    if answer_pattern and not pattern.groups:
      raise ValueError(f'answer_pattern={answer_pattern!r} has no group')

    low, high = SPLITS[split]
    examples = []
    with path.open('rb') as lines:
      for number, line in enumerate(lines, 1):
        try:
          example = _example(json.loads(line.decode()), fields, instruction,
                             question, pattern if answer_pattern else None)
        except json.JSONDecodeError as e:
          raise ValueError(f'{path}:{number}: not JSON: {e.msg}') from e
        except ValueError as e:
          raise ValueError(f'{path}:{number}: {e}') from e
        if low * 2**32 <= example.id * 100 < high * 2**32:
          examples.append(example)
    if not examples:
      raise ValueError(f'{path}: no examples in split={split!r}')
    self._examples = tuple(examples[:limit])

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i: int) -> Example:
    return self._examples[i]


def _text(record, name, value=None):
  value = record[name] if value is None else value
  if not isinstance(value, str):
    raise ValueError(f'{name!r} is {_kind(value)}, not text')
  if not value.strip():
    raise ValueError(f'{name!r} is empty')
  return value


def _items(record, name, kinds, what):
  value = record[name]
  if not isinstance(value, list):
    raise ValueError(f'{name!r} is {_kind(value)}, not a list')
  for i, item in enumerate(value):
    if not isinstance(item, kinds):
      raise ValueError(f'{name!r}[{i}] is {_kind(item)}, not {what}')
  return tuple(value)


def _kind(value):
  return {'NoneType': 'null', 'dict': 'an object', 'list': 'a list',
          'bool': 'a truth value', 'str': 'text'}.get(
              type(value).__name__, 'a number')


def _chunks(record, fields):
  """The sentences in the file's order, and which one is the question."""
  text = _text(record, fields['question'])
  if 'context' not in fields:
    chunks = split_sentences(text.strip())
    asking = [i for i, c in enumerate(chunks) if '?' in c]
    return chunks, asking[-1] if asking else len(chunks) - 1
  name = fields['context']
  if isinstance(record[name], list):
    if not record[name]:
      raise ValueError(f'{name!r} is empty')
    paragraphs = [_text(record, f'{name}[{i}]', p) for i, p in enumerate(
        _items(record, name, str, 'text'))]
  else:
    paragraphs = [_text(record, name)]
  chunks = ()
  for paragraph in paragraphs:
    first, *rest = split_sentences(paragraph.strip())
    chunks += ('\n' + first if chunks else first, *rest)
  return (*chunks, '\n' + text.strip()), len(chunks)


def _answer(record, name, pattern):
  text = _text(record, name)
  if pattern is None:
    found = text.rpartition('####')[2]
  else:
    matches = list(pattern.finditer(text))
    if not matches:
      raise ValueError(f'{name!r} has no match of {pattern.pattern!r}')
    found = matches[-1][1] or ''
  if not found.strip():
    raise ValueError(f'{name!r} gives an empty answer')
  return found.strip()


def _place(chunks, at, instruction, placement):
  """preamble, chunks and question_chunk of a placement."""
  preamble = f'{instruction}\n' if instruction else ''
  if placement == 'as_is' or len(chunks) == 1:
    return preamble, chunks, at
  question, rest = chunks[at].strip(), chunks[:at] + chunks[at + 1:]
  rest = (rest[0].lstrip(), *rest[1:])
  if placement == 'last':
    return preamble, (*rest, f' {question}'), len(rest)
  return f'{preamble}{question}\n', rest, -1


def _example(record: Any, fields: Mapping[str, str], instruction: str,
             placement: str, pattern: re.Pattern[str] | None) -> Example:
  if not isinstance(record, dict):
    raise ValueError(f'{_kind(record)}, not an object')
  for name in fields.values():
    if name not in record:
      raise ValueError(f'no field {name!r}')
  chunks, at = _chunks(record, fields)
  preamble, placed, question_chunk = _place(chunks, at, instruction, placement)
  extra = {}
  for key, kinds, what in (
      ('relevant', bool, 'a truth value'),
      ('thoughts', (str, type(None)), 'text or null')):
    if key in fields:
      extra[key] = _items(record, fields[key], kinds, what)
      if len(extra[key]) != len(chunks):
        raise ValueError(f'{fields[key]!r} has {len(extra[key])} entries for '
                         f'{len(chunks)} sentences')
  if 'deep' in fields:
    extra['deep'] = _text(record, fields['deep'])
  return Example(
      id=content_id(''.join(chunks)), preamble=preamble, chunks=placed,
      answer=_answer(record, fields['answer'], pattern),
      question_chunk=question_chunk, **extra)
