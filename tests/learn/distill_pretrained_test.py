"""Distillation between two Hugging Face models, on plain prompts."""

import json

import jax
import numpy as np
import pytest

from adasr_jax.learn.distill import Distill
from adasr_jax.models import decoder
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.run.start import start
from adasr_jax.run import train
from configs import distill
from tests.small import make_config, save_tokenizer

TEMPLATE = ("{% for m in messages %}{{ m['role'] }} {{ m['content'] }} "
            "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}")
WORDS = ['<unk>', '<end>', 'user', 'assistant', 'tom', 'has', 'hats.', 'gets',
         'how', 'many?', *map(str, range(10)), '####']


def qwen3(folder, seed, **shape):
  """A tiny random Qwen3 with its tokenizer, as on Hugging Face; its shape."""
  config = make_config(vocab_size=len(WORDS), **shape)
  hf.save(folder, decoder.init(config, jax.random.key(seed)), config,
          hf_config.config_json(config, dtype='float32', max_position=256),
          dtype='float32')
  save_tokenizer(folder, WORDS, TEMPLATE)
  return config


def test_a_larger_model_teaches_a_lora_student(tmp_path, monkeypatch):
  shape = qwen3(tmp_path / 'student', 0, num_layers=1)
  qwen3(tmp_path / 'teacher', 1, num_layers=2, d_model=48)
  data = tmp_path / 'problems.jsonl'
  data.write_text(''.join(json.dumps({
      'question': f'tom has {i} hats. tom gets {i % 3} hats. how many?',
      'answer': f'#### {i + i % 3}'}) + '\n' for i in range(1, 8)))

  c = distill.get_config(f'smoke,teacher={tmp_path / "teacher"}')
  c.init = str(tmp_path / 'student')
  c.tokenizer.kind, c.tokenizer.path = 'folder', str(tmp_path / 'student')
  c.data.source, c.data.path = 'jsonl', str(data)
  c.data.test_path, c.data.format = str(data), 'gsm8k'
  c.data.layout, c.data.max_chunks = 'read_then_think', 3
  c.data.lengths = (64,)
  for name in ('num_layers', 'd_model', 'd_ff', 'num_heads', 'num_kv_heads',
               'head_dim'):
    c.model[name] = getattr(shape, name)
  c.data.prompts, c.rollout.samples, c.rollout.rows = 2, 3, 2
  c.rollout.deep_cap, c.rollout.answer_cap = 8, 4
  c.lora.rank, c.loss.inner_epochs, c.checkpoint.every = 2, 2, 1
  c.optim.learning_rate, c.distill.reward = 1e-2, 'log_ratio'
  c.eval.at_start, c.eval.every = False, 0
  c.eval.examples = c.eval.batch = 2
  c.log.tensorboard = False

  # Cut in the second step, then the same command.
  scored, asked = Distill.scored, []
  def cut(self, *args):
    asked.append(1)
    if len(asked) == 2:
      raise RuntimeError('cut')
    return scored(self, *args)
  monkeypatch.setattr(Distill, 'scored', cut)
  go = lambda name: train.train(start(c, tmp_path / name, 'test',
                                      jax.devices()[:1]))
  with pytest.raises(RuntimeError, match='cut'):
    go('run')
  go('run')
  go('whole')

  def rows(name):
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    return [{k: v for k, v in r.items()
             if not k.startswith(('time/', 'tokens_per_s/'))}
            for r in map(json.loads, lines) if r['kind'] == 'train']
  assert rows('run') == rows('whole')
  assert [r['step'] for r in rows('run')] == [1, 2]
  for r in rows('run'):
    assert r['grad_norm'] > 1e-4 and np.isfinite(r['teacher_kl/deep'])
    assert abs(r['teacher_reward/deep']) > 1e-3  # two random models differ
