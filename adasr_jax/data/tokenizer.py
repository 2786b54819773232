"""Text to token ids and back, with the control tokens of the protocol.

One class serves the embedded task's word-level tokenizer and any tokenizer of
`transformers`. It also renders an example: the ids before the stream, those of
each chunk, and those of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import pathlib
import shutil

import tokenizers

from adasr_jax.core import files
from adasr_jax.core.options import option
from adasr_jax.core.types import Example, TEXT, ThreadTrace
from adasr_jax.data import chat

EOT, SKIP, OPEN_THINK, END_THINK = '<EOT>', '<skip>', '<think>', '</think>'
# Files that a tokenizer's folder may hold besides tokenizer.json.
TOKENIZER_FILES = ('tokenizer_config.json', 'vocab.json', 'merges.txt',
                   'special_tokens_map.json', 'chat_template.jinja')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Which tokenizer.

  Attributes:
    kind: 'embedded': the task's own; 'folder': one of `transformers`.
    path: Folder with tokenizer.json and tokenizer_config.json.
  """
  kind: str = option('embedded', choices=('embedded', 'folder'))
  path: str = option('')


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Token ids of text and of the protocol.

  Attributes:
    encode: Text to ids. Text is text: what it spells never becomes a control
      token, or another that the tokenizer adds to its vocabulary. Raises
      ValueError where the vocabulary cannot spell it.
    decode: Ids to text; control tokens are left out.
    spell: Ids to text; control tokens are written out.
    vocab_size: Rows of the embedding; at least the number of ids in use.
    eot, skip, end_think, eos, pad: Token ids.
    undecodable: Ids that do not occur in any text and are never sampled.
    head: Ids before the preamble.
    tail: Ids appended to the last chunk (the end of the user's turn).
    prefix: Forced ids at the start of every target.
    answer_format: How a supervised trace writes its answer.
    open_think: Id of `<think>`; -1 where the vocabulary has no such token.
    spawn, join, result, none: Token ids of threads, see protocol.Threads; -1
      where there are none. They are among the undecodable: only a protocol
      with threads samples them.
  """
  encode: Callable[[str], list[int]]
  decode: Callable[[Sequence[int]], str]
  spell: Callable[[Sequence[int]], str]
  vocab_size: int
  eot: int
  skip: int
  end_think: int
  eos: int
  pad: int
  undecodable: tuple[int, ...]
  head: tuple[int, ...]
  tail: tuple[int, ...]
  prefix: tuple[int, ...]
  answer_format: str
  open_think: int = -1
  spawn: int = -1
  join: int = -1
  result: int = -1
  none: int = -1

  @property
  def control(self) -> dict[str, int]:
    """Ids of the control tokens of a folder, by their text."""
    return {EOT: self.eot, SKIP: self.skip, OPEN_THINK: self.open_think,
            END_THINK: self.end_think}

  @property
  def of_threads(self) -> tuple[int, ...]:
    """Ids of spawn, join, result and none; empty where one is missing."""
    ids = (self.spawn, self.join, self.result, self.none)
    return () if min(ids) < 0 else ids

  def render(self, example: Example) -> tuple[list[int], list[list[int]]]:
    """Ids of the preamble, and of each chunk. Nothing is ever cut."""
    preamble = list(self.head) + self.encode(example.preamble)
    chunks = [self.encode(chunk) for chunk in example.chunks]
    last = chunks[-1] if chunks else preamble
    last += self.tail
    return preamble, chunks

  def render_trace(self, example: Example) -> list[int]:
    """Ids of the supervised target, prefix first.

    Raises:
      ValueError: The example has no trace.
    """
    if example.thoughts is None or example.deep is None:
      raise ValueError(f'example {example.id} has no supervised trace')
    out = list(self.prefix)
    for thought in example.thoughts:
      out += ([self.skip] if thought is None
              else self.encode(thought) + [self.eot])
    answer = (example.answer if example.trace_answer is None
              else example.trace_answer)
    return (out + self.encode(example.deep) + [self.end_think]
            + self.encode(self.answer_format.format(answer)) + [self.eos])

  def render_thread(self, thread: ThreadTrace
                    ) -> tuple[list[int], list[bool]]:
    """Ids of a supervised thread, prefix first, and which are forced.

    Both are empty where the thread is.
    """
    ids = list(self.prefix) if thread else []
    forced = [True] * len(ids)
    for kind, text, given in thread:
      new = self.encode(text) if kind == TEXT else [getattr(self, kind)]
      ids += new
      forced += [given] * len(new)
    return ids, forced


def _load(path: pathlib.Path):
  """A folder's tokenizer with the control tokens.

  Returns:
    The `transformers` tokenizer; how many ids it used before; the added ids
    by their text.

  Raises:
    ValueError: There is no such folder, or it has no chat template.
  """
  # Without tokenizer.json, transformers makes one of only special tokens.
  for name in ('tokenizer_config.json', 'tokenizer.json'):
    if not (path / name).is_file():
      raise ValueError(f'no {name} in {str(path)!r}')
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
  import transformers
  hf = transformers.AutoTokenizer.from_pretrained(
      str(path), local_files_only=True)
  if not hf.chat_template:
    raise ValueError(f'the tokenizer in {str(path)!r} has no chat template')
  known = hf.get_vocab()
  new = [t for t in (EOT, SKIP, OPEN_THINK, END_THINK) if t not in known]
  hf.add_tokens(new, special_tokens=True)
  return (hf, max(known.values()) + 1,
          {t: hf.convert_tokens_to_ids(t) for t in new})


def vocabulary(folder: str | pathlib.Path) -> dict[str, int]:
  """Token -> id of a folder's tokenizer.json and tokenizer_config.json.

  Raises:
    ValueError: There is no such file, or it is none.
  """
  path = pathlib.Path(folder) / 'tokenizer.json'
  if not path.is_file():
    raise ValueError(f'no tokenizer.json in {str(folder)!r}')
  try:
    out = tokenizers.Tokenizer.from_file(str(path)).get_vocab(True)
  except Exception as e:  # the library raises its own untyped error
    raise ValueError(f'{path} is not a tokenizer: {e}') from e
  config = path.with_name('tokenizer_config.json')
  added = (files.read_json(config).get('added_tokens_decoder', {})
           if config.is_file() else {})
  return out | {token['content']: int(i) for i, token in added.items()}


def spelled(tokenizer: Tokenizer, folder: str | pathlib.Path, rows: int
            ) -> dict[int, tuple[int, ...]]:
  """The control tokens that are new to a model, and what spells their names.

  Args:
    tokenizer: Of the run.
    folder: Hugging Face folder of the model. Its own tokenizer says which
      tokens the model knows; where there is none, it knows those that have
      rows.
    rows: Of the embedding in the folder.

  Returns:
    Of each new token its id -> the ids of its name as text.

  Raises:
    ValueError: tokenizer.json is none.
  """
  if (pathlib.Path(folder) / 'tokenizer.json').is_file():
    known = vocabulary(folder)
    new = lambda name, i: name not in known
  else:
    new = lambda name, i: i >= rows
  return {i: tuple(tokenizer.encode(name))
          for name, i in tokenizer.control.items() if new(name, i)}


def copy_folder(path: str | pathlib.Path, out: str | pathlib.Path) -> None:
  """Copies a tokenizer's files into `out` and adds the control tokens.

  The published files stay as they are, so that other programs still read them,
  with two exceptions: tokenizer.json is written anew, and tokenizer_config.json
  lists the added tokens.

  Raises:
    ValueError: As in from_folder().
  """
  path, out = pathlib.Path(path), pathlib.Path(out)
  hf, _, added = _load(path)
  out.mkdir(parents=True, exist_ok=True)
  for name in TOKENIZER_FILES:
    if (path / name).is_file():
      files.whole(out / name,
                  lambda new, name=name: shutil.copyfile(path / name, new))
  files.whole(out / 'tokenizer.json',
              lambda new: hf.backend_tokenizer.save(str(new)))
  config_path = out / 'tokenizer_config.json'
  config = files.read_json(config_path)
  config['added_tokens_decoder'] = {
      **config.get('added_tokens_decoder', {}),
      **{str(i): dict(content=t, lstrip=False, normalized=False, rstrip=False,
                      single_word=False, special=True)
         for t, i in added.items()}}
  files.write_text(
      config_path, json.dumps(config, indent=2, ensure_ascii=False) + '\n')


def from_folder(path: str | pathlib.Path, vocab_size: int = 0, *,
                resize: bool = False) -> Tokenizer:
  """A `transformers` tokenizer with the control tokens added.

  `<EOT>` and `<skip>` become special tokens, and so do `<think>` and `</think>`
  where the family has none. The chat template's user turn is cut at its
  content: the part before is `head`, the part after is `tail`. The target opens
  with the assistant's header and `<think>`.

  Args:
    path: Folder with tokenizer.json and tokenizer_config.json.
    vocab_size: Rows of the model's embedding; 0 = just enough, rounded up to
      a multiple of 128.
    resize: Where vocab_size has rows for the tokenizer's own tokens but not
      for the control tokens, take the next multiple of 128.

  Raises:
    ValueError: There is no such folder, it has no token that ends a text, no
      chat template or one that chat.turns refuses, it adds something to what
      it encodes, or vocab_size is too small.
  """
  path = pathlib.Path(path)
  hf, own, _ = _load(path)
  used = max(hf.get_vocab().values()) + 1
  if not vocab_size or (resize and own <= vocab_size < used):
    vocab_size = -(-used // 128) * 128
  if vocab_size < used:
    raise ValueError(f'vocab_size={vocab_size} is below the {used} ids that '
                     f'the tokenizer in {str(path)!r} uses')
  turns = chat.turns(hf.get_chat_template(),
                     tuple(sorted(hf.special_tokens_map.items())), str(path))
  if hf.eos_token_id is None:
    raise ValueError(f'the tokenizer in {str(path)!r} has no eos_token: '
                     'nothing would end an answer')
  encode = _text_encoder(hf, path)
  for second in (' b', '\nb'):
    whole, parts = (hf.decode(t) for t in (
        encode(f'a{second}'), [*encode('a'), *encode(second)]))
    if parts != whole:
      raise ValueError(f'the tokenizer in {str(path)!r} adds to what it '
                       f"encodes: 'a' and {second!r} one after the other are "
                       f'{parts!r}, not {whole!r}, and a text is read in '
                       f'chunks')
  # Only our own template places tokens that the tokenizer adds.
  ids = lambda text: tuple(hf.encode(text, add_special_tokens=False))
  token = hf.convert_tokens_to_ids
  there = set(hf.get_vocab().values())
  return Tokenizer(
      encode=encode,
      decode=lambda t: hf.decode(t, skip_special_tokens=True),
      spell=lambda t: hf.decode(t, skip_special_tokens=False,
                                clean_up_tokenization_spaces=False),
      vocab_size=vocab_size, eot=token(EOT), skip=token(SKIP),
      end_think=token(END_THINK), open_think=token(OPEN_THINK),
      eos=hf.eos_token_id,
      pad=hf.pad_token_id if hf.pad_token_id is not None else hf.eos_token_id,
      undecodable=tuple(i for i in range(vocab_size) if i not in there),
      head=ids(turns.head), tail=ids(turns.tail),
      prefix=ids(f'{turns.header}{OPEN_THINK}\n'),
      answer_format='\\boxed{{{}}}')


def _text_encoder(hf, path):
  """Text to ids without the tokenizer's added tokens.

  Added tokens are found in a text before anything else is, marked special or
  not (Qwen3's '</think>' is not). So this is the tokenizer without them; those
  that are also words of its vocabulary get a name that nobody writes. Added
  runs of white space stay: they are text. So does the unknown token, which
  stands for what the vocabulary does not have.
  """
  added = {t.content: i for i, t in hf.added_tokens_decoder.items()
           if t.content.strip() and t.content != hf.unk_token}
  spec = json.loads(hf.backend_tokenizer.to_str())
  spec.update(truncation=None, padding=None, added_tokens=[
      t for t in spec['added_tokens'] if t['content'] not in added])
  model = spec['model']
  name = lambda word: f'\0{word}' if word in added else word
  if isinstance(model['vocab'], dict):
    model['vocab'] = {name(word): i for word, i in model['vocab'].items()}
  else:  # Unigram
    model['vocab'] = [[name(word), score] for word, score in model['vocab']]
  if 'merges' in model:
    merges = [m.split(' ') if isinstance(m, str) else m
              for m in model['merges']]
    model['merges'] = [[a, b] for a, b in merges
                       if added.keys().isdisjoint((a, b, a + b))]
  plain = tokenizers.Tokenizer.from_str(json.dumps(spec))
  forbidden = frozenset(added.values())

  def encode(text):
    ids = plain.encode(text, add_special_tokens=False).ids
    if not forbidden.isdisjoint(ids):
      raise ValueError(f'the tokenizer in {str(path)!r} cannot spell {text!r}')
    return ids

  return encode
