"""Accuracy against tokens and against waiting, of both kinds of search."""

from __future__ import annotations

import pathlib
from typing import Any

from matplotlib.figure import Figure
import matplotlib
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's colours.
_COLOURS = {'parallel': '#0072B2', 'serial': '#D55E00'}
_STYLE = {'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False,
          'axes.grid': True, 'grid.alpha': 0.3, 'axes.axisbelow': True,
          'legend.frameon': False, 'savefig.dpi': 150}


def _points(results, form, budget, key):
  """x, accuracy and the interval's ends of a policy's budgets, by x."""
  rows = [r for r in results['sweep'].get(f'sft_{form}', ())
          if budget in r['budget']]
  return sorted((r[key], r['accuracy'], *r['accuracy_ci95'])
                for r in (*rows, results['sft'][form]) if rows)


def curves(results: dict[str, Any], path: pathlib.Path) -> None:
  """Two panels: total tokens, and seconds until the answer has ended.

  Args:
    results: Of run.collect.
    path: PNG file to write.
  """
  panels = (('tokens_total', 'tokens of all threads'),
            ('end_s', 'seconds to the end of the answer '
                      '(0.05 s per token)'))
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(11, 4), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (key, label) in zip(axes, panels):
      _panel(axis, results, key)
      axis.set_xlabel(label)
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel('share of test problems solved')
    axes[0].set_xscale('log')
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes[0].xaxis.set_major_formatter('{x:,.0f}')
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[1].set_xlim(0, None)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9,
                  loc='outside right upper')
    figure.savefig(path, format='png')


def _panel(axis, results, key):
  for form, colour in _COLOURS.items():
    for budget, name, line, marker in (
        ('children', 'fewer children', '-', 'o'),
        ('context', 'other numbers of slots', '--', 's')):
      points = _points(results, form, budget, key)
      if not points:
        continue
      x, y, low, high = map(list, zip(*points))
      axis.plot(x, y, line, marker=marker, ms=4.5, lw=1.4, color=colour,
                label=f'{form}, SFT, {name}')
      axis.vlines(x, low, high, color=colour, lw=1, alpha=0.5)
    if after := results['rl'].get(form):
      axis.plot(after[key], after['accuracy'], '*', ms=11, mfc='none',
                color=colour, label=f'{form}, RL')
    many = results['samples'].get(form)
    if many and key == 'tokens_total':
      for name, marker in (('pass', '^'), ('cons', 'v')):
        at = sorted((int(k), v) for k, v in many[f'{name}_at_k'].items())
        axis.plot([k * many['tokens_total'] for k, _ in at],
                  [v for _, v in at], ':', marker=marker, ms=4.5, lw=1,
                  color=colour, mfc='white',
                  label=f'{form}, SFT, {name}@1 to {name}@{at[-1][0]}')
