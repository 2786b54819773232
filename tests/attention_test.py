"""Attention: parts merged as one buffer, and blockwise as the einsum."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax import sharding
from adasr_jax.models import attention
from adasr_jax.models.attention import attend

K, R, H = 2, 3, 8


def make(P=2, G=2, T=5, S=11, dtype=jnp.float32, seed=0):
  """Queries, own keys and those of the source; rows that read nothing too."""
  r = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(r.normal(size=shape), dtype)
  B = P * G
  q = draw(B, T, K * R, H)
  own = (draw(B, K, T, H), draw(B, K, T, H),
         jnp.asarray(np.minimum(np.arange(T) + 1, r.integers(0, T + 1, (B, 1))),
                     jnp.int32))
  source = (draw(P, K, S, H), draw(P, K, S, H),
            jnp.asarray(r.integers(0, S + 1, (B, T)), jnp.int32))
  # One row reads nothing at all, one query nothing of the source.
  own = (*own[:2], own[2].at[0].set(0))
  source = (*source[:2], source[2].at[0].set(0).at[1, 0].set(0))
  return q, [own, source]


def whole(q, parts):
  """Softmax over all parts joined, query by query, in float64."""
  q = np.asarray(q, np.float64)
  out = np.zeros_like(q)
  for b, t, n in np.ndindex(q.shape[:3]):
    ks, vs = [], []
    for k, v, limit in parts:
      row = b // (q.shape[0] // k.shape[0])
      ks.append(np.asarray(k, np.float64)[row, n // R, :int(limit[b, t])])
      vs.append(np.asarray(v, np.float64)[row, n // R, :int(limit[b, t])])
    s = np.concatenate(ks) @ q[b, t, n] * H**-0.5
    if s.size:
      p = np.exp(s - s.max())
      out[b, t, n] = p / p.sum() @ np.concatenate(vs)
  return out


@pytest.mark.parametrize('kernel', ('einsum', 'blockwise'))
def test_parts_are_one_buffer(kernel):
  q, parts = make()
  got = attend(q, parts, kernel)
  np.testing.assert_allclose(got, whole(q, parts), atol=2e-6)
  assert (got[0] == 0).all()  # reads nothing, and is no NaN


@pytest.mark.parametrize('block', [8, 16, 512])
def test_blockwise_and_its_gradient_equal_the_einsum(monkeypatch, block):
  monkeypatch.setattr(attention, 'BLOCK', block)
  q, parts = make(P=2, G=3, T=7, S=37)
  weight = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
  def loss(q, kvs, kernel):
    out = attend(q, [(*kv, p[2]) for kv, p in zip(kvs, parts)], kernel)
    return (out * weight).sum(), out
  grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True),
                 static_argnums=2)
  kvs = [p[:2] for p in parts]
  want, got = (grad(q, kvs, k) for k in ('einsum', 'blockwise'))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=3e-6, rtol=1e-5)


def test_bfloat16_to_its_rounding():
  q, parts = make(dtype=jnp.bfloat16)
  np.testing.assert_allclose(
      np.asarray(attend(q, parts, 'blockwise'), np.float32), whole(q, parts),
      atol=3e-2)


def test_blocks_that_nobody_reads_are_not_computed(monkeypatch):
  # Unread keys may hold anything: a block of NaN would reach the result
  # through 0 * NaN if it were multiplied.
  monkeypatch.setattr(attention, 'BLOCK', 8)
  q, ((k, v, limit), source) = make(S=37)
  read = jnp.minimum(source[2], 8)
  poisoned = [a.at[:, :, 8:].set(jnp.nan) for a in source[:2]]
  got = attend(q, [(k, v, limit), (*poisoned, read)], 'blockwise')
  np.testing.assert_allclose(
      got, whole(q, [(k, v, limit), (*source[:2], read)]), atol=2e-6)


def test_scores_of_all_keys_are_never_there():
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
  T, S = 2048, 4096
  args = (shape(1, T, 1, H), shape(1, 1, S, H), shape(1, 1, S, H),
          shape(1, T, dtype=jnp.int32))
  def bytes_of(kernel):
    loss = lambda q, k, v, limit: attend(q, [(k, v, limit)], kernel).sum()
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(
        *args).compile().memory_analysis().temp_size_in_bytes
  assert bytes_of('blockwise') < 4 * T * S < bytes_of('einsum')


@pytest.mark.parametrize('kernel,platform,want', [
    ('auto', 'cpu', 'einsum'), ('auto', 'gpu', 'blockwise'),
    ('auto', 'tpu', 'blockwise'), ('einsum', 'tpu', 'einsum')])
def test_choice(monkeypatch, kernel, platform, want):
  monkeypatch.setattr(sharding, 'platform', lambda: platform)
  assert attention.choose(kernel) == want


def test_auto_goes_by_the_mesh():
  assert sharding.platform() == 'cpu'
  with jax.set_mesh(sharding.make_mesh(dict(data=-1, fsdp=1, tensor=1))):
    assert sharding.platform() == 'cpu'
  tpu = jax.sharding.AbstractMesh(
      (4,), ('data',), abstract_device=jax.sharding.AbstractDevice(
          'TPU v5', num_cores=1, platform='tpu'))
  with jax.sharding.use_abstract_mesh(tpu):
    assert attention.choose('auto') == 'blockwise'


def test_what_is_refused():
  with pytest.raises(ValueError, match="attention='flash' is not one of auto"):
    attention.choose('flash')
  q, ((k, v, limit), _) = make()
  mask = jnp.ones((q.shape[0], q.shape[1], k.shape[2]), bool)
  assert attend(q, [(k, v, mask)]).shape == q.shape
  with pytest.raises(ValueError, match='masks are for einsum'):
    attend(q, [(k, v, mask)], 'blockwise')


def test_no_mask_of_all_queries_and_keys_is_kept(monkeypatch):
  """The masks of blocks depend on the limits alone: under remat JAX would
  compute them once for all layers and keep them."""
  monkeypatch.setattr(attention, 'BLOCK', 8)
  T, S = 64, 128
  q, (_, (k, v, _)) = make(T=T, S=S)
  limit = jnp.full(q.shape[:2], S)

  @jax.grad
  def layers(q):
    body = lambda x, _: (attend(x, [(k, v, limit)], 'blockwise'), None)
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), q, None,
                        length=3)[0].sum()

  text = jax.jit(layers).lower(q).compile().as_text()
  masks = [np.prod([int(n) for n in shape.split(',')])
           for shape in re.findall(r'pred\[([\d,]+)\]', text)]
  assert masks and max(masks) < T * S
