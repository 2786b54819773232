"""What a task brings: one entry in TASKS (see __init__)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol

from adasr_jax.core.options import Sections
from adasr_jax.core.protocol import Protocol as TargetProtocol
from adasr_jax.core.types import Example
from adasr_jax.data.dataset import Agrees, DataConfig, Dataset
from adasr_jax.data.tokenizer import Tokenizer


class MakeTokenizer(Protocol):
  """The task's tokenizer for an embedding of `vocab_size` rows.

  `vocab_size` = 0: as many as it needs. `resize`: it may take more rows than
  that for the control tokens. Raises ValueError where rows do not fit.
  """

  def __call__(self, sections: Sections, vocab_size: int, *,
               resize: bool = False) -> Tokenizer:
    ...


class MakeDataset(Protocol):
  """The task's problems. `traces`: examples must have a supervised trace."""

  def __call__(self, sections: Sections, tokenizer: Tokenizer,
               protocol: TargetProtocol, *, traces: bool) -> Dataset:
    ...


@dataclasses.dataclass(frozen=True)
class Entry:
  """A task, as TASKS holds it.

  Attributes:
    tokenizer: Makes its tokenizer.
    dataset: Makes its problems.
    splits: Names of its evaluation splits.
    sections: Sections of the config that are its own: name -> dataclass with
      the defaults.
    check: Refuses values that cannot work together, with a ValueError that
      names field and value.
    check_files: The same for files that the config names.
    agrees: Makes its verifier of answers; None = credit.answers.
    same: With such a verifier, see Dataset.same.
    solvable: Makes its judge of steps, see Dataset.judged_by; an oracle. None =
      it has none.
  """
  tokenizer: MakeTokenizer
  dataset: MakeDataset
  splits: Sequence[str]
  sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  check: Callable[[Sections], None] = lambda sections: None
  check_files: Callable[[Sections], None] = lambda sections: None
  agrees: Callable[[Sections], Agrees] | None = None
  same: Callable[[str], str] = str.strip
  solvable: Callable[[Sections], Agrees] | None = None


# Fields of data that only records have.
_OF_RECORDS = ('path', 'test_path', 'format', 'malformed', 'overlong',
               'question', 'instruction')


def procedural(s: Sections) -> None:
  """Refuses fields that problems made by a program do not read.

  Raises:
    ValueError: Names the field and its value.
  """
  d, default = s['data'], DataConfig()
  for name in _OF_RECORDS:
    if (value := getattr(d, name)) != getattr(default, name):
      raise ValueError(f'data.{name}={value!r} is not read with data.source='
                       f'{d.source!r}')


def generated(s: Sections, tokenizer: Tokenizer, protocol: TargetProtocol,
              example: Callable[[str, int, int], Example]) -> Dataset:
  """A Dataset of problems that a program makes.

  Args:
    s: Its 'data' section is read.
    tokenizer, protocol: Render the problems.
    example: (seed, split, i) -> the i-th problem of a split. Evaluation always
      has seed 0: the same problems whatever the seed of the training stream.
  """
  d = s['data']
  return Dataset(lambda i: example(d.seed, 'train', i),
                 lambda split: Endless(lambda i: example(0, split, i)),
                 tokenizer, protocol, lengths=d.lengths,
                 max_chunks=d.max_chunks, layout=d.layout)


@dataclasses.dataclass(frozen=True)
class Endless:
  """A sequence without end, computed by index."""
  item: Callable[[int], Example]

  def __len__(self):
    return 2**31

  def __getitem__(self, i):
    return self.item(i)
