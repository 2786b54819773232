"""The words of problems and searches, and their tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from adasr_jax.data.tokenizer import Tokenizer

SPAWN, JOIN, RETURN, NONE = '<spawn>', '<join>', '<return>', '<none>'
END_THINK, EOS = '</think>', '<eos>'
CONTROL = ('<pad>', '<bos>', EOS, '<EOT>', '<skip>', END_THINK, SPAWN, JOIN,
           RETURN, NONE)
# Those that a thread may write -> kind of piece.
KINDS = {EOS: 'eos', '<skip>': 'skip', END_THINK: 'end_think', SPAWN: 'spawn',
         JOIN: 'join', RETURN: 'result', NONE: 'none'}
GRAMMAR = '+ - * / = , : ; from off go none calls tokens'.split()


def vocabulary(largest: int) -> tuple[str, ...]:
  """All words that any problem or search may contain, numbers first."""
  return (*map(str, range(largest + 1)), *GRAMMAR)


def ids(largest: int) -> dict[str, int]:
  """Word -> token id: CONTROL, then vocabulary().

  For what a program wrote, such as demonstrations. Text of unknown origin goes
  through the tokenizer's `encode`, which knows no control tokens.
  """
  return {w: i for i, w in enumerate((*CONTROL, *vocabulary(largest)))}


def embedded(largest: int) -> Tokenizer:
  """The word-level tokenizer for numbers 0..largest.

  The tokens of threads are undecodable, so that they are never sampled where
  the protocol does not have them.
  """
  token = ids(largest)
  text = {w: token[w] for w in vocabulary(largest)}
  word = {i: w for w, i in token.items()}

  def encode(s: str) -> list[int]:
    for w in s.split():
      if w not in text:
        raise ValueError(f'the vocabulary of countdown has no word {w!r}')
    return [text[w] for w in s.split()]

  def decode(t: Sequence[int]) -> str:
    return ' '.join(word[i] for i in map(int, t) if word[i] in text)

  bos, pad = token['<bos>'], token['<pad>']
  return Tokenizer(
      encode=encode, decode=decode,
      spell=lambda t: ' '.join(word[int(i)] for i in t),
      vocab_size=len(token), eot=token['<EOT>'], skip=token['<skip>'],
      end_think=token[END_THINK], eos=token[EOS], pad=pad,
      undecodable=(pad, bos, *(token[w] for w in (SPAWN, JOIN, RETURN, NONE))),
      head=(bos,), tail=(), prefix=(bos,), answer_format='{}',
      spawn=token[SPAWN], join=token[JOIN], result=token[RETURN],
      none=token[NONE])
