"""What tools share that write down what a policy does right, as traces."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
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
from adasr_jax.core.types import Example, Given, Target
from adasr_jax.credit import answers
from adasr_jax.credit import rewards
from adasr_jax.data import pipeline
from adasr_jax.data.dataset import Dataset
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import RolloutConfig, rollout
from adasr_jax.policy.transcript import Transcript, transcribe
from adasr_jax.run import command
from adasr_jax.run import factories
from adasr_jax.run import workdir as workdir_lib

# Problems, the records of those that have a trace, sampled tokens.
Written = tuple[int, list[dict[str, Any]], int]


@dataclasses.dataclass
class Drawn:
  """n rollouts, on the host.

  Attributes:
    target: [n, T].
    said: Their n transcripts.
    right: [n] bool, right and well formed.
    cost: [n], their tokens.
    sampled: How many tokens were sampled for them.
  """
  target: Target
  said: list[Transcript]
  right: np.ndarray
  cost: np.ndarray
  sampled: int

  def put(self, i: int, other: Drawn, j: int) -> None:
    """Rollout i is now rollout j of others."""
    def copy(a, b):
      a[i] = b[j]
    jax.tree.map(copy, self.target, other.target)
    self.said[i] = other.said[j]
    self.right[i], self.cost[i] = other.right[j], other.cost[j]


def joined(parts: Sequence[Drawn]) -> Drawn:
  """Rollouts one after the other, in arrays of their own."""
  return Drawn(
      target=jax.tree.map(lambda *a: np.concatenate(a),
                          *(p.target for p in parts)),
      said=[t for p in parts for t in p.said],
      right=np.concatenate([p.right for p in parts]),
      cost=np.concatenate([p.cost for p in parts]),
      sampled=sum(p.sampled for p in parts))


@dataclasses.dataclass(frozen=True)
class Policy:
  """One that reads streams, without threads.

  Attributes:
    params: As a rollout has them.
    other: config.init -> the parameters there.
    init: config.init of its run.
    parts: Of its run.
    prompts: Training problems of a batch of its run.
    rollout: How its run sampled.
  """
  params: decoder.Params
  other: Callable[[str], decoder.Params]
  init: str
  parts: factories.Parts
  prompts: int
  rollout: RolloutConfig

  @property
  def data(self) -> Dataset:
    """Of its run."""
    return self.parts.data

  def drawn(self, examples: Sequence[Example], key: jax.Array, *,
            size: int, samples: int, temperature: float,
            decisions: np.ndarray | None = None, begun: Target | None = None
            ) -> Drawn:
    """Rollouts of P problems, those of a problem side by side.

    Args:
      examples: P problems.
      key: Of the rollouts.
      size: Problems of the batch that is run, P at least: it is filled up, so
        that one shape is compiled.
      samples: Of each problem.
      temperature: See sampling.draw.
      decisions: [P, C], see rollout().
      begun: [P, T], what is valid there has been written by earlier rollouts,
        and is given to these; samples are 1.
    """
    given = None if begun is None else Given(
        tokens=begun.tokens, length=begun.valid.sum(1, dtype=np.int32))
    batch = self.data.collate(filled(examples, size))
    target = placement.to_host(rollout(
        self.params, placement.to_devices(batch.source), key,
        model_config=self.parts.model_config, protocol=self.parts.protocol,
        samples=samples, max_chunks=self.data.max_chunks,
        temperature=temperature, rows=self.rollout.rows,
        decisions=None if decisions is None else filled(decisions, size),
        given=jax.tree.map(lambda a: filled(a, size), given)))
    n = len(examples) * samples
    target = jax.tree.map(lambda a: a[:n], target)
    sampled = int(target.sampled.sum())
    if begun is not None:  # no cap has forced it
      target = target.replace(sampled=np.where(
          begun.valid, begun.sampled, target.sampled))
    said = transcribe(target, np.repeat(batch.source.num_chunks, samples)[:n],
                      self.parts.tokenizer, self.parts.protocol)
    found = rewards.outcomes(
        [e for e in examples for _ in range(samples)], said,
        max_chunks=self.data.max_chunks, agrees=self.data.agrees)
    return Drawn(target=target, said=said,
                 right=found.accuracy & found.format,
                 cost=found.tokens_streaming + found.tokens_deep,
                 sampled=sampled)


def filled(a: Any, size: int) -> Any:
  """A list or array with its last entry repeated until there are `size`."""
  if isinstance(a, (list, tuple)):
    return [*a, *[a[-1]] * (size - len(a))]
  return np.concatenate([a, np.repeat(a[-1:], size - len(a), 0)])


@contextlib.contextmanager
def opened(of: str, *, problems: int, first: int = 0,
           devices: Sequence[jax.Device] | None = None) -> Iterator[Policy]:
  """The policy of a run, on a mesh.

  Args:
    of: WORKDIR, WORKDIR@STEP or WORKDIR@best, of a run of one thread per
      rollout that thinks while it reads.
    problems: How many of the run's training stream are wanted.
    first: Position of the first one.
    devices: Of the mesh; None = all.

  Raises:
    ValueError: A number is out of range; no such run or checkpoint, or none of
      this kind; there are fewer training problems.
  """
  for name, value, least in (('problems', problems, 1), ('first', first, 0)):
    if not least <= value < 2**32:
      raise ValueError(f'{name}={value} is outside [{least}, 2**32)')
  run = workdir_lib.read_config(files.at_step(of)[0])
  if run is None:
    raise ValueError(f'of={of!r} is not a run: it has no config.json')
  c = config_lib.of_workdir(run)
  init, c.init = c.init, of
  c.method = config_lib.EVAL  # no teacher, no traces
  c.mesh.update(dataclasses.asdict(sharding.MeshConfig()))
  s = config_lib.sections(c)
  if s['data'].layout != pipeline.STREAMING or s['rollout'].children:
    raise ValueError(f'of={of!r}: data.layout={s["data"].layout!r}, '
                     f'rollout.children={s["rollout"].children}; only streams '
                     f'without threads have traces that can be kept')
  with jax.set_mesh(factories.mesh(s, devices)):
    parts = factories.parts(s)
    if first + problems > (most := parts.data.size('train')):
      raise ValueError(f'first={first}, problems={problems}: there are {most} '
                       f'training problems')

    def params(init):
      run = dataclasses.replace(s['run'], init=init)
      return placement.for_rollout(
          factories.initial_params(s | {'run': run}, parts),
          parts.model_config.dtype)

    yield Policy(
        params=params(of), other=params, init=init, parts=parts,
        prompts=s['data'].prompts, rollout=s['rollout'])


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


def write_records(path: pathlib.Path, records: Sequence[dict[str, Any]]
                  ) -> None:
  """Writes a file for sft.traces, whole or not at all."""
  files.write_text(path, ''.join(
      json.dumps(r, ensure_ascii=False) + '\n' for r in records))


def parser(prog: str, description: str) -> argparse.ArgumentParser:
  """Of a tool: --of, --out, --problems, --first."""
  out = argparse.ArgumentParser(prog=f'python -m adasr_jax.tools.{prog}',
                                allow_abbrev=False, description=description)
  out.add_argument('--of', required=True,
                   help='WORKDIR, WORKDIR@STEP or WORKDIR@best')
  out.add_argument('--out', type=pathlib.Path, required=True,
                   help='file to create; data.format=streaming_reasoning')
  out.add_argument('--problems', type=int, required=True)
  out.add_argument('--first', type=int, default=0, help='position of the '
                   'first problem in the training stream of the run')
  return out


def write(write_some: Callable[..., Iterator[Written]], *, of: str,
          out: pathlib.Path, problems: int, **more: Any) -> None:
  """Writes all traces into a new file, or ends with what was wrong.

  Args:
    write_some: (of, problems=, **more) -> one batch after another.
    of, out, problems: Of the command.
    **more: Its other arguments.
  """
  command.show_log(logging.WARNING)
  try:
    if out.exists():
      raise ValueError(f'out={str(out)!r} exists already')
    if not out.parent.is_dir():
      raise ValueError(f'out={str(out)!r}: there is no folder '
                       f'{str(out.parent)!r}')
    kept, tokens = [], 0
    with tqdm.tqdm(total=problems, unit='problem', desc='traces') as bar:
      for n, records, sampled in write_some(of, problems=problems, **more):
        kept, tokens = kept + records, tokens + sampled
        bar.set_postfix(kept=len(kept))
        bar.update(n)
    if not kept:
      raise ValueError(f'of={of!r} has solved none of {problems} problems')
    write_records(out, kept)
  except (ValueError, OSError) as e:  # what the user gave
    sys.exit(f'error: {e}')
  print(f'{len(kept)} of {problems} problems have a trace; '
        f'{tokens:,} tokens were sampled')
