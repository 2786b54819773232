"""Accuracy against tokens and against the end, a line per method."""

from __future__ import annotations

import pathlib
import re
from typing import Any

COLOURS = ('#555555', '#E69F00', '#009E73', '#D55E00', '#0072B2', '#CC79A7',
           '#56B4E9', '#8A6D00', '#7B3294', '#B2182B', '#000000', '#999999',
           '#4C9F70')
MARKERS = 'os^Dv<>pXh*Pd'
TITLES = {'screen': 'as many generated tokens as 60 steps',
          'long': 'as many as 200 steps (but for pruned and sampled traces)',
          'test': 'the same, five seeds'}
KNOBS = {'reward.think_weight': 'β ', 'advantage.lam': 'λ '}
_KNOB = re.compile(f'({"|".join(KNOBS)})=')
AXES = {'tokens_total': 'tokens per problem',
        'end_s': 'seconds from the last sentence to the end'}


def front(points: list[dict[str, Any]], x: str) -> list[dict[str, Any]]:
  """The points that no other one beats in both, by `x`, the least first."""
  out = []
  for p in sorted(points, key=lambda p: (p[x], -p['accuracy'])):
    if not out or p['accuracy'] > out[-1]['accuracy']:
      out.append(p)
  return out


def fronts(methods: dict[str, list[dict[str, Any]]], path: pathlib.Path
           ) -> None:
  """Draws the rounds that have points, one row each.

  On validation a line joins the points of a method that no other one of it
  beats; on test every seed is a dot beside the mean.

  Args:
    methods: results.json's.
    path: Of the picture.
  """
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  rounds = [r for r in TITLES
            if any(p['round'] == r for ps in methods.values() for p in ps)]
  if not rounds:
    return
  fig = plt.figure(figsize=(9.6, 3.6 * len(rounds)), layout='constrained')
  grid = fig.add_gridspec(len(rounds), 2)
  styles = dict(zip(methods, zip(COLOURS, MARKERS, strict=True), strict=True))
  named = {}
  for i, of in enumerate(rounds):
    mine = {m: found for m, points in methods.items()
            if (found := [p for p in points if p['round'] == of])}
    if of == 'test':
      axes = [fig.add_subplot(grid[i, :])]
      _seeds(axes[0], mine, styles)
    else:
      left = fig.add_subplot(grid[i, 0])
      axes = [left, fig.add_subplot(grid[i, 1], sharey=left)]
      axes[1].tick_params(labelleft=False)
      for axis, (x, label) in zip(axes, AXES.items()):
        named |= _curves(axis, x, mine, styles)
        axis.set_xlabel(label)
      left.set_ylabel('accuracy, validation')
    axes[0].set_title(TITLES[of], loc='left', fontsize=10)
    for axis in axes:
      axis.grid(alpha=0.3)
      axis.spines[['top', 'right']].set_visible(False)
  fig.legend(named.values(), named, loc='outside right upper', frameon=False)
  fig.savefig(path, dpi=150)
  plt.close(fig)


def _curves(axis, x, methods, styles):
  """Points with their intervals, fronts joined; {method: its mark}."""
  named = {}
  for name, points in methods.items():
    colour, marker = styles[name]
    y = [p['accuracy'] for p in points]
    named[name] = axis.errorbar(
        [p[x] for p in points], y, _bars(points), color=colour, marker=marker,
        ms=5, lw=0, elinewidth=0.8, capsize=2, alpha=0.85)
    best = front(points, x)
    axis.plot([p[x] for p in best], [p['accuracy'] for p in best],
              color=colour, lw=1, alpha=0.85)
  return named


def _seeds(axis, methods, styles):
  """A line per setting, the best at the top: mean, interval, each seed."""
  points = sorted(((p, m) for m, ps in methods.items() for p in ps),
                  key=lambda x: x[0]['accuracy'])
  for y, (p, m) in enumerate(points):
    colour, marker = styles[m]
    axis.errorbar([p['accuracy']], [y], xerr=_bars([p]), color=colour,
                  marker=marker, ms=6, elinewidth=0.8, capsize=2)
    axis.plot(p['accuracy_per_seed'], [y] * len(p['accuracy_per_seed']), '.',
              color=colour, alpha=0.6, ms=5)
  axis.set_yticks(range(len(points)), [
      '{}, {}'.format(m.partition(' traces')[0], _KNOB.sub(
          lambda found: KNOBS[found[1]], p['setting']))
      for p, m in points], fontsize=8)
  axis.set_xlabel('accuracy, test; dots are seeds')


def _bars(points):
  """[2, n], what the intervals reach to both sides."""
  return [[p['accuracy'] - p['accuracy_ci95'][0] for p in points],
          [p['accuracy_ci95'][1] - p['accuracy'] for p in points]]
