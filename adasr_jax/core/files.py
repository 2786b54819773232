"""Files that are written whole or not at all."""

from __future__ import annotations

import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text through a temporary file beside it."""
  new = path.with_name(path.name + '.tmp')
  new.write_text(text, encoding='utf-8')
  new.replace(path)
