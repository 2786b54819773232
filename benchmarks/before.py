"""The RL step and the evaluation, against an earlier commit.

Each of the two checkouts runs in a process of its own that stays alive
(before_worker.py); they take turns, and only one computes at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile

import tqdm

from benchmarks import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMIT = '27452df'  # all rollouts at once, none replaced; padded updates
PARTS = ('rollout', 'update', 'step', 'evaluation')


class Checkout:
  """A process that runs one checkout."""

  def __init__(self, path: pathlib.Path):
    self._process = subprocess.Popen(
        [sys.executable, ROOT / 'benchmarks' / 'before_worker.py', path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def ask(self, request: str) -> dict[str, float]:
    """The answer to a request.

    Raises:
      RuntimeError: The process has ended.
    """
    self._process.stdin.write(request + '\n')
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError(f'no answer to {request!r}')
    return json.loads(answer)

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def git(*args: str) -> bytes | None:
  """What git prints; None where there is none, or it fails."""
  try:
    return subprocess.run(['git', '-C', ROOT, *args], check=True,
                          capture_output=True).stdout
  except (OSError, subprocess.CalledProcessError):
    return None


def _measured(now: Checkout, before: Checkout, repeats: int
              ) -> dict[str, dict[str, list[float]]]:
  """Part -> 'now' or 'before' -> its numbers in order."""
  # The first pass compiles; the second has the same shapes.
  requests = [f'step {n}' for n in range(repeats)] * 2
  requests += ['evaluation'] * (repeats + 1)
  timed = [False] * repeats + [True] * repeats + [False] + [True] * repeats
  numbers = {}
  for request, counts in zip(tqdm.tqdm(requests, leave=False), timed):
    for name, checkout in (('now', now), ('before', before)):
      answer = checkout.ask(request)
      for part, value in answer.items() if counts else ():
        numbers.setdefault(part, {}).setdefault(name, []).append(value)
  return numbers


def run(repeats: int, commit: str) -> dict | None:
  """Measures, prints a table, returns the numbers; None without the commit."""
  archive = git('archive', commit)
  if archive is None:
    print(f'\nbefore: skipped, git has no commit {commit} here')
    return None
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as open_:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
      tar.extractall(folder, filter='data')
    checkouts = []
    for path in (ROOT, pathlib.Path(folder)):
      checkouts.append(Checkout(path))
      open_.callback(checkouts[-1].close)
    numbers = _measured(*checkouts, repeats)
  rows = {
      f'{part}, {name}': dict(median=statistics.median(s), min=min(s))
      for part in PARTS for name, s in numbers[part].items()}
  for part in PARTS:
    now, then = (rows[f'{part}, {name}'] for name in ('now', 'before'))
    then['ours_is_faster_by'] = then['median'] / now['median']
  timing.show(f'against {commit}: the demo\'s RL step, an evaluation of 1,000 '
              'problems', rows, 'ours_is_faster_by')
  tokens, accuracy = ({name: statistics.median(v)
                       for name, v in numbers[what].items()}
                      for what in ('tokens', 'accuracy'))
  print(f'  tokens per step: {tokens["now"]:.0f}, before '
        f'{tokens["before"]:.0f}; accuracy {accuracy["now"]:.3f}, before '
        f'{accuracy["before"]:.3f}')
  return rows | {'commit': commit, 'tokens_per_step': tokens,
                 'accuracy': accuracy}
