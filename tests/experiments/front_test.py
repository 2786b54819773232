"""Fronts: which points no other one beats, and what lies between them."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from adasr_jax.core.types import Example, Given, Target
from adasr_jax.credit import rewards
from adasr_jax.policy.transcript import Transcript
from experiments.front import anatomy
from experiments.front import figures
from experiments.front import prune
from experiments.front import run
from experiments.front import trials


def point(tokens, accuracy):
  return {'tokens_total': tokens, 'accuracy': accuracy}


def test_front_leaves_out_what_another_point_beats():
  points = [point(50, .8), point(40, .7), point(45, .65), point(40, .6),
            point(60, .8)]
  assert figures.front(points, 'tokens_total') == [point(40, .7), point(50, .8)]


def test_between_two_points_accuracy_is_interpolated():
  points = [point(40, .7), point(50, .8), point(44, .1)]
  assert run.at_tokens(points, 45) == pytest.approx(.75)
  assert run.at_tokens(points, 50) == pytest.approx(.8)
  assert run.at_tokens(points, 39) is None
  assert run.at_tokens(points, 51) is None
  assert run.at_tokens([], 45) is None
  assert run.at_tokens([point(40, .7), point(50, .6)], 45) == .7


def test_settings_differ_and_each_method_is_swept():
  every = run.settings()
  assert len({(s.method, s.value) for s in every}) == len(every)
  assert {s.method for s in every} == set(run.METHODS)
  assert all(96 == int(dict(f.split('=') for f in flags)['data.prompts'])
             * int(dict(f.split('=') for f in flags)['rollout.samples'])
             for flags, _, _ in run.METHODS.values())


def finished(workdir, accuracy, tokens, generated=7):
  workdir.mkdir(parents=True)
  (workdir / 'eval.json').write_text(json.dumps({'final': {
      'accuracy': accuracy, 'tokens_total': tokens, 'skip_recall': 1.0,
      'skip_precision': 1.0,
      'latency_s': {'end': .5}}}))
  (workdir / 'problems.jsonl').write_text(''.join(
      json.dumps({'id': str(i), 'correct': i < 10 * accuracy}) + '\n'
      for i in range(10)))
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(
      {'kind': 'train', 'tokens/generated': generated, 'time/step': 1.0}) + '\n'
      for _ in range(2)))


def every_setting_finished(runs, steps, seeds):
  """Later methods are better."""
  for setting in run.settings():
    for seed in seeds:
      finished(runs.trained(setting, steps, seed),
               list(run.METHODS).index(setting.method) / 10, 44)


def test_halving_keeps_the_best_and_what_they_are_compared_with(tmp_path):
  runs = run.Runs(pathlib.Path(tmp_path))
  every_setting_finished(runs, 60, (0,))
  kept = run.kept(runs, 'long')
  assert {s.method for s in kept} == {*run.BASES, *list(run.METHODS)[-2:]}
  assert len(kept) == 3 * (len(run.BASES) + run.KEPT)


def test_the_best_is_tested_beside_itself_with_the_credit_of_grpo(
    tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'BASES', ('grpo 8x12', 'stage'))
  runs = run.Runs(pathlib.Path(tmp_path))
  every_setting_finished(runs, 200, (0, 1))
  kept = run.kept(runs, 'test')
  best = list(run.METHODS)[-1]
  assert [s.method for s in kept] == [*run.BASES, 'grpo, alpha 1', best]
  same, best = kept[-2:]
  assert same.value == best.value
  assert ({*best.flags()} - {*same.flags()}
          == {'--config.advantage.granularity=sentence'})


def test_a_setting_within_the_tokens_goes_before_a_better_one(tmp_path):
  runs = run.Runs(pathlib.Path(tmp_path))
  for value, accuracy, tokens in ((.1, .9, 50), (.3, .7, 44)):
    finished(runs.trained(run.Setting('grpo', value), 60, 0), accuracy, tokens)
  assert {s.method for s in run.kept(runs, 'long')} == {'grpo'}
  found = run.collect(runs)
  assert [p['accuracy'] for p in found['methods']['grpo']] == [.9, .7]
  at = found['at_45_tokens_after_60_steps']
  assert at['grpo'] == pytest.approx(.7 + .2 / 6) and at['stage'] is None
  assert found['at_45_tokens']['grpo'] is None
  assert 'nan' not in run.table(found)
  # A round that is not read again stays as it was.
  before = {'methods': {'grpo': [{'round': 'screen', 'accuracy': .1},
                                 {'round': 'test', 'accuracy': .2}]},
            'paired_on_test': {'grpo - stage': {}}}
  again = run.collect(runs, ['screen'], before)
  assert [p['accuracy'] for p in again['methods']['grpo']] == [.9, .7, .2]
  assert again['paired_on_test'] == before['paired_on_test']
  for value, accuracy, tokens in ((.1, .9, 50), (.3, .7, 44)):
    finished(runs.trained(run.Setting('grpo', value), 200, 0), accuracy, tokens)
  assert run.kept(runs, 'test') == [run.Setting('grpo', .3)]


def test_pruned_cells_cost_what_their_parts_cost(tmp_path):
  runs = run.Runs(pathlib.Path(tmp_path))
  record = lambda *pairs: {'kinds': [k for k, _ in pairs],
                           'thoughts': [t for _, t in pairs]}
  records = [record(('entity', None), ('gain', '1 + 1 = 2'), ('scene', None)),
             record(('entity', '2'), ('entity', None), ('unit', None))]
  assert prune.quality(records) == {
      'entity_skipped': pytest.approx(2 / 3), 'needed_skipped': .5}
  start = prune.SCHEMES['round 1'].rl
  finished(runs.trained(start, 60, 0), .7, 43, generated=30)
  for name in ('round_1', 'round_2'):
    for split in ('', '_test'):
      finished(tmp_path / f'pruned_{name}_s0{split}', .9, 42)
    (tmp_path / f'pruned_{name}_s0.json').write_text(
        json.dumps({'sampled': 1000}))
  for i, name in enumerate(('stage', 'grpo')):
    setting = prune.BESIDE[name]
    finished(runs.trained(setting, 200, 0), .7, 44, generated=100 + i)
    finished(runs.workdir(setting, 'test', 0), .7, 44)
  found = prune.collect(runs, range(2))
  assert [(p['name'], p['split']) for p in found['points']] == [
      (name, split) for split in ('validation', 'test')
      for name in ('round 1', 'round 2', 'stage', 'grpo')]
  assert [p['generated'] for p in found['points']] == [
      1030, 2030, 100, 101] * 2
  assert set(found['paired_on_test']) == {
      'round 2 - round 1', 'round 2 - stage', 'round 2 - grpo',
      'round 1 - stage', 'round 1 - grpo', 'stage - grpo'}
  assert 'nan' not in prune.table(found)


def test_fresh_problems_are_the_later_ones(tmp_path, monkeypatch):
  monkeypatch.setattr(prune, 'SEEN', 5)
  runs = run.Runs(pathlib.Path(tmp_path))
  for name, accuracy in (('round 3', .9), ('stage', .6)):
    for seed in range(2):
      finished(prune.fresh_workdir(runs, name, seed), accuracy, 42)
  found = prune.fresh(runs, range(5))
  assert [(p['name'], p['seeds'], p['n'], p['accuracy'])
          for p in found['points']] == [
              ('round 3', [0, 1], 10, .8), ('stage', [0, 1], 10, .2)]
  difference, = found['paired'].values()
  assert difference['by_seed'] == pytest.approx([.6, .6])


def test_trials_change_what_they_say(monkeypatch):
  monkeypatch.setattr(rewards, 'utility', rewards.utility)
  cost = np.array([[1., 2, 3], [1, 2, 3]])
  right = np.array([[True] * 3, [True, True, False]])
  how = dict(shaping='relative', budget=1.0)
  assert rewards.utility(cost, right, **how).any(1).tolist() == [True, True]
  trials.set_up('once')
  assert rewards.utility(cost, right, **how).tolist() == [[1, .5, 0], [0] * 3]


def test_continuations_keep_whole_thoughts():
  phase = np.array([[0, 1, 1, 2, 3, 0]] * 4)
  fields = dict.fromkeys((f.name for f in dataclasses.fields(Target)), None)
  root = Target(**fields | dict(
      tokens=np.arange(24).reshape(4, 6), phase=phase,
      valid=np.arange(6) < np.full((4, 1), 5)))
  given, kept = trials._begun(root, np.array([2] * 4), 3,
                              np.random.default_rng(0))
  assert given.tokens.shape == (12, 6)
  assert set(given.length) <= {1, 3} and len(set(given.length)) == 2
  np.testing.assert_array_equal(kept.sum(1), given.length)
  assert not kept[:, 5].any()


def test_the_first_policy_draws_one_token():
  fields = dict.fromkeys((f.name for f in dataclasses.fields(Target)), None)
  other = Target(**fields | dict(tokens=10 + np.arange(8).reshape(2, 4)))
  given, drawn = trials._with_next(
      Given(tokens=np.arange(8).reshape(2, 4), length=np.array([1, 3])), other)
  assert given.length.tolist() == [2, 4]
  assert given.tokens.tolist() == [[0, 11, 2, 3], [4, 5, 6, 17]]
  assert drawn.tolist() == [[False, True, False, False],
                            [False, False, False, True]]


def test_problems_on_which_all_agree_come_first():
  right = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]])
  assert trials.agreeing(right).tolist() == [2, 4, 1, 0, 3]


def test_anatomy_of_a_problem():
  example = lambda *kinds: Example(
      id=1, preamble='', chunks=('',) * len(kinds), answer='', kinds=kinds)
  said = lambda *thoughts: Transcript(
      **dict.fromkeys((f.name for f in dataclasses.fields(Transcript)), None)
      | {'thoughts': thoughts})
  running, units = example('gain', 'entity'), example('entity', 'unit')
  assert [anatomy.family(e) for e in (
      running, units, example('more', 'scene'))] == list(anatomy.FAMILIES)
  found = anatomy.errors(
      [running, running, units], [said('1', None), said('1', '2'),
                                  said(None, '3')],
      np.array([True, False, False]))
  assert (found['errors'], found['errors_with_thought']) == (2, 1)
  assert found['families']['running'] == {
      'no thought': {'n': 1, 'accuracy': 1.0},
      'some thought': {'n': 1, 'accuracy': 0.0}}
  assert found['families']['comparison']['no thought'] == {
      'n': 0, 'accuracy': None}
  # A thought that was never reached is none that was skipped.
  share = anatomy.decisions(
      [running, units], [said(None, None), said('1'), said(None, None),
                         said(None, None)], 2)
  assert share == {'sentences': 2, 'mean': .75, 'under': 0, 'between': 1,
                   'over': 1}
