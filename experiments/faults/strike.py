"""The main program, struck at a chosen point.

  python -m experiments.faults.strike

reads jobs, one JSON object per line, and runs each as `python -m
adasr_jax.main` would run; programs stay compiled between jobs. After each it
writes a line of JSON: `status`, `points` (how many there were, by kind) and
`struck`, what was under way when the fault came ('' = it did not come).

A job has `argv` (flags of the main program), `workdir`, `stderr` (a file) and
the fault: the `at`-th point of a `kind`, `do`, and how many seconds `later`.

Kinds of points:
  write     a file is opened, written, renamed, ... in the workdir by Python.
            Orbax's arrays are written below Python and are not counted
  change    as write, and removals of files and folders too
  rollout   a rollout of training has been started
  refill    the same, where groups without a signal are replaced
  update    an update, so an inner epoch, has been started
  evaluate  a batch of an evaluation has been started

What is done:
  kill      SIGKILL; where something is written, half of it stays
  term      SIGTERM
  full      writes fail with ENOSPC from now on, half of the first stays
  readonly  whatever changes the workdir fails with EROFS from now on
"""

from __future__ import annotations

import builtins
import collections
import errno
import functools
import io
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from absl import flags
from absl import logging
from ml_collections import config_flags

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
# Audit events that change a file system -> where their dir_fd stands.
CHANGES = {'os.mkdir': 2, 'os.rename': 2, 'os.link': 2, 'os.symlink': 2,
           'os.truncate': None}
REMOVALS = {'os.remove': 1, 'os.rmdir': 1}
FAILURES = {'full': errno.ENOSPC, 'readonly': errno.EROFS}


class Fault:
  """The fault of the job that is under way.

  Attributes:
    points: How many there were, by kind.
    struck: What was under way when it came; '' = it has not come.
  """

  def __init__(self, job: dict[str, Any]):
    self._workdir = os.path.abspath(job['workdir'])
    self._kind, self._at = job.get('kind', ''), job.get('at', 0)
    self._do, self._later = job.get('do', ''), job.get('later', 0.0)
    self._last = ''
    self.points: collections.Counter[str] = collections.Counter()
    self.struck = ''

  def within(self, path: Any, dir_fd: int | None = None) -> bool:
    """Whether a path, as Python's functions take it, is in the workdir."""
    if isinstance(path, int):
      return False
    path = os.fsdecode(path)
    if dir_fd is not None and dir_fd >= 0 and not os.path.isabs(path):
      path = os.path.join(os.readlink(f'/proc/self/fd/{dir_fd}'), path)
    path = os.path.abspath(path)
    return path == self._workdir or path.startswith(self._workdir + os.sep)

  def change(self, what: str, path: Any, *, removal: bool = False) -> None:
    """The workdir is about to be changed.

    Raises:
      OSError: It cannot be.
    """
    what = f'{what} {os.path.basename(os.fsdecode(path))}'
    came = self.point('change', what)
    if not removal:
      came = self.point('write', what) or came
    code = FAILURES.get(self._do)
    if code and self.struck and not (removal and self._do == 'full'):
      named = () if what.startswith('write') else (os.fsdecode(path),)
      raise OSError(code, os.strerror(code), *named)
    if came:
      self.signal()

  def due(self) -> bool:
    """Whether the fault comes with the next change."""
    return (not self.struck and self._kind in ('write', 'change')
            and self.points[self._kind] + 1 == self._at)

  def point(self, kind: str, what: str) -> bool:
    """Counts a point; whether the fault comes now."""
    if kind == 'rollout' and self._last == 'rollout':
      self.point('refill', what)
    if kind in ('rollout', 'update'):
      self._last = kind
    self.points[kind] += 1
    if self.struck or kind != self._kind or self.points[kind] != self._at:
      return False
    self.struck = what
    if kind not in ('write', 'change'):
      self.signal()
    return True

  def signal(self) -> None:
    """Sends the signal that the fault is, if it is one."""
    number = {'kill': signal.SIGKILL, 'term': signal.SIGTERM}.get(self._do)
    if number is None:
      return
    send = lambda: os.kill(os.getpid(), number)
    if self._later:
      threading.Timer(self._later, send).start()
    else:
      send()


_now: Fault | None = None


class Disk(io.FileIO):
  """A file in the workdir."""

  def write(self, data) -> int:
    whole, done = memoryview(data).cast('B'), 0
    if _now is not None:
      if _now.due():
        done = super().write(whole[:len(whole) // 2])
      _now.change('write to', self.name)
    return done + super().write(whole[done:])


def _hook(event: str, args: tuple) -> None:
  if _now is None:
    return
  if event == 'open':
    path, _, flags_ = args
    if flags_ & WRITING and _now.within(path):
      _now.change('open', path)
  elif event in CHANGES or event in REMOVALS:
    at = (CHANGES | REMOVALS)[event]
    path = args[1] if event == 'os.rename' else args[0]
    if _now.within(path, None if at is None else args[at]):
      _now.change(event.removeprefix('os.'), path,
                  removal=event in REMOVALS)


_open = io.open


def _opened(file, mode='r', buffering=-1, encoding=None, errors=None,
            newline=None, closefd=True, opener=None):
  """As open(), but what is written into the workdir is a Disk."""
  if (_now is None or not set(mode) & set('wax+') or not _now.within(file)):
    return _open(file, mode, buffering, encoding, errors, newline, closefd,
                 opener)
  raw = Disk(file, ''.join(c for c in mode if c not in 'bt'), closefd, opener)
  if buffering == 0:
    return raw
  buffered = (io.BufferedRandom if '+' in mode else io.BufferedWriter)(raw)
  if 'b' in mode:
    return buffered
  text = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
  text.mode = mode
  return text


def _counted(f, kind):
  """f, with a point once it has been called."""
  def called(*args, **kwargs):
    out = f(*args, **kwargs)
    if _now is not None:
      _now.point(kind, kind)
    return out
  return called


def install() -> None:
  """Puts the points into Python and the package; once per process."""
  from adasr_jax.learn import groups
  from adasr_jax.learn import hrpo
  from adasr_jax.learn import optim
  from adasr_jax.policy import rollout as rollout_lib
  from adasr_jax.run import train
  sys.addaudithook(_hook)
  builtins.open = io.open = _opened
  # Where the evaluation looks it up, and where training does.
  rollout = rollout_lib.rollout
  rollout_lib.rollout = _counted(rollout, 'evaluate')
  groups.rollout = _counted(rollout, 'rollout')
  train.update = _counted(train.update, 'update')
  # The same objects for the same config: the update is traced once.
  hrpo.loss_of = functools.cache(hrpo.loss_of)
  optim.make_optimizer = functools.cache(optim.make_optimizer)


def run(job: dict[str, Any]) -> dict[str, Any]:
  """Does a job, in this process; see the text above."""
  global _now
  from adasr_jax import main
  from adasr_jax.run import command
  # Flags of its own: those of the last job are gone.
  own = flags.FlagValues()
  main._CONFIG = config_flags.DEFINE_config_file(
      'config', None, '', flag_values=own, lock_config=True)
  main._WORKDIR = flags.DEFINE_string('workdir', None, '', flag_values=own)
  sys.argv = ['adasr_jax.main', *job['argv'], f'--workdir={job["workdir"]}']
  log = os.open(job['stderr'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  before = os.dup(2)
  os.dup2(log, 2)
  fault, status = Fault(job), 0
  try:
    rest = command.parse_flags(sys.argv, own)
    _now = fault
    main.main(rest)
  except SystemExit as e:
    status = e.code if isinstance(e.code, int) else int(e.code is not None)
    if isinstance(e.code, str):
      print(e.code, file=sys.stderr)
  except BaseException:
    status = 1
    traceback.print_exc()
  finally:
    _now = None
    sys.stderr.flush()
    os.dup2(before, 2)
    os.close(before)
    os.close(log)
  return {'status': status, 'points': dict(fault.points),
          'struck': fault.struck}


def serve() -> None:
  """Does the jobs of standard input."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what the package prints
  flags.FLAGS(['strike'])
  logging.use_absl_handler()
  install()
  for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), file=out, flush=True)


if __name__ == '__main__':
  # Under its own name: there is one fault, whoever imports this.
  from experiments.faults import strike
  strike.serve()
