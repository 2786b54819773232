"""Reads records and checks what they hold; all sources use its errors."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
import pathlib
from typing import Any

from adasr_jax.core import files
from adasr_jax.data.text import split_sentences


class Malformed(str):
  """Why a line holds no record, in the record's place; field() raises it.

  So one bad line is one bad record, and those after it can still be read.
  """


def address(path: str | pathlib.Path) -> tuple[str, str]:
  """Name and split of a dataset's `NAME@SPLIT`; '' where none is given.

  A folder or file may have an '@' in its name.
  """
  name, _, split = str(path).rpartition('@')
  if not name or pathlib.Path(path).exists():
    return str(path), ''
  return name, split


def read(path: str | pathlib.Path) -> Iterator[tuple[str, Any]]:
  """(where, record) for each record of a JSON file.

  The file and `where`: JSON lines ('path:line'); one JSON array ('path: record
  3', from 1); or one JSON object of objects ("path: record '21645374'", the
  key). Blank lines are skipped, and so is a byte order mark. The record of a
  line that is not JSON is Malformed.

  Raises:
    ValueError: There is no such file, or all of it is not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file')
  mark = codecs.BOM_UTF8
  with path.open('rb') as lines:
    start = len(mark) if lines.read(len(mark)) == mark else 0
    lines.seek(start)
    first = next((x for x in lines if x.strip()), b'').strip()
    lines.seek(start)
    whole = first.startswith((b'[', b'{'))
    if first.startswith(b'{'):
      try:
        value = files.json_value(first)
        # One line may be one record, or a whole collection.
        whole = (bool(value) and all(isinstance(v, dict)
                                     for v in value.values())
                 and sum(bool(x.strip()) for x in lines) == 1)
        lines.seek(start)
      except ValueError:  # spread over lines, or broken
        pass
    if whole:
      try:
        value = files.json_value(lines.read())
      except ValueError as e:
        if first.startswith(b'['):
          raise ValueError(f'{path}: {e}') from e
        lines.seek(start)  # JSON lines: the loop names the first broken one
      else:
        items = (value.items() if isinstance(value, dict)
                 else enumerate(value, 1))
        yield from ((f'{path}: record {k!r}', v) for k, v in items)
        return
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        value = files.json_value(line)
      except ValueError as e:
        value = Malformed(e)
      yield f'{path}:{number}', value


def kind(value: Any) -> str:
  """What a JSON value is, in words."""
  return {'NoneType': 'null', 'dict': 'an object', 'list': 'a list',
          'bool': 'a truth value', 'str': 'text', 'datetime': 'a date'}.get(
              type(value).__name__, 'a number')


def field(record: Any, name: str) -> Any:
  """record[name], or for a name like 'a.b' that is not there record['a']['b'].

  Raises:
    ValueError: There is no such field, or no record.
  """
  if isinstance(record, Malformed):
    raise ValueError(record)
  parts = name.split('.')
  if isinstance(record, dict) and name in record:
    parts = [name]
  for part in parts:
    if not isinstance(record, dict):
      raise ValueError(f'{kind(record)}, not an object')
    if part not in record:
      raise ValueError(f'no field {name!r}')
    record = record[part]
  return record


def text(value: Any, name: str) -> str:
  """The value, if it is text and not only white space.

  Raises:
    ValueError: It is not.
  """
  if not isinstance(value, str):
    raise ValueError(f'{name!r} is {kind(value)}, not text')
  if not value.strip():
    raise ValueError(f'{name!r} is empty')
  return value


def items(value: Any, name: str, kinds: type | tuple[type, ...], what: str
          ) -> tuple:
  """The value's entries, if it is a list of `kinds`.

  Args:
    value: Any.
    name: What errors call the value.
    kinds: The types that an entry may have.
    what: What errors call these types.

  Raises:
    ValueError: It is not.
  """
  if not isinstance(value, list):
    raise ValueError(f'{name!r} is {kind(value)}, not a list')
  for i, item in enumerate(value):
    if not isinstance(item, kinds):
      raise ValueError(f'{name!r}[{i}] is {kind(item)}, not {what}')
  return tuple(value)


def paragraphs(value: Any, name: str) -> tuple[str, ...]:
  """The sentences of a text or of a list of paragraphs.

  Each paragraph after the first opens with a new line.

  Raises:
    ValueError: It is neither, or empty.
  """
  if isinstance(value, list):
    if not value:
      raise ValueError(f'{name!r} is empty')
    parts = [text(p, f'{name}[{i}]')
             for i, p in enumerate(items(value, name, str, 'text'))]
  else:
    parts = [text(value, name)]
  chunks = ()
  for part in parts:
    first, *rest = split_sentences(part.strip())
    chunks += ('\n' + first if chunks else first, *rest)
  return chunks


def problem(value: str) -> tuple[tuple[str, ...], int]:
  """The sentences of a problem, and the index of its question.

  The question is the last sentence with a '?', or else the last.
  """
  chunks = split_sentences(value.strip())
  asking = [i for i, chunk in enumerate(chunks) if '?' in chunk]
  return chunks, asking[-1] if asking else len(chunks) - 1
