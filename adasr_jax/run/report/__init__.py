"""report.md and the figures of a run, from the files in its workdir.

Reads config.json, metrics.jsonl, eval.json and samples.jsonl, and teacher.json
where a student was compared with its teacher on held-out problems. What a run
does not have (an evaluation at the start, samples, ...) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
from typing import Any

from adasr_jax.core import files
from adasr_jax.run import logs
from adasr_jax.run.report import figures
from adasr_jax.run.report import tables

CURVES, TRADE_OFF, SENTENCES, TEACHER = (
    'learning_curves.png', 'accuracy_latency.png', 'thinking_per_sentence.png',
    'teacher.png')


def write_report(workdir: pathlib.Path,
                 baselines: Sequence[pathlib.Path] | None = None) -> None:
  """Writes report.md and the figures that it shows into `workdir`.

  Args:
    workdir: Of the run.
    baselines: Other workdirs, whose final evaluations are compared with it;
      None = those of its config.
  """
  workdir = pathlib.Path(workdir)
  config = logs.read_json(workdir / 'config.json') or {}
  evals = logs.read_evaluations(workdir)
  if baselines is None:
    baselines = map(pathlib.Path, config.get('eval', {}).get('baselines', ()))
  name = _name(workdir, config)
  others = _baselines(baselines, name)
  for file in (CURVES, TRADE_OFF, SENTENCES, TEACHER):  # of an older report
    (workdir / file).unlink(missing_ok=True)
  records = logs.read_lines(workdir / 'metrics.jsonl')
  figures.learning_curves(records, workdir / CURVES)
  figures.accuracy_latency(evals, others, name, workdir / TRADE_OFF)
  figures.thinking_per_sentence(evals, workdir / SENTENCES)
  figures.beside_teacher(records, workdir / TEACHER)
  drawn = [(title, file) for title, file in (
      ('Learning curves', CURVES), ('Accuracy and latency', TRADE_OFF),
      ('Thinking per sentence', SENTENCES),
      ('Student and teacher', TEACHER)) if (workdir / file).exists()]
  parts = [
      f'# {name}',
      f'```\n{config["command"]}\n```' if config.get('command') else '',
      tables.results(evals), tables.comparison(evals, others),
      *(f'## {title}\n\n![{title}]({file})' for title, file in drawn),
      tables.beside_teacher(logs.read_json(workdir / 'teacher.json') or {}),
      tables.samples(logs.read_lines(workdir / 'samples.jsonl'))]
  files.write_text(workdir / 'report.md',
                   '\n\n'.join(filter(None, parts)) + '\n')


def _name(workdir, config) -> str:
  return config.get('name') or config.get('method') or workdir.resolve().name


def _baselines(paths, own) -> dict[str, dict[str, Any]]:
  """{label: eval.json} of the baselines that have a final evaluation.

  No label is twice there, or `own`, that of the run.
  """
  out = {}
  for path in map(pathlib.Path, paths):
    evals = logs.read_evaluations(path)
    if 'final' in evals:
      label = _name(path, logs.read_json(path / 'config.json') or {})
      names = label, f'{label} ({path.resolve().name})', f'{label} ({path})'
      label = next((n for n in names if n not in (own, *out)), names[-1])
      out[label] = evals
  return out
