"""Files written whole or not at all; JSON that comes from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
from typing import Any

# Levels of lists and objects in a JSON value from outside. What is deeper no
# format here has, and it would end in a RecursionError somewhere else.
MOST_NESTED = 100


def at_step(init: str) -> tuple[pathlib.Path, str]:
  """Path and checkpoint of 'PATH', 'PATH@STEP' or 'PATH@best'; '' = none named.

  An '@' in the name of a folder above belongs to the path.
  """
  path, _, which = init.rpartition('@')
  if not path or '/' in which:
    path, which = init, ''
  return pathlib.Path(path), which


def whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
  """Calls write(a temporary path beside `path`), then puts it in place."""
  new = path.with_name(path.name + '.tmp')
  try:
    with named(path):
      write(new)
    new.replace(path)
  except Exception:
    new.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def named(path: pathlib.Path) -> Iterator[None]:
  """Names the file in an OSError: that of a full disk does not by itself."""
  try:
    yield
  except OSError as e:
    if e.errno is not None and e.filename is None:
      e.filename = str(path)
    raise


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text in UTF-8."""
  whole(path, lambda new: new.write_text(text, encoding='utf-8'))


def read_json(path: pathlib.Path) -> Any:
  """The value in a JSON file.

  Raises:
    ValueError: `path: why`, as in json_value().
    OSError: It cannot be read.
  """
  try:
    return json_value(path.read_bytes())
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e


def json_value(raw: bytes) -> Any:
  """The value of a JSON text in UTF-8, with or without a byte order mark.

  Raises:
    ValueError: It is not UTF-8 or not JSON, or nests deeper than MOST_NESTED;
      the message is one line.
  """
  try:
    value = json.loads(raw.decode('utf-8-sig'))
  except UnicodeDecodeError as e:
    raise ValueError(f'not UTF-8: {e.reason} at byte {e.start}') from e
  except json.JSONDecodeError as e:
    line = f'line {e.lineno} ' if '\n' in e.doc.strip() else ''
    raise ValueError(f'not JSON: {e.msg}, {line}column {e.colno}') from e
  except RecursionError:
    nested = True
  else:
    nested = _is_nested(value, raw)
  if nested:
    raise ValueError(f'JSON that nests deeper than {MOST_NESTED} levels')
  return value


def _is_nested(value, raw):
  if raw.count(b'[') + raw.count(b'{') <= MOST_NESTED:
    return False  # nearly every record: no need to look inside
  level = [value]
  for _ in range(MOST_NESTED + 1):
    level = [x for v in level if isinstance(v, (dict, list))
             for x in (v.values() if isinstance(v, dict) else v)]
  return bool(level)
