"""report.md and figures of a run, from the files in its workdir.

Reads config.json, metrics.jsonl, eval.json, samples.jsonl. What a run does not
have (no evaluation at the start, no samples, ...) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import pathlib
import re
from typing import Any

from adasr_jax.run import logs

CURVES, TRADE_OFF, SENTENCES = (
    'learning_curves.png', 'accuracy_latency.png', 'thinking_per_sentence.png')
_SAMPLES = 4  # shown, the newest

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN = '#0072B2', '#D55E00', '#009E73'
_PALE = {_BLUE: '#BFDCEC', _ORANGE: '#F5D7BF'}
_MARKERS = (('s', '#E69F00'), ('^', '#CC79A7'), ('v', '#56B4E9'),
            ('P', '#000000'), ('X', '#A08000'))
_STYLE = {'font.size': 10, 'axes.titlesize': 11, 'axes.spines.top': False,
          'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.3,
          'axes.axisbelow': True, 'legend.frameon': False, 'savefig.dpi': 150}

# Title, key of a training step, key of an evaluation.
_PANELS = (
    ('accuracy', 'reward/accuracy', 'accuracy'),
    ('format rate', 'reward/format', 'format_rate'),
    ('streaming tokens', 'tokens/streaming', 'tokens_streaming'),
    ('deep tokens', 'tokens/deep', 'tokens_deep'),
    ('skip rate', 'skip_rate', 'skip_rate'),
    ('loss', 'loss', None),
    ('entropy (nats)', 'entropy', None),
    ('gradient norm', 'grad_norm', None),
    ('clip fraction', 'clip_fraction', None))

# Label, path in a summary, decimals; those with 1 are no shares.
_ROWS = (
    ('accuracy (95 % interval)', 'accuracy', 3),
    ('format rate', 'format_rate', 3),
    ('skip rate', 'skip_rate', 3),
    ('skip precision', 'skip_precision', 3),
    ('skip recall', 'skip_recall', 3),
    ('streaming tokens', 'tokens_streaming', 1),
    ('deep tokens', 'tokens_deep', 1),
    ('total tokens', 'tokens_total', 1),
    ('to the first deep token (s)', 'latency_s.first_deep_token', 2),
    ('to the first answer token (s)', 'latency_s.first_answer_token', 2),
    ('to the end (s)', 'latency_s.end', 2),
    ('lag of thoughts (s)', 'lag_s', 2),
    ('rows with an answer', 'answered', 3),
    ('rows with a capped thought', 'thoughts_capped', 3),
    ('rows with a capped deep phase', 'answers_capped', 3))


def write_report(workdir: pathlib.Path,
                 baselines: Sequence[pathlib.Path] = ()) -> None:
  """Writes report.md and the figures that it shows into `workdir`.

  Args:
    workdir: Of the run.
    baselines: Other workdirs; the final evaluation of each is shown beside.
  """
  workdir = pathlib.Path(workdir)
  config = logs.read_json(workdir / 'config.json') or {}
  evals = logs.read_json(workdir / 'eval.json') or {}
  others = _baselines(baselines)
  for file in (CURVES, TRADE_OFF, SENTENCES):  # of an older report
    (workdir / file).unlink(missing_ok=True)
  _learning_curves(_lines(workdir / 'metrics.jsonl'), workdir / CURVES)
  _accuracy_latency(evals, others, _name(workdir, config),
                    workdir / TRADE_OFF)
  _thinking_per_sentence(evals, workdir / SENTENCES)
  figures = [(title, file) for title, file in (
      ('Learning curves', CURVES), ('Accuracy and latency', TRADE_OFF),
      ('Thinking per sentence', SENTENCES)) if (workdir / file).exists()]
  parts = [
      f'# {_name(workdir, config)}',
      f'```\n{config["command"]}\n```' if config.get('command') else '',
      _results(evals), _comparison(evals, others),
      *(f'## {title}\n\n![{title}]({file})' for title, file in figures),
      _samples(_lines(workdir / 'samples.jsonl'))]
  (workdir / 'report.md').write_text('\n\n'.join(filter(None, parts)) + '\n')


# ------------------------------------------------------------------- reading
def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.splitlines() if line]


def _name(workdir, config) -> str:
  return config.get('name') or config.get('method') or workdir.resolve().name


def _baselines(paths) -> dict[str, dict[str, Any]]:
  """{label: eval.json} of the baselines that have a final evaluation."""
  out = {}
  for path in map(pathlib.Path, paths):
    evals = logs.read_json(path / 'eval.json') or {}
    if 'final' in evals:
      label = _name(path, logs.read_json(path / 'config.json') or {})
      if label in out:
        label = f'{label} ({path.resolve().name})'
      out[label] = evals
  return out


def _get(summary, path):
  """A value by its dotted path, None where something is missing."""
  for key in path.split('.'):
    summary = (summary or {}).get(key)
  return summary


# ------------------------------------------------------------------- figures
def _figure(width, height, *grid):
  """A figure and its axes; no pyplot, so that no global state is touched."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(*grid, squeeze=False)


def _styled(draw):
  """Runs a drawing function under the style of all figures."""
  def styled(*args):
    import matplotlib
    with matplotlib.rc_context(_STYLE):
      draw(*args)
  return styled


def _smooth(values, window):
  """Centred moving average; shorter windows at both ends."""
  import numpy as np
  kernel = np.ones(min(window, len(values)))
  total = np.convolve(values, kernel, 'same')
  return total / np.convolve(np.ones(len(values)), kernel, 'same')


@_styled
def _learning_curves(records, path):
  """Small multiples of what training and evaluation logged."""
  def series(kind, key):
    points = [(r['step'], r[key]) for r in records
              if r.get('kind') == kind and r.get(key) is not None]
    return list(zip(*points))
  panels = []
  for title, train, evaluated in _PANELS:
    curves = [series('train', train)] + [
        series(split, f'{split}/{evaluated}') for split in ('eval', 'test')]
    if any(curves):
      panels.append((title, curves))
  if not panels:
    return
  columns = min(3, len(panels))
  rows = -(-len(panels) // columns)
  figure, axes = _figure(3.4 * columns, 2.5 * rows + 0.4, rows, columns)
  handles = {}
  for axis, (title, (train, validation, test)) in zip(axes.flat, panels):
    axis.set_title(title, loc='left')
    if train:
      axis.plot(*train, color=_BLUE, alpha=0.3, lw=0.8)
      window = max(1, len(train[0]) // 20) | 1
      handles['training (smoothed)'], = axis.plot(
          train[0], _smooth(train[1], window), color=_BLUE, lw=1.8)
    if validation:
      handles['validation'], = axis.plot(
          *validation, 'o-', color=_ORANGE, ms=4.5, lw=1)
    if test:
      handles['test'], = axis.plot(
          *test, 'D', color=_GREEN, ms=6, mec='white', zorder=3,
          clip_on=False)
    if 'rate' in title or title == 'accuracy':
      axis.set_ylim(-0.03, 1.03)
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
  for axis in list(axes.flat)[len(panels):]:
    axis.set_visible(False)
  for axis in list(axes.flat)[max(0, len(panels) - columns):len(panels)]:
    axis.set_xlabel('step')
  figure.legend(handles.values(), handles.keys(), ncols=3,
                loc='outside upper center')
  figure.savefig(path)


@_styled
def _accuracy_latency(evals, others, name, path):
  """Accuracy against what the reader waits, from start to final."""
  points = [(evals.get('start'), f'{name}, start', 'o', 'white', _BLUE),
            (evals.get('final'), f'{name}, final', 'o', _BLUE, _BLUE)]
  for i, (label, other) in enumerate(others.items()):
    marker, colour = _MARKERS[i % len(_MARKERS)]
    points.append((other['final'], label, marker, colour, colour))
  points = [(_get(s, 'latency_s.end'), s, *rest) for s, *rest in points
            if _get(s, 'latency_s.end') is not None]
  if not points:
    return
  figure, axes = _figure(7.4, 4.2, 1, 1)
  axis = axes[0, 0]
  for x, summary, label, marker, face, edge in points:
    y, (low, high) = summary['accuracy'], summary['accuracy_ci95']
    axis.errorbar(x, y, [[max(0, y - low)], [max(0, high - y)]], fmt=marker,
                  ms=9, mfc=face, mec=edge, mew=1.5, ecolor=edge, capsize=3,
                  elinewidth=1.2, label=label, zorder=3)
  xs = [p[0] for p in points]
  if min(xs) > 0 and max(xs) > 5 * min(xs):
    from matplotlib.ticker import LogLocator, NullFormatter
    axis.set_xscale('log')
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(min(xs) / 1.4, max(xs) * 1.4)
  else:
    axis.set_xlim(0, max(xs) * 1.15 or 1)
  if evals.get('start') and evals.get('final'):
    ends = [(_get(evals[k], 'latency_s.end'), evals[k]['accuracy'])
            for k in ('start', 'final')]
    axis.annotate('', ends[1], ends[0], arrowprops=dict(
        arrowstyle='-|>', color=_BLUE, lw=1.5, shrinkA=7, shrinkB=7), zorder=2)
  axis.set_xlabel('seconds from the last sentence to the end')
  axis.set_ylabel('accuracy (95 % interval)')
  figure.legend(loc='outside right upper')
  figure.savefig(path)


@_styled
def _thinking_per_sentence(evals, path):
  """Mean tokens on each kind of sentence, distractors apart from the rest."""
  from matplotlib.patches import Patch
  shown = [(w, evals[w]['by_kind']) for w in ('start', 'final')
           if _get(evals, f'{w}.by_kind')]
  if not shown:
    return
  known = {k: v['relevant'] for _, kinds in shown for k, v in kinds.items()}
  order = sorted(known, key=lambda k: (not known[k], k))
  place = [i + 0.4 * (not known[k]) for i, k in enumerate(order)]
  figure, axes = _figure(7, 1.4 + 0.5 * len(order), 1, 1)
  axis, height = axes[0, 0], 0.8 / len(shown)
  for i, (which, kinds) in enumerate(shown):
    for y, kind in zip(place, order):
      if kind not in kinds:
        continue
      cell, colour = kinds[kind], _BLUE if known[kind] else _ORANGE
      at = y + (i - (len(shown) - 1) / 2) * height
      axis.barh(at, cell['tokens'], height * 0.92, ec=colour,
                fc=colour if which == 'final' else _PALE[colour])
      axis.annotate(f'{cell["tokens"]:.1f}   {cell["skip_rate"]:.0%} skipped',
                    (cell['tokens'], at), (4, 0), fontsize=8,
                    textcoords='offset points', va='center', color='#404040')
  axis.set_yticks(place, order)
  axis.invert_yaxis()
  axis.grid(axis='y', visible=False)
  axis.set_xlim(0, 1.3 * max(v['tokens'] for _, kinds in shown
                             for v in kinds.values()) or 1)
  axis.set_xlabel('mean tokens on a sentence')
  figure.legend(handles=[
      Patch(fc=colour if which == 'final' else _PALE[colour], ec=colour,
            label=f'{label}, {which}')
      for label, colour, relevant in (('relevant', _BLUE, True),
                                      ('distractor', _ORANGE, False))
      for which, _ in shown if relevant in known.values()],
      ncols=4, loc='outside upper center', fontsize=9)
  figure.savefig(path)


# -------------------------------------------------------------------- tables
def _table(head, rows) -> str:
  lines = [head, ['---'] + ['---:'] * (len(head) - 1), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _number(summary, path, digits) -> str:
  value = _get(summary, path)
  if value is None:
    return '–'
  text = f'{value:.{digits}f}'
  if path == 'accuracy':
    low, high = summary['accuracy_ci95']
    text += f' [{low:.3f}, {high:.3f}]'
  return text


def _change(start, final, path, digits) -> str:
  a, b = _get(start, path), _get(final, path)
  if a is None or b is None:
    return '–'
  share = f' ({(b - a) / a:+.0%})' if digits < 3 and a else ''
  return f'{b - a:+.{digits}f}{share}'


def _results(evals) -> str:
  start, final = evals.get('start'), evals.get('final')
  if not (start or final):
    return 'No evaluation was found.'
  ks = sorted({int(k) for s in (start, final)
               for k in _get(s, 'pass_at_k') or ()})
  metrics = _ROWS + tuple((f'pass@{k}', f'pass_at_k.{k}', 3) for k in ks)
  rows = [[label, _number(start, path, digits), _number(final, path, digits),
           _change(start, final, path, digits)]
          for label, path, digits in metrics
          if _get(start, path) is not None or _get(final, path) is not None]
  settings = evals.get('settings', {})
  about = [f'{_get(final or start, "n")} rollouts'] + [
      f'{k} {settings[k]}' for k in ('split', 'samples', 'temperature',
                                         'decisions')
      if k in settings]
  text = f'## Results\n\n{_table(["", "start", "final", "change"], rows)}\n\n'
  text += ', '.join(about) + '. Seconds count from the last sentence.'
  if clock := settings.get('clock'):
    text += (f' Virtual clock: {clock["words_per_minute"]:g} words a minute, '
             f'{clock["sigma"]:.3g} s a source token, {clock["tau"]:.3g} s a '
             f'target token ({clock.get("source", "given")}).')
  if over := _get(final or start, 'accuracy_over_sets'):
    text += (f'\n\nOver the {over["sets"]} sets of instances the accuracy is '
             f'{over["mean"]:.3f} in mean, with a deviation of '
             f'{over["deviation"]:.3f}.')
  return text


def _comparison(evals, others) -> str:
  """This run beside the baselines; seconds compare on one clock alone."""
  final = evals.get('final')
  if not (final and others):
    return ''
  speeds = lambda e: [_get(e, f'settings.clock.{k}')
                      for k in ('words_per_minute', 'sigma', 'tau')]
  rows = []
  for label, e in {'this run': evals, **others}.items():
    mine, its = (_get(x, 'final.latency_s.end') for x in (evals, e))
    same = speeds(e) == speeds(evals) and mine and its is not None
    rows.append([label] + [_number(e['final'], *column) for column in (
        ('accuracy', 3), ('tokens_total', 1), ('tokens_deep', 1),
        ('latency_s.end', 2))] + [f'{its / mine:.2f}×' if same else '–'])
  return '## Baselines\n\n' + _table(
      ['', 'accuracy (95 % interval)', 'total tokens', 'deep tokens',
       'to the end (s)', 'against this run'], rows) + (
           '\n\nThe last column is left out where the clock was another one.')


# ------------------------------------------------------------------- samples
def _plain(text) -> str:
  """Text as Markdown shows it unchanged, on one line."""
  return re.sub(r'([\\`*_\[\]<>|~$])', r'\\\1', ' '.join(str(text).split()))


def _samples(samples) -> str:
  if not samples:
    return ''
  return '## Samples\n\nDistractors are in italics.\n\n' + '\n\n'.join(
      map(_sample, samples[-_SAMPLES:]))


def _sample(s) -> str:
  rows = []
  for chunk in s['chunks']:
    text = _plain(chunk['text'])
    thought = ('–' if not chunk['tokens'] else '`<skip>`'
               if chunk['thought'] is None else _plain(chunk['thought']))
    rows.append([f'*{text}*' if chunk['relevant'] is False and text else text,
                 thought + (' (cut)' if chunk['cut'] else ''),
                 str(chunk['tokens'])])
  verdict = (f'{"right" if s["correct"] else "wrong"}, '
             f'{"well-formed" if s["format"] else "not well-formed"}')
  lines = [f'### Step {s["step"]}: {verdict}']
  if asked := s.get('preamble') or s.get('question'):
    lines.append(f'**Question:** {_plain(asked)}')
  table = _table(['sentence', 'thought', 'tokens'], rows)
  lines.append(table.replace('| ---: | ---: |', '| --- | ---: |', 1))
  lines.append(f'**Deep:** {_plain(s["deep"]) or "–"}')
  lines.append(f'**Answer:** {_plain(s["answer"]) or "–"} '
               f'(reference {_plain(s["reference"])})')
  if rewards := s.get('rewards'):
    lines.append('Rewards: ' + ', '.join(
        f'{_plain(k)} {v:g}' for k, v in rewards.items()))
  return '\n\n'.join(lines)
