"""The phase automaton against its table, by hand and in both array types."""

import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.core import protocol as pl
from tests.small import END_THINK, EOS, EOT, SKIP, make_protocol

TEXT = 9
PROTOCOL = make_protocol()


def walk(tokens, num_chunks=2, protocol=PROTOCOL):
  """(phase, stage) before each token, and at last."""
  s = pl.start(protocol, np.array([num_chunks], np.int32))
  out = []
  for t in tokens:
    out.append((int(s.phase[0]), int(s.stage[0])))
    s = pl.advance(protocol, s, np.array([t], np.int32))
  return out + [(int(s.phase[0]), int(s.stage[0]))]


def test_a_whole_legal_row():
  assert walk([TEXT, EOT, SKIP, TEXT, END_THINK, TEXT, EOS]) == [
      (1, pl.FIRST), (1, pl.THOUGHT), (2, pl.FIRST), (3, pl.DEEP),
      (3, pl.DEEP), (3, pl.ANSWER), (3, pl.ANSWER), (3, pl.DONE)]


@pytest.mark.parametrize('tokens,want', [
    ([EOT], (2, pl.FIRST)),  # an empty thought ends it
    ([TEXT, SKIP], (2, pl.FIRST)),  # a late <skip> ends the thought
    ([END_THINK], (1, pl.THOUGHT)),  # </think> while streaming is only text
    ([EOS], (1, pl.DONE)),  # end-of-sequence before the deep phase
    ([SKIP, SKIP, EOT], (3, pl.DEEP)),
    ([SKIP, SKIP, SKIP], (3, pl.DEEP)),
    ([SKIP, SKIP, EOS], (3, pl.DONE)),
    ([SKIP, SKIP, END_THINK, END_THINK], (3, pl.ANSWER)),
])
def test_free_legality_defines_what_violations_do(tokens, want):
  assert walk(tokens)[-1] == want


def test_no_chunks_means_deep_at_once():
  assert walk([], num_chunks=0) == [(1, pl.DEEP)]


def test_legal_table_is_the_documented_one():
  legal = {(s, c) for s in range(1, 5) for c in range(6) if pl.LEGAL[s, c]}
  assert legal == {
      (pl.FIRST, pl.TEXT), (pl.FIRST, pl.SKIP), (pl.THOUGHT, pl.TEXT),
      (pl.THOUGHT, pl.EOT), (pl.DEEP, pl.TEXT), (pl.DEEP, pl.END_THINK),
      (pl.ANSWER, pl.TEXT), (pl.ANSWER, pl.EOS)}


def test_the_table_of_threads_is_the_documented_one():
  begins = {pl.FIRST: pl.BRIEF, pl.THOUGHT: pl.BRIEF, pl.DEEP: pl.DEEP_BRIEF}
  steps = {(stage, pl.SPAWN): brief for stage, brief in begins.items()}
  for brief, joined, thinks, ends in (
      (pl.BRIEF, pl.JOINED, pl.BRIEF, pl._NEXT),
      (pl.DEEP_BRIEF, pl.DEEP_JOINED, pl.ANSWER, pl.DEEP_BRIEF)):
    steps |= {(brief, pl.TEXT): brief, (brief, pl.SPAWN): brief,
              (brief, pl.JOIN): joined, (brief, pl.END_THINK): thinks,
              (brief, pl.EOT): ends, (brief, pl.EOS): pl.DONE}
  for stage in pl.CHILDREN:
    steps |= {(stage, pl.TEXT): stage, (stage, pl.RETURN): pl.RESULT,
              (stage, pl.END_THINK): stage, (stage, pl.EOS): pl.DONE}
  assert {at: pl._STEP[at] for at in steps} == steps
  own = (pl.SPAWN, pl.JOIN, pl.RETURN, pl.NONE)
  legal = {(s, c) for s in (*begins, *pl.BRIEFS, *pl.CHILDREN, pl.ANSWER)
           for c in own if pl.LEGAL[s, c]}
  assert legal == {*((s, pl.SPAWN) for s in (*begins, *pl.BRIEFS)),
                   *((s, pl.JOIN) for s in pl.BRIEFS), (pl.CHILD, pl.RETURN)}
  assert {(s, c) for s in (*pl.BRIEFS, *pl.CHILDREN)
          for c in range(6) if pl.LEGAL[s, c]} == {
              *((s, pl.TEXT) for s in (*pl.BRIEFS, *pl.CHILDREN)),
              *((s, pl.EOS) for s in pl.CHILDREN)}
  # What free legality forbids too: results invented, children that spawn.
  p = make_protocol(threads=pl.Threads(spawn=30, join=31, result=32, none=33,
                                       children=2, cap=5))
  stages = range(pl.FIRST, 12)
  assert [s for s in stages if p.allowed[s, 32]] == [pl.CHILD]
  assert not [s for s in stages if p.allowed[s, 33]]
  for token in (30, 31):
    assert [s for s in stages if not p.allowed[s, token]] == [*pl.CHILDREN]


def test_allowed_tokens_by_legality():
  free, masked = PROTOCOL.allowed, make_protocol(legality='masked').allowed
  assert not free[:, [0, 1]].any() and free[:, 2:].all()
  assert not masked[:, [0, 1]].any()
  assert masked[pl.FIRST, SKIP] and not masked[pl.THOUGHT, SKIP]
  assert not masked[pl.DEEP, EOS] and masked[pl.ANSWER, EOS]


def test_caps_force_what_ends_each_part():
  p = make_protocol(thought_cap=3, deep_cap=2, answer_cap=2)
  s = pl.start(p, np.array([1], np.int32))
  seen = []
  for _ in range(7):
    f = int(pl.forced(p, s)[0])
    seen.append(f)
    s = pl.advance(p, s, np.array([f if f >= 0 else TEXT], np.int32))
  assert seen == [-1, -1, EOT, -1, END_THINK, -1, EOS]
  assert int(s.stage[0]) == pl.DONE
  assert p.max_target(1) == 1 + 3 + 2 + 2


def test_prefix_is_forced_in_phase_zero():
  p = make_protocol(prefix=(1, 9, 10))
  s = pl.start(p, np.array([1], np.int32))
  assert (int(pl.forced(p, s)[0]), int(s.phase[0])) == (9, 0)
  s = pl.advance(p, s, np.array([9], np.int32))
  s = pl.advance(p, s, np.array([10], np.int32))
  assert (int(s.phase[0]), int(s.stage[0])) == (1, pl.FIRST)


def test_numpy_and_jax_walk_alike():
  r = np.random.default_rng(0)
  chunks = r.integers(0, 4, 64).astype(np.int32)
  a, b = pl.start(PROTOCOL, chunks), pl.start(PROTOCOL, jnp.asarray(chunks))
  for _ in range(30):
    token = r.integers(2, 10, 64).astype(np.int32)
    assert np.array_equal(pl.forced(PROTOCOL, a), pl.forced(PROTOCOL, b))
    a = pl.advance(PROTOCOL, a, token)
    b = pl.advance(PROTOCOL, b, jnp.asarray(token))
    for name in ('phase', 'stage', 'count'):
      assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_annotate_refuses_what_does_not_end():
  row = np.array([[1, TEXT, EOT, TEXT]], np.int32)
  with pytest.raises(ValueError, match='row 0.*phase 2 of 2'):
    pl.annotate(PROTOCOL, row, np.array([4]), np.array([1]))
  row = np.array([[1, END_THINK, TEXT, EOS, TEXT]], np.int32)
  with pytest.raises(ValueError, match='after the end at slot 4'):
    pl.annotate(PROTOCOL, row, np.array([5]), np.array([0]))


@pytest.mark.parametrize('change,match', [
    (dict(eot=3), 'must differ'), (dict(prefix=()), 'at least one'),
    (dict(thought_cap=1), 'thought_cap=1'), (dict(legality='x'), "'x'"),
    (dict(eos=99), r'\[99\] outside')])
def test_bad_protocols_are_named(change, match):
  with pytest.raises(ValueError, match=match):
    make_protocol(**change)
