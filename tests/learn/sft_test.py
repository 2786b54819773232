"""Supervised trees: what is learned of them, and that packing keeps it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adasr_jax import config as config_lib
from adasr_jax.learn import packing
from adasr_jax.learn.update import new_state, update
from adasr_jax.models import decoder
from adasr_jax.run import factories
from configs import apr


@pytest.fixture(scope='module')
def sections():
  c = apr.get_config('sft,smoke')
  c.model.num_layers, c.model.d_model, c.model.d_ff = 2, 32, 48
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 16
  return config_lib.validate(c)


@pytest.fixture(scope='module')
def parts(sections):
  return factories.parts(sections)


@pytest.fixture(scope='module')
def batch(sections, parts):
  got = factories.method(sections, parts).collect(None, step=0, cursor=0)
  assert got.cursor == sections['data'].prompts
  return got.batch


def test_all_that_a_thread_chooses_is_learned(batch, parts):
  W, P = parts.protocol.width, len(batch.source.tokens)
  assert len(batch.target.tokens) == P * W > P
  np.testing.assert_array_equal(batch.mask, batch.target.sampled)
  # Nothing is streamed, so all is deep; many children are not there.
  assert (batch.deep == (batch.target.phase == 1)).all()
  there = batch.target.valid.any(1).reshape(P, W)
  assert there[:, 0].all() and 0 < there[:, 1:].mean() < 1
  forced = batch.target.valid & ~batch.mask
  assert (forced.sum(1) > 1).any()


@pytest.mark.parametrize('rows', [0, 2])
def test_a_packed_tree_has_the_same_loss_and_gradient(sections, parts, batch,
                                                      rows):
  packed, _ = packing.pack(batch, 32, rows=rows)
  tokens = lambda b: b.target.valid.sum()
  assert tokens(packed) == tokens(batch)
  assert packed.mask.sum() == batch.mask.sum()
  # Rows that are computed hold something, but for the last ones.
  used = packed.target.valid.any(1).reshape(len(packed.source.tokens), -1)
  assert (np.diff(used.astype(int), axis=1) <= 0).all()
  padding = lambda b, rows: packing.metrics(b, rows)['padding/target']
  assert padding(packed, rows) < 0.25 < 0.5 < padding(batch, 0)
  optimizer = optax.sgd(1.0)
  run = functools.partial(
      update, model_config=parts.model_config, protocol=parts.protocol,
      temperature=1.0, loss=factories.method(sections, parts).loss,
      optimizer=optimizer, micro_batches=1)
  def step(batch, rows):
    params = decoder.init(parts.model_config, jax.random.key(0))
    state, metrics = run(new_state(params, optimizer), jax.device_put(batch),
                         jnp.float32(1), rows=rows)
    return state.params, metrics
  (a, loss), (b, packed_loss) = step(batch, 0), step(packed, rows)
  # Of random parameters, over the tokens that the stages allow.
  assert 3 < loss['loss'] < 7
  np.testing.assert_allclose(loss['loss'], packed_loss['loss'], rtol=1e-5)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x, y, atol=2e-5)
