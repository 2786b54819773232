"""A new method and a new task come in through the tables alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.core.options import option
from adasr_jax.core.types import Example
from adasr_jax.learn import METHODS
from adasr_jax.learn import method as method_lib
from adasr_jax.learn import sft
from adasr_jax.run.start import start
from adasr_jax.run import train
from adasr_jax.tasks import TASKS
from adasr_jax.tasks import task as task_lib
from adasr_jax.tasks import word_problems
from configs import common


# --------------------------------------------------------------- a toy task
@dataclasses.dataclass(frozen=True)
class ToyTaskConfig:
  """Sums of two numbers up to `most`."""
  most: int = option(9, above=0, below=50)


def example(most, seed, split, i) -> Example:
  """'3' and '4' arrive one after the other; the answer is 7."""
  offset = 0 if split == 'train' else 2**20
  r = np.random.default_rng((seed, offset + i))
  a, b = (int(x) for x in r.integers(1, most + 1, 2))
  return Example(id=i, preamble='', chunks=(str(a), str(b)), answer=str(a + b),
                 thoughts=(str(a), None), deep=f'{a} + {b}')


TOY_TASK = task_lib.Entry(
    tokenizer=lambda s, vocab_size, *, resize=False: word_problems.embedded(),
    dataset=lambda s, tokenizer, protocol, *, traces: task_lib.generated(
        s, tokenizer, protocol,
        lambda seed, split, i: example(s['toy_task'].most, seed, split, i)),
    splits=('validation', 'test'), sections={'toy_task': ToyTaskConfig()})


# ------------------------------------------------------------- a toy method
@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """Cross-entropy times `weight`."""
  weight: float = option(0.5, above=0)


@dataclasses.dataclass(frozen=True)
class Toy:
  """Imitates traces, as SFT, with a weight on the loss."""
  inner: sft.SFT
  weight: float
  temperature: float = 1.0
  needs_reference: bool = False

  def loss(self, logp, entropy, batch):
    terms = sft.loss(logp, entropy, batch)
    total, tokens = terms['loss']
    return terms | {'loss': (self.weight * total, tokens)}

  def collect(self, params, *, step, cursor):
    return self.inner.collect(params, step=step, cursor=cursor)

  def scored(self, batch, params, reference):
    return self.inner.scored(batch, params, reference)


def refuse(s):
  if s['toy'].weight == 13.0:
    raise ValueError('toy.weight=13.0 brings bad luck')


def build(s, parts):
  return Toy(sft.ENTRY.build(s, parts), s['toy'].weight)


TOY_METHOD = method_lib.Entry(
    build=build, loss=lambda s: build(s, None).loss,
    sections={'toy': ToyConfig()}, check=refuse, rolls_out=False)


@pytest.fixture
def tables(monkeypatch):
  monkeypatch.setitem(METHODS, 'toy', TOY_METHOD)
  monkeypatch.setitem(TASKS, 'sums', TOY_TASK)


def config():
  c = common.base('Toy', 'toy')
  c.task = 'sums'
  common.smoke(c)
  c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 32
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
  c.data.lengths, c.data.max_chunks = (8,), 2
  c.eval.examples = c.eval.batch = 4
  c.eval.at_start = c.log.tensorboard = False
  c.toy.weight, c.toy_task.most = 0.25, 5
  return c


def test_a_toy_method_on_a_toy_task_trains(tables, tmp_path):
  c = config()
  train.train(start(c, tmp_path, 'test', jax.devices()[:1]))
  evals = json.loads((tmp_path / 'eval.json').read_text())
  assert evals['final']['n'] == 4
  rows = [json.loads(x) for x in
          (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  losses = [r['loss'] for r in rows if r['kind'] == 'train']
  # A quarter of the cross-entropy of random parameters over 206 words.
  assert len(losses) == 2
  assert losses[0] == pytest.approx(np.log(206) / 4, abs=0.4)
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['toy'] == {'weight': 0.25}
  assert saved['toy_task'] == {'most': 5}
  assert '# Toy' in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize('field,value,match', [
    ('toy.weight', 0.0, 'toy.weight=0.0 must be positive'),
    ('toy.weight', 13.0, 'toy.weight=13.0 brings bad luck'),
    ('toy_task.most', 99, 'toy_task.most=99 is outside'),
    ('eval.split', 'ood', "eval.split='ood'"),
    ('task', 'products', "task='products'")])
def test_their_bad_values_are_named(tables, field, value, match):
  c = config()
  c.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=match):
    config_lib.validate(c)


def test_the_tables_are_as_they_were():
  assert 'toy' not in METHODS and 'sums' not in TASKS
  assert 'toy' not in config_lib.base()
