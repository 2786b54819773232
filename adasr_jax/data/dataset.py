"""Index-addressable examples of a run: position in, examples out.

The training stream is a pure function of (source, seed, position). So a
checkpoint has to hold only a position, and each of several hosts can take its
own rows of a batch without communication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import copy
import dataclasses

from absl import logging
import grain.python as grain

from adasr_jax.core.options import option
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example, Target
from adasr_jax.core import visibility
from adasr_jax.data import adapters
from adasr_jax.data import pipeline
from adasr_jax.data import sources
from adasr_jax.data.tokenizer import Tokenizer


PROCEDURAL = 'procedural'
# (answer, reference) -> whether the answer is right.
Agrees = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read, and into which static shapes.

  Attributes:
    source: 'procedural': problems that the task makes; else a key of
      sources.SOURCES: how the records of `path` are read.
    layout: 'streaming' or 'read_then_think', see pipeline.collate.
    prompts: P, problems per step.
    lengths: Buckets of source slots; a longer source is an error.
    max_chunks: C, most chunks of a problem.
    overlong: 'error', or 'drop': leave out and count what fits no bucket.
    seed: Of the training stream; evaluation problems are fixed.
    path: jsonl: FILE; huggingface: NAME[:SUBSET][@SPLIT], a folder, a file or
      a name on the hub; tfds: FOLDER[@SPLIT]. SPLIT is one of the dataset's
      own, by default 'train'; our splits are shares of it.
    test_path: All of it is the test split; '' = a share of `path`.
    format: A key of adapters.FORMATS, such as 'gsm8k'; '' = as data.fields
      says.
    malformed: 'error', or 'drop': leave bad records out, with a warning.
    question: Where the question goes: 'as_is', 'first' or 'last'.
    instruction: Opens every preamble.
  """
  source: str = option(PROCEDURAL, choices=(PROCEDURAL, *sources.SOURCES))
  layout: str = option(pipeline.STREAMING, choices=pipeline.LAYOUTS)
  prompts: int = option(8, least=1, most=2**16)
  lengths: tuple[int, ...] = option((56, 72), least=1, most=2**22,
                                    some=True)
  max_chunks: int = option(9, least=1, most=2**14)
  overlong: str = option('error', choices=('error', 'drop'))
  seed: int = option(0, least=0, below=2**32)
  path: str = option('')
  test_path: str = option('')
  format: str = option('', choices=('', *adapters.FORMATS))
  malformed: str = option('error', choices=sources.MALFORMED)
  question: str = option('as_is', choices=sources.PLACEMENTS)
  instruction: str = option('')


# Traces that are tried at once: arrays as long as the longest of them.
TOGETHER = 256


class Dataset:
  """Examples with the tokenizer, buckets and layout that render them.

  Attributes:
    reads: See visibility.as_read.
    agrees: The task's own verifier; None = credit.answers.
    same: One text for all that give the same answer, '' where none is given;
      None = credit.answers.
    solvable: The task's oracle, for rewards of threads; None = it has none.
  """

  def __init__(self, train: Callable[[int], Example],
               evaluation: Callable[[str], Sequence[Example]],
               tokenizer: Tokenizer, protocol: Protocol, *,
               lengths: Sequence[int], max_chunks: int, layout: str):
    """Examples of a source, and how they are rendered.

    Args:
      train: The training example at a position 0, 1, ...
      evaluation: All examples of a split, as a sequence that may be lazy.
      tokenizer, protocol: Render and annotate.
      lengths, max_chunks, layout: See pipeline.collate.
    """
    self._train, self._evaluation = train, evaluation
    self.tokenizer, self.protocol = tokenizer, protocol
    self.lengths, self.max_chunks = tuple(lengths), max_chunks
    self.layout = layout
    self.reads = visibility.STREAM
    # Examples that are not trained on, where they can be listed.
    self.held_out: Callable[[], Iterable[Example]] = tuple
    self.instruction = ''  # that opens their preambles
    self.agrees: Agrees | None = None
    self.same: Callable[[str], str] | None = None
    self.solvable: Agrees | None = None

  def reading(self, reads: str) -> Dataset:
    """The same examples for a policy that reads `reads`, see as_read."""
    out = copy.copy(self)
    out.reads = reads
    return out

  def imitating(self, path: str, *, overlong: str, seed: int) -> Dataset:
    """Training draws from a file of traces; evaluations keep their splits.

    Args:
      path: JSON lines of adapters.streaming_reasoning.
      overlong: See fitting().
      seed: Of their order.

    Raises:
      ValueError: There is no such file, an example in it has no trace or does
        not fit, or is one that is held out.
    """
    examples = fitting(
        sources.Jsonl(path, format='streaming_reasoning').part('all'),
        self.tokenizer, lengths=self.lengths, max_chunks=self.max_chunks,
        overlong=overlong, what=path, trace=self.traces)
    held_out = set(map(self.text_of, self.held_out()))
    if both := [e for e in examples if self.text_of(e) in held_out]:
      raise ValueError(
          f'{path}: {len(both)} of its {len(examples)} problems are held out '
          f'for validation or test, as {both[0].chunks[0].strip()!r:.60}')
    out = copy.copy(self)
    out._train = shuffled(examples, seed)
    return out

  def text_of(self, e: Example) -> str:
    """What tells a problem from others, whatever its white space."""
    preamble = e.preamble.removeprefix(self.instruction)
    return ' '.join(' '.join((preamble, *e.chunks)).split())

  def judged_by(self, agrees: Agrees, same: Callable[[str], str],
                solvable: Agrees | None = None) -> Dataset:
    """The same examples, whose answers `agrees` verifies.

    Args:
      agrees: Whether an answer, the first argument, is as right as the
        reference answer, the second.
      same: See the class.
      solvable: The same of the steps so far: whether they can be completed.
    """
    out = copy.copy(self)
    out.agrees, out.same, out.solvable = agrees, same, solvable
    return out

  def train(self, cursor: int, n: int, shard: tuple[int, int] = (0, 1)
            ) -> list[Example]:
    """A host's rows of the n training examples from position `cursor` on.

    Args:
      cursor: Position of the batch's first example.
      n: Examples of the batch, over all hosts.
      shard: See host_rows; the other rows are not read.

    Raises:
      ValueError: The hosts cannot share n evenly.
    """
    return [self._train(cursor + i) for i in host_rows(n, shard)]

  def size(self, split: str) -> int:
    """Number of examples of a split."""
    return len(self._evaluation(split))

  def evaluation(self, split: str, n: int) -> list[Example]:
    """The first n examples of a split, on every host.

    Raises:
      ValueError: The split has fewer than n.
    """
    examples = self._evaluation(split)
    if len(examples) < n:
      raise ValueError(f'split {split!r} has {len(examples)} examples, '
                       f'{n} were asked for')
    return [examples[i] for i in range(n)]

  def example(self, split: str, i: int) -> Example:
    """Example i of a split.

    Raises:
      IndexError: The split has no more than i.
    """
    return self._evaluation(split)[i]

  def collate(self, examples: Sequence[Example],
              lengths: Sequence[int] | None = None) -> pipeline.Batch:
    """See pipeline.collate; the source is shown as the policy reads it.

    Args:
      examples: Of one batch.
      lengths: Other buckets than the dataset's own.
    """
    batch = pipeline.collate(
        examples, self.tokenizer, lengths=lengths or self.lengths,
        max_chunks=self.max_chunks, layout=self.layout)
    return dataclasses.replace(
        batch, source=visibility.as_read(batch.source, self.reads))

  def traces(self, examples: Sequence[Example]) -> Target:
    """See pipeline.supervised_target."""
    return pipeline.supervised_target(
        examples, self.tokenizer, self.protocol, max_chunks=self.max_chunks,
        layout=self.layout)


def host_rows(n: int, shard: tuple[int, int]) -> range:
  """The rows of a batch of n that a host loads: one block per host, in order.

  Args:
    n: Rows of the batch, over all hosts.
    shard: Index of the host in 0..count-1, and count, as
      (jax.process_index(), jax.process_count()).

  Raises:
    ValueError: There is no such host, or count does not divide n.
  """
  index, count = shard
  if not 0 <= index < count:
    raise ValueError(f'shard={shard}: the index is outside 0..{count - 1}')
  if n % count:
    raise ValueError(f'{count} hosts cannot share {n} examples evenly')
  size = n // count
  return range(index * size, (index + 1) * size)


def shuffled(examples: Sequence[Example], seed: int
             ) -> Callable[[int], Example]:
  """position -> example: without end, each epoch in another order.

  Args:
    examples: Any sequence; an example is read only when its position is asked
      for.
    seed: Of the order.
  """
  stream = grain.MapDataset.source(examples).seed(seed).shuffle().repeat(
      reseed_each_epoch=True)
  return lambda position: stream[position]


def fitting(examples: Sequence[Example], tokenizer: Tokenizer, *,
            lengths: Sequence[int], max_chunks: int, overlong: str, what: str,
            trace: Callable[[Sequence[Example]], object] | None = None
            ) -> list[Example]:
  """The examples that fit the largest bucket, and whose trace fits the caps.

  Args:
    examples: Of any source.
    tokenizer, lengths, max_chunks: See pipeline.fits.
    overlong: 'error', or 'drop': leave out and count what does not fit.
    what: What errors and warnings call the examples.
    trace: Raises ValueError where the trace of any of the examples it gets
      cannot be imitated; None where traces are not used.

  Raises:
    ValueError: overlong='error' and one does not fit; nothing is truncated.
  """
  def unfit(example):
    if not pipeline.fits(example, tokenizer, lengths=lengths,
                         max_chunks=max_chunks):
      preamble, chunks = tokenizer.render(example)
      return (f'example {example.id} has {len(chunks)} chunks and '
              f'{len(preamble) + sum(map(len, chunks))} tokens; '
              f'data.max_chunks={max_chunks}, data.lengths={tuple(lengths)}')
    return None

  reasons = [unfit(example) for example in examples]
  if trace:
    fine = [i for i, why in enumerate(reasons) if why is None]
    for at in range(0, len(fine), TOGETHER):
      _check_traces(trace, examples, fine[at:at + TOGETHER], reasons)
  kept = []
  for example, why in zip(examples, reasons, strict=True):
    if why is None:
      kept.append(example)
    elif overlong == 'error':
      raise ValueError(f"{what}: {why} (data.overlong='drop' leaves such "
                       f'examples out)')
  if dropped := len(examples) - len(kept):
    logging.warning('%s: left out %d of %d examples that fit no bucket or '
                    'exceed a cap', what, dropped, len(examples))
    if not kept:
      raise ValueError(f'{what}: none of {len(examples)} examples fits '
                       f'data.max_chunks={max_chunks}, data.lengths='
                       f'{tuple(lengths)} and the caps of traces')
  return kept


def _check_traces(trace, examples, which, reasons):
  """Writes into `reasons` why a trace cannot be imitated.

  All of `which` are tried at once; where that fails, each half is.
  """
  try:
    if which:
      trace([examples[i] for i in which])
  except ValueError as e:
    if len(which) == 1:
      reasons[which[0]] = str(e)
      return
    half = len(which) // 2
    _check_traces(trace, examples, which[:half], reasons)
    _check_traces(trace, examples, which[half:], reasons)
