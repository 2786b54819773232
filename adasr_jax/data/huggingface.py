"""Records of Hugging Face datasets, from the hub or from this machine."""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
from typing import Any

import datasets

from adasr_jax.data import records

_FILES = {'.parquet': 'parquet', '.csv': 'csv', '.json': 'json',
          '.jsonl': 'json'}


def read(path: str | pathlib.Path) -> Iterator[tuple[str, Any]]:
  """(where, record) for each record of one of the dataset's own splits.

  `where` is 'path: record 3', counted from 1.

  Args:
    path: `NAME[:SUBSET][@SPLIT]`; the split is 'train' where none is given.
      NAME is a folder that `save_to_disk` wrote, a folder or file of parquet,
      JSON or CSV, or else a name on the hub, as in 'openai/gsm8k:main@test'.

  Raises:
    ValueError: It cannot be read, as `path: why`.
  """
  try:
    dataset = _load(*records.address(path))
  except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
    if isinstance(e, datasets.exceptions.DatasetGenerationError):
      e = e.__cause__ or e
    raise ValueError(f'{path}: {" ".join(str(e).split())}') from e
  for i, record in enumerate(dataset, 1):
    yield f'{path}: record {i}', record


def _load(name, split):
  path = pathlib.Path(name)
  if (path / 'state.json').is_file():
    if split:
      raise ValueError('a dataset without splits')
    return datasets.load_from_disk(name)
  split = split or 'train'
  if (path / 'dataset_dict.json').is_file():
    splits = datasets.load_from_disk(name)
    if split not in splits:
      raise ValueError(f'no split {split!r} among {", ".join(splits)}')
    return splits[split]
  if path.is_file():
    if path.suffix not in _FILES:
      raise ValueError(f'not a file of type {", ".join(_FILES)}')
    return datasets.load_dataset(_FILES[path.suffix], data_files=name,
                                 split=split)
  subset = None
  if not path.exists():
    name, _, subset = name.partition(':')
  return datasets.load_dataset(name, subset or None, split=split)
