r"""A pretrained model on GSM8K: supervised streaming traces, then HRPO.

  python -m adasr_jax.tasks.gsm8k.traces --path=data/gsm8k_train.jsonl \
      --style=arithmetic --out=data/gsm8k_traces.jsonl
  python -m adasr_jax.main --config=configs/gsm8k.py:sft,folder=data \
      --workdir=runs/gsm8k_sft
  python -m adasr_jax.main --config=configs/gsm8k.py:folder=data \
      --config.init=runs/gsm8k_sft --workdir=runs/gsm8k_hrpo

Sizes for SmolLM2-135M on two CPU cores: SFT on 1,200 traces, three steps of
HRPO, 50 test problems. docs/models.md says how to get the model;
experiments/smollm2 what came out.

Arguments:
  sft             supervised training on the traces; without it, HRPO
  folder=DIR      holds gsm8k_train.jsonl, gsm8k_traces.jsonl and the model
  model=DIR       Hugging Face folder, 'smollm2' in `folder` by default
  layout=read_then_think  the baseline: everything is read before it thinks
  seed=N          seed of the run
"""

import os

from adasr_jax.config import parse_arg
from configs import common


def get_config(arg=None):
  a = parse_arg(arg, sft=False, folder='', model='', layout='streaming',
                seed=0)
  folder = a.folder or os.environ.get('ADASR_DATA', 'data')
  c = common.base('SFT' if a.sft else 'HRPO', 'sft' if a.sft else 'hrpo')
  c.seed = c.data.seed = a.seed
  c.init = c.tokenizer.path = a.model or os.path.join(folder, 'smollm2')
  c.tokenizer.kind = 'folder'

  d = c.data
  d.source, d.instruction = 'jsonl', common.INSTRUCTION
  d.lengths, d.max_chunks, d.overlong = (160, 256), 10, 'drop'
  if a.sft:
    d.path = os.path.join(folder, 'gsm8k_traces.jsonl')
    d.fields.relevant, d.fields.thoughts, d.fields.deep = (
        'relevant', 'thoughts', 'deep')
    d.prompts, c.steps = 8, 150
    # With 50 steps, or 1e-4, control tokens were not learned when all began
    # as one mean row.
    c.optim.learning_rate, c.optim.schedule = 5e-4, 'cosine'
    c.optim.warmup, c.optim.b2 = 5, 0.98
  else:
    d.path, d.format = os.path.join(folder, 'gsm8k_train.jsonl'), 'gsm8k'
    d.prompts, c.rollout.samples, c.steps = 4, 4, 3
    c.optim.learning_rate = 1e-5

  r = c.rollout
  r.thought_cap, r.deep_cap, r.answer_cap = 64, 48, 16
  if a.layout == 'read_then_think':
    common.read_then_think(c)
  elif a.layout != 'streaming':
    raise ValueError(f'layout={a.layout!r} is not streaming or '
                     f'read_then_think')
  c.eval.at_start = False  # what `sft` ended with
  c.eval.examples = c.eval.batch = 50
  c.log.samples_every = 1
  return c
