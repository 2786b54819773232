"""The HTTP side: the page, problems, a run's samples, who may connect."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import pathlib
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import (
    FileResponse, JSONResponse, PlainTextResponse, Response)
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import (
    WebSocketsSansIOProtocol)

from adasr_jax.live import messages
from adasr_jax.live.policy import Policy
from adasr_jax.live.server import Server

STATIC = pathlib.Path(__file__).parent / 'static'
MOST_ANSWER = 4096  # characters that are judged
MOST_SAMPLES = 256  # of a step, in one reply


def refusal(connection: HTTPConnection, host: str) -> str | None:
  """Why a request is refused; None if it is not.

  A page of another origin may not use a server on this machine: not directly,
  nor under a name of its own that resolves to this address.

  Args:
    connection: The request.
    host: On which the server listens.
  """
  named = connection.headers.get('host', '')
  if _loopback(host):
    try:
      name = urlsplit(f'//{named}').hostname
    except ValueError:
      name = None
    if not _loopback(name or ''):
      return f'Host {named!r:.80} is not of this machine'
  origin = connection.headers.get('origin')
  if origin is not None and origin not in (f'http://{named}',
                                           f'https://{named}'):
    return f'Origin {origin!r:.80} is not that of Host {named!r:.80}'
  return None


def _loopback(name):
  """Whether a host's name or address is always this machine itself."""
  try:
    return ipaddress.ip_address(name).is_loopback
  except ValueError:
    return name.lower() == 'localhost'


def make_app(server: Server, host: str) -> Starlette:
  """The routes of docs/live.md."""
  policies = [house.policy for house in server.houses.values()]

  async def page(request):
    path = STATIC / 'index.html'
    return FileResponse(path) if path.is_file() else PlainTextResponse(
        'The WebSocket is at /ws; docs/live.md describes it.')

  async def info(request):
    return JSONResponse({
        'policies': [p.info() for p in policies], 'sessions': server.rows,
        'free': {mode: house.free for mode, house in server.houses.items()},
        'problems': max(p.problems for p in policies),
        'replay': any(p.samples for p in policies)})

  async def problem(request):
    return await _json(_problem, policies, request)

  async def judge(request):
    return await _json(_judge, policies, request)

  async def replay(request):
    return await _json(_replay, policies, request)

  async def live(websocket: WebSocket):
    if why := refusal(websocket, host):
      await websocket.send_denial_response(PlainTextResponse(why, 403))
      return
    await server.serve(websocket)

  guarded = lambda route: _guarded(route, host)
  return Starlette(
      routes=[Route('/', guarded(page)), Route('/api/info', guarded(info)),
              Route('/api/problem', guarded(problem)),
              Route('/api/judge', guarded(judge)),
              Route('/api/replay', guarded(replay)),
              WebSocketRoute('/ws', live),
              Mount('/static', StaticFiles(directory=STATIC, check_dir=False))],
      lifespan=lambda app: server.running())


def _guarded(route, host):
  async def wrapped(request: Request) -> Response:
    if why := refusal(request, host):
      return JSONResponse({'error': why}, 403)
    return await route(request)
  return wrapped


class _NotFound(ValueError):
  pass


async def _json(f, policies, request):
  try:
    return JSONResponse(await run_in_threadpool(
        f, policies, dict(request.query_params)))
  except ValueError as e:
    return JSONResponse({'error': str(e)},
                        404 if isinstance(e, _NotFound) else 400)


def _number(query, name, most):
  text = query.get(name, '')
  if not (text.isascii() and text.isdigit() and len(text) < 12
          and int(text) < most):
    raise ValueError(f'{name}={text!r:.40} is not an integer in [0, {most})')
  return int(text)


def _asked(policies, query):
  """Whose problems they are, the seed, and its problem."""
  policy = next((p for p in policies if p.problem), None)
  if policy is None:
    raise _NotFound('no problems are at hand')
  seed = _number(query, 'seed', policy.problems)
  return policy, seed, policy.problem(seed)


def _judge(policies: list[Policy], query: dict[str, str]) -> dict[str, Any]:
  policy, _, e = _asked(policies, query)
  return {'right': policy.right(query.get('answer', '')[:MOST_ANSWER], e)}


def _problem(policies: list[Policy], query: dict[str, str]) -> dict[str, Any]:
  policy, seed, e = _asked(policies, query)
  question = e.preamble.removeprefix(
      f'{policy.instruction}\n' if policy.instruction else '').strip()
  none = [None] * len(e.chunks)
  relevant, kinds = e.relevant or none, e.kinds or none
  return {'seed': seed, 'id': e.id, 'question': question, 'sentences': [
      {'text': text, 'relevant': r, 'kind': k}
      for text, r, k in zip(e.chunks, relevant, kinds)], 'answer': e.answer}


def _replay(policies: list[Policy], query: dict[str, str]) -> dict[str, Any]:
  path = next((p.samples for p in policies if p.samples), None)
  if path is None:
    raise _NotFound('no run with samples is served')
  wanted = _number(query, 'step', 2**31) if 'step' in query else None
  steps, samples = set(), []
  try:
    lines = open(path, encoding='utf-8', errors='replace')
  except OSError as e:
    raise _NotFound(f'the samples are not there any more: {e.strerror}') from e
  with lines:
    for line in lines:
      try:
        sample = json.loads(line)
        step = int(sample['step'])
      except (ValueError, TypeError, KeyError):  # a run is writing it
        continue
      steps.add(step)
      if step == wanted and len(samples) < MOST_SAMPLES:
        samples.append(sample)
  if wanted is None:
    return {'steps': sorted(steps)}
  if wanted not in steps:
    raise _NotFound(f'step={wanted} has no samples')
  return {'step': wanted, 'samples': samples}


# -------------------------------------------------------------------- uvicorn
def _hurried(seconds: float) -> type[H11Protocol]:
  """HTTP in which a connection must ask for something soon."""

  class Hurried(H11Protocol):

    def connection_made(self, transport):
      super().connection_made(transport)
      self.loop.call_later(seconds, self._give_up)

    def _give_up(self):
      if (self.transport.is_closing()
          or self.transport.get_protocol() is not self):  # a WebSocket
        return
      if self.cycle is None or self.cycle.response_complete:
        self.transport.close()
      else:  # it is being answered
        self.loop.call_later(seconds, self._give_up)

  return Hurried


def _final(seconds: float) -> type[WebSocketsSansIOProtocol]:
  """WebSockets that are gone soon after they were closed.

  A socket whose other end reads nothing would stay open until it does.
  """

  class Final(WebSocketsSansIOProtocol):

    async def run_asgi(self):
      await super().run_asgi()
      self.loop.call_later(seconds, self.transport.abort)

  return Final


class Uvicorn(uvicorn.Server):
  """uvicorn for one Server, to which it says when it stops."""

  def __init__(self, server: Server, host: str, port: int):
    super().__init__(uvicorn.Config(
        make_app(server, host), host=host, port=port, log_level='warning',
        lifespan='on', http=_hurried(server.limits.silent),
        ws=_final(server.limits.send), ws_max_size=messages.MOST_BYTES,
        ws_ping_interval=20.0, ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        limit_concurrency=2 * server.limits.connections,
        timeout_graceful_shutdown=5))
    self._server = server
    self.opened = asyncio.Event()

  async def startup(self, sockets=None):
    await super().startup(sockets)
    self.opened.set()

  async def on_tick(self, counter):
    return await super().on_tick(counter) or self._server.broken

  async def shutdown(self, sockets=None):
    await self._server.close()
    await super().shutdown(sockets)

  @property
  def address(self) -> str:
    """Of the page, once it is open."""
    host, port = self.servers[0].sockets[0].getsockname()[:2]
    return f'http://{f"[{host}]" if ":" in host else host}:{port}'


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens; who connects waits until serve().

  Raises:
    OSError: The port is taken, or the host is not of this machine.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    out = socket.create_server((host, port), family=family)
    # Connections inherit it; asyncio sets it only where the protocol is named.
    # Without it some events wait 40 ms for an acknowledgement.
    out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return out
  except OSError as e:
    raise OSError(f'--host={host} --port={port}: '
                  + str(e.strerror or e).partition(' (')[0]) from e


def serve(server: Server, host: str, listening: socket.socket) -> None:
  """Until it is interrupted.

  Args:
    server: Warm.
    host: Of listen().
    listening: Of listen().

  Raises:
    RuntimeError: The engine has failed, and could not begin anew.
  """
  with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(_serve(server, host, listening))
  if server.broken:
    raise RuntimeError('the engine has failed and could not begin anew; the '
                       'log has why')


async def _serve(server, host, listening):
  web = Uvicorn(server, host, listening.getsockname()[1])
  running = asyncio.create_task(web.serve([listening]))
  opened = asyncio.create_task(web.opened.wait())
  await asyncio.wait((running, opened), return_when=asyncio.FIRST_COMPLETED)
  if opened.done():
    print(f'live at {web.address} (Ctrl-C stops it)', file=sys.stderr,
          flush=True)
  opened.cancel()
  await running
