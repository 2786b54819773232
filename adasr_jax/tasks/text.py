"""Problems of files and datasets, with a tokenizer of `transformers`."""

from __future__ import annotations

import contextlib
import functools
import os

from absl import logging

from adasr_jax.core.options import Sections
from adasr_jax.core.protocol import Protocol
from adasr_jax.data import dataset as dataset_lib
from adasr_jax.data import pipeline
from adasr_jax.data import records
from adasr_jax.data import sources
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.tasks.task import Entry


def make_tokenizer(s: Sections, vocab_size: int, *, resize: bool = False
                   ) -> Tokenizer:
  """See tokenizer.from_folder."""
  return tokenizer_lib.from_folder(s['tokenizer'].path, vocab_size,
                                   resize=resize)


def make_dataset(s: Sections, tokenizer: Tokenizer, protocol: Protocol, *,
                 traces: bool) -> dataset_lib.Dataset:
  """The records of data.path, shuffled for training; see DataConfig.

  Raises:
    ValueError: A record is malformed or does not fit, or a split has fewer
      problems than the evaluation needs.
  """
  d = s['data']
  fit = dict(lengths=d.lengths, max_chunks=d.max_chunks)

  @functools.cache
  def source(path):
    return sources.SOURCES[d.source](
        path, vars(s['data.fields']), format=d.format, question=d.question,
        instruction=d.instruction, malformed=d.malformed)

  @functools.cache
  def read(split):
    path, part = d.path, split
    if d.test_path and split == 'test':
      path, part = d.test_path, 'all'
    elif d.test_path and split == 'train':
      part = 'train+test'
    trace = None
    if traces and split == 'train':
      trace = lambda some: pipeline.supervised_target(
          some, tokenizer, protocol, max_chunks=d.max_chunks, layout=d.layout)
    return dataset_lib.fitting(source(path).part(part), tokenizer,
                               overlong=d.overlong, what=f'{path} ({split})',
                               trace=trace, **fit)

  data = dataset_lib.Dataset(
      dataset_lib.shuffled(read('train'), d.seed), read, tokenizer, protocol,
      layout=d.layout, **fit)
  _check_sizes(s['eval'], d.test_path, read)
  data.held_out, data.instruction = lambda: _held_out(read), d.instruction
  e = s['eval']
  if d.test_path and s['run'].method != 'eval' and 'test' in (
      e.split, *[e.periodic_split] * bool(e.every)):
    trained = set(map(data.text_of, read('train')))
    if both := sum(data.text_of(x) in trained for x in read('test')):
      logging.warning('%d of the %d problems of data.test_path are also '
                      'trained on', both, len(read('test')))
  return data


def _held_out(read):
  """Examples of validation and test; a small file may have none."""
  for split in ('validation', 'test'):
    with contextlib.suppress(ValueError):
      yield from read(split)


def _check_sizes(e, test_path, read):
  asked = [('examples', e.split, e.examples)]
  if e.every:
    asked.append(('periodic_examples', e.periodic_split, e.periodic_examples))
  for name, split, n in asked:
    if n > len(read(split)):
      share = (' (5 % of data.path)' if split == 'validation'
               or split == 'test' and not test_path else '')
      raise ValueError(f'eval.{name}={n}: the split {split!r} has '
                       f'{len(read(split))} examples{share}')


def check(s: Sections) -> None:
  """Refuses a config that cannot read records; see Entry.check."""
  d = s['data']
  of_source = f'data.source={d.source!r}'
  if not d.path:
    raise ValueError(f'data.path must be set with {of_source}')
  if s['tokenizer'].kind != 'folder':
    raise ValueError(f"{of_source} needs tokenizer.kind='folder'")
  knows = (d.format == 'streaming_reasoning' if d.format
           else s['data.fields'].relevant)
  if s['eval'].decisions != 'policy' and not knows:
    raise ValueError("eval.decisions='gold' needs data.fields.relevant or "
                     "data.format='streaming_reasoning'")


def check_files(s: Sections) -> None:
  """Refuses paths of data and tokenizer that are not there.

  See Entry.check_files.
  """
  d, folder = s['data'], s['tokenizer'].path
  for name, path in (('path', d.path), ('test_path', d.test_path)):
    there, what = {
        'jsonl': (os.path.isfile(path), 'file'),
        'tfds': (os.path.isdir(records.address(path)[0]), 'folder'),
    }.get(d.source, (True, ''))
    if path and not there:
      raise ValueError(f'data.{name}={path!r} is not a {what}')
  if not folder or not os.path.isdir(folder):
    raise ValueError(f'tokenizer.path={folder!r} is not a folder')


ENTRY = Entry(tokenizer=make_tokenizer, dataset=make_dataset,
              splits=tuple(sources.SPLITS),
              sections={'data.fields': sources.FieldsConfig()}, check=check,
              check_files=check_files)
