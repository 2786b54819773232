"""GGUF files, read without trusting what their header declares.

Every count, length and offset is compared with what is left of the file before
it is used; so a damaged or hostile file of any size is refused at once.

Source: the description of the format in ggml, docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import pathlib
import struct
from typing import Any, BinaryIO

import gguf
from gguf import GGMLQuantizationType, GGUFValueType
import numpy as np

MAGIC, VERSIONS = b'GGUF', (2, 3)
# Published files stay far below: names of 64 bytes, lists of a million.
MOST_DIMS, MOST_LETTERS, MOST_LISTED = 4, 256, 2**24
_SCALARS = {
    GGUFValueType.UINT8: 'B', GGUFValueType.INT8: 'b',
    GGUFValueType.UINT16: 'H', GGUFValueType.INT16: 'h',
    GGUFValueType.UINT32: 'I', GGUFValueType.INT32: 'i',
    GGUFValueType.UINT64: 'Q', GGUFValueType.INT64: 'q',
    GGUFValueType.FLOAT32: 'f', GGUFValueType.FLOAT64: 'd',
    GGUFValueType.BOOL: '?'}
# Fewest bytes of a string, of a metadata entry and of a tensor's description.
_STRING, _ENTRY, _TENSOR = 8, 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file.

  Attributes:
    name: Its name.
    kind: How its numbers are stored.
    shape: Of the numbers, outermost dimension first.
    data: Mapped from the file: float32 and float16 as they are, of any other
      kind the bytes of each innermost row.
  """
  name: str
  kind: GGMLQuantizationType
  shape: tuple[int, ...]
  data: np.ndarray

  def float32(self, rows: int | None = None) -> np.ndarray:
    """The numbers, or those of the first rows of a matrix.

    Raises:
      ValueError: Numbers of this kind cannot be read.
    """
    data = self.data[:rows] if self.data.ndim > 1 else self.data
    try:
      return gguf.dequantize(data, self.kind)
    except NotImplementedError as e:
      raise ValueError(f'{self.name}: {e}') from e


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """Metadata by key and tensors by name; tensors are only mapped.

  Raises:
    ValueError: It is not a whole GGUF file of a known version; one line.
  """
  with path.open('rb') as f:
    header = _Header(f, path.stat().st_size)
    magic = header.take(4, 'magic')
    if magic != MAGIC:
      raise ValueError(f'is not a GGUF file: it begins with {magic!r}')
    version = header.number('I', 'version')
    if not version & 0xffff:
      raise ValueError('is in the other byte order')
    if version not in VERSIONS:
      raise ValueError(f'is of GGUF version {version}, not 2 or 3')
    num_tensors = header.number('Q', 'number of tensors')
    num_entries = header.number('Q', 'number of metadata entries')
    header.check(num_entries * _ENTRY, f'{num_entries} metadata entries')
    header.check(num_tensors * _TENSOR, f'{num_tensors} tensors')
    meta = {}
    for _ in range(num_entries):
      key = header.name('a key')
      if key in meta:
        raise ValueError(f'has {key} twice')
      meta[key] = header.value(key)
    described = {}
    for _ in range(num_tensors):
      name, *rest = header.tensor()
      if name in described:
        raise ValueError(f'has the tensor {name} twice')
      described[name] = rest
    alignment = meta.get('general.alignment', 32)
    if type(alignment) is not int or alignment < 1 or (
        alignment & (alignment - 1)):
      raise ValueError(f'general.alignment={alignment!r:.40} is not a power '
                       f'of 2')
    begin = -(-f.tell() // alignment) * alignment
  return meta, _mapped(path, header.size, begin, described)


class _Header:
  """What is at the beginning of a file, taken piece by piece."""

  def __init__(self, f: BinaryIO, size: int):
    self._f, self.size = f, size

  def check(self, num_bytes: int, what: str) -> None:
    """Raises ValueError where less is left of the file."""
    left = self.size - self._f.tell()
    if num_bytes > left:
      raise ValueError(f'is not a complete GGUF file: {what} need {num_bytes} '
                       f'bytes, {left} are left')

  def take(self, num_bytes: int, what: str) -> bytes:
    self.check(num_bytes, what)
    return self._f.read(num_bytes)

  def number(self, code: str, what: str) -> Any:
    return self.numbers(1, code, what)[0]

  def numbers(self, n: int, code: str, what: str) -> tuple[Any, ...]:
    return struct.unpack(f'<{n}{code}', self.take(
        n * struct.calcsize(f'<{code}'), what))

  def name(self, what: str) -> str:
    """A text that errors can show."""
    text = self.text(what)
    if len(text) > MOST_LETTERS or not text.isprintable():
      raise ValueError(f'{what} is not a name: {text!r:.40}')
    return text

  def text(self, what: str) -> str:
    n = self.number('Q', f'the length of {what}')
    try:
      return self.take(n, f'the {n} letters of {what}').decode()
    except UnicodeDecodeError as e:
      raise ValueError(f'{what} is not UTF-8: {e.reason}') from e

  def value(self, key: str) -> Any:
    """The value of a metadata entry."""
    kind = self.number('I', f'the type of {key}')
    if kind != GGUFValueType.ARRAY:
      return self._values(key, kind, 1)[0]
    kind = self.number('I', f'the type of {key}')
    return self._values(key, kind, self.number('Q', f'the length of {key}'))

  def _values(self, key: str, kind: int, n: int) -> list[Any]:
    what = f'the {n} entries of {key}'
    if n > MOST_LISTED:
      raise ValueError(f'{what} are more than {MOST_LISTED}')
    if kind == GGUFValueType.STRING:
      self.check(n * _STRING, what)
      return [self.text(key) for _ in range(n)]
    if kind not in _SCALARS:
      raise ValueError(f'{key} is of the unknown type {kind}')
    return list(self.numbers(n, _SCALARS[kind], what))

  def tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    """Name, kind, shape and offset of a tensor."""
    name = self.name('the name of a tensor')
    dims = self.number('I', f'the number of dimensions of {name}')
    if not 1 <= dims <= MOST_DIMS:
      raise ValueError(f'{name} has {dims} dimensions')
    shape = self.numbers(dims, 'Q', f'the shape of {name}')[::-1]
    if not all(shape):
      raise ValueError(f'{name} has shape {shape}')
    kind = self.number('I', f'the type of {name}')
    try:
      kind = GGMLQuantizationType(kind)
    except ValueError:
      raise ValueError(f'{name} is of the unknown type {kind}') from None
    return name, kind, shape, self.number('Q', f'the offset of {name}')


def _mapped(path: pathlib.Path, size: int, begin: int,
            described: Mapping[str, tuple]) -> dict[str, Tensor]:
  """The tensors, whose data begin at `begin`."""
  out, end, before = {}, begin, ''
  whole = np.memmap(path, np.uint8, 'r')
  # By offset, so that each must begin after the one before.
  for name, (kind, shape, offset) in sorted(
      described.items(), key=lambda item: item[1][-1]):
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
      raise ValueError(f'{name} of shape {shape} does not divide into blocks '
                       f'of {block}')
    row_bytes = shape[-1] // block * block_bytes
    start, num_bytes = begin + offset, math.prod(shape[:-1]) * row_bytes
    if start + num_bytes > size:
      raise ValueError(
          f'is not a complete GGUF file: {name} of shape {shape} ends at byte '
          f'{start + num_bytes} of {size}')
    if start < end:
      raise ValueError(f'{name} overlaps {before}')
    data = whole[start:start + num_bytes].reshape(*shape[:-1], row_bytes)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
      data = data.view('<f4' if kind == GGMLQuantizationType.F32 else '<f2')
    out[name] = Tensor(name, kind, shape, data)
    end, before = start + num_bytes, name
  return {name: out[name] for name in described}
