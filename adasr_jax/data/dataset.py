"""Index-addressable examples of a run: position in, examples out.

The training stream is a pure function of (source, seed, position), so that a
data position is all that a checkpoint has to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from absl import logging
import grain.python as grain

from adasr_jax.data import pipeline
from adasr_jax.protocol import Protocol
from adasr_jax.tokenizer import Tokenizer
from adasr_jax.types import Example, Target


class Dataset:
  """Examples with the tokenizer, buckets and layout that render them."""

  def __init__(self, train: Callable[[int], Example],
               evaluation: Callable[[str], Sequence[Example]],
               tokenizer: Tokenizer, protocol: Protocol, *,
               lengths: Sequence[int], max_chunks: int, layout: str):
    """See build.dataset.

    Args:
      train: The training example at a position 0, 1, ...
      evaluation: All examples of a split (lazily, a sequence).
      tokenizer, protocol: Render and annotate.
      lengths, max_chunks, layout: See pipeline.collate.
    """
    self._train, self._evaluation = train, evaluation
    self.tokenizer, self.protocol = tokenizer, protocol
    self.lengths, self.max_chunks = tuple(lengths), max_chunks
    self.layout = layout

  def train(self, cursor: int, n: int) -> list[Example]:
    """The n training examples from position `cursor` on."""
    return [self._train(i) for i in range(cursor, cursor + n)]

  def evaluation(self, split: str, n: int) -> list[Example]:
    """The first n examples of a split.

    Raises:
      ValueError: The split has fewer.
    """
    examples = self._evaluation(split)
    if len(examples) < n:
      raise ValueError(f'split {split!r} has {len(examples)} examples, '
                       f'{n} were asked for')
    return [examples[i] for i in range(n)]

  def collate(self, examples: Sequence[Example]) -> pipeline.Batch:
    """See pipeline.collate."""
    return pipeline.collate(examples, self.tokenizer, lengths=self.lengths,
                            max_chunks=self.max_chunks, layout=self.layout)

  def traces(self, examples: Sequence[Example]) -> Target:
    """See pipeline.supervised_target."""
    return pipeline.supervised_target(
        examples, self.tokenizer, self.protocol, max_chunks=self.max_chunks,
        layout=self.layout)


def shuffled(examples: Sequence[Example], seed: int
             ) -> Callable[[int], Example]:
  """position -> example: another order each epoch, without end."""
  stream = grain.MapDataset.source(examples).seed(seed).shuffle().repeat(
      reseed_each_epoch=True)
  return lambda position: stream[position]


def fitting(examples: Sequence[Example], tokenizer: Tokenizer, *,
            lengths: Sequence[int], max_chunks: int, overlong: str,
            what: str) -> list[Example]:
  """The examples that fit the largest bucket.

  Raises:
    ValueError: overlong='error' and one does not; nothing is truncated.
  """
  kept = []
  for example in examples:
    if pipeline.fits(example, tokenizer, lengths=lengths,
                     max_chunks=max_chunks):
      kept.append(example)
    elif overlong == 'error':
      preamble, chunks = tokenizer.render(example)
      raise ValueError(
          f'{what}: example {example.id} has {len(chunks)} chunks and '
          f'{len(preamble) + sum(map(len, chunks))} tokens; data.max_chunks='
          f'{max_chunks}, data.lengths={tuple(lengths)} (data.overlong='
          f"'drop' leaves such examples out)")
  if dropped := len(examples) - len(kept):
    logging.warning('%s: left out %d of %d examples that fit no bucket',
                    what, dropped, len(examples))
  return kept
