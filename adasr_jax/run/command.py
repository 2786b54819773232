"""What the commands share: mistakes told in one line, a log of our own."""

from __future__ import annotations

import logging as py_logging
import re
import sys
import traceback
from typing import NoReturn
import warnings

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


def one_failure_of_a_save() -> None:
  """Prints no tracebacks of what else fails in a save that has failed.

  The library writes all arrays at once. Its threads still report to its event
  loop, which is closed, what became of the others, and the loop tells of each
  that failed or did not begin, too. The first failure is raised.
  """
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
  py_logging.getLogger('asyncio').addFilter(
      lambda record: 'never retrieved' not in record.getMessage())
  before = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)
  sys.unraisablehook = hook
