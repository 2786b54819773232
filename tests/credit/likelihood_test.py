"""Likelihood credit: branches in one pass are the branches run alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.core import protocol as pl
from adasr_jax.core.visibility import target_position
from adasr_jax.credit import likelihood
from adasr_jax.models.attention import attend
from adasr_jax.models.block import Block, rms_norm
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy.scoring import score
from tests.small import (
    END_THINK, EOS, EOT, SKIP, make_config, make_protocol, make_source)

SOURCE, G = make_source((4, 2, 3, 0)), 3
PROTOCOL = make_protocol(legality='masked')
CHUNKS = np.repeat(SOURCE.num_chunks, G)
GOLDS = [[7 + b, 20, 9][:1 + b % 3] for b in range(4 * G)]


@functools.cache
def setup(kernel='auto'):
  config = make_config(attention=kernel)
  params = decoder.init(config, jax.random.key(0))
  target = jax.device_get(rollout(
      params, SOURCE, jax.random.key(1), model_config=config,
      protocol=PROTOCOL, samples=G, max_chunks=4, temperature=1.0))
  return config, params, target


@functools.cache
def valued(direct=False, kernel='auto'):
  config, params, target = setup(kernel)
  branches, places = likelihood.branches(
      target, CHUNKS, GOLDS, PROTOCOL, direct=direct)
  logps = jax.device_get(jax.jit(likelihood.branch_logps, static_argnames=(
      'model_config', 'protocol'))(
          params, SOURCE, target, branches, model_config=config,
          protocol=PROTOCOL))
  return branches, places, likelihood.values(logps, places)


SLOTS = 48  # of branches that are run alone


@functools.partial(jax.jit, static_argnames='config')
def masked_hidden(params, config, source, tokens, own, reads):
  """[1, SLOTS, D], hidden states of one row by dense masks."""
  x = params['embedding'][tokens]
  position = target_position(jnp.arange(SLOTS)[None], config.target_offset)
  context = decoder.prefill(params, config, source)
  for l in range(config.num_layers):
    layer, kv = jax.tree.map(lambda a, l=l: a[l], (params['layers'], context))
    attention = lambda q, k, v, kv=kv: (attend(
        q, [(k, v, own), (*kv, reads)], 'einsum'), None)
    x, _ = Block(config).apply({'params': layer}, x, position, attention)
  return decoder.logits(params, config, rms_norm(
      x, params['final_norm'], config.norm_eps))


def alone(row, prefix, first, phase, hidden=(0, 0)):
  """V of a branch as a target of its own, by dense masks."""
  config, params, target = setup()
  tokens = [*target.tokens[row, :prefix], first, END_THINK, *GOLDS[row]]
  n = len(tokens)
  # What each token of the prefix predicts in its own target.
  phases = np.full(SLOTS, phase)
  phases[:prefix] = target.phase[row, 1:prefix + 1]
  own = np.tril(np.ones((SLOTS, SLOTS), bool))
  own[prefix:, hidden[0]:hidden[1]] = False
  source = jax.tree.map(lambda a: a[row // G][None], SOURCE)
  reads = source.valid & (source.phase <= phases[:, None])
  logits = masked_hidden(
      params, config, source, np.pad(tokens, (0, SLOTS - n))[None], own[None],
      reads[None])[0, prefix + 1:n]
  legal = PROTOCOL.allowed[pl.ANSWER][None]
  logp = jax.nn.log_softmax(jnp.where(legal, logits, -1e30))
  return float(sum(logp[i, t] for i, t in enumerate([*GOLDS[row], EOS])))


def span(row, chunk):
  target = setup()[2]
  return np.flatnonzero(target.valid[row] & (target.phase[row] == chunk + 1))


def test_a_branch_in_the_pass_is_the_branch_alone():
  _, places, value = valued()
  assert len(value) >= 20
  for i in range(0, len(value), 3):  # thoughts and skips in turn
    row, chunk, kind = (int(a[i]) for a in places[:3])
    where = span(row, chunk)
    prefix, first = ((where[-1], EOT) if kind == likelihood.THOUGHT
                     else (where[0], SKIP))
    want = alone(row, int(prefix), first, chunk + 1)
    np.testing.assert_allclose(value[i], want, atol=1e-5)


@pytest.mark.parametrize('kernel', ['blockwise'])
@pytest.mark.parametrize('direct', [False, True])
def test_kernels_agree(kernel, direct):
  np.testing.assert_allclose(valued(direct, kernel)[2], valued(direct)[2],
                             atol=1e-5)


def test_hidden_thoughts_are_read_by_later_thoughts_alone():
  target = setup()[2]
  _, places, value = valued(direct=True)
  hidden = places.kind == likelihood.HIDDEN
  assert hidden.sum() >= 5 and (~hidden).sum() >= 3
  last = np.flatnonzero(hidden & (places.chunk == CHUNKS[places.row] - 1))
  assert len(last) >= 2
  for i in (*np.flatnonzero(hidden)[:8], *last[:3]):
    row, n = int(places.row[i]), int(CHUNKS[places.row[i]])
    end = int(span(row, n - 1)[-1])
    where = span(row, int(places.chunk[i]))
    want = alone(row, end, target.tokens[row, end], n,
                 (int(where[0]), min(int(where[-1]) + 1, end)))
    np.testing.assert_allclose(value[i], want, atol=1e-5)


def test_direct_effects_by_hand():
  _, places, value = valued(direct=True)
  got = likelihood.direct_effects(value, places, (len(GOLDS), 4))
  hidden = places.kind == likelihood.HIDDEN
  for i in np.flatnonzero(hidden):
    end, = np.flatnonzero((places.row == places.row[i])
                          & (places.kind == likelihood.END))
    np.testing.assert_allclose(got[places.row[i], places.chunk[i]],
                               np.exp(value[end]) - np.exp(value[i]))
  rest = np.ones(got.shape, bool)
  rest[places.row[hidden], places.chunk[hidden]] = False
  assert (got[rest] == 0).all() and (got[~rest] != 0).any()


def test_credit_of_a_thought_by_hand():
  target = setup()[2]
  _, places, value = valued()
  got = likelihood.credits(value, places, (len(GOLDS), 4))
  assert (np.abs(got) <= 1).all()
  row, chunk = int(places.row[0]), int(places.chunk[0])
  where = span(row, chunk)
  assert target.tokens[row, where[-1]] == EOT
  want = (np.exp(alone(row, int(where[-1]), EOT, chunk + 1))
          - np.exp(alone(row, int(where[0]), SKIP, chunk + 1)))
  np.testing.assert_allclose(got[row, chunk], want, atol=1e-6)
  thought = np.zeros(got.shape, bool)
  thought[places.row, places.chunk] = True
  for r in range(len(GOLDS)):
    for c in range(4):
      there = span(r, c)
      ends = len(there) > 0 and target.tokens[r, there[-1]] == EOT
      assert thought[r, c] == ends
  assert (got[~thought] == 0).all()


def test_without_a_thought_the_suffix_is_read_again():
  config, params, target = setup()
  row, chunk = next((r, c) for r in range(len(GOLDS)) for c in range(2)
                    if len(span(r, c)) > 2 and CHUNKS[r] > c + 1)
  edited = likelihood.without_thought(target, row, chunk, PROTOCOL)
  where = span(row, chunk)
  n = int(target.valid[row].sum()) - len(where) + 1
  assert int(edited.valid.sum()) == n
  tokens = target.tokens[row, :n + len(where) - 1].tolist()
  tokens[where[0]:where[-1] + 1] = [SKIP]
  assert edited.tokens[0, :n].tolist() == tokens
  phase, stage = pl.annotate(PROTOCOL, edited.tokens, np.array([n]),
                             CHUNKS[row:row + 1])
  np.testing.assert_array_equal(phase, edited.phase)
  np.testing.assert_array_equal(stage, edited.stage)
  source = jax.tree.map(lambda a: a[row // G][None], SOURCE)
  logp, _ = score(params, source, edited, model_config=config,
                  protocol=PROTOCOL, temperature=1.0)
  old, _ = score(params, SOURCE, target, model_config=config,
                 protocol=PROTOCOL, temperature=1.0)
  first = where[0]
  np.testing.assert_allclose(logp[0, :first], old[row, :first], atol=1e-5)
  assert abs(float(logp[0, first + 1] - old[row, where[-1] + 1])) > 1e-4
  with pytest.raises(ValueError, match='no thought on chunk 3'):
    likelihood.without_thought(target, 3 * G, 3, PROTOCOL)
