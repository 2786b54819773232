"""Demonstrations, read by an interpreter that knows only the grammar."""

import dataclasses
import re

import numpy as np
import pytest

from adasr_jax.tasks import countdown
from adasr_jax.tasks.countdown import Search, Task, solve

LARGEST = 99
SEARCHES = {
    'sos': countdown.SOS, 'apr': countdown.APR,
    'greedy': countdown.GREEDY_SERIAL, 'wide': countdown.GREEDY_PARALLEL,
    'queue': Search('parallel', 3, 6, 6, promising=0.4, max_calls=7),
    'breadth': Search('serial', 3, 3, promising=0.0,
                      heuristic='sum_to_factor'),
    'few': Search('parallel', 4, 4, promising=1.0, max_calls=3),
    'none': Search('parallel', 2, 5, promising=1.0, max_calls=0)}


class Reader:
  """Follows the words of a thread and refuses what the grammar does not allow.

  `last[k]` is the state of k numbers that was named last, as a sorted list,
  with the steps that lead to it from the thread's first state.
  """

  def __init__(self, thread, numbers, target):
    self.words, self.forced = list(thread.words), list(thread.forced)
    self.target, self.i = target, 0
    self.last = {len(numbers): sorted(numbers)}
    self.named = [sorted(numbers)]
    self.goal = False

  def peek(self):
    return self.words[self.i]

  def take(self, pattern=None, forced=False):
    word = self.words[self.i]
    assert self.forced[self.i] == forced, (self.i, self.words)
    assert pattern is None or re.fullmatch(pattern, word), (self.i, self.words)
    self.i += 1
    return word

  def number(self, forced=False):
    return int(self.take(r'\d+', forced))

  def step(self, forced=False):
    """The operands and the result of a step; it is right."""
    a, op, b = (self.number(forced), self.take('[-+*/]', forced),
                self.number(forced))
    self.take('=', forced)
    c = self.number(forced)
    assert a >= b and 0 <= c <= LARGEST
    assert c == {'+': a + b, '-': a - b, '*': a * b,
                 '/': a // b if b and a % b == 0 else -1}[op]
    return (a, b), c

  def steps(self, forced):
    out = [self.step(forced)]
    while self.i < len(self.words) and self.peek() == ',':
      self.take(',', forced)
      out.append(self.step(forced))
    return out

  def after(self, state, step):
    """The state after a step of it; its operands were there."""
    (a, b), c = step
    state = list(state)
    state.remove(a)
    state.remove(b)
    return sorted([*state, c])

  def rest(self, result):
    """The rest of a line: a state, its result first."""
    state = [result]
    if self.peek() == 'off':
      self.take('off')
      assert self.number() == self.target
      distance = self.number()
      assert distance == abs(result - self.target)
      self.goal = distance == 0
    else:
      self.take(':')
      while self.peek() != ';':
        state.append(self.number())
      assert len(state) > 1
      self.take(';')
    return sorted(state)

  def line(self):
    assert not self.goal, 'a line after the goal'
    start = self.i
    step = self.step()
    state = self.rest(step[1])
    assert state == self.after(self.last[len(state) + 1], step)
    assert self.i - start == (6 + len(state) if len(state) > 1 else 8)
    self.last[len(state)] = state
    self.named.append(state)

  def move(self):
    self.take('go')
    state = []
    while self.peek() != ';':
      state.append(self.number())
    self.take(';')
    assert sorted(state) in self.named
    self.last[len(state)] = sorted(state)


def read_child(child, problem, brief):
  """What a child returned: its words, or None."""
  r = Reader(child, problem.numbers, problem.target)
  state = sorted(problem.numbers)
  r.take('<spawn>', forced=True)
  given = r.steps(True)
  assert given == brief
  for step in given:
    state = r.after(state, step)
  assert r.rest(given[-1][1]) == state
  r.last, r.named = {len(state): state}, [state]
  assert child.holds == solve.solvable(state, problem.target, LARGEST)
  assert child.holds or not child.found
  result = None
  while r.peek() not in ('<return>', '<eos>'):
    (r.move if r.peek() == 'go' else r.line)()
  assert r.goal == child.found
  if r.goal:
    start = r.i
    r.take('<return>')
    steps, state = r.steps(False), sorted(problem.numbers)
    assert steps[:len(brief)] == brief
    for step in steps:
      state = r.after(state, step)
    assert state == [problem.target]
    result = child.words[start:r.i]
  r.take('<eos>')
  assert r.i == len(child.words)
  return result


def read(demo, problem):
  """Follows a whole demonstration."""
  r = Reader(demo.root, problem.numbers, problem.target)
  calls, found, seen = iter(demo.calls), False, 0
  while r.peek() != '</think>':
    assert not found, 'the search goes on after a result'
    if r.peek() == 'go':
      r.move()
    elif r.peek() == '<spawn>':
      briefs = []
      while r.peek() == '<spawn>':
        r.take()
        briefs.append(r.steps(False))
      r.take('<join>')
      children = next(calls)
      assert len(children) == len(briefs)
      for child, brief in zip(children, briefs):
        result = read_child(child, problem, brief)
        for word in result or ('<none>',):
          assert r.take(forced=True) == word
        found = found or result is not None
        seen += 1
    else:
      r.line()
      found = r.goal
  assert next(calls, None) is None and seen == len(demo.children)
  r.take('</think>')
  start = r.i
  if demo.root.found:
    r.steps(False)
  else:
    r.take('none')
  assert ' '.join(demo.root.words[start:r.i]) == demo.answer
  r.take('<eos>')
  assert r.i == len(demo.root.words)
  right = countdown.right(demo.answer, problem.numbers, problem.target, LARGEST)
  assert right == demo.root.found == found


@pytest.mark.parametrize('context', [32, 64, 128, 512])
@pytest.mark.parametrize('name', SEARCHES)
def test_the_grammar(name, context):
  search = dataclasses.replace(SEARCHES[name], context=context)
  token = countdown.ids(LARGEST)
  task, found, cut = Task(search=search), 0, 0
  for i in range(25):
    demo, problem = task.demonstration('train', i), task.problem('train', i)
    read(demo, problem)
    assert all(t.slots <= context for t in demo.threads)
    assert all(w in token for t in demo.threads for w in t.words)
    assert len(demo.children) <= search.max_calls
    found += demo.root.found
    cut += any(t.cut for t in demo.threads)
  assert context < 128 or found
  assert (cut > 15) if context == 32 else context < 512 or cut < 25


def test_five_numbers_and_three():
  for numbers in (2, 3, 5):
    task = Task(size=countdown.Size(numbers),
                search=dataclasses.replace(SEARCHES['queue'], context=200))
    for i in range(20):
      read(task.demonstration('test', i), task.problem('test', i))


def test_all_parts_of_the_grammar_occur():
  task = Task(search=dataclasses.replace(SEARCHES['queue'], context=512))
  demos = [task.demonstration('train', i) for i in range(100)]
  said = {w for d in demos for t in d.threads for w in t.words}
  assert {'go', 'off', '<none>', '<return>', '</think>'} <= said
  assert max(len(d.calls) for d in demos) > 1  # a call after a join
  # A call on a state that a step has made: its briefs have two steps.
  assert any(c.words[6] == ',' for d in demos for c in d.children)


def test_a_small_tree_by_hand():
  # 6 from 1 2 3: the states nearest by sum are (3 3), (4 2), (5 1), all 6.
  demo = countdown.demonstrate(
      countdown.Problem((1, 2, 3), 6, 99),
      Search('parallel', 2, 2, 2, 1.0, 'sum', False, condition='calls'))
  root, (a, b) = demo.root, demo.children
  assert ' '.join(root.words) == (
      '<spawn> 2 + 1 = 3 <spawn> 3 + 1 = 4 <join> '
      '<return> 2 + 1 = 3 , 3 + 3 = 6 <return> 3 + 1 = 4 , 4 + 2 = 6 '
      '</think> 2 + 1 = 3 , 3 + 3 = 6 <eos>')
  assert ' '.join(a.words) == ('<spawn> 2 + 1 = 3 : 3 ; 3 + 3 = 6 off 6 0 '
                               '<return> 2 + 1 = 3 , 3 + 3 = 6 <eos>')
  assert b.forced == (True,) * 6 + (False,) * 24
  assert [i for i, f in enumerate(root.forced) if f] == list(range(13, 37))
  assert demo.budget == 'calls 2' and not root.cut
  # A prefix each; the root has 50 words, a child 30.
  assert [t.slots for t in demo.threads] == [51, 31, 31]


def test_demonstrations_are_pure():
  for search in SEARCHES.values():
    task = Task(seed=3, search=search)
    forward = [task.demonstration('train', i) for i in range(8)]
    for i in reversed(range(8)):
      assert Task(seed=3, search=search).demonstration('train', i) == forward[i]


def test_direct_is_the_upper_bound():
  task = Task(search=Search('direct', context=20))
  for i in range(50):
    demo = task.demonstration('train', i)
    assert demo.root.found and demo.root.slots == 20 and not demo.root.cut


def test_conditions():
  for condition, want in (
      ('', lambda d: ''), ('calls', lambda d: f'calls {len(d.children)}'),
      ('tokens', lambda d: f'tokens {int(np.ceil(d.root.slots / 32))}')):
    task = Task(search=dataclasses.replace(SEARCHES['apr'],
                                           condition=condition))
    demos = [task.demonstration('train', i) for i in range(20)]
    assert [d.budget for d in demos] == [want(d) for d in demos]
    assert len({d.budget for d in demos}) > 1 or not condition
    # An evaluation's prompt knows nothing of its demonstration.
    most = {'': '', 'calls': 'calls 10', 'tokens': 'tokens 8'}[condition]
    assert {task.demonstration('test', i).budget for i in range(20)} == {most}
  fixed = dataclasses.replace(task.search, condition_value=3)
  assert Task(search=fixed).demonstration('train', 0).budget == 'tokens 3'


def measured(search, problems=200):
  """Shares found, children, total and sequential slots."""
  task = Task(search=search)
  demos = [task.demonstration('validation', i) for i in range(problems)]
  return np.mean([(
      d.root.found, len(d.children), sum(t.slots for t in d.threads),
      d.root.slots + sum(max(c.slots for c in call) for call in d.calls))
                  for d in demos], axis=0)


@pytest.mark.parametrize('context,serial,parallel', [
    (96, 0.35, 0.62), (128, 0.37, 0.72), (256, 0.46, 0.87),
    (512, 0.55, 0.90)])
def test_children_find_more_in_the_same_context(context, serial, parallel):
  # Four numbers of 1..20. The bounds are three standard errors.
  one, many = (measured(dataclasses.replace(s, context=context))
               for s in (countdown.GREEDY_SERIAL, countdown.GREEDY_PARALLEL))
  assert one[0] == pytest.approx(serial, abs=0.10)
  assert many[0] == pytest.approx(parallel, abs=0.10)
  assert many[0] - one[0] > 0.2
  assert many[3] < 0.6 * many[2]
