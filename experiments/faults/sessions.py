"""Live sessions that are cut off, and what the others hear meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any
import urllib.request

from adasr_jax.live import bench
from adasr_jax.live import messages

# How a connection ends: at once; within a message; within a text of several
# messages that the server has not read; in good order.
ENDS = ('abort', 'half', 'flood', 'close')
FREE = 5.0  # seconds within which all rows are free
PAUSE = 0.05  # seconds between two pieces of text
# What a session hears of its tokens; times and waits are left out.
TOLD = ('event', 'chunk', 'text', 'tokens', 'again', 'cut', 'deep', 'finished')


@contextlib.contextmanager
def serving(rows: int):
  """The address of the shipped policies, which sample (temperature 1).

  Raises:
    RuntimeError: They are not served.
  """
  process = subprocess.Popen(
      [sys.executable, '-m', 'adasr_jax.live', '--port=0', '--temperature=1',
       f'--sessions={rows}'], stderr=subprocess.PIPE, text=True)
  try:
    said = ''
    for line in process.stderr:
      said += line
      if line.startswith('live at '):
        # What else it says must not fill the pipe.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield line.split()[2]
        return
    raise RuntimeError(f'the server did not start:\n{said}')
  finally:
    process.send_signal(signal.SIGINT)
    process.wait(20)


def info(address: str) -> dict[str, Any]:
  """See docs/live.md."""
  with urllib.request.urlopen(f'{address}/api/info') as reply:
    return json.loads(reply.read())


def pieces(asked: dict[str, Any], r: random.Random) -> list[str]:
  """The messages of a session, its text cut anywhere."""
  text = ''.join(s['text'] for s in asked['sentences'])
  cuts = sorted(r.sample(range(1, len(text)), 12))
  return [*(json.dumps({'type': 'input_text.append', 'text': text[i:j]})
            for i, j in zip([0, *cuts], [*cuts, len(text)])),
          json.dumps({'type': 'session.end'})]


def _start(asked, mode):
  return json.dumps({'type': 'session.start', 'mode': mode, 'id': asked['id'],
                     'question': asked['question']})


async def _speak(ws, said):
  for message in said:
    await ws.send(message)
    await asyncio.sleep(PAUSE)


async def undisturbed(address: str, asked: dict[str, Any], mode: str
                      ) -> list[dict[str, Any]]:
  """What a session hears, without what the wall clock says.

  Chunks and tokens in their order each; how they interleave is a matter of
  time.

  Raises:
    RuntimeError: It has no answer.
  """
  from websockets.asyncio.client import connect
  said, heard = pieces(asked, random.Random(asked['id'])), []
  async with connect(f'{address.replace("http", "ws")}/ws') as ws:
    await ws.send(_start(asked, mode))
    speaking = asyncio.create_task(_speak(ws, said))
    async for data in ws:
      e = json.loads(data)
      heard.append({k: e[k] for k in TOLD if k in e})
      if e['event'] in ('done', 'busy', 'error', 'closed'):
        break
    speaking.cancel()
  if heard[-1]['event'] != 'done':
    raise RuntimeError(f'the server says {heard[-1]}')
  return sorted(heard, key=lambda e: e['event'] == 'chunk.committed')


async def cut(address: str, asked: dict[str, Any], mode: str, how: str,
              after: float) -> int:
  """A session whose connection ends `after` seconds; events that it heard."""
  from websockets.asyncio.client import connect
  until, heard = time.monotonic() + after, 0
  said = [_start(asked, mode), *pieces(asked, random.Random(after))]
  ws = await connect(f'{address.replace("http", "ws")}/ws')
  speaking = asyncio.create_task(_speak(ws, said))
  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(until - time.monotonic()):
      async for _ in ws:
        heard += 1
  speaking.cancel()
  if how == 'close':
    await ws.close()
    return heard
  if how == 'half':  # a masked text frame of 100 bytes, 7 of which are there
    ws.transport.write(b'\x81\xe4' + b'\0\0\0\0' + b'{"type"')
  elif how == 'flood':
    await _flood(ws, said)
  ws.transport.abort()
  return heard


async def _flood(ws, said):
  for message in said * 3:
    assert len(message) < messages.MOST_BYTES
    await ws.send(message)


async def campaign(address: str, cuts: int, seed: int, told
                   ) -> dict[str, Any]:
  """Cuts sessions off at random moments, beside others that go on.

  Args:
    address: Of a server that nobody else uses.
    cuts: Sessions, half of the rows at once.
    seed: Of moments and ways.
    told: Called after each cut.

  Returns:
    cuts; heard, events before each cut; free, the seconds until all rows were,
    None = not within FREE; equal and unequal, undisturbed sessions beside the
    cuts and after them whose tokens are those of before, and those whose are
    not.
  """
  r = random.Random(seed)
  about = info(address)
  modes, rows = list(about['free']), about['sessions']
  asked = [bench.problem(address, i) for i in range(4)]
  ask = lambda: asyncio.gather(*(
      undisturbed(address, a, m) for a in asked[:2] for m in modes))
  start = time.monotonic()
  before = await ask()
  lasts = time.monotonic() - start
  todo = [(asked[i % 4], modes[i % len(modes)], ENDS[i % len(ENDS)],
           r.uniform(0, 1.2 * lasts)) for i in range(cuts)]
  heard, equal, unequal = [], 0, 0

  async def worker():
    while todo:
      heard.append(await cut(address, *todo.pop()))
      told()

  def compare(after: Sequence[list[dict[str, Any]]]):
    nonlocal equal, unequal
    for x, y in zip(before, after, strict=True):
      equal, unequal = equal + (x == y), unequal + (x != y)

  working = [asyncio.create_task(worker()) for _ in range(max(rows // 2, 1))]
  while not all(w.done() for w in working):
    compare(await ask())
  await asyncio.gather(*working)
  free, start = None, time.monotonic()
  while time.monotonic() - start < FREE:
    now = await asyncio.to_thread(info, address)
    if all(n == rows for n in now['free'].values()):
      free = round(time.monotonic() - start, 3)
      break
    await asyncio.sleep(0.02)
  compare(await ask())
  return {'cuts': cuts, 'heard': sorted(heard), 'free': free, 'equal': equal,
          'unequal': unequal}
