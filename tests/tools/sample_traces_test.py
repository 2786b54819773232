"""A policy's right rollouts as traces, and supervised learning from them."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.core import protocol as pl
from adasr_jax.core.types import Example
from adasr_jax.credit import rewards
from adasr_jax.data import sources
from adasr_jax.policy import scoring
from adasr_jax.policy.rollout import OWN, SKIP, THINK
from adasr_jax.policy.transcript import Transcript, transcribe
from adasr_jax.run import factories
from adasr_jax.run import train
from adasr_jax.run.start import start
from adasr_jax.tools import own_traces
from adasr_jax.tools import prune_traces
from adasr_jax.tools import sample_traces
from configs import hrpo
from configs import sft
from tests.data.tokenizer_test import TEMPLATE
from tests.small import save_tokenizer
from tests.tools.export_test import WORDS

PROBLEMS, SAMPLES = 16, 2
DEVICES = jax.devices()[:1]


def said(answer, tokens, thought='2 + 3 = 5', *, deep_tokens=3, bad=False):
  return Transcript(
      thoughts=(thought, None), tokens=(tokens, 1), bad=(bad, False),
      cut=(False,) * 2, deep='', answer=answer, deep_tokens=deep_tokens,
      answer_start=1, deep_bad=False, deep_cut=False, finished=True)


def test_the_shortest_that_is_right_and_can_be_imitated_is_kept():
  data = parts_of(sft.get_config('smoke'))[1].data
  example = Example(id=1, preamble='', chunks=('tom has 5 hats .', ' hello .'),
                    answer='5')
  group = [
      said('5', 9), said('4', 2), said('5', 3, bad=True),
      said('5', 6, '2 = 2', deep_tokens=5), said('5', 6, 'tom 5 hats'),
      said('5', 2, '')]  # nothing but spaces was decoded
  none = [said('4', 2)] * 6
  all_said = group + none
  found = rewards.outcomes([example] * 12, all_said, max_chunks=data.max_chunks)
  found = sample_traces.shortest_right([example] * 2, own_traces.Drawn(
      target=None, said=all_said, right=found.accuracy & found.format,
      cost=found.tokens_streaming + found.tokens_deep, sampled=0), data)
  assert found == [dataclasses.replace(
      example, thoughts=('tom 5 hats', None), deep='', trace_answer='5'), None]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The demo's run, whose only checkpoint is the shipped warm start."""
  workdir = tmp_path_factory.mktemp('run') / 'run'
  c = hrpo.get_config('smoke')
  c.steps, c.optim.learning_rate, c.eval.at_start = 1, 1e-9, False
  train.train(start(c, workdir, devices=DEVICES))
  return workdir


@pytest.fixture(scope='module')
def traces(run):
  """All batches: (problems, records, sampled tokens)."""
  return list(sample_traces.sample_traces(
      str(run), problems=PROBLEMS, samples=SAMPLES, devices=DEVICES))


@pytest.fixture(scope='module')
def file(traces, tmp_path_factory):
  path = tmp_path_factory.mktemp('traces') / 'traces.jsonl'
  path.write_text(''.join(
      json.dumps(r) + '\n' for _, records, _ in traces for r in records))
  return path


def parts_of(c):
  s = config_lib.sections(c)
  with jax.set_mesh(factories.mesh(s, DEVICES)):
    return s, factories.parts(s)


def test_records_are_the_problems_of_the_stream_solved(run, traces, file):
  _, parts = parts_of(config_lib.of_workdir(
      json.loads((run / 'config.json').read_text())))
  asked = {(e.preamble, e.chunks): e for e in parts.data.train(0, PROBLEMS)}
  read = sources.Jsonl(file, format='streaming_reasoning').part('all')
  assert sum(n for n, _, _ in traces) == PROBLEMS
  assert 0 < len(read) < PROBLEMS  # the warm start solves half
  for e in read:
    problem = asked[e.preamble, e.chunks]
    assert (e.answer, e.relevant, e.kinds) == (
        problem.answer, problem.relevant, problem.kinds)
    assert e.trace_answer == e.answer and len(e.thoughts) == len(e.chunks)
  # What is imitated says what was said.
  target = parts.data.traces(read)
  back = transcribe(
      target, parts.data.collate(read).source.num_chunks, parts.tokenizer,
      parts.protocol)
  assert [t.thoughts for t in back] == [e.thoughts for e in read]
  assert rewards.outcomes(read, back, max_chunks=parts.data.max_chunks
                          ).accuracy.all()


def test_a_part_of_the_problems_has_the_same_traces(run, traces):
  size = traces[0][0]
  again = list(sample_traces.sample_traces(
      str(run), problems=size, first=size, samples=SAMPLES,
      devices=DEVICES))
  assert again == [traces[1]]


def test_pruned_rollouts_solve_more_with_fewer_tokens(run):
  (n, records, sampled), = prune_traces.prune_traces(
      str(run), problems=PROBLEMS, devices=DEVICES, least=0.0)
  with own_traces.opened(str(run), problems=PROBLEMS,
                         devices=DEVICES) as policy:
    draw = functools.partial(
        policy.drawn, key=jax.random.key(0), size=PROBLEMS, samples=1,
        temperature=0.0)
    examples = policy.data.train(0, PROBLEMS)
    greedy = draw(examples)
    again = prune_traces.Writer(
        policy=policy, judge=None, examples=examples, size=PROBLEMS,
        least=0.0)
    now = prune_traces.prune(PROBLEMS, again)
    decisions = np.full((PROBLEMS, policy.data.max_chunks), OWN, np.int32)
    for i, t in enumerate(now.said):
      decisions[i, :len(t.thoughts)] = [
          SKIP if x is None else THINK for x in t.thoughts]
    same = draw(examples, decisions=decisions)
    # A threshold between the least and the most likely skip.
    judge = jax.tree.map(lambda a: 1.2 * a, policy.params)
    some = dataclasses.replace(again, judge=judge, least=0.5)
    _, likely = some(range(PROBLEMS), None, None)
    skip_logp = functools.partial(
        scoring.skip_logp, source=policy.data.collate(examples).source,
        model_config=policy.parts.model_config, protocol=policy.parts.protocol)
    logp = np.asarray(skip_logp(judge, target=greedy.target))
    own = np.asarray(skip_logp(policy.params, target=greedy.target))
    hot = draw(examples, temperature=1.0).target
    of_hot = np.asarray(skip_logp(policy.params, target=hot))
  assert (n, sampled) == (PROBLEMS, again.sampled)
  assert greedy.right.sum() < len(records) == now.right.sum()
  assert now.right[greedy.right].all()
  assert (now.cost <= greedy.cost)[greedy.right].all()
  # Of a right rollout some thoughts can go, wherever in it they are.
  gone = [k for x, y, right in zip(greedy.said, now.said, greedy.right)
          for k, (a, b) in enumerate(zip(x.thoughts, y.thoughts))
          if right and b is None and a is not None]
  assert max(gone) >= 3
  # It is what the policy writes under these decisions, to the token.
  assert [t.thoughts for t in same.said] == [t.thoughts for t in now.said]
  np.testing.assert_array_equal(same.target.tokens, now.target.tokens)
  assert [r['thoughts'] for r in records] == [
      t.thoughts for t, right in zip(now.said, now.right) if right]
  skipped = (hot.sampled & (hot.stage == pl.FIRST)
             & (hot.tokens == policy.parts.protocol.skip))
  assert skipped.sum() >= 20
  np.testing.assert_allclose(of_hot[skipped], hot.logp[skipped], atol=1e-4)
  # Its own probability says what it skips greedily, the judge's what is tried.
  skips = [[x is None for x in t.thoughts] for t in greedy.said]
  for i, row in enumerate(skips):
    at = np.flatnonzero(own[i])
    assert (greedy.target.phase[i, at] - 1).tolist() == list(range(len(row)))
    assert all(x for x, p in zip(row, np.exp(own[i, at])) if p > 0.5)
    np.testing.assert_array_equal(likely[i, :len(row)],
                                  np.exp(logp[i, at]) >= 0.5)
    assert not likely[i, len(row):].any()
  assert ((np.exp(own) >= 0.5) != (np.exp(logp) >= 0.5))[own < 0].any()


def test_batches_and_pools_change_nothing(run, tmp_path, monkeypatch):
  monkeypatch.setattr(prune_traces, 'BATCH', 5)
  start = 'experiments/warm_start/model.safetensors'
  as_read = lambda records: json.loads(json.dumps(records))  # without tuples
  records = lambda **more: as_read([
      r for _, some, _ in prune_traces.prune_traces(
          str(run), problems=PROBLEMS, devices=DEVICES, start=start, **more)
      for r in some])
  want = records()
  monkeypatch.setattr(prune_traces, 'POOL', 7)
  assert records() == want
  assert sum(t is None for r in want for t in r['thoughts']) < sum(
      t is None for r in records(least=0.0) for t in r['thoughts'])
  out = tmp_path / 'traces.jsonl'
  prune_traces.main([f'--of={run}', f'--out={out}', '--problems=7',
                     '--start=' + start])
  got = list(map(json.loads, out.read_text().splitlines()))
  assert got and got == want[:len(got)]


@pytest.mark.parametrize('start', ['nowhere', 'nowhere.safetensors'])
def test_a_judge_that_is_not_there_is_named(run, start):
  with pytest.raises(ValueError, match=f"^start='{start}'"):
    next(prune_traces.prune_traces(str(run), problems=2, devices=DEVICES,
                                   start=start))


def test_supervised_learning_draws_from_the_file(file):
  c = sft.get_config('smoke')
  c.sft.traces = str(file)
  s, parts = parts_of(c)
  method = factories.method(s, parts)
  task = parts_of(sft.get_config('smoke'))[1].data
  read = sources.Jsonl(file, format='streaming_reasoning').part('all')
  drawn = method.data.train(0, len(read))  # one epoch, shuffled
  assert sorted(e.id for e in drawn) == sorted(e.id for e in read)
  assert parts.data.evaluation('test', 2) == task.evaluation('test', 2)
  got = method.collect(None, step=0, cursor=0)
  assert np.asarray(got.batch.mask).any()


@pytest.mark.parametrize('record, message', [
    ({'chunks': ['tom has 3 hats .'], 'answer': '3'}, 'trace'),
    ({'chunks': ['tom has 3 hats .'] * 40, 'answer': '3',
      'thoughts': [None] * 40, 'deep': 'so 3'}, 'data.max_chunks')])
def test_what_cannot_be_imitated_is_refused(tmp_path, record, message):
  path = tmp_path / 'traces.jsonl'
  path.write_text(json.dumps(record) + '\n')
  c = sft.get_config('smoke')
  c.sft.traces = str(path)
  with pytest.raises(ValueError, match=f'^sft.traces: .*{message}'):
    parts_of(c)


def test_problems_that_are_held_out_are_not_imitated(file):
  data = parts_of(sft.get_config('smoke'))[1].data
  read = sources.Jsonl(file, format='streaming_reasoning').part('all')
  data.instruction = 'Think.'
  data.held_out = lambda: [dataclasses.replace(
      read[1], id=0, preamble=f'Think.\n{read[1].preamble}\n')]
  with pytest.raises(ValueError, match=f'1 of its {len(read)} problems are '
                                       f'held out'):
    data.imitating(str(file), overlong='error', seed=0)


@pytest.mark.parametrize('arguments, message', [
    ({'problems': 0}, 'problems=0'), ({'samples': 0}, 'samples=0'),
    ({'first': -1}, 'first=-1'),
    ({'first': 2**31 - 1}, 'first=2147483647'),
    ({'temperature': 0.0}, 'temperature=0.0')])
def test_bad_numbers_are_named(run, arguments, message):
  with pytest.raises(ValueError, match=message):
    next(sample_traces.sample_traces(str(run), **{'problems': 2} | arguments))


def test_what_is_not_a_run_is_named(tmp_path):
  with pytest.raises(ValueError, match='no config.json'):
    next(sample_traces.sample_traces(str(tmp_path), problems=1))


def test_a_boxed_answer_is_not_boxed_again(tmp_path):
  (path := tmp_path / 'tokenizer').mkdir()
  save_tokenizer(path, WORDS, TEMPLATE)
  c = hrpo.get_config('data=gsm8k,smoke')
  rows = [{'question': f'Tom has {i} hats. How many?', 'answer': str(i)}
          for i in range(30)]
  (tmp_path / 'data.jsonl').write_text(''.join(
      json.dumps(r) + '\n' for r in rows))
  c.data.path, c.tokenizer.path = str(tmp_path / 'data.jsonl'), str(path)
  c.model.vocab_size = 0
  c.eval.examples, c.eval.every = 1, 0
  data = parts_of(c)[1].data
  e = data.train(0, 1)[0]
  t = dataclasses.replace(
      said('\\boxed{' + e.answer + '}', 2), thoughts=(None,) * len(e.chunks),
      tokens=(1,) * len(e.chunks), bad=(False,) * len(e.chunks),
      cut=(False,) * len(e.chunks))
  assert own_traces.traced(e, t, data).trace_answer == e.answer
