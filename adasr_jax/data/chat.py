"""The turns of a chat template, rendered in a process of its own.

A chat template is a program that comes with a model's files: one that loops,
or that fills the memory, must not take the run with it.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import subprocess
import sys
from typing import NamedTuple

# Stands where the user's text goes. No template writes it by itself.
MARK = '\u241f'
TIME_LIMIT = 60  # seconds; most of the usual one is the import
MEMORY = 4 * 2**30  # bytes
LONGEST = 100_000  # characters of a turn


class Turns(NamedTuple):
  """The texts around the user's and before the model's.

  Attributes:
    head: Before the user's text.
    tail: After it, to the end of the user's turn.
    header: Opens the assistant's turn.
  """
  head: str
  tail: str
  header: str


@functools.cache
def turns(template: str, special: tuple[tuple[str, str], ...], where: str
          ) -> Turns:
  """Cuts the template's turns at their content.

  Args:
    template: A Jinja chat template.
    special: Names and texts of special tokens that it may use ('bos_token').
    where: The folder, for errors.

  Raises:
    ValueError: The template does not end in time, fails, leaves the user's
      text out, has it twice, or changes the user's turn where the assistant's
      begins.
  """
  what = f'the chat template of the tokenizer in {where!r}'
  try:
    # -P: the script's folder is no place to import from.
    done = subprocess.run(
        [sys.executable, '-P', __file__, str(MEMORY)], capture_output=True,
        input=json.dumps([template, dict(special)]), check=False,
        encoding='utf-8', timeout=TIME_LIMIT,
        # It reserves memory per thread.
        env={**os.environ, 'OPENBLAS_NUM_THREADS': '1'})
  except subprocess.TimeoutExpired:
    raise ValueError(f'{what} did not end in {TIME_LIMIT} s') from None
  if done.returncode:
    why = (done.stderr.strip() or f'exit code {done.returncode}').splitlines()
    raise ValueError(f'{what} fails: {why[-1]}')
  user, both = json.loads(done.stdout)
  if user.count(MARK) != 1:
    raise ValueError(f"{what} has the user's text {user.count(MARK)} times, "
                     'not once')
  if not both.startswith(user):
    raise ValueError(f"{what} changes the user's turn where the assistant's "
                     'begins')
  return Turns(*user.split(MARK), both[len(user):])


def _render(memory):
  """Reads [template, special tokens]; writes the user's turn and both turns."""
  try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  except (ImportError, ValueError, OSError):
    pass  # not on this system; the time limit stays
  from transformers.utils import chat_template_utils

  class Then(datetime.datetime):
    """Now is always the day that Llama's templates have without a clock."""

    @classmethod
    def now(cls, tz=None):
      return cls(2024, 7, 26, tzinfo=tz)

  # Else a prompt would be another one tomorrow.
  chat_template_utils.datetime = Then
  template, special = json.load(sys.stdin)
  out = []
  for opens in (False, True):
    (text,), _ = chat_template_utils.render_jinja_template(
        [[{'role': 'user', 'content': MARK}]], chat_template=template,
        add_generation_prompt=opens, **special)
    if len(text) > LONGEST:
      raise ValueError(f'{len(text)} characters around one')
    out.append(text)
  json.dump(out, sys.stdout)


if __name__ == '__main__':
  sys.stdin.reconfigure(encoding='utf-8')
  sys.stdout.reconfigure(encoding='utf-8')
  _render(int(sys.argv[1]))
