"""The virtual clock against hand-worked cases and an event simulation."""

import numpy as np
import pytest

from adasr_jax.policy.transcript import transcribe
from adasr_jax.run import latency
from tests.threads_by_hand import PROTOCOL, ROLLOUT, TOKENIZER, target_of


def _clock(words, source, target, deep, answer, *, chunks=None, sigma=0.0,
           tau=0.5, words_per_minute=60.0, streamed=True):
  """One row; 60 words per minute, so a word takes one second."""
  out = latency.clock(
      np.array([words]), np.array([source]),
      np.array([len(words) - 1 if chunks is None else chunks]),
      np.array([target]), np.array([deep]), np.array([answer]),
      words_per_minute=words_per_minute, sigma=sigma, tau=tau,
      streamed=streamed)
  return {k: float(v[0]) for k, v in out.items()}


def test_thoughts_that_keep_up_cost_only_the_last():
  # a = 4, 8. Thought 1: 4 -> 4 + 2 = 6, done before chunk 2 arrives.
  # Thought 2: 8 -> 8.5. Deep: 8.5 -> 8.5 + 3 * 0.5. The answer is the third
  # token. With the first deep token at `start` (an off-by-one) it would be 0.5.
  got = _clock([9, 4, 4], [0, 0, 0], [0, 4, 1], deep=3, answer=2)
  assert got == dict(first_deep_token=1.0, first_answer_token=2.0, end=2.0,
                     lag=(2.0 + 0.5) / 2)


def test_backlog_is_carried_to_the_next_thoughts():
  # a = 1, 2, 3. f_1 = 1 + 3 = 4, f_2 = 4 + 2 = 6 (not 2 + 2), f_3 = 6 + 0.5.
  # Deep starts at 6.5, 3.5 after a_3; without the queue it would be 0.5.
  got = _clock([0, 1, 1, 1], [0] * 4, [0, 6, 4, 1], deep=2, answer=-1)
  assert got['first_deep_token'] == 4.0
  assert np.isnan(got['first_answer_token'])
  assert got['end'] == 4.5
  assert got['lag'] == pytest.approx((3 + 4 + 3.5) / 3)


def test_prefill_waits_for_prefill_but_not_for_thinking():
  # sigma = 0.5, a = 1, 2. p_0 = 2 (4 tokens), p_1 = max(1, 2) + 3 = 5,
  # p_2 = max(2, 5) + 1 = 6. f_1 = 5 + 0.5 = 5.5, f_2 = max(6, 5.5) + 1 = 7:
  # chunk 2 was prefilled while thought 1 was written (5 to 5.5); sequentially
  # it would be 7.5.
  got = _clock([3, 1, 1], [4, 6, 2], [0, 1, 2], deep=1, answer=0, sigma=0.5)
  assert got['first_deep_token'] == got['first_answer_token'] == 5.5
  assert got['end'] == 5.5
  assert got['lag'] == pytest.approx((4.5 + 5) / 2)


def test_read_then_think_starts_when_the_source_is_prefilled():
  # a = 2, 5; p_1 = 2 + 1, p_2 = max(5, 3) + 2 = 7: deep starts 2 s late.
  rows = [_clock([0, 2, 3], [0, 2, 4], target, deep=6, answer=4, sigma=0.5,
                 streamed=streamed)
          for target, streamed in (([0, 0, 0], True), ([0, 9, 9], False))]
  for got in rows:
    assert got['first_deep_token'] == 2.5
    assert got['first_answer_token'] == 2 + 5 * 0.5
    assert got['end'] == 5.0
    assert np.isnan(got['lag'])


def test_columns_after_the_last_chunk_do_not_count():
  short = _clock([1, 3], [2, 2], [0, 2], deep=2, answer=1, sigma=0.1)
  padded = _clock([1, 3, 0, 0], [2, 2, 0, 0], [0, 2, 0, 0], deep=2, answer=1,
                  sigma=0.1, chunks=1)
  garbage = _clock([1, 3, 7, 7], [2, 2, 9, 9], [5, 2, 8, 8], deep=2, answer=1,
                   sigma=0.1, chunks=1)
  assert short == padded == garbage


def test_row_without_stream_waits_for_its_preamble():
  got = _clock([50, 0], [4, 0], [0, 0], deep=2, answer=1, sigma=0.5, chunks=0)
  assert got['first_deep_token'] == 2.5 and got['end'] == 3.0


def test_row_that_ended_in_a_thought_has_no_deep_token():
  # Chunk 2 was never reached: f_2 = p_2 = a_2, and only chunk 1 has a lag.
  got = _clock([0, 2, 2], [0, 0, 0], [0, 3, 0], deep=0, answer=-1)
  assert np.isnan(got['first_deep_token'])
  assert np.isnan(got['end']) and got['lag'] == 1.5


def _simulate(words, source, chunks, target, deep, answer, *, word_s, sigma,
              tau):
  """Two workers in steps of a millisecond: one prefills, one writes."""
  arrival, t = [0], 0
  for k in range(1, chunks + 1):
    t += words[k] * word_s
    arrival.append(t)
  # Jobs in order: (chunk) for the reader, (chunk, tokens) for the writer.
  reading = [[k, source[k] * sigma] for k in range(chunks + 1)]
  writing = [[k, target[k]] for k in range(1, chunks + 1)]
  writing += [[chunks + 1, deep]]
  ready, outs, ended = set(), [], {}
  busy, now = 0, 0
  while writing:
    while reading and reading[0][1] == 0 and arrival[reading[0][0]] <= now:
      ready.add(reading.pop(0)[0])
    while writing and not busy:  # a free writer takes the next token
      k, left = writing[0]
      if min(k, chunks) not in ready:
        break
      if left == 0:
        ended[k] = now
        writing.pop(0)
      else:
        writing[0][1], busy = left - 1, tau
    now += 1
    if reading and arrival[reading[0][0]] < now:
      reading[0][1] = max(reading[0][1] - 1, 0)
    if busy:
      busy -= 1
      if not busy and writing[0][0] == chunks + 1:
        outs.append(now)
  lags = [ended[k] - arrival[k] for k in range(1, chunks + 1) if target[k]]
  since = lambda t: (t - arrival[-1]) / 1000
  return {'first_deep_token': since(outs[0]) if outs else np.nan,
          'first_answer_token': since(outs[answer]) if answer >= 0 else np.nan,
          'end': since(ended[chunks + 1]) if deep else np.nan,
          'lag': np.mean(lags) / 1000 if lags else np.nan}


def test_clock_equals_event_simulation():
  rng = np.random.default_rng(0)
  B, C = 60, 4
  words = rng.integers(0, 4, (B, C + 1))
  source = rng.integers(0, 6, (B, C + 1))
  chunks = rng.integers(0, C + 1, B)
  target = rng.integers(0, 6, (B, C + 1)) * (rng.random((B, 1)) < 0.8)
  deep = rng.integers(0, 5, B)
  answer = np.where(rng.random(B) < 0.7, deep - 1, -1)
  got = latency.clock(words, source, chunks, target, deep, answer,
                      words_per_minute=60 / 0.020, sigma=0.004, tau=0.007)
  for b in range(B):
    want = _simulate(words[b], source[b], chunks[b], target[b], deep[b],
                     answer[b], word_s=20, sigma=4, tau=7)
    for k, v in want.items():
      np.testing.assert_allclose(got[k][b], v, atol=1e-9, err_msg=f'{b} {k}')


@pytest.mark.parametrize('bad', [dict(words_per_minute=0.0), dict(tau=-1.0),
                                 dict(sigma=-1.0), dict(chunks=[1, 2])])
def test_refuses_impossible_values(bad):
  with pytest.raises(ValueError, match=next(iter(bad)).replace('chunks',
                                                               'num_chunks')):
    _clock([0, 1], [0, 1], [0, 1], 1, 0, **bad)


def test_a_root_waits_for_the_longest_child_of_each_call():
  streamed = (2, '1 <spawn> 2 <join> [ <return> 3 ] <EOT> <skip> <spawn> 4 '
              '<join> [ <none> ] </think> 3 <eos>',
              (1, '[ <spawn> 2 ] <return> 3 <eos>'),
              (3, '[ <spawn> 4 ] <eos>'))
  said = transcribe(target_of(ROLLOUT, streamed), np.array([0, 2]), TOKENIZER,
                    PROTOCOL)
  thought, deep = latency.waits(said, 2)
  # First call: 6 + 11 and 6 + 10; second: 6 + 11. Were they run one after the
  # other it would be 50.
  assert deep.tolist() == [17 + 17, 2 + 1]
  assert thought.tolist() == [[0, 0, 0], [0, 2 + 3, 0]]
  # Fed together at a tenth of tau: .6 + 11 each, and 7 + 2 joined tokens cost
  # nine tenths less.
  thought, deep = latency.waits(said, 2, fed=.1)
  np.testing.assert_allclose(deep, [11.6 + 11.6 - .9 * 9, .2 + 1 - .9])
  np.testing.assert_allclose(thought[1], [0, .2 + 3 - .9 * 2, 0])
  # The whole critical path of the first: 59 own tokens, 34 of waiting.
  got = _clock([3], [0], [0], deep=said[0].deep_tokens + 34,
               answer=said[0].answer_start + 34)
  assert got['end'] == .5 * (59 + 34)
  assert got['first_answer_token'] == .5 * (47 + 34 + 1)


def test_without_threads_nothing_waits():
  plain = transcribe(target_of((0, '</think> 1 <eos>')), np.array([0]),
                     TOKENIZER, PROTOCOL)
  thought, deep = latency.waits(plain, 2)
  assert not thought.any() and not deep.any()
