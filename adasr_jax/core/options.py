"""Fields of the config, each with its default, choices and range.

A section of the config is a frozen dataclass whose fields are made by
`option`. `check` compares values with type, choices and range: those of a
dataclass when it is made, those of a config before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import operator
import sys
from typing import Any, get_args, get_origin, get_type_hints

# Section name, such as 'loss' or 'data.task' -> its dataclass; 'run' holds the
# fields at the top. Methods and tasks are built from these.
Sections = Mapping[str, Any]

_TESTS = {'least': operator.ge, 'above': operator.gt, 'most': operator.le,
          'below': operator.lt}


@dataclasses.dataclass(frozen=True)
class _Rule:
  choices: Sequence[Any] | None
  bounds: Mapping[str, float]
  some: bool

  def refusal(self, value: Any) -> str | None:
    """What is wrong with a value of the right type; None if nothing."""
    if self.choices is not None and value not in self.choices:
      return f'is not one of {tuple(self.choices)}'
    if not isinstance(value, (int, float)) or isinstance(value, bool):
      return None
    if not abs(value) <= sys.float_info.max:  # NaN; an integer beyond floats
      return 'is not finite'
    b = self.bounds
    if all(_TESTS[k](value, bound) for k, bound in b.items()):
      return None
    if b == {'above': 0}:
      return 'must be positive'
    if b == {'least': 0}:
      return 'is negative'
    low = f'[{b["least"]}' if 'least' in b else f'({b.get("above", "-inf")}'
    high = f'{b["most"]}]' if 'most' in b else f'{b.get("below", "inf")})'
    return f'is outside {low}, {high}'


def option(default: Any = dataclasses.MISSING, *,
           choices: Sequence[Any] | None = None,
           some: bool = False, **bounds: float) -> Any:
  """A dataclass field with the values that it allows.

  Args:
    default: Its default; without one, a config must set the field.
    choices: All allowed values (of a tuple: items); None = any of the type.
    some: Whether a tuple must have at least one item.
    **bounds: Range of a number: `least` (included) or `above` (not included),
      `most` or `below`. Numbers must be finite in any case.
  """
  assert bounds.keys() <= _TESTS.keys(), bounds
  return dataclasses.field(default=default, metadata={
      'rule': _Rule(choices, bounds, some)})


@functools.cache
def types(cls: type) -> dict[str, Any]:
  """Field name -> type, for a section's dataclass."""
  hints = get_type_hints(cls)
  return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def fits(value: Any, kind: Any) -> bool:
  """Whether a value has a field's type; an int is a float, a bool neither."""
  if get_origin(kind) is tuple:
    inner = get_args(kind)
    if not isinstance(value, (tuple, list)):
      return False
    if len(inner) == 2 and inner[1] is ...:
      return all(fits(v, inner[0]) for v in value)
    return len(value) == len(inner) and all(map(fits, value, inner))
  if kind in (int, float):
    kind = int if kind is int else (int, float)
    return isinstance(value, kind) and not isinstance(value, bool)
  return isinstance(value, kind)


def check(section: Any, values: Mapping[str, Any] | None = None,
          prefix: str = '') -> None:
  """Refuses values that a section's fields do not allow.

  Args:
    section: A dataclass, or an instance of one.
    values: Field -> value, to be checked; None = those of the instance.
    prefix: Stands before a field's name in the error.

  Raises:
    ValueError: Names the field and its value.
  """
  cls = section if isinstance(section, type) else type(section)
  values = vars(section) if values is None else values
  for f in dataclasses.fields(cls):
    value, kind = values[f.name], types(cls)[f.name]
    name = f'{prefix}{f.name}={value!r}'
    if not fits(value, kind):
      kind = kind.__name__ if isinstance(kind, type) and not get_args(
          kind) else kind
      raise ValueError(f'{name} is not of type {kind}')
    rule = f.metadata.get('rule')
    inner = value if isinstance(value, (tuple, list)) else (value,)
    if rule and rule.some and not inner:
      raise ValueError(f'{name} is empty')
    for one in inner if rule else ():
      if wrong := rule.refusal(one):
        raise ValueError(f'{name} {wrong}')
