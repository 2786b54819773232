"""Costs of compiled programs against counts made by hand.

The CPU compiles what it can; what only the TPU backend writes stands here as
text of its form.
"""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from adasr_jax.tools.aot import hlo
from adasr_jax.tools.aot import hlo_text

X, W = (8, 16), (16, 16)
PRODUCT = 2 * 8 * 16 * 16  # flops of x @ w


def cost(f, *shapes, mesh=None, specs=()):
  """Of f on float32 arrays of these shapes."""
  args = [jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=mesh and NamedSharding(mesh, spec))
      for shape, spec in zip(shapes, specs or [None] * len(shapes))]
  return hlo.analyse(jax.jit(f).lower(*args).compile().as_text())


def loops(c):
  return [(l.trips, l.dynamic, l.times, l.depth) for l in c.loops]


def found(c):
  return {(k.kind, k.shape, k.bytes, k.group, k.times) for k in c.collectives}


# --------------------------------------------------------- compiled on the CPU
def test_products_as_xla_counts_them():
  for f, shapes, flops in [
      (lambda a, b: a @ b, ((64, 32), (32, 48)), 2 * 64 * 32 * 48),
      (lambda a, b: jnp.einsum('pkqh,pksh->pkqs', a, b),
       ((4, 2, 64, 32), (4, 2, 48, 32)), 2 * 8 * 64 * 48 * 32),
      (lambda a, b: jnp.einsum('bd,vd->bv', a, b), ((8, 32), (100, 32)),
       2 * 8 * 32 * 100)]:
    got = jax.jit(f).lower(*(jnp.zeros(s) for s in shapes)).compile()
    mine = hlo.analyse(got.as_text())
    assert mine.flops == flops == got.cost_analysis()['flops']
    assert mine.bytes == got.cost_analysis()['bytes accessed']
    assert mine.cycles == 0 and not mine.loops and not mine.collectives


def test_gradient_has_three_products():
  f = jax.grad(lambda x, w: jnp.tanh(x @ w).sum(), (0, 1))
  assert cost(f, X, W).flops == 3 * PRODUCT


@pytest.mark.parametrize('stride,pad,dilate,kernel_dilate', [
    ((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1)),
    ((2, 1), ((1, 1), (0, 2)), (1, 2), (2, 1)),
    ((3, 1), ((0, 3), (2, -1)), (4, 2), (1, 3))])
def test_convolution_counts_what_meets_the_input(stride, pad, dilate,
                                                 kernel_dilate):
  f = lambda x, k: jax.lax.conv_general_dilated(
      x, k, stride, pad, lhs_dilation=dilate, rhs_dilation=kernel_dilate)
  got = jax.jit(f).lower(jnp.zeros((2, 3, 16, 10)),
                         jnp.zeros((5, 3, 3, 4))).compile()
  # Of ones, every multiply-add that meets the input adds one to the output.
  adds = f(jnp.ones((2, 3, 16, 10)), jnp.ones((5, 3, 3, 4))).sum()
  assert hlo.analyse(got.as_text()).flops == 2 * adds == (
      got.cost_analysis()['flops'])


def test_nested_scans_multiply():
  def f(x, w):
    inner = lambda h, _: (jnp.tanh(h @ w), None)
    outer = lambda h, _: (jax.lax.scan(inner, h, None, length=3)[0], None)
    return jax.lax.scan(outer, x, None, length=5)[0]
  got = cost(f, X, W)
  assert got.flops == 15 * PRODUCT  # XLA's own count: once
  assert loops(got) == [(5, False, 1, 0), (3, False, 5, 1)]
  assert [l.name for l in got.loops] == [
      'jit(f)/while', 'jit(f)/while/body/closed_call/while']


def test_data_may_stop_a_loop():
  """Sizes 4, 8, 16; each loop continues where the previous one ended."""
  def f(x, w):
    t = 0
    for size in (4, 8, 16):
      t, x = jax.lax.while_loop(
          lambda s: (s[0] + 1 < size) & jnp.any(s[1] > 0),
          lambda s: (s[0] + 1, jnp.tanh(s[1] @ w)), (t, x))
    return x
  got = cost(f, X, W)
  # From 0 while t + 1 < 4: 3; then t = 3 while t + 1 < 8: 4; then 8. If each
  # began at 0: 3, 7, 15.
  assert loops(got) == [(3, True, 1, 0), (4, True, 1, 0), (8, True, 1, 0)]
  assert got.flops == 15 * PRODUCT


@pytest.mark.parametrize('test,step,trips', [
    (lambda i: i < 10, lambda i: i + 3, 4),
    (lambda i: 3 >= i, lambda i: i + 1, 4),
    (lambda i: i > -5, lambda i: i - 2, 3),
    (lambda i: i != 6, lambda i: i + 2, 3),
    (lambda i: i < 100, lambda i: 2 * i + 1, 7)])
def test_trip_counts(test, step, trips):
  f = lambda x, w: jax.lax.while_loop(
      lambda s: test(s[0]) & jnp.any(s[1] > 0),
      lambda s: (step(s[0]), jnp.tanh(s[1] @ w)), (0, x))[1]
  assert loops(cost(f, X, W)) == [(trips, True, 1, 0)]


def test_costliest_branch():
  f = lambda x, w: jax.lax.cond(
      x.sum() > 0, lambda: x @ w, lambda: jnp.tanh(x @ w) @ w)
  assert cost(f, X, W).flops == 2 * PRODUCT


@pytest.mark.parametrize('f', [
    lambda x: jax.lax.while_loop(lambda x: jnp.any(x > 0), lambda x: x - 1, x),
    lambda x: jax.lax.fori_loop(0, x.sum().astype(int), lambda _, x: x * 2, x),
])
def test_unbounded_loop_is_named(f, monkeypatch):
  monkeypatch.setattr(hlo_text, '_MOST_TRIPS', 1000)
  with pytest.raises(ValueError, match=r'no trip count of loop \S*while'):
    cost(f, X)


def test_part_of_a_buffer():
  buffer, row = (1000, 16), 16 * 4  # bytes of a row
  read = lambda b: jax.lax.scan(
      lambda s, i: (s + jax.lax.dynamic_slice(b, (i, 0), (1, 16)), None),
      jnp.zeros((1, 16)), jnp.arange(9))[0]
  write = lambda b, x: jax.lax.scan(
      lambda b, i: (jax.lax.dynamic_update_slice(b, x, (i, 0)), None), b,
      jnp.arange(9))[0]
  # A trip reads the sum and a row and writes the sum; or reads and writes a
  # row. Plus a few counters. With the buffer it would be 64000 more per trip.
  assert 9 * 3 * row <= cost(read, buffer).bytes < 9 * 3 * row + 1000
  # The argument is not donated, so it is copied once.
  copied = 2 * 1000 * row
  got = cost(write, buffer, (1, 16)).bytes - copied
  assert 9 * 2 * row <= got < 9 * 2 * row + 1000


def test_collectives_in_a_scan():
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
  ring = [(i, (i + 1) % 4) for i in range(4)]
  def body(x, _):
    return x * sum(a.sum() for a in (
        jax.lax.all_gather(x, 'y', tiled=True),
        jax.lax.psum(x, ('x', 'y')),
        jax.lax.psum_scatter(x, 'x', tiled=True),
        jax.lax.ppermute(x, 'x', ring))), None
  f = jax.shard_map(
      lambda x: jax.lax.scan(body, x, None, length=7)[0], mesh=mesh,
      in_specs=P('x', 'y'), out_specs=P('x', 'y'), check_vma=False)
  got = cost(f, (64, 128), mesh=mesh, specs=[P('x', 'y')])
  # A device has [16, 64] float32, 4096 bytes.
  assert found(got) == {
      ('all-gather', 'f32[32,64]', 8192, 2, 7),
      ('all-reduce', 'f32[16,64]', 4096, 8, 7),
      ('reduce-scatter', 'f32[4,64]', 4096, 4, 7),
      ('collective-permute', 'f32[16,64]', 4096, 4, 7)}
  assert got.collectives[0].kind == 'all-gather'
  assert 'while/body' in got.collectives[0].where


def test_sharded_product():
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
  f = lambda a, b: jax.lax.with_sharding_constraint(
      a @ b, NamedSharding(mesh, P('x')))
  got = cost(f, (64, 32), (32, 48), mesh=mesh, specs=[P('x', 'y'), P('y')])
  assert got.flops == 2 * 16 * 16 * 48
  assert found(got) == {('all-reduce', 'f32[16,48]', 16 * 48 * 4, 2, 1)}


# ------------------------------------------------------- as the TPU writes it
def analyse(entry, rest=''):
  return hlo.analyse(
      f'HloModule jit_f, is_scheduled=true, num_partitions=16\n\n{rest}\n'
      f'ENTRY %main (x: f32[8,4]) -> f32[] {{\n{entry}\n}}\n')


X_HERE = '  %x = f32[8,4]{1,0:T(8,128)} parameter(0)\n'
Y_HERE = '  %y = f32[8,16]{1,0:T(8,128)} parameter(1)\n'


@pytest.mark.parametrize('groups,size', [
    ("mesh['axis_0'=4,'axis_1'=2,'axis_2'=2] {'axis_0'}", 4),
    ("mesh['axis_0'=4,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", 8),
    ("mesh['a'=2,'b'=1,'c'=8], device_ids=([8,2]T(1,0)) {'a'}", 2),
    ("mesh['a'=2,'b'=8] {'a','b':(2)4}", 8),
    ('[2,8]<=[16]', 8), ('[8,2]<=[2,8]T(1,0)', 2),
    ('{{0,1,2},{3,4,5}}', 3), ('{}', 16)])
def test_groups(groups, size):
  got = analyse(X_HERE + '  ROOT %g = f32[8,4]{1,0:T(8,128)} all-reduce(%x), '
                f'channel_id=1, replica_groups={groups}, to_apply=%add')
  assert found(got) == {('all-reduce', 'f32[8,4]', 128, size, 1)}


def test_groups_that_cannot_be_read():
  with pytest.raises(ValueError, match='groups of all-reduce g'):
    analyse(X_HERE + '  %g = f32[8,4]{1,0} all-reduce(%x), replica_groups=@v')


def test_halves_of_a_pair_count_once():
  got = analyse(X_HERE + """\
  %p = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) \
      collective-permute-start(%x), source_target_pairs={{0,1},{1,2},{3,4}}
  %g = (f32[8,4]{1,0:T(8,128)}, f32[8,16]{1,0:T(8,128)}) \
      all-gather-start(%x), replica_groups=[4,4]<=[16], dimensions={1}
  %c = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) \
      copy-start(%x)
  %s = ((f32[8,4]{1,0:T(8,128)}), f32[2,4]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
      slice-start(%x), slice={[0:2], [0:4]}
  %p1 = f32[8,4]{1,0:T(8,128)S(1)} collective-permute-done(%p)
  %r = f32[8,4]{1,0:T(8,128)S(1)} all-reduce-start(%p1), \
      replica_groups={{0,1}}, to_apply=%add
  %g1 = f32[8,16]{1,0:T(8,128)} all-gather-done(%g)
  %c1 = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%c)
  %s1 = f32[2,4]{1,0:T(8,128)S(1)} slice-done(%s)
  ROOT %r1 = f32[8,4]{1,0:T(8,128)S(1)} all-reduce-done(%r)""")
  assert found(got) == {
      ('collective-permute', 'f32[8,4]', 128, 3, 1),
      ('all-gather', 'f32[8,16]', 512, 4, 1),
      ('all-reduce', 'f32[8,4]', 128, 2, 1)}
  # Into VMEM, S(1), go the permute and the copy, 128 each, and 2 of 8 rows;
  # the gather reads 128 and writes 512; the sum stays there.
  assert got.bytes == 128 + 128 + 32 + 640


def test_wrapped_collective():
  got = analyse(X_HERE + """\
  %s = ((f32[8,4]), f32[2,4], u32[]) async-start(%x), calls=%wrapped
  ROOT %d = f32[2,4] async-done(%s), calls=%wrapped""", """
%wrapped (x: f32[8,4]) -> f32[2,4] {
  %x = f32[8,4] parameter(0)
  ROOT %r = f32[2,4] reduce-scatter(%x), replica_groups={{0,1,2,3}}, \
      dimensions={0}, to_apply=%add
}""")
  assert found(got) == {('reduce-scatter', 'f32[2,4]', 128, 4, 1)}
  assert got.bytes == 128 + 32


def test_collective_beside_a_product_counts_once():
  """Started in one fusion, continued in the next, ended in a third."""
  gather = ('  %g = f32[8,16]{1,0:T(8,128)} all-gather(%x), '
            "replica_groups=mesh['a'=4,'b'=4] {'a'}, dimensions={1}, "
            'frontend_attributes={chain_id="0"}\n')
  pair = 'f32[8,4]{1,0:T(8,128)}, f32[8,16]{1,0:T(8,128)}, u32[]{:S(2)}'
  three = 'f32[8,4]{1,0:T(8,128)}, ' + pair
  got = analyse(X_HERE + f"""\
  %w = f32[4,4]{{1,0:T(4,128)S(1)}} parameter(1)
  %start = ({pair}) fusion(%x), kind=kCustom, calls=%begin
  %x1 = f32[8,4]{{1,0:T(8,128)}} get-tuple-element(%start), index=0
  %y1 = f32[8,16]{{1,0:T(8,128)}} get-tuple-element(%start), index=1
  %step = ({three}) fusion(%x1, %y1, %w), kind=kOutput, calls=%beside
  %x2 = f32[8,4]{{1,0:T(8,128)}} get-tuple-element(%step), index=1
  %y2 = f32[8,16]{{1,0:T(8,128)}} get-tuple-element(%step), index=2
  ROOT %done = f32[8,16]{{1,0:T(8,128)}} fusion(%x2, %y2), calls=%end""", f"""
%begin (x: f32[8,4]) -> ({pair}) {{
{X_HERE}{gather}\
  ROOT %c = ({pair}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%beside (x: f32[8,4], y: f32[8,16], w: f32[4,4]) -> ({three}) {{
{X_HERE}{Y_HERE}{gather}\
  %w = f32[4,4]{{1,0:T(4,128)S(1)}} parameter(2)
  %v = f32[8,4]{{1,0:T(8,128)S(1)}} constant({{...}})
  %p = f32[8,4]{{1,0:T(8,128)}} convolution(%v, %w), dim_labels=bf_io->bf
  ROOT %t = ({three}) tuple(%p, %x, %g)
}}

%end (x: f32[8,4], y: f32[8,16]) -> f32[8,16] {{
{X_HERE}{Y_HERE}{gather}\
  ROOT %c = f32[8,16]{{1,0:T(8,128)}} custom-call(%x, %y, %g), \
      custom_call_target="AsyncCollectiveDone"
}}""")
  assert found(got) == {('all-gather', 'f32[8,16]', 512, 4, 1)}
  assert got.flops == 2 * 8 * 4 * 4
  # The gather reads 128 and writes 512, the product writes 128.
  assert got.bytes == 128 + 512 + 128


def test_reduce_scatter_as_a_fusion():
  got = analyse(X_HERE + """\
  ROOT %s = f32[2,4]{1,0:T(2,128)} fusion(%x), kind=kCustom, \
      calls=%all-reduce-scatter, metadata={op_name="jit(f)/dot_general"}""", """
%all-reduce-scatter (x: f32[8,4]) -> f32[2,4] {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %r = f32[8,4]{1,0:T(8,128)} all-reduce(%x), \
      replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %c = u32[]{:T(128)} constant(0)
  ROOT %d = f32[2,4]{1,0:T(2,128)} dynamic-slice(%r, %c, %c), \
      dynamic_slice_sizes={2,4}
}""")
  assert got.collectives == (hlo.Collective(
      'reduce-scatter', 'f32[2,4]', 128, 4, 1, 'jit(f)/dot_general'),)
  assert got.bytes == 128 + 32


@pytest.mark.parametrize('lhs,rhs,out,how,flops', [
    # pkqh,pksh->pkqs: the batch of 4 and 2 is spatial. If all positions of
    # the window counted, it would be 8 times as much.
    ('4,2,512,128', '4,2,640,128', '4,2,512,640',
     'window={size=4x2 stride=3x1 lhs_dilate=4x2}, '
     'dim_labels=01bf_01oi->01bf', 2 * 8 * 512 * 640 * 128),
    # bte,egnh->btgnh: two dimensions that the input lacks. With all
    # positions it would be 12 times as much.
    ('4,64,256,1,1', '2,6,128,256,1', '4,64,2,6,128',
     'window={size=1x2x6 pad=0_0x1_1x5_5 rhs_reversal=0x1x1}, '
     'dim_labels=0bf12_12oi0->0b12f', 2 * 4 * 64 * 256 * 2 * 6 * 128),
    ('256,512', '256,1024', '512,1024', 'dim_labels=fb_io->bf',
     2 * 512 * 256 * 1024)])
def test_products_are_convolutions(lhs, rhs, out, how, flops):
  """In a fusion, of an operand in HBM and one that was copied to VMEM."""
  layout = '{0:T(8,128)(2,1)'
  got = analyse(f"""\
  %a = bf16[{lhs}]{layout}}} parameter(0)
  %b = bf16[{rhs}]{layout}S(1)}} parameter(1)
  ROOT %f = bf16[{out}]{layout}}} fusion(%a, %b), kind=kOutput, \
      calls=%fused, backend_config={{"window_config":\
      {{"estimated_cycles":"44130","iteration_bounds":["2"]}}}}""", f"""
%bitcast_fusion (c: bf16[{lhs}]) -> bf16[{lhs}] {{
  %c = bf16[{lhs}]{layout}}} parameter(0)
  ROOT %d = bf16[{lhs}]{layout}}} bitcast(%c)
}}

%fused (a: bf16[{lhs}], b: bf16[{rhs}]) -> bf16[{out}] {{
  %a = bf16[{lhs}]{layout}}} parameter(0)
  %e = bf16[{lhs}]{layout}}} fusion(%a), kind=kLoop, calls=%bitcast_fusion
  %b = bf16[{rhs}]{layout}S(1)}} parameter(1)
  ROOT %f = bf16[{out}]{layout}}} convolution(%e, %b), {how}
}}""")
  size = lambda dims: np.prod([int(d) for d in dims.split(',')])
  assert got.flops == flops
  assert got.bytes == 2 * size(lhs) + 2 * size(out)  # b is not in HBM
  assert got.cycles == 44130


def test_cycles_that_xla_cannot_estimate():
  got = analyse("""\
  ROOT %a = f32[8]{0} parameter(0), backend_config={"window_config":\
      {"estimated_cycles":"9223372036854775807"}}""")
  assert got.cycles == 0


def test_a_kernel_counts_its_declared_cost():
  got = analyse("""\
  %a = f32[1024,128]{1,0:T(8,128)} parameter(0)
  ROOT %k = f32[1024,128]{1,0:T(8,128)} custom-call(%a), \
      custom_call_target="tpu_custom_call", backend_config={\
"custom_call_config":{"body":"TUzvUg==","cost_estimate":{"flops":"7000",\
"transcendentals":"9","bytes_accessed":"500"}}}""")
  assert (got.flops, got.bytes) == (7000, 500)
  assert got.kernels == (hlo.Kernel('', 7000, 500, 1),)


def test_part_of_a_buffer_in_a_fusion():
  """A layer of a stacked matrix is read, a row of a cache written."""
  got = analyse("""\
  %m = bf16[36,256,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %c = bf16[1000,512]{1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  ROOT %f = bf16[1000,512]{1,0:T(8,128)(2,1)} fusion(%m, %c, %i), \
      kind=kLoop, calls=%fused""", """
%fused (m: bf16[36,256,512], c: bf16[1000,512], i: s32[]) -> bf16[1000,512] {
  %m = bf16[36,256,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %c = bf16[1000,512]{1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %n = f32[36,256,512]{2,1,0:T(8,128)} convert(%m)
  %l = f32[1,256,512]{2,1,0:T(8,128)} dynamic-slice(%n, %i, %zero, %zero), \
      dynamic_slice_sizes={1,256,512}
  %r = bf16[1,512]{1,0:T(8,128)(2,1)} reduce(%l, %zero), to_apply=%add
  ROOT %u = bf16[1000,512]{1,0:T(8,128)(2,1)} \
      dynamic-update-slice(%c, %r, %i, %zero)
}""")
  assert got.bytes == 2 * 256 * 512 + 2 * 512  # not 36 and 1000 times as much


# A loop as TPU writes it: what it needs is hoisted into its tuple, here the
# bound and step of an inner loop, which has a product.
STATE = '(s32[]{:T(128)}, f32[8,8]{1,0:T(8,128)}, s32[]{:T(128)}, s32[])'
WIDE = f"""
%inner (p: {STATE}) -> {STATE} {{
  %p = {STATE} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %h = f32[8,8]{{1,0:T(8,128)}} get-tuple-element(%p), index=1
  %step = s32[]{{:T(128)}} get-tuple-element(%p), index=2
  %end = s32[]{{:T(128)}} get-tuple-element(%p), index=3
  %next = s32[]{{:T(128)}} add(%i, %step)
  %dot = f32[8,8]{{1,0:T(8,128)}} convolution(%h, %h), dim_labels=bf_io->bf
  ROOT %t = {STATE} tuple(%next, %dot, %step, %end)
}}

%inner.until (p: {STATE}) -> pred[] {{
  %p = {STATE} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %end = s32[]{{:T(128)}} get-tuple-element(%p), index=3
  ROOT %lt = pred[]{{:T(512)}} fusion(%end, %i), kind=kLoop, calls=%compare
}}

%compare (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[]{{:T(128)}} parameter(0)
  %b = s32[]{{:T(128)}} parameter(1)
  ROOT %gt = pred[]{{:T(512)}} compare(%a, %b), direction=GT
}}

%outer (p: {STATE}) -> {STATE} {{
  %p = {STATE} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %h = f32[8,8]{{1,0:T(8,128)}} get-tuple-element(%p), index=1
  %step = s32[]{{:T(128)}} get-tuple-element(%p), index=2
  %end = s32[]{{:T(128)}} get-tuple-element(%p), index=3
  %zero = s32[]{{:T(128)}} constant(0)
  %t = {STATE} tuple(%zero, %h, %step, %end)
  %loop = {STATE} while(%t), condition=%inner.until, body=%inner
  %h1 = f32[8,8]{{1,0:T(8,128)}} get-tuple-element(%loop), index=1
  %one = s32[]{{:T(128)}} constant(1)
  %next = s32[]{{:T(128)}} add(%i, %one)
  ROOT %t1 = {STATE} tuple(%next, %h1, %step, %end)
}}

%outer.until (p: {STATE}) -> pred[] {{
  %p = {STATE} parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %five = s32[]{{:T(128)}} constant(5)
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %five), direction=LT
}}
"""
NESTED = f"""\
  %h = f32[8,8]{{1,0:T(8,128)}} parameter(0)
  %zero = s32[]{{:T(128)}} constant(0)
  %step = s32[]{{:T(128)}} constant(2)
  %end = s32[]{{:T(128)}} STATED
  %t = {STATE} tuple(%zero, %h, %step, %end)
  ROOT %loop = {STATE} while(%t), condition=%outer.until, body=%outer"""


def test_widened_loops():
  got = analyse(NESTED.replace('STATED', 'constant(14)'), WIDE)
  assert loops(got) == [(5, False, 1, 0), (7, False, 5, 1)]
  assert got.flops == 35 * 2 * 8**3


def test_loop_with_a_bound_from_data(monkeypatch):
  monkeypatch.setattr(hlo_text, '_MOST_TRIPS', 1000)
  with pytest.raises(ValueError, match='no trip count of loop loop'):
    analyse(NESTED.replace('STATED', 'parameter(1)'), WIDE)


def test_chained_loops_to_their_bounds():
  """Decoding: t + 1 < size and any(unfinished), from where t has got to."""
  state = '(s32[]{:T(128)}, s32[48]{0:T(128)})'
  def loop(size):
    return f"""
%body.{size} (p: {state}) -> {state} {{
  %p = {state} parameter(0)
  %t = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %b = s32[48]{{0:T(128)}} get-tuple-element(%p), index=1
  %one = s32[]{{:T(128)}} constant(1)
  %next = s32[]{{:T(128)}} add(%t, %one)
  ROOT %r = {state} tuple(%next, %b)
}}

%until.{size} (p: {state}) -> pred[] {{
  %p = {state} parameter(0)
  %t = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %b = s32[48]{{0:T(128)}} get-tuple-element(%p), index=1
  %one = s32[]{{:T(128)}} constant(1)
  %size = s32[]{{:T(128)}} constant({size})
  %add = s32[]{{:T(128)S(6)}} add(%t, %one)
  %lt = pred[]{{:T(512)S(6)}} compare(%add, %size), direction=LT
  %any = pred[]{{:T(512)}} fusion(%b), kind=kLoop, calls=%any
  %u = u32[]{{:T(128)}} bitcast(%any)
  %all = u32[]{{:T(128)}} all-reduce(%u), to_apply=%or, \
      replica_groups=mesh['axis_0'=4,'axis_1'=4] {{'axis_0'}}
  %v = pred[]{{:T(512)}} bitcast(%all)
  ROOT %and = pred[]{{:T(512)}} and(%lt, %v)
}}
"""
  got = analyse(f"""\
  %b = s32[48]{{0:T(128)}} parameter(0)
  %zero = s32[]{{:T(128)}} constant(0)
  %p = {state} tuple(%zero, %b)
  %w = {state} while(%p), condition=%until.32, body=%body.32
  %t = s32[]{{:T(128)}} get-tuple-element(%w), index=0
  %b1 = s32[48]{{0:T(128)}} get-tuple-element(%w), index=1
  %q = {state} tuple(%t, %b1)
  ROOT %w1 = {state} while(%q), condition=%until.64, body=%body.64""",
                loop(32) + loop(64) + """
%any (b: s32[48]) -> pred[] {
  %b = s32[48]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %c = pred[48]{0:T(128)} compare(%b, %zero), direction=GT
  ROOT %r = pred[]{:T(512)} reduce(%c, %zero), to_apply=%or
}""")
  # From 0 while t + 1 < 32: 31 trips, then 32 to t = 63. A condition is
  # computed once more than its body.
  assert loops(got) == [(31, True, 1, 0), (32, True, 1, 0)]
  assert found(got) == {('all-reduce', 'u32[]', 4, 4, 32 + 33)}


def test_product_in_a_library():
  call = '  ROOT %c = f32[8,4]{1,0} custom-call(%x), custom_call_target='
  with pytest.raises(ValueError, match='library call c'):
    analyse(X_HERE + call + '"__onednn$matmul"')
  assert analyse(X_HERE + call + '"AllocateBuffer", '
                 'metadata={op_name="jit(matmul)"}') == hlo.Cost()


def test_not_a_module():
  with pytest.raises(ValueError, match='not the text of an HLO module'):
    hlo.analyse('module @jit_f {}')
