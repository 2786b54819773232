"""The folder of a run: its config, and the model that it began from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
import contextlib
import fcntl
import json
import pathlib
import shutil
from typing import Any

from adasr_jax.config import difference
from adasr_jax.core import files
from adasr_jax.core import hosts
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.learn.method import Parts
from adasr_jax.models import hf_config
from adasr_jax.run import logs

# In a workdir that began from a Hugging Face folder: that folder without its
# weights, with the control tokens.
KEPT = 'huggingface'
CONFIG = 'config.json'
# What a run may have written before its first step.
_WRITTEN = frozenset({CONFIG, KEPT, 'checkpoints', logs.EVALUATIONS,
                      'metrics.jsonl', 'samples.jsonl', 'tensorboard'})


def prepare(workdir: pathlib.Path, config: Mapping[str, Any],
            command: str) -> None:
  """Writes config.json, or checks that the one there is the same.

  Args:
    workdir: On a file system that all hosts see.
    config: All fields, as a tree.
    command: What was typed.

  Raises:
    ValueError: The workdir holds a run with another config (shows the fields),
      or config.json or eval.json is damaged.
  """
  hosts.by_first(lambda: _write_config(workdir, config, command))
  if not all(hosts.all_hosts([(workdir / CONFIG).exists()])):
    raise ValueError(f'{workdir} is not the same folder on all hosts')


def _write_config(workdir, config, command):
  old = read_config(workdir)
  if old is None:
    workdir.mkdir(parents=True, exist_ok=True)
    logs.write_json(workdir / CONFIG, {'command': command, **config})
    return
  logs.read_evaluations(workdir)  # refuses a damaged one
  old.pop('command')
  if changed := difference(old, config):
    raise ValueError(
        f'{workdir} holds a run with another config; use a new workdir, or '
        f'the old values of:\n  ' + '\n  '.join(changed))


class Busy(OSError):
  """Another process has the workdir, and what is in it is not ours."""


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps a workdir for this run, on whatever hosts.

  Two runs would write each other's logs and clear each other's checkpoints
  away. Where the file system knows no locks, nothing is kept.

  Raises:
    Busy: Another process has it.
  """
  with contextlib.ExitStack() as stack:
    hosts.by_first(lambda: _lock(stack.enter_context(
        (workdir / CONFIG).open('rb')), workdir))
    yield


def _lock(opened, workdir):
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise Busy(f'workdir={str(workdir)!r}: another process is running in it'
               ) from None
  except OSError:
    pass


def names(workdir: pathlib.Path) -> frozenset[str]:
  """What is in a folder; nothing where there is none."""
  return frozenset(p.name for p in workdir.iterdir()
                   ) if workdir.is_dir() else frozenset()


def withdraw(workdir: pathlib.Path, before: Collection[str]) -> None:
  """Removes what a run wrote that failed before its first step.

  So the corrected command can have the same workdir. A workdir that held a
  run before, or in which something was trained or evaluated, stays as it is.

  Args:
    workdir: Of the run.
    before: names() of it when the run began.
  """
  if (CONFIG in before
      or any(r['step'] for r in logs.read_lines(workdir / 'metrics.jsonl'))
      or 'final' in logs.read_evaluations(workdir)):
    return
  for name in _WRITTEN - set(before):
    path = workdir / name
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
  if not names(workdir):
    workdir.rmdir()


def read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
  """config.json of a run, None where there is none.

  Raises:
    ValueError: It is damaged, or that of something else.
  """
  path = workdir / CONFIG
  out = logs.read_json(path)
  if out is not None and (not isinstance(out, dict)
                          or not {'command', 'method'} <= out.keys()):
    raise ValueError(f'{path} is not the config of a run')
  return out


def model_folder(init: str) -> pathlib.Path | None:
  """The Hugging Face folder that describes the model of config.init.

  The folder itself, or what a workdir kept of the one it began from; None
  where parameters start otherwise.
  """
  if not init:
    return None
  if is_model(init):
    return pathlib.Path(init)
  path, _ = files.at_step(init)
  kept = (path.parent if path.is_file() else path) / KEPT
  return kept if kept.is_dir() else None


def is_model(init: str) -> bool:
  """Whether config.init is a model's folder and not a workdir."""
  path = pathlib.Path(init)
  if not path.is_dir() or (path / 'checkpoints').is_dir():
    return False
  try:  # a workdir without checkpoints: every run's config has a method
    return 'method' not in files.read_json(path / 'config.json')
  except (OSError, ValueError, TypeError):
    return True  # reading it as a model shows what is wrong


def keep_model_folder(workdir: pathlib.Path, init: str, tokenizer_path: str,
                      parts: Parts) -> None:
  """Writes workdir/huggingface, for later runs and exports.

  config.json, generation_config.json and the tokenizer with the control
  tokens; nothing where the model came from no folder.
  """
  folder, out = model_folder(init), workdir / KEPT
  if folder is None or (out / 'config.json').is_file():
    return
  tokenizer_lib.copy_folder(tokenizer_path, out)
  if (folder / 'generation_config.json').is_file():
    files.whole(out / 'generation_config.json', lambda new: shutil.copyfile(
        folder / 'generation_config.json', new))
  raw = dict(hf_config.read_config(folder),
             vocab_size=parts.model_config.vocab_size)
  # Last: a folder that has it is whole.
  files.write_text(out / 'config.json', json.dumps(raw, indent=2) + '\n')
