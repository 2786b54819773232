"""The words of the embedded task, and their tokenizer."""

from __future__ import annotations

import tokenizers

from adasr_jax.data.tokenizer import Tokenizer

CONTROL = ('<pad>', '<bos>', '<eos>', '<EOT>', '<skip>', '</think>')

NAMES = ('tom', 'amy', 'bob', 'eve', 'sam', 'lea', 'max', 'ida', 'leo', 'zoe',
         'ben', 'mia')
# Singular, plural.
ITEMS = (('apple', 'apples'), ('hat', 'hats'), ('pen', 'pens'),
         ('cup', 'cups'), ('ball', 'balls'), ('book', 'books'),
         ('egg', 'eggs'), ('key', 'keys'))
CONTAINERS = (('box', 'boxes'), ('bag', 'bags'), ('jar', 'jars'),
              ('crate', 'crates'))
COIN = ('coin', 'coins')
FEEDS = (('dog', ('bone', 'bones')), ('goat', ('leaf', 'leaves')))
SCENES = ('the sky is blue', 'it is a cold day', 'the park is green',
          'it is a warm morning', 'the road is long', 'the door is green')
VERBS = {'start': ('has',), 'gain': ('buys', 'finds', 'gets'),
         'loss': ('loses', 'drops', 'sells', 'breaks'), 'transfer': ('gives',)}
GRAMMAR = ('. ? + - * = so still first then asked how many does do have are in '
           'the of end compared with others cost costs each holds eats more '
           'fewer than to').split()


def vocabulary() -> tuple[str, ...]:
  """All words that any problem or trace may contain, numbers first."""
  nouns = (*ITEMS, *CONTAINERS, COIN, *(food for _, food in FEEDS))
  words = [*map(str, range(100)), *GRAMMAR, *NAMES,
           *(word for noun in nouns for word in noun),
           *(animal for animal, _ in FEEDS),
           *(verb for verbs in VERBS.values() for verb in verbs),
           *(word for scene in SCENES for word in scene.split())]
  return tuple(dict.fromkeys(words))


def build_tokenizer() -> tokenizers.Tokenizer:
  """A word-level tokenizer: CONTROL, then vocabulary(). Other words raise."""
  words = (*CONTROL, *vocabulary())
  out = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {word: i for i, word in enumerate(words)}, unk_token='<unk>'))
  out.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  out.add_special_tokens(list(CONTROL))
  return out


def embedded() -> Tokenizer:
  """The word-level tokenizer of the embedded task."""
  words = build_tokenizer()
  ids = {word: words.token_to_id(word) for word in vocabulary()}

  def encode(text):
    for word in text.split():
      if word not in ids:
        raise ValueError(f'the embedded vocabulary has no word {word!r}')
    return [ids[word] for word in text.split()]

  token = words.token_to_id
  bos, pad = token('<bos>'), token('<pad>')
  return Tokenizer(
      encode=encode, decode=words.decode,
      spell=lambda t: words.decode(t, skip_special_tokens=False),
      vocab_size=words.get_vocab_size(),
      eot=token('<EOT>'), skip=token('<skip>'), end_think=token('</think>'),
      eos=token('<eos>'), pad=pad, undecodable=(pad, bos), head=(bos,),
      tail=(), prefix=(bos,), answer_format='{}')
