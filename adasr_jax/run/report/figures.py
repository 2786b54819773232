"""Figures of a report. Each draws nothing where its data are missing."""

from __future__ import annotations

from collections.abc import Callable
import functools
import pathlib
from typing import Any

from adasr_jax.core import files
from adasr_jax.learn import distill
from adasr_jax.run.report import tables

# Okabe and Ito's colours, which colour-blind readers can distinguish.
_BLUE, _ORANGE, _GREEN = '#0072B2', '#D55E00', '#009E73'
_PALE = {_BLUE: '#BFDCEC', _ORANGE: '#F5D7BF'}
_MARKERS = (('s', '#E69F00'), ('^', '#CC79A7'), ('v', '#56B4E9'),
            ('P', '#000000'), ('X', '#A08000'))
_STYLE = {'font.size': 10, 'axes.titlesize': 11, 'axes.spines.top': False,
          'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.3,
          'axes.axisbelow': True, 'legend.frameon': False, 'savefig.dpi': 150}

# Title, key in a training record, key in an evaluation record.
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

# Title, prefix of the keys in a training record, their ends: one curve each.
_PHASES = ('streaming', 'deep')
_TEACHER_PANELS = (
    ('KL from the teacher (nats)', 'teacher_kl/', _PHASES),
    ('divergence', 'divergence/', _PHASES),
    ('reward', 'teacher_reward/', _PHASES),
    ('reward variance by slot', 'teacher_reward_variance/slots_',
     [name for name, *_ in distill.SLOTS]))
_CYCLE = (_BLUE, _ORANGE, _GREEN, '#CC79A7', '#000000')


def _figure(width, height, *grid):
  """A figure and its axes; without pyplot, which has global state."""
  from matplotlib.figure import Figure
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(*grid, squeeze=False)


def _styled(draw: Callable[..., None]) -> Callable[..., None]:
  """Decorates a function to draw in the common style."""
  @functools.wraps(draw)
  def styled(*args):
    import matplotlib
    with matplotlib.rc_context(_STYLE):
      draw(*args)
  return styled


def _save(figure, path):
  files.whole(path, lambda new: figure.savefig(new, format='png'))


def _smooth(values, window):
  """Centred moving average; shorter windows at both ends."""
  import numpy as np
  kernel = np.ones(min(window, len(values)))
  total = np.convolve(values, kernel, 'same')
  return total / np.convolve(np.ones(len(values)), kernel, 'same')


@_styled
def learning_curves(records: list[dict[str, Any]], path: pathlib.Path
                    ) -> None:
  """One panel per logged quantity, over the steps.

  Args:
    records: Of metrics.jsonl.
    path: PNG file to write.
  """
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
  _save(figure, path)


@_styled
def beside_teacher(records: list[dict[str, Any]], path: pathlib.Path) -> None:
  """A distilled student: its distance from the teacher, and the rewards.

  Args:
    records: Of metrics.jsonl; without a teacher's metrics nothing is drawn.
    path: PNG file to write.
  """
  train = [r for r in records if r.get('kind') == 'train']
  panels = []
  for title, prefix, names in _TEACHER_PANELS:
    curves = {name: [(r['step'], r[prefix + name]) for r in train
                     if r.get(prefix + name) is not None] for name in names}
    curves = {k.replace('_', '–'): list(zip(*v))
              for k, v in curves.items() if v}
    if curves:
      panels.append((title, curves))
  if not panels:
    return
  figure, axes = _figure(3.8 * len(panels), 3.2, 1, len(panels))
  for axis, (title, curves) in zip(axes.flat, panels):
    axis.set_title(title, loc='left')
    for (label, (x, y)), colour in zip(curves.items(), _CYCLE):
      axis.plot(x, _smooth(y, max(1, len(x) // 20) | 1), color=colour, lw=1.5,
                label=label)
    axis.set_xlabel('step')
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axis.legend(fontsize=8)
  _save(figure, path)


@_styled
def accuracy_latency(evals: dict[str, Any], others: dict[str, dict[str, Any]],
                     name: str, path: pathlib.Path) -> None:
  """Accuracy against the reader's wait, from start to final.

  Args:
    evals: eval.json of the run.
    others: Label -> eval.json of each baseline.
    name: Of the run.
    path: PNG file to write.
  """
  points = [(evals.get('start'), f'{name}, start', 'o', 'white', _BLUE),
            (evals.get('final'), f'{name}, final', 'o', _BLUE, _BLUE)]
  for i, (label, other) in enumerate(others.items()):
    marker, colour = _MARKERS[i % len(_MARKERS)]
    points.append((other['final'], label, marker, colour, colour))
  points = [(tables.lookup(s, 'latency_s.end'), s, *rest) for s, *rest in points
            if tables.lookup(s, 'latency_s.end') is not None]
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
    ends = [(tables.lookup(evals[k], 'latency_s.end'), evals[k]['accuracy'])
            for k in ('start', 'final')]
    if all(end is not None for end, _ in ends):
      axis.annotate('', ends[1], ends[0], arrowprops=dict(
          arrowstyle='-|>', color=_BLUE, lw=1.5, shrinkA=7, shrinkB=7),
                    zorder=2)
  axis.set_xlabel('seconds from the last sentence to the end')
  axis.set_ylabel('accuracy (95 % interval)')
  figure.legend(loc='outside right upper')
  _save(figure, path)


@_styled
def thinking_per_sentence(evals: dict[str, Any], path: pathlib.Path) -> None:
  """Mean tokens per kind of sentence, distractors below the others.

  Args:
    evals: eval.json of the run.
    path: PNG file to write.
  """
  from matplotlib.patches import Patch
  shown = [(w, evals[w]['by_kind']) for w in ('start', 'final')
           if tables.lookup(evals, f'{w}.by_kind')]
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
  axis.set_xlabel('mean tokens per sentence')
  figure.legend(handles=[
      Patch(fc=colour if which == 'final' else _PALE[colour], ec=colour,
            label=f'{label}, {which}')
      for label, colour, relevant in (('relevant', _BLUE, True),
                                      ('distractor', _ORANGE, False))
      for which, _ in shown if relevant in known.values()],
      ncols=4, loc='outside upper center', fontsize=9)
  _save(figure, path)
