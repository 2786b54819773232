"""Every config's smoke variant, from the command to the report."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from adasr_jax.config import sections
from adasr_jax.models import weights
from adasr_jax.run import evaluate
from adasr_jax.run import factories
from adasr_jax.run.start import start
from adasr_jax.run import train
from adasr_jax.run import workdir
from adasr_jax.tasks.task import Endless
from adasr_jax.tasks import word_problems
from configs import eval as eval_config
from configs import grpo, hrpo, read_then_think, sft

LATENCY = {'first_deep_token', 'first_answer_token', 'end'}
SUMMARY = {'n', 'accuracy', 'accuracy_ci95', 'format_rate', 'skip_rate',
           'skip_precision', 'skip_recall', 'tokens_streaming', 'tokens_deep',
           'tokens_total', 'latency_s'}


def small(c):
  """A smoke config on a decoder that compiles quickly, from scratch."""
  c.init = ''
  c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 32
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
  c.log.tensorboard = False
  return c


def run(c, workdir: pathlib.Path):
  begun = start(c, workdir, 'test', jax.devices()[:1])
  (train.train if begun.method else evaluate.run)(begun)
  return json.loads((workdir / 'eval.json').read_text())


def varied(examples, transcripts):
  """A reward that differs between any two rollouts of noise."""
  del examples
  text = [''.join(filter(None, (*t.thoughts, t.deep))) for t in transcripts]
  return np.array([[len(set(x.split()))] * 3 for x in text], float)


def lines(path):
  return [json.loads(x) for x in path.read_text().splitlines()]


def test_token_budget_ends_the_run_and_its_schedule(tmp_path):
  c = small(grpo.get_config('smoke'))
  c.reward.user = 'tests.run.train_test:varied'
  c.steps, c.token_budget, c.optim.schedule = 1000, 3000, 'cosine'
  c.eval.at_start, c.eval.every, c.optim.warmup = False, 0, 2
  run(c, tmp_path)
  steps = [r for r in lines(tmp_path / 'metrics.jsonl')
           if r['kind'] == 'train']
  spent = [0, *(r['tokens/generated'] for r in steps)]
  assert len(steps) > 2 and spent[-2] < 3000 <= spent[-1]
  # Two updates of warm-up, then the cosine by the share that is spent.
  for i, (row, before) in enumerate(zip(steps, spent)):
    share = (1 + np.cos(np.pi * (1000 * before / 3000 - 2) / 998)) / 2
    np.testing.assert_allclose(
        row['learning_rate'],
        c.optim.learning_rate * (i / 2 if i < 2 else share),
        rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize('module', [hrpo, grpo, read_then_think])
def test_rl_smoke(module, tmp_path):
  c = small(module.get_config('smoke'))
  # Random policies are never right: without this nothing would be learned.
  c.reward.user = 'tests.run.train_test:varied'
  evals = run(c, tmp_path)
  for which in ('start', 'final'):
    assert SUMMARY <= evals[which].keys()
    assert LATENCY <= evals[which]['latency_s'].keys()
    assert evals[which]['n'] == 40
  names = {p.name for p in tmp_path.iterdir()}
  assert {'config.json', 'metrics.jsonl', 'samples.jsonl', 'eval.json',
          'report.md', 'checkpoints', 'model.safetensors',
          'learning_curves.png', 'problems.jsonl'} <= names
  steps = [r for r in lines(tmp_path / 'metrics.jsonl')
           if r['kind'] == 'train']
  assert [r['step'] for r in steps] == [1, 2]
  for name in ('reward/accuracy', 'reward/think_global', 'entropy',
               'mismatch/max', 'clip_fraction', 'grad_norm', 'padding/target',
               'tokens_per_s/rollout', 'tokens_per_s/update', 'time/reward'):
    assert name in steps[0], name
  assert steps[0]['mismatch/max'] < 1e-5
  assert steps[0]['reward/user_total'] == steps[0]['reward/user_deep'] > 0
  sample = lines(tmp_path / 'samples.jsonl')[0]
  streamed = c.data.layout == 'streaming'
  assert all((x['tokens'] > 0) <= streamed for x in sample['chunks'])
  assert sample['chunks'][0]['text'].endswith('.')


def test_sft_smoke_then_evaluation_of_its_checkpoint(tmp_path):
  c = small(sft.get_config('smoke'))
  evals = run(c, tmp_path / 'sft')
  assert 'start' not in evals and evals['final']['n'] == 40
  losses = [r['loss'] for r in lines(tmp_path / 'sft' / 'metrics.jsonl')
            if r['kind'] == 'train']
  assert len(losses) == 2 and abs(losses[0] - np.log(206)) < 1.5
  assert 'mismatch' not in (tmp_path / 'sft' / 'metrics.jsonl').read_text()
  e = eval_config.get_config(f'of={tmp_path / "sft"},smoke')
  again = run(e, tmp_path / 'eval')
  for name in SUMMARY - {'latency_s'}:
    assert again['final'][name] == evals['final'][name], name


def test_sampled_evaluation_of_sets(tmp_path, monkeypatch):
  """pass@k, and the accuracy over sets of instances as GSM-Symbolic has it."""
  own = Endless.__getitem__
  monkeypatch.setattr(Endless, '__getitem__', lambda self, i: (
      dataclasses.replace(own(self, i), group=i // 2, instance=i % 2)))
  c = eval_config.get_config('samples=4,smoke')
  c.eval.examples = c.eval.batch = 10
  final = run(c, tmp_path)['final']
  assert final['n'] == 40 and {'1', '4'} <= final['pass_at_k'].keys()
  rows = lines(tmp_path / 'problems.jsonl')
  assert [(r['group'], r['instance']) for r in rows[::4]] == [
      (i // 2, i % 2) for i in range(10)]
  even, odd = (np.mean([r['correct'] for r in rows if r['instance'] == k])
               for k in (0, 1))
  assert even != odd  # the warm start is right in about a half
  assert final['accuracy_over_sets'] == {
      'mean': pytest.approx((even + odd) / 2),
      'deviation': pytest.approx(abs(even - odd) / 2), 'sets': 2}
  assert 'Over the 2 sets' in (tmp_path / 'report.md').read_text()


def test_no_accuracy_over_one_set_or_none():
  e = word_problems.Task().example('test', 0)
  over = lambda *instances: evaluate._over_sets(
      [dataclasses.replace(e, instance=i) for i in instances],
      [True] * len(instances))
  assert over(0, 1) == {'mean': 1.0, 'deviation': 0.0, 'sets': 2}
  assert over(0, 0) is over(-1, -1) is over(-1, 0, 1) is None


def test_gold_decisions_are_the_gold_relevance():
  c = small(hrpo.get_config('smoke'))
  c.eval.decisions = 'gold'
  c.eval.examples = c.eval.batch = 20
  s = sections(c)
  parts = factories.parts(s)
  params = factories.initial_params(s, parts)
  summary = evaluate.evaluate(params, parts, evaluate.Plan(
      split='test', examples=20, sampling=s['eval'], seed=0,
      clock=evaluate.make_clock(s['clock'], parts, lambda: params)))
  # A random policy reaches every chunk by its caps.
  assert summary['skip_precision'] == summary['skip_recall'] == 1.0


def test_measured_clock():
  c = small(hrpo.get_config('smoke'))
  c.clock.measure = True
  s = sections(c)
  parts = factories.parts(s)
  clock = evaluate.make_clock(
      s['clock'], parts, lambda: factories.initial_params(s, parts))
  assert clock.source == 'measured' and 0 < clock.sigma < clock.tau < 1


def test_changed_config_is_refused(tmp_path):
  c = small(hrpo.get_config('smoke'))
  workdir.prepare(tmp_path, c.to_dict(), 'test')
  workdir.prepare(tmp_path, c.to_dict(), 'test')
  c.advantage.lam = 0.25
  with pytest.raises(ValueError, match=r'advantage.lam: 0.5 -> 0.25'):
    workdir.prepare(tmp_path, c.to_dict(), 'test')


def test_non_finite_stops_and_keeps_the_batch(tmp_path, monkeypatch):
  c = small(sft.get_config('smoke'))
  c.eval.examples = c.eval.batch = 2
  begun = start(c, tmp_path, devices=jax.devices()[:1])
  own = train.update

  def poisoned(state, *args, **kwargs):  # as if the last update had overflown
    return own(state.replace(params=jax.tree.map(
        lambda a: jnp.full_like(a, jnp.nan), state.params)), *args, **kwargs)

  monkeypatch.setattr(train, 'update', poisoned)
  with pytest.raises(FloatingPointError, match='step 1: loss=nan'):
    train.train(begun)
  saved = np.load(tmp_path / 'nonfinite_step1.npz')
  assert saved['.target.tokens'].shape[0] == c.data.prompts


def test_a_destroyed_model_is_not_saved(tmp_path, monkeypatch):
  """The last update's parameters are checked, though no loss follows."""
  c = small(sft.get_config('smoke'))
  c.steps, c.eval.examples, c.eval.batch = 1, 2, 2
  own = train.update

  def destroy(state, *args, **kwargs):
    state, metrics = own(state, *args, **kwargs)
    return state.replace(params=dict(
        state.params, final_norm=state.params['final_norm'] + jnp.inf)), metrics

  monkeypatch.setattr(train, 'update', destroy)
  with pytest.raises(FloatingPointError, match='step 1: .*in final_norm; '
                     'the newest checkpoint is step 0'):
    train.train(start(c, tmp_path, devices=jax.devices()[:1]))
  for name in ('model.safetensors', 'report.md', 'eval.json',
               'checkpoints/1'):
    assert not (tmp_path / name).exists()


def test_an_update_that_is_not_finite_stops(tmp_path, monkeypatch):
  c = small(sft.get_config('smoke'))
  c.eval.examples = c.eval.batch = 2
  begun = start(c, tmp_path, devices=jax.devices()[:1])
  monkeypatch.setattr(train.optim, 'schedule',
                      lambda *args, **kwargs: lambda step: float('inf'))
  with pytest.raises(FloatingPointError, match='step 1: update_norm='):
    train.train(begun)


def test_a_start_that_is_not_finite_is_refused(tmp_path):
  c = small(sft.get_config('smoke'))
  s = sections(c)
  parts = factories.parts(s)
  params = jax.tree.map(np.array, factories.initial_params(s, parts))
  params['layers']['gate'][0, 0, 0] = np.nan
  c.init = str(tmp_path / 'model.safetensors')
  weights.save(pathlib.Path(c.init), params, parts.model_config)
  with pytest.raises(ValueError, match=r'init=.* not finite in layers/gate'):
    start(c, tmp_path / 'run', devices=jax.devices()[:1])
  assert not (tmp_path / 'run').exists()


def test_bfloat16_rolls_out_and_trains(tmp_path):
  """What was sampled is scored alike, to bfloat16's precision."""
  c = small(hrpo.get_config('smoke'))
  c.reward.user = 'tests.run.train_test:varied'
  c.model.dtype, c.eval.at_start = 'bfloat16', False
  run(c, tmp_path)
  steps = [r for r in lines(tmp_path / 'metrics.jsonl')
           if r['kind'] == 'train']
  assert len(steps) == 2
  for row in steps:
    assert 0 < row['mismatch/mean'] < 0.03 and row['mismatch/max'] < 0.5
    assert row['grad_norm'] > 0 and np.isfinite(row['loss'])
  flat = load_file(tmp_path / 'model.safetensors')
  assert {a.dtype for a in flat.values()} == {np.dtype(np.float32)}


def test_bfloat16_scores_near_float32():
  """The same step in both dtypes: the losses agree to bfloat16's precision."""
  losses = []
  for dtype in ('float32', 'bfloat16'):
    c = small(sft.get_config('smoke'))
    c.model.dtype = dtype
    parts = factories.parts(sections(c))
    method = factories.method(sections(c), parts)
    params = factories.initial_params(sections(c), parts)
    batch = method.collect(params, step=0, cursor=0).batch
    from adasr_jax.learn.update import logps
    logp = logps(params, batch.source, batch.target,
                 model_config=parts.model_config,
                 protocol=parts.protocol, temperature=1.0)
    assert logp.dtype == jnp.float32
    losses.append(float(-(logp * batch.mask).sum() / batch.mask.sum()))
  assert losses[0] == pytest.approx(losses[1], rel=1e-2)
  assert losses[0] != losses[1]
