"""LoRA: what is added, its gradient, and a run from start to export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from adasr_jax.config import sections
from adasr_jax.models import hf
from adasr_jax.models import lora
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy import scoring
from adasr_jax.run import factories
from adasr_jax.run import logs
from adasr_jax.tools.export import export
from configs import hrpo
from tests.run.train_test import run, small, varied  # noqa: F401
from tests.small import make_config, make_protocol, make_source

CONFIG, PROTOCOL, SOURCE = make_config(), make_protocol(), make_source()
STATIC = dict(model_config=CONFIG, protocol=PROTOCOL, temperature=1.0)


def some_tree(params, rank=2, targets=tuple(lora.TARGETS)):
  """A LoRA tree whose B is not zero."""
  tree = lora.init(jax.random.key(0), params, rank=rank, targets=targets)
  leaves, shape = jax.tree.flatten(tree)
  return jax.tree.unflatten(shape, [
      a + 0.1 * jax.random.normal(jax.random.key(i), a.shape)
      for i, a in enumerate(leaves)])


def test_what_is_added(params):
  tree = some_tree(params)
  merged = lora.merge(lora.Frozen(params, scale=1.5), tree)
  L = CONFIG.num_layers
  for name, ab in tree.items():
    W = np.asarray(params['layers'][name], np.float64)
    for l in range(L):
      want = W[l].reshape(ab['a'].shape[1], -1) + 1.5 * (
          np.asarray(ab['a'][l], np.float64)
          @ np.asarray(ab['b'][l], np.float64).reshape(2, -1))
      np.testing.assert_allclose(merged['layers'][name][l],
                                 want.reshape(W[l].shape), atol=1e-5)
  kept = params['layers'].keys() - tree.keys()
  assert kept and all(merged['layers'][k] is params['layers'][k]
                      for k in kept)
  assert merged['embedding'] is params['embedding']


def test_it_starts_as_the_frozen_model(params):
  tree = lora.init(jax.random.key(1), params, rank=3, targets=('qkv', 'down'))
  merged = lora.merge(lora.Frozen(params, scale=2.0), tree)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(merged),
                  strict=True):
    np.testing.assert_array_equal(a, b)


def test_layer_by_layer_equals_merged_at_once(params):
  # The update adds inside the scan, the rollout before it: same log-probs,
  # and the gradient of A and B is that through the merged matrices.
  tree = some_tree(params)
  frozen = lora.Frozen(params, scale=1.5)
  target = rollout(lora.merge(frozen, tree), SOURCE, jax.random.key(1),
                   samples=2, max_chunks=4, **STATIC)
  def loss(join, tree):
    logp, entropy = scoring.score(join(tree), SOURCE, target, **STATIC)
    return (logp * jnp.cos(jnp.arange(logp.size)).reshape(logp.shape)
            + 0.1 * entropy).sum(), logp
  inside, at_once = (
      jax.jit(jax.value_and_grad(lambda t, join=join: loss(join, t),
                                 has_aux=True))(tree)
      for join in (lambda t: lora.attach(frozen, t),
                   lambda t: lora.merge(frozen, t)))
  np.testing.assert_allclose(inside[0][1], target.logp, atol=1e-5)
  for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(at_once),
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_unknown_target(params):
  with pytest.raises(ValueError, match="LoRA target 'q_proj' is not one of"):
    lora.init(jax.random.key(0), params, rank=1, targets=('q_proj',))


def test_a_run_and_what_begins_from_it(tmp_path):
  first = small(hrpo.get_config('smoke'))
  first.method, first.steps = 'sft', 1
  first.eval.at_start, first.eval.every = False, 0
  first.eval.examples = first.eval.batch = 4
  run(first, tmp_path / 'base')
  c = small(hrpo.get_config('smoke'))
  c.init = str(tmp_path / 'base')
  c.lora.rank, c.lora.targets = 2, ('qkv', 'up')
  c.reward.user, c.loss.kl_weight = 'tests.run.train_test:varied', 0.1
  c.optim.learning_rate = 1e-2
  c.eval.at_start, c.eval.every = False, 0
  c.eval.examples = c.eval.batch = 4
  run(c, tmp_path / 'lora')
  read = lambda f: {k: f.get_tensor(k) for k in f.keys()}
  with safe_open(tmp_path / 'base/model.safetensors', 'np') as f:
    base = read(f)
  with safe_open(tmp_path / 'lora/model.safetensors', 'np') as f:
    merged = read(f)
  changed = {k for k in base if (base[k] != merged[k]).any()}
  assert changed == {'layers.qkv', 'layers.up'}
  # The checkpoint holds only the small tree; what begins from it, or is
  # exported, has both.
  pinned = logs.read_json(tmp_path / 'lora/config.json')['init']
  assert pinned == f'{tmp_path}/base@1'
  c.init = str(tmp_path / 'lora')
  parts = factories.parts(sections(c))
  params = factories.initial_params(sections(c), parts)
  np.testing.assert_array_equal(params['layers']['qkv'],
                                merged['layers.qkv'])
  export(str(tmp_path / 'lora'), tmp_path / 'out')
  again = hf.load(tmp_path / 'out', parts.model_config)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again),
                  strict=True):
    np.testing.assert_array_equal(a, b)
  (tmp_path / 'base').rename(tmp_path / 'moved')
  with pytest.raises(ValueError, match=r"lora' is LoRA on .*base@1'"):
    factories.initial_params(sections(c), parts)
