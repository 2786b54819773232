"""python -m adasr_jax.tools.show --config=FILE[:args] [--index=N]

Prints one example as the model sees it: the exact rendered prompt with its
control tokens; each piece with its phase, positions and tokens; the supervised
trace, where there is one, thread by thread; and which tokens may read which. In
colour on a terminal, unless NO_COLOR is set.

  --index=N      which example: for 'train', the one at position N of the run;
                 for another split, its N-th
  --split=NAME   train, or a split of evaluation
  --config.x.y=v changes a field, as in adasr_jax.main
"""

from __future__ import annotations

import dataclasses
import os
import sys

from absl import flags
from ml_collections import config_flags
import numpy as np

from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example
from adasr_jax.core import visibility
from adasr_jax.data import pipeline
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.run import command

# Colours of the phases in turn; the preamble has none.
_COLOURS = (36, 33, 35, 32, 34, 31)
# Stage -> what is written in it; in the others, a thought.
_STAGES = {
    protocol_lib.PREFIX: 'prefix', protocol_lib.DEEP: 'deep',
    protocol_lib.ANSWER: 'answer', protocol_lib.BRIEF: 'brief',
    protocol_lib.DEEP_BRIEF: 'brief', protocol_lib.JOINED: 'joined',
    protocol_lib.DEEP_JOINED: 'joined', protocol_lib.CHILD: 'child',
    protocol_lib.RESULT: 'result'}
# All of a phase, the part written before, nothing.
READ, SO_FAR, UNREAD = '█', '▄', '·'


@dataclasses.dataclass(frozen=True)
class Piece:
  """Tokens of one phase.

  Attributes:
    phase: Their phase.
    what: 'preamble', 'question', 'thought', ...
    start: Slot of the first token, in the source or in the target.
    ids: Token ids.
  """
  phase: int
  what: str
  start: int
  ids: tuple[int, ...]


def source_pieces(example: Example, tokenizer: Tokenizer, *, layout: str,
                  reads: str = visibility.STREAM) -> list[Piece]:
  """What the model reads; see visibility.as_read."""
  preamble, chunks = tokenizer.render(example)
  streamed, out, at = layout == pipeline.STREAMING, [], 0
  for c, ids in enumerate([preamble, *chunks]):
    what = 'preamble'
    if c:
      what = 'chunk' if streamed else 'read'
      if c - 1 == example.question_chunk:
        what = 'question'
      elif example.kinds:
        what = example.kinds[c - 1]
      elif example.relevant is not None and not example.relevant[c - 1]:
        what = 'distractor'
    phase = c if streamed and reads == visibility.STREAM else 0
    out.append(Piece(phase, what, at, tuple(ids)))
    at += len(ids)
  return out


def target_pieces(example: Example, tokenizer: Tokenizer, protocol: Protocol,
                  *, layout: str) -> list[list[Piece]]:
  """What the model should write, and what is forced upon it; of each thread.

  The root is first; a child that the trace does not show is empty. Without a
  trace there is only the root's forced prefix.

  Raises:
    ValueError: The trace has children that its root does not spawn.
  """
  if not has_trace(example):
    return [[Piece(0, 'prefix', 0, tokenizer.prefix)]]
  target = pipeline.rendered([example], tokenizer, protocol, layout=layout)
  shown = max(1, len(example.threads or ()))
  return [_pieces_of(*(a[w][:int(target.valid[w].sum())] for a in (
      target.tokens, target.phase, target.stage, target.sampled)), tokenizer)
          for w in range(shown)]


def has_trace(example: Example) -> bool:
  """Whether there is something to imitate."""
  return example.threads is not None or (
      example.thoughts is not None and example.deep is not None)


def _pieces_of(tokens, phase, stage, sampled, tokenizer) -> list[Piece]:
  """The pieces of one thread; arrays [n]."""
  def what(t):
    given = stage[t] == protocol_lib.CHILD and not sampled[t]
    if given or tokens[t] == tokenizer.spawn:
      return 'brief'
    return _STAGES.get(int(stage[t]), 'thought')
  keys = [(int(phase[t]), what(t)) for t in range(len(tokens))]
  cuts = [t for t in range(len(tokens)) if not t or keys[t] != keys[t - 1]]
  out = []
  for a, b in zip(cuts, [*cuts[1:], len(tokens)]):
    skipped = keys[a][1] == 'thought' and tokens[a] == tokenizer.skip
    out.append(Piece(keys[a][0], 'skip' if skipped else keys[a][1], a,
                     tuple(tokens[a:b].tolist())))
  return out


def readable(num_chunks: int, reads: str = visibility.STREAM) -> np.ndarray:
  """Which phase may read which, computed by visibility.visible.

  Args:
    num_chunks: C.
    reads: See visibility.as_read.

  Returns:
    [2C + 3, 2C + 3] int: 2 = all tokens, 1 = only earlier ones, 0 = none. Rows
    read, columns are read: source phases 0..C, then what is written in target
    phases 0..C+1.
  """
  # Two tokens per phase show whether all of it is read. A target token has the
  # phase of the one that it predicts: slot t writes slot t + 1.
  s = np.repeat(np.arange(num_chunks + 1), 2)[None]
  t = np.repeat(np.arange(num_chunks + 2), 2)[None]
  role = lambda x, r: np.full(x.shape, r, np.int32)
  slot = lambda x: np.arange(x.shape[1])[None]
  segments = lambda r, x, at: visibility.Segments(
      role=role(x, r), slot=at, phase=x, valid=np.ones(x.shape, bool))
  source = segments(visibility.SOURCE,
                    s if reads == visibility.STREAM else 0 * s, slot(s))
  # The query that writes a token is one slot before it.
  query = segments(visibility.TARGET, t, slot(t) - 1)
  key = segments(visibility.TARGET, t, slot(t))
  none = np.zeros((1, s.shape[1], t.shape[1]), bool)
  assert not np.asarray(visibility.visible(source, key)).any()
  full = np.concatenate([
      np.concatenate([visibility.visible(source, source), none], 2),
      np.concatenate([visibility.visible(query, source),
                      visibility.visible(query, key)], 2)], 1)[0]
  n = full.shape[0] // 2
  seen = full.reshape(n, 2, n, 2)
  return seen.any((1, 3)).astype(int) + seen.all((1, 3))


# ------------------------------------------------------------------ printing
class _Paint:
  """Text in colour, or as it is."""

  def __init__(self, colour: bool):
    self.colour = colour

  def code(self, text: str, *codes: int) -> str:
    if not self.colour or not text:
      return text
    return f'\033[{";".join(map(str, codes))}m{text}\033[0m'

  def phase(self, text: str, phase: int, bold: bool = False) -> str:
    codes = [1] * bold + ([_COLOURS[(phase - 1) % len(_COLOURS)]]
                          if phase else [2] * (not bold))
    return self.code(text, *codes) if codes else text


def _spelled(piece, tokenizer, paint, *, flat):
  """A piece's text, control tokens bold; flat: on one line."""
  control = {tokenizer.eot, tokenizer.skip, tokenizer.end_think, tokenizer.eos,
             *tokenizer.of_threads}
  runs: list[tuple[bool, list[int]]] = []
  for i in piece.ids:
    if not runs or runs[-1][0] != (i in control):
      runs.append((i in control, []))
    runs[-1][1].append(i)
  text = ''
  for special, ids in runs:
    spelled = tokenizer.spell(ids)
    if flat:
      spelled = spelled.replace('\n', '⏎')
    # Each line is coloured itself: pagers reset colours at line ends.
    text += '\n'.join(paint.phase(x, piece.phase, bold=special)
                      for x in spelled.split('\n'))
  return text


def _table(pieces, tokenizer, paint, offset):
  out = []
  for p in pieces:
    first, n = p.start + offset, len(p.ids)
    where = f'{first}-{first + n - 1}' if n else '-'
    out.append(f'{p.phase:5}  {p.what:<10} {where:>10} {n:6}  '
               + _spelled(p, tokenizer, paint, flat=True))
  return out


def _map(num_chunks, reads, paint):
  seen = readable(num_chunks, reads)
  source = ['pre', *(f'c{c}' for c in range(1, num_chunks + 1))]
  target = ['fix', *(f't{c}' for c in range(1, num_chunks + 1)), 'deep']
  names = source + target
  phases = [*range(num_chunks + 1), *range(num_chunks + 2)]
  width = max(map(len, names)) + 1
  cell = {2: READ, 1: SO_FAR, 0: UNREAD}
  out = [' ' * 12 + ''.join(paint.phase(f'{n:>{width}}', p)
                            for n, p in zip(names, phases))]
  for r, name in enumerate(names):
    verb = 'read' if r < len(source) else 'write'
    out.append(f'{verb:>6} ' + paint.phase(f'{name:<5}', phases[r]) + ''.join(
        ' ' * (width - 1) + (paint.phase(cell[int(v)], phases[k], bold=True)
                             if v else paint.code(UNREAD, 2))
        for k, v in enumerate(seen[r])))
  out.append(f'{READ} all of it   {SO_FAR} only what is before   {UNREAD} '
             f'nothing')
  return out


def describe(example: Example, tokenizer: Tokenizer, protocol: Protocol, *,
             layout: str, target_offset: int, colour: bool,
             reads: str = visibility.STREAM, note: str = '') -> str:
  """The printed text of one example.

  Args:
    example: The problem.
    tokenizer, protocol: Of the run.
    layout: See pipeline.collate.
    target_offset: RoPE position of the first target token.
    colour: Whether to use ANSI colours.
    reads: See visibility.as_read.
    note: A line about the trace, for example why training refuses it.

  Raises:
    ValueError: The trace has children that its root does not spawn.
  """
  paint = _Paint(colour)
  head = lambda text: ['', paint.code(text, 1, 4)]
  source = source_pieces(example, tokenizer, layout=layout, reads=reads)
  target = target_pieces(example, tokenizer, protocol, layout=layout)
  columns = f'{"phase":>5}  {"what":<10} {"positions":>10} {"tokens":>6}  text'
  size = lambda pieces: sum(len(p.ids) for p in pieces)
  streamed = layout == pipeline.STREAMING
  place = ('in the preamble' if example.question_chunk < 0
           else f'chunk {example.question_chunk + 1}')
  out = [f'example {example.id}: answer {example.answer!r}, question {place}, '
         f'{len(example.chunks)} chunks, layout {layout}']
  if example.group is not None:
    out.append(f'group {example.group}, instance {example.instance}')
  out += head('rendered prompt')
  out.append(''.join(_spelled(p, tokenizer, paint, flat=False)
                     for p in (*source, target[0][0])))
  out += head(f'source: {size(source)} tokens')
  out += [columns, *_table(source, tokenizer, paint, 0)]
  for w, thread in enumerate(target):
    title = f'child {w}' if w else 'target'
    out += head(
        f'{title}: {size(thread)} tokens' if w or has_trace(example)
        else f'{title}: no supervised trace, only the forced prefix')
    if thread:
      out += [columns, *_table(thread, tokenizer, paint, target_offset)]
    else:
      out.append('not shown in training')
  out += [paint.code(note, 1, 31)] if note else []
  out += head('who reads whom')
  out += _map(len(example.chunks) if streamed else 0, reads, paint)
  return '\n'.join(out)


def main() -> None:
  own = flags.FlagValues()  # apart from those of adasr_jax.main
  config_flag = config_flags.DEFINE_config_file(
      'config', None, 'Config file, with its argument after a colon.',
      flag_values=own, lock_config=True)
  flags.mark_flag_as_required('config', flag_values=own)
  index = flags.DEFINE_integer('index', 0, 'Which example.', lower_bound=0,
                               flag_values=own)
  split = flags.DEFINE_string('split', 'train', 'Split.', flag_values=own)
  if {'-h', '--help', '-help'} & {*sys.argv}:
    print(__doc__)
    return
  # config_flags reads sys.argv itself.
  command.no_arguments(command.parse_flags(sys.argv, own))
  config = config_flag.value
  from adasr_jax import config as config_lib
  from adasr_jax.run import factories  # after the flags, for a fast --help
  try:
    parts = factories.parts(config_lib.validate(config))
    data = parts.data
    if split.value == 'train':
      example, = data.train(index.value, 1)
    else:
      if (n := data.size(split.value)) <= index.value:
        raise ValueError(f'index={index.value}: the split {split.value!r} has '
                         f'{n} examples')
      example = data.example(split.value, index.value)
    note = ''
    if has_trace(example):
      try:
        data.traces([example])
      except ValueError as e:
        note = f'refused in training: {e}'
    print(describe(
        example, data.tokenizer, data.protocol, layout=data.layout,
        reads=data.reads, target_offset=parts.model_config.target_offset,
        note=note,
        colour=sys.stdout.isatty() and not os.environ.get('NO_COLOR')))
  except (ValueError, OSError) as e:
    command.fail(e)


if __name__ == '__main__':
  main()
