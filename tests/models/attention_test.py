"""Attention: parts merged as one buffer, and by blocks as the einsum."""

import importlib.util
import re

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from adasr_jax.core import sharding
from adasr_jax.core.visibility import Interval
from adasr_jax.models import attention
from adasr_jax.models.attention import attend
from adasr_jax.models import pallas
from adasr_jax.tools.aot import programs

K, R, H = 2, 3, 8


@pytest.fixture(autouse=True)
def kernel_platform(request, monkeypatch):
  """Pallas kernels are interpreted, as if this were a TPU."""
  if 'pallas' not in request.node.name:
    yield
    return
  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  with pltpu.force_tpu_interpret_mode():
    yield


def make(P=2, G=2, T=5, S=11, dtype=jnp.float32, seed=0, starts=False):
  """Queries, own keys and those of the source; rows that read nothing too.

  With `starts`, intervals begin anywhere: some are whole, some empty, some end
  before they begin.
  """
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
  def interval(limit):
    if not starts:
      return Interval(limit)
    most = int(limit.max())
    start = r.integers(0, most + 1, (B, T))
    start[2:] = np.minimum(start[2:], most // 2)
    start[1, 1:3] = 0, most // 2
    return Interval(limit.at[1, 1:3].set(start[1, 1:3] + [most, 0]),
                    jnp.asarray(start, jnp.int32))
  return q, [(k, v, interval(limit)) for k, v, limit in (own, source)]


def masked(parts):
  """The parts with masks instead of intervals."""
  def mask(k, read):
    slots = jnp.arange(k.shape[2])[None, None]
    start = 0 if read.start is None else read.start[..., None]
    return (slots < read.limit[..., None]) & (slots >= start)
  return [(k, v, mask(k, read)) for k, v, read in parts]


def reads_some(read):
  return np.asarray(read.limit > (0 if read.start is None else read.start))


def whole(q, parts):
  """Softmax over all parts joined, query by query, in float64."""
  q = np.asarray(q, np.float64)
  out = np.zeros_like(q)
  for b, t, n in np.ndindex(q.shape[:3]):
    ks, vs = [], []
    for k, v, read in parts:
      row = b // (q.shape[0] // k.shape[0])
      start = 0 if read.start is None else int(read.start[b, t])
      at = row, n // R, slice(start, max(int(read.limit[b, t]), start))
      ks.append(np.asarray(k, np.float64)[at])
      vs.append(np.asarray(v, np.float64)[at])
    s = np.concatenate(ks) @ q[b, t, n] * H**-0.5
    if s.size:
      p = np.exp(s - s.max())
      out[b, t, n] = p / p.sum() @ np.concatenate(vs)
  return out


@pytest.mark.parametrize('starts', (False, True))
@pytest.mark.parametrize('kernel', ('einsum', 'blockwise', 'pallas'))
def test_parts_are_one_buffer(kernel, starts):
  q, parts = make(starts=starts)
  got = attend(q, parts, kernel)
  np.testing.assert_allclose(got, whole(q, parts), atol=2e-6)
  np.testing.assert_allclose(got, attend(q, masked(parts), 'einsum'),
                             atol=2e-6)
  assert (got[0] == 0).all()  # reads nothing, and is not NaN


@pytest.mark.parametrize('starts', (False, True))
def test_a_partial_means_the_same_of_each_kernel(starts):
  # The einsum's output is not normalised, that of the blocks is: only what
  # output and weight are in their common scale may be compared.
  q, parts = make(starts=starts)
  for part in parts:
    a = attention._einsum(q, *part)
    b = attention._blockwise(q, *part, attention._blocks, 8)
    read = reads_some(part[2])
    assert not read.all() and (np.asarray(b.weight)[read] == 1).all()
    for one in (a, b):
      assert (np.asarray(one.weight)[~read] == 0).all()
      assert (np.asarray(one.log_scale)[~read] <= attention.MASKED / 2).all()
    for name in ('output', 'weight'):
      got, want = (np.where(read[..., None, None], np.exp(p.log_scale) *
                            getattr(p, name), 0) for p in (a, b))
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('starts', (False, True))
@pytest.mark.parametrize('kernel,block,T,S', [
    ('blockwise', 8, 7, 37), ('blockwise', 16, 7, 37),
    ('blockwise', 512, 7, 37), ('pallas', 128, 40, 300)])
def test_blocks_and_their_gradient_equal_the_einsum(monkeypatch, kernel, block,
                                                    T, S, starts):
  monkeypatch.setattr(attention, 'BLOCK', block)
  q, parts = make(P=2, G=3, T=T, S=S, starts=starts)
  weight = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
  def loss(q, kvs, kernel):
    these = masked(parts) if kernel == 'einsum' else parts
    out = attend(q, [(*kv, p[2]) for kv, p in zip(kvs, these)], kernel)
    return (out * weight).sum(), out
  grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True),
                 static_argnums=2)
  kvs = [p[:2] for p in parts]
  want, got = (grad(q, kvs, k) for k in ('einsum', kernel))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize('kernel', ('blockwise', 'pallas'))
def test_bfloat16_to_its_rounding(kernel):
  q, parts = make(dtype=jnp.bfloat16)
  np.testing.assert_allclose(
      np.asarray(attend(q, parts, kernel), np.float32), whole(q, parts),
      atol=3e-2)


@pytest.mark.parametrize('span', ('below', 'any', 'first', 'last'))
@pytest.mark.parametrize('kernel,block', [('blockwise', 8), ('pallas', 128)])
def test_blocks_that_nobody_reads_are_not_computed(monkeypatch, kernel, block,
                                                   span):
  # Unread keys may hold anything: a block of NaN would reach the result
  # through 0 * NaN if it were multiplied.
  monkeypatch.setattr(attention, 'BLOCK', block)
  q, (own, (k, v, read)) = make(S=4 * block + 5)
  read = Interval(jnp.minimum(read.limit, block))
  poisoned = [a.at[:, :, block:].set(jnp.nan) for a in (k, v)]
  if span != 'below':  # The one block is the third.
    limit = {'any': read.limit, 'first': 1, 'last': block}[span] + 2 * block
    start = (block - 1 if span == 'last' else 0) + 2 * block
    # Those that read nothing stand elsewhere.
    some = lambda x: jnp.where(read.limit > 0, x, 4 * block)
    read = Interval(some(limit), some(start))
    poisoned = [a.at[:, :, :2 * block].set(jnp.nan)
                .at[:, :, 3 * block:].set(jnp.nan) for a in (k, v)]
  parts = lambda k, v: [own, (k, v, read)]
  got, grads = jax.value_and_grad(
      lambda q, k, v: attend(q, parts(k, v), kernel).sum(), (0, 1, 2))(
          q, *poisoned)
  np.testing.assert_allclose(got, whole(q, parts(k, v)).sum(), rtol=1e-5)
  assert all(np.isfinite(g).all() for g in grads)


def test_scores_of_all_keys_are_never_there():
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
  T, S = 2048, 4096
  args = (shape(1, T, 1, H), shape(1, 1, S, H), shape(1, 1, S, H),
          shape(1, T, dtype=jnp.int32))
  def bytes_of(kernel):
    loss = lambda q, k, v, limit: attend(
        q, [(k, v, Interval(limit))], kernel).sum()
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(
        *args).compile().memory_analysis().temp_size_in_bytes
  assert bytes_of('blockwise') < 4 * T * S < bytes_of('einsum')


@pytest.mark.parametrize('kernel,platform,want', [
    ('auto', 'cpu', 'einsum'), ('auto', 'gpu', 'blockwise'),
    ('auto', 'tpu', 'pallas'), ('einsum', 'tpu', 'einsum')])
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
    assert attention.choose('auto') == 'pallas'


def test_what_is_refused():
  with pytest.raises(ValueError, match="attention='flash' is not one of auto"):
    attention.choose('flash')
  q, ((k, v, _), _) = make()
  mask = jnp.ones((q.shape[0], q.shape[1], k.shape[2]), bool)
  assert attend(q, [(k, v, mask)]).shape == q.shape
  with pytest.raises(ValueError, match='masks are for einsum'):
    attend(q, [(k, v, mask)], 'blockwise')
  with pytest.raises(ValueError, match="'pallas' is for tpu, this is cpu"):
    attention.choose('pallas')


@pytest.mark.parametrize('axes,starts', [
    ((2, 2, 2), False), ((2, 2, 2), True), ((1, 2, 1), False)])
def test_pallas_on_a_mesh(axes, starts):
  """Each device its own prompts and heads; three prompts stay on both."""
  P = 4 if axes == (2, 2, 2) else 3
  q, (_, (k, v, read)) = make(P=P, S=20, starts=starts)
  def loss(q, k, v, kernel):
    out = attend(q, [(k, v, read)], kernel)
    return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum()
  grad = lambda kernel: jax.jit(jax.value_and_grad(loss, (0, 1, 2)),
                                static_argnums=3)(q, k, v, kernel)
  want = grad('einsum')
  devices = jax.devices()[:np.prod(axes)]
  with jax.set_mesh(sharding.make_mesh(
      dict(zip(sharding.AXES, axes)), devices)):
    got = grad('pallas')
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-5)
  # The gradient of the keys lies where their prompts and heads are.
  assert got[1][1].sharding.shard_shape(k.shape) == (
      (1, 1, 20, H) if P == 4 else k.shape)


def mesh_of(axes):
  return sharding.make_mesh(dict(zip(sharding.AXES, axes or (1, 1, 1))),
                            jax.devices()[:4 if axes else 1])


@pytest.mark.parametrize('starts', (False, True))
@pytest.mark.parametrize('axes', [(), (2, 1, 2)])
def test_pallas_decodes_where_the_layers_lie(monkeypatch, axes, starts):
  monkeypatch.setattr(pallas, 'DECODE_KEYS', 48)
  r = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)
  L, P, G, S, T = 3, 2, 3, 96, 32
  q = draw(P * G, 1, K * R, H)
  context = draw(L, P, K, S, H), draw(L, P, K, S, H)
  cache = draw(L, P * G, K, T, H), draw(L, P * G, K, T, H)
  source = jnp.asarray([0, 96, 17, 40, 0, 33], jnp.int32)
  start = jnp.asarray([0, 3, 5, 17, 31, 16], jnp.int32) if starts else None
  for layer, limit in ((0, [1] * 6), (2, [0, 3, 14, 32, 0, 17]),
                       (1, [T] * 6), (1, [2, 1, 14, 16, 0, 12])):
    limit = jnp.asarray(limit, jnp.int32)
    read = Interval(limit, start)
    column = jax.tree.map(lambda x: x[:, None], read)
    # What earlier rows left above the limit, and below the start, is finite.
    slots = np.arange(T)[None, None, :, None]
    unread = (slots >= limit[:, None, None, None]) | (
        slots < (0 if start is None else start[:, None, None, None]))
    stale = [jnp.where(unread, 1e20, a) for a in cache]
    of = lambda tree: [a[layer] for a in tree]
    parts = [(*of(cache), column), (*of(context), Interval(source[:, None]))]
    with jax.set_mesh(mesh_of(axes)):
      got = jax.jit(pallas.decode)(q, context, stale, jnp.int32(layer), source,
                                  read)
    np.testing.assert_allclose(got, whole(q, parts), atol=2e-6)
    np.testing.assert_allclose(got, attend(q, masked(parts), 'einsum'),
                               atol=2e-6)
    nothing = ~reads_some(read) & (np.asarray(source) == 0)
    assert (np.asarray(got)[nothing] == 0).all()
    assert nothing.any() or limit.min() > 0


def test_pallas_fetches_only_blocks_that_are_read():
  fetched = lambda *read: [int(pallas._fetched(
      Interval(*map(jnp.int32, read)), j, 16)) for j in range(5)]
  assert fetched(33) == [0, 1, 2, 2, 2] and fetched(32) == [0, 1, 1, 1, 1]
  assert fetched(49, 17) == [1, 1, 2, 3, 3] and fetched(64, 63) == [3] * 5
  nothing = pallas.union(Interval(*jnp.array([[7, 0], [7, 3]])), 0)
  assert fetched(nothing.limit, nothing.start) == fetched(0) == [0] * 5
  assert not any(pallas.reads(nothing, j, 16) for j in range(5))


@pytest.mark.parametrize('starts', (False, True))
def test_pallas_decodes_without_what_nobody_reads(monkeypatch, starts):
  """A block of NaN, if computed with, would reach the result as 0 * NaN."""
  monkeypatch.setattr(pallas, 'DECODE_KEYS', 32)
  r = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)
  P, G, S, T = 3, 2, 64, 80
  q = draw(P * G, 1, K * R, H)
  context = [draw(1, P, K, S, H) for _ in range(2)]
  cache = [draw(1, P * G, K, T, H) for _ in range(2)]
  # Blocks of 16 slots; the last prompt reads nothing of its own.
  limit = jnp.asarray([33, 40, 3, 17, 0, 0], jnp.int32)
  start = jnp.asarray([32, 17, 2, 16, 70, 0], jnp.int32) if starts else None
  source = jnp.asarray([32, 1, 64, 33, 0, 0], jnp.int32)
  poison = lambda a, spans, g: jnp.stack([
      jnp.where((jnp.arange(a.shape[3]) >= lo)
                & (jnp.arange(a.shape[3]) < hi), 0.0, jnp.nan)[:, None]
      for lo, hi in spans for _ in range(g)])[None, :, None] + a
  own = [(16 if starts else 0, 48), (0, 32), (0, 0)]
  got = pallas.decode(
      q, [poison(a, [(0, 32), (0, 64), (0, 0)], 1) for a in context],
      [poison(a, own, G) for a in cache], jnp.int32(0), source,
      Interval(limit, start))
  column = jax.tree.map(lambda x: x[:, None], Interval(limit, start))
  np.testing.assert_allclose(got, whole(q, [
      (*(a[0] for a in cache), column),
      (*(a[0] for a in context), Interval(source[:, None]))]), atol=2e-6)


@pytest.mark.parametrize('axes,dtype', [
    ((), jnp.float32), ((), jnp.bfloat16), ((2, 1, 2), jnp.bfloat16)])
def test_pallas_writes_each_row_at_its_slot(monkeypatch, axes, dtype):
  monkeypatch.setattr(pallas, 'WRITE_ROWS', 2)
  r = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(r.normal(size=shape), dtype)
  L, B, T = 3, 6, 48
  cache = draw(L, B, K, T, H), draw(L, B, K, T, H)
  new = draw(B, K, 1, H), draw(B, K, 1, H)
  want = [np.array(a) for a in cache]
  for layer, slots in ((1, [0, 47, 15, 16, 7, 8]), (0, [5] * 6)):
    with jax.set_mesh(mesh_of(axes)):
      cache = jax.jit(pallas.write)(cache, new, jnp.int32(layer),
                                   jnp.asarray(slots, jnp.int32))
    for a, b, got in zip(want, new, cache):
      a[layer, np.arange(B), :, slots] = b[:, :, 0]
      np.testing.assert_array_equal(got, a)
  with pytest.raises(ValueError, match='12 slots are not whole tiles of'):
    pallas.write([a[..., :12, :] for a in cache], new, jnp.int32(0),
                 jnp.zeros(B, jnp.int32))


@pytest.mark.parametrize('rows', [1, 4, 12, 64, 1000])
def test_decoding_reads_blocks_that_a_tpu_takes(rows):
  for slots in (1, 173, 1024, 1028, 5000, 8191, 8192):
    count, block = pallas.decode_blocks(slots, rows)
    assert block % 16 == 0 and slots <= count * block < slots + 16 * count
    assert rows * block <= max(pallas.DECODE_KEYS, 16 * rows)
    # The same of what is filled up so.
    assert pallas.decode_blocks(count * block, rows) == (count, block)


@pytest.mark.parametrize('starts', (False, True))
def test_more_keys_than_pallas_can_hold_are_parts(monkeypatch, starts):
  monkeypatch.setattr(pallas, 'MOST_KEYS', 128)
  q, parts = make(S=300, starts=starts)
  loss = lambda q, k, v, kernel: attend(
      q, [parts[0], (k, v, parts[1][2])], kernel).sum()
  grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)
  got, want = (grad(q, *parts[1][:2], k) for k in ('pallas', 'einsum'))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-5)
  with pytest.raises(ValueError, match='gradients of 256 keys do not fit'):
    zeros = jnp.zeros((1, 1, 256, H))
    read = Interval(jnp.zeros((1, 256), jnp.int32))
    jax.grad(lambda q: pallas.blocks(q, zeros, zeros, read, (128, 128))[
        0].sum())(zeros)


def test_no_mask_of_all_queries_and_keys_is_kept(monkeypatch):
  """The masks of blocks depend only on the limits: under remat JAX would
  compute them once for all layers and keep them."""
  monkeypatch.setattr(attention, 'BLOCK', 8)
  T, S = 64, 128
  q, (_, (k, v, _)) = make(T=T, S=S)
  read = Interval(jnp.full(q.shape[:2], S), jnp.ones(q.shape[:2], jnp.int32))

  @jax.grad
  def layers(q):
    body = lambda x, _: (attend(x, [(k, v, read)], 'blockwise'), None)
    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), q, None,
                        length=3)[0].sum()

  text = jax.jit(layers).lower(q).compile().as_text()
  masks = [np.prod([int(n) for n in shape.split(',')])
           for shape in re.findall(r'pred\[([\d,]+)\]', text)]
  assert masks and max(masks) < T * S


@pytest.fixture(scope='module')
def tpu():
  """A mesh of TPUs to compile for, without having them."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu is not installed (requirements-dev.txt has it)')
  return sharding.make_mesh(dict(data=1, fsdp=2, tensor=2),
                            programs.devices('v5e:2x2'))


@pytest.mark.parametrize('dtype', (jnp.bfloat16, jnp.float32))
def test_a_tpu_writes_and_decodes_without_a_copy_of_the_cache(tpu, dtype):
  L, P, G, S, T, H = 16, 16, 4, 256, 1024, 128  # more than fits on the chip
  B, rows = P * G, sharding.ROWS
  of = lambda dtype, shape, *spec: jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(tpu, PartitionSpec(*spec)))
  stack = lambda *shape: (of(dtype, shape, None, rows, 'tensor'),) * 2
  ints = of(jnp.int32, (B,), rows)

  def steps(cache, context, q, new, slot, start, limit):
    def layer(l, carry):
      q, slot, cache = carry
      kv = jax.tree.map(lambda a: a + q[:, :, :K].swapaxes(1, 2), new)
      cache = pallas.write(cache, kv, l, slot)
      q = pallas.decode(q, context, cache, l, limit, Interval(slot + 1, start))
      return q, slot, cache
    def step(carry):
      q, slot, cache = jax.lax.fori_loop(0, L, layer, carry)
      return q, slot + 1, cache
    return jax.lax.while_loop(lambda carry: (carry[1] < T).all(), step,
                              (q, slot, cache))

  with jax.set_mesh(tpu):
    memory = jax.jit(steps, donate_argnums=0).lower(
        stack(L, B, K, T, H), stack(L, P, K, S, H),
        of(dtype, (B, 1, K * R, H), rows, None, 'tensor'),
        (of(dtype, (B, K, 1, H), rows, 'tensor'),) * 2, ints, ints,
        ints).compile().memory_analysis()
  cache = 2 * L * B * K * T * H * jnp.dtype(dtype).itemsize // 4
  assert cache <= memory.alias_size_in_bytes
  assert memory.temp_size_in_bytes < cache / 4


def test_a_tpu_takes_starts_in_blocks_and_their_gradient(tpu):
  of = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
  ints = of(4, 300, dtype=jnp.int32)
  loss = lambda q, k, v, read: attend(q, [(k, v, read)], 'pallas').sum(
      dtype=jnp.float32)
  with jax.set_mesh(tpu):
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(
        of(4, 300, K * R, 128), of(2, K, 2048, 128), of(2, K, 2048, 128),
        Interval(ints, ints)).compile()
