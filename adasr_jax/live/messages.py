"""The messages of a client: which there are, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
import json
from typing import Any

from adasr_jax.data.pipeline import LAYOUTS, STREAMING
from adasr_jax.live.session import Refused
from adasr_jax.live.text import CHUNKS, SENTENCES

MOST_BYTES = 2**16  # of a message
LEAST_PACE, MOST_PACE = 0.1, 1000  # tokens per second
_NAME = 64  # characters of a session's name


def _text(value):
  if not isinstance(value, str):
    return 'is not text'
  try:
    value.encode()
  except UnicodeEncodeError:
    return 'is not Unicode: half of a surrogate pair'
  return None


def _name(value):
  if isinstance(value, str) and len(value) > _NAME:
    return f'has {len(value)} characters, at most {_NAME}'
  return _text(value)


def _number(value):
  return None if type(value) is int and 0 <= value < 2**32 else (
      'is not an integer in [0, 2**32)')


def _pace(value):
  fine = type(value) in (int, float) and (
      value == 0 or LEAST_PACE <= value <= MOST_PACE)  # NaN: no
  return None if fine else (f'is neither 0 nor a number in [{LEAST_PACE}, '
                            f'{MOST_PACE}]')


def _one_of(*known):
  return lambda value: (None if isinstance(value, str) and value in known
                        else f'is not one of {known}')


# Field -> (what is wrong with a value, its default; ... = it must be there).
_SESSION = {'session': (_name, '')}
_FIELDS: dict[str, dict[str, tuple[Callable[[Any], str | None], Any]]] = {
    'session.start': {
        'question': (_text, ''), 'id': (_number, 0), 'seed': (_number, 0),
        'mode': (_one_of(*LAYOUTS), STREAMING),
        'chunks': (_one_of(*CHUNKS), SENTENCES), 'pace': (_pace, 0)},
    'input_text.append': {'text': (_text, ...)},
    'input_text.commit': {}, 'input_text.clear': {}, 'session.end': {},
    'session.cancel': {}}


def parse(data: str) -> dict[str, Any]:
  """A message with all its fields.

  Args:
    data: As it came.

  Raises:
    Refused: bad_message; says what is wrong.
  """
  bad = lambda why: Refused('bad_message', why)
  try:
    message = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise bad(f'not JSON: {e!s:.80}') from e
  if not isinstance(message, dict):
    raise bad('not a JSON object')
  kind = message.pop('type', None)
  if not isinstance(kind, str) or kind not in _FIELDS:
    raise bad(f'type={kind!r:.40} is not one of {", ".join(_FIELDS)}')
  fields = _FIELDS[kind] | _SESSION
  if unknown := sorted(message.keys() - fields.keys()):
    raise bad(f'{kind} has no field {unknown[0]!r:.40}; it has '
              f'{", ".join(fields)}')
  out = {'type': kind}
  for name, (wrong, default) in fields.items():
    if name not in message:
      if default is ...:
        raise bad(f'{kind} needs {name}')
      out[name] = default
    elif why := wrong(message[name]):
      raise bad(f'{name}={message[name]!r:.40} {why}')
    else:
      out[name] = message[name]
  return out
