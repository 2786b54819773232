"""Kinds of tokens in a thread, by which imitation is measured."""

from adasr_jax.core import protocol as pl
from experiments.apr import progress


def test_kinds_of_a_childs_tokens():
  words = ('<bos> <spawn> 9 / 3 = 3 : 4 5 ; go 3 4 5 ; 5 + 3 = 8 : 4 ; '
           '8 * 4 = 32 off 33 1 4 + 4 = 8 off 8 0 <return> 4 + 4 = 8 <eos>'
           ).split()
  returns = words.index('<return>')
  stages = [pl.CHILD] * (returns + 1) + [pl.RESULT] * (len(words) - returns - 1)
  short = {'c': 'control', 's': 'step', 'm': 'mark', 'r': 'result', 'l': 'rest',
           't': 'target', 'f': 'found', 'o': 'off', 'a': 'answer'}
  want = ('cc sssmr mllm mlllm sssmr mlm sssmr mto sssmr mtf c aaaaa c'
          ).replace(' ', '')
  assert progress.kinds(words, stages) == [short[k] for k in want]
  words = '<bos> <spawn> 9 / 3 = 3 <join>'.split()
  assert progress.kinds(words, [pl.DEEP] * 2 + [pl.DEEP_BRIEF] * 6) == [
      'control', 'control', *['brief'] * 5, 'control']
