"""Threads of rollouts by hand: what each wrote, and how many tokens."""

import numpy as np

from adasr_jax.core.types import Example
from adasr_jax.policy import transcript
from adasr_jax.policy import tree as tree_lib
from adasr_jax.policy.tree import Child, counts
from tests import threads_by_hand as by_hand
from tests.threads_by_hand import PROTOCOL, ROLLOUT, TOKENIZER, target_of


def transcripts(*rollouts, protocol=PROTOCOL):
  return transcript.transcribe(
      target_of(*rollouts, protocol=protocol),
      np.array([r[0] for r in rollouts], np.int32), TOKENIZER, protocol)


def test_two_calls_of_two_children():
  t, = transcripts(ROLLOUT)
  one, two = t.tree.calls
  assert one.before == '3 + 4 = 7 : 5 ;' and two.before == 'go 3 ;'
  assert t.tree.after == '</think> 4 + 3 = 7 , 7 * 5 = 35 <eos>'
  assert (one.spawns, two.spawns, len(two.children)) == (2, 2, 1)
  assert (one.joined, two.joined) == (7, 2)
  assert (one.phase, two.phase) == (1, 1)  # no chunks: all is deep
  assert one.children == (
      Child(brief='5 - 4 = 1', text=': 3 ; 3 + 1 = 4 off 35', result=None,
            cut=False, tokens=11, sampled=11, given=6),
      Child(brief='4 + 3 = 7', text=': 5 ;', result='7 * 5 = 35', cut=False,
            tokens=10, sampled=10, given=6))
  assert two.children == (
      Child(brief='5 + 4 = 9', text=': 3 ; 9 + 3 = 12 off 35', result=None,
            cut=True, tokens=11, sampled=10, given=6),)


def test_the_root_is_transcribed_as_a_target_of_its_own():
  t, = transcripts(ROLLOUT)
  assert t.answer == '4 + 3 = 7 , 7 * 5 = 35' and t.finished
  assert not (t.deep_bad or t.deep_cut)  # a child's cap is none of the root's
  # 8 + 2 * 6 + 1 + 7, 3 + 2 * 6 + 1 + 2, </think>, answer, <eos>
  assert t.deep_tokens == t.tree.tokens == 28 + 18 + 1 + 11 + 1
  assert t.answer_start == 47
  alone, = transcripts((0, '7 * 5 = 35 </think> 35 <eos>'))
  assert alone.tree.calls == () and alone.deep == '7 * 5 = 35'
  without = by_hand.protocol_of(threads=None)
  t, = transcripts((0, '7 * 5 = 35 </think> 35 <eos>'), protocol=without)
  assert t.tree is None
  assert vars(t) | {'tree': alone.tree} == vars(alone)


def test_counts_of_two_calls():
  # Root 59, of which 9 are joined; children 11, 10; 11 of which one is forced;
  # each has a brief of 6. One that takes all children for one join has 59 + 17
  # sequential ones.
  c = counts([t.tree for t in transcripts(ROLLOUT, (0, '</think> 1 <eos>'))])
  assert {k: v.tolist() for k, v in vars(c).items()} == dict(
      tokens_total=[109, 3], tokens_sampled=[81, 3], tokens_forced=[28, 0],
      tokens_sequential=[59 + 17 + 17, 3], calls=[2, 0], spawns=[4, 0],
      children=[3, 0], returned=[1, 0])


def test_calls_while_the_text_arrives():
  t, = transcripts((
      2, '1 <spawn> 2 <join> [ <return> 3 ] <EOT> <skip> <spawn> 4 <join> '
      '[ <none> ] </think> 3 <eos>',
      (1, '[ <spawn> 2 ] <return> 3 <eos>'), (3, '[ <spawn> 4 ] <eos>')))
  assert [call.phase for call in t.tree.calls] == [1, 3]
  assert t.tokens == (7, 1) and t.deep_tokens == 7
  assert t.thoughts == ('1 2 3', None) and t.deep == '4'
  assert t.tree.calls[1].before == '<EOT> <skip>'
  assert t.tree.children[1].result is None


def test_a_call_that_is_broken_off_is_text():
  # Its <EOT> ends the thought and is not legal there.
  t, = transcripts((1, '<spawn> 2 <EOT> <spawn> 3 <join> [ <none> ] </think> '
                    '3 <eos>', (2, '[ <spawn> 3 ] <eos>')))
  assert t.bad == (True,) and not t.deep_bad
  call, = t.tree.calls
  assert call.before == '<spawn> 2 <EOT>' and call.spawns == 1
  assert call.children[0].brief == '3'


def test_a_child_breaks_the_protocol_of_its_phase():
  root = '<EOT> <spawn> 4 <join> [ <none> ] </think> 3 <eos>'
  t, = transcripts((1, root, (2, '[ <spawn> 4 ] <skip> <eos>')))
  assert (t.bad, t.deep_bad) == ((True,), True)  # an empty thought, a <skip>
  t, = transcripts((1, root, (2, '[ <spawn> 4 ] 1 <eos>')))
  assert (t.bad, t.deep_bad) == ((True,), False)


def test_a_cap_within_a_join_or_a_brief():
  t, = transcripts((1, '1 <spawn> 2 <join> [ <return> <EOT> ] <spawn> 2 '
                    '[ </think> ] 3 <eos>',
                    (1, '[ <spawn> 2 ] <return> 3 4 <eos>')))
  assert t.cut == (True,) and t.deep_cut


def test_a_readable_tree():
  t, = transcripts(ROLLOUT)
  example = Example(id=1, preamble='q', chunks=(), answer='35')
  rewards = {'accuracy': 1., 'format': 1.}
  assert transcript.readable(example, t, rewards=rewards,
                             advantages={})['threads'] == [
      'root: 3 + 4 = 7 : 5 ;',
      '  child 1 (11 tokens), 5 - 4 = 1',
      '    : 3 ; 3 + 1 = 4 off 35',
      '    returns nothing',
      '  child 2 (10 tokens), 4 + 3 = 7',
      '    : 5 ;',
      '    returns 7 * 5 = 35',
      'root: go 3 ;',
      '  child 3 (11 tokens, cut), 5 + 4 = 9',
      '    : 3 ; 9 + 3 = 12 off 35',
      '    returns nothing',
      '  1 more did not run',
      'root: </think> 4 + 3 = 7 , 7 * 5 = 35 <eos>']
  alone, = transcripts((0, '</think> 1 <eos>'))
  assert 'threads' not in transcript.readable(
      example, alone, rewards=rewards, advantages={})
  assert tree_lib.lines(alone.tree) == ['root: </think> 1 <eos>']
