"""The task: a problem and its trace by index; its entry in TASKS."""

from __future__ import annotations

import dataclasses

from adasr_jax.core.options import Sections
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example
from adasr_jax.data.dataset import Dataset
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.tasks.draws import Draws
from adasr_jax.tasks.task import Entry, generated, procedural
from adasr_jax.tasks.word_problems.problems import (
    DEFAULT, OOD, SPLITS, Difficulty, candidate, content_hash, split_of)
from adasr_jax.tasks.word_problems.teacher import (
    PERFECT, UNDISCIPLINED, Teacher, apply, trace)
from adasr_jax.tasks.word_problems.vocabulary import embedded

_ATTEMPTS = 1000  # all fail with probability 0.9 ** 1000


@dataclasses.dataclass(frozen=True)
class Task:
  """Problems by index; example() is a pure function, there is no state.

  A hash of a problem's content decides its split, so no two splits share a
  problem, whatever the seeds and difficulties.

  Attributes:
    seed: In [0, 2**64).
    difficulty: Of 'train', 'validation' and 'test'.
    teacher: Writes the traces; problems do not depend on it.
    ood_difficulty: Of 'ood'.
  """
  seed: int = 0
  difficulty: Difficulty = DEFAULT
  teacher: Teacher = PERFECT
  ood_difficulty: Difficulty = OOD

  def __post_init__(self):
    if not 0 <= self.seed < 2**64:
      raise ValueError(f'seed={self.seed} is outside [0, 2**64)')

  def example(self, split: str, index: int) -> Example:
    """Problem `index` of `split`, with its trace.

    Args:
      split: 'train', 'validation', 'test' or 'ood'.
      index: An integer in [0, 2**64); a split has no end.

    Raises:
      ValueError: There is no such split or index.
    """
    if split not in SPLITS:
      raise ValueError(f'split={split!r} is not one of {tuple(SPLITS)}')
    if not 0 <= index < 2**64:
      raise ValueError(f'index={index} is outside [0, 2**64)')
    difficulty = self.ood_difficulty if split == 'ood' else self.difficulty
    where = (index, tuple(SPLITS).index(split))
    for attempt in range(_ATTEMPTS):
      question, asked, at, sentences = candidate(
          Draws(self.seed, 0, attempt, *where), difficulty)
      lines = [f'{s.text} .' for s in sentences]
      content = content_hash(question, lines)
      if split_of(content) == split:
        break
    else:
      raise ValueError(f'no {split} problem in {_ATTEMPTS} candidates of '
                       f'{difficulty}')
    value = 0
    for s in sentences:
      value = apply(s.op, value, s.number) if s.op else value
    thoughts, deep, trace_answer = trace(
        sentences, self.teacher, Draws(self.seed, 1, 0, *where))
    relevant = [bool(s.op) for s in sentences]
    kinds = [s.kind for s in sentences]
    if at >= 0:
      for column, entry in ((lines, question), (relevant, True),
                            (kinds, 'question'), (thoughts, f'asked {asked}')):
        column.insert(at, entry)
    return Example(
        id=content % 2**32, preamble='' if at >= 0 else question,
        chunks=(lines[0], *(f' {line}' for line in lines[1:])),
        answer=str(value), question_chunk=at, relevant=tuple(relevant),
        thoughts=tuple(thoughts), deep=deep, kinds=tuple(kinds),
        trace_answer=trace_answer)


def make_tokenizer(s: Sections, vocab_size: int, *, resize: bool = False
                   ) -> Tokenizer:
  """The embedded tokenizer.

  Raises:
    ValueError: model.vocab_size has another value.
  """
  del s, resize
  out = embedded()
  if vocab_size not in (0, out.vocab_size):
    raise ValueError(f'model.vocab_size={vocab_size}, the tokenizer has '
                     f'{out.vocab_size}')
  return out


def make_dataset(s: Sections, tokenizer: Tokenizer, protocol: Protocol, *,
                 traces: bool) -> Dataset:
  """Problems by index; all have a trace."""
  del traces
  task = lambda seed: Task(
      seed=seed, difficulty=s['data.task'], ood_difficulty=s['data.ood_task'],
      teacher=s['data.teacher'])
  return generated(s, tokenizer, protocol,
                   lambda seed, split, i: task(seed).example(split, i))


def check(s: Sections) -> None:
  """See Entry.check."""
  if s['tokenizer'].kind != 'embedded':
    raise ValueError("data.source='procedural' needs tokenizer.kind="
                     "'embedded'")
  procedural(s)


ENTRY = Entry(
    tokenizer=make_tokenizer, dataset=make_dataset,
    splits=tuple(SPLITS), check=check,
    sections={'data.task': DEFAULT,
              'data.ood_task': OOD,
              'data.teacher': UNDISCIPLINED})
