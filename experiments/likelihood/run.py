"""Does the likelihood of the answer predict what a thought is worth?

  python -m experiments.likelihood.run [--init=FILE] [--problems=N]

For one rollout of each validation problem, every thought has

  r_k   likelihood credit: p(gold | thought) - p(gold | skip), no rollouts
  d_k   its direct effect: p(gold | all) - p(gold | all, it is not read)
  e_k   its recomputed effect: p(gold | all) - p(gold | all, a skip in its
        place, later thoughts read again), a pass of its own for each
  D_k   Monte-Carlo: accuracy of the continuations after the thought minus that
        after a skip in its place; K of each, from the same random keys

and every boundary p(gold) beside the accuracy of the continuations from it. On
the demo's problems, which chain three to five facts; on `short` ones: two facts
among four to six other sentences, so that the answer is known long before the
end; and on `single` ones, the same without the second fact: the first one is
the answer, and needs no other. Also the seconds of the pass beside those of a
gradient of the same rollouts. Prints correlations and writes results.json here.
On two cores: fifteen minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import tqdm

from adasr_jax import config as config_lib
from adasr_jax.core.types import Example, Given, Source, Target
from adasr_jax.credit import likelihood
from adasr_jax.credit import rewards
from adasr_jax.data.pipeline import Batch
from adasr_jax.learn.method import Parts
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy import scoring
from adasr_jax.policy.transcript import transcribe
from adasr_jax.run import factories
from adasr_jax.run import logs
from benchmarks import timing
from configs import hrpo
from experiments import cells

HERE = pathlib.Path(__file__).resolve().parent
K = 32  # continuations of each branch
AT_ONCE = 64  # branches whose continuations are drawn together
KEY = jax.random.key(0)
SHORT = dict(min_steps=2, max_steps=2, min_distractors=4, max_distractors=6)
SETTINGS = {'demo': {}, 'short': SHORT, 'single': SHORT}
BRANCH_LOGPS = jax.jit(likelihood.branch_logps, static_argnames=(
    'model_config', 'protocol', 'temperature'))


def problems_of(setting: str, parts: Parts, n: int) -> list[Example]:
  """The first n validation problems of a setting."""
  if setting != 'single':
    return parts.data.evaluation('validation', n)
  out = []
  for i in range(parts.data.size('validation')):
    e = parts.data.example('validation', i)
    second, = {k for k, r in zip(e.kinds, e.relevant) if r} - {'start'}
    if second not in ('gain', 'loss', 'transfer'):  # asks for something else
      continue
    kept = [k != second for k in e.kinds]
    only = lambda items, kept=kept: tuple(itertools.compress(items, kept))
    start = e.chunks[e.kinds.index('start')]
    out.append(dataclasses.replace(
        e, chunks=only(e.chunks), kinds=only(e.kinds),
        relevant=only(e.relevant), thoughts=None, deep=None,
        answer=next(w for w in start.split() if w.isdigit())))
    if len(out) == n:
      break
  return out


def sampled(params: decoder.Params, parts: Parts, source: Source, samples: int,
            given: Given | None = None) -> Target:
  """Rollouts at temperature 1, as host arrays."""
  return jax.device_get(rollout(
      params, source, KEY, model_config=parts.model_config,
      protocol=parts.protocol, samples=samples,
      max_chunks=parts.data.max_chunks, temperature=1.0, rows=48, given=given))


def gold_tokens(parts: Parts, batch: Batch) -> list[list[int]]:
  """The gold answers as they are spelled."""
  return [parts.tokenizer.encode(
      parts.tokenizer.answer_format.format(e.answer)) for e in batch.examples]


def branch_values(params: decoder.Params, parts: Parts, batch: Batch,
                  target: Target, direct: bool = False
                  ) -> tuple[np.ndarray, likelihood.Places]:
  """log p(gold) of each branch, and where they are."""
  branches, places = likelihood.branches(
      target, batch.source.num_chunks, gold_tokens(parts, batch),
      parts.protocol, direct=direct)
  logps = BRANCH_LOGPS(
      params, batch.source, target, branches, model_config=parts.model_config,
      protocol=parts.protocol, temperature=1.0)
  return likelihood.values(jax.device_get(logps), places), places


def recomputed_values(params: decoder.Params, parts: Parts, batch: Batch,
                      target: Target, row: np.ndarray, chunk: np.ndarray
                      ) -> np.ndarray:
  """log p(gold) at the end of rollouts with a skip in the place of a thought.

  Args:
    params, parts, batch, target: The rollouts.
    row, chunk: [N], which thoughts.

  Returns:
    [N] float64; NaN where the end is not reached.
  """
  out = np.full(len(row), np.nan)
  order = np.arange(-(-len(row) // AT_ONCE) * AT_ONCE) % len(row)
  for i in range(0, len(order), AT_ONCE):
    some = order[i:i + AT_ONCE]
    edited = [likelihood.without_thought(target, row[n], chunk[n],
                                         parts.protocol) for n in some]
    at = row[some]
    pick = lambda a, at=at: np.asarray(a)[at]
    value, places = branch_values(
        params, parts, dataclasses.replace(
            batch, source=jax.tree.map(pick, batch.source),
            examples=[batch.examples[r] for r in at]),
        jax.tree.map(lambda *a: np.concatenate(a), *edited), direct=True)
    ends = places.kind == likelihood.END
    out[some[places.row[ends]]] = value[ends]
  return out


def cost(params: decoder.Params, parts: Parts, batch: Batch, target: Target
         ) -> dict[str, float]:
  """Median seconds of the pass over all branches, and of a gradient."""
  golds = gold_tokens(parts, batch)
  branches, _ = likelihood.branches(target, batch.source.num_chunks, golds,
                                    parts.protocol)
  static = dict(model_config=parts.model_config, protocol=parts.protocol,
                temperature=1.0)
  gradient = jax.jit(jax.grad(lambda p: scoring.score(
      p, batch.source, target, **static)[0].sum()))
  times = timing.interleaved({
      'branches': lambda _: BRANCH_LOGPS(params, batch.source, target,
                                         branches, **static),
      'gradient': lambda _: gradient(params)}, 5)
  return {name: row['median'] for name, row in times.items()}


def continued(params: decoder.Params, parts: Parts, batch: Batch,
              target: Target, places: likelihood.Places, what: str
              ) -> np.ndarray:
  """[branches, K] bool, which continuations of each branch are right."""
  out = np.zeros((len(places.row), K), bool)
  # Filled up, so that one shape is compiled.
  order = np.arange(-(-len(out) // AT_ONCE) * AT_ONCE) % len(out)
  for i in tqdm.tqdm(range(0, len(order), AT_ONCE), desc=what):
    some = order[i:i + AT_ONCE]
    rows = places.row[some]
    tokens = np.zeros((AT_ONCE, target.tokens.shape[1]), np.int32)
    length = np.zeros(AT_ONCE, np.int32)
    for n, b in enumerate(some):
      row = places.row[b]
      where = np.flatnonzero(target.valid[row] & (
          target.phase[row] == places.chunk[b] + 1))
      thought = places.kind[b] == likelihood.THOUGHT
      kept = where[-1] + 1 if thought else where[0]
      tokens[n, :kept] = target.tokens[row, :kept]
      length[n] = kept + (not thought)
      if not thought:
        tokens[n, kept] = parts.protocol.skip
    source = jax.tree.map(lambda a, r=rows: np.asarray(a)[r], batch.source)
    got = sampled(params, parts, source, K, Given(
        tokens=np.repeat(tokens, K, 0), length=np.repeat(length, K)))
    said = transcribe(got, np.repeat(source.num_chunks, K), parts.tokenizer,
                      parts.protocol)
    right = rewards.outcomes(
        [batch.examples[r] for r in rows for _ in range(K)], said,
        max_chunks=parts.data.max_chunks).accuracy
    out[some] = right.reshape(AT_ONCE, K)
  return out


def correlation(x: np.ndarray, y: np.ndarray, groups: np.ndarray
                ) -> dict[str, Any]:
  """Pearson's r with a 95 % bootstrap interval over problems, and n.

  Args:
    x: Of each thought.
    y: [thoughts, K], its Monte-Carlo draws; their mean is compared. Its
      reliability (correlation of halves, stepped up) bounds r: no predictor
      can have more than its root.
    groups: The problem of each.
  """
  out: dict[str, Any] = {'n': len(x)}
  if len(x) < 20 or not x.std() or not y.mean(1).std():
    return out | {'r': None}
  r = lambda a, b: float(np.corrcoef(a, b)[0, 1])
  half = r(y[:, ::2].mean(1), y[:, 1::2].mean(1))
  draw = np.random.default_rng(0)
  ids, index = np.unique(groups, return_inverse=True)
  members = [np.flatnonzero(index == i) for i in range(len(ids))]
  many = []
  for _ in range(1000):
    at = np.concatenate([members[i] for i in draw.integers(
        len(ids), size=len(ids))])
    many.append(r(x[at], y[at].mean(1)))
  low, high = np.nanquantile(many, [.025, .975])
  return out | {'r': r(x, y.mean(1)), 'r_ci95': [float(low), float(high)],
                'r_most': float(np.sqrt(max(2 * half / (1 + half), 0)))}


def measure(init: str, setting: str, problems: int) -> dict[str, Any]:
  """All correlations of one policy on problems of one of SETTINGS."""
  c = hrpo.get_config()
  c.init = init
  c.data.task.update(SETTINGS[setting])
  s = config_lib.sections(c)
  parts = factories.parts(s)
  params = factories.initial_params(s, parts)
  batch = parts.data.collate(problems_of(setting, parts, problems))
  target = sampled(params, parts, batch.source, 1)
  value, places = branch_values(params, parts, batch, target)
  right = continued(params, parts, batch, target, places, pathlib.Path(
      init).parent.name)
  thought = places.kind == likelihood.THOUGHT
  pairs = (np.flatnonzero(thought), np.flatnonzero(places.kind
                                                   == likelihood.SKIP))
  assert (places.row[pairs[0]] == places.row[pairs[1]]).all()
  p = np.exp(value)
  credit = {'probability': p[pairs[0]] - p[pairs[1]],
            'log': value[pairs[0]] - value[pairs[1]]}
  gain = right[pairs[0]].astype(float) - right[pairs[1]]
  row, chunk = places.row[pairs[0]], places.chunk[pairs[0]]
  left = batch.source.num_chunks[row] - 1 - chunk
  kind = np.array([batch.examples[r].kinds[c] for r, c in zip(row, chunk)])
  by = lambda x, mask: correlation(x[mask], gain[mask], row[mask])
  every = np.ones(len(row), bool)
  shape = (problems, parts.data.max_chunks)
  assert (likelihood.credits(value, places, shape)[row, chunk]
          == credit['probability']).all()
  end, end_places = branch_values(params, parts, batch, target, direct=True)
  direct = likelihood.direct_effects(end, end_places, shape)[row, chunk]
  whole = np.full(problems, np.nan)
  at_end = end_places.kind == likelihood.END
  whole[end_places.row[at_end]] = np.exp(end[at_end])
  recomputed = whole[row] - np.exp(recomputed_values(
      params, parts, batch, target, row, chunk))
  read = ~np.isnan(recomputed)
  return {
      'init': init, 'setting': setting, 'problems': problems,
      'seconds': cost(params, parts, batch, target),
      'continuations': K, 'thoughts': len(row),
      'gain': {'mean': float(gain.mean()),
               'std': float(gain.mean(1).std())},
      'credit': {name: by(x, every) for name, x in credit.items()},
      'direct': by(direct, read), 'recomputed': by(recomputed, read),
      'direct_of_recomputed': float(np.corrcoef(
          direct[read], recomputed[read])[0, 1]),
      'boundary': correlation(p[thought], right[thought].astype(float), row),
      'by_chunks_left': {str(n): by(credit['probability'], left == n)
                         for n in sorted(set(left.tolist()))},
      'by_kind': {k: by(credit['probability'], kind == k)
                  for k in sorted(set(kind.tolist()))},
      'gain_by_kind': {k: float(gain[kind == k].mean())
                       for k in sorted(set(kind.tolist()))}}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--init', nargs='*', default=[
      'experiments/warm_start/model.safetensors',
      'experiments/demo/model.safetensors'])
  parser.add_argument('--problems', type=int, default=200)
  parser.add_argument('--only', default=','.join(SETTINGS))
  parser.add_argument('--out', default=str(HERE / 'results.json'))
  args = parser.parse_args()
  only = cells.chosen(parser, args.only, SETTINGS)
  before = logs.read_json(pathlib.Path(args.out)) or []
  out = [r for r in before if r['setting'] not in only]
  out += [measure(init, setting, args.problems)
          for setting in only for init in args.init]
  pathlib.Path(args.out).write_text(json.dumps(out, indent=1) + '\n')
  print(json.dumps(out, indent=1))


if __name__ == '__main__':
  main()
