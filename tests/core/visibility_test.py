"""Visibility against tables of 0 and 1 written by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.core import visibility
from tests.small import make_source


def rows(mask):
  return [''.join('01'[int(v)] for v in row) for row in np.asarray(mask)]


def segments(role, phase, valid=None, segment=None, reads=None):
  row = lambda x: None if x is None else jnp.array([x])
  phase = row(phase)
  return visibility.Segments(
      role=jnp.full_like(phase, role), phase=phase,
      slot=jnp.arange(phase.shape[1])[None],
      valid=jnp.ones_like(phase, bool) if valid is None
      else row(valid).astype(bool),
      segment=row(segment), reads=row(reads))


def read(interval, slots):
  """[B, T, slots] bool, of an Interval."""
  slots, limit = np.arange(slots), np.asarray(interval.limit)[..., None]
  if interval.start is None:
    return slots < limit
  return (slots < limit) & (slots >= np.asarray(interval.start)[..., None])


# preamble p, chunk 1 = a b, chunk 2 = c d, one slot of padding
SOURCE = segments(visibility.SOURCE, [0, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0])
# <bos> t1 <EOT> <skip> deep </think>: own phases 0 1 1 2 3 3; fed, each is a
# query of the next one's phase.
OWN = jnp.array([[0, 1, 1, 2, 3, 3]])
QUERY = segments(visibility.TARGET, list(visibility.query_phase(OWN)[0]))


def test_source_reads_source_causally():
  assert rows(visibility.visible(SOURCE, SOURCE)[0]) == [
      '100000', '110000', '111000', '111100', '111110', '111110']


def test_source_never_reads_target():
  assert not visibility.visible(SOURCE, QUERY).any()


def test_target_reads_source_up_to_the_phase_it_predicts():
  assert rows(visibility.visible(QUERY, SOURCE)[0]) == [
      '111000',  # <bos> predicts t1: chunk 1
      '111000',  # t1 predicts <EOT>
      '111110',  # <EOT> predicts <skip> on chunk 2, and reads it already
      '111110',  # <skip> predicts deep reasoning
      '111110']


def test_target_reads_target_causally():
  assert rows(visibility.visible(QUERY, QUERY)[0]) == [
      '10000', '11000', '11100', '11110', '11111']


def test_invalid_keys_are_never_read():
  blind = segments(visibility.TARGET, [1, 1, 1], [1, 0, 1])
  assert rows(visibility.visible(blind, blind)[0]) == ['100', '100', '101']


def test_where_the_question_stands_is_only_its_phase():
  """Where the question stands decides its phase, and so who reads it."""
  thought_on_1 = segments(visibility.TARGET, [1])
  first = segments(visibility.SOURCE, [0, 0, 1, 2])  # q q s1 s2
  later = segments(visibility.SOURCE, [0, 1, 2, 3])  # p s1 q s2, or s2 q
  see = lambda source: rows(visibility.visible(thought_on_1, source)[0])
  assert see(first) == ['1110']
  assert see(later) == ['1100']


def test_an_interval_says_what_is_visible():
  source = make_source()
  key = visibility.source_segments(source)
  own = np.minimum(np.arange(9)[None], np.asarray(source.num_chunks)[:, None])
  query = visibility.target_segments(
      jnp.asarray(own), jnp.asarray(np.arange(9)[None] < [[9], [4], [7], [1]]))
  for q, k in ((key, key), (query, key), (query, query)):
    interval = visibility.interval(q, k)
    assert interval.start is None  # alone in its buffer
    np.testing.assert_array_equal(read(interval, k.slot.shape[1]),
                                  visibility.visible(q, k))


def test_a_causal_limit_is_that_of_a_buffer_without_padding():
  query = visibility.target_segments(jnp.array([[0, 1, 1, 2]]),
                                     jnp.ones((1, 4), bool))
  np.testing.assert_array_equal(visibility.causal_limit(query.slot),
                                visibility.interval(query, query).limit)


# Two sources in one buffer: p a | p a b, chunk 1 = a, chunk 2 = b, one slot of
# padding. Three targets: the first and the last read source 1, the other
# source 0; then padding of a segment that nothing else has.
PACKED_SOURCE = segments(visibility.SOURCE, [0, 1, 0, 1, 2, 0],
                         [1, 1, 1, 1, 1, 0], segment=[0, 0, 1, 1, 1, -1])
PACKED = segments(visibility.TARGET, [0, 1, 2, 0, 1, 1, 2, 0],
                  [1, 1, 1, 1, 1, 1, 1, 0],
                  segment=[0, 0, 0, 1, 1, 2, 2, -2],
                  reads=[1, 1, 1, 0, 0, 1, 1, -2])


@pytest.mark.parametrize('query,key,want', [
    (PACKED_SOURCE, PACKED_SOURCE, [
        '100000', '110000',
        '001000', '001100', '001110',
        '000000']),
    (PACKED, PACKED_SOURCE, [
        '001000', '001100', '001110',
        '100000', '110000',
        '001100', '001110',
        '000000']),
    (PACKED, PACKED, [
        '10000000', '11000000', '11100000',
        '00010000', '00011000',
        '00000100', '00000110',
        '00000000'])])
def test_what_shares_a_buffer_reads_only_its_own(query, key, want):
  assert rows(visibility.visible(query, key)[0]) == want
  interval = visibility.interval(query, key)
  assert rows(read(interval, key.slot.shape[1])[0]) == want


def test_source_and_target_positions_count_separately():
  source = make_source()
  np.testing.assert_array_equal(
      visibility.source_position(source.tokens.shape), source.position)
  query = visibility.target_segments(jnp.zeros((1, 3), jnp.int32),
                                     jnp.ones((1, 3), bool))
  assert visibility.target_position(query.slot, 5).tolist() == [[5, 6, 7]]
