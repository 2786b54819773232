"""Adaptive thinking rewards: fewer tokens score higher, if the answer is right.

Cost stands for compute and latency: c^S = l_S (streaming tokens), c^D = l_D
(deep tokens, answer included), c^G = alpha l_S + l_D, since a streaming
thought overlaps with reading. Within a group, over eligible rollouts (right
and well-formed):

  relative: u_i = (max_j c_j - c_i) / (max_j c_j - min_j c_j), 0 where equal
  budget:   u_i = 1 up to the budget, falling to 0 at twice the budget
  linear:   u_i = -c_i / budget

and 0 for every other rollout: thinking less wins nothing if the answer is
wrong.

Source: AdaSR (arXiv 2606.14694) names a latency-aware thinking reward; all
three forms are ours.
"""

from __future__ import annotations

import numpy as np

SHAPINGS = ('relative', 'budget', 'linear')


def utility(cost: np.ndarray, eligible: np.ndarray, *, shaping: str,
            budget: float) -> np.ndarray:
  """u in [0, 1] ('linear': u <= 0) for each rollout; [P, G] float64.

  Args:
    cost: [P, G] tokens.
    eligible: [P, G] bool.
    shaping: One of SHAPINGS.
    budget: Tokens, > 0; not used by 'relative'.
  """
  cost = np.asarray(cost, np.float64)
  if shaping == 'relative':
    most = np.where(eligible, cost, -np.inf).max(1, keepdims=True)
    least = np.where(eligible, cost, np.inf).min(1, keepdims=True)
    spread = np.where(most > least, most - least, 1.0)
    u = np.where(most > least, (most - cost) / spread, 0.0)
  elif shaping == 'budget':
    u = np.clip(2.0 - cost / budget, 0.0, 1.0)
  elif shaping == 'linear':
    u = -cost / budget
  else:
    raise ValueError(f'shaping={shaping!r} is not one of {SHAPINGS}')
  return np.where(eligible, u, 0.0)
