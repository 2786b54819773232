"""Rollouts with threads, written word by word."""

import numpy as np

from adasr_jax.core import protocol as pl
from adasr_jax.core.types import Target
from adasr_jax.tasks.countdown.vocabulary import embedded, ids
from tests.small import make_protocol

LARGEST, M = 99, 3
TOKENIZER = embedded(LARGEST)
IDS = ids(LARGEST)


def protocol_of(**changes):
  t = TOKENIZER
  threads = pl.Threads(
      **{k: IDS[w] for k, w in (
          ('spawn', '<spawn>'), ('join', '<join>'), ('result', '<return>'),
          ('none', '<none>'))}, children=M, cap=40)
  return make_protocol(**dict(
      vocab_size=t.vocab_size, eot=t.eot, skip=t.skip, end_think=t.end_think,
      eos=t.eos, undecodable=t.undecodable, prefix=t.prefix, thought_cap=30,
      deep_cap=60, answer_cap=20, threads=threads) | changes)


PROTOCOL = protocol_of()


def target_of(*rollouts, protocol=PROTOCOL, slots=80):
  """The Target of rollouts, each a root and its children.

  Args:
    *rollouts: (chunks, root, (phase, child), ...); a thread is words after
      the prefix, those in [ .. ] forced.
    protocol: Its width is the number of rows per rollout.
    slots: T.
  """
  rows, chunks, phases = [], [], []
  for n, root, *children in rollouts:
    rows += [root, *(words for _, words in children)]
    missing = protocol.width - 1 - len(children)
    rows += [''] * missing
    chunks += [n] + [pl.NO_CHUNKS] * (protocol.width - 1)
    phases += [0] + [phase for phase, _ in children] + [0] * missing
  B = len(rows)
  tokens = np.zeros((B, slots), np.int32)
  forced, valid, joined = (np.zeros((B, slots), bool) for _ in range(3))
  for b, words in enumerate(rows):
    inside, t = False, 0
    if words:
      tokens[b, 0], valid[b, 0], forced[b, 0], t = TOKENIZER.prefix[
          0], True, True, 1
    for w in words.split():
      if w in '[]':
        inside = w == '['
        continue
      tokens[b, t], valid[b, t], forced[b, t] = IDS[w], True, inside
      joined[b, t] = inside and chunks[b] != pl.NO_CHUNKS
      t += 1
  phase, stage = pl.annotate(
      protocol, tokens, valid.sum(1), np.array(chunks, np.int32),
      phase=np.array(phases, np.int32), joined=joined)
  zero = np.zeros(tokens.shape, np.float32)
  return Target(tokens=tokens, phase=phase, stage=stage, valid=valid,
                sampled=valid & ~forced, logp=zero, logp_untruncated=zero)


# 3 4 5 -> 35. In the first call one child of two returns something, in the
# second one asks for two of which one has no row.
ROOT = ('3 + 4 = 7 : 5 ; <spawn> 5 - 4 = 1 <spawn> 4 + 3 = 7 <join> '
        '[ <none> <return> 7 * 5 = 35 ] go 3 ; <spawn> 5 + 4 = 9 <spawn> 5 * 4 '
        '= 20 <join> [ <none> <none> ] </think> 4 + 3 = 7 , 7 * 5 = 35 <eos>')
CHILDREN = (
    '[ <spawn> 5 - 4 = 1 ] : 3 ; 3 + 1 = 4 off 35 <eos>',
    '[ <spawn> 4 + 3 = 7 ] : 5 ; <return> 7 * 5 = 35 <eos>',
    '[ <spawn> 5 + 4 = 9 ] : 3 ; 9 + 3 = 12 off 35 [ <eos> ]')  # its cap
ROLLOUT = (0, ROOT, *((1, child) for child in CHILDREN))
