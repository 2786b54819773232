"""python -m adasr_jax.tools.sample_traces --of=WORKDIR --out=FILE --problems=N

Writes what a policy already does right as supervised traces. Each of N training
problems is rolled out --samples times; of its rollouts that are right and well
formed, the shortest is kept, in tokens. A problem without any is left out.

Supervised learning then makes a habit of what was sampled, see docs/data.md.

Source: STaR (arXiv 2203.14465), and rejection sampling fine-tuning (arXiv
2308.01825); the choice of the shortest is ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import logging
import jax
import numpy as np
import tqdm

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.core import placement
from adasr_jax.core import sharding
from adasr_jax.core.types import Example
from adasr_jax.credit import answers
from adasr_jax.credit import rewards
from adasr_jax.data import pipeline
from adasr_jax.data.dataset import Dataset
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.sampling import LEAST_TEMPERATURE
from adasr_jax.policy.transcript import Transcript, transcribe
from adasr_jax.run import command
from adasr_jax.run import factories
from adasr_jax.run import workdir as workdir_lib


def shortest_right(examples: Sequence[Example], said: Sequence[Transcript],
                   data: Dataset) -> list[Example | None]:
  """Each problem with the shortest right rollout as its trace; [P].

  Args:
    examples: P problems.
    said: P * G transcripts, those of a problem side by side.
    data: Verifies answers, and says what can be imitated: text that a
      tokenizer's decoder gave may be empty, or become longer than a cap.
  """
  samples = len(said) // len(examples)
  found = rewards.outcomes([e for e in examples for _ in range(samples)], said,
                           max_chunks=data.max_chunks, agrees=data.agrees)
  right = (found.accuracy & found.format).reshape(-1, samples)
  cost = (found.tokens_streaming + found.tokens_deep).reshape(-1, samples)
  out = []
  for p, example in enumerate(examples):
    order = sorted(np.flatnonzero(right[p]), key=lambda g, c=cost[p]: c[g])
    traces = (traced(example, said[p * samples + g], data) for g in order)
    out.append(next(filter(None, traces), None))
  return out


def traced(example: Example, t: Transcript, data: Dataset) -> Example | None:
  """The example with a transcript as its trace; None = not to be imitated."""
  answer = t.answer if data.agrees else answers.extract(t.answer)
  out = dataclasses.replace(example, thoughts=t.thoughts, deep=t.deep,
                            trace_answer=answer)
  try:
    data.traces([out])
  except ValueError:
    return None
  return out


def record(e: Example) -> dict[str, Any]:
  """The example for adapters.streaming_reasoning."""
  return {f.name: value for f in dataclasses.fields(e)
          if f.name != 'id' and (value := getattr(e, f.name)) not in (None, ())}


def sample_traces(of: str, *, problems: int, first: int = 0, samples: int = 4,
                  temperature: float = 1.0, seed: int = 0,
                  devices: Sequence[jax.Device] | None = None
                  ) -> Iterator[tuple[int, list[dict[str, Any]], int]]:
  """(problems, their records, sampled tokens) of one batch after another.

  Args:
    of: WORKDIR, WORKDIR@STEP or WORKDIR@best, of a run of one thread per
      rollout that thinks while it reads.
    problems: How many of the run's training stream.
    first: Position of the first one.
    samples: Rollouts of each.
    temperature: Of the rollouts; above 0.
    seed: Of the rollouts.
    devices: Of the run's mesh; None = all.

  Raises:
    ValueError: No such run or checkpoint, or a number is out of range; there
      are fewer training problems.
  """
  for name, value, least in (('problems', problems, 1), ('first', first, 0),
                             ('samples', samples, 1), ('seed', seed, 0)):
    if not least <= value < 2**32:
      raise ValueError(f'{name}={value} is outside [{least}, 2**32)')
  if not LEAST_TEMPERATURE <= temperature <= 100:
    raise ValueError(f'temperature={temperature} is outside '
                     f'[{LEAST_TEMPERATURE}, 100]')
  run = workdir_lib.read_config(pathlib.Path(of.partition('@')[0]))
  if run is None:
    raise ValueError(f'of={of!r} is not a run: it has no config.json')
  c = config_lib.of_workdir(run)
  c.init, c.method = of, config_lib.EVAL  # no teacher, no traces
  c.mesh.update(dataclasses.asdict(sharding.MeshConfig()))
  s = config_lib.sections(c)
  if s['data'].layout != pipeline.STREAMING or s['rollout'].children:
    raise ValueError(f'of={of!r}: data.layout={s["data"].layout!r}, '
                     f'rollout.children={s["rollout"].children}; only streams '
                     f'without threads have traces that can be kept')
  with jax.set_mesh(factories.mesh(s, devices)):
    parts = factories.parts(s)
    params = placement.for_rollout(factories.initial_params(s, parts),
                                   parts.model_config.dtype)
    size = min(s['data'].prompts, problems)
    if first + problems > (most := parts.data.size('train')):
      raise ValueError(f'first={first}, problems={problems}: there are {most} '
                       f'training problems')
    for start in range(first, first + problems, size):
      # The last batch is filled up, so that one shape is compiled.
      batch = parts.data.collate(parts.data.train(start, size))
      target = placement.to_host(rollout(
          params, placement.to_devices(batch.source),
          jax.random.fold_in(jax.random.key(seed), start),
          model_config=parts.model_config, protocol=parts.protocol,
          samples=samples, max_chunks=parts.data.max_chunks,
          temperature=temperature, rows=s['rollout'].rows))
      own = min(size, first + problems - start)
      rows = slice(0, own * samples)
      said = transcribe(jax.tree.map(lambda a: a[rows], target),
                        np.repeat(batch.source.num_chunks, samples)[rows],
                        parts.tokenizer, parts.protocol)
      kept = shortest_right(batch.examples[:own], said, parts.data)
      yield own, [record(e) for e in kept if e], int(target.sampled[rows].sum())


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      prog='python -m adasr_jax.tools.sample_traces', allow_abbrev=False,
      description=__doc__.split('\n\n')[1])
  parser.add_argument('--of', required=True,
                      help='WORKDIR, WORKDIR@STEP or WORKDIR@best')
  parser.add_argument('--out', type=pathlib.Path, required=True,
                      help='file to create; data.format=streaming_reasoning')
  parser.add_argument('--problems', type=int, required=True)
  parser.add_argument('--first', type=int, default=0, help='position of the '
                      'first problem in the training stream of the run')
  parser.add_argument('--samples', type=int, default=4,
                      help='rollouts of a problem')
  parser.add_argument('--temperature', type=float, default=1.0)
  parser.add_argument('--seed', type=int, default=0)
  args = vars(parser.parse_args(argv))
  command.show_log(logging.WARNING)
  of, out, problems = args.pop('of'), args.pop('out'), args['problems']
  try:
    if out.exists():
      raise ValueError(f'out={str(out)!r} exists already')
    if not out.parent.is_dir():
      raise ValueError(f'out={str(out)!r}: there is no folder '
                       f'{str(out.parent)!r}')
    kept, tokens = [], 0
    with tqdm.tqdm(total=problems, unit='problem', desc='traces') as bar:
      for n, records, sampled in sample_traces(of, **args):
        kept, tokens = kept + records, tokens + sampled
        bar.set_postfix(kept=len(kept))
        bar.update(n)
    if not kept:
      raise ValueError(f'of={of!r} has solved none of {problems} problems')
    files.write_text(out, ''.join(
        json.dumps(r, ensure_ascii=False) + '\n' for r in kept))
  except (ValueError, OSError) as e:  # what the user gave
    sys.exit(f'error: {e}')
  print(f'{len(kept)} of {problems} problems have a trace; '
        f'{tokens:,} tokens were sampled')


if __name__ == '__main__':
  main()
