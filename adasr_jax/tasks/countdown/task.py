"""The task: a problem and its demonstration by index; its entry."""

from __future__ import annotations

import dataclasses
import itertools

from adasr_jax.core.options import Sections
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example, Piece, TEXT, ThreadTrace
from adasr_jax.data.dataset import Agrees, Dataset
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.tasks.countdown import answers
from adasr_jax.tasks.countdown.answers import spell
from adasr_jax.tasks.countdown.problems import (
    SPLITS, Problem, Size, content_hash, problem)
from adasr_jax.tasks.countdown.search import (
    PARALLEL, Demonstration, Search, Thread, demonstrate)
from adasr_jax.tasks.countdown.solve import first
from adasr_jax.tasks.countdown.vocabulary import END_THINK, KINDS, embedded
from adasr_jax.tasks.draws import Draws
from adasr_jax.tasks.task import Entry, generated, procedural


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
    search = self.search
    if split != 'train' and search.condition and search.condition_value < 0:
      search = dataclasses.replace(search, condition_value=search.most_budget)
    return demonstrate(self.problem(split, index), search, self.seed,
                       (index, tuple(SPLITS).index(split)))

  def example(self, split: str, index: int) -> Example:
    """Problem `index` of `split` as text, with its demonstration as trace."""
    p = self.problem(split, index)
    demo = self.demonstration(split, index)
    best = first(p.numbers, p.target, p.largest)
    assert best is not None  # problem() makes only solvable ones
    if self.search.kind == PARALLEL:
      root = (Piece('skip'), *_pieces(demo.root))
      shown = self._shown(demo, (index, tuple(SPLITS).index(split)))
      trace = dict(threads=(root, *(
          _pieces(child) if i in shown else ()
          for i, child in enumerate(demo.children))))
    else:
      words = demo.root.words
      trace = dict(thoughts=(None,), trace_answer=demo.answer,
                   deep=' '.join(words[:words.index(END_THINK)]))
    return Example(
        id=content_hash(p.numbers, p.target) % 2**32, preamble=demo.budget,
        chunks=(str(p),), answer=spell(best), question_chunk=0,
        relevant=(True,), kinds=('problem',), **trace)

  def _shown(self, demo, where) -> set[int]:
    """The children that a trace shows; see Search.balance."""
    holds = [child.holds for child in demo.children]
    shown = {i for i, h in enumerate(holds) if h or not self.search.balance}
    draw = Draws(self.seed, 3, 0, *where)
    others = [i for i in range(len(holds)) if i not in shown]
    for _ in range(min(len(shown), len(others))):
      shown.add(others.pop(draw.between(0, len(others) - 1)))
    return shown


def _pieces(thread: Thread) -> ThreadTrace:
  """A thread's words as pieces."""
  out = []
  for (kind, forced), words in itertools.groupby(
      zip(thread.words, thread.forced),
      lambda word: (KINDS.get(word[0], TEXT), word[1])):
    if kind == TEXT:
      out.append(Piece(TEXT, ' '.join(w for w, _ in words), forced))
    else:
      out += [Piece(kind, '', forced) for _ in words]
  return tuple(out)


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
  """Problems by index; all have a trace."""
  del traces
  search = s['data.search']
  task = lambda seed: Task(seed, s['data.countdown'], search)
  return generated(s, tokenizer, protocol,
                   lambda seed, split, i: task(seed).example(split, i))


def agrees(s: Sections) -> Agrees:
  """See Entry.agrees."""
  largest = s['data.countdown'].largest
  return lambda text, reference: answers.agrees(text, reference, largest)


def solvable(s: Sections) -> Agrees:
  """See Entry.solvable."""
  largest = s['data.countdown'].largest
  return lambda text, reference: answers.solvable_after(text, reference,
                                                        largest)


def answer_cap(numbers: int) -> int:
  """Least Protocol.answer_cap with which an answer ends by itself.

  A step is five words, between two is a comma, and then it ends; the last slot
  of a cap is forced.
  """
  return 6 * (numbers - 1) + 1


def check(s: Sections) -> None:
  """See Entry.check."""
  size, search = s['data.countdown'], s['data.search']
  if s['tokenizer'].kind != 'embedded':
    raise ValueError("task='countdown' needs tokenizer.kind='embedded'")
  procedural(s)
  least = answer_cap(size.numbers) - 1  # enough, though it counts as cut
  if s['rollout'].answer_cap < least:
    raise ValueError(
        f'rollout.answer_cap={s["rollout"].answer_cap} is below the {least} '
        f'slots that data.countdown.numbers={size.numbers} need')
  least = search.least_context(size.numbers)
  if search.context < least:
    raise ValueError(
        f'data.search.context={search.context} is below the {least} slots '
        f'that data.countdown.numbers={size.numbers} need')
  # The prompt must be able to spell its number.
  value = search.condition_value
  if value < 0:
    value = search.most_budget
  if search.condition and value > size.largest:
    raise ValueError(
        f'data.search: a prompt with {search.condition!r} up to {value} needs '
        f'data.countdown.largest={size.largest} to be at least that')


ENTRY = Entry(
    tokenizer=make_tokenizer, dataset=make_dataset, splits=tuple(SPLITS),
    check=check, agrees=agrees, same=answers.same, solvable=solvable,
    sections={'data.countdown': Size(), 'data.search': Search()})
