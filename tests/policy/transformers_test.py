"""Rollouts against transformers: one sequence, a 4D mask, explicit positions.

The model of transformers knows no streams. It gets source and target as one
sequence, whose mask and positions say all of streaming.md's contract.
"""

import jax
import numpy as np
import pytest

from adasr_jax.core import visibility
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.policy.rollout import rollout
from tests.small import make_config, make_protocol, make_source

G, TEMPERATURE = 3, 0.8
OFFSET = 3


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip(
      'torch', reason='parity needs torch: pip install torch==2.13.0')


def whole_mask(source, target, p, b):
  """[S + T, S + T] bool and [S + T] positions of one row."""
  seg = lambda role, phase, valid: visibility.Segments(
      role=np.full((1, len(phase)), role), phase=phase[None],
      slot=np.arange(len(phase))[None], valid=valid[None])
  own = seg(visibility.TARGET, target.phase[b], target.valid[b])
  # Fed, a token is a query of the phase of the next one.
  query = seg(visibility.TARGET, np.append(target.phase[b, 1:], 0),
              target.valid[b])
  stream = seg(visibility.SOURCE, source.phase[p], source.valid[p])
  see = lambda q, k: np.asarray(visibility.visible(q, k))[0]
  S, T = len(source.phase[p]), len(target.phase[b])
  mask = np.zeros((S + T, S + T), bool)
  mask[:S, :S], mask[S:, :S], mask[S:, S:] = (
      see(stream, stream), see(query, stream), see(query, own))
  # Softmax of transformers needs something to read.
  mask |= np.eye(S + T, dtype=bool) & ~mask.any(1)[:, None]
  return mask, np.concatenate([np.arange(S), OFFSET + np.arange(T)])


@pytest.mark.parametrize('legality', ['free', 'masked'])
def test_log_probs_are_those_of_transformers(params, torch, tmp_path,
                                             legality):
  import transformers
  config = make_config(target_offset=OFFSET)
  params = params | {'embedding': params['embedding'] * 2.0}
  protocol, source = make_protocol(legality=legality), make_source()
  target = jax.device_get(rollout(
      params, source, jax.random.key(2), model_config=config,
      protocol=protocol, samples=G, max_chunks=4, temperature=TEMPERATURE,
      rows=5))
  hf.save(tmp_path, params, config, hf_config.config_json(
      config, dtype='float32', max_position=128), dtype='float32')
  model = transformers.AutoModelForCausalLM.from_pretrained(
      str(tmp_path), dtype=torch.float32, attn_implementation='eager')
  worst, count = 0.0, 0
  for b in range(len(target.tokens)):
    p, S = b // G, source.tokens.shape[1]
    mask, position = whole_mask(source, target, p, b)
    tokens = np.concatenate([source.tokens[p], target.tokens[b]])
    with torch.no_grad():
      logits = model(
          torch.tensor(tokens[None].astype(np.int64)),
          attention_mask=torch.where(torch.tensor(mask), 0.0, -1e30)[
              None, None],
          position_ids=torch.tensor(position[None]), use_cache=False
      ).logits[0, S:].numpy()
    x = np.where(protocol.allowed[target.stage[b, 1:]],
                 logits[:-1].astype(np.float64) / TEMPERATURE, -np.inf)
    x -= x.max(-1, keepdims=True)
    logp = x - np.log(np.exp(x).sum(-1, keepdims=True))
    at = np.flatnonzero(target.sampled[b])
    gap = logp[at - 1, target.tokens[b, at]] - target.logp[b, at]
    worst, count = max(worst, np.abs(gap).max()), count + len(at)
  assert count > 100 and worst < 1e-4, (count, worst)
