"""Adaptive parallel reasoning: a root thread that spawns children (countdown).

  python -m adasr_jax.main --config=configs/apr.py:sft --workdir=runs/apr_sft
  python -m adasr_jax.main --config=configs/apr.py --workdir=runs/apr

`sft` imitates a symbolic search from scratch. Without it, RL goes on from
experiments/apr/parallel.safetensors or serial.safetensors, made by two rounds
of `sft`; from your own with --config.init=runs/apr_sft. A rollout has one
advantage that all its threads share. Every thread has `context` slots.

Arguments:
  smoke      two steps of everything
  sft        supervised training instead of RL
  evaluate   no training: an evaluation of what RL would start from
  serial     the baseline: one thread searches by itself
  context=N  slots of a thread
  paper      the paper's sizes: a decoder of 228 million parameters, contexts
             of 4,096, numbers up to 99 and targets up to 100. RL goes on from
             the workdir runs/apr_paper of `sft,paper`; runs/apr_paper_serial
  seed=N     seed of the run
"""

import dataclasses

from adasr_jax.config import parse_arg
from adasr_jax.tasks import countdown
from configs import common

STARTS = common.ROOT / 'experiments' / 'apr'
CHILDREN = 10


def get_config(arg=None):
  a = parse_arg(arg, smoke=False, serial=False, sft=False, evaluate=False,
                context=0, paper=False, seed=0)
  a.context = a.context or (4096 if a.paper else 192)
  form = 'serial' if a.serial else 'parallel'
  c = common.base(f'{"Serial" if a.serial else "Parallel"} search, '
                  f'{"SFT" if a.sft or a.evaluate else "RL"}',
                  'eval' if a.evaluate else 'sft' if a.sft else 'hrpo')
  c.seed = c.data.seed = a.seed

  # Four numbers of 1..20, targets 10..50, no step above 99. Both searches keep
  # the best steps first, by a function of the state: it can be learned. (How
  # many a child keeps is drawn, 10 to 15; 9 % of its states have more than
  # ten.) Of 300 validation problems they find, with so many slots per thread,
  # 128: 0.71 (parallel), 0.36 (serial); 192: 0.78, 0.42; 256: 0.87, 0.44. With
  # 128 a root that calls ten children has no room for what more than three of
  # them return.
  d = c.data
  c.task, d.layout, d.lengths, d.max_chunks = (
      'countdown', 'read_then_think', (8,), 1)
  d.search.update(dataclasses.asdict(
      countdown.GREEDY_SERIAL if a.serial else countdown.GREEDY_PARALLEL))
  d.search.context, d.search.max_calls = a.context, CHILDREN

  # 1.25 million parameters.
  m = c.model
  m.num_layers, m.d_model, m.d_ff = 5, 128, 512
  m.num_heads, m.num_kv_heads, m.head_dim = 4, 2, 32

  # A root is its prefix, its search and three steps as answer.
  r = c.rollout
  r.legality, r.thought_cap = 'masked', 2
  r.answer_cap = countdown.answer_cap(d.countdown.numbers)
  # (The last slot of an answer's cap is for one that does not end.)
  r.deep_cap, r.child_cap = a.context - r.answer_cap, a.context - 1
  r.children = 0 if a.serial else CHILDREN

  o = c.optim
  o.schedule, o.b1, o.clip_norm = 'cosine', 0.9, 1.0
  if a.sft:
    # 64 threads per step in either form.
    d.prompts, c.steps = 64 if a.serial else 12, 2000
    c.loss.micro_batches = 4 if a.serial else 1  # by measurement on two cores
    o.learning_rate, o.warmup, o.b2, o.weight_decay = 3e-3, 100, 0.98, 0.01
    c.eval.at_start = False
    c.eval.every, c.checkpoint.every = 500, 250
  else:
    c.init = common.relative(STARTS / f'{form}.safetensors')
    d.prompts, c.steps = 8, 60
    r.samples, r.rows = 8, 32
    w = c.reward
    w.format_weight, w.accuracy_weight, w.think_weight = 0.0, 1.0, 0.0
    c.advantage.granularity = 'sequence'
    c.loss.clip_low = c.loss.clip_high = 0.2
    # By rollouts, whatever their length and their number of children; in units
    # of a usual rollout's tokens.
    c.loss.aggregation, c.loss.constant = 'constant', 140 if a.serial else 1500
    # At 3e-4 rollouts got worse within ten steps; see experiments/apr.
    o.learning_rate, o.warmup, o.b2 = 1e-4, 5, 0.99
    c.eval.every, c.checkpoint.every = 20, 20
  if a.paper:
    paper(c, a.serial)
  e = c.eval
  e.examples, e.batch, e.periodic_examples = 1000, 100, 200
  if a.smoke:
    common.smoke(c)
  return c


def paper(c, serial: bool) -> None:
  """The sizes of arXiv 2504.15466, where they are known.

  Its text is Llama 2's tokens and restates the numbers in each line; ours is
  words. 228 million parameters are those of the layers, there as here.
  """
  d, m, r, o = c.data, c.model, c.rollout, c.optim
  size = d.countdown
  size.max_number, size.min_target, size.max_target = 99, 10, 100
  size.largest = 999  # there is no largest number in the paper
  d.search.update(dataclasses.asdict(countdown.SOS if serial
                                     else countdown.APR))
  d.search.context = r.deep_cap + r.answer_cap
  m.num_layers, m.d_model, m.d_ff = 18, 1024, 2752
  m.num_heads, m.num_kv_heads, m.head_dim = 16, 16, 64
  m.qk_norm, m.tie_embedding, m.dtype = False, False, 'bfloat16'
  r.samples, r.rows = 5, 0
  c.init = '' if c.method == 'sft' else (
      'runs/apr_paper' + '_serial' * serial)
  if c.method == 'sft':
    d.prompts, c.steps, o.learning_rate = 256, 19000, 5e-5
    o.b2, c.loss.micro_batches = 0.999, 16
  else:
    # Two updates of each batch; KL to the supervised policy.
    d.prompts, c.steps, o.learning_rate = 64, 150, 1e-5
    c.loss.inner_epochs, c.loss.micro_batches, c.loss.constant = 2, 4, 4096
    c.loss.kl_weight = 0.01 if serial else 0.001
