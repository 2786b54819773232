"""The same numbers on one device and on eight, and where arrays lie."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from adasr_jax.core import placement
from adasr_jax.core import sharding
from adasr_jax.core.types import Target
from adasr_jax.learn.losses import LossConfig, policy_loss
from adasr_jax.learn import optim
from adasr_jax.learn import packing
from adasr_jax.learn.update import UpdateBatch, new_state, update
from adasr_jax.models import decoder
from adasr_jax.models import lora
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy import scoring
from adasr_jax.tools.aot import hlo
from tests.small import make_config, make_protocol, make_source

# Heads, widths and vocabulary that every axis below divides.
CONFIG = make_config(num_layers=1, num_heads=8, num_kv_heads=4, remat='full')
PROTOCOL = make_protocol()
G = 4
# Eight prompts, and four: groups of four rows that span devices.
SOURCES = {8: make_source((4, 2, 3, 0, 1, 4, 2, 3)), 4: make_source()}
MESHES = [(8, 1, 1), (2, 4, 1), (1, 2, 4), (2, 2, 2)]
ADAM = optim.make_optimizer(b1=.9, b2=.99, eps=1e-3, weight_decay=.1,
                            clip_norm=.5)
STATIC = dict(model_config=CONFIG, protocol=PROTOCOL, temperature=1.0)


def mesh(data, fsdp, tensor):
  return jax.set_mesh(sharding.make_mesh(
      dict(data=data, fsdp=fsdp, tensor=tensor)))


def loss(logp, entropy, batch):
  return policy_loss(
      logp, entropy, old=batch.old, behaviour=batch.target.logp,
      reference=batch.reference, advantage=batch.advantage, mask=batch.mask,
      deep=batch.deep, config=LossConfig(
          ratio='token', surrogate='clip', clip_low=.2, clip_high=.28,
          aggregation='token', constant=16., kl_weight=.05, behaviour_cap=2.))


def params():
  tree = decoder.init(CONFIG, jax.random.key(0))
  return tree | {'embedding': tree['embedding'] * 2.0}


@functools.cache
def one_step(axes, prompts):
  """What a rollout and two updates give on a mesh; () = one device."""
  if axes:
    # On one of the meshes by the other kernel.
    kernel = 'blockwise' if axes == (2, 4, 1) else 'einsum'
    with mesh(*axes):
      return _one_step(prompts, dataclasses.replace(CONFIG, attention=kernel))
  return _one_step(prompts)


def _one_step(prompts, config=CONFIG):
  source, born = SOURCES[prompts], placement.born(params)
  target = placement.to_host(rollout(
      placement.for_rollout(born, 'float32'), placement.to_devices(source),
      jax.random.key(1), samples=G, max_chunks=4,
      **(STATIC | dict(model_config=config))))
  batch = _batch(source, target)
  state = new_state(born, ADAM)
  compiled = update._cache_size()
  for _ in range(2):
    state, metrics = update(
        state, placement.to_devices(batch), jnp.float32(1e-2), loss=loss,
        optimizer=ADAM, micro_batches=2, **(STATIC | dict(model_config=config)))
  # What comes out lies as what went in, so that nothing compiles again.
  assert update._cache_size() == compiled + 1
  return target, state, jax.device_get(metrics)


def _batch(source, target):
  """Packed for the mesh: other rows than on one device."""
  r = np.random.default_rng(0)
  draw = lambda: r.normal(size=target.logp.shape).astype(np.float32)
  return packing.pack(UpdateBatch(
      source=source, target=target, mask=target.sampled,
      deep=target.phase > np.repeat(source.num_chunks, G)[:, None],
      advantage=draw(), old=target.logp + .2 * draw(),
      reference=target.logp + .2 * draw()), 32, micro_batches=2)[0]


@pytest.mark.parametrize('axes,prompts', [
    *((m, 8) for m in MESHES), ((8, 1, 1), 4)])
def test_equal_to_one_device(axes, prompts):
  target, state, metrics = one_step(axes, prompts)
  want, want_state, want_metrics = one_step((), prompts)
  for name in ('tokens', 'phase', 'stage', 'valid', 'sampled'):
    np.testing.assert_array_equal(getattr(target, name), getattr(want, name))
  np.testing.assert_allclose(target.logp, want.logp, atol=1e-5)
  assert metrics.keys() == want_metrics.keys()
  for name in metrics:
    np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=1e-5,
                               atol=1e-5, err_msg=name)
  # The state has Adam's moments, which are sums of gradients.
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(state),
                          jax.tree.leaves(want_state), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5,
                               err_msg=jax.tree_util.keystr(path))


def test_state_lies_where_the_rules_say():
  state = one_step((2, 2, 2), 8)[1]
  for tree in (state.params, state.opt_state[1][0].mu,
               state.opt_state[1][0].nu):
    assert jax.tree.map(lambda a: a.sharding.spec, tree) == {
        'embedding': P('tensor', 'fsdp'), 'final_norm': P(),
        'layers': {
            'attn_norm': P(), 'mlp_norm': P(), 'q_norm': P(), 'k_norm': P(),
            'qkv': P(None, 'fsdp', 'tensor'),
            'out': P(None, 'tensor', None, None, 'fsdp'),
            'gate': P(None, 'fsdp', 'tensor'),
            'up': P(None, 'fsdp', 'tensor'),
            'down': P(None, 'tensor', 'fsdp')}}
  # A device holds a quarter of each matrix, and of its moments.
  qkv = state.params['layers']['qkv']
  assert qkv.addressable_shards[0].data.size * 4 == qkv.size


def test_a_rollout_reads_a_copy_without_fsdp():
  with mesh(2, 2, 2):
    copy = placement.for_rollout(placement.born(params), 'bfloat16')
    qkv, norm = copy['layers']['qkv'], copy['layers']['q_norm']
    assert qkv.sharding.is_equivalent_to(jax.NamedSharding(
        jax.sharding.get_mesh(), P(None, None, 'tensor')), qkv.ndim)
    assert (qkv.dtype, norm.dtype) == (jnp.bfloat16, jnp.float32)
  with mesh(8, 1, 1):  # nothing to change: no copy
    born = placement.born(params)
    assert placement.for_rollout(born, 'float32') is born


def test_compiled_programs_split_the_rows():
  # In the compiled loop of a rollout on 8 devices: one eighth of the rows'
  # cache, and no collective that moves it.
  with mesh(8, 1, 1):
    text = rollout.lower(
        placement.born(params), placement.to_devices(SOURCES[8]),
        jax.random.key(1),
        samples=G, max_chunks=4, **STATIC).compile().as_text()
  T = PROTOCOL.max_target(4)
  assert f'f32[4,4,{T},8]' in text and f'f32[32,4,{T},8]' not in text
  moved = re.findall(r'= (\S+) (all-gather|all-to-all|collective-permute)\(',
                     text)
  assert not [m for m in moved if f',{T},' in m[0]], moved


def test_the_heads_gradient_is_reduced_once(monkeypatch):
  """Not once for each of the blocks that the head is computed in."""
  monkeypatch.setitem(scoring.HEAD_ELEMENTS, 'cpu', 2**8)
  with mesh(2, 2, 2):
    source = placement.to_devices(SOURCES[8])
    target = Target(**{f.name: jax.ShapeDtypeStruct(
        (8 * G, 16), dict(logp=jnp.float32, logp_untruncated=jnp.float32,
                          valid=bool, sampled=bool).get(f.name, jnp.int32))
        for f in dataclasses.fields(Target)})
    compiled = jax.jit(jax.grad(lambda params, target: scoring.score(
        params, source, target, **STATIC)[0].sum())).lower(
            placement.places(jax.eval_shape(params)),
            placement.row_places(target)).compile()
  cost = hlo.analyse(compiled.as_text())
  table = CONFIG.vocab_size // 2 * CONFIG.d_model * 4
  often = [x for x in cost.collectives if x.times > 10]  # in each block
  assert often and max(x.bytes for x in often) < table / 2, often


@pytest.mark.parametrize('rules,message', [
    ({'embedding': P()}, r'no sharding rule for final_norm \(32,\)'),
    ({'.*': P(), 'experts': P()}, "rule 'experts' matches nothing")])
def test_rules_that_do_not_fit(rules, message):
  with pytest.raises(ValueError, match=message):
    sharding.specs(jax.eval_shape(params), rules)


def test_lora_has_rules_of_its_own():
  tree = jax.eval_shape(lambda: lora.init(
      jax.random.key(0), params(), rank=2, targets=('qkv', 'out')))
  assert set(jax.tree.leaves(
      sharding.specs(tree), is_leaf=lambda s: isinstance(s, P))) == {P()}


def test_lora_is_added_where_the_parameters_lie():
  tree = lora.init(jax.random.key(1), params(), rank=2, targets=('qkv', 'out'))
  tree = jax.tree.map(lambda a: a + 0.1, tree)
  want = lora.merge(lora.Frozen(params(), scale=.5), tree)
  with mesh(2, 2, 2):
    born = placement.born(params)
    got = lora.merge(lora.Frozen(born, scale=.5), placement.place(tree))
  for a, b, c in zip(*map(jax.tree.leaves, (got, want, born)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert a.sharding.is_equivalent_to(c.sharding, a.ndim)


def test_a_lora_update_is_the_same_on_a_mesh():
  batch = _batch(SOURCES[8], one_step((), 8)[0])
  def step():
    frozen = lora.Frozen(placement.born(params), scale=.5)
    tree = jax.tree.map(lambda a: a + .1, placement.born(lambda: lora.init(
        jax.random.key(1), params(), rank=2, targets=('qkv', 'down'))))
    state, metrics = update(
        new_state(tree, ADAM), placement.to_devices(batch), jnp.float32(1e-2),
        frozen, loss=loss, optimizer=ADAM, micro_batches=1, **STATIC)
    return jax.device_get((state, metrics))
  want = step()
  with mesh(2, 2, 2):
    got = step()
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got),
                          jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5,
                               err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('sizes,message', [
    ((3, 1, 1), 'data=3, fsdp=1, tensor=1 does not fit 8 cpu device'),
    ((-1, 3, 1), 'does not fit 8'), ((-1, -1, 1), 'one may be -1'),
    ((0, 1, 8), 'sizes are positive')])
def test_meshes_that_do_not_fit(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(dict(zip(sharding.AXES, sizes)))


def test_an_axis_that_divides_not():
  odd = jax.eval_shape(
      lambda: decoder.init(make_config(), jax.random.key(0)))
  m = sharding.make_mesh(dict(data=1, fsdp=2, tensor=4))
  with pytest.raises(ValueError, match=r'mesh axis tensor=4 does not divide '
                     r'2, of layers/out \(2, 2, 2, 8, 32\)'):
    sharding.shardings(m, odd)
