"""Live sessions: the rollout's tokens, however the text arrived."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.data.text import split_sentences
from adasr_jax.live.rows import BLOCK
from adasr_jax.live.session import CHARACTERS, House, Refused
from adasr_jax.live.text import Text
from adasr_jax.models import decoder
from tests.live import serving
from tests.small import make_config, make_source

MODES, ROWS = ('streaming', 'read_then_think'), 3


@functools.cache
def house_of(mode='streaming'):
  """One for all tests, so that its programs are compiled once."""
  return House(serving.embedded(mode), rows=ROWS, temperature=1.0)


@pytest.fixture(autouse=True)
def all_rows_are_free():
  yield
  assert all(house_of(mode).free == ROWS for mode in MODES)


def run(house, *sessions):
  for _ in range(2000):
    house.work()
    if all(s.over for s in sessions):
      return
  raise AssertionError('a session does not end')


# ------------------------------------------------------------------- prefill
@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
def test_a_source_read_in_pieces_is_the_source_read_at_once(
    platform, monkeypatch):
  config, source = make_config(attention='einsum'), make_source((4, 2, 3))
  params = decoder.init(config, jax.random.key(0))
  monkeypatch.setattr('adasr_jax.core.sharding.platform', lambda: platform)
  form = lambda kv: decoder.grown(decoder.for_decoding(kv), 20 + BLOCK)
  prefill = jax.jit(decoder.prefill, static_argnums=1)
  whole = form(prefill(params, config, source))
  layers = decoder.by_layer(params['layers'])
  kv = form(tuple(a[:, :, :, :0] for a in jax.tree.map(
      jnp.zeros_like, prefill(params, config, source))))
  read_on = jax.jit(lambda *a: decoder.read_on(a[0], a[1], config, *a[2:]))
  r = np.random.default_rng(0)
  for row in range(3):
    n, at = int(source.valid[row].sum()), 0
    while at < n:
      size = min(int(r.integers(1, 6)), n - at)
      block = np.zeros(BLOCK, np.int32)
      block[:size] = source.tokens[row, at:at + size]
      kv = read_on(params, layers, kv, row, at, block)
      at += size
  # Keys and values of real slots; what padding left behind is not read.
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(kv)):
    axis = -1 if a.shape[-1] == 20 + BLOCK else -2
    a, b = (np.moveaxis(np.asarray(x), axis, -1) for x in (a, b))
    a, b = (np.moveaxis(x, -4 if x.ndim == 4 else 1, 0) for x in (a, b))
    for row in range(3):
      n = int(source.valid[row].sum())
      np.testing.assert_allclose(a[row][..., :n], b[row][..., :n], atol=1e-5)


# ---------------------------------------------------------------- same tokens
@pytest.mark.parametrize('mode', MODES)
def test_tokens_are_those_of_the_rollout(mode):
  house, r = house_of(mode), np.random.default_rng(0)
  policy = house.policy
  done, open_, left = [], {}, list(range(8))
  while left or open_:
    # Sessions come and go while others are in the middle.
    if left and r.random() < 0.3 and house.free:
      i = left.pop()
      e = serving.problem(i)
      s = house.start(id=e.id, seed=i % 2, question=e.preamble)
      open_[s] = serving.pieces(''.join(e.chunks), r)
    for s, text in list(open_.items()):
      if text and r.random() < 0.3:
        s.append(text.pop(0))
      elif not text and not s.ended:
        s.end()
      elif s.over:
        done.append(s)
        del open_[s]
    house.work()
  assert len(done) == 8 and house.free == 3
  different = set()
  for s in done:
    want = serving.rolled(policy, s)
    assert serving.written(policy, s) == want
    different.add(tuple(want))
  assert len(different) == 8


@pytest.mark.parametrize('mode', MODES)
def test_with_a_chat_template(mode, tmp_path):
  # The tail closes the last chunk, which has been thought about before.
  policy = serving.of_folder(tmp_path, mode)
  assert policy.tokenizer.tail and len(policy.protocol.prefix) > 1
  house = House(policy, rows=2, temperature=1.0)
  again = 0
  for i, early in enumerate((True, False, True)):
    e = serving.problem(i)
    s = house.start(id=e.id, seed=5, question=e.preamble)
    for chunk in e.chunks:
      s.append(chunk)
      s.commit()
      for _ in range(12 * early):
        house.work()
    s.end()
    run(house, s)
    assert serving.written(policy, s) == serving.rolled(policy, s)
    told = [e for _, _, e in s.take()]
    again += sum(e.get('again', False) for e in told)
    assert told[-1]['tokens']['source'] == s.source
  assert again > 0 if mode == 'streaming' else not again


def test_no_text_at_all():
  for mode in MODES:
    house = house_of(mode)
    policy = house.policy
    s = house.start(question='how many apples does tom have in the end ?')
    s.end()
    run(house, s)
    assert serving.written(policy, s) == serving.rolled(policy, s)


# ---------------------------------------------------------------------- waits
def test_thinking_goes_on_while_the_next_chunk_arrives_and_then_waits():
  house = house_of()
  policy = house.policy
  s = house.start(id=3, question='how many apples does tom have in the end ?')
  for _ in range(3):
    house.work()
  assert not s.tokens, 'thinks before there is a chunk'
  s.append('tom has 3 apples . tom ')
  for _ in range(20):
    house.work()
  assert {t.phase for t in s.tokens} == {1}
  assert not house.work(), 'a row that waits costs nothing'
  s.append('buys 4 apples .')
  assert not house.work(), 'nothing is committed yet'
  s.commit()
  assert house.work()
  s.end()
  run(house, s)
  assert s.chunks == ['tom has 3 apples .', ' tom buys 4 apples .']
  assert serving.written(policy, s) == serving.rolled(policy, s)


# --------------------------------------------------------------------- events
def told(session):
  return [e for _, _, e in sorted(session.take(), key=lambda e: e[:2])]


def test_events_tell_what_was_written():
  house = house_of()
  for i in range(6):
    e = serving.problem(i)
    s = house.start(name='a', id=e.id, question=e.preamble)
    s.append(''.join(e.chunks))
    s.end()
    run(house, s)
    events = told(s)
    names = [x['event'] for x in events]
    assert names[0] == 'session.created' and names[-1] == 'done'
    assert all(x['session'] == 'a' for x in events)
    times = [x['t'] for x in events]
    assert times == sorted(times)
    tokens = events[-1]['tokens']
    assert sum(tokens.values()) == s.source + len(s.tokens)
    for x in events:
      if x['event'] == 'thought.end':
        words = [y['text'] for y in events if y['event'] == 'thought.token'
                 and y['chunk'] == x['chunk']]
        assert ''.join(words).strip() == x['text']
    answer = next(x for x in events if x['event'] == 'answer')
    assert ''.join(x['text'] for x in events if x['event'] == 'answer.token'
                   ).strip() == answer['text']
    assert [x['text'] for x in events if x['event'] == 'chunk.committed'
            ] == list(e.chunks)


def test_pace_spaces_tokens_and_lets_text_through():
  house, now = house_of(), [100.0]
  s = house.start(id=1, question='', pace=10.0, clock=lambda: now[0])
  s.append('tom has 3 apples .')
  s.commit()
  s.end()
  run(house, s)
  events = told(s)
  tokens = [x['t'] for x in events if x['event'].endswith('.token')]
  assert min(np.diff(tokens)) >= 0.1 - 1e-3
  assert [x['t'] for x in events if x['event'] == 'chunk.committed'] == [0]
  # As on the virtual clock, with tau = 0.1.
  assert events[-1]['wait']['end'] == pytest.approx(
      0.1 * len(s.tokens), abs=1e-3)
  house = house_of('read_then_think')
  s = house.start(id=1, pace=10.0, clock=lambda: now[0])
  s.append('tom has 3 apples .')
  now[0] += 5
  s.end()
  run(house, s)
  assert told(s)[-1]['wait']['end'] == pytest.approx(
      5 + 0.1 * len(s.tokens), abs=1e-3)


def test_cancel_frees_the_row_for_another():
  house = house_of()
  others = [house.start() for _ in range(ROWS - 1)]
  s = house.start()
  assert house.start() is None, 'a full house'
  s.append('tom has 3 apples .')
  s.commit()
  house.work()
  s.cancel()
  run(house, s)
  assert [e['event'] for e in told(s)] == ['closed']
  assert house.free == 1
  after = house.start(id=4, seed=1)
  after.append('amy has 3 hats .')
  after.end()
  run(house, after)
  policy = house.policy
  assert serving.written(policy, after) == serving.rolled(policy, after)
  for other in others:
    other.cancel('idle')
  run(house, *others)
  assert told(others[0])[-1]['reason'] == 'idle'


def test_what_is_over_is_closed_once():
  house = house_of()
  s = house.start()
  s.append('tom has 3 apples .')
  s.end()
  run(house, s)
  s.cancel()  # not all has been taken
  s.cancel('idle')
  assert [e['reason'] for e in told(s)] == ['cancelled']
  with pytest.raises(Refused, match='after the end'):
    s.append('tom')
  assert told(s) == [] and house.free == ROWS


# ------------------------------------------------------------------ bad input
def test_what_cannot_be_read_is_left_out_and_named():
  house = house_of()
  policy = house.policy
  s = house.start(id=9)
  s.take()
  s.append('tom has 3 zebras . tom has 3 lions . tom has 3 apples . the ')
  # Each in its place.
  assert [(e['event'], e['text']) for _, _, e in s.take()] == [
      ('error', 'tom has 3 zebras .'), ('error', ' tom has 3 lions .'),
      ('chunk.committed', ' tom has 3 apples .')]
  assert s.refused == 2
  refused = lambda: [e for _, _, e in s.take() if e['event'] == 'error']
  s.append(' <skip> </think> .')
  s.commit()
  e, = refused()
  assert e['code'] == 'unknown_words' and '<skip>' in e['message']
  with pytest.raises(Refused, match='characters') as e:
    s.append('tom ' * CHARACTERS)
  assert e.value.code == 'too_long'
  for _ in range(policy.max_chunks - 1):
    s.append(' tom buys 4 .')
    s.commit()
  assert not refused()
  s.append(' tom buys 4 apples .')
  s.commit()
  e, = refused()
  assert e['code'] == 'too_many_chunks' and 'at most 9' in e['message']
  s.end()
  with pytest.raises(Refused, match='after the end'):
    s.append('tom')
  run(house, s)
  assert len(s.chunks) == 9
  assert serving.written(policy, s) == serving.rolled(policy, s)


def test_a_source_that_is_too_long():
  house = house_of()
  with pytest.raises(Refused, match='at most 72'):
    house.start(question='tom ' * 72)
  s = house.start()
  s.append('tom ' * 80)
  s.commit()
  assert [e['code'] for _, _, e in s.take() if e['event'] == 'error'] == [
      'too_long'] and not s.chunks
  s.cancel()
  run(house, s)


# ----------------------------------------------------------------------- text
@pytest.mark.parametrize('text', [
    'Ms. Lee has 3.5 lbs. of figs, i.e. many. She eats 2! Dr. '
    'Who asks: "How many?" 1. Bread 2. Milk costs $3.20. So? ',
    '(He left. She stayed.) Then rain. It stops. ',
    'He said \u201cWe go. We stay.\u201d Then rain. It stops. ',
    'He said "We go. We stay." Then [see p. 3. It rains.] rain. ',
    'A 5" pipe. It is long. And wet. ',
    'A 5" pipe is 3 m long. It costs $4. ' + 'He waits. ' * 60])
def test_sentences_do_not_depend_on_the_cuts(text):
  r = np.random.default_rng(0)
  want = split_sentences(text.rstrip())
  for _ in range(50):
    t, out = Text(), []
    for piece in serving.pieces(text, r):
      out += t.append(piece)
    assert tuple(out + t.commit()) == want


def test_long_quotations_do_not_depend_on_the_cuts_either():
  text = ('He said "we go. We stay. ' + 'It is far. ' * 60 + '" Then it rains. '
          + 'It stops. ' * 40)
  want = None
  for size in (1, 7, 50, 5000):
    t, out = Text(), []
    for at in range(0, len(text), size):
      out += t.append(text[at:at + size])
    out += t.commit()
    assert ''.join(out) == text.rstrip() and len(out) > 80
    want = want or out
    assert out == want, size


def test_a_quotation_that_never_ends_does_not_keep_all():
  t = Text()
  out = t.append('He said "we go. ' + 'Then it rains. ' * 40)
  assert out[0] == 'He said "we go.' and len(out) > 10


def test_commits_and_white_space():
  t = Text('commits')
  assert not t.append('One. Two. ') and t.commit() == ['One. Two.']
  assert not t.commit()
  assert not t.append('\n three') and t.commit() == [' \n three']
  t.append('never ')
  assert t.clear() == 'never ' and not t.commit()


def test_the_other_form_of_the_cache_has_the_same_program(monkeypatch):
  # On accelerators layers stay stacked: the programs trace there too.
  monkeypatch.setattr('adasr_jax.core.sharding.platform', lambda: 'gpu')
  policy = serving.embedded()
  house = House(policy, rows=4, temperature=1.0)  # an engine of its own
  assert isinstance(house._rows._seats.context, tuple)
  s = house.start(id=11, seed=2, question='how many hats does amy have ?')
  s.append('amy has 3 hats . amy buys 2 hats . ')
  s.end()
  run(house, s)
  assert serving.written(policy, s) == serving.rolled(policy, s)
