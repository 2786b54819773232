"""Countdown: problems by index, the solver, the words, the task."""

import dataclasses
import itertools

import pytest

from adasr_jax import config as config_lib
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import DEEP_JOINED, DONE, Protocol, Threads
from adasr_jax.data import pipeline
from adasr_jax.data.dataset import DataConfig
from adasr_jax.data.tokenizer import TokenizerConfig
from adasr_jax.policy.rollout import RolloutConfig
from adasr_jax.tasks import countdown
from adasr_jax.tasks.countdown import Search, Size, Task, solve
from adasr_jax.run import factories
from configs import common

SIZE = Size()


def reachable(numbers, largest):
  """All that can be made, by trying every order of steps; no memory."""
  if len(numbers) == 1:
    return set(numbers)
  out = set()
  for i, j in itertools.permutations(range(len(numbers)), 2):
    a, b = numbers[i], numbers[j]
    rest = [x for k, x in enumerate(numbers) if k not in (i, j)]
    results = {a + b, a * b, a - b} | ({a // b} if b and not a % b else set())
    for c in results:
      if 0 <= c <= largest:
        out |= reachable([*rest, c], largest)
  return out


def test_values_are_all_that_can_be_made():
  for i in range(20):
    p = countdown.problem(dataclasses.replace(SIZE, min_number=0), 3, 'train',
                          i)
    for largest in (20, 99):
      assert solve.values(p.numbers, largest) == reachable(p.numbers, largest)
  assert solve.values((2, 3), 99) == {5, 6, 1}
  assert solve.values((0, 7), 99) == {7, 0}
  # 1 + 1 does not fit, and 1 / 1 and 1 * 1 are one value.
  assert solve.values((1, 1), 1) == {0, 1}


def test_solutions_are_right_and_all():
  for i in range(30):
    p = countdown.problem(SIZE, 0, 'test', i)
    found = list(solve.solutions(p.numbers, p.target, p.largest))
    assert len(set(found)) == len(found) > 0
    assert solve.first(p.numbers, p.target, p.largest) == found[0]
    for path in found:
      assert countdown.right(countdown.spell(path), p.numbers, p.target,
                             p.largest)
  # By hand: 1 + 2 = 3 or 1 * 2 = 2 and so on; only sums of all make 6, and
  # the product, and (2 - 1) has no way, 3 * 2 / 1 has.
  paths = set(solve.solutions((1, 2, 3), 6, 99))
  assert {countdown.spell(p) for p in paths} == {
      '2 + 1 = 3 , 3 + 3 = 6', '3 + 1 = 4 , 4 + 2 = 6',
      '3 + 2 = 5 , 5 + 1 = 6', '2 * 1 = 2 , 3 * 2 = 6',
      '3 * 1 = 3 , 3 * 2 = 6', '3 * 2 = 6 , 6 * 1 = 6',
      '2 / 1 = 2 , 3 * 2 = 6', '3 / 1 = 3 , 3 * 2 = 6',
      '3 * 2 = 6 , 6 / 1 = 6'}
  assert solve.first((1, 1, 1), 50, 99) is None


def test_random_access_is_pure():
  forward = [countdown.problem(SIZE, 5, 'test', i) for i in range(30)]
  for i in reversed(range(30)):
    assert countdown.problem(SIZE, 5, 'test', i) == forward[i]
  assert len(set(forward)) > 25
  assert forward != [countdown.problem(SIZE, 6, 'test', i) for i in range(30)]


def test_problems_are_fixed():
  # They do not depend on the process or the machine.
  assert countdown.content_hash((4, 3, 7, 12), 24) == (
      4377674957526356177)
  assert str(countdown.problem(SIZE, 0, 'train', 0)) == '38 from 5 14 16 18'


@pytest.mark.parametrize('numbers', [2, 3, 4, 6])
def test_problems_lie_in_their_ranges_and_are_solvable(numbers):
  size = Size(numbers, 3, 15, 20, 30, 60)
  for i in range(60):
    p = countdown.problem(size, 1, 'train', i)
    assert len(p.numbers) == numbers and 20 <= p.target <= 30
    assert all(3 <= x <= 15 for x in p.numbers) and p.largest == 60
    assert solve.solvable(p.numbers, p.target, 60)


def test_splits_are_disjoint():
  size = Size(3, max_number=9)
  seen = {}
  for split in countdown.SPLITS:
    ps = [countdown.problem(size, 1, split, i) for i in range(1500)]
    seen[split] = {(tuple(sorted(p.numbers)), p.target) for p in ps}
    assert len(seen[split]) < 1500  # the space is small: nothing else helps
    for p in ps:
      content = countdown.content_hash(p.numbers, p.target)
      assert content == countdown.content_hash(p.numbers[::-1], p.target)
      assert countdown.split_of(content) == split
  for a, b in itertools.combinations(seen, 2):
    assert not seen[a] & seen[b]
  residues = [r for rs in countdown.SPLITS.values() for r in rs]
  assert sorted(residues) == list(range(10))


def test_words():
  token, t = countdown.ids(99), countdown.embedded(99)
  assert list(token.values()) == list(range(t.vocab_size)) and len(token) < 130
  text = '24 from 9 3 : off 5 go none , ;'
  assert t.decode(t.encode(text)) == text
  assert t.decode([t.eot, token['<spawn>'], token['7'], t.eos]) == '7'
  assert t.spell([t.eot, token['<spawn>'], token['7']]) == '<EOT> <spawn> 7'
  # Text never spells a control token, nor what is not there.
  for word in (*countdown.CONTROL, '100', '-1', '007', 'zebra'):
    with pytest.raises(ValueError, match='has no word'):
      t.encode(f'7 {word}')
  assert t.of_threads == tuple(
      token[w] for w in ('<spawn>', '<join>', '<return>', '<none>'))
  assert set(t.of_threads) <= set(t.undecodable)


def sections(**search):
  return {'data.countdown': Size(3), 'data.search': Search(**search),
          'tokenizer': TokenizerConfig(),
          'rollout': RolloutConfig(answer_cap=20),
          'data': DataConfig(layout=pipeline.READ_THEN_THINK, lengths=(16,),
                             max_chunks=1)}


def make_protocol(t, threads=None):
  undecodable = set(t.undecodable) - set(t.of_threads if threads else ())
  return Protocol(t.vocab_size, t.eot, t.skip, t.end_think, t.eos,
                  tuple(undecodable), t.prefix, 2, 96, 20, 'masked', threads)


@pytest.mark.parametrize('kind', ['direct', 'serial'])
@pytest.mark.parametrize('condition', ['', 'tokens'])
def test_a_trace_of_one_thread_is_rendered(kind, condition):
  s = sections(kind=kind, condition=condition, context=64)
  countdown.ENTRY.check(s)
  t = countdown.ENTRY.tokenizer(s, 0)
  protocol = make_protocol(t)
  data = countdown.ENTRY.dataset(s, t, protocol, traces=True)
  examples = data.train(0, 8)
  batch = data.collate(examples)
  target = pipeline.supervised_target(examples, t, protocol, max_chunks=1,
                                      layout=data.layout)
  task = Task(0, s['data.countdown'], s['data.search'])
  for i, (e, row, valid) in enumerate(zip(
      examples, batch.source.tokens, batch.source.valid)):
    assert t.decode(row[valid]) == f"{e.preamble} {e.chunks[0]}".strip()
    demo, p = task.demonstration('train', i), task.problem('train', i)
    # As the model reads it: the trace is the root's words after the prefix.
    ids = target.tokens[i][target.valid[i]]
    assert t.spell(ids) == ' '.join(('<bos>', *demo.root.words))
    assert len(ids) == demo.root.slots <= 64
    assert countdown.right(e.answer, p.numbers, p.target, p.largest)
    right = countdown.agrees(e.trace_answer, e.answer, p.largest)
    assert right == demo.root.found and (right or kind != 'direct')
  assert data.evaluation('validation', 2)[0].id != examples[0].id


@pytest.mark.parametrize('layout', pipeline.LAYOUTS)
def test_a_tree_is_rendered(layout):
  s = sections(kind='parallel', min_beam=6, max_beam=6, promising=1.0,
               context=96, balance=False)
  t = countdown.ENTRY.tokenizer(s, 0)
  protocol = make_protocol(t, Threads(*t.of_threads, children=10, cap=95))
  data = countdown.ENTRY.dataset(
      s | {'data': dataclasses.replace(s['data'], layout=layout)}, t, protocol,
      traces=True)
  examples = data.train(0, 12)
  target = data.traces(examples)
  assert target.tokens.shape[0] == 12 * 11
  legal = protocol_lib.LEGAL[target.stage, protocol.token_class[target.tokens]]
  assert legal[target.sampled].all()
  task = Task(0, s['data.countdown'], s['data.search'])
  skip = () if layout == pipeline.READ_THEN_THINK else ('<skip>',)
  for i in range(12):
    demo = task.demonstration('train', i)
    for row, thread in itertools.zip_longest(
        range(11 * i, 11 * i + 11), demo.threads):
      valid = target.valid[row]
      if thread is None:
        assert not valid.any() and (target.stage[row] == DONE).all()
        continue
      first = ('<bos>', *(skip if thread is demo.root else ()))
      assert t.spell(target.tokens[row][valid]).split() == [
          *first, *thread.words]
      # Only what the search did not choose is forced.
      own = target.sampled[row][valid][len(first):]
      assert own.tolist() == [not f for f in thread.forced]
    # All that a join forces, what the children wrote.
    joined = target.stage[11 * i] == DEEP_JOINED
    assert t.spell(target.tokens[11 * i][joined]).split() == [
        w for child in demo.children for w in (
            child.words[child.words.index('<return>'):-1] if child.found
            else ('<none>',))]


def test_a_trace_shows_as_many_children_without_a_solution_as_with_one():
  search = dataclasses.replace(countdown.GREEDY_PARALLEL, context=128)
  task, halves = Task(3, search=search), 0
  for i in range(60):
    children = task.demonstration('train', i).children
    threads = task.example('train', i).threads[1:]
    assert task.example('train', i).threads[1:] == threads
    holds = [c.holds for c, thread in zip(children, threads) if thread]
    assert sum(holds) == sum(c.holds for c in children)
    assert len(holds) == min(2 * sum(holds), len(children))
    halves += 0 < 2 * sum(holds) == len(holds) < len(children)
  assert halves > 30


def test_children_need_tokens_of_threads():
  c = common.base('Words', 'sft')
  c.steps, c.rollout.children = 1, 3
  with pytest.raises(ValueError, match='rollout.children=3: the tokenizer'):
    factories.parts(config_lib.validate(c))
  c.task, c.rollout.child_cap, c.rollout.answer_cap = 'countdown', 9, 19
  c.data.layout, c.data.max_chunks = 'read_then_think', 1
  c.eval.split = 'validation'
  p = factories.parts(config_lib.validate(c))
  t = p.tokenizer
  assert p.protocol.threads == Threads(*t.of_threads, children=3, cap=9)
  assert not set(t.of_threads) & set(p.protocol.undecodable)
  assert p.data.agrees('2 + 1 = 3', '2 * 1 = 2') is False
  c.rollout.children = 0
  p = factories.parts(config_lib.validate(c))
  assert p.protocol.threads is None
  assert set(t.of_threads) <= set(p.protocol.undecodable)


def test_a_right_answer_ends_by_itself():
  t = countdown.embedded(99)
  longest = {n: max(
      len(t.encode(Task(size=Size(n)).example('test', i).answer))
      for i in range(20)) for n in (2, 3, 4)}
  # With <eos>, in a cap whose last slot is forced.
  assert {n: countdown.answer_cap(n) for n in longest} == {
      n: tokens + 2 for n, tokens in longest.items()}


def test_its_verifier_comes_with_the_task():
  s = sections()
  agrees = countdown.ENTRY.agrees(s)
  assert agrees('3 * 1 = 3 , 3 * 2 = 6', '2 + 1 = 3 , 3 + 3 = 6')
  assert not agrees('3 + 3 = 6', '2 + 1 = 3 , 3 + 3 = 6')


@pytest.mark.parametrize('field,value,match', [
    ('data.countdown.numbers', 3, None),
    ('data.countdown.numbers', 1, 'data.countdown.numbers=1 is outside'),
    ('data.search.kind', 'wide', "data.search.kind='wide' is not one of"),
    ('data.search.context', 12, 'data.search.context=12 is below the 20'),
    ('rollout.answer_cap', 17, 'answer_cap=17 is below the 18 slots'),
    ('data.instruction', 'Count.', "data.instruction='Count.' is not read")])
def test_a_config_of_the_task(field, value, match):
  c = common.base('Countdown', 'sft')
  c.task, c.eval.split = 'countdown', 'validation'
  c.rollout.answer_cap = 19
  common.smoke(c)
  c.update_from_flattened_dict({field: value})
  if match is None:
    config_lib.validate(c)
    return
  with pytest.raises(ValueError, match=match):
    config_lib.validate(c)


def test_problems_do_not_depend_on_the_search():
  for i in range(10):
    a, b = (Task(0, SIZE, Search(kind)).example('test', i)
            for kind in ('serial', 'parallel'))
    assert (a.id, a.chunks, a.answer) == (b.id, b.chunks, b.answer)


@pytest.mark.parametrize('make,named', [
    (lambda: Size(1), 'numbers=1'),
    (lambda: Size(min_number=30), 'min_number=30, max_number=20'),
    (lambda: Size(max_target=100), 'max_target=100, largest=99'),
    (lambda: Search('wide'), "kind='wide'"),
    (lambda: Search(min_beam=6), 'min_beam=6 exceeds max_beam=5'),
    (lambda: Search(promising=1.5), 'promising=1.5'),
    (lambda: Search(heuristic='luck'), "heuristic='luck'"),
    (lambda: countdown.problem(SIZE, 0, 'dev', 0), "split='dev'"),
    (lambda: countdown.problem(SIZE, -1, 'train', 0), 'seed=-1'),
    (lambda: countdown.problem(SIZE, 0, 'train', 2**64), 'index='),
    (lambda: countdown.problem(Size(2, 1, 1, 50, 50), 0, 'train', 0),
     'no solvable train problem'),
    (lambda: countdown.demonstrate(countdown.Problem((1, 1), 9, 99), Search()),
     'no solution'),
    (lambda: Task(search=Search(context=19)).demonstration('train', 0),
     'context=19 is below the 20 slots'),
    (lambda: countdown.ENTRY.check(sections(context=13)),
     'data.search.context=13 is below the 14 slots'),
    (lambda: countdown.ENTRY.check(sections(
        condition='tokens', token_unit=1)), "'tokens' up to 256"),
    (lambda: countdown.ENTRY.check(sections() | {
        'tokenizer': TokenizerConfig('folder')}), "kind='embedded'"),
    (lambda: countdown.ENTRY.tokenizer(sections(), 7), 'model.vocab_size=7')])
def test_bad_arguments(make, named):
  with pytest.raises(ValueError, match=named):
    make()
