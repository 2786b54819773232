"""Evaluation of a policy: rollouts, transcripts, metrics, the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from adasr_jax.config import ClockConfig, EvalConfig
from adasr_jax.core import files
from adasr_jax.core import hosts
from adasr_jax.core import placement
from adasr_jax.core import sharding
from adasr_jax.core.types import Example, Target
from adasr_jax.credit import answers
from adasr_jax.credit import rewards as rewards_lib
from adasr_jax.data import adapters
from adasr_jax.data import dataset
from adasr_jax.data.pipeline import READ_THEN_THINK, Batch
from adasr_jax.learn.method import Parts
from adasr_jax.models import decoder
from adasr_jax.policy.engine import Engine
from adasr_jax.policy import rollout as rollout_lib
from adasr_jax.policy.transcript import transcribe
from adasr_jax.policy import tree as tree_lib
from adasr_jax.run import latency
from adasr_jax.run.latency import Clock
from adasr_jax.run import logs
from adasr_jax.run import metrics as metrics_lib
from adasr_jax.run import report
from adasr_jax.run.start import Run


def gold_decisions(batch: Batch) -> np.ndarray:
  """[P, C] int32: think on relevant chunks, skip the others, else free."""
  return np.where(batch.relevant == 1, rollout_lib.THINK,
                  np.where(batch.relevant == 0, rollout_lib.SKIP,
                           rollout_lib.OWN)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a policy is evaluated.

  Attributes:
    split: Whose problems.
    examples: n, the first n of them.
    sampling: Batch size, samples per problem, temperature, decisions.
    seed: Of the rollouts.
    clock: Reading speed, and seconds per token.
  """
  split: str
  examples: int
  sampling: EvalConfig
  seed: int
  clock: Clock


def evaluate(params, parts: Parts, plan: Plan, *,
             problems_path: pathlib.Path | None = None) -> dict[str, Any]:
  """Metrics of a policy on some problems of a split.

  Args:
    params: Parameter tree.
    parts: Tokenizer, protocol, decoder, data.
    plan: Which problems, and how.
    problems_path: Where to write one JSON line per problem, for comparisons
      problem by problem.

  Returns:
    See metrics.summarise; by_kind, accuracy_over_sets. Equal on all hosts.

  Raises:
    ValueError: The split has fewer problems.
  """
  n, samples = plan.examples, plan.sampling.samples
  problems = parts.data.evaluation(plan.split, n)
  measured = []
  # Devices and hosts share a batch evenly.
  ways = math.lcm(sharding.row_ways(), hosts.shard()[1])
  size = -(-plan.sampling.batch // ways) * ways
  for start in range(0, n, size):
    some = problems[start:start + size]
    # The last batch is filled up, so that one shape is compiled.
    batch = parts.data.collate(some + some[:1] * (size - len(some)))
    target = _rollouts(params, parts, plan, batch)
    # Each host verifies its own rows.
    own = dataset.host_rows(size, hosts.shard())
    measured += hosts.all_hosts(
        [_measure(batch, target, own, parts, samples, plan.clock)])
  rows = jax.tree.map(lambda *a: np.concatenate(a)[:n * samples], *measured)
  asked = [x for x in problems for _ in range(samples)]
  if problems_path is not None and hosts.first():
    files.write_text(problems_path, _lines(asked, rows))
  by_kind = _by_kind(asked, rows.pop('tokens_chunk'), rows['skipped'],
                     rows['reached'])
  summary = metrics_lib.summarise(
      problem=np.repeat(np.arange(n), samples), **rows)
  return summary | {'by_kind': by_kind,
                    'accuracy_over_sets': _over_sets(asked, rows['correct'])}


def _rollouts(params, parts, plan, batch) -> Target:
  """Rollouts of a batch of problems, as host arrays."""
  e = plan.sampling
  return placement.to_host(rollout_lib.rollout(
      params, placement.to_devices(batch.source), jax.random.key(plan.seed),
      model_config=parts.model_config, protocol=parts.protocol,
      samples=e.samples, max_chunks=parts.data.max_chunks,
      temperature=float(e.temperature), top_k=e.top_k, top_p=float(e.top_p),
      rows=e.rows,
      decisions=gold_decisions(batch) if e.decisions == 'gold' else None))


def _measure(batch: Batch, target: Target, own: range, parts: Parts,
             samples: int, clock: Clock) -> dict[str, Any]:
  """What is measured of each rollout of some problems of a batch.

  Args:
    batch: P problems.
    target: [P * G * W, T], G = `samples` rollouts of each, W rows of each of
      these; host arrays.
    own: The problems; the others' rollouts are not looked at.
    parts, samples, clock: As in `evaluate`.

  Returns:
    The arrays of metrics.summarise, but for `problem`, and tokens_chunk,
    [B, C] tokens; B = G rollouts per problem.
  """
  G, C, rows = samples, parts.data.max_chunks, samples * parts.protocol.width
  column = lambda a: np.repeat(a[own.start:own.stop], G, 0)
  said = transcribe(
      jax.tree.map(lambda a: a[own.start * rows:own.stop * rows], target),
      column(batch.source.num_chunks), parts.tokenizer, parts.protocol)
  found = rewards_lib.outcomes(
      [batch.examples[p] for p in own for _ in range(G)], said, max_chunks=C,
      agrees=parts.data.agrees)
  start = np.array([t.answer_start for t in said])
  same = parts.data.same or answers.same

  def seconds(fed=1.0):
    thoughts, deep = latency.waits(said, C, fed=fed)
    return latency.clock(
        column(batch.words), column(batch.chunk_tokens),
        column(batch.arrivals),
        np.pad(found.tokens_chunk, ((0, 0), (1, 0))) + thoughts,
        found.tokens_deep + deep, np.where(start < 0, start, start + deep),
        words_per_minute=clock.words_per_minute, sigma=clock.sigma,
        tau=clock.tau, streamed=parts.data.layout != READ_THEN_THINK)

  threads = {}
  if parts.protocol.threads:
    # Fed together, a forced token costs what one of the source does.
    fed = clock.sigma / clock.tau if clock.tau else 0.0
    threads['threads'] = vars(tree_lib.counts([t.tree for t in said])) | {
        'end_s_fed_together': seconds(fed)['end']}
  reached = found.tokens_chunk > 0
  silent = np.array([[x is None for x in t.thoughts]
                     + [False] * (C - len(t.thoughts)) for t in said], bool)
  return dict(
      correct=found.accuracy, well_formed=found.format,
      skipped=reached & silent.reshape(reached.shape), reached=reached,
      relevant=column(batch.relevant), question=column(batch.question),
      tokens_streaming=found.tokens_streaming,
      tokens_deep=found.tokens_deep, tokens_chunk=found.tokens_chunk,
      thoughts_cut=np.array([any(t.cut) for t in said]),
      deep_cut=np.array([t.deep_cut for t in said]), latency=seconds(),
      answer=np.array([same(t.answer) for t in said], object), **threads)


def _lines(examples: Sequence[Example], rows: dict[str, Any]) -> str:
  """problems.jsonl, a line a rollout."""
  return ''.join(logs.line(
      {'id': x.id, **({} if x.group is None else {'group': x.group}),
       **({} if x.instance < 0 else {'instance': x.instance}),
       'correct': bool(rows['correct'][i]), 'answer': rows['answer'][i],
       'format': bool(rows['well_formed'][i]),
       'tokens_streaming': int(rows['tokens_streaming'][i]),
       'tokens_deep': int(rows['tokens_deep'][i]),
       'end_s': _seconds(rows['latency']['end'][i]),
       **{k: _seconds(v[i]) for k, v in rows.get('threads', {}).items()}
       })
      for i, x in enumerate(examples))


def _seconds(x) -> float | None:
  """Microseconds are exact enough; None where there is no time."""
  return None if np.isnan(x) else round(float(x), 6)


def _by_kind(examples: Sequence[Example], tokens, skipped, reached):
  """Per kind of sentence: how often it is skipped, and what is spent on it."""
  cells: dict[str, list] = {}
  for b, example in enumerate(examples):
    if example.relevant is None:
      continue
    for k, kind in enumerate(example.kinds):
      if reached[b, k]:
        cells.setdefault(kind, []).append(
            (example.relevant[k], skipped[b, k], tokens[b, k]))
  out = {}
  for kind, values in sorted(cells.items()):
    relevant, skip, spent = zip(*values)
    out[kind] = {'relevant': bool(relevant[0]), 'n': len(values),
                 'skip_rate': float(np.mean(skip)),
                 'tokens': float(np.mean(spent))}
  return out


def _over_sets(examples: Sequence[Example], correct) -> dict[str, Any] | None:
  """See adapters.over_sets; None without two sets that hold all examples."""
  sets = {x.instance for x in examples}
  if len(sets) < 2 or min(sets) < 0:
    return None
  mean, deviation = adapters.over_sets(examples, correct)
  return {'mean': mean, 'deviation': deviation, 'sets': len(sets)}


def measure_clock(params, parts: Parts) -> tuple[float, float]:
  """sigma and tau, seconds per source and target token, of one stream here.

  A prefill of the largest bucket, then the target that one row writes; of each
  the quickest of five, since what else the machine does only adds. All hosts
  compute together, and each times it by its own watch.
  """
  data = parts.data
  batch = data.collate(data.train(0, 1), lengths=(max(data.lengths),))
  source = placement.to_devices(batch.source)
  engine = Engine(
      model_config=parts.model_config, protocol=parts.protocol, prompts=1,
      samples=1, max_chunks=parts.data.max_chunks, temperature=1.0)
  prefill = jax.jit(decoder.prefill, static_argnums=1)
  run = jax.jit(engine.run)
  def seconds(f):
    times = []
    for _ in range(6):
      start = time.perf_counter()
      out = jax.block_until_ready(f())
      times.append(time.perf_counter() - start)
    return min(times[1:]), out  # the first one compiles
  reading, _ = seconds(lambda: prefill(params, parts.model_config, source))
  loaded = jax.jit(engine.prepare)(params, source, jax.random.key(0))
  state = jax.jit(engine.start)(loaded)
  writing, state = seconds(lambda: run(loaded, state))
  return (reading / source.tokens.shape[1],
          writing / max(int(placement.to_host(state.steps)), 1))


def make_clock(c: ClockConfig, parts: Parts, params: Callable[[], Any]
               ) -> Clock:
  """The virtual clock: seconds per token as given, or as the first host
  measured them.

  Args:
    c: Speeds, or that they are to be measured.
    parts: What is measured, with what params() gives.
  """
  if not c.measure:
    return Clock(words_per_minute=c.words_per_minute, sigma=c.sigma,
                 tau=c.tau, source='given')
  sigma, tau = hosts.all_hosts([measure_clock(params(), parts)])[0]
  return Clock(words_per_minute=c.words_per_minute, sigma=sigma, tau=tau,
               source='measured')


def settings(e: EvalConfig, seed: int, clock: Clock) -> dict[str, Any]:
  """What an evaluation was made with, for eval.json."""
  return dict(dataclasses.asdict(e), seed=seed, device=str(jax.devices()[0]),
              jax=jax.__version__, clock=dataclasses.asdict(clock))


def in_words(summary: dict[str, Any]) -> str:
  """The accuracy with its interval, for the log."""
  low, high = summary['accuracy_ci95']
  return (f'accuracy {summary["accuracy"]:.3f} [{low:.3f}, {high:.3f}], '
          f'n = {summary["n"]}')


def run(r: Run) -> None:
  """Evaluates the initial parameters of a run by themselves; a report."""
  with jax.set_mesh(r.mesh):
    _run(r)


def _run(r):
  e, seed = r.sections['eval'], r.sections['run'].seed
  # As training evaluates them.
  params = placement.for_rollout(r.initial, r.parts.model_config.dtype)
  clock = make_clock(r.sections['clock'], r.parts, lambda: params)
  logging.info('compiling the rollout')
  summary = evaluate(
      params, r.parts, Plan(split=e.split, examples=e.examples, sampling=e,
                               seed=seed, clock=clock),
      problems_path=r.workdir / 'problems.jsonl')
  if hosts.first():
    logs.write_evaluations(r.workdir, {
        'final': summary, 'settings': settings(e, seed, clock)})
    report.write_report(r.workdir, list(map(pathlib.Path, e.baselines)))
    logging.info('%s; %s', in_words(summary), r.workdir / 'report.md')
  hosts.wait('written')
