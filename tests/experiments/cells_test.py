"""The cells of experiments/distill build, and are summarised as they say."""

import ast
import importlib
import json

import jax
import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.core import protocol
from adasr_jax.learn import METHODS
from adasr_jax.run import factories
from experiments.distill import imitate
from experiments.distill import run

SMOKE = [False, True]


def recorded(monkeypatch, smoke):
  """What would run: workdir -> (config, flags), in order."""
  found = {}
  monkeypatch.setattr(
      run.cells, 'run', lambda workdir, config, *flags, program:
      found.setdefault(workdir.name, (config, flags)))
  runs = run.Runs(run.pathlib.Path('runs/none'), smoke)
  for cell in run.CELLS:
    runs.run_cell(cell, 1)
  return found


def built(config, flags):
  """The config that the main program would see."""
  file, _, argument = config.partition(':')
  c = importlib.import_module(
      f'configs.{file.removesuffix(".py")}').get_config(argument)
  for flag in flags:
    name, _, text = flag.removeprefix('--config.').partition('=')
    node, *rest = reversed(name.split('.'))
    section = c
    for part in reversed(rest):
      section = section[part]
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = text
    assert node in section, flag  # a typo
    section[node] = value
  return c


@pytest.mark.parametrize('smoke', SMOKE)
def test_every_run_has_a_config_that_works(monkeypatch, smoke):
  monkeypatch.setitem(METHODS, 'imitate', imitate.ENTRY)
  found = recorded(monkeypatch, smoke)
  assert len(found) == len(run.CELLS) + len(run.TEACHERS) + 1  # hrpo_s0
  for config, flags in found.values():
    c = built(config, flags)
    s = config_lib.validate(c, files=False)
    assert (s['run'].steps == 2) == smoke
    assert not s['eval'].at_start


def test_a_teacher_is_trained_before_its_students(monkeypatch):
  found = recorded(monkeypatch, False)
  order = list(found)
  for cell in run.CELLS:
    if not cell.teacher:
      continue
    teacher = ('hrpo_s0' if cell.teacher == run.HRPO
               else f'teacher_{cell.teacher}')
    assert order.index(teacher) < order.index(f'{cell.name}_s1')
    c = built(*found[f'{cell.name}_s1'])
    assert c.teacher.init == f'runs/none/{teacher}'
    reads = built(*found[teacher]).sft.reads
    assert c.teacher.reads == reads
    assert (reads == 'all') == cell.teacher.endswith('foresight')
  same = built(*found['sft_s1'])
  assert same.data.prompts == 96 and same.data.teacher.skip == ()
  assert built(*found[f'power0.1_{run.BEST}_s1']).distill.alpha == 0.1


def test_what_a_teacher_writes_is_imitated(monkeypatch):
  monkeypatch.setitem(METHODS, 'imitate', imitate.ENTRY)
  c = built('sft.py:smoke,traces=perfect', [
      '--config.method=imitate',
      '--config.init=experiments/warm_start/model.safetensors',
      '--config.teacher.init=experiments/demo/model.safetensors'])
  s = config_lib.validate(c)
  with jax.set_mesh(factories.mesh(s, jax.devices()[:1])):
    parts = factories.parts(s)
    written = imitate.Written(s, parts)
    examples = parts.data.train(0, 3)
    target = written.traces(examples)
    again = written.traces(examples[1:])
  np.testing.assert_array_equal(target.tokens[1:], again.tokens)
  traces = parts.data.traces(examples)
  assert target.tokens.shape != traces.tokens.shape or (
      target.tokens != traces.tokens).any()
  # What is learned is what the teacher chose, not what is forced.
  assert (target.logp[target.sampled] < 0).any()
  assert not target.sampled[target.stage == protocol.PREFIX].any()


def test_names_of_only():
  teachers, some = run.chosen('C,hrpo,same_stream')
  assert teachers == ['same_stream']
  assert [c.name for c in some][0] == 'hrpo'
  assert {c.groups for c in some} == {'C', 'D'}
  assert run.chosen('') == ([], run.CELLS)
  with pytest.raises(ValueError, match="'power' is not one of A, B"):
    run.chosen('D,power')


def write(workdir, accuracy, norms, seconds, correct):
  workdir.mkdir(parents=True)
  (workdir / 'eval.json').write_text(json.dumps({'final': {
      'accuracy': accuracy, 'accuracy_ci95': [0.1, 0.9], 'tokens_total': 30.0,
      'tokens_deep': 5.0, 'latency_s': {'end': 0.5}, 'skip_precision': 1.0,
      'skip_recall': 0.75}}))
  rows = [{'step': i + 1, 'kind': 'train', 'grad_norm': g, 'entropy': 0.1 * i,
           'time/step': t, 'teacher_reward_peak': 0.5,
           'teacher_reward_variance/slots_0_7': 0.25}
          for i, (g, t) in enumerate(zip(norms, seconds))]
  rows.insert(1, {'step': 1, 'kind': 'eval', 'eval/accuracy': accuracy + 0.1,
                  'eval/tokens_total': 40 * accuracy})
  (workdir / 'metrics.jsonl').write_text(
      ''.join(json.dumps(r) + '\n' for r in rows))
  (workdir / 'problems.jsonl').write_text(''.join(
      json.dumps({'id': i, 'correct': c}) + '\n'
      for i, c in enumerate(correct)))
  (workdir / 'config.json').write_text(json.dumps({
      'sft': {'reads': 'stream'}, 'steps': 3,
      'model': {'num_layers': 6, 'd_model': 160}}))


def test_a_cell_over_its_seeds(tmp_path):
  cell = run.Cell('c', 'A', teacher='large_stream')
  runs = run.Runs(tmp_path, True)
  assert run.of_cell(cell, runs, 3) is None
  write(tmp_path / 'teacher_large_stream', 0.9, [1, 1, 1], [50, 4, 6], [1])
  write(tmp_path / 'c_s0', 0.5, [1, 3, 4], [20, 1, 2], [1, 0, 1, 0])
  write(tmp_path / 'c_s2', 0.75, [3, None, 40], [30, 2, 3], [1, 0, 1, 1])
  (tmp_path / 'c_s2' / 'teacher.json').write_text(json.dumps(
      {'final': {'reverse_kl/deep': 0.25, 'reverse_kl/streaming': None}}))
  got = run.of_cell(cell, runs, 3)
  assert got['seeds'] == [0, 2] and got['accuracy_per_seed'] == [0.5, 0.75]
  assert got['accuracy'] == 0.625
  # Means over seeds are 2, 3 (one seed has none) and 22; not (2 + 3.5) / 2.
  assert got['grad_norm'] == 3 and got['grad_norm_max'] == 40
  # Without the first step: (3 + 5) / 2; not (23 + 35) / 2.
  assert got['seconds'] == 4 and got['teacher_seconds'] == 10
  assert got['step_s'] == 2.5 and got['entropy_end'] == pytest.approx(0.1)
  assert got['validation'] == {'1': pytest.approx(0.725)}
  assert got['steps_to_goal'] == [None, 1]
  assert got['reward_peak'] == 0.5
  assert got['held_out'] == {'reverse_kl/deep': 0.25}
  # Three of the four problems have one result in both seeds: little is
  # independent of the problem.
  low, high = got['accuracy_ci95']
  assert low < 0.625 < high and high - low > 0.5
  teacher = run.of_teacher('large_stream', runs)
  text = run.table({'teachers': [teacher], 'cells': [got]})
  assert '| large_stream | 6 | 160 | stream | 3 | 10 |' in text
  assert '| 0.500, 0.750 | 30.0 | 0.50 | 3 (40) | 0.25 / – |' in text
  assert '| – / 0.250 | – / – |' in text


def test_an_entry_of_more_seeds_stays(tmp_path):
  runs = run.Runs(tmp_path, False)
  for name, right in (('sft_often', [1, 1]), ('hrpo', [1, 0]),
                      ('sft_fast', [0, 0])):
    write(tmp_path / f'{name}_s0', 0.5, [1, 3, 4], [20, 1, 2], right)
  before = {'commit': 'old', 'cells': [{'name': 'hrpo', 'seeds': [0, 1]},
                                       {'name': 'sft', 'seeds': [0]},
                                       {'name': 'sft_often', 'seeds': [0]}]}
  got = run.collect(runs, 3, before)
  assert [(c['name'], c['seeds'], c['commit'] == 'old')
          for c in got['cells']] == [
      ('hrpo', [0, 1], True), ('sft', [0], True), ('sft_fast', [0], False),
      ('sft_often', [0], False)]
  assert got['cells'][-1]['steps_to_goal'] == [None]
  assert got['cells'][-1]['seconds_to_goal'] == [None]
  assert [(d['name'], d['difference']) for d in got['paired']] == [
      ('sft_fast - hrpo', -0.5)]
  assert json.loads(json.dumps(run.collect(runs, 3, got))) == json.loads(
      json.dumps(got))


def test_a_failed_cell_does_not_stop_the_others(monkeypatch, tmp_path):
  seen = []
  def fake(workdir, config, *flags, program):
    seen.append(workdir.name)
    if workdir.name == 'sft_s0':
      raise run.subprocess.CalledProcessError(1, 'main')
  monkeypatch.setattr(run.cells, 'run', fake)
  monkeypatch.setattr(run.sys, 'argv', [
      'run', '--only=sft,sft_few', '--seeds=2', '--smoke',
      f'--out={tmp_path / "runs"}'])
  (tmp_path / 'runs_smoke').mkdir()
  with pytest.raises(SystemExit, match='sft, seed 0: exit status 1'):
    run.main()
  assert seen == ['sft_s0', 'sft_few_s0', 'sft_s1', 'sft_few_s1']


def test_series_without_a_value(tmp_path):
  write(tmp_path / 'w', 0.5, [1, None, 4], [9, 1, 2], [1])
  norms = run.cells.series(tmp_path / 'w', 'grad_norm')
  np.testing.assert_array_equal(norms, [1, np.nan, 4])
  assert np.isnan(run.cells.series(tmp_path / 'w', 'none')).all()
  assert run.cells.seconds(tmp_path / 'w') == 3


def test_the_interval_over_seeds():
  # t(0.975, 2) = 4.303; the standard deviation of 1, 2, 3 is 1.
  low, high = run.cells.over_seeds([1., 2., 3.])
  assert (high - low) / 2 == pytest.approx(4.303 / 3**.5, rel=1e-3)
  assert (high + low) / 2 == pytest.approx(2.)
  assert run.cells.over_seeds([1.]) is None
