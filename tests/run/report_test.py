"""Reports of synthetic workdirs, complete and with files missing."""

import json

import numpy as np
import pytest

from adasr_jax.run import report

FIGURES = (report.CURVES, report.TRADE_OFF, report.SENTENCES)
KINDS = {'start': True, 'gain': True, 'transfer': True, 'question': True,
         'scene': False, 'entity': False, 'rate': False}


def _summary(accuracy, end, deep, spent):
  return {
      'n': 500, 'problems': 500, 'accuracy': accuracy,
      'accuracy_ci95': [accuracy - 0.041, accuracy + 0.039],
      'format_rate': 0.97, 'skip_rate': 0.3, 'skip_precision': 0.912,
      'skip_recall': None, 'tokens_streaming': 40.0, 'tokens_deep': deep,
      'tokens_total': 40.0 + deep,
      'latency_s': {'first_deep_token': 0.3, 'first_answer_token': end - 0.1,
                    'end': end},
      'lag_s': 0.2, 'answered': 0.99, 'thoughts_capped': 0.01,
      'deep_capped': 0.02, 'pass_at_k': {},
      'by_kind': {k: {'relevant': r, 'n': 100,
                      'skip_rate': 0.1 if r else 1 - spent / 10,
                      'tokens': 8.0 + i / 2 if r else spent + i / 4}
                  for i, (k, r) in enumerate(KINDS.items())}}


def _settings(tau=0.05):
  return {'split': 'test', 'samples': 1, 'temperature': 0.0,
          'clock': {'words_per_minute': 150.0, 'sigma': 0.001, 'tau': tau,
                    'source': 'measured'}}


def _sample(step):
  chunk = dict(tokens=4, relevant=True, cut=False)
  return {
      'step': step, 'preamble': 'how many apples ?', 'question': '',
      'chunks': [
          chunk | {'text': 'tom has 3 | 4 apples .', 'thought': 'tom = *3*'},
          chunk | {'text': 'the sky is blue .', 'thought': None, 'tokens': 1,
                   'relevant': False},
          chunk | {'text': 'he buys 2 .', 'thought': 'so 5', 'cut': True},
          chunk | {'text': 'the end .', 'thought': None, 'tokens': 0,
                   'relevant': None}],
      'deep': 'then 5', 'answer': '5', 'reference': '5', 'correct': True,
      'format': False, 'rewards': {'accuracy': 1.0, 'total': 1.25}}


def write_workdir(path, steps=200):
  """A run as training leaves it."""
  path.mkdir()
  rng = np.random.default_rng(0)
  write = lambda name, value: (path / name).write_text(json.dumps(value))
  write('config.json', {'command': 'python -m adasr_jax.main --config=x.py',
                        'name': 'hrpo', 'method': 'hrpo'})
  write('eval.json', {'start': _summary(0.642, 1.9, 22.0, 6.0),
                      'final': _summary(0.788, 1.4, 16.0, 1.5),
                      'settings': _settings()})
  lines = []
  for step in range(1, steps + 1):
    x = step / steps
    noise = rng.normal(size=8)
    lines.append({
        'step': step, 'kind': 'train',
        'reward/accuracy': float(np.clip(0.6 + 0.2 * x + 0.08 * noise[0],
                                         0, 1)),
        'reward/format': float(np.clip(0.9 + 0.08 * x + 0.03 * noise[1],
                                       0, 1)),
        'tokens/streaming': 45 - 10 * x + 2 * noise[2],
        'tokens/deep': 22 - 6 * x + noise[3], 'skip_rate': 0.2 + 0.2 * x,
        'entropy': 0.5 - 0.2 * x + 0.03 * noise[4], 'loss': 0.02 * noise[5],
        'grad_norm': None if step == 5 else 0.5 + 0.1 * abs(noise[6]),
        'clip_fraction': 0.0, 'unknown/key': 1.0})
    if step % max(1, steps // 5) == 0 and step < steps:
      lines.append({'step': step, 'kind': 'eval',
                    'eval/accuracy': 0.6 + 0.19 * x, 'eval/format_rate': 0.95,
                    'eval/tokens_streaming': 44 - 10 * x,
                    'eval/tokens_deep': 21 - 6 * x, 'eval/skip_rate': 0.3})
  for step, accuracy, deep in ((0, 0.642, 22.0), (steps, 0.788, 16.0)):
    lines.append({'step': step, 'kind': 'test', 'test/accuracy': accuracy,
                  'test/tokens_deep': deep})
  (path / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines))
  (path / 'samples.jsonl').write_text(
      ''.join(json.dumps(_sample(s)) + '\n' for s in (1, 10, 20, 30, 200)))


def write_baseline(path, name, accuracy, end, tau=0.05):
  path.mkdir()
  (path / 'eval.json').write_text(json.dumps(
      {'final': _summary(accuracy, end, 60.0, 6.0),
       'settings': _settings(tau)}))
  (path / 'config.json').write_text(json.dumps({'name': name}))


def test_report_of_a_whole_run(tmp_path):
  write_workdir(tmp_path / 'run', steps=20)
  write_baseline(tmp_path / 'a', 'read-then-think', 0.424, 7.0)
  write_baseline(tmp_path / 'b', 'read-then-think', 0.5, 7.0, tau=0.1)
  report.write_report(tmp_path / 'run', [tmp_path / 'a', tmp_path / 'b'])
  text = (tmp_path / 'run/report.md').read_text()
  for figure in FIGURES:
    assert (tmp_path / 'run' / figure).read_bytes().startswith(b'\x89PNG')
    assert f']({figure})' in text  # relative, so that the folder can move
  for line in (
      'python -m adasr_jax.main --config=x.py',
      '| accuracy (95 % interval) | 0.642 [0.601, 0.681] | '
      '0.788 [0.747, 0.827] | +0.146 |',
      '| deep tokens | 22.0 | 16.0 | -6.0 (-27%) |',
      '| to the end (s) | 1.90 | 1.40 | -0.50 (-26%) |',
      '0.001 s per source token, 0.05 s per target token (measured)',
      # 7 / 1.4; the second has another clock, on which seconds mean nothing.
      '| read-then-think | 0.424 [0.383, 0.463] | 100.0 | 60.0 | 7.00 | '
      '5.00× |',
      '| read-then-think (b) | 0.500 [0.459, 0.539] | 100.0 | 60.0 | 7.00 | '
      '– |',
      '### Step 200: right, not well-formed',
      r'| tom has 3 \| 4 apples . | tom = \*3\* | 4 |',
      '| *the sky is blue .* | `<skip>` | 1 |',
      '| he buys 2 . | so 5 (cut) | 4 |', '| the end . | – | 0 |'):
    assert line in text
  assert 'skip recall' not in text  # undefined in both
  assert '### Step 1:' not in text  # only the newest


def test_report_of_a_distilled_student(tmp_path):
  run = tmp_path / 'run'
  write_workdir(run, steps=2)
  report.write_report(run)
  assert not (run / report.TEACHER).exists()  # another method's run
  assert 'teacher' not in (run / 'report.md').read_text()
  lines = (run / 'metrics.jsonl').read_text()
  (run / 'metrics.jsonl').write_text(lines + ''.join(json.dumps({
      'step': step, 'kind': 'train', 'teacher_kl/streaming': 0.5,
      'teacher_kl/deep': None, 'teacher_reward/streaming': -0.1,
      'teacher_reward_variance/slots_0_7': 0.01}) + '\n' for step in (3, 4)))
  (run / 'teacher.json').write_text(json.dumps({
      'start': {'reverse_kl/streaming': 0.6251, 'top_mass_1/deep': 0.75},
      'final': {'reverse_kl/streaming': 0.125, 'top_mass_1/deep': None},
      'problems': 200, 'split': 'validation'}))
  report.write_report(run)
  text = (run / 'report.md').read_text()
  assert (run / report.TEACHER).read_bytes().startswith(b'\x89PNG')
  for line in ('![Student and teacher](teacher.png)',
               '| KL(student, teacher), streaming | 0.625 | 0.125 |',
               "| mass on the teacher's top token, deep | 0.750 | – |",
               '200 problems (validation)'):
    assert line in text


def test_report_of_threads(tmp_path):
  run = tmp_path / 'run'
  write_workdir(run, steps=2)
  report.write_report(run)
  plain = (run / 'report.md').read_text()
  assert 'hread' not in plain and 'sequential' not in plain
  evals = json.loads((run / 'eval.json').read_text())
  for which, n in (('start', 120.), ('final', 90.)):
    evals[which] |= {'threads': {'tokens_sequential': n, 'children': 6.125},
                     'pass_at_k': {'8': 0.75}, 'cons_at_k': {'8': 0.5}}
  (run / 'eval.json').write_text(json.dumps(evals))
  (run / 'samples.jsonl').write_text(json.dumps(_sample(3) | {
      'threads': ['root: 3 * 4', '  child 1 (7 tokens), 3 + 4 = 7',
                  '    returns nothing']}) + '\n')
  report.write_report(run)
  text = (run / 'report.md').read_text()
  for line in ('| sequential tokens | 120.0 | 90.0 | -30.0 (-25%) |',
               '| children | 6.12 | 6.12 | +0.00 (+0%) |',
               '| cons@8 | 0.500 | 0.500 | +0.000 |',
               '\n\n    root: 3 * 4\n      child 1 (7 tokens), 3 + 4 = 7\n'
               '        returns nothing\n\n'):
    assert line in text
  assert 'calls' not in text  # not measured


def test_report_of_a_policy_that_never_answers(tmp_path):
  run = tmp_path / 'run'
  write_workdir(run, steps=2)
  evals = json.loads((run / 'eval.json').read_text())
  for which, row in (('final', '| to the end (s) | 1.90 | – | – |'),
                     ('start', '')):
    evals[which]['latency_s'] = dict.fromkeys(evals[which]['latency_s'])
    (run / 'eval.json').write_text(json.dumps(evals))
    report.write_report(run)
    assert row in (run / 'report.md').read_text()
  assert 'to the end' not in (run / 'report.md').read_text()


def test_empty_workdir(tmp_path):
  report.write_report(tmp_path)
  assert 'No evaluation' in (tmp_path / 'report.md').read_text()
  assert not any((tmp_path / figure).exists() for figure in FIGURES)


@pytest.mark.parametrize('missing', ['config.json', 'metrics.jsonl',
                                     'samples.jsonl', 'eval.json'])
def test_a_missing_file_leaves_the_rest(tmp_path, missing):
  run = tmp_path / 'run'
  write_workdir(run, steps=2)
  (run / missing).unlink()
  report.write_report(run)
  text = (run / 'report.md').read_text()
  assert (report.CURVES in text) == (missing != 'metrics.jsonl')
  assert (report.TRADE_OFF in text) == (missing != 'eval.json')
  assert (report.SENTENCES in text) == (missing != 'eval.json')
  assert ('## Samples' in text) == (missing != 'samples.jsonl')


def test_run_without_a_start(tmp_path):
  run = tmp_path / 'run'
  write_workdir(run, steps=1)
  evals = json.loads((run / 'eval.json').read_text())
  del evals['start']
  (run / 'eval.json').write_text(json.dumps(evals))
  report.write_report(run)
  text = (run / 'report.md').read_text()
  assert '| deep tokens | – | 16.0 | – |' in text
  assert all((run / figure).exists() for figure in FIGURES)


def test_the_accuracy_over_sets_is_one_line(tmp_path):
  run = tmp_path / 'run'
  write_workdir(run, steps=1)
  report.write_report(run)
  assert 'sets of instances' not in (run / 'report.md').read_text()
  evals = json.loads((run / 'eval.json').read_text())
  evals['final']['accuracy_over_sets'] = {'mean': 0.4125, 'deviation': 0.0312,
                                          'sets': 50}
  (run / 'eval.json').write_text(json.dumps(evals))
  report.write_report(run)
  assert ('Over the 50 sets of instances the mean accuracy is 0.412, with a '
          'deviation of 0.031.') in (run / 'report.md').read_text()


def test_a_killed_report_leaves_no_half_figure(tmp_path, monkeypatch):
  from matplotlib.figure import Figure
  def die(self, path, **kw):
    path.write_bytes(b'half')
    raise KeyboardInterrupt
  monkeypatch.setattr(Figure, 'savefig', die)
  write_workdir(tmp_path / 'run', steps=2)
  with pytest.raises(KeyboardInterrupt):
    report.write_report(tmp_path / 'run')
  assert not list((tmp_path / 'run').glob('*.png'))


def test_a_damaged_line_of_a_log_is_named(tmp_path):
  write_workdir(tmp_path / 'run', steps=2)
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{"step": 1}\n{"st\n')
  with pytest.raises(ValueError, match='metrics.jsonl:2 is damaged'):
    report.write_report(tmp_path / 'run')
