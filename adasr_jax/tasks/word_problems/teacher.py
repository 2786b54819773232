"""The teacher: supervised traces, perfect or with habits to unlearn."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from adasr_jax.core import options
from adasr_jax.core.options import option
from adasr_jax.tasks.draws import Draws
from adasr_jax.tasks.word_problems.problems import (
    DISTRACTORS, RELEVANT, Sentence)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """How the supervised traces think; each attribute is an imperfection.

  Without any, irrelevant sentences are skipped, each relevant one gets its
  step ('7', then '7 + 3 = 10'), and the deep reasoning is 'so 8'. The question,
  where it is a chunk, always gets 'asked tom apples'. A thought has at most 13
  tokens and its terminator, the deep reasoning at most 2 * max_steps + 2.

  Attributes:
    skip: (kind, probability) that a relevant sentence gets no thought. The
      running value is then not updated: all later steps and the trace's
      answer are computed from that stale value (0 before any step).
    dwell: (kind, probability) that a distractor gets a thought, 'bob 4 apples',
      which does not change the value.
    restate: Probability that a thought first repeats its sentence: 'tom buys
      3 apples so 7 + 3 = 10', 'bob buys 4 apples so still 10'.
    ramble: Probability that the deep reasoning first recalls all values:
      'first 7 then 10 then 8 so 8'.
    slip: Probability that a step's result is one too small (1 in place of 0).

  Calibration of UNDISCIPLINED on DEFAULT (3000 problems): 52 % have no
  sentence of a kind that is skipped more often than not; this is the accuracy
  of a greedy imitation. The traces themselves are right in 68 %. A trace has
  on average 46.4 tokens, terminators included; 27.0 for PERFECT (ratio 0.58).
  """
  skip: tuple[tuple[str, float], ...] = ()
  dwell: tuple[tuple[str, float], ...] = ()
  restate: float = option(0.0, least=0, most=1)
  ramble: float = option(0.0, least=0, most=1)
  slip: float = option(0.0, least=0, most=1)

  def __post_init__(self):
    options.check(self)
    for name, known in (('skip', RELEVANT), ('dwell', DISTRACTORS)):
      for kind, _ in getattr(self, name):
        if kind not in known:
          raise ValueError(f'{name}: kind {kind!r} is not one of {known}')
    for name, p in (*self.skip, *self.dwell):
      if not 0 <= p <= 1:
        raise ValueError(f'{name}={p} is not a probability')


PERFECT = Teacher()
UNDISCIPLINED = Teacher(
    skip=(('loss', 0.6), ('fewer', 0.6)),
    dwell=(('entity', 0.6), ('object', 0.6), ('rate', 0.6), ('scene', 0.3)),
    restate=0.5, ramble=0.7)


def apply(op: str, value: int, number: int) -> int:
  """A step's result; 0 where a stale value is too small to subtract from."""
  return {'=': number, '+': value + number, '-': max(0, value - number),
          '*': value * number}[op]


def trace(sentences: Sequence[Sentence], teacher: Teacher, draw: Draws
          ) -> tuple[list[str | None], str, str]:
  """Thoughts (None = skip), deep reasoning, answer of the teacher's trace."""
  skip, dwell = dict(teacher.skip), dict(teacher.dwell)
  thoughts, values = [], []
  for s in sentences:
    # Drawn even where not used, so that later draws stay the same.
    chance, restate, slip = (draw.uniform() for _ in range(3))
    restate = restate < teacher.restate
    thought = None
    if not s.op:
      if chance < dwell.get(s.kind, 0):
        still = f' so still {values[-1]}' if values else ''
        thought = s.text + still if restate else s.gist
    elif chance >= skip.get(s.kind, 0):
      before = values[-1] if values else 0
      value = apply(s.op, before, s.number)
      if s.op != '=' and slip < teacher.slip:
        value = value - 1 if value else 1
      values.append(value)
      thought = (f'{value}' if s.op == '=' else
                 f'{before} {s.op} {s.number} = {value}')
      if restate:
        thought = f'{s.text} so {thought}'
    thoughts.append(thought)
  answer = str(values[-1] if values else 0)
  deep = f'so {answer}'
  if draw.coin(teacher.ramble) and values:
    deep = f"first {' then '.join(map(str, values))} {deep}"
  return thoughts, deep, answer
