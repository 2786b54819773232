"""Faults: runs that are killed, full disks, flipped bytes, lost connections.

  python -m experiments.faults.run [--only=NAME,...] [--smoke]

Whatever befalls a run, the same command afterwards must end with what an
undisturbed run ends with, to the bit; what cannot go on must say why in one
line. Trials that are done are not done again, so a killed campaign goes on.
Writes results.json and table.md beside this file.

Groups, for --only:
  kill   SIGKILL at random moments and at chosen ones, of HRPO, threads (APR)
         and distillation
  term   SIGTERM at random moments
  disk   full at each write, read-only at each change
  small  a disk of each of many sizes, which is enlarged afterwards
  flip   a flipped bit in each file of a run half-way, and of a finished one
  hosts  one of two hosts killed
  live   connections of live sessions cut

With --smoke a few trials of each, and results go into the folder of the runs.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import random
import shutil
import sys
from typing import Any

from absl import logging
import tqdm

from experiments import cells
from experiments.faults import sessions
from experiments.faults import trials
from experiments.faults.trials import Strike, Trials

HERE = pathlib.Path(__file__).parent
RUNS = ('hrpo', 'apr', 'distill')
# How many kills at random moments, and signals to end.
KILLS = {'hrpo': 20, 'apr': 15, 'distill': 15}
TERMS = {'hrpo': 8, 'apr': 6, 'distill': 6}
PER_RUN = 5  # most strikes of one run
# Chosen moments: kind, how many, and most seconds later; see strike.py. Orbax
# writes arrays within 50 ms of a change that Python sees.
CHOSEN = (('change', 3, 0.0), ('change', 2, 0.05), ('rollout', 1, 0.3),
          ('refill', 1, 0.1), ('update', 2, 0.0), ('evaluate', 1, 0.2))
HOST_KILLS = 10
CUTS, ROWS = 50, 16
DISKS = 40  # sizes of a small disk
# Bytes of files that have no checksum of their own; of others one each.
BYTES = {'config.json': 12, 'metrics.jsonl': 12, 'samples.jsonl': 12,
         'eval.json': 12, 'problems.jsonl': 4, 'model.safetensors': 4}
HALF = {'kind': 'update', 'at': 7, 'do': 'kill'}  # of tiny: in its last step


class Campaign:
  """All trials, and what came of those that are done."""

  def __init__(self, out: pathlib.Path, smoke: bool):
    self._trials, self._smoke = Trials(out), smoke
    self._out, self._path = out, out / 'results.json'
    self.done: dict[str, dict[str, Any]] = (
        json.loads(self._path.read_text()) if self._path.exists() else {})

  def _do(self, name: str, f: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What came of a trial, which is done now if it has not been."""
    if name not in self.done:
      self.done[name] = f()
      self._save()
      if not self.done[name]['ok']:
        tqdm.tqdm.write(f'{name}: {self.done[name]}')
    return self.done[name]

  def _save(self):
    new = self._path.with_name('results.json.tmp')
    new.write_text(json.dumps(self.done, indent=1) + '\n')
    new.replace(self._path)

  @contextlib.contextmanager
  def _worker(self, run: str) -> Iterator[trials.Worker]:
    worker = trials.Worker(self._out, trials.COMMANDS[run])
    try:
      yield worker
    finally:
      worker.close()

  def _few(self, n: int) -> int:
    return min(n, 2) if self._smoke else n

  # --------------------------------------------------------------- processes
  def kill(self) -> None:
    """At random moments, then at chosen ones."""
    for run in RUNS:
      self._random('kill', run, self._few(KILLS[run]))
    for run in RUNS:
      self._chosen(run)

  def term(self) -> None:
    """At random moments."""
    for run in RUNS:
      self._random('term', run, self._few(TERMS[run]))

  def _random(self, do, run, total):
    _, lasts = self._trials.reference(run)
    done, bar = 0, tqdm.tqdm(total=total, desc=f'{do} {run}', file=sys.stderr)
    for number in range(10 * total):
      r = random.Random(f'{do} {run} {number}')
      strikes = [Strike(do, seconds=r.uniform(0, lasts))
                 for _ in range(min(PER_RUN, total - done))]
      name = f'{do}/{run}/{number}'
      got = self._do(name, lambda: self._trials.struck(name, run, strikes))
      done += len(got['ends'])
      bar.update(len(got['ends']))
      if done >= total:
        break
    bar.close()

  def _chosen(self, run):
    """Each kind of moment, three in a run; where in it is drawn by lot."""
    points = self._points(run)
    r = random.Random(f'chosen {run}')
    strikes = [
        # The run is a part of itself when it goes on, so has fewer points.
        Strike('kill', kind=kind, later=r.uniform(0, later),
               at=r.randint(1, max(points[kind] // 2, 1)))
        for kind, n, later in CHOSEN for _ in range(n) if points.get(kind)]
    r.shuffle(strikes)
    strikes = strikes[:self._few(len(strikes))]
    for i in tqdm.trange(0, len(strikes), 3, desc=f'chosen {run}',
                         file=sys.stderr):
      name = f'chosen/{run}/{i}'
      self._do(name, lambda: self._trials.struck(
          name, run, strikes[i:i + 3]))

  def _points(self, run):
    """How many points of each kind an undisturbed run has."""
    def count():
      workdir = self._trials.fresh(f'points_{run}')
      with self._worker(run) as worker:
        got = worker.run(workdir)
      shutil.rmtree(workdir, ignore_errors=True)
      return {'points': got['points'], 'ok': got['status'] == 0}
    return self._do(f'points/{run}', count)['points']

  # -------------------------------------------------------------------- disk
  def disk(self) -> None:
    """Full at each write, read-only at each change."""
    reference, _ = self._trials.reference('disk')
    points = self._points('disk')
    with self._worker('disk') as worker:
      for do, kind in (('full', 'write'), ('readonly', 'change')):
        total = points[kind]
        every = range(1, total + 1, total // 4 if self._smoke else 1)
        for at in tqdm.tqdm(every, desc=f'disk {do}', file=sys.stderr):
          self._do(f'disk/{do}/{at}', lambda: trials.broken_disk(
              worker, reference, self._out / 'disk', do, at))

  def small(self) -> None:
    """Too small from the start, enlarged when the run has failed."""
    reference, _ = self._trials.reference('disk')
    with self._worker('disk') as worker:
      self._small(worker, reference)

  def _small(self, worker, reference):
    largest = sum(p.stat().st_size for p in reference.rglob('*')
                  if p.is_file()) * 5 // 4
    n = self._few(DISKS)
    for i in tqdm.trange(n, desc='disk small', file=sys.stderr):
      # Pages; more often small, where the run is at its beginning.
      size = max(int(largest * ((i + 1) / n)**2) // 4096, 2) * 4096
      try:
        self._do(f'disk/small/{i}', lambda: trials.full_disk(
            worker, reference, self._out / 'small_disk', size))
      except OSError as e:
        tqdm.tqdm.write(f'no small disks: {e}')
        return

  # -------------------------------------------------------------------- flip
  def flip(self) -> None:
    """In each file of a run half-way, and of a finished one."""
    reference, _ = self._trials.reference('tiny')
    half = self._out / 'half'
    if not half.exists():
      made = self._out / 'half_under_way'
      shutil.rmtree(made, ignore_errors=True)
      with (self._worker('tiny') as worker,
            contextlib.suppress(RuntimeError)):  # it is killed
        worker.run(made, **HALF)
      made.rename(half)
    with self._worker('tiny') as worker:
      self._flips(half, 'half', lambda name, seed: trials.flip(
          worker, reference, half, self._out / 'flip', name, seed))
      expected = self._out / 'evaluation'
      shutil.rmtree(expected, ignore_errors=True)
      got = worker.run(expected, trials.evaluation_argv(reference))
      if got['status']:
        raise RuntimeError(got['log'])
      self._flips(reference, 'finished', lambda name, seed:
                  trials.flip_finished(worker, reference, expected,
                                       self._out / 'flip', name, seed))

  def _flips(self, workdir, which, f):
    files = sorted(p.relative_to(workdir).as_posix()
                   for p in workdir.rglob('*')
                   if p.is_file() and p.stat().st_size)
    todo = [(name, i) for name in files for i in range(BYTES.get(name, 1))]
    if self._smoke:
      todo = todo[::10]
    for name, i in tqdm.tqdm(todo, desc=f'flip {which}', file=sys.stderr):
      self._do(f'flip/{which}/{name}/{i}', lambda: f(
          name, f'{which} {trials._plain(name)} {i}'))

  # ------------------------------------------------------------ hosts, live
  def hosts(self) -> None:
    """One of two is killed; two runs of five kills."""
    _, lasts = self._trials.reference('hosts')
    kills = self._few(HOST_KILLS)
    for i in tqdm.trange(0, kills, PER_RUN, desc='hosts', file=sys.stderr):
      r = random.Random(f'hosts {i}')
      # They go on where they were, so that late moments would not come.
      some = [(k % 2, r.uniform(0, lasts / 2))
              for k in range(i, min(i + PER_RUN, kills))]
      name = f'hosts/{i}'
      self._do(name, lambda: self._trials.hosts(name, some))

  def live(self) -> None:
    """Connections are cut while other sessions go on."""
    cuts = 8 if self._smoke else CUTS
    def go():
      with (sessions.serving(ROWS) as address, tqdm.tqdm(
          total=cuts, desc='live', file=sys.stderr) as bar):
        got = asyncio.run(sessions.campaign(address, cuts, 0, bar.update))
      return got | {'ok': got['free'] is not None and not got['unequal']}
    self._do('live', go)


GROUPS = ('kill', 'term', 'disk', 'small', 'flip', 'hosts', 'live')


def _row(name: str) -> str:
  """Row of the table that a trial belongs to."""
  group, which, *_ = [*name.split('/'), '']
  return group if group == 'hosts' else f'{group} {which}'.strip()


def summary(done: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Rows of the table: name -> trials, faults, ok, notes and their counts."""
  rows = {}
  for name, got in done.items():
    group = name.split('/')[0]
    notes, faults = [], 1
    if group == 'points':
      continue
    if group in ('kill', 'term', 'chosen'):
      notes, faults = got['ends'], len(got['ends'])
    elif group == 'disk':
      notes = ['had room enough'] if got.get('ended') else []
      faults = not got.get('ended')
    elif group == 'flip':
      notes = [got['outcome']]
    elif group == 'hosts':
      faults = len(got['kills'])
      notes = [f'the other ended within {-int(-k["alone"] // 10) * 10} s'
               for k in got['kills']]
    elif group == 'live':
      faults = got['cuts']
      notes = [f'rows free after {got["free"]} s', *(
          ['an undisturbed session was the same'] * got['equal']
          + ['an undisturbed session was not the same'] * got['unequal'])]
    row = rows.setdefault(_row(name), {
        'trials': 0, 'faults': 0, 'ok': 0, 'notes': {}})
    for key, n in (('trials', 1), ('faults', int(faults)), ('ok', got['ok'])):
      row[key] += n
    for note in notes:
      row['notes'][note] = row['notes'].get(note, 0) + 1
  return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The same as Markdown."""
  lines = ['| fault | trials | faults | as they must be | | commit |',
           '|---|---:|---:|---:|---|---|']
  for name, r in rows.items():
    notes = '; '.join(f'{k}: {n}' for k, n in sorted(r['notes'].items()))
    lines.append(f'| {name} | {r["trials"]} | {r["faults"]} | {r["ok"]} | '
                 f'{notes} | {r["commit"][:7]} |')
  return '\n'.join(lines) + '\n'


def write(campaign: Campaign, where: pathlib.Path) -> str:
  """Writes results.json and table.md; the table.

  Rows of which this campaign has no trial stay as they were; those in which
  nothing is new keep their commit.
  """
  path = where / 'results.json'
  old = json.loads(path.read_text()) if path.exists() else {
      'summary': {}, 'failed': {}}
  was, now = old['summary'], cells.commit()
  new = {k: was[k] if was.get(k) == {**r, 'commit': was.get(k, {}).get(
      'commit')} else {**r, 'commit': now}
         for k, r in summary(campaign.done).items()}
  failed = {k: v for k, v in old['failed'].items() if _row(k) not in new}
  failed |= {k: v for k, v in campaign.done.items() if not v['ok']}
  rows = old['summary'] | new
  path.write_text(json.dumps({'summary': rows, 'failed': failed}, indent=1)
                  + '\n')
  (where / 'table.md').write_text(text := table(rows))
  return text


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--only', default=','.join(GROUPS))
  parser.add_argument('--smoke', action='store_true')
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # Orbax warns of what is not missing
  only = cells.chosen(parser, args.only, GROUPS)
  out = args.out or pathlib.Path(
      'runs/faults_smoke' if args.smoke else 'runs/faults')
  campaign = Campaign(out, args.smoke)
  where = out / 'summary' if args.smoke else HERE
  where.mkdir(exist_ok=True)
  for name in only:
    getattr(campaign, name)()
    write(campaign, where)
  print(write(campaign, where))
  if not all(x['ok'] for x in campaign.done.values()):
    sys.exit('error: not all is as it must be, see results.json')


if __name__ == '__main__':
  main()
