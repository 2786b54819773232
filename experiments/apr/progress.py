"""How well a policy imitates held-out searches, token by token.

  python -m experiments.apr.progress --of=runs/apr_sft --examples=60

Teacher-forced: of each token that a thread chooses on validation problems, the
log-probability of what the search wrote, and whether it is the most probable
legal token. A table by kinds of tokens:

  result    what an operation makes, as 3 in '9 / 3 = 3'
  step      its operands and operator
  rest      the numbers left in a line, and those of `go`
  target    the target, in a last line
  found     0, where a result is it; off: else, how far it is
  brief     the steps that the root hands to its children
  mark      = , : ; go
  answer    the root's answer, a child's result
  control   <spawn>, <join>, <return>, </think>, <eos>
"""

from __future__ import annotations

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax import config as config_lib
from adasr_jax.core import protocol as protocol_lib
from adasr_jax.core import visibility
from adasr_jax.learn import packing
from adasr_jax.learn.sft import SFT
from adasr_jax.models import decoder
from adasr_jax.run import factories
from adasr_jax.run import workdir

KINDS = ('result', 'step', 'rest', 'target', 'found', 'off', 'mark', 'brief',
         'answer', 'control')


def kinds(words: list[str], stages: list[int]) -> list[str]:
  """The kind of each token of a thread, its prefix included."""
  out, inside = [], False
  for i, (word, stage) in enumerate(zip(words, stages)):
    inside = (inside or word in (':', 'go')) and word != ';'
    if word.startswith('<'):
      kind = 'control'
    elif stage in (protocol_lib.ANSWER, protocol_lib.RESULT):
      kind = 'answer'
    elif stage in protocol_lib.BRIEFS:
      kind = 'brief'
    elif words[i - 1] == '=':
      kind = 'result'
    elif words[i - 1] == 'off':
      kind = 'target'
    elif i > 1 and words[i - 2] == 'off':
      kind = 'off' if int(word) else 'found'
    elif word in ('=', ',', ':', ';', 'go', 'off'):
      kind = 'mark'
    else:
      kind = 'rest' if inside else 'step'
    out.append(kind)
  return out


def measure(params, parts, examples) -> dict[str, dict[str, float]]:
  """Per kind and over all: nats per token, share right, tokens."""
  class Held:
    train = lambda self, cursor, n, shard: examples
    collate, traces = parts.data.collate, parts.data.traces
  batch = SFT(data=Held(), protocol=parts.protocol,
              prompts=len(examples)).collect(None, step=0, cursor=0).batch
  target, spelled = batch.target, np.full(batch.mask.shape, -1, np.int32)
  for b, row in enumerate(target.valid):
    words = [parts.tokenizer.spell([t]) for t in target.tokens[b][row]]
    spelled[b, row] = [KINDS.index(k) for k in kinds(
        words, target.stage[b][row].tolist())]
  # The kinds travel through packing as advantages.
  packed, _ = packing.pack(batch.replace(
      advantage=spelled.astype(np.float32)), parts.model_config.d_model)
  logp, right = jax.jit(_scored, static_argnums=(1, 2))(
      params, parts.model_config, parts.protocol, packed)
  of, out = np.asarray(packed.advantage), {}
  for name in (*KINDS, 'all'):
    at = packed.mask & ((of == KINDS.index(name)) if name != 'all' else True)
    if at.any():
      out[name] = {'loss': -float(np.asarray(logp)[at].mean()),
                   'right': float(np.asarray(right)[at].mean()),
                   'n': int(at.sum())}
  return out


def _scored(params, config, protocol, batch):
  """[B, T]: log-prob of each token; whether it is the most probable one."""
  t = batch.target
  hidden = decoder.target_hidden(
      params, config, batch.source, t.tokens[:, :-1],
      visibility.query_phase(t.phase), t.valid[:, :-1], batch.packing)
  x = decoder.logits(params, config, hidden)
  x = jnp.where(jnp.asarray(protocol.allowed)[t.stage[:, 1:]], x, -1e9)
  token = t.tokens[:, 1:]
  logp = jnp.take_along_axis(jax.nn.log_softmax(x), token[..., None], -1)
  pad = lambda a: jnp.pad(a, ((0, 0), (1, 0)))
  return pad(logp[..., 0]), pad(x.argmax(-1) == token)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--of', required=True,
                      help='WORKDIR[@STEP], of configs/apr.py:sft')
  parser.add_argument('--examples', type=int, default=60)
  args = parser.parse_args()
  saved = workdir.read_config(pathlib.Path(args.of.partition('@')[0]))
  s = config_lib.sections(config_lib.of_workdir(saved))
  parts = factories.parts(s)
  with jax.set_mesh(factories.mesh(s)):
    params = factories.restored_params(args.of, parts.model_config)
    found = measure(params, parts, parts.data.evaluation(
        'validation', args.examples))
  for name, row in found.items():
    print(f'{name:8s} loss {row["loss"]:.4f}  right {row["right"]:.4f}  '
          f'n {row["n"]}')
  print(json.dumps(found))


if __name__ == '__main__':
  main()
