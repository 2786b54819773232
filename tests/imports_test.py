"""The order of imports: whoever reads the code never has to turn back."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'adasr_jax'
# A room imports only rooms above it, and itself.
ROOMS = ('core', 'data', 'tasks', 'models', 'policy', 'credit', 'learn',
         'config', 'run', 'tools', 'live', 'main')
LEVEL = {name: i for i, name in enumerate(ROOMS)}
FILES = sorted(p for p in PACKAGE.rglob('*.py') if p.stem != '__init__'
               or p.read_text().strip())


def room(path):
  """'data/pipeline.py' -> 'data'."""
  return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imports(path):
  """Every name that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}:{node.lineno}: a relative import'
      yield node.module, node.lineno
      for alias in node.names:
        yield f'{node.module}.{alias.name}', node.lineno


def own(path):
  """The modules of the package that a file imports."""
  for name, line in imports(path):
    parts = name.split('.')
    if parts[0] == 'adasr_jax' and len(parts) > 1:
      yield parts[1], line


def test_every_file_is_in_a_room():
  assert {room(p) for p in FILES} - {'__init__'} == set(ROOMS)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(
    p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path):
  if room(path) == '__init__':
    assert not list(own(path))
    return
  for name, line in own(path):
    assert LEVEL[name] <= LEVEL[room(path)], f'{path}:{line}: {name}'


def test_the_reader_finds_imports():
  # So that the tests above cannot pass by seeing nothing.
  seen = {name for name, _ in own(PACKAGE / 'learn' / 'groups.py')}
  assert {'core', 'data', 'models', 'policy', 'credit'} <= seen


@pytest.mark.parametrize('path', [
    p for p in FILES if LEVEL.get(room(p), 0) < LEVEL['config']],
    ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_above_the_config_sees_one(path):
  for name, line in imports(path):
    assert name.split('.')[0] != 'ml_collections', f'{path}:{line}'
    assert name != 'adasr_jax.config', f'{path}:{line}'


def test_jit_stands_at_the_borders_alone():
  # Rollout and update; random parameters, the prefill that is timed, the
  # buffers that files are read into, parameters born and moved, LoRA's sum
  # before a rollout, what is compiled ahead of time, skips that a tool judges,
  # and rows of live sessions.
  # Nothing that they call is jitted again.
  found = {path.stem for path in FILES
           for x in ast.walk(ast.parse(path.read_text()))
           if isinstance(x, ast.Attribute) and x.attr == 'jit'}
  assert found == {'rollout', 'update', 'placement', 'evaluate', 'hf', 'lora',
                   'programs', 'prune_traces', 'rows'}


@pytest.mark.parametrize('path', [
    p for p in FILES if room(p) != 'live'], ids=lambda p: str(
        p.relative_to(PACKAGE)))
def test_only_the_live_room_needs_a_web_server(path):
  for name, line in imports(path):
    assert name.split('.')[0] not in ('starlette', 'uvicorn', 'websockets'), (
        f'{path}:{line}')
