"""Rollouts with threads as people and rewards read them, and their sizes.

A rollout's rows are a root and its children (core/protocol.py). Here the calls
of the root are found again, in order, with what each child wrote and returned.

Of a rollout, with l tokens in the root after its prefix, and l_c tokens of
child c after its own, g_c of which are given to it (`<spawn>` and brief; the
root has written them, and the child reads them again):

  total       l + sum_c l_c
  sampled     those of total that the policy chose
  forced      total - sampled: briefs, results that a join writes, ends of caps
  sequential  l + sum over calls of max_c l_c, c in the call

The prefix, which all threads share, is part of no count, as in rollouts without
threads, whose total is l. Children that were asked for beyond the most that may
run have no tokens.

Source: arXiv 2504.15466: the sequences of root and children, without what they
share as a prefix; sequential tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from adasr_jax.core.protocol import (
    BRIEFS, CALLERS, CHILD, CHILDREN, EOS, JOIN, JOINS, PREFIX, Protocol,
    RESULT, RETURN, SPAWN)
from adasr_jax.core.types import Target
from adasr_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Child:
  """One child.

  Attributes:
    brief: Text that the root gave it.
    text: What it wrote itself, before its result; control tokens written out.
    result: Text that it returned; None = nothing.
    cut: Whether it reached its cap; then it has returned nothing.
    tokens: Its own: all but prefix, `<spawn>` and brief.
    sampled: Those that it chose.
    given: Tokens of `<spawn>` and brief.
  """
  brief: str
  text: str
  result: str | None
  cut: bool
  tokens: int
  sampled: int
  given: int


@dataclasses.dataclass(frozen=True)
class Call:
  """A `<join>` of the root.

  Attributes:
    phase: In which it was made.
    before: What the root wrote since its last call; control tokens written out.
    spawns: Children that it asked for.
    children: Those that ran.
    joined: Tokens that the join wrote into the root.
  """
  phase: int
  before: str
  spawns: int
  children: tuple[Child, ...]
  joined: int

  @property
  def longest(self) -> int:
    """Tokens of the longest child, its brief among them; 0 where none ran."""
    return max((c.given + c.tokens for c in self.children), default=0)


@dataclasses.dataclass(frozen=True)
class Tree:
  """The threads of a rollout.

  Attributes:
    calls: In order; one that is broken off before its `<join>` is only text.
    after: What the root wrote after its last call.
    tokens: Of the root, without its prefix.
    sampled: Those that it chose.
  """
  calls: tuple[Call, ...]
  after: str
  tokens: int
  sampled: int

  @property
  def children(self) -> tuple[Child, ...]:
    return tuple(c for call in self.calls for c in call.children)


@dataclasses.dataclass(frozen=True)
class Counts:
  """Sizes of B trees, see the module; each [B] float64.

  Attributes:
    tokens_total, tokens_sampled, tokens_forced, tokens_sequential: Tokens.
    calls: Calls that were joined.
    spawns: Children that these asked for.
    children: Children that ran.
    returned: Children that returned something.
  """
  tokens_total: np.ndarray
  tokens_sampled: np.ndarray
  tokens_forced: np.ndarray
  tokens_sequential: np.ndarray
  calls: np.ndarray
  spawns: np.ndarray
  children: np.ndarray
  returned: np.ndarray


def counts(trees: Sequence[Tree]) -> Counts:
  """The sizes of B trees."""
  of = lambda f: np.array([f(t) for t in trees], np.float64)
  total = of(lambda t: t.tokens + sum(c.given + c.tokens for c in t.children))
  sampled = of(lambda t: t.sampled + sum(c.sampled for c in t.children))
  return Counts(
      tokens_total=total, tokens_sampled=sampled,
      tokens_forced=total - sampled,
      tokens_sequential=of(
          lambda t: t.tokens + sum(call.longest for call in t.calls)),
      calls=of(lambda t: len(t.calls)),
      spawns=of(lambda t: sum(call.spawns for call in t.calls)),
      children=of(lambda t: len(t.children)),
      returned=of(lambda t: sum(c.result is not None for c in t.children)))


def trees(target: Target, tokenizer: Tokenizer, protocol: Protocol
          ) -> list[Tree]:
  """The trees of B rollouts.

  Args:
    target: [B * W, T], W = protocol.width; host arrays.
    tokenizer: Decodes.
    protocol: With threads.
  """
  W = protocol.width
  cls = protocol.token_class[target.tokens]
  rows = [_Row(*a, tokenizer) for a in zip(
      target.tokens, cls, target.stage, target.phase, target.valid,
      target.sampled)]
  return [_tree(rows[r], rows[r + 1:r + W]) for r in range(0, len(rows), W)]


@dataclasses.dataclass(frozen=True)
class _Row:
  """One thread; arrays [T]."""
  tokens: np.ndarray
  cls: np.ndarray
  stage: np.ndarray
  phase: np.ndarray
  valid: np.ndarray
  sampled: np.ndarray
  tokenizer: Tokenizer

  def spell(self, at) -> str:
    return self.tokenizer.spell(self.tokens[at].tolist()).strip()

  def decode(self, at) -> str:
    return self.tokenizer.decode(self.tokens[at].tolist()).strip()


def _tree(root: _Row, children: Sequence[_Row]) -> Tree:
  own = root.valid & (root.stage != PREFIX)
  first, end = int(np.argmax(own)), int(root.valid.sum())
  calls, spawned, asked = [], [], 0
  for t in np.flatnonzero(own & np.isin(root.cls, (SPAWN, JOIN))).tolist():
    in_brief = root.stage[t] in BRIEFS
    if root.cls[t] == SPAWN and (in_brief or root.stage[t] in CALLERS):
      spawned = [*(spawned if in_brief else ()), t]
    elif root.cls[t] == JOIN and in_brief:
      back = t + 1
      while back < end and root.stage[back] in JOINS:
        back += 1
      calls.append(Call(
          phase=int(root.phase[t]),
          before=root.spell(slice(first, spawned[0])), spawns=len(spawned),
          children=tuple(_child(row) for row in children[
              asked:asked + len(spawned)] if row.valid.any()),
          joined=back - t - 1))
      first, asked = back, asked + len(spawned)
  return Tree(calls=tuple(calls), after=root.spell(slice(first, end)),
              tokens=int(own.sum()), sampled=int((own & root.sampled).sum()))


def _child(row: _Row) -> Child:
  own = row.valid & np.isin(row.stage, CHILDREN)
  # An end that was not chosen is that of the cap.
  given = own & ~row.sampled & (row.cls != EOS)
  wrote = own & ~given
  ended = bool((own & row.sampled & (row.cls == EOS)).any())
  returned = ended and bool((own & (row.cls == RETURN)).any())
  return Child(
      brief=row.decode(given),
      text=row.spell(wrote & (row.stage == CHILD)
                     & ~np.isin(row.cls, (RETURN, EOS))),
      result=row.decode(wrote & (row.stage == RESULT)) if returned else None,
      cut=not ended, tokens=int(wrote.sum()),
      sampled=int((own & row.sampled).sum()), given=int(given.sum()))


def lines(tree: Tree) -> list[str]:
  """The tree, indented: what each thread wrote, under the one that called it.
  """
  return list(_lines(tree))


def _lines(tree: Tree) -> Iterator[str]:
  n = 0
  for call in tree.calls:
    yield f'root: {call.before}'
    for child in call.children:
      n += 1
      yield (f'  child {n} ({child.tokens} tokens'
             f'{", cut" if child.cut else ""}), {child.brief}')
      yield f'    {child.text}'
      yield f'    returns {"nothing" if child.result is None else child.result}'
    if more := call.spawns - len(call.children):
      yield f'  {more} more did not run'
  yield f'root: {tree.after}'
