"""Problems of files and datasets, as index-addressable examples.

A source has `len(source)` and `source[i] -> Example`, no more: a reader of
another format needs only these two to serve a run. Those in SOURCES differ
only in their reader, a module with

  read(path) -> Iterator[tuple[str, Any]]   # (where the record is, the record)

All turn a record into examples in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import importlib
import pathlib
from typing import Any

from absl import logging

from adasr_jax.core.options import option
from adasr_jax.core.types import Example
from adasr_jax.data import adapters
from adasr_jax.data import records
from adasr_jax.data.text import content_id

PLACEMENTS = ('as_is', 'first', 'last')
# Splits partition the problems by their hash: [from, to) in percent of the
# hash's range. The same record is in the same split in any file, order and
# placement, as long as it is read alike (a format, or data.fields).
SPLITS = {'train': (0, 90), 'validation': (90, 95), 'test': (95, 100),
          'all': (0, 100)}
MALFORMED = ('error', 'drop')
_SHOWN = 3  # malformed records that a warning shows
_REQUIRED = ('question', 'answer')
_OPTIONAL = ('context', 'relevant', 'thoughts', 'deep')


@dataclasses.dataclass(frozen=True)
class FieldsConfig:
  """The name in a record of each part, see Examples; '' = not there."""
  question: str = option('question')
  answer: str = option('answer')
  context: str = option('')
  relevant: str = option('')
  thoughts: str = option('')
  deep: str = option('')


class Examples:
  """The problems of a file or dataset, all read and checked at once."""

  # A module of adasr_jax.data, imported only when used: it may import large
  # packages that other runs do not need.
  reader: str

  def __init__(self, path: str | pathlib.Path,
               fields: Mapping[str, str] | None = None, *,
               format: str = '', instruction: str = '',
               question: str = 'as_is', split: str = 'all',
               malformed: str = 'error'):
    """Reads the records.

    Args:
      path: See the reader.
      fields: The name in a record of each part; '' or absent = not there. Only
        without a format.
        question: Text. Without a context it is the whole problem, and its last
          sentence with a '?' (else its last) is taken for the question.
        answer: Text; what follows its last '####' (as in GSM8K), or all of it.
        context: Text, or a list of paragraphs; the question follows it.
        relevant, thoughts: As in Example, one entry per sentence of the
          context and one for the question, in the record's order; they need
          question='as_is'.
        deep: As in Example.
      format: One of adapters.FORMATS, '' = as `fields` says.
      instruction: Opens every preamble; a new line separates it from the rest.
      question: 'as_is': where the record has it; 'first': in the preamble;
        'last': at the end of the stream. A problem of one sentence stays in
        the stream, which would be empty without it.
      split: See part().
      malformed: 'error', or 'drop': leave such records out; the log says how
        many, and shows the first.

    Raises:
      ValueError: A bad argument, or a bad record, as `where: what is wrong`.
    """
    fields = {k: v for k, v in dict(fields or {}).items() if v}
    _check_arguments(fields, format=format, question=question,
                     malformed=malformed)
    parse = _parser(fields, format=format, instruction=instruction,
                    placement=question)
    self._path = path
    self._examples = _parsed(self._read(path), parse, malformed=malformed,
                             what=path)
    self._examples = self.part(split)

  def _read(self, path):
    return importlib.import_module(f'adasr_jax.data.{self.reader}').read(path)

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, i: int) -> Example:
    return self._examples[i]

  def part(self, split: str) -> tuple[Example, ...]:
    """The examples of a split, in the source's order.

    Args:
      split: One of SPLITS, or several joined by '+'. The hash of a problem's
        text, or of its group where it has one, decides its split.

    Raises:
      ValueError: There is no such split, or nothing in it.
    """
    names = split.split('+')
    if not {*names} <= {*SPLITS}:
      raise ValueError(f'split={split!r} is not one of {tuple(SPLITS)}')
    def inside(e):
      key = e.id if e.group is None else e.group
      return any(low * 2**32 <= key * 100 < high * 2**32
                 for low, high in (SPLITS[name] for name in names))
    found = tuple(e for e in self._examples if inside(e))
    if not found:
      raise ValueError(f'{self._path}: no examples in split={split!r}')
    return found


class Jsonl(Examples):
  """A JSON file; see records.read."""
  reader = 'records'


class HuggingFace(Examples):
  """A dataset of the Hugging Face hub or a local one; see huggingface.read."""
  reader = 'huggingface'


class Tfds(Examples):
  """A dataset that TFDS prepared; see tfds_builder.read."""
  reader = 'tfds_builder'


SOURCES: Mapping[str, type[Examples]] = {
    'jsonl': Jsonl, 'huggingface': HuggingFace, 'tfds': Tfds}


# ----------------------------------------------------------------- arguments
def _check_arguments(fields, *, format, question, malformed):
  if format not in ('', *adapters.FORMATS):
    raise ValueError(f'format={format!r} is not one of '
                     f'{", ".join(adapters.FORMATS)}')
  if question not in PLACEMENTS:
    raise ValueError(f'question={question!r} is not one of {PLACEMENTS}')
  if not format:
    _check_fields(fields, question)
  if malformed not in MALFORMED:
    raise ValueError(f'malformed={malformed!r} is not one of {MALFORMED}')


def _check_fields(fields, question):
  if unknown := sorted(fields.keys() - {*_REQUIRED, *_OPTIONAL}):
    raise ValueError(f'fields: {", ".join(unknown)} not among '
                     f'{", ".join(_REQUIRED + _OPTIONAL)}')
  if missing := [k for k in _REQUIRED if k not in fields]:
    raise ValueError(f'fields: {", ".join(missing)} must be set')
  traced = [k for k in ('relevant', 'thoughts') if k in fields]
  if traced and question != 'as_is':
    raise ValueError(f'fields: {", ".join(traced)} follow the order of the '
                     f"record; question={question!r} must be 'as_is'")


# ------------------------------------------------------------------- parsing
def _parsed(found, parse, *, malformed, what):
  """The examples of all records; malformed ones raise or are left out."""
  examples, total, dropped, shown = [], 0, 0, []
  for where, record in found:
    total += 1
    try:
      examples += parse(where, record)
    except ValueError as e:
      if malformed == 'error':
        raise
      dropped += 1
      shown += [str(e)] if dropped <= _SHOWN else []
  if dropped:
    shown += ['...'] if dropped > _SHOWN else []
    logging.warning('%s: left out %d of %d records: %s', what, dropped, total,
                    '; '.join(shown))
  return tuple(examples)


def _parser(fields, *, format, instruction, placement):
  """(where, record) -> its examples, by a format or by `fields`."""
  def by_format(where, record):
    try:
      found = [adapters.example(r, format=format, line=where) for r in _located(
          where, list, adapters.expand(record, format=format))]
    except ValueError as e:
      hint = (f' (format={format!r} says what a record holds, not fields)'
              if 'no field' in str(e) else '')
      raise ValueError(f'{e}{hint}') from e
    return [_placed(e, instruction, placement, where) for e in found]

  def by_fields(where, record):
    return [_located(where, _example, record, fields, instruction, placement)]

  return by_format if format else by_fields


def _located(where, function, *args):
  """function(*args); its ValueError says where the record is."""
  try:
    return function(*args)
  except ValueError as e:
    raise ValueError(f'{where}: {e}') from e


def _chunks(record, fields):
  """The sentences in the record's order, and which one is the question."""
  name = fields['question']
  question = records.text(record[name], name)
  if 'context' not in fields:
    return records.problem(question)
  chunks = records.paragraphs(record[fields['context']], fields['context'])
  return (*chunks, '\n' + question.strip()), len(chunks)


def _answer(record, name):
  found = records.text(record[name], name).rpartition('####')[2]
  if not found.strip():
    raise ValueError(f'{name!r} gives an empty answer')
  return found.strip()


def _place(preamble, chunks, at, instruction, placement):
  """preamble, chunks and question_chunk of a placement."""
  preamble = (f'{instruction}\n' if instruction else '') + preamble
  if placement == 'as_is' or len(chunks) == 1 or at < 0:
    return preamble, chunks, at
  question, rest = chunks[at].strip(), chunks[:at] + chunks[at + 1:]
  rest = (rest[0].lstrip(), *rest[1:])
  if placement == 'last':
    return preamble, (*rest, f' {question}'), len(rest)
  return f'{preamble}{question}\n', rest, -1


def _placed(e: Example, instruction: str, placement: str, where: str
            ) -> Example:
  """An adapter's example with the instruction, its question in place."""
  if placement != 'as_is' and (e.thoughts or e.relevant or e.kinds):
    raise ValueError(f"{where}: its trace follows the order of the record; "
                     f"question={placement!r} must be 'as_is'")
  if placement == 'last' and e.question_chunk < 0:
    raise ValueError(f"{where}: its question stands in the preamble; "
                     f"question={placement!r} must be 'as_is' or 'first'")
  preamble, chunks, at = _place(e.preamble, e.chunks, e.question_chunk,
                                instruction, placement)
  return dataclasses.replace(e, preamble=preamble, chunks=chunks,
                             question_chunk=at)


def _example(record: Any, fields: Mapping[str, str], instruction: str,
             placement: str) -> Example:
  record = {name: records.field(record, name) for name in fields.values()}
  chunks, at = _chunks(record, fields)
  preamble, placed, question_chunk = _place('', chunks, at, instruction,
                                            placement)
  extra = {}
  for key, kinds, what in (
      ('relevant', bool, 'a truth value'),
      ('thoughts', (str, type(None)), 'text or null')):
    if key in fields:
      extra[key] = records.items(record[fields[key]], fields[key], kinds,
                                 what)
      if len(extra[key]) != len(chunks):
        raise ValueError(f'{fields[key]!r} has {len(extra[key])} entries for '
                         f'{len(chunks)} sentences')
  if 'deep' in fields:
    extra['deep'] = records.text(record[fields['deep']], fields['deep'])
  if 'context' in fields:  # whose questions are all in one split
    extra['group'] = content_id(''.join(chunks[:at]))
  return Example(
      id=content_id(''.join(chunks)), preamble=preamble, chunks=placed,
      answer=_answer(record, fields['answer']),
      question_chunk=question_chunk, **extra)
