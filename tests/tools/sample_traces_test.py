"""A policy's right rollouts as traces, and supervised learning from them."""

import json

import jax
import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.core.types import Example
from adasr_jax.credit import rewards
from adasr_jax.data import sources
from adasr_jax.policy.transcript import Transcript
from adasr_jax.run import factories
from adasr_jax.run import train
from adasr_jax.run.start import start
from adasr_jax.tools import sample_traces
from configs import hrpo
from configs import sft

PROBLEMS, SAMPLES = 16, 2
DEVICES = jax.devices()[:1]


def said(answer, tokens, *, deep_tokens=3, bad=False):
  return Transcript(
      thoughts=('2 + 3 = 5', None), tokens=(tokens, 1), bad=(bad, False),
      cut=(False,) * 2, deep='', answer=answer, deep_tokens=deep_tokens,
      answer_start=1, deep_bad=False, deep_cut=False, finished=True)


def test_the_shortest_that_is_right_and_well_formed_is_kept():
  example = Example(id=1, preamble='', chunks=('a .', 'b .'), answer='5')
  group = [said('5', 9), said('4', 2), said('5', 3, bad=True),
           said('5', 6, deep_tokens=5), said('5', 6)]
  none = [said('4', 2)] * 5
  found = sample_traces.shortest_right([example] * 2, group + none,
                                       max_chunks=2)
  assert found == [group[4], None]


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
  # What is imitated is what was sampled, token for token.
  target = parts.data.traces(read)
  least = sum(t is None for e in read for t in e.thoughts)
  assert target.sampled.sum() > least
  back = sample_traces.transcribe(
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


def test_supervised_learning_draws_from_the_file(file):
  c = sft.get_config('smoke')
  c.sft.traces = str(file)
  s, parts = parts_of(c)
  method = factories.method(s, parts)
  read = sources.Jsonl(file, format='streaming_reasoning').part('all')
  drawn = method.data.train(0, len(read))  # one epoch, shuffled
  assert sorted(e.id for e in drawn) == sorted(e.id for e in read)
  assert method.data.evaluation('test', 2) == parts.data.evaluation('test', 2)
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
  s, parts = parts_of(c)
  with pytest.raises(ValueError, match=message):
    factories.method(s, parts)


@pytest.mark.parametrize('arguments, message', [
    ({'problems': 0}, 'problems=0'), ({'samples': 0}, 'samples=0'),
    ({'first': -1}, 'first=-1'), ({'temperature': 0.0}, 'temperature=0.0')])
def test_bad_numbers_are_named(run, arguments, message):
  with pytest.raises(ValueError, match=message):
    next(sample_traces.sample_traces(str(run), **{'problems': 2} | arguments))


def test_what_is_not_a_run_is_named(tmp_path):
  with pytest.raises(ValueError, match='no config.json'):
    next(sample_traces.sample_traces(str(tmp_path), problems=1))
