r"""Streaming-reasoning problems as a TFDS dataset, without TensorFlow.

  python -m adasr_jax.data.tfds_builder --out=DIR --path=FILE \
      [--test_path=FILE] [--format=gsm8k | --fields question=q answer=a ...]

prepares DIR/streaming_reasoning/VERSION as array_record files: the split
'train' from --path, 'test' from --test_path. It prints the path to give to
read().
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from adasr_jax.core.types import Example
from adasr_jax.data import adapters
from adasr_jax.data import records
from adasr_jax.data import sources

# A field that an Example may lack is a list of one entry or none. `skips` says
# which thoughts are skipped, since a thought may also be empty text. The id is
# for other readers: ours computes it from the text, with the same result.
_OPTIONAL = ('deep', 'trace_answer', 'group')


class StreamingReasoning(tfds.core.GeneratorBasedBuilder):
  """Examples, in their order."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, splits: Mapping[str, Iterable[Example]] | None = None,
               **kwargs):
    """As any builder; `splits` holds the examples that it prepares."""
    self._splits = splits or {}
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    f, text = tfds.features, tfds.features.Text()
    return tfds.core.DatasetInfo(
        builder=self, disable_shuffling=True,
        description='Problems that arrive sentence by sentence.',
        features=f.FeaturesDict({
            'id': np.int64, 'preamble': text, 'chunks': f.Sequence(text),
            'answer': text, 'question_chunk': np.int32,
            'relevant': f.Sequence(np.bool_), 'thoughts': f.Sequence(text),
            'skips': f.Sequence(np.bool_), 'deep': f.Sequence(text),
            'kinds': f.Sequence(text), 'trace_answer': f.Sequence(text),
            'group': f.Sequence(np.int64), 'instance': np.int32}))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {name: self._generate_examples(examples)
            for name, examples in self._splits.items()}

  def _generate_examples(self, examples):
    yield from enumerate(map(encode, examples))


def encode(e: Example) -> dict[str, Any]:
  """The features of an example."""
  thoughts = e.thoughts or ()
  return {
      'id': e.id, 'preamble': e.preamble, 'chunks': e.chunks,
      'answer': e.answer, 'question_chunk': e.question_chunk,
      'relevant': e.relevant or (), 'kinds': e.kinds, 'instance': e.instance,
      'thoughts': [t or '' for t in thoughts],
      'skips': [t is None for t in thoughts],
      **{name: [x for x in [getattr(e, name)] if x is not None]
         for name in _OPTIONAL}}


def decode(features: Mapping[str, Any]) -> dict[str, Any]:
  """Features to a record of adapters.streaming_reasoning; undoes encode."""
  out = dict(features)
  skips = out.pop('skips')
  out['thoughts'] = [None if skip else t
                     for t, skip in zip(out['thoughts'], skips, strict=True)]
  return out | {name: next(iter(out[name]), None) for name in _OPTIONAL}


def prepare(splits: Mapping[str, Iterable[Example]], out: pathlib.Path
            ) -> pathlib.Path:
  """Writes the examples of each split; returns the dataset's folder.

  Raises:
    ValueError: The folder exists already.
  """
  builder = StreamingReasoning(splits=splits, data_dir=str(out))
  folder = pathlib.Path(builder.data_path)
  if folder.exists():  # TFDS would keep its content
    raise ValueError(f'{folder} exists already')
  builder.download_and_prepare()
  return folder


def read(path: str | pathlib.Path) -> Iterator[tuple[str, Any]]:
  """(where, record) for each record of a split; bytes are decoded to text.

  `where` is 'path: record 3', counted from 1. Records that our own builder
  wrote are those of adapters.streaming_reasoning; records of any other dataset
  have the names of its features.

  Args:
    path: `FOLDER[@SPLIT]`; FOLDER holds dataset_info.json and array_record
      files; the split is 'train' where none is given.

  Raises:
    ValueError: It cannot be read, as `path: why`.
  """
  folder, split = records.address(path)
  if not (pathlib.Path(folder) / 'dataset_info.json').is_file():
    raise ValueError(f'{path}: no dataset_info.json in {folder}')
  builder, split = tfds.builder_from_directory(folder), split or 'train'
  if split not in builder.info.splits:
    raise ValueError(f'{path}: no split {split!r} among '
                     f'{", ".join(builder.info.splits)}')
  try:
    source = builder.as_data_source(split=split)
  except NotImplementedError as e:
    raise ValueError(f'{path}: its files are {builder.info.file_format.value},'
                     f' not array_record') from e
  own = builder.name == StreamingReasoning.name
  for i, features in enumerate(source, 1):
    record = _python(features)
    yield f'{path}: record {i}', decode(record) if own else record


def _python(value):
  """Features as JSON would have them."""
  if isinstance(value, dict):
    return {k: _python(v) for k, v in value.items()}
  if isinstance(value, (list, np.ndarray)):
    return [_python(v) for v in value]
  if isinstance(value, bytes):
    return value.decode()
  return value.item() if isinstance(value, np.generic) else value


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      prog='python -m adasr_jax.data.tfds_builder',
      description=__doc__.split('\n', maxsplit=1)[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--path', required=True)
  parser.add_argument('--test_path')
  parser.add_argument('--format', choices=adapters.FORMATS, default='')
  parser.add_argument('--fields', nargs='*', metavar='what=name',
                      default=['question=question', 'answer=answer'],
                      help='as data.fields of a config')
  args = parser.parse_args(argv)
  fields = dict(f.partition('=')[::2] for f in args.fields)
  paths = {'train': args.path, 'test': args.test_path}
  try:
    folder = prepare({
        name: sources.Jsonl(path, fields, format=args.format)
        for name, path in paths.items() if path}, args.out)
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  print(folder)


if __name__ == '__main__':
  main()
