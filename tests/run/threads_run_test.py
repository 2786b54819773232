"""A run with threads, from its config to its report."""

import json
import math

import jax
import numpy as np
import pytest

from adasr_jax.config import sections
from adasr_jax.core.protocol import DEEP_JOINED, PREFIX
from adasr_jax.models import decoder
from adasr_jax.policy.tree import counts
from adasr_jax.run import factories
from adasr_jax.run import train
from adasr_jax.run.start import start
from adasr_jax.tasks import countdown
from configs import common


def config(**changes):
  """Two steps of a random decoder on countdown, in words of 0..20."""
  c = common.base('threads', 'hrpo')
  common.smoke(c)
  c.task, c.data.layout, c.data.lengths = 'countdown', 'read_then_think', (8,)
  c.data.max_chunks, c.log.tensorboard = 1, False
  size = c.data.countdown
  size.numbers, size.min_number, size.max_number = 3, 1, 5
  size.min_target, size.max_target, size.largest = 2, 20, 20
  m = c.model
  m.num_layers, m.d_model, m.d_ff = 1, 32, 32
  m.num_heads, m.num_kv_heads, m.head_dim = 2, 1, 16
  r = c.rollout
  r.legality, r.deep_cap, r.answer_cap = 'masked', 80, 13
  r.children, r.child_cap = 2, 40
  c.eval.samples, c.eval.temperature, c.eval.rows = 2, 1.0, 10
  c.reward.user = 'tests.run.threads_run_test:children'
  c.reward.threads.token_penalty = 1e-3
  for name, value in changes.items():
    c[name] = value
  return c


def children(examples, transcripts):
  """A reward for asking, which random policies differ in."""
  del examples
  return np.array([[len(t.tree.children)] * 3 for t in transcripts], float)


def test_two_steps_of_rl(tmp_path):
  c = config()
  c.loss.aggregation, c.loss.micro_batches = 'constant', 2
  train.train(start(c, tmp_path, 'test', jax.devices()[:1]))
  lines = lambda name: [json.loads(x) for x in
                        (tmp_path / name).read_text().splitlines()]
  steps = [r for r in lines('metrics.jsonl') if r['kind'] == 'train']
  assert len(steps) == 2
  spent = np.diff([0, *(r['tokens/generated'] for r in steps)])
  for r, generated in zip(steps, spent):
    assert r['grad_norm'] > 0 and math.isfinite(r['loss'])
    # Teacher forcing, packed, gives what the rollout drew.
    assert r['mismatch/max'] < 1e-3
    assert r['threads/children'] > 0 and 0 <= r['threads/cut'] <= 1
    assert generated == pytest.approx(16 * r['threads/tokens_sampled'])
    assert r['tokens/trained'] <= generated
    assert r['tokens/total'] == pytest.approx(
        r['threads/tokens_sampled'] + r['threads/tokens_forced'])
    assert r['threads/tokens_sequential'] <= r['tokens/total']
    assert r['reward/threads'] == pytest.approx(-1e-3 * r['tokens/total'])
    assert math.isfinite(r['reward/child'])
  final = json.loads((tmp_path / 'eval.json').read_text())['final']
  found = final['threads']
  assert found['children'] > 0 and final['n'] == 80
  assert found['tokens_total'] == final['tokens_total']
  assert found['end_s_fed_together'] < final['latency_s']['end']
  assert set(final['cons_at_k']) == {'1', '2'}
  problems = lines('problems.jsonl')
  # What votes is a list of steps; a random policy rarely writes one.
  assert all(p['answer'] == '' or countdown.parse(p['answer'])
             for p in problems)
  assert np.mean([p['children'] for p in problems]) == found['children']
  report = (tmp_path / 'report.md').read_text()
  assert '| sequential tokens |' in report
  called = [s for s in lines('samples.jsonl') if 'threads' in s]
  assert all(s['threads'][-1].startswith('root: ') for s in called)


def test_trees_of_what_the_engine_wrote():
  s = sections(config())
  parts = factories.parts(s)
  groups = factories.method(s, parts).draw(
      decoder.init(parts.model_config, jax.random.key(0)), jax.random.key(0),
      0)
  target, W = groups.target, parts.protocol.width
  trees = [t.tree for t in groups.transcripts]
  rows = lambda a: a.sum(1).reshape(-1, W)
  own = rows(target.valid & (target.stage != PREFIX))
  there = own > 0
  children = [tree.children for tree in trees]
  assert there[:, 0].all() and there[:, 1:].any()
  assert [len(c) for c in children] == there[:, 1:].sum(1).tolist()
  assert own[:, 0].tolist() == [tree.tokens for tree in trees]
  assert own[:, 1:].sum(1).tolist() == [
      sum(c.given + c.tokens for c in some) for some in children]
  assert rows(target.sampled).sum(1).tolist() == counts(
      trees).tokens_sampled.tolist()
  # What a join writes: a result with its <return>, or <none>.
  text = lambda ids: parts.tokenizer.decode(ids.tolist())
  written, none = 0, parts.protocol.threads.none
  for b, tree in enumerate(trees):
    joined = target.tokens[b * W][target.stage[b * W] == DEEP_JOINED]
    whole = ' '.join(c.result for c in tree.children if c.result)
    assert whole.startswith(text(joined))  # a cap may end it
    silent = sum(call.spawns for call in tree.calls) - sum(
        c.result is not None for c in tree.children)
    assert (joined == none).sum() <= silent
    written += len(joined)
  assert written >= 5
  assert (groups.advantage[~target.sampled] == 0).all()
  assert (groups.advantage.reshape(-1, W, target.tokens.shape[1])[:, 1:] != 0
          ).any()


def test_what_cannot_work_is_named():
  c = config()
  c.loss.aggregation = 'sequence'
  s = sections(c)
  with pytest.raises(ValueError, match="loss.aggregation='sequence'"):
    factories.method(s, factories.parts(s))


def test_only_a_task_with_a_verifier_judges_children():
  c = config()
  c.reward.threads.verify = True
  s = sections(c)
  parts = factories.parts(s)
  factories.method(s, parts)
  parts.data.agrees = None
  with pytest.raises(ValueError, match='reward.threads.verify=True'):
    factories.method(s, parts)


def test_only_a_task_with_a_solver_has_an_oracle():
  c = config()
  c.reward.threads.oracle = True
  s = sections(c)
  parts = factories.parts(s)
  assert factories.method(s, parts).solvable('3 + 4 = 7', '4 + 3 = 7')
  parts.data.solvable = None
  with pytest.raises(ValueError, match='reward.threads.oracle=True'):
    factories.method(s, parts)
