"""What the commands share: mistakes told in one line, a log of our own."""

from __future__ import annotations

import re
import sys
import traceback
from typing import NoReturn

from absl import flags
from absl import logging


def fail(e: Exception) -> NoReturn:
  """Ends the program with what the user has to change."""
  # Only our own errors, which are ValueErrors, have lines on purpose.
  sys.exit(f'error: {_one_line(e) if isinstance(e, OSError) else e}')


def _one_line(e):
  return ' '.join(str(e).replace('\\n', '\n').split())


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS
                ) -> list[str]:
  """Parses flags, returns the rest; ends the program at a bad flag."""
  try:
    return values(argv)
  except flags.Error as e:  # ends with the reason, after a traceback
    text = str(e).strip()
    sys.exit(f'error: {text.splitlines()[0]} {text.splitlines()[-1].strip()}'
             if '\n' in text else f'error: {text}')
  except AttributeError as e:
    if e.name == 'get_config':
      sys.exit('error: the file of --config has no get_config()')
    sys.exit(f'error: no such config field: {_one_line(e)}')
  except Exception as e:  # of the config file, which is a program
    last = traceback.extract_tb(e.__traceback__)[-1]
    file, line = ((e.filename, e.lineno) if isinstance(e, SyntaxError)
                  else (last.filename, last.lineno))
    sys.exit(f'error: {file}:{line}: {type(e).__name__}: {_one_line(e)}')


def no_arguments(rest: list[str]) -> None:
  """Ends the program where more than flags was given."""
  if len(rest) > 1:
    sys.exit(f'error: unknown arguments: {rest[1:]}')


def show_log(level: int) -> None:
  """Shows our own log from a level on; Orbax and JAX log pages beside it."""
  logging.set_verbosity(level)
  logging.get_absl_handler().addFilter(
      lambda record: not re.search('orbax|xla_bridge', record.pathname))


def without_closed_loops() -> None:
  """Prints no tracebacks of event loops that were closed.

  When a save fails, the library's threads still report to its loop what became
  of the other files, each with a traceback. The failure itself is raised.
  """
  before = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)
  sys.unraisablehook = hook
