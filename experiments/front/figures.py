"""Accuracy against tokens and against the end, a line per method."""

from __future__ import annotations

import pathlib
from typing import Any

COLOURS = ('#555555', '#E69F00', '#009E73', '#D55E00', '#0072B2', '#CC79A7',
           '#56B4E9', '#8A6D00', '#7B3294', '#B2182B', '#000000', '#999999',
           '#4C9F70')
MARKERS = 'os^Dv<>pXh*Pd'
TITLES = {'screen': 'as many generated tokens as 60 steps',
          'long': 'as many as 200 steps (but for pruned and sampled traces)',
          'test': 'the same'}
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

  A line joins the points of a method that no other one of it beats.

  Args:
    methods: results.json's.
    path: Of the picture.
  """
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  rounds = [r for r in ('screen', 'long', 'test')
            if any(p['round'] == r for ps in methods.values() for p in ps)]
  if not rounds:
    return
  fig, axes = plt.subplots(len(rounds), 2, squeeze=False,
                           figsize=(9.6, 3.6 * len(rounds)),
                           layout='constrained', sharey='row')
  labelled = set()
  for row, of in zip(axes, rounds):
    for axis, (x, label) in zip(row, AXES.items()):
      for colour, marker, (name, points) in zip(
          COLOURS, MARKERS, methods.items(), strict=True):
        mine = sorted((p for p in points if p['round'] == of),
                      key=lambda p: p[x])
        if not mine:
          continue
        y = [p['accuracy'] for p in mine]
        bars = [[v - p['accuracy_ci95'][0] for v, p in zip(y, mine)],
                [p['accuracy_ci95'][1] - v for v, p in zip(y, mine)]]
        axis.errorbar([p[x] for p in mine], y, bars, color=colour,
                      marker=marker, ms=5, lw=0, elinewidth=0.8, capsize=2,
                      alpha=0.85, label=name if name not in labelled else None)
        best = front(mine, x)
        axis.plot([p[x] for p in best], [p['accuracy'] for p in best],
                  color=colour, lw=1, alpha=0.85)
        labelled.add(name)
      axis.set_xlabel(label)
      axis.grid(alpha=0.3)
      axis.spines[['top', 'right']].set_visible(False)
    p = next(p for ps in methods.values() for p in ps if p['round'] == of)
    row[0].set_ylabel(f'accuracy, {p["split"]}')
    row[0].set_title(TITLES[of], loc='left', fontsize=10)
  fig.legend(loc='outside right upper', frameon=False)
  fig.savefig(path, dpi=150)
  plt.close(fig)
