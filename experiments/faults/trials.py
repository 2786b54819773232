"""One trial: a run that is struck, resumed, and compared with its reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from experiments.faults import compare

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 600  # seconds of one process, on busy cores
UNDER_WAY = 'compiling the rollout'  # said when a run has started up
INTERRUPTED = 'the same command resumes'
GONE = ('if another is gone, the same command on all resumes',
        'JAX distributed service detected fatal errors')
OTHER = 'another config; use a new workdir, or the old values of:'
# How a process may end to which a signal was sent.
ENDS = ('was killed', 'has saved', 'was at its end', 'ended at once')
ALONE = 120  # seconds within which a host ends whose other one has died
# What a log and a progress bar look like.
_LOG = re.compile(r'[IWEF]\d{4} |.*\d+%\||.*\d+step ')


@dataclasses.dataclass(frozen=True)
class Command:
  """A run of the main program, without its workdir.

  Attributes:
    config: File in configs/ with its argument.
    flags: Further flags.
  """
  config: str
  flags: tuple[str, ...]

  @property
  def argv(self) -> list[str]:
    """Flags of the main program."""
    return [f'--config=configs/{self.config}', *self.flags]


def _set(**fields: Any) -> tuple[str, ...]:
  return tuple(f'--config.{k.replace("__", ".")}={v}'
               for k, v in fields.items())


# A step of two inner epochs; groups without a signal are replaced once; eight
# rows for sixteen rollouts.
COMMON = _set(checkpoint__every=2, eval__every=2, eval__examples=16,
              eval__periodic_examples=8, eval__batch=8, eval__rows=4,
              loss__inner_epochs=2, loss__refills=1, rollout__rows=8,
              log__tensorboard=False)
COMMANDS = {
    'hrpo': Command('hrpo.py:smoke', (*COMMON, *_set(steps=8))),
    'apr': Command('apr.py:smoke', (*COMMON, *_set(steps=4))),
    'distill': Command(
        'distill.py:smoke,teacher=experiments/demo/model.safetensors',
        (*COMMON, *_set(steps=6, loss__refills=0)))}  # it replaces none
# Many short runs: one layer, random parameters.
TINY = _set(init='', data__prompts=2, data__max_chunks=8,
            data__lengths='(72,)', model__num_layers=1, model__d_model=32,
            model__d_ff=48, model__num_heads=2, model__num_kv_heads=1,
            model__head_dim=16, rollout__samples=3, rollout__thought_cap=3,
            rollout__deep_cap=4, rollout__answer_cap=2, rollout__rows=3,
            reward__user='configs.user_reward:short_words',
            optim__learning_rate='3e-3')
COMMANDS['tiny'] = Command('hrpo.py:smoke', (*COMMON, *TINY, *_set(steps=4)))
# As few writes as show every kind of them; removals too.
COMMANDS['disk'] = Command('hrpo.py:smoke', (
    *COMMON, *TINY, *_set(steps=2, checkpoint__every=1, checkpoint__keep=1,
                          loss__inner_epochs=1, log__tensorboard=True)))
COMMANDS['hosts'] = Command('hrpo.py:smoke', (
    *COMMON, *TINY, *_set(steps=8, mesh__data=1, mesh__fsdp=2,
                          rollout__rows=0)))


def environment(out: pathlib.Path, devices: int = 1) -> dict[str, str]:
  """Of a process: programs are compiled once for all of them."""
  return os.environ | dict(
      PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu',
      JAX_NUM_CPU_DEVICES=str(devices),
      JAX_COMPILATION_CACHE_DIR=str((out / 'compiled').resolve()),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
      JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')


def said(log: str) -> list[str]:
  """Lines of stderr that are neither log nor progress bar."""
  return [x for line in log.splitlines() for x in line.split('\r')
          if x.strip() and not _LOG.match(x)]


def one_line(log: str) -> bool:
  """Whether a failure was told in one line.

  That of another config is followed by the fields that differ.
  """
  lines = said(log)
  if lines and lines[0].endswith(OTHER):
    lines = [lines[0], *(x for x in lines[1:] if not x.startswith('  '))]
  return len(lines) == 1 and lines[0].startswith('error: ')


@dataclasses.dataclass(frozen=True)
class Strike:
  """A fault of a process.

  Attributes:
    do: 'kill' or 'term'.
    seconds: After it has started up; where no kind is given.
    kind, at, later: See strike.py.
  """
  do: str
  seconds: float = 0.0
  kind: str = ''
  at: int = 0
  later: float = 0.0


class Trials:
  """The folder of the campaign, and what is run in it."""

  def __init__(self, out: pathlib.Path):
    self.out = out
    out.mkdir(parents=True, exist_ok=True)

  # -------------------------------------------------------------- references
  def reference(self, name: str) -> tuple[pathlib.Path, float]:
    """The undisturbed run of a command, and its seconds after start-up.

    It is run twice, the second time without compiling; both must be equal.

    Raises:
      RuntimeError: They are not, or one fails.
    """
    made, told = self.out / f'reference_{name}', (
        self.out / f'reference_{name}.json')
    if not told.exists():
      hosts = 2 if name == 'hosts' else 1
      for folder in (self.out / f'first_{name}', made):
        shutil.rmtree(folder, ignore_errors=True)
        start = time.monotonic()
        _, last = self._until_finished(name, folder, hosts, ())
        if any(last):
          raise RuntimeError(f'{folder}: {self._log(folder).read_text()}')
      seconds = time.monotonic() - start - self._start_up
      if found := compare.differences(self.out / f'first_{name}', made):
        raise RuntimeError(f'{name} is not what it was: {found}')
      told.write_text(json.dumps({'seconds': seconds}))
    return made, json.loads(told.read_text())['seconds']

  def _log(self, workdir, host=0):
    return workdir.with_name(f'{workdir.name}_{host}.log')

  def _start(self, name, workdir, hosts=1, strike=None):
    command = COMMANDS[name]
    argv = [*command.argv, f'--workdir={workdir}']
    env = environment(self.out)
    if strike is not None and strike.kind:
      job = {'argv': command.argv, 'workdir': str(workdir), 'kind': strike.kind,
             'at': strike.at, 'do': strike.do, 'later': strike.later,
             'stderr': str(self._log(workdir))}
      p = subprocess.Popen(
          [sys.executable, '-m', 'experiments.faults.strike'], cwd=ROOT,
          env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
          stderr=subprocess.DEVNULL, text=True)
      p.stdin.write(json.dumps(job) + '\n')
      p.stdin.close()
      return [p]
    join = [[]] if hosts == 1 else [
        [f'--coordinator=127.0.0.1:{port}', f'--num_processes={hosts}',
         f'--process_id={i}'] for port in [_free_port()] for i in range(hosts)]
    out = []
    for i, more in enumerate(join):
      with self._log(workdir, i).open('a') as log:
        out.append(subprocess.Popen(
            [sys.executable, '-m', 'adasr_jax.main', *argv, *more], cwd=ROOT,
            env=env, stdout=log, stderr=log))
    return out

  def _until_finished(self, name, workdir, hosts, strikes):
    """Processes one after the other, each with its strike, the last without.

    Returns:
      Of those to which a strike came, the exit status and what was said; of
      the one that ended by itself the exit statuses, one per host.
    """
    struck = []
    for strike in [*strikes, None]:
      size = _size(self._log(workdir))
      statuses, came = self._once(name, workdir, hosts, strike)
      if not came:
        break
      struck.append((statuses[0], _since(self._log(workdir), size)))
    return struck, statuses

  def _once(self, name, workdir, hosts, strike):
    log, until = self._log(workdir), time.monotonic() + TIMEOUT
    size, begun = _size(log), time.monotonic()
    processes = self._start(name, workdir, hosts, strike)
    with _ended(processes):
      _started_up(processes[0], log, size, until)
      self._start_up = time.monotonic() - begun
      came = False
      if strike is not None and not strike.kind:
        at = time.monotonic() + strike.seconds
        while time.monotonic() < at and processes[0].poll() is None:
          time.sleep(0.001)
        if came := processes[0].poll() is None:
          processes[0].send_signal(
              signal.SIGKILL if strike.do == 'kill' else signal.SIGTERM)
      statuses = [p.wait(max(1, until - time.monotonic())) for p in processes]
    if strike is not None and strike.kind:
      came = statuses[0] == -signal.SIGKILL
    return statuses, came

  # ------------------------------------------------------- killed, terminated
  def struck(self, name: str, run: str, strikes: Sequence[Strike]
             ) -> dict[str, Any]:
    """A run that is struck several times, then left alone.

    Returns:
      ends, how each process ended that was struck; resumed, how many went on
      from a checkpoint; differences from the reference; ok.
    """
    reference, _ = self.reference(run)
    workdir = self.fresh(name)
    struck, (last,) = self._until_finished(run, workdir, 1, strikes)
    log, ends = self._log(workdir).read_text(), [_end(*x) for x in struck]
    found = (compare.differences(reference, workdir) if last == 0
             else [f'ends with status {last}: {said(log)[-1:]}'])
    found += [f'a process {x}' for x in ends if x not in ENDS]
    self._tidy(workdir, found)
    return {'run': run, 'strikes': [_short(s) for s in strikes], 'ends': ends,
            'resumed': log.count('resumed at step'), 'differences': found,
            'ok': not found}

  def fresh(self, name: str) -> pathlib.Path:
    """A workdir that is not there, nor its logs."""
    workdir = self.out / name.replace('/', '_')
    shutil.rmtree(workdir, ignore_errors=True)
    for i in range(2):
      self._log(workdir, i).unlink(missing_ok=True)
    return workdir

  def _tidy(self, workdir, found):
    """Removes the workdir of a trial in which nothing was found."""
    if not found:
      shutil.rmtree(workdir, ignore_errors=True)

  # ------------------------------------------------------------------- hosts
  def hosts(self, name: str, kills: Sequence[tuple[int, float]]
            ) -> dict[str, Any]:
    """A run of two hosts, of which one is killed, again and again.

    Args:
      name: Of the trial.
      kills: Which host, and how many seconds after the start-up.

    Returns:
      kills: Each with victim, seconds, status and alone: the seconds until the
      other had ended; said, the line of GONE that it said; differences; ok.
    """
    reference, _ = self.reference('hosts')
    workdir, found, out = self.fresh(name), [], []
    for victim, seconds in kills:
      sizes = [_size(self._log(workdir, i)) for i in range(2)]
      processes = self._start('hosts', workdir, 2)
      with _ended(processes):
        _started_up(processes[0], self._log(workdir), sizes[0],
                    time.monotonic() + TIMEOUT)
        time.sleep(seconds)
        if any(p.poll() is not None for p in processes):
          break  # finished, or failed: the last start shows which
        processes[victim].kill()
        start = time.monotonic()
        other = processes[1 - victim]
        try:
          status = other.wait(2 * ALONE)
        except subprocess.TimeoutExpired:
          status = None
      alone = time.monotonic() - start
      told = _since(self._log(workdir, 1 - victim), sizes[1 - victim])
      line = next((x for x in GONE if x in told), '')
      out.append({'victim': victim, 'seconds': round(seconds, 2),
                  'status': status, 'alone': round(alone, 1), 'said': line})
      if status in (0, None) or alone > ALONE or not line:
        found.append(f'after {seconds:.2f} s without host {victim}: status '
                     f'{status} after {alone:.0f} s, {said(told)[-3:]}')
    _, last = self._until_finished('hosts', workdir, 2, ())
    found += (compare.differences(reference, workdir) if not any(last)
              else [f'ends with statuses {last}'])
    self._tidy(workdir, found)
    return {'kills': out, 'differences': found, 'ok': not found}


def _end(status, log):
  """How a process has ended to which a signal was sent."""
  return {(-signal.SIGKILL, False): 'was killed',
          (0, True): 'has saved', (0, False): 'was at its end',
          # While it starts up, or after the last step.
          (-signal.SIGTERM, False): 'ended at once',
          }.get((status, INTERRUPTED in log), f'has status {status}')


def _size(path):
  return path.stat().st_size if path.exists() else 0


def _short(strike: Strike) -> dict[str, Any]:
  return {k: round(v, 3) if isinstance(v, float) else v
          for k, v in dataclasses.asdict(strike).items() if v}


def _since(path, size):
  """The text of a file after its first `size` bytes."""
  return path.read_bytes()[size:].decode() if path.exists() else ''


def _started_up(process, log, size, until):
  """Waits until a process says so, or ends."""
  while UNDER_WAY not in _since(log, size) and process.poll() is None:
    if time.monotonic() > until:
      raise RuntimeError(f'{log} does not go on')
    time.sleep(0.005)


@contextlib.contextmanager
def _ended(processes):
  try:
    yield
  finally:
    for p in processes:
      if p.poll() is None:
        p.kill()
      p.wait()


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


# --------------------------------------------- faults in a process that stays
class Worker:
  """A process that runs job after job; its programs stay compiled."""

  def __init__(self, out: pathlib.Path, command: Command):
    self._command, self._log = command, out / 'worker.log'
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'experiments.faults.strike'], cwd=ROOT,
        env=environment(out), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True)

  def run(self, workdir: pathlib.Path, argv: Sequence[str] | None = None,
          **fault: Any) -> dict[str, Any]:
    """A run, with a fault of strike.py.

    Returns:
      What strike.py says of it, and log, its stderr.

    Raises:
      RuntimeError: The process has died.
    """
    self._log.unlink(missing_ok=True)
    job = {'argv': self._command.argv if argv is None else list(argv),
           'workdir': str(workdir), 'stderr': str(self._log), **fault}
    self._process.stdin.write(json.dumps(job) + '\n')
    self._process.stdin.flush()
    reply = self._process.stdout.readline()
    log = self._log.read_text() if self._log.exists() else ''
    if not reply:
      raise RuntimeError(f'the process has died: {log[-2000:]}')
    return json.loads(reply) | {'log': log}

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait(60)


def broken_disk(worker: Worker, reference: pathlib.Path,
                workdir: pathlib.Path, do: str, at: int) -> dict[str, Any]:
  """A run whose disk fails at its `at`-th change, and is well afterwards.

  Args:
    worker: Of the reference's command.
    reference: The undisturbed run.
    workdir: Made anew.
    do: 'full' or 'readonly'.
    at: From 1.

  Returns:
    struck, said, differences, ok.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  got = worker.run(workdir, do=do, at=at,
                   kind='write' if do == 'full' else 'change')
  if not got['struck'] and got['status'] == 0:
    # The run that was counted began in a process of its own, and makes a few
    # changes more: this one had ended before.
    found = compare.differences(reference, workdir)
    return {'struck': '', 'said': '', 'differences': found, 'ok': not found}
  return _mended(worker, reference, workdir, got)


def _mended(worker, reference, workdir, got):
  """What came of a failure, once the same command has been given again."""
  lines, found = said(got['log']), []
  if got['status'] == 0:
    found.append('ends with status 0')
  if not one_line(got['log']):
    found.append(f'{len(lines)} lines')
  again = worker.run(workdir)
  found += (compare.differences(reference, workdir) if again['status'] == 0
            else [f'the second time: {said(again["log"])[-1:]}'])
  return {'struck': got['struck'], 'said': _said(lines, workdir),
          'differences': found, 'ok': not found}


def _said(lines, workdir):
  """The last line, without what is only true of this machine."""
  return lines[-1].replace(str(workdir.resolve()), 'W').replace(
      str(workdir), 'W') if lines else ''


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[None]:
  """`folder` on a disk (tmpfs) of `size` bytes; needs the rights to mount.

  Raises:
    OSError: It cannot be mounted.
  """
  folder.mkdir(parents=True, exist_ok=True)
  if os.path.ismount(folder):
    subprocess.run(['umount', folder], check=True)
  got = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs',
                        folder], capture_output=True, text=True)
  if got.returncode:
    raise OSError(got.stderr.strip())
  try:
    yield
  finally:
    # At once, although the worker may have a file open there.
    subprocess.run(['umount', '-l', folder], check=True)


def full_disk(worker: Worker, reference: pathlib.Path, folder: pathlib.Path,
              size: int) -> dict[str, Any]:
  """As broken_disk(), on a disk of `size` bytes that is larger afterwards.

  Returns:
    The same; ended: the run has had room enough.
  """
  with small_disk(folder, size):
    workdir = folder / 'run'
    got = worker.run(workdir)
    subprocess.run(['mount', '-o', 'remount,size=1g', folder], check=True)
    if got['status'] == 0:
      found = compare.differences(reference, workdir)
      return {'struck': '', 'said': '', 'ended': True, 'differences': found,
              'ok': not found}
    got['struck'] = f'{size} bytes'
    return _mended(worker, reference, workdir, got) | {'ended': False}


def flipped(path: pathlib.Path, r: random.Random) -> dict[str, Any]:
  """Flips a bit of a byte of a file; which one."""
  data = bytearray(path.read_bytes())
  at = r.randrange(len(data))
  before, data[at] = data[at], data[at] ^ 1 << r.randrange(8)
  path.write_bytes(data)
  return {'byte': at, 'from': before, 'to': data[at]}


def flip(worker: Worker, reference: pathlib.Path, half: pathlib.Path,
         workdir: pathlib.Path, name: str, seed: int) -> dict[str, Any]:
  """A run that goes on after a byte of one of its files has been flipped.

  Args:
    worker: Of the reference's command.
    reference: The undisturbed run.
    half: A workdir of the same command, half-way.
    workdir: Made anew.
    name: Of the file, within the workdir.
    seed: Which byte.

  Returns:
    file, byte, from, to; outcome: 'unchanged', 'noticed', 'told badly' (the
    run stops, but not with one line that names the file), 'silent' (something
    is different); said; differences; ok.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(half, workdir)
  what = flipped(workdir / name, random.Random(seed))
  got = worker.run(workdir)
  # A checkpoint from which nothing was read has the flipped bit still.
  _, _, step = name.partition('checkpoints/')
  return {'file': _plain(name), **what} | _noticed(
      got, name, lambda: compare.differences(
          reference, workdir, step.partition('/')[0]), workdir)


def flip_finished(worker: Worker, finished: pathlib.Path,
                  expected: pathlib.Path, workdir: pathlib.Path, name: str,
                  seed: int) -> dict[str, Any]:
  """A finished run one of whose bytes is flipped, evaluated by another run.

  Args:
    worker: Any.
    finished: The run.
    expected: Its evaluation, undisturbed.
    workdir: Made anew; the evaluation is beside it.
    name: Of the file, within the workdir.
    seed: Which byte.

  Returns:
    As flip(); the same command on the finished run must change nothing.
  """
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(finished, workdir)
  what = flipped(workdir / name, random.Random(seed))
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  worker.run(workdir)
  after = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  evaluation = workdir.with_name(workdir.name + '_evaluation')
  shutil.rmtree(evaluation, ignore_errors=True)
  got = worker.run(evaluation, evaluation_argv(
      workdir, name if name == 'model.safetensors' else ''))
  def differences():
    return [f'{n} differs' for n in ('eval.json', 'problems.jsonl')
            if (evaluation / n).read_bytes() != (expected / n).read_bytes()]
  out = {'file': _plain(name), **what} | _noticed(got, name, differences,
                                                  workdir)
  if before != after:
    out['differences'].append('the finished run was changed')
    out['ok'] = False
  return out


def evaluation_argv(run: pathlib.Path, file: str = '') -> list[str]:
  """Flags of the main program that evaluate a run, or a file of parameters."""
  return [f'--config=configs/eval.py:of={run},split=validation',
          *_set(eval__examples=8, eval__batch=8),
          *(_set(init=run / file) if file else ())]


def _plain(name):
  """A file's name without the random parts of its own and its folders'."""
  return re.sub(r'[0-9a-f]{32}', '*', name)


def _noticed(got, name, differences, workdir):
  lines = said(got['log'])
  if got['status'] == 0:
    found = differences()
    named = pathlib.Path(name).name in got['log']
    outcome = ('noticed' if found and named else
               'silent' if found else 'unchanged')
  else:
    found = []
    named = any(part in lines[0] for part in _names(name)) if lines else False
    outcome = 'noticed' if one_line(got['log']) and named else 'told badly'
  return {'outcome': outcome, 'said': _said(lines, workdir),
          'differences': found,
          'ok': outcome in ('noticed', 'unchanged')}


def _names(name):
  """What a message may call a file: itself, or the checkpoint it is of."""
  parts = pathlib.Path(name).parts
  if name == 'config.json':
    return [name, OTHER]
  return [parts[-1], *([f'checkpoint {parts[1]} ']
                       if parts[0] == 'checkpoints' and len(parts) > 2 else ())]
