"""Where errors of the harder setting begin, and which policy still hesitates.

  python -m experiments.front.anatomy [--out=runs/front]

Of each of POLICIES (runs of run.py and prune.py, which have to be there):

  errors     greedy on EXAMPLES validation problems: how often is it right where
             it has thought on no sentence about somebody else ('entity'), and
             where on some? How often under the gold decisions?
  decisions  SAMPLES rollouts at temperature 1 of SAMPLED of them: in what share
             is each such sentence skipped?

Writes anatomy.json and anatomy.md beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jax
import numpy as np

from adasr_jax.core.types import Example
from adasr_jax.policy.rollout import SKIP, THINK
from adasr_jax.policy.transcript import Transcript
from adasr_jax.run import metrics
from adasr_jax.tools import own_traces
from experiments import cells

HERE = pathlib.Path(__file__).parent
POLICIES = {'supervised start': 'sft_s0',
            'HRPO, sentence, 60 steps': 'sentence_0.3_60_s0',
            'GRPO, 200 steps': 'grpo_0.3_200_s0',
            'HRPO, stage, 200 steps': 'stage_0.3_200_s0',
            'pruned traces, round 1': 'pruned_round_1_s0',
            'pruned traces, round 3': 'pruned_round_3_s0'}
EXAMPLES, SAMPLED, SAMPLES = 1000, 150, 12
BATCH = 50
FAMILIES = ('running', 'units', 'comparison')
SURE = 0.1


def family(example: Example) -> str:
  """One of FAMILIES; problems of comparison have no entity sentences."""
  kinds = set(example.kinds)
  if 'unit' in kinds:
    return 'units'
  return 'comparison' if kinds & {'more', 'fewer'} else 'running'


def dwells(example: Example, said: Transcript) -> bool:
  """Whether there is a thought on a sentence about somebody else."""
  return any(kind == 'entity' and thought is not None
             for kind, thought in zip(example.kinds, said.thoughts))


def errors(examples: Sequence[Example], said: Sequence[Transcript],
           right: np.ndarray) -> dict[str, Any]:
  """Accuracy by family and by whether the policy dwells; see the module.

  Args:
    examples, said: n problems and their rollouts.
    right: [n] bool.
  """
  thought = np.array([dwells(e, t) for e, t in zip(examples, said)])
  families = np.array([family(e) for e in examples])
  def share(of):
    return {'n': int(of.sum()),
            'accuracy': float(right[of].mean()) if of.any() else None}
  return {
      'accuracy': float(right.mean()),
      'accuracy_ci95': metrics.accuracy_interval(right[:, None]),
      'errors': int((~right).sum()),
      'errors_with_thought': int((~right & thought).sum()),
      'families': {f: {
          'no thought': share((families == f) & ~thought),
          'some thought': share((families == f) & thought)}
                   for f in FAMILIES}}


def decisions(examples: Sequence[Example], said: Sequence[Transcript],
              samples: int) -> dict[str, Any]:
  """In what share of its problem's rollouts each entity sentence is skipped.

  Args:
    examples: P problems.
    said: P * samples rollouts, those of a problem side by side.
    samples: Of each.
  """
  shares = np.array([
      np.mean([k < len(t.thoughts) and t.thoughts[k] is None
               for t in said[p * samples:(p + 1) * samples]])
      for p, e in enumerate(examples) for k, kind in enumerate(e.kinds)
      if kind == 'entity'])
  return {'sentences': len(shares), 'mean': float(shares.mean()),
          'under': int((shares < SURE).sum()),
          'between': int(((SURE <= shares) & (shares <= 1 - SURE)).sum()),
          'over': int((shares > 1 - SURE).sum())}


def looked_at(of: pathlib.Path) -> dict[str, Any]:
  """Both parts of one policy."""
  with own_traces.opened(str(of), problems=1) as policy:
    examples = policy.data.evaluation('validation', EXAMPLES)
    def drawn(some, **how):
      parts = []
      for at in range(0, len(some), BATCH):
        now = {k: v[at:at + BATCH] if k == 'decisions' else v
               for k, v in how.items()}
        parts.append(policy.drawn(
            some[at:at + BATCH], jax.random.fold_in(jax.random.key(0), at),
            size=BATCH, **now))
      return own_traces.joined(parts)
    gold = np.full((EXAMPLES, policy.data.max_chunks), THINK, np.int32)
    for i, e in enumerate(examples):
      gold[i, :len(e.relevant)] = np.where(e.relevant, THINK, SKIP)
    greedy = drawn(examples, samples=1, temperature=0.0)
    told = drawn(examples, samples=1, temperature=0.0, decisions=gold)
    some = examples[:SAMPLED]
    sampled = drawn(some, samples=SAMPLES, temperature=1.0)
  return {**errors(examples, greedy.said, greedy.right),
          'gold': float(told.right.mean()),
          'decisions': decisions(some, sampled.said, SAMPLES)}


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  cell = lambda x: ('–' if x['accuracy'] is None
                    else f'{x["accuracy"]:.3f} ({x["n"]})')
  lines = ['| policy | accuracy [95 %] | under gold decisions | errors, with a '
           'thought on an entity sentence | '
           + ' | '.join(f'{f}: no thought | some' for f in FAMILIES[:2])
           + f' | {FAMILIES[2]} |', '|---|' + '---:|' * 8]
  for name, r in results['policies'].items():
    families = [cell(r['families'][f][x]) for f in FAMILIES[:2]
                for x in ('no thought', 'some thought')]
    lines.append(
        '| {} | {:.3f} [{:.3f}, {:.3f}] | {:.3f} | {}, {} | {} | {} |'.format(
            name, r['accuracy'], *r['accuracy_ci95'], r['gold'], r['errors'],
            r['errors_with_thought'], ' | '.join(families),
            cell(r['families'][FAMILIES[2]]['no thought'])))
  lines += ['', f'| policy | entity sentences in {SAMPLED} problems | skipped '
            f'| in under {SURE:.0%} | in between | in over {1 - SURE:.0%} of '
            f'{SAMPLES} rollouts |', '|---|' + '---:|' * 5]
  for name, r in results['policies'].items():
    d = r['decisions']
    lines.append(f'| {name} | {d["sentences"]} | {d["mean"]:.2f} '
                 f'| {d["under"]} | {d["between"]} | {d["over"]} |')
  return '\n'.join(lines).replace('%', ' %').replace('  %', ' %') + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/front'))
  args = parser.parse_args()
  results = {'commit': cells.commit(), 'policies': {
      name: looked_at(args.out / run) for name, run in POLICIES.items()}}
  (HERE / 'anatomy.json').write_text(json.dumps(results, indent=1) + '\n')
  (HERE / 'anatomy.md').write_text(text := table(results))
  print(text)


if __name__ == '__main__':
  main()
