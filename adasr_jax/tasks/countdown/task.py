"""The task: a problem and its demonstration by index; its entry."""

from __future__ import annotations

import dataclasses

from adasr_jax.core.options import Sections
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example
from adasr_jax.data.dataset import Dataset
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.tasks.countdown.answers import spell
from adasr_jax.tasks.countdown.problems import (
    SPLITS, Problem, Size, content_hash, problem)
from adasr_jax.tasks.countdown.search import (
    CALLS, PARALLEL, Demonstration, Search, demonstrate)
from adasr_jax.tasks.countdown.solve import first
from adasr_jax.tasks.countdown.vocabulary import END_THINK, embedded
from adasr_jax.tasks.task import Entry, generated


@dataclasses.dataclass(frozen=True)
class Task:
  """Problems by index; pure functions, there is no state.

  Attributes:
    seed: In [0, 2**64).
    size: Of the problems.
    search: Writes the demonstrations; problems do not depend on it.
  """
  seed: int = 0
  size: Size = Size()
  search: Search = Search()

  def problem(self, split: str, index: int) -> Problem:
    """See problems.problem."""
    return problem(self.size, self.seed, split, index)

  def demonstration(self, split: str, index: int) -> Demonstration:
    """See search.demonstrate; its threads are words, vocabulary.ids()."""
    return demonstrate(self.problem(split, index), self.search, self.seed,
                       (index, tuple(SPLITS).index(split)))

  def example(self, split: str, index: int) -> Example:
    """Problem `index` of `split` as text.

    Its trace is the demonstration, if that is one thread; a tree is no text
    and only in demonstration().
    """
    p = self.problem(split, index)
    demo = self.demonstration(split, index)
    best = first(p.numbers, p.target, p.largest)
    assert best is not None  # problem() makes only solvable ones
    trace = {}
    if self.search.kind != PARALLEL:
      words = demo.root.words
      trace = dict(thoughts=(None,), trace_answer=demo.answer,
                   deep=' '.join(words[:words.index(END_THINK)]))
    return Example(
        id=content_hash(p.numbers, p.target) % 2**32, preamble=demo.budget,
        chunks=(str(p),), answer=spell(best), question_chunk=0,
        relevant=(True,), kinds=('problem',), **trace)


def make_tokenizer(s: Sections, vocab_size: int, *, resize: bool = False
                   ) -> Tokenizer:
  """The embedded tokenizer.

  Raises:
    ValueError: model.vocab_size has another value.
  """
  del resize
  out = embedded(s['data.countdown'].largest)
  if vocab_size not in (0, out.vocab_size):
    raise ValueError(f'model.vocab_size={vocab_size}, the tokenizer has '
                     f'{out.vocab_size}')
  return out


def make_dataset(s: Sections, tokenizer: Tokenizer, protocol: Protocol, *,
                 traces: bool) -> Dataset:
  """Problems by index; a parallel search has no trace as text."""
  search = s['data.search']
  if traces and search.kind == PARALLEL:
    raise ValueError(f'data.search.kind={PARALLEL!r} has no trace of one '
                     'thread')
  task = lambda seed: Task(seed, s['data.countdown'], search)
  return generated(s, tokenizer, protocol,
                   lambda seed, split, i: task(seed).example(split, i))


def check(s: Sections) -> None:
  """See Entry.check."""
  size, search = s['data.countdown'], s['data.search']
  if s['tokenizer'].kind != 'embedded':
    raise ValueError("task='countdown' needs tokenizer.kind='embedded'")
  least = search.least_context(size.numbers)
  if search.context < least:
    raise ValueError(
        f'data.search.context={search.context} is below the {least} slots '
        f'that data.countdown.numbers={size.numbers} need')
  # The prompt must be able to spell its number.
  value = search.condition_value
  if search.condition and value < 0:
    value = (search.max_calls if search.condition == CALLS else
             -(-search.context // search.token_unit))
  if search.condition and value > size.largest:
    raise ValueError(
        f'data.search: a prompt with {search.condition!r} up to {value} needs '
        f'data.countdown.largest={size.largest} to be at least that')


ENTRY = Entry(
    tokenizer=make_tokenizer, dataset=make_dataset, splits=tuple(SPLITS),
    check=check, sections={'data.countdown': Size(), 'data.search': Search()})
