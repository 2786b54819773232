"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
import pathlib


def whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
  """Calls write(a temporary path beside `path`), then puts it in place."""
  new = path.with_name(path.name + '.tmp')
  write(new)
  new.replace(path)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text in UTF-8."""
  whole(path, lambda new: new.write_text(text, encoding='utf-8'))
