"""A report is written anew, beside other runs."""

import json

import pytest

from adasr_jax.tools import compare


def a_run(path, name, accuracy):
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(
      {'command': 'c', 'method': 'hrpo', 'name': name}))
  if accuracy is not None:
    (path / 'eval.json').write_text(json.dumps({'final': {
        'n': 10, 'accuracy': accuracy, 'accuracy_ci95': [.1, .9],
        'tokens_total': 20., 'tokens_streaming': 15., 'tokens_deep': 5.,
        'latency_s': {'end': .5}, 'split': 'test'}}))
  return path


def test_finished_runs_beside_each_other(tmp_path, capsys):
  a, b = (a_run(tmp_path / n, n.upper(), x) for n, x in (('a', .25), ('b', .5)))
  compare.main([f'--of={a}', f'--beside={b}'])
  assert capsys.readouterr().out.strip() == str(a / 'report.md')
  text = (a / 'report.md').read_text()
  assert '# A' in text and '| B |' in text and '0.500' in text
  compare.main([f'--of={a}'])
  assert '| B |' not in (a / 'report.md').read_text()


def test_runs_of_one_name_are_told_apart(tmp_path):
  a, b = (a_run(tmp_path / n, 'HRPO', x) for n, x in (('a', .25), ('b', .5)))
  report = compare.compare(a, [b])
  assert '| HRPO (b) |' in report.read_text()


def test_a_run_that_was_stopped_has_a_report(tmp_path):
  stopped = a_run(tmp_path / 'a', 'A', None)
  (stopped / 'metrics.jsonl').write_text(json.dumps(
      {'step': 1, 'kind': 'train', 'loss': 0.5, 'entropy': 0.1}) + '\n')
  compare.main([f'--of={stopped}'])
  assert (stopped / 'learning_curves.png').is_file()


@pytest.mark.parametrize('of,beside,says', [
    ('none', '', 'of=.*none.*no config.json'),
    ('a', 'b', 'beside=.*b.*no final evaluation')])
def test_what_cannot_be_shown(of, beside, says, tmp_path):
  a_run(tmp_path / 'a', 'A', .5)
  a_run(tmp_path / 'b', 'B', None)
  with pytest.raises(SystemExit, match=says):
    compare.main([f'--of={tmp_path / of}',
                 f'--beside={tmp_path / beside}' if beside else '--beside='])
  assert not (tmp_path / 'a' / 'report.md').exists()
