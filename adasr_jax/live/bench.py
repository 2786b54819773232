"""python -m adasr_jax.live.bench [--of=RUN|FOLDER] [--out=FILE]

What a user waits for: seconds on the wall clock from the last word to the first
deep token, the first token of the answer, and the end; streaming beside
read-then-think. A server is started; clients on this machine send word after
word at a reading speed and commit after each sentence, as the virtual clock
(run/latency.py) has it. Beside each number stands that clock, for the very
tokens that were written, with sigma and tau measured by the server's own
programs, as many rows writing as there are sessions.

  --of           as for adasr_jax.live
  --sessions     at once: 1,16,32
  --wpm          words per minute: 150,600
  --pace         tokens per second that the server shows, 0 = all: 0,20
  --seconds      of each combination, all sessions together
  --soak=N       instead: N short sessions, and the server's memory meanwhile
  --smoke        a second of each of two combinations
  --out=FILE     the same as JSON, after each combination
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import contextlib
import dataclasses
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any
import urllib.request

from absl import app
from absl import flags
from absl import logging
import numpy as np

from adasr_jax.core import files
from adasr_jax.run import command

METRICS = ('first_deep_token', 'first_answer_token', 'end')


@dataclasses.dataclass(frozen=True)
class Heard:
  """One session.

  Attributes:
    wall: Seconds from the last word to each of METRICS; NaN = never.
    words, source, target: [C + 1], of the question and each chunk; see
      latency.clock.
    deep: Tokens of deep phase and answer.
    answer_start: Of them before the answer.
  """
  wall: tuple[float, ...]
  words: list[int]
  source: list[int]
  target: list[int]
  deep: int
  answer_start: int


class Stopped(RuntimeError):
  """The policy stopped before the text had ended."""


def problem(address: str, seed: int) -> dict[str, Any]:
  """See docs/live.md."""
  with urllib.request.urlopen(f'{address}/api/problem?seed={seed}') as reply:
    return json.loads(reply.read())


async def _speak(ws, asked, wpm):
  """Says the sentences word by word; returns when the last word was said."""
  say = lambda **m: ws.send(json.dumps(m))
  at, due = time.perf_counter(), 0
  for sentence in asked['sentences']:
    space = ' ' if sentence['text'][:1].isspace() else ''
    for word in sentence['text'].split():
      due += 1
      await asyncio.sleep(at + due * 60 / wpm - time.perf_counter())
      await say(type='input_text.append', text=space + word)
      space = ' '
    last = time.perf_counter()
    await say(type='input_text.commit')
  await say(type='session.end')
  return last


async def session(ws, asked: dict[str, Any], *, mode: str, wpm: float,
                  pace: float) -> Heard:
  """One session from its start to its end.

  Raises:
    Stopped: There is nothing to measure.
    RuntimeError: The server refused something.
  """
  await ws.send(json.dumps({
      'type': 'session.start', 'mode': mode, 'pace': pace, 'id': asked['id'],
      'question': asked['question']}))
  speaking = None
  first: dict[str, float] = {}
  source, target = [], [0] * (len(asked['sentences']) + 1)
  async for data in ws:
    now, e = time.perf_counter(), json.loads(data)
    name = e['event']
    if name == 'session.created':
      speaking = asyncio.create_task(_speak(ws, asked, wpm))
    elif name == 'chunk.committed':
      source.append(e['tokens'])
    elif name in ('thought.end', 'thought.skipped'):
      target[e['chunk']] = e['tokens']
    elif name in ('deep.token', 'answer.token'):
      first.setdefault(f'first_{name.replace(".", "_")}', now)
    elif name == 'done':
      first['end'] = now
      break
    elif e.get('code') == 'ended':  # text that was under way
      continue
    elif name in ('busy', 'error', 'closed'):
      if speaking:
        speaking.cancel()
      raise RuntimeError(f'the server says {e}')
  if not speaking.done():
    speaking.cancel()
    raise Stopped
  last = await speaking
  tokens = e['tokens']
  return Heard(
      wall=tuple(first.get(m, np.nan) - last for m in METRICS),
      words=[0, *(len(s['text'].split()) for s in asked['sentences'])],
      source=[tokens['source'] - sum(source), *source], target=target,
      deep=tokens['deep'] + tokens['answer'],
      answer_start=tokens['deep'] if 'first_answer_token' in first else -1)


async def cell(address: str, problems: Sequence[dict[str, Any]], *, mode: str,
               wpm: float, sessions: int, pace: float, seconds: float
               ) -> list[Heard]:
  """Sessions at once, one after the other on each connection."""
  from websockets.asyncio.client import connect
  numbers, until = itertools.count(), time.perf_counter() + seconds

  async def client(i):
    out = []
    await asyncio.sleep(i * 60 / wpm * 1.618 % 3)  # not all in step
    while not out or time.perf_counter() < until:
      asked = problems[next(numbers) % len(problems)]
      async with connect(f'{address.replace("http", "ws")}/ws') as ws:
        with contextlib.suppress(Stopped):
          out.append(await session(ws, asked, mode=mode, wpm=wpm, pace=pace))
    return out

  return sum(await asyncio.gather(*map(client, range(sessions))), [])


def virtual(heard: Sequence[Heard], *, mode: str, wpm: float, sigma: float,
            tau: float) -> dict[str, np.ndarray]:
  """What the virtual clock says of the same sessions; see latency.clock."""
  from adasr_jax.run import latency
  C = max(len(h.words) for h in heard)
  column = lambda name: np.array([
      getattr(h, name) + [0] * (C - len(getattr(h, name))) for h in heard])
  return latency.clock(
      column('words'), column('source'),
      np.array([len(h.words) - 1 for h in heard]), column('target'),
      np.array([h.deep for h in heard]),
      np.array([h.answer_start for h in heard]), words_per_minute=wpm,
      sigma=sigma, tau=tau, streamed=mode == 'streaming')


def speeds(policy, rows: int) -> tuple[float, float]:
  """sigma and tau: seconds per source token and, all rows writing, per step.

  Of each the quickest of five, as evaluate.measure_clock.
  """
  import jax
  from adasr_jax.live.rows import BLOCK, MOST_STEPS, Rows
  engine = policy.engine(rows, 0.0)
  house = Rows(engine, policy.params, policy.source_slots)
  n = min(BLOCK, policy.source_slots)
  reading, writing = [], []
  for _ in range(6):
    for row in range(rows):
      house.begin(row, jax.random.key(0), row, 0)
    start = time.perf_counter()
    for row in range(rows):
      house.read(row, [policy.tokenizer.pad] * n, 0, -1)
    jax.block_until_ready(house._seats)
    reading.append((time.perf_counter() - start) / rows / n)
    for row in range(rows):
      house.end(row, 0)
    house._steps = MOST_STEPS
    start = time.perf_counter()
    written = house.write()
    writing.append((time.perf_counter() - start) / max(map(len, written)))
  return min(reading[1:]), min(writing[1:])


def row_of(heard: Sequence[Heard], clock: dict[str, np.ndarray],
           **what: Any) -> dict[str, Any]:
  """p50 and p99 of wall clock and virtual clock, and the ratio of their p50."""
  out = dict(what, n=len(heard))
  for i, name in enumerate(METRICS):
    wall = np.array([h.wall[i] for h in heard])
    for label, values in (('wall', wall), ('clock', clock[name])):
      out[f'{name}_{label}'] = [float(np.nanpercentile(values, p))
                                for p in (50, 99)]
    a, b = (out[f'{name}_{x}'][0] for x in ('wall', 'clock'))
    out[f'{name}_ratio'] = a / b if b > 0 else None
  return out


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Markdown; milliseconds, p50 / p99, and wall over clock."""
  head = ['mode', 'wpm', 'pace', 'sessions', 'n', *(
      f'{m.replace("_", " ")} {x}' for m in METRICS for x in ('wall', 'clock'))]
  ms = lambda pair: ' / '.join(f'{1e3 * v:.1f}' for v in pair)
  lines = [head, ['---'] * len(head)]
  for r in rows:
    lines.append([str(r[k]) for k in head[:5]]
                 + [ms(r[f'{m}_{x}']) for m in METRICS
                    for x in ('wall', 'clock')])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


@contextlib.contextmanager
def serving(of: Sequence[str], sessions: int):
  """A server of its own process; gives its address and process id.

  Raises:
    RuntimeError: It did not start.
  """
  process = subprocess.Popen(
      [sys.executable, '-m', 'adasr_jax.live', '--port=0',
       f'--sessions={sessions}', *(f'--of={x}' for x in of)],
      stderr=subprocess.PIPE, text=True)
  try:
    said = ''
    for line in process.stderr:
      said += line
      if line.startswith('live at '):
        # What else it says must not fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield line.split()[2], process.pid
        return
    raise RuntimeError(f'the server did not start:\n{said}')
  finally:
    process.send_signal(signal.SIGINT)
    process.wait(20)


def memory(pid: int) -> float:
  """Resident memory of a process, MB."""
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  return int(status.partition('VmRSS:')[2].split()[0]) / 1024


async def soak(address: str, pid: int, sessions: int, parts: int = 10
               ) -> list[dict[str, float]]:
  """Short sessions, 16 at once, many of them cancelled or cut off.

  Returns:
    After each of `parts` parts: sessions so far, seconds, MB of the server.
  """
  from websockets.asyncio.client import connect
  asked = [problem(address, seed) for seed in range(20)]
  start, numbers, out = time.perf_counter(), itertools.count(), []

  async def client(until):
    while (i := next(numbers)) < until:
      async with connect(f'{address.replace("http", "ws")}/ws') as ws:
        p = asked[i % len(asked)]
        say = lambda **m: ws.send(json.dumps(m))
        await say(type='session.start', question=p['question'], mode=(
            'streaming', 'read_then_think')[i % 2])
        text = ''.join(s['text'] for s in p['sentences'])
        await say(type='input_text.append', text=text)
        if i % 5 == 1:
          await say(type='session.cancel')
        elif i % 5 == 2:
          continue  # gone
        else:
          await say(type='session.end')
        async for data in ws:
          if json.loads(data)['event'] in ('done', 'closed', 'busy'):
            break

  for part in range(1, parts + 1):
    until = sessions * part // parts
    numbers = itertools.count(sessions * (part - 1) // parts)
    await asyncio.gather(*(client(until) for _ in range(16)))
    out.append(dict(sessions=until, mb=memory(pid),
                    seconds=time.perf_counter() - start))
    print('{sessions:8d} sessions  {seconds:7.1f} s  {mb:7.1f} MB'.format(
        **out[-1]), flush=True)
  return out


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  command.show_log(logging.WARNING)
  try:
    if _OUT.value:  # that it can be written, before anything is measured
      path = pathlib.Path(_OUT.value)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.open('a').close()
    if _SOAK.value:
      save(asyncio.run(_soak()))
    else:
      _bench()
  except (ValueError, OSError, RuntimeError) as e:
    command.fail(e)


def save(rows: Sequence[dict[str, Any]]) -> None:
  """Writes --out, where there is one."""
  if _OUT.value:
    files.write_text(pathlib.Path(_OUT.value),
                     json.dumps(rows, indent=2) + '\n')


async def _soak():
  with serving(_OF.value, 32) as (address, pid):
    return await soak(address, pid, _SOAK.value)


def _numbers(flag, kind, least):
  try:
    if (out := [kind(x) for x in flag.value]) and min(out) >= least:
      return out
  except ValueError:
    pass
  raise ValueError(f'--{flag.name}={",".join(flag.value)}: numbers of at '
                   f'least {least}')


def _bench():
  from adasr_jax.live import policy
  policies = {p.mode: p for p in (
      [policy.load(of) for of in _OF.value] or policy.shipped())}
  sessions, wpm = _numbers(_SESSIONS, int, 1), _numbers(_WPM, float, 1e-3)
  paces, seconds = _numbers(_PACE, float, 0), _SECONDS.value
  if _SMOKE.value:
    sessions, wpm, paces, seconds = [2], [6000.0], [0.0, 200.0], 1.0
  rows = []
  for n in sessions:
    sigma_tau = {mode: speeds(p, n) for mode, p in policies.items()}
    for mode, (sigma, tau) in sigma_tau.items():
      print(f'{n} sessions, {mode}: sigma {1e6 * sigma:.0f} us, '
            f'tau {1e3 * tau:.2f} ms', flush=True)
    with serving(_OF.value, n) as (address, _):
      asked = [problem(address, seed) for seed in range(40)]
      for mode, speed, pace in itertools.product(policies, wpm, paces):
        heard = asyncio.run(cell(address, asked, mode=mode, wpm=speed,
                                 sessions=n, pace=pace, seconds=seconds))
        sigma, tau = sigma_tau[mode]
        clock = virtual(heard, mode=mode, wpm=speed, sigma=sigma,
                        tau=max(tau, 1 / pace) if pace else tau)
        rows.append(row_of(heard, clock, mode=mode, wpm=speed, pace=pace,
                           sessions=n, sigma=sigma, tau=tau))
        save(rows)
        print(table(rows[-1:]).splitlines()[-1], flush=True)
  print(table(rows))


if __name__ == '__main__':
  _OF = flags.DEFINE_multi_string('of', [], 'A run or a Hugging Face folder.')
  _SESSIONS = flags.DEFINE_list('sessions', ['1', '16', '32'], 'At once.')
  _WPM = flags.DEFINE_list('wpm', ['150', '600'], 'Words per minute.')
  _PACE = flags.DEFINE_list('pace', ['0', '20'], 'Tokens per second; 0 = all.')
  _SECONDS = flags.DEFINE_float('seconds', 60, 'Of each combination.',
                                lower_bound=0.1)
  _SOAK = flags.DEFINE_integer('soak', 0, 'Short sessions.', lower_bound=0)
  _SMOKE = flags.DEFINE_bool('smoke', False, 'A second or two.')
  _OUT = flags.DEFINE_string('out', '', 'A JSON file.')
  app.run(main, flags_parser=command.parse_flags)
