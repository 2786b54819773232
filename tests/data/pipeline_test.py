"""Examples to arrays: schedules, traces, buckets, and the order of data."""

import dataclasses

import numpy as np
import pytest

from adasr_jax.core import protocol as pl
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example, Piece
from adasr_jax.data.dataset import Dataset, fitting, shuffled
from adasr_jax.data import pipeline
from adasr_jax.tasks import word_problems

TOKENIZER = word_problems.embedded()
LONG = Example(
    id=5, preamble='how many apples does tom have in the end ?',
    chunks=('tom has 3 apples .', ' it is a cold day .',
            ' tom buys 2 apples .'),
    answer='5', relevant=(True, False, True),
    thoughts=('3', None, '3 + 2 = 5'), deep='so 5')
SHORT = Example(
    id=2**32 - 1, preamble='', chunks=(
        'tom has 3 apples .', ' how many apples does tom have ?'),
    answer='3', question_chunk=1, relevant=(True, True),
    thoughts=('3', 'asked tom apples'), deep='first 3 so 3')
BOTH = [LONG, SHORT]
FIT = dict(lengths=(40, 24, 32), max_chunks=4)


def make_protocol(**changes):
  t = TOKENIZER
  fields = dict(
      vocab_size=t.vocab_size, eot=t.eot, skip=t.skip, end_think=t.end_think,
      eos=t.eos, undecodable=t.undecodable, prefix=t.prefix, thought_cap=6,
      deep_cap=12, answer_cap=2, legality='free')
  return Protocol(**(fields | changes))


def collate(examples=BOTH, layout='streaming', **changes):
  return pipeline.collate(examples, TOKENIZER, layout=layout,
                          **(FIT | changes))


def traces(examples=BOTH, layout='streaming', **changes):
  return pipeline.supervised_target(
      examples, TOKENIZER, make_protocol(**changes), max_chunks=4,
      layout=layout)


# ------------------------------------------------------------------- source
def test_the_chunk_schedule():
  b = collate()
  s = b.source
  # LONG: <bos> and 10 words; 5, 6, 5 tokens: 27 in all, in a bucket of 32.
  assert s.tokens.shape == (2, 32)
  assert s.phase[0, :27].tolist() == [0] * 11 + [1] * 5 + [2] * 6 + [3] * 5
  assert s.phase[1, :13].tolist() == [0] + [1] * 5 + [2] * 7
  assert s.valid.sum(1).tolist() == [27, 13]
  assert (np.diff(s.phase) >= 0).all()
  assert (s.tokens[~s.valid] == TOKENIZER.pad).all()
  np.testing.assert_array_equal(s.position, [np.arange(32)] * 2)
  assert s.num_chunks.tolist() == b.arrivals.tolist() == [3, 2]
  assert s.problem_id.tolist() == [5, 2**32 - 1]
  text = TOKENIZER.decode(s.tokens[0][s.valid[0]][1:].tolist())
  assert text == ' '.join((LONG.preamble, *(c.strip() for c in LONG.chunks)))


def test_words_relevance_and_question():
  b = collate()
  # The final dot is a token of the embedded task; words are counted as text.
  assert b.chunk_tokens.tolist() == [[11, 5, 6, 5, 0], [1, 5, 7, 0, 0]]
  assert b.words.tolist() == [[10, 5, 6, 5, 0], [0, 5, 7, 0, 0]]
  assert b.relevant.tolist() == [[1, 0, 1, -1], [1, 1, -1, -1]]
  assert b.question.tolist() == [[False] * 4, [False, True, False, False]]
  unknown = collate([dataclasses.replace(LONG, relevant=None)])
  assert (unknown.relevant == -1).all()


def test_the_smallest_bucket_is_taken():
  assert collate([SHORT]).source.tokens.shape == (1, 24)
  assert collate([SHORT], lengths=(13,)).source.tokens.shape == (1, 13)
  assert [pipeline.bucket(n, (40, 24, 32), 'x') for n in (1, 24, 25, 40)] == [
      24, 24, 32, 40]


def test_overflow_names_the_example():
  with pytest.raises(ValueError, match=r'example 5 needs 27 slots.* 26 '):
    collate(lengths=(26, 13))
  with pytest.raises(ValueError, match='example 5 has 3 chunks, .* is 2'):
    collate(max_chunks=2)
  with pytest.raises(ValueError, match="layout='both'"):
    collate(layout='both')


def test_read_then_think_streams_nothing():
  a, b = collate(), collate(layout='read_then_think')
  assert (b.source.phase == 0).all() and (b.source.num_chunks == 0).all()
  for name in ('tokens', 'position', 'valid', 'problem_id'):
    np.testing.assert_array_equal(getattr(a.source, name),
                                  getattr(b.source, name))
  # On the clock the chunks arrive all the same.
  for name in ('arrivals', 'words', 'chunk_tokens', 'relevant', 'question'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# ------------------------------------------------------------------- traces
def test_supervised_phases_are_the_teachers_thoughts():
  t = traces()
  # <bos> | 3 <EOT> | <skip> | 3 + 2 = 5 <EOT> | so 5 </think> 5 <eos>
  assert t.phase[0, :15].tolist() == [0, 1, 1, 2] + [3] * 6 + [4] * 5
  F, T, D, A = pl.FIRST, pl.THOUGHT, pl.DEEP, pl.ANSWER
  assert t.stage[0, :15].tolist() == [
      pl.PREFIX, F, T, F, F, T, T, T, T, T, D, D, D, A, A]
  # <bos> | 3 <EOT> | asked tom apples <EOT> | first 3 so 3 </think> 3 <eos>
  assert t.phase[1, :14].tolist() == [0, 1, 1] + [2] * 4 + [3] * 7
  assert t.valid.sum(1).tolist() == [15, 14]
  for b, example in enumerate(BOTH):
    for k, thought in enumerate(example.thoughts, 1):
      ids = t.tokens[b, t.phase[b] == k].tolist()
      assert TOKENIZER.decode(ids) == (thought or '')
      assert ids[-1] == (TOKENIZER.eot if thought else TOKENIZER.skip)


def test_all_but_the_prefix_carries_loss():
  t = traces()
  np.testing.assert_array_equal(
      t.sampled, t.valid & (np.arange(t.tokens.shape[1]) > 0)[None])
  assert t.sampled[0, 14]  # or stopping is never learned
  assert (t.stage[~t.valid] == pl.DONE).all()
  assert (t.phase[~t.valid] == 0).all() and (t.logp == 0).all()


def test_read_then_think_thinks_the_same_steps_in_the_deep_phase():
  t = traces(layout='read_then_think')
  # <bos> | 3 3 + 2 = 5 so 5 </think> 5 <eos>
  assert t.phase[0, :12].tolist() == [0] + [1] * 11
  inside = t.tokens[0, t.stage[0] == pl.DEEP].tolist()
  assert TOKENIZER.decode(inside) == '3 3 + 2 = 5 so 5'
  assert inside[-1] == TOKENIZER.end_think
  moved = pipeline.read_then_think(LONG)
  assert (moved.thoughts, moved.deep) == ((), '3 3 + 2 = 5 so 5')
  bare = Example(id=1, preamble='', chunks=('1',), answer='1')
  assert pipeline.read_then_think(bare) is bare
  only = dataclasses.replace(bare, thoughts=('1',))
  assert pipeline.read_then_think(only) is only, 'no deep reasoning is known'
  silent = dataclasses.replace(LONG, deep='')
  assert pipeline.read_then_think(silent).deep == '3 3 + 2 = 5'


@pytest.mark.parametrize('cap,what,n', [
    (dict(thought_cap=5), 'thought', 6),
    (dict(deep_cap=4), 'deep reasoning', 5)])
def test_a_trace_over_its_cap_raises(cap, what, n):
  example = 5 if what == 'thought' else 2**32 - 1
  with pytest.raises(ValueError, match=f'example {example}: a supervised '
                     f'{what} has {n} tokens, its cap is {n - 1}'):
    traces(**cap)


def test_a_trace_of_exactly_the_caps_is_fine():
  t = traces(thought_cap=6, deep_cap=5, answer_cap=2)
  assert t.valid.sum() == 29


def test_an_answer_over_its_cap_raises():
  long = dataclasses.replace(LONG, trace_answer='5 apples')
  with pytest.raises(ValueError, match='supervised answer has 3 .* cap is 2'):
    traces([long])


@pytest.mark.parametrize('thought', ['3 <EOT> 3', '</think>'])
def test_the_embedded_vocabulary_spells_no_control_token(thought):
  broken = dataclasses.replace(SHORT, thoughts=('3', thought))
  with pytest.raises(ValueError, match="no word '(<EOT>|</think>)'"):
    traces([LONG, broken])


def test_an_empty_thought_raises():
  broken = dataclasses.replace(SHORT, thoughts=('3', ''))
  with pytest.raises(ValueError, match=f'example {2**32 - 1}.*empty thought'):
    traces([LONG, broken])


# ------------------------------------------------------------------ threads
# The root thinks, asks two children, and a third one later.
CHILDREN = (
    (Piece('spawn', '', True), Piece('text', '3 + 2', True),
     Piece('text', '= 5'), Piece('result'), Piece('text', '5'), Piece('eos')),
    (Piece('spawn', '', True), Piece('text', '2', True), Piece('text', 'so'),
     Piece('eos')),
    ())
ROOT = (
    Piece('text', '3'), Piece('eot'), Piece('skip'),
    Piece('spawn'), Piece('text', '3 + 2'), Piece('spawn'), Piece('text', '2'),
    Piece('join'), Piece('result', '', True), Piece('text', '5', True),
    Piece('none', '', True), Piece('text', 'so 5'), Piece('eot'),
    Piece('spawn'), Piece('text', '5'), Piece('join'),
    Piece('none', '', True), Piece('end_think'), Piece('text', '5'),
    Piece('eos'))
BARE = dataclasses.replace(LONG, thoughts=None, deep=None)
TREE = dataclasses.replace(BARE, threads=(ROOT, *CHILDREN))
# Word-level, with four tokens more at the end of the vocabulary.
V = TOKENIZER.vocab_size
TREE_TOKENIZER = dataclasses.replace(
    TOKENIZER, vocab_size=V + 4, spawn=V, join=V + 1, result=V + 2, none=V + 3,
    undecodable=(*TOKENIZER.undecodable, *range(V, V + 4)))


def tree_protocol(**changes):
  cap = changes.pop('cap', 9)
  children = changes.pop('children', 4)
  return make_protocol(**(dict(
      vocab_size=V + 4, thought_cap=16, deep_cap=24, threads=pl.Threads(
          *TREE_TOKENIZER.of_threads, children=children, cap=cap)) | changes))


def trees(examples=(TREE,), layout='streaming', **changes):
  return pipeline.supervised_target(
      examples, TREE_TOKENIZER, tree_protocol(**changes), max_chunks=4,
      layout=layout)


def ids(text):
  named = {'<eot>': TOKENIZER.eot, '<skip>': TOKENIZER.skip,
           '</think>': TOKENIZER.end_think, '<eos>': TOKENIZER.eos,
           '<bos>': TOKENIZER.prefix[0], '<spawn>': V, '<join>': V + 1,
           '<return>': V + 2, '<none>': V + 3}
  return [named[w] if w in named else TOKENIZER.encode(w)[0]
          for w in text.split()]


def test_a_tree_by_hand():
  t = trees()
  assert t.valid.sum(1).tolist() == [24, 10, 5, 0, 0]
  F, T, B, J, D, DB, DJ, A, C, R = (
      pl.FIRST, pl.THOUGHT, pl.BRIEF, pl.JOINED, pl.DEEP, pl.DEEP_BRIEF,
      pl.DEEP_JOINED, pl.ANSWER, pl.CHILD, pl.RESULT)
  rows = [(
      '<bos> 3 <eot> <skip> <spawn> 3 + 2 <spawn> 2 <join> <return> 5 <none> '
      'so 5 <eot> <spawn> 5 <join> <none> </think> 5 <eos>',
      [0, 1, 1, 2] + [3] * 13 + [4] * 7,
      [pl.PREFIX, F, T, F, F] + [B] * 6 + [J] * 3 + [T] * 3
      + [D, DB, DB, DJ, D, A, A],
      [0] + [1] * 10 + [0] * 3 + [1] * 6 + [0] + [1] * 3), (
      '<bos> <spawn> 3 + 2 = 5 <return> 5 <eos>', [0] + [3] * 9,
      [pl.PREFIX] + [C] * 7 + [R] * 2, [0] * 5 + [1] * 5), (
      '<bos> <spawn> 2 so <eos>', [0] + [3] * 4, [pl.PREFIX] + [C] * 4,
      [0] * 3 + [1] * 2)]
  for b, (text, phase, stage, sampled) in enumerate(rows):
    n = len(ids(text))
    assert t.tokens[b, :n].tolist() == ids(text)
    assert t.valid[b].tolist() == [i < n for i in range(t.tokens.shape[1])]
    assert t.phase[b, :n].tolist() == phase
    assert t.stage[b, :n].tolist() == stage
    assert t.sampled[b, :n].tolist() == list(map(bool, sampled))
  assert (t.stage[3:] == pl.DONE).all() and not t.sampled[~t.valid].any()


def test_read_then_think_asks_in_the_deep_phase():
  t = trees(layout='read_then_think')
  n = t.valid[0].sum()
  assert t.tokens[0, :n].tolist() == ids(
      '<bos> 3 <spawn> 3 + 2 <spawn> 2 <join> <return> 5 <none> so 5 <spawn> '
      '5 <join> <none> </think> 5 <eos>')
  assert set(t.phase[0, 1:n]) == {1} == set(t.phase[1, 1:10])


def test_examples_with_and_without_a_tree():
  both = trees([dataclasses.replace(TREE, threads=(ROOT, *CHILDREN[:2], ())),
                SHORT])
  assert both.valid.any(1).tolist() == [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
  alone = pipeline.supervised_target(
      [SHORT], TREE_TOKENIZER, make_protocol(vocab_size=V + 4), max_chunks=4,
      layout='streaming')
  n = alone.tokens.shape[1]
  for name in ('tokens', 'phase', 'stage', 'sampled'):
    np.testing.assert_array_equal(getattr(both, name)[5, :n],
                                  getattr(alone, name)[0])


@pytest.mark.parametrize('threads,changes,match', [
    ((ROOT, *CHILDREN), dict(children=2),
     'example 5: its trace has 3 children, rollout.children is 2'),
    ((ROOT, *CHILDREN), dict(threads=None),
     'example 5: its trace has 3 children, rollout.children is 0'),
    ((ROOT, *CHILDREN), dict(cap=9), None),
    ((ROOT, *CHILDREN), dict(cap=8),
     'example 5: a supervised child has 9 tokens, its cap is 8'),
    ((ROOT, *CHILDREN[:2]), {}, 'has 2 children, its root spawns 3'),
    ((ROOT, CHILDREN[1], CHILDREN[1], ()), {}, 'child 0 .* its brief'),
    ((ROOT, CHILDREN[0], CHILDREN[1], (Piece('text', '5'), Piece('eos'))), {},
     'child 2 .* its brief'),
    ((ROOT, CHILDREN[0], (*CHILDREN[1][:2], Piece('text', 'so', True),
                          Piece('eos')), ()), {}, 'child 1 .* its brief'),
    ((ROOT, CHILDREN[0], (*CHILDREN[1][:2], Piece('end_think'), Piece('eos')),
      ()), {}, 'example 5: its trace breaks the protocol: a thread'),
    ((ROOT, *CHILDREN), dict(thought_cap=13), None),
    ((ROOT, *CHILDREN), dict(thought_cap=12),
     'example 5: a supervised thought has 13 tokens, its cap is 12'),
    ((ROOT, *CHILDREN), dict(deep_cap=4),
     'a supervised deep reasoning has 5 tokens, its cap is 4')])
def test_trees_that_are_refused(threads, changes, match):
  examples = [SHORT, dataclasses.replace(BARE, threads=threads)]
  if match is None:
    trees(examples, **changes)
    return
  with pytest.raises(ValueError, match=match):
    trees(examples, **changes)


def test_a_piece_of_another_kind():
  with pytest.raises(ValueError, match="example 5: kind='word' of a piece"):
    dataclasses.replace(TREE, threads=((Piece('word', '3'),),))


# ------------------------------------------------------------------ dataset
def some(n):
  return [dataclasses.replace(SHORT, id=i) for i in range(n)]


def test_an_epoch_has_every_example_once():
  at = shuffled(some(17), seed=3)
  epochs = [[at(17 * e + i).id for i in range(17)] for e in range(4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(17))
  assert len({tuple(e) for e in epochs}) == 4  # another order each time


def test_a_position_is_a_pure_function_of_the_seed():
  a, b = shuffled(some(17), seed=3), shuffled(some(17), seed=3)
  late = [b(i).id for i in reversed(range(40))]
  assert [a(i).id for i in range(40)] == late[::-1]
  other = shuffled(some(17), seed=4)
  assert [other(i).id for i in range(17)] != [a(i).id for i in range(17)]


def make_dataset():
  task = word_problems.Task()
  return Dataset(lambda i: task.example('train', i), lambda split: some(3),
                 TOKENIZER, make_protocol(thought_cap=16, deep_cap=24),
                 lengths=(72,), max_chunks=8, layout='streaming')


def test_a_cursor_is_all_there_is_to_resume():
  d = make_dataset()
  assert d.train(3, 4) == d.train(0, 7)[3:] == make_dataset().train(3, 4)
  batch = d.collate(d.train(3, 4))
  assert batch.source.tokens.shape == (4, 72)
  assert d.traces(d.train(3, 4)).tokens.shape[0] == 4


class Counted(list):
  """Examples that note which of them were read."""

  def __init__(self, examples):
    super().__init__(examples)
    self.read = []

  def __getitem__(self, i):
    self.read.append(int(i))
    return super().__getitem__(i)


@pytest.mark.parametrize('cursor', [0, 30, 7])  # 30: over an epoch's end
def test_hosts_share_a_batch_and_read_only_their_own_rows(cursor):
  def dataset():
    examples = Counted(some(36))
    return examples, Dataset(
        shuffled(examples, seed=3), lambda split: examples, TOKENIZER,
        make_protocol(), lengths=(72,), max_chunks=8, layout='streaming')
  got = []
  for index in range(3):  # each host has a source of its own
    examples, d = dataset()
    rows = d.train(cursor, 12, shard=(index, 3))
    assert examples.read == [e.id for e in rows] and len(rows) == 4
    got += rows
  assert got == dataset()[1].train(cursor, 12)


def test_hosts_that_cannot_share():
  d = make_dataset()
  with pytest.raises(ValueError, match='3 hosts cannot share 4 examples'):
    d.train(0, 4, shard=(0, 3))
  with pytest.raises(ValueError, match=r'shard=\(2, 2\).*outside 0..1'):
    d.train(0, 4, shard=(2, 2))


def test_a_split_with_too_few_examples():
  d = make_dataset()
  assert [e.id for e in d.evaluation('test', 2)] == [0, 1]
  with pytest.raises(ValueError, match="'test' has 3 examples, 4 were asked"):
    d.evaluation('test', 4)


def test_what_fits_no_bucket_is_counted_or_an_error(caplog):
  fit = dict(lengths=(20, 14), what='the file')
  keep = lambda **kw: fitting(BOTH, TOKENIZER, **(fit | kw))
  assert keep(max_chunks=4, overlong='drop') == [SHORT]
  assert 'left out 1 of 2' in caplog.text
  assert keep(max_chunks=2, lengths=(40,), overlong='drop') == [SHORT]
  assert keep(max_chunks=3, lengths=(27,), overlong='error') == BOTH
  with pytest.raises(ValueError, match='the file: example 5 has 3 chunks and '
                     r'27 tokens.*max_chunks=4.*\(20, 14\)'):
    keep(max_chunks=4, overlong='error')


def test_a_trace_over_a_cap_is_counted_or_an_error_before_training(caplog):
  # Not at the step that happens to draw it.
  def trace(examples):
    if SHORT in examples:
      raise ValueError(f'example {SHORT.id}: a supervised thought has 9 '
                       f'tokens, its cap is 8')
  fit = dict(lengths=(40,), max_chunks=4, what='the file', trace=trace)
  assert fitting(BOTH, TOKENIZER, overlong='drop', **fit) == [
      e for e in BOTH if e is not SHORT]
  assert 'left out 1 of 2' in caplog.text
  with pytest.raises(ValueError, match=f'the file: example {SHORT.id}: a super'
                     r'.*its cap is 8 \(data.overlong='):
    fitting(BOTH, TOKENIZER, overlong='error', **fit)
