"""The WebSocket: connections, their sessions, the rounds of the engine.

The event loop serves connections; one thread of its own does the rounds of all
houses, one after the other, so that they do not compete for the cores.
docs/live.md describes every message and event.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
import heapq
import itertools
import json
import time
from typing import Any

from absl import logging
from starlette.websockets import WebSocket, WebSocketDisconnect

from adasr_jax.live import messages
from adasr_jax.live.policy import Policy
from adasr_jax.live.session import House, Refused, Session

# Reasons that close the connection too, with their codes.
CODES = {'shutdown': 1001, 'too_slow': 1008, 'too_many_errors': 1008,
         'no_session': 1008, 'too_many_connections': 1013}
UNTOLD = 2048  # events that may wait for a client before it is heard again


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a server puts up with; seconds.

  Attributes:
    connections: Most at once.
    sessions: Most of a connection.
    errors: Most bad messages of a connection.
    silent: A connection may be without a session.
    idle: A session may be without a message before it has ended.
    send: A client may let an event wait.
  """
  connections: int = 256
  sessions: int = 4
  errors: int = 20
  silent: float = 30.0
  idle: float = 120.0
  send: float = 20.0


class Server:
  """Houses, and the connections to their sessions."""

  def __init__(self, policies: list[Policy], rows: int, temperature: float,
               limits: Limits | None = None):
    """Compiles nothing yet.

    Args:
      policies: At most one of each mode.
      rows: Most sessions of each.
      temperature: See sampling.draw.
      limits: None = the defaults.

    Raises:
      ValueError: Two policies have the same mode.
    """
    self.houses: dict[str, House] = {}
    for policy in policies:
      if policy.mode in self.houses:
        raise ValueError(f'{policy.name} and '
                         f'{self.houses[policy.mode].policy.name} are both '
                         f'of mode {policy.mode!r}')
      self.houses[policy.mode] = House(policy, rows, temperature)
    self.rows, self.limits = rows, limits or Limits()
    self.connections: set[Connection] = set()
    self.broken = False  # rounds have stopped for good
    self._worker = ThreadPoolExecutor(1, 'rounds')
    self._wake = {mode: asyncio.Event() for mode in self.houses}

  def warm(self) -> None:
    """Compiles all programs."""
    for house in self.houses.values():
      house.warm()

  @contextlib.asynccontextmanager
  async def running(self):
    """Does the rounds meanwhile."""
    tasks = [asyncio.create_task(self._rounds(mode)) for mode in self.houses]
    for task in tasks:
      task.add_done_callback(self._over)
    tasks.append(asyncio.create_task(self._watch()))
    try:
      yield
    finally:
      for task in tasks:
        task.cancel()
      self._worker.shutdown(wait=True)

  def _over(self, rounds):
    if not rounds.cancelled():
      logging.error('rounds have stopped', exc_info=rounds.exception())
      self.broken = True

  async def _rounds(self, mode):
    house, wake = self.houses[mode], self._wake[mode]
    loop = asyncio.get_running_loop()
    while True:
      wake.clear()
      try:
        busy = await loop.run_in_executor(self._worker, house.work)
      except Exception:  # the sessions are lost, the server is not
        logging.exception('a round of %s has failed', mode)
        await loop.run_in_executor(self._worker, house.fail)
        busy = False
      for connection in self.connections:
        connection.wake.set()
      if not busy:
        await wake.wait()

  async def _watch(self):
    """Ends what has been silent for too long."""
    while True:
      await asyncio.sleep(min(1.0, self.limits.silent / 4))
      for connection in list(self.connections):
        connection.look()

  def stir(self) -> None:
    """There is something to do; of the event loop's thread."""
    for wake in self._wake.values():
      wake.set()

  async def serve(self, websocket: WebSocket) -> None:
    """A connection, from its beginning to its end."""
    await websocket.accept()
    connection = Connection(self, websocket)
    if len(self.connections) >= self.limits.connections:
      await connection.close('too_many_connections')
      return
    self.connections.add(connection)
    try:
      await connection.run()
    finally:
      self.connections.discard(connection)

  async def close(self) -> None:
    """Tells all clients that the server stops."""
    await asyncio.gather(*(c.close('shutdown') for c in list(self.connections)))


class Connection:
  """One client and its sessions."""

  def __init__(self, server: Server, websocket: WebSocket):
    self._server, self._websocket = server, websocket
    self._begun = self._heard = time.monotonic()
    self._sessions: dict[str, Session] = {}
    self._said: dict[Session, float] = {}  # when its last message came
    self._due: list[tuple[float, int, Session | None, dict[str, Any]]] = []
    self._number = itertools.count()
    self._errors, self._closing = 0, ''
    self.wake = asyncio.Event()

  async def run(self) -> None:
    """Until the client or the server closes."""
    sender = asyncio.create_task(self._send_all())
    receiver = asyncio.create_task(self._receive_all())
    try:
      await asyncio.wait((sender, receiver),
                         return_when=asyncio.FIRST_COMPLETED)
      if self._closing in CODES:
        await self.close(self._closing)
    finally:
      for task in (sender, receiver):
        task.cancel()
      for result in await asyncio.gather(sender, receiver,
                                         return_exceptions=True):
        if isinstance(result, Exception):
          logging.error('a connection has failed', exc_info=result)
      for session in self._sessions.values():
        session.cancel()
      self._server.stir()

  async def close(self, reason: str) -> None:
    """Tells why, and closes."""
    try:
      async with asyncio.timeout(1):
        await self._send({'event': 'closed', 'session': '',
                          't': self._since(), 'reason': reason})
        await self._websocket.close(CODES[reason], reason)
    except (WebSocketDisconnect, RuntimeError, TimeoutError):
      pass  # it is gone

  def look(self) -> None:
    """Ends what has been silent for too long."""
    now, limits = time.monotonic(), self._server.limits
    if not self._sessions and now - self._heard > limits.silent:
      self._leave('no_session')
    for session in self._sessions.values():
      if not session.ended and now - self._said[session] > limits.idle:
        session.cancel('idle')
        self._server.stir()

  def _leave(self, reason):
    self._closing = self._closing or reason
    self.wake.set()

  def _since(self):
    return round(time.monotonic() - self._begun, 4)

  # ---------------------------------------------------------------- receiving
  async def _receive_all(self):
    with contextlib.suppress(WebSocketDisconnect):
      while not self._closing:
        message = await self._websocket.receive()
        if message['type'] != 'websocket.receive':
          return
        self._heard = time.monotonic()
        self._receive(message.get('text'))
        self.wake.set()
        self._server.stir()
        # Who does not read what it is told is not listened to.
        while self._untold() > UNTOLD and not self._closing:
          await asyncio.sleep(0.02)

  def _untold(self):
    """Events that are due; those of a slow pace wait for their time."""
    now = time.monotonic()
    return (sum(due <= now for due, *_ in self._due)
            + sum(s.waiting for s in self._sessions.values()))

  def _receive(self, data):
    message, session = None, None
    try:
      if data is None:
        raise Refused('bad_message', 'not text')
      message = messages.parse(data)
      name = message['session']
      session = self._sessions.get(name)
      if message['type'] == 'session.start':
        self._start(message, session)
        return
      if session is None:
        raise Refused('no_session', f'there is no session {name!r}')
      self._said[session] = self._heard
      do = {'input_text.append': lambda: session.append(message['text']),
            'input_text.commit': session.commit,
            'input_text.clear': session.clear, 'session.end': session.end,
            'session.cancel': session.cancel}
      do[message['type']]()
    except Refused as e:
      self._refuse(e, message, session)

  def _start(self, m, old):
    name, limits = m['session'], self._server.limits
    if old is not None:
      raise Refused('session_exists', f'there is a session {name!r}')
    if len(self._sessions) >= limits.sessions:
      raise Refused('too_many_sessions',
                    f'at most {limits.sessions} on a connection')
    house = self._server.houses.get(m['mode'])
    if house is None:
      raise Refused('no_such_mode', f'mode={m["mode"]!r} is not served, only '
                    f'{", ".join(self._server.houses)}')
    session = house.start(name=name, **{
        k: m[k] for k in ('id', 'seed', 'question', 'chunks', 'pace')})
    if session is None:
      self._tell('busy', name, sessions=self._server.rows)
      return
    self._sessions[name], self._said[session] = session, self._heard

  def _refuse(self, e, message, session):
    self._errors += e.code == 'bad_message'
    if session is not None and e.code != 'session_exists':
      session.refuse(e)
    else:
      name = message['session'] if message else ''
      self._tell('error', name, code=e.code, message=str(e), **e.fields)
    if self._errors >= self._server.limits.errors:
      self._leave('too_many_errors')

  def _tell(self, event, name, **fields):
    heapq.heappush(self._due, (time.monotonic(), next(self._number), None, {
        'event': event, 'session': name, 't': self._since(), **fields}))

  # ------------------------------------------------------------------ sending
  async def _send_all(self):
    while not self._closing:
      self.wake.clear()
      self._collect()
      while (self._due and self._due[0][0] <= time.monotonic()
             and not self._closing):
        await self._send_next()
        self._collect()
      wait = self._due[0][0] - time.monotonic() if self._due else None
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait):
          await self.wake.wait()

  def _collect(self):
    for session in self._sessions.values():
      for due, _, event in session.take():
        heapq.heappush(self._due, (due, next(self._number), session, event))

  async def _send_next(self):
    _, _, session, event = heapq.heappop(self._due)
    if (session is not None and session.cancelled
        and event['event'] != 'closed'):
      return  # of before it was cancelled
    try:
      async with asyncio.timeout(self._server.limits.send):
        await self._send(event)
    except TimeoutError:
      self._leave('too_slow')
    except (WebSocketDisconnect, RuntimeError):
      self._closing = self._closing or 'gone'
    if (event['event'] in ('done', 'closed')
        and self._sessions.get(event['session']) is session is not None):
      del self._sessions[event['session']], self._said[session]
      # Of one that was cancelled more may wait for its time.
      self._due = [x for x in self._due if x[2] is not session]
      heapq.heapify(self._due)
      self._heard = time.monotonic()  # from now on it is without a session

  async def _send(self, event):
    await self._websocket.send_text(json.dumps(event))
