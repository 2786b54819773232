"""python -m adasr_jax.tools.sample_traces --of=WORKDIR --out=FILE --problems=N

Writes what a policy already does right as supervised traces. Each of N training
problems is rolled out --samples times; of its rollouts that are right and well
formed, the shortest is kept, in tokens. A problem without any is left out.

  --of           WORKDIR, WORKDIR@STEP or WORKDIR@best
  --out          JSON lines, data.format=streaming_reasoning
  --first        position of the first problem in the run's training stream
  --samples      rollouts of a problem
  --temperature  theirs
  --seed         theirs

Supervised learning then makes a habit of what was sampled, see docs/data.md.

Source: STaR (arXiv 2203.14465), and rejection sampling fine-tuning (arXiv
2308.01825); the choice of the shortest is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
import pathlib
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np
import tqdm

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.core import placement
from adasr_jax.core.types import Example
from adasr_jax.credit import rewards
from adasr_jax.data import pipeline
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.transcript import Transcript, transcribe
from adasr_jax.run import command
from adasr_jax.run import factories
from adasr_jax.run import workdir as workdir_lib

_OF = flags.DEFINE_string('of', None, 'WORKDIR, WORKDIR@STEP, WORKDIR@best.')
_OUT = flags.DEFINE_string('out', None, 'File to create.')
_PROBLEMS = flags.DEFINE_integer('problems', None, 'How many.')
_FIRST = flags.DEFINE_integer(
    'first', 0, 'Position of the first in the training stream.')
_SAMPLES = flags.DEFINE_integer('samples', 4, 'Rollouts of a problem.')
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, 'Of the rollouts.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the rollouts.')


def shortest_right(examples: Sequence[Example], said: Sequence[Transcript],
                   **verifier) -> list[Transcript | None]:
  """Of each problem's rollouts the shortest one that is right; [P].

  Args:
    examples: P problems.
    said: P * G transcripts, those of a problem side by side.
    **verifier: See rewards.outcomes.
  """
  samples = len(said) // len(examples)
  found = rewards.outcomes([e for e in examples for _ in range(samples)], said,
                           **verifier)
  cost = np.where(found.accuracy & found.format,
                  found.tokens_streaming + found.tokens_deep, np.inf)
  cost = cost.reshape(-1, samples)
  return [said[p * samples + int(row.argmin())]
          if np.isfinite(row).any() else None for p, row in enumerate(cost)]


def record(example: Example, t: Transcript) -> dict[str, Any]:
  """An example with a transcript as its trace; see
  adapters.streaming_reasoning."""
  known = {name: getattr(example, name)
           for name in ('relevant', 'kinds', 'group')}
  return {'preamble': example.preamble, 'chunks': example.chunks,
          'answer': example.answer, 'question_chunk': example.question_chunk,
          'instance': example.instance,
          **{k: v for k, v in known.items() if v},
          'thoughts': t.thoughts, 'deep': t.deep, 'trace_answer': t.answer}


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
    ValueError: No such run or checkpoint, or a number is out of range.
  """
  for name, value, least in (('problems', problems, 1), ('first', first, 0),
                             ('samples', samples, 1), ('seed', seed, 0)):
    if not least <= value < 2**32:
      raise ValueError(f'{name}={value} is outside [{least}, 2**32)')
  if not 0 < temperature <= 100:
    raise ValueError(f'temperature={temperature} is outside (0, 100]')
  run = workdir_lib.read_config(pathlib.Path(of.partition('@')[0]))
  if run is None:
    raise ValueError(f'of={of!r} is not a run: it has no config.json')
  c = config_lib.of_workdir(run)
  c.init = of
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
    verifier = dict(max_chunks=parts.data.max_chunks, agrees=parts.data.agrees)
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
      examples = batch.examples[:own]
      kept = shortest_right(examples, said, **verifier)
      yield (own, [record(e, t) for e, t in zip(examples, kept) if t],
             int(target.sampled[rows].sum()))


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  command.show_log(logging.WARNING)
  out, problems = pathlib.Path(_OUT.value), _PROBLEMS.value
  try:
    if out.exists():
      raise ValueError(f'out={str(out)!r} exists already')
    kept, tokens = [], 0
    with tqdm.tqdm(total=problems, unit='problem', desc='traces') as bar:
      for n, records, sampled in sample_traces(
          _OF.value, problems=problems, first=_FIRST.value,
          samples=_SAMPLES.value, temperature=_TEMPERATURE.value,
          seed=_SEED.value):
        kept, tokens = kept + records, tokens + sampled
        bar.set_postfix(kept=len(kept))
        bar.update(n)
    if not kept:
      raise ValueError(f'of={_OF.value!r} has solved none of {problems} '
                       f'problems')
    files.write_text(out, ''.join(
        json.dumps(r, ensure_ascii=False) + '\n' for r in kept))
  except (ValueError, OSError) as e:  # what the user gave
    command.fail(e)
  print(f'{len(kept)} of {problems} problems have a trace; '
        f'{tokens:,} tokens were sampled')


if __name__ == '__main__':
  flags.mark_flags_as_required(['of', 'out', 'problems'])
  app.run(main, flags_parser=command.parse_flags)
