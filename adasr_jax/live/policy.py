"""The policies that are served: the two shipped ones, runs, model folders."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

from absl import logging
import ml_collections

from adasr_jax import config as config_lib
from adasr_jax.core import files
from adasr_jax.core import visibility
from adasr_jax.core.protocol import Protocol
from adasr_jax.core.types import Example
from adasr_jax.credit import rewards
from adasr_jax.data.pipeline import STREAMING
from adasr_jax.data.tokenizer import Tokenizer
from adasr_jax.learn import METHODS
from adasr_jax.learn.method import Parts
from adasr_jax.models import decoder
from adasr_jax.policy.engine import Engine
from adasr_jax.run import factories
from adasr_jax.run import logs
from adasr_jax.run import workdir as workdir_lib
from adasr_jax import tasks

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / 'experiments' / 'demo'
PROBLEMS = 1000  # of the test split, that may be asked for


@dataclasses.dataclass(frozen=True)
class Policy:
  """A policy, and what a session must know of it.

  Attributes:
    name: Of the run.
    mode: 'streaming' or 'read_then_think', the layout that it was trained in.
    tokenizer, protocol, model_config, params: What thinks.
    max_chunks: Most chunks of a text.
    source_slots: Most source tokens, those of the question included.
    instruction: Opens every source; may be empty.
    problem: The N-th problem of the test split; None where there are none.
    problems: How many there are, at most PROBLEMS.
    right: Whether a text is the right answer to such a problem.
    measured: accuracy, interval, n, split; None each where nobody measured it.
    note: About the policy, for people.
    samples: The run's samples.jsonl, if it has one.
  """
  name: str
  mode: str
  tokenizer: Tokenizer
  protocol: Protocol
  model_config: decoder.DecoderConfig
  params: decoder.Params
  max_chunks: int
  source_slots: int
  instruction: str = ''
  problem: Callable[[int], Example] | None = None
  problems: int = 0
  right: Callable[[str, Example], bool] = rewards.is_right
  measured: dict[str, Any] = dataclasses.field(default_factory=lambda: (
      dict.fromkeys(('accuracy', 'interval', 'n', 'split'))))
  note: str = ''
  samples: pathlib.Path | None = None

  @property
  def streams(self) -> bool:
    """Whether it thinks before the text has ended."""
    return self.mode == STREAMING

  def engine(self, rows: int, temperature: float) -> Engine:
    """Rows that think as this policy does, each on a source of its own."""
    return Engine(
        model_config=self.model_config, protocol=self.protocol, prompts=rows,
        samples=1, max_chunks=self.max_chunks if self.streams else 1,
        temperature=temperature)

  def preamble(self, question: str) -> str:
    """What stands before the first chunk, as in training."""
    return ''.join(f'{part}\n' for part in (self.instruction, question) if part)

  def info(self) -> dict[str, Any]:
    """For people; see docs/live.md."""
    return {'mode': self.mode, 'name': self.name,
            'model': f'{decoder.num_params(self.params) / 1e6:.3g}M',
            **self.measured, 'note': self.note}


def shipped() -> list[Policy]:
  """The demo's policy after HRPO, and the read-then-think warm start.

  Raises:
    ValueError, OSError: Their files are not there.
  """
  from configs import hrpo, read_then_think
  configs = {'hrpo': hrpo, 'read_then_think': read_then_think}
  out = []
  for entry in files.read_json(DEMO / 'policies.json'):
    c = configs[entry['config']].get_config()
    c.init = str(DEMO / entry['file'])
    policy = _of_config(c, entry['measured'])
    out.append(dataclasses.replace(policy, name=entry['name'],
                                   note=entry['note']))
  return out


def load(of: str) -> Policy:
  """A run's policy, or that of a Hugging Face folder.

  Args:
    of: WORKDIR, WORKDIR@STEP, WORKDIR@best or a folder with a model.

  Raises:
    ValueError, OSError: There is no such thing, or it cannot be served.
  """
  path, _ = files.at_step(of)
  if not path.is_dir():
    raise ValueError(f'--of={of!r}: there is no folder {str(path)!r}')
  if workdir_lib.is_model(of):
    from configs import gsm8k
    c = gsm8k.get_config(f'model={of}')
    c.name = path.name
    return _of_config(c)
  saved = workdir_lib.read_config(path)
  if saved is None:
    raise ValueError(f'--of={of!r} holds no run and no model: it has no '
                     'config.json')
  c = config_lib.of_workdir(saved)
  kept = workdir_lib.model_folder(str(path))
  if kept is not None and not pathlib.Path(c.tokenizer.path).is_dir():
    c.tokenizer.path = str(kept)
  if c.method != config_lib.EVAL:
    c.init = of
  samples = path / 'samples.jsonl'
  return dataclasses.replace(
      _of_config(c, {} if files.at_step(of)[1] else _measured(path)),
      samples=samples if samples.is_file() else None)


def _measured(path):
  evaluations = logs.read_evaluations(path)
  final = evaluations.get('final')
  if final is None:
    return {}
  return {'accuracy': final['accuracy'], 'interval': final['accuracy_ci95'],
          'n': final['n'], 'split': evaluations['settings']['split']}


def _of_config(c: ml_collections.ConfigDict, measured=None) -> Policy:
  s = config_lib.sections(c)
  entry = METHODS.get(s['run'].method)  # none of an evaluation
  if visibility.ALL in {e.reads(s) for e in (
      [entry] if entry else METHODS.values())}:
    raise ValueError('a policy that has read the whole text before its first '
                     'thought cannot be served: its text is not there yet')
  if s['rollout'].children:
    raise ValueError(f'rollout.children={s["rollout"].children}: policies that '
                     'spawn threads cannot be served yet')
  tokenizer, model_config = factories.tokenizer_and_decoder(s)
  protocol = factories.protocol_of(tokenizer, s['rollout'])
  data = s['data']
  params = factories.initial_params(s, Parts(
      tokenizer=tokenizer, protocol=protocol, model_config=model_config,
      data=None))
  policy = Policy(
      name=c.name, mode=data.layout, tokenizer=tokenizer, protocol=protocol,
      model_config=model_config, params=params, max_chunks=data.max_chunks,
      source_slots=max(data.lengths), instruction=data.instruction,
      **_problems(s, tokenizer, protocol))
  return dataclasses.replace(policy, measured=policy.measured
                             | (measured or {}))


def _problems(s, tokenizer, protocol):
  """Fields `problem`, `problems`, `right` of a Policy, if there are any."""
  task = tasks.chosen(s)
  try:
    data = task.dataset(s, tokenizer, protocol, traces=False)
    data.example('test', 0)
  except (ValueError, OSError, IndexError) as e:
    logging.info('no problems to offer: %s', e)
    return {}
  agrees = task.agrees(s) if task.agrees else None
  return {'problem': lambda i: data.example('test', i),
          'problems': min(PROBLEMS, data.size('test')),
          'right': lambda text, e: rewards.is_right(text, e, agrees)}
