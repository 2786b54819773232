"""The server on loopback: what it says, and what it does not put up with."""

import asyncio
import contextlib
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from adasr_jax.live import bench
from adasr_jax.live import pipe
from adasr_jax.live.server import Limits, Server
from adasr_jax.live.session import House
from tests.live import serving

ROWS = 3
QUESTION = 'how many apples does tom have in the end ?'


@contextlib.contextmanager
def serve(limits=None):
  policies = [serving.make_policy(
      serving.embedded().tokenizer, mode, problem=serving.problem,
      problems=1000)
      for mode in ('streaming', 'read_then_think')]
  server = Server(policies, ROWS, 1.0, limits)
  with serving.running(server) as address:
    yield server, address


@pytest.fixture(scope='module')
def live():
  with serve() as (server, address):
    server.warm()
    yield server, address


class Client:

  def __init__(self, address, **kwargs):
    self.ws = connect(f'{address.replace("http", "ws")}/ws', **kwargs)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.ws.close()

  def say(self, type, **fields):
    self.ws.send(json.dumps({'type': type, **fields}))

  def hear(self, timeout=20):
    return json.loads(self.ws.recv(timeout))

  def until(self, *names):
    out = [self.hear()]
    while out[-1]['event'] not in names:
      out.append(self.hear())
    return out

  def read(self, text, **fields):
    """A whole session."""
    self.say('session.start', **fields)
    session = {k: v for k, v in fields.items() if k == 'session'}
    self.say('input_text.append', text=text, **session)
    self.say('session.end', **session)
    return self.until('done', 'closed', 'busy')


def get(address, path):
  with urllib.request.urlopen(address + path, timeout=20) as reply:
    return json.loads(reply.read())


def rows_are_free(server):
  end = time.time() + 10
  while time.time() < end:
    if all(h.free == ROWS for h in server.houses.values()):
      return True
    time.sleep(0.01)
  return False


# ----------------------------------------------------------------- what works
def test_a_session_of_each_mode_on_one_connection(live):
  server, address = live
  problem = get(address, '/api/problem?seed=3')
  text = ''.join(s['text'] for s in problem['sentences'])
  modes = ('streaming', 'read_then_think')
  with Client(address) as c:
    for mode in modes:
      c.say('session.start', session=mode, mode=mode, id=problem['id'],
            question=problem['question'])
      c.say('input_text.append', session=mode, text=text)
      c.say('session.end', session=mode)
    events = c.until('done') + c.until('done')
  for mode in modes:
    own = [e for e in events if e['session'] == mode]
    names = [e['event'] for e in own]
    assert names[0] == 'session.created' and names[-2:] == ['answer', 'done']
    assert own[0]['mode'] == mode and own[0]['policy'] == 'small'
    assert [e['text'] for e in own if e['event'] == 'chunk.committed'] == [
        s['text'] for s in problem['sentences']]
    assert any(n.startswith('thought') for n in names) == (mode == modes[0])
    # The same as a session without a server.
    session = server.houses[mode].start(id=problem['id'],
                                        question=problem['question'])
    session.append(text)
    session.end()
    while not session.over:
      get(address, '/api/info')
      server.loop.call_soon_threadsafe(server.stir)
    assert own[-1]['tokens'] == session.take()[-1][2]['tokens']


def test_a_full_house_is_busy(live):
  server, address = live
  with Client(address) as c, Client(address) as other:
    for i in range(ROWS):
      c.say('session.start', session=str(i))
      assert c.hear()['event'] == 'session.created'
    other.say('session.start')
    assert other.hear() == {'event': 'busy', 'session': '', 'sessions': ROWS,
                            't': pytest.approx(0, abs=9)}
    c.say('session.cancel', session='0')
    assert c.hear()['reason'] == 'cancelled'
    assert other.read('tom has 3 apples .')[-1]['event'] == 'done'
  assert rows_are_free(server)


def test_info_and_routes(live):
  _, address = live
  info = get(address, '/api/info')
  assert [p['mode'] for p in info['policies']] == [
      'streaming', 'read_then_think']
  assert info['sessions'] == ROWS and info['problems'] == 1000
  assert not info['replay']
  for path, code in (('/api/problem?seed=-1', 400), ('/api/problem', 400),
                     ('/api/problem?seed=1000', 400), ('/api/replay', 404),
                     ('/static/../app.py', 404), ('/static/%2e%2e/app.py', 404),
                     ('/nothing', 404)):
    with pytest.raises(urllib.error.HTTPError) as e:
      get(address, path)
    assert e.value.code == code, path


def test_answers_are_judged_as_rewards_judge_them(live):
  _, address = live
  reference = get(address, '/api/problem?seed=3')['answer']
  ask = lambda text: get(address, '/api/judge?seed=3&answer='
                         + urllib.parse.quote(text))['right']
  for text in (reference, f'\\boxed{{{reference}}}', f'{reference}.0'):
    assert ask(text), text
  assert not ask('') and not ask(f'1{reference}') and not ask('x' * 5000)


@pytest.mark.parametrize('host, named, refused', [
    ('127.0.0.1', 'localhost:8400', False), ('127.0.0.2', 'evil.example', True),
    ('LOCALHOST', 'evil.example:8400', True), ('::1', '[::1]:8400', False),
    ('0.0.0.0', 'box.example:8400', False)])
def test_a_loopback_address_is_not_reached_by_another_name(host, named, refused
                                                           ):
  from starlette.requests import HTTPConnection
  from adasr_jax.live import app
  said = app.refusal(HTTPConnection({
      'type': 'http', 'headers': [(b'host', named.encode())]}), host)
  assert (said is not None) == refused


def test_replay(tmp_path):
  from starlette.datastructures import QueryParams
  from adasr_jax.live import app
  path = tmp_path / 'samples.jsonl'
  path.write_text('{"step": 1, "id": 3}\n{"step": 10, "id": 4}\n{"st')
  policy = serving.make_policy(serving.embedded().tokenizer, samples=path)
  ask = lambda q: app._replay([policy], dict(QueryParams(q)))
  assert ask('') == {'steps': [1, 10]}
  assert ask('step=10') == {'step': 10, 'samples': [{'step': 10, 'id': 4}]}
  with pytest.raises(ValueError, match='step=2 has no samples'):
    ask('step=2')


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize('data, says', [
    ('{', 'not JSON'), ('[]', 'not a JSON object'), (b'{}', 'not text'),
    ('[' * 10000, 'not JSON'), ('9' * 9000, 'not JSON'),
    ('{"type": "x"}', "type='x' is not one of"),
    ('{"type": ["x"]}', 'is not one of'),
    ('{"type": "session.start", "idd": 1}', "no field 'idd'"),
    ('{"type": "session.start", "id": -1}', 'id=-1 is not an integer'),
    ('{"type": "session.start", "id": true}', 'id=True is not an integer'),
    ('{"type": "session.start", "mode": "fast"}', "mode='fast' is not one of"),
    ('{"type": "session.start", "pace": NaN}', 'pace=nan is neither 0 nor'),
    ('{"type": "session.start", "pace": 1%s}' % ('0' * 400),
     'is neither 0 nor a number in [0.1, 1000]'),
    ('{"type": "session.start", "pace": 1e-9}', 'pace=1e-09 is neither 0 nor'),
    ('{"type": "session.start", "session": "%s"}' % ('x' * 65), '65 char'),
    ('{"type": "input_text.append"}', 'needs text'),
    ('{"type": "input_text.append", "text": "\\ud800"}', 'not Unicode')])
def test_bad_messages(live, data, says):
  with Client(live[1]) as c:
    c.ws.send(data)
    e = c.hear()
    assert (e['event'], e['code']) == ('error', 'bad_message')
    assert says in e['message']
    assert c.read('tom has 3 apples .')[-1]['event'] == 'done', 'it goes on'


def test_a_name_is_free_after_its_session_and_keeps_no_row(live):
  server, address = live
  with Client(address) as c:
    for _ in range(3 * ROWS):
      # Slow to be told, so that it is over when it is cancelled twice.
      c.say('session.start', pace=5)
      c.say('input_text.append', text='tom has 3 apples .')
      c.say('session.end')
      c.until('thought.start', 'thought.skipped')
      c.say('session.cancel')
      c.say('session.cancel')
      assert c.until('closed')[-1]['reason'] == 'cancelled'
  assert rows_are_free(server)


def test_errors_of_sessions_are_told_and_leave_others_alone(live):
  with Client(live[1]) as good, Client(live[1]) as bad:
    good.say('session.start', question=QUESTION)
    bad.say('input_text.append', text='tom')
    assert bad.hear()['code'] == 'no_session'
    bad.say('session.start', question='where are my zebras ?')
    assert bad.hear()['code'] == 'unknown_words'
    bad.say('session.start', question=QUESTION)
    bad.say('session.start', question=QUESTION)
    bad.say('input_text.append', text='tom has 3 zebras . <skip> ')
    bad.say('input_text.append', text='a' * 5000)
    bad.say('session.end')
    events = bad.until('done')
    assert [e['code'] for e in events if e['event'] == 'error'] == [
        'session_exists', 'unknown_words', 'too_long', 'unknown_words']
    good.say('input_text.append', text='tom has 3 apples .')
    good.say('session.end')
    assert good.until('done')[-1]['tokens']['source'] > 0


def test_a_message_of_a_megabyte_closes_only_its_connection(live):
  server, address = live
  with Client(address) as good, Client(address) as bad:
    good.say('session.start', question=QUESTION)
    bad.say('session.start')
    bad.hear()
    bad.ws.send('x' * 2**20)
    with pytest.raises(ConnectionClosed) as e:
      bad.hear()
    assert e.value.rcvd.code == 1009
    good.say('input_text.append', text='tom has 3 apples .')
    good.say('session.end')
    good.until('done')
  assert rows_are_free(server)


def test_too_many_errors(live):
  with Client(live[1]) as c:
    for _ in range(30):
      c.ws.send('{')
    assert c.until('closed')[-1]['reason'] == 'too_many_errors'
    with pytest.raises(ConnectionClosed) as e:
      c.hear()
    assert (e.value.rcvd.code, e.value.rcvd.reason) == (1008, 'too_many_errors')


def test_a_client_that_vanishes_frees_its_rows(live):
  server, address = live
  with Client(address) as good:
    good.say('session.start', question=QUESTION)
    for _ in range(3):
      c = Client(address)
      c.say('session.start', session='a')
      c.say('session.start', session='b')
      c.say('input_text.append', session='a', text='tom has 3 apples . tom ')
      c.hear()
      c.ws.socket.shutdown(socket.SHUT_RDWR)  # no closing handshake
      deadline = time.time() + 10
      while server.houses['streaming'].free < ROWS - 1:
        assert time.time() < deadline
        time.sleep(0.01)
    good.say('input_text.append', text='tom has 3 apples .')
    good.say('session.end')
    good.until('done')
  assert rows_are_free(server)


@pytest.mark.parametrize('headers', [
    {'Origin': 'http://evil.example'}, {'Origin': 'null'},
    {'Origin': 'http://evil.example:PORT', 'Host': 'evil.example:PORT'}])
def test_foreign_origins_are_refused(live, headers):
  address = live[1]
  port = address.rpartition(':')[2]
  headers = {k: v.replace('PORT', port) for k, v in headers.items()}
  host = headers.get('Host', f'127.0.0.1:{port}')
  request = '\r\n'.join([
      'GET /ws HTTP/1.1', f'Host: {host}', f'Origin: {headers["Origin"]}',
      'Upgrade: websocket', 'Connection: Upgrade', 'Sec-WebSocket-Version: 13',
      'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==', '', ''])
  with socket.create_connection(('127.0.0.1', int(port))) as s:
    s.sendall(request.encode())
    assert b' 403 ' in s.recv(4096)


def test_our_own_origin_is_accepted(live):
  with Client(live[1], origin=live[1]) as c:
    c.say('session.start')
    assert c.hear()['event'] == 'session.created'
  with pytest.raises(InvalidStatus):
    Client(live[1], origin='http://evil.example')


# ------------------------------------------------------------------ time-outs
def test_a_hundred_connections_that_say_nothing():
  limits = Limits(connections=104, silent=1.0, idle=1.5)
  with serve(limits) as (server, address):
    server.warm()
    port = int(address.rpartition(':')[2])
    halves = [socket.create_connection(('127.0.0.1', port)) for _ in range(100)]
    silent = [Client(address) for _ in range(100)]
    with Client(address) as good:
      assert good.read('tom has 3 apples .')[-1]['event'] == 'done'
      for c in silent:
        assert c.hear()['reason'] == 'no_session'
        with pytest.raises(ConnectionClosed) as e:
          c.hear()
        assert e.value.rcvd.code == 1008
    for s in halves:
      s.settimeout(10)
      assert s.recv(1) == b''  # closed
      s.close()
    # A session that waits for text too long; and a server that stops.
    with Client(address) as idle, Client(address) as other:
      idle.say('session.start')
      other.say('session.start', session='x')
      assert other.hear()['event'] == 'session.created'
      assert idle.until('closed')[-1]['reason'] == 'idle'
      assert rows_are_free(server)
      # It has been silent for longer than a connection may be without one.
      assert idle.read('tom has 3 apples .')[-1]['event'] == 'done'


def test_too_many_connections_and_a_server_that_stops():
  with serve(Limits(connections=1)) as (_, address):
    first = Client(address)
    with Client(address) as second:
      assert second.hear()['reason'] == 'too_many_connections'
      with pytest.raises(ConnectionClosed) as e:
        second.hear()
      assert e.value.rcvd.code == 1013
  assert first.hear()['reason'] == 'shutdown'
  with pytest.raises(ConnectionClosed) as e:
    first.hear()
  assert e.value.rcvd.code == 1001
  first.ws.close()


def test_a_client_that_asks_and_does_not_listen():
  frame = b'\x81\x99\0\0\0\0{"type":"session.cancel"}'
  with serve(Limits(send=0.5, errors=10**9)) as (server, address):
    port = int(address.rpartition(':')[2])
    with socket.create_connection(('127.0.0.1', port)) as s:
      s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      s.sendall(b'GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket'
                b'\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
                b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n')
      s.settimeout(20)
      with pytest.raises(OSError):  # it is closed, not fed for ever
        for _ in range(10**5):
          s.sendall(frame * 1000)
    deadline = time.time() + 10
    while server.connections:
      assert time.time() < deadline
      time.sleep(0.01)


# ----------------------------------------------------- bench, soak and pipes
def test_memory_is_flat_over_many_sessions(live):
  server, address = live
  before = asyncio.run(bench.soak(address, os.getpid(), 60, parts=1))
  after = asyncio.run(bench.soak(address, os.getpid(), 200, parts=2))
  assert after[-1]['mb'] - before[0]['mb'] < 40
  assert rows_are_free(server) and len(server.connections) <= 16


def test_the_bench_measures_what_the_clock_predicts(live):
  _, address = live
  problems = [bench.problem(address, seed) for seed in range(3)]
  tau = 0.02
  for mode in ('streaming', 'read_then_think'):
    heard = asyncio.run(bench.cell(
        address, problems, mode=mode, wpm=3000, sessions=2, pace=1 / tau,
        seconds=0.1))
    clock = bench.virtual(heard, mode=mode, wpm=3000, sigma=0, tau=tau)
    row = bench.row_of(heard, clock, mode=mode, wpm=3000, pace=1 / tau,
                       sessions=2)
    assert len(heard) >= 2
    # Paced, the wall clock is the virtual one; the rest is this machine's.
    assert 0 < row['end_ratio'] < 3
    # On a busy machine words come late, and find thoughts done that the clock
    # has still to come; what follows the last word takes its time anywhere.
    assert all(h.wall[2] > tau * h.deep - 0.005 for h in heard)
    if mode == 'read_then_think':
      np.testing.assert_allclose(clock['end'], [tau * h.deep for h in heard])
    assert mode in bench.table([row])


def test_lines_from_a_pipe(live):
  # The server's own is worked on by the server's thread.
  house = House(live[0].houses['streaming'].policy, ROWS, 1.0)
  say = lambda text: (out := io.StringIO(), pipe.run(
      house, house.start(question=QUESTION, id=3), io.BytesIO(text), out))
  out, status = say(b'tom has 3 apples .\n\ntom buys 4 apples . amy has '
                    b'2\r\n')
  events = [json.loads(x) for x in out.getvalue().splitlines()]
  assert all({'event', 't'} <= e.keys() for e in events)
  assert [e['text'] for e in events if e['event'] == 'chunk.committed'] == [
      'tom has 3 apples .', '  tom buys 4 apples .', ' amy has 2']
  assert [e['event'] for e in events[-2:]] == ['answer', 'done']
  assert status == (not events[-2]['text'])
  out, status = say(b'tom has 3 zebras .\n' + b'\xff' * 10000)
  codes = [json.loads(x).get('code') for x in out.getvalue().splitlines()]
  assert status == 1 and {'unknown_words', 'too_long'} <= set(codes)
  # A line that is too long is left out, those around it are not.
  out, status = say(b'tom has 3 apples .\n' + b'x' * 9000
                    + b'\namy has 2 hats .\ntom buys 4 apples .\n')
  events = [json.loads(x) for x in out.getvalue().splitlines()]
  assert status == 1
  assert [e['text'].strip() for e in events
          if e['event'] == 'chunk.committed'] == [
              'tom has 3 apples .', 'amy has 2 hats .', 'tom buys 4 apples .']
  assert [e.get('code') for e in events if e['event'] == 'error'] == [
      'too_long']
  # A line of more than may wait; its sentences leave one by one.
  text = ('tom has 3 apples .' + ' ' * 1500) * 6 + 'amy has 2 hats .'
  out, _ = say(text.encode())
  events = [json.loads(x) for x in out.getvalue().splitlines()]
  assert 'error' not in {e['event'] for e in events}
  assert ''.join(e['text'] for e in events
                 if e['event'] == 'chunk.committed') == text


def test_the_command_in_the_readme():
  done = subprocess.run(
      [sys.executable, '-m', 'adasr_jax.live', '--stdin', '--question',
       QUESTION], input='tom has 3 apples .\ntom buys 4 apples .\n',
      capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  events = [json.loads(x) for x in done.stdout.splitlines()]
  assert all({'event', 't'} <= e.keys() for e in events)
  assert [e['event'] for e in events[-2:]] == ['answer', 'done']


def test_the_client_in_the_docs(live, capsys):
  text = (pathlib.Path(__file__).parents[2] / 'docs/live.md').read_text()
  code = text.partition('```python\n')[2].partition('```')[0]
  assert code.count('\n') <= 30
  exec(code.replace('ws://127.0.0.1:8400', live[1].replace('http', 'ws'))
       .replace('=150', '=6000'), {})
  said = capsys.readouterr().out
  assert "'event': 'done'" in said


@pytest.mark.parametrize('flags, says', [
    (['--of=nowhere'], "there is no folder 'nowhere'"),
    (['--of=tests'], 'config.json'), (['--mode=both'], 'mode'),
    (['--nostdin', '--host=192.0.2.1'], '--host=192.0.2.1 --port=8400: ')])
def test_bad_flags_are_told_in_one_line(flags, says):
  done = subprocess.run(
      [sys.executable, '-m', 'adasr_jax.live', '--stdin', *flags], input='',
      capture_output=True, text=True, timeout=300)
  assert done.returncode == 1 and says in done.stderr
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


def test_a_round_that_fails_ends_its_sessions_and_nothing_else(live):
  server, address = live
  house = server.houses['streaming']
  with Client(address) as c:
    c.say('session.start')
    c.hear()
    house._rows.read = lambda *args: 1 / 0
    c.say('input_text.append', text='tom has 3 apples . tom ')
    assert c.until('closed')[-1]['reason'] == 'failed'
    assert c.read('tom has 3 apples .')[-1]['event'] == 'done'


def test_an_engine_that_cannot_begin_anew_stops_the_server():
  with serve() as (server, address):
    server.warm()
    house = server.houses['streaming']
    with Client(address) as c:
      c.say('session.start')
      c.hear()
      house._rows.read = house._fresh = lambda *args: 1 / 0
      c.say('input_text.append', text='tom has 3 apples . tom ')
      assert c.until('closed')[-1]['reason'] in ('failed', 'shutdown')
      with pytest.raises(ConnectionClosed) as e:
        while True:
          c.hear()
      assert e.value.rcvd.code == 1001
    assert server.broken
