"""Model folders: every number lands where it belongs, and comes back.

Against transformers where torch is there; the rest needs neither.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from adasr_jax.core import placement
from adasr_jax.core import sharding
from adasr_jax.models import block, decoder, hf, hf_config, presets
from tests.small import VOCAB, make_config

LLAMA3 = (8.0, 1.0, 4.0, 32.0)
FAMILIES = {
    'qwen3': dict(),
    'qwen2': dict(qk_norm=False, qkv_bias=True, tie_embedding=False),
    'llama': dict(qk_norm=False, tie_embedding=False, rope_theta=5e5,
                  norm_eps=1e-5, rope_scaling=LLAMA3),
    'smollm2': dict(qk_norm=False, num_heads=6, num_kv_heads=2, d_model=48,
                    rope_theta=1e5, norm_eps=1e-5),
}


def random_params(config, seed=0):
  """Norms and biases random as well: ones would hide a swap."""
  tree = decoder.init(config, jax.random.key(seed))
  leaves, treedef = jax.tree.flatten(tree)
  noise = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return jax.tree.unflatten(treedef, [
      x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, noise)])


def write(folder, config, params=None, dtype='float32', **kw):
  raw = hf_config.config_json(config, dtype=dtype, max_position=64)
  hf.save(folder, random_params(config) if params is None else params, config,
          raw, dtype=dtype, **kw)
  return folder


def shape_of(folder, vocab_size=0):
  return hf_config.decoder_config(folder, dtype='float32', remat='none',
                                  vocab_size=vocab_size)


def read(folder, vocab_size=0):
  config = shape_of(folder, vocab_size)
  return hf.load(folder, config), config


def edit_config(folder, **changes):
  raw = json.loads((folder / 'config.json').read_text()) | changes
  (folder / 'config.json').write_text(json.dumps(
      {k: v for k, v in raw.items() if v is not ...}))


def tensors(folder):
  out = {}
  for file in folder.glob('*.safetensors'):
    out |= load_file(file)
  return out


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype and np.array_equal(x, y), path


# -------------------------------------------------------------- the mapping
def test_published_names_and_shapes():
  # The safetensors index of Qwen/Qwen3-0.6B, its first layer.
  table = hf.places('qwen3', presets.preset(
      'qwen3-0.6b', dtype='float32', remat='none'), 151936)
  assert len(table) == 2 + 28 * 11
  prefix = 'model.layers.0.'
  assert {k: p.shape for k, p in table.items()
          if k.startswith(prefix) or '.layers.' not in k} == {
      'model.embed_tokens.weight': (151936, 1024),
      'model.norm.weight': (1024,),
      prefix + 'input_layernorm.weight': (1024,),
      prefix + 'mlp.down_proj.weight': (1024, 3072),
      prefix + 'mlp.gate_proj.weight': (3072, 1024),
      prefix + 'mlp.up_proj.weight': (3072, 1024),
      prefix + 'post_attention_layernorm.weight': (1024,),
      prefix + 'self_attn.k_norm.weight': (128,),
      prefix + 'self_attn.k_proj.weight': (1024, 1024),
      prefix + 'self_attn.o_proj.weight': (1024, 2048),
      prefix + 'self_attn.q_norm.weight': (128,),
      prefix + 'self_attn.q_proj.weight': (2048, 1024),
      prefix + 'self_attn.v_proj.weight': (1024, 1024)}


def test_every_head_lands_where_it_belongs(tmp_path):
  # By loops over heads, against the letters of the table. Query head n reads
  # key/value head n // R: n = k R + r.
  config = make_config(**FAMILIES['qwen2'])
  write(tmp_path / 'm', config)
  params, _ = read(tmp_path / 'm')
  t, H, R = tensors(tmp_path / 'm'), config.head_dim, 2
  head = lambda name, n: t[name][n * H:(n + 1) * H]
  for l in range(2):
    leaf = params['layers']
    at = f'model.layers.{l}.self_attn.'
    for k in range(2):
      for r in range(R):
        n = k * R + r
        np.testing.assert_array_equal(
            leaf['qkv'][l, :, k, r], head(at + 'q_proj.weight', n).T)
        np.testing.assert_array_equal(
            leaf['qkv_bias'][l, k, r], head(at + 'q_proj.bias', n))
        np.testing.assert_array_equal(
            leaf['out'][l, k, r],
            t[at + 'o_proj.weight'][:, n * H:(n + 1) * H].T)
      for i, name in enumerate(('k_proj', 'v_proj')):
        np.testing.assert_array_equal(
            leaf['qkv'][l, :, k, R + i], head(f'{at}{name}.weight', k).T)
        np.testing.assert_array_equal(
            leaf['qkv_bias'][l, k, R + i], head(f'{at}{name}.bias', k))
    mlp = f'model.layers.{l}.mlp.'
    for ours, theirs in (('gate', 'gate_proj'), ('up', 'up_proj'),
                         ('down', 'down_proj')):
      np.testing.assert_array_equal(leaf[ours][l],
                                    t[f'{mlp}{theirs}.weight'].T)
  np.testing.assert_array_equal(params['head'], t['lm_head.weight'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_import_export_import_is_bit_equal(family, dtype, tmp_path):
  config = make_config(**FAMILIES[family])
  write(tmp_path / 'a', config, dtype=dtype)
  first, got = read(tmp_path / 'a')
  assert got == config
  assert {x.dtype for x in jax.tree.leaves(first)} == {jnp.dtype('float32')}
  raw = hf_config.read_config(tmp_path / 'a')
  hf.save(tmp_path / 'b', first, got, raw, dtype=dtype, shard_bytes=9000)
  assert len(list((tmp_path / 'b').glob('*.safetensors'))) > 2
  second, again = read(tmp_path / 'b')
  assert again == config
  assert_same(first, second)
  # And so are the files' own numbers.
  a, b = tensors(tmp_path / 'a'), tensors(tmp_path / 'b')
  assert a.keys() == b.keys()
  for k in a:
    assert a[k].dtype == b[k].dtype == jnp.dtype(dtype)
    assert np.array_equal(a[k].view(np.uint8), b[k].view(np.uint8))
  assert ((tmp_path / 'a/config.json').read_text()
          == (tmp_path / 'b/config.json').read_text())


def test_shards_and_index(tmp_path):
  write(tmp_path / 'm', make_config(), shard_bytes=9000)
  index = json.loads((tmp_path / 'm' / hf.INDEX).read_text())
  files = sorted(p.name for p in (tmp_path / 'm').glob('*.safetensors'))
  n = len(files)
  assert files == [f'model-{i + 1:05d}-of-{n:05d}.safetensors'
                   for i in range(n)]
  assert set(index['weight_map'].values()) == set(files)
  total = 0
  for file in files:
    with safe_open(tmp_path / 'm' / file, 'numpy') as f:
      assert f.metadata() == {'format': 'pt'}
      held = {k: f.get_tensor(k).nbytes for k in f.keys()}
    assert all(index['weight_map'][k] == file for k in held)
    assert sum(held.values()) <= 9000 or len(held) == 1
    total += sum(held.values())
  assert index['metadata']['total_size'] == total


def test_parts_of_a_tensor_are_small(tmp_path, monkeypatch):
  config = make_config(tie_embedding=False)
  write(tmp_path / 'm', config)
  whole, _ = read(tmp_path / 'm')
  # 1,024 bytes are 8 rows of the embedding's 32 columns, and less than the
  # 2 * 8 rows of one key/value group of q: groups are never cut.
  monkeypatch.setattr(hf, 'CHUNK_BYTES', 1024)
  seen, chunks = [], hf._chunks
  def watched(*args):
    for start, part in chunks(*args):
      seen.append(part.nbytes)
      yield start, part
  monkeypatch.setattr(hf, '_chunks', watched)
  parts, _ = read(tmp_path / 'm')
  assert_same(whole, parts)
  assert max(seen) == 2 * 8 * 32 * 4 and len(seen) > 30


# ----------------------------------------------------------- control tokens
@pytest.mark.parametrize('tied', [True, False])
def test_more_rows_are_the_mean_of_the_old(tied, tmp_path):
  config = make_config(tie_embedding=tied)
  write(tmp_path / 'a', config)
  small, _ = read(tmp_path / 'a')
  params, wide = read(tmp_path / 'a', vocab_size=128)
  assert wide == dataclasses.replace(config, vocab_size=128)
  for name in ('embedding',) if tied else ('embedding', 'head'):
    np.testing.assert_array_equal(params[name][:VOCAB], small[name])
    want = np.asarray(small[name], np.float64).mean(0)
    np.testing.assert_allclose(params[name][VOCAB:], np.broadcast_to(
        want, (88, 32)), atol=1e-6)
  # They are the model's own from then on.
  hf.save(tmp_path / 'b', params, wide, hf_config.read_config(tmp_path / 'a'),
          dtype='float32')
  again, got = read(tmp_path / 'b')
  assert got == wide
  assert_same(params, again)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_new_tokens_begin_as_the_pieces_of_their_names(tied, dtype, tmp_path):
  config = make_config(tie_embedding=tied)
  folder = write(tmp_path / 'a', config, dtype=dtype)
  wide = shape_of(folder, 128)
  plain = hf.load(folder, wide)
  # A row that the file has, and two that it has not.
  spelled = {7: (1, 2), 50: (3,), 51: (4, 5, 4), 52: ()}
  params = hf.load(folder, wide, spelled)
  names = {'embedding'} if tied else {'embedding', 'head'}
  for name in names:
    old, new = np.asarray(plain[name]), np.array(params[name])
    for row, pieces in spelled.items():
      if pieces:
        want = old[list(pieces)].astype(np.float64).mean(0)
        np.testing.assert_allclose(
            new[row], want, rtol=2**-8 if dtype == 'bfloat16' else 1e-6,
            atol=1e-7)
        np.testing.assert_array_equal(
            new[row], new[row].astype(jnp.dtype(dtype)).astype(np.float32))
        new[row] = old[row]
    np.testing.assert_array_equal(new, old)  # 52 is left, as all others are
  for name in params.keys() - names:
    assert_same(params[name], plain[name])
  with jax.set_mesh(sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))):
    assert_same(hf.load(folder, wide, spelled), params)


@pytest.mark.parametrize('family', ['qwen3', 'qwen2'])
def test_import_on_a_mesh(family, tmp_path, monkeypatch):
  # In parts that end inside what a device keeps, with rows beyond the file's.
  monkeypatch.setattr(hf, 'CHUNK_BYTES', 3 * 4 * 32)
  folder = write(tmp_path / 'a', make_config(**FAMILIES[family]))
  config = shape_of(folder, VOCAB + 24)
  alone = hf.load(folder, config)
  with jax.set_mesh(sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))):
    spread, where = hf.load(folder, config), placement.places(alone)
  assert_same(spread, alone)
  for a, like in zip(jax.tree.leaves(spread), jax.tree.leaves(where),
                     strict=True):
    assert a.sharding.is_equivalent_to(like.sharding, a.ndim)
  qkv = spread['layers']['qkv']
  assert qkv.addressable_shards[0].data.size * 4 == qkv.size


def test_rows_are_never_dropped(tmp_path):
  write(tmp_path / 'm', make_config())
  with pytest.raises(ValueError, match='vocab_size is 40, above 39'):
    read(tmp_path / 'm', vocab_size=39)


# ------------------------------------------------------------------- config
def test_rope_scaling_closed_form():
  # theta = 1e4, H = 8: frequencies 1, .1, .01, .001. In a context of 2 pi 40
  # they turn 40, 4, 0.4, 0.04 times: kept from 4 turns on, divided by 8 below
  # 1. With 2.5 turns, half way, the factor is (1 + 1/8) / 2.
  context = 2 * np.pi * 40
  freq = block.rope_frequencies(4, 1e4, (8., 1., 4., context))
  np.testing.assert_allclose(freq, [1, .1, .01 / 8, .001 / 8], rtol=1e-5)
  freq = block.rope_frequencies(4, 1e4, (8., 1., 4., context / 1.6))
  np.testing.assert_allclose(
      freq, [1, .1 * (1 + 1 / 8) / 2, .01 / 8, .001 / 8], rtol=1e-5)
  np.testing.assert_allclose(block.rope_frequencies(4, 1e4, ()),
                             [1, .1, .01, .001], rtol=1e-6)


def test_rope_as_transformers_5_writes_it(tmp_path):
  config = make_config(**FAMILIES['llama'])
  write(tmp_path / 'm', config)
  factor, low, high, context = LLAMA3
  edit_config(tmp_path / 'm', rope_theta=..., rope_scaling=...,
              rope_parameters=dict(
                  rope_theta=5e5, rope_type='llama3', factor=factor,
                  low_freq_factor=low, high_freq_factor=high,
                  original_max_position_embeddings=context))
  assert shape_of(tmp_path / 'm') == config


def test_head_dim_where_the_family_defines_it(tmp_path):
  write(tmp_path / 'a', make_config(**FAMILIES['smollm2']))
  edit_config(tmp_path / 'a', head_dim=...)
  assert shape_of(tmp_path / 'a').head_dim == 48 // 6
  write(tmp_path / 'b', make_config())
  edit_config(tmp_path / 'b', head_dim=...)
  with pytest.raises(ValueError, match='config.json has no head_dim'):
    shape_of(tmp_path / 'b')


@pytest.mark.parametrize('name', [
    'rope_theta', 'rms_norm_eps', 'tie_word_embeddings', 'vocab_size',
    'hidden_size', 'intermediate_size', 'num_hidden_layers',
    'num_attention_heads', 'num_key_value_heads'])
def test_nothing_physical_has_a_default(name, tmp_path):
  write(tmp_path / 'm', make_config())
  edit_config(tmp_path / 'm', **{name: ...})
  with pytest.raises(ValueError, match=f'm/config.json has no {name}$'):
    shape_of(tmp_path / 'm')


@pytest.mark.parametrize('changes,message', [
    (dict(model_type='gpt2'), "model_type='gpt2' is not one of llama, qwen2"),
    (dict(model_type=...), 'model_type=None is not one of'),
    (dict(hidden_act='gelu'), "cannot do hidden_act='gelu'"),
    (dict(attention_bias=True), 'cannot do attention_bias=True'),
    (dict(use_sliding_window=True), 'cannot do use_sliding_window=True'),
    (dict(layer_types=['full_attention', 'sliding_attention']),
     "cannot do layer_types=.*'sliding_attention'"),
    (dict(quantization_config={'bits': 4}), 'cannot do quantization_config'),
    (dict(rope_scaling={'rope_type': 'yarn', 'factor': 4.}),
     "rope_type='yarn' is not default or llama3"),
    (dict(rope_scaling={'type': 'llama3', 'factor': 4.}),
     'has no low_freq_factor'),
    (dict(mlp_bias=True), 'cannot do mlp_bias=True'),
    (dict(partial_rotary_factor=.5), 'cannot do partial_rotary_factor=0.5'),
    (dict(rope_parameters={'rope_type': 'default', 'rope_theta': 1e4,
                           'partial_rotary_factor': .5}),
     'cannot do partial_rotary_factor=0.5'),
    (dict(rope_parameters={'rope_type': 'default', 'rope_theta': 1e4},
          rope_scaling={'rope_type': 'yarn', 'factor': 4.}),
     'rope_parameters=.* and rope_scaling=.*yarn.* differ'),
])
def test_what_the_decoder_cannot_do_is_refused(changes, message, tmp_path):
  write(tmp_path / 'm', make_config())
  edit_config(tmp_path / 'm', **changes)
  with pytest.raises(ValueError, match=message) as e:
    shape_of(tmp_path / 'm')
  assert '\n' not in str(e.value)


def test_another_decoder_is_refused(tmp_path):
  write(tmp_path / 'm', make_config())
  with pytest.raises(ValueError, match='rope_theta is 10000.0, not 500.0'):
    hf.load(tmp_path / 'm', make_config(rope_theta=500.0))
  params, config = read(tmp_path / 'm')
  raw = hf_config.read_config(tmp_path / 'm')
  with pytest.raises(ValueError, match='norm_eps is 0.1, not 1e-06'):
    hf.save(tmp_path / 'n', params, config, raw | {'rms_norm_eps': 0.1},
            dtype='float32')
  with pytest.raises(ValueError, match='holds a model already'):
    hf.save(tmp_path / 'm', params, config, raw, dtype='float32')
  with pytest.raises(ValueError, match="dtype='int8' is not one of float32"):
    hf.save(tmp_path / 'n', params, config, raw, dtype='int8')
  with pytest.raises(ValueError, match='no family has both'):
    hf_config.config_json(make_config(qkv_bias=True), dtype='float32',
                          max_position=1)
  with pytest.raises(ValueError, match='rope_scaling=.* is not .. or four'):
    make_config(rope_scaling=(8.0,))


@pytest.mark.parametrize('name', presets.PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
  config = presets.preset(name, dtype='float32', remat='none')
  shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  assert decoder.num_params(shapes) == presets.PRESETS[name].parameters
  # What the files hold is the same.
  family = hf_config.config_json(
      config, dtype='bfloat16', max_position=1)['model_type']
  assert decoder.num_params(shapes) == sum(
      int(np.prod(p.shape))
      for p in hf.places(family, config, config.vocab_size).values())


def test_no_such_preset():
  with pytest.raises(ValueError, match="preset 'qwen9' is not one of llama"):
    presets.preset('qwen9', dtype='float32', remat='none')


# ------------------------------------------------------------------- errors
def change_tensors(folder, change):
  t = load_file(folder / hf.SINGLE)
  change(t)
  save_file(t, folder / hf.SINGLE, {'format': 'pt'})


Q = 'model.layers.1.self_attn.q_proj.weight'


def widen(t):
  t[Q] = np.zeros((32, 33), np.float32)


@pytest.mark.parametrize('change,message', [
    (lambda t: t.pop(Q), f'missing {Q}'),
    (lambda t: t.update(new=np.zeros(3)), 'unknown new'),
    (widen, rf'{Q} has shape \(32, 33\), not \(32, 32\)'),
    (lambda t: t.update({Q: t[Q].astype(np.int32)}), f'{Q} is I32, not one'),
    (lambda t: t.update({Q[:-6] + 'bias': np.zeros(32)}),
     'unknown model.layers.1.self_attn.q_proj.bias'),
])
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
  write(tmp_path / 'm', make_config())
  change_tensors(tmp_path / 'm', change)
  with pytest.raises(ValueError, match=f'does not fit the model: {message}'):
    read(tmp_path / 'm')


def test_many_errors_stay_one_line(tmp_path):
  write(tmp_path / 'm', make_config())
  change_tensors(tmp_path / 'm', lambda t: [t.pop(k) for k in sorted(t)[:9]])
  with pytest.raises(ValueError, match=r'missing .* and 3 more$') as e:
    read(tmp_path / 'm')
  assert '\n' not in str(e.value)


def test_a_tied_head_that_is_stored_all_the_same(tmp_path):
  # Published Qwen3-0.6B stores it. It must say what the embedding says.
  write(tmp_path / 'm', make_config())
  want, _ = read(tmp_path / 'm')
  embedding = load_file(tmp_path / 'm' / hf.SINGLE)[
      'model.embed_tokens.weight']
  change_tensors(tmp_path / 'm',
                 lambda t: t.update({'lm_head.weight': embedding}))
  got, config = read(tmp_path / 'm')
  assert config.tie_embedding
  assert_same(want, got)
  other = embedding.copy()
  other[-1, -1] += 1
  change_tensors(tmp_path / 'm',
                 lambda t: t.update({'lm_head.weight': other}))
  with pytest.raises(ValueError, match='lm_head.weight differs from model.em'):
    read(tmp_path / 'm')


@pytest.fixture
def sharded(tmp_path):
  return write(tmp_path / 'm', make_config(), shard_bytes=9000)


def test_missing_shard(sharded):
  last = sorted(sharded.glob('*.safetensors'))[-1]
  last.unlink()
  with pytest.raises(ValueError, match=f'lacks {last.name}, which model.safe'):
    read(sharded)


@pytest.mark.parametrize('keep', [3, 100, -8])
def test_truncated_file(sharded, keep):
  last = sorted(sharded.glob('*.safetensors'))[-1]
  last.write_bytes(last.read_bytes()[:keep])
  with pytest.raises(ValueError, match=f'{last.name} is not a whole safet'):
    read(sharded)


def test_a_tensor_in_two_shards(sharded):
  first, second = sorted(sharded.glob('*.safetensors'))[:2]
  t = load_file(first)
  name = sorted(t)[0]
  save_file(load_file(second) | {name: t[name]}, second)
  with pytest.raises(ValueError, match=f'{name} is in {first.name} and in '
                                       f'{second.name}'):
    read(sharded)


def test_the_index_and_the_shards_agree(sharded):
  path = sharded / hf.INDEX
  index = json.loads(path.read_text())
  name, = [k for k in index['weight_map'] if 'layers.1.mlp.up' in k]
  file = index['weight_map'].pop(name)
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match=f'{name} of {file} is not in model.s'):
    read(sharded)
  other = next(f for f in index['weight_map'].values() if f != file)
  index['weight_map'][name] = other
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match=f'{name} is not in {other}, where'):
    read(sharded)
  for text in ('{}', '[1]', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
    path.write_text(text)
    with pytest.raises(ValueError, match='index.json has no weight_map of'):
      read(sharded)
  path.write_text('[' * 100_000)
  with pytest.raises(ValueError, match='index.json: JSON that nests deeper'):
    read(sharded)


def test_wrong_folders(sharded, tmp_path):
  with pytest.raises(ValueError, match="there is no folder '.*nowhere'"):
    shape_of(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='has no config.json'):
    shape_of(tmp_path)
  shutil.copy(next(sharded.glob('*.safetensors')), sharded / hf.SINGLE)
  with pytest.raises(ValueError, match='has both model.safetensors and'):
    read(sharded)
  for path in sharded.glob('*.safetensors*'):
    path.unlink()
  with pytest.raises(ValueError, match='has neither model.safetensors nor'):
    read(sharded)
  for text, message in (('{"model_type":', ': not JSON: '),
                        ('[' * 100_000, ': JSON that nests deeper'),
                        ('[1]', ' does not hold a JSON object')):
    (sharded / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=f'config.json{message}'):
      shape_of(sharded)


@pytest.mark.parametrize('changes,message', [
    (dict(hidden_size='64'), "hidden_size='64' is not of type int"),
    (dict(num_attention_heads=0, head_dim=...), 'num_heads=0 is outside'),
    (dict(rope_theta='1e4'), "rope_theta='1e4' is not of type float"),
    (dict(rope_scaling=[1]), r'rope_scaling=\[1\] is not of type dict'),
    (dict(rope_scaling={'rope_type': 'llama3', 'factor': 'x'}),
     "factor='x' is not of type float"),
    (dict(rms_norm_eps=[]), r'rms_norm_eps=\[\] is not of type float'),
    (dict(tie_word_embeddings=1), 'tie_word_embeddings=1 is not of type bool'),
    (dict(layer_types=5), r"this decoder cannot do layer_types=\['5'\]"),
    (dict(model_type=[]), r'model_type=\[\] is not one of')])
def test_values_of_another_type_are_named(changes, message, tmp_path):
  write(tmp_path / 'm', make_config(**FAMILIES['smollm2']))
  edit_config(tmp_path / 'm', **changes)
  with pytest.raises(ValueError, match=f'm/config.json: {message}'):
    shape_of(tmp_path / 'm')


@pytest.mark.parametrize('shard_bytes', [5 * 10**9, 9000])
def test_a_killed_export_leaves_no_half_file(shard_bytes, tmp_path,
                                             monkeypatch):
  def die(tensors, path, metadata):
    pathlib.Path(path).write_bytes(b'half')
    raise KeyboardInterrupt
  monkeypatch.setattr(hf, 'save_file', die)
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / 'm', make_config(), shard_bytes=shard_bytes)
  assert [p.suffix for p in (tmp_path / 'm').iterdir()] == ['.tmp']


# ------------------------------------------------------------ causal logits
def test_causal_logits_read_the_past_alone(params):
  config = make_config()
  tokens = jax.random.randint(jax.random.key(2), (2, 9), 6, VOCAB)
  whole = decoder.causal_logits(params, config, tokens)
  assert whole.shape == (2, 9, VOCAB) and whole.dtype == jnp.float32
  np.testing.assert_allclose(
      decoder.causal_logits(params, config, tokens[:, :5]), whole[:, :5],
      atol=1e-5)
  changed = decoder.causal_logits(params, config, tokens.at[:, 4].add(-1))
  np.testing.assert_allclose(changed[:, :4], whole[:, :4], atol=1e-5)
  assert np.abs(changed[:, 4:] - whole[:, 4:]).max(-1).min() > 1e-3


# ------------------------------------------------------------- transformers
@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip(
      'torch', reason='parity needs torch: pip install torch==2.13.0')


def their_model(family):
  import transformers
  sizes = dict(
      vocab_size=VOCAB, hidden_size=32, intermediate_size=48,
      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
      max_position_embeddings=128)
  rope = lambda theta, **kw: dict(rope_type='default', rope_theta=theta) | kw
  factor, low, high, context = LLAMA3
  config = {
      'qwen3': lambda: transformers.Qwen3Config(
          **sizes, head_dim=24, rms_norm_eps=1e-6, tie_word_embeddings=True,
          rope_parameters=rope(1e6)),
      'qwen3 untied': lambda: transformers.Qwen3Config(
          **sizes, head_dim=8, rms_norm_eps=1e-6, tie_word_embeddings=False,
          rope_parameters=rope(1e6)),
      'qwen2': lambda: transformers.Qwen2Config(
          **sizes, rms_norm_eps=1e-6, tie_word_embeddings=True,
          rope_parameters=rope(1e6)),
      'llama': lambda: transformers.LlamaConfig(
          **sizes, rms_norm_eps=1e-5, tie_word_embeddings=False,
          rope_parameters=rope(
              5e5, rope_type='llama3', factor=factor, low_freq_factor=low,
              high_freq_factor=high,
              original_max_position_embeddings=int(context))),
      'smollm2': lambda: transformers.LlamaConfig(
          **sizes | dict(num_attention_heads=6, hidden_size=48),
          rms_norm_eps=1e-5, tie_word_embeddings=True,
          rope_parameters=rope(1e5)),
  }[family]()
  config._attn_implementation = 'eager'
  return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize('family', [
    'qwen3', 'qwen3 untied', 'qwen2', 'llama', 'smollm2'])
def test_logits_are_those_of_transformers(family, torch, tmp_path):
  import transformers
  torch.manual_seed(0)
  model = their_model(family).eval()
  with torch.no_grad():  # ones and zeros would hide a swap
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 100))
  logits = lambda m: m(torch.tensor(tokens)).logits.detach().numpy()
  want = logits(model)
  assert want.std() > 0.3  # the comparison says something
  model.save_pretrained(tmp_path / 'a')
  params, config = read(tmp_path / 'a')
  got = decoder.causal_logits(params, config, jnp.asarray(tokens))
  np.testing.assert_allclose(got, want, atol=1e-4)
  if config.rope_scaling:  # without it the numbers are others
    plain = decoder.causal_logits(params, dataclasses.replace(
        config, rope_scaling=()), jnp.asarray(tokens))
    assert np.abs(plain - want).max() > 1e-2
  # Theirs -> ours -> theirs: the very same numbers; the same from a config
  # that we write ourselves.
  raw = hf_config.read_config(tmp_path / 'a')
  hf.save(tmp_path / 'b', params, config, raw, dtype='float32',
          shard_bytes=9000)
  hf.save(tmp_path / 'c', params, config, hf_config.config_json(
      config, dtype='float32', max_position=128), dtype='float32')
  for folder in ('b', 'c'):
    back, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / folder, attn_implementation='eager',
        output_loading_info=True, dtype=torch.float32)
    assert type(back) is type(model)
    assert not any(info[k] for k in info if k != 'error_msgs'), info
    np.testing.assert_array_equal(logits(back.eval()), want)
    assert_same(params, read(tmp_path / folder)[0])


def test_bfloat16_files_are_read_as_transformers_reads_them(torch, tmp_path):
  torch.manual_seed(0)
  model = their_model('qwen3').to(torch.bfloat16)
  model.save_pretrained(tmp_path / 'a')
  params, config = read(tmp_path / 'a')
  theirs = model.state_dict()['model.embed_tokens.weight'].float().numpy()
  np.testing.assert_array_equal(params['embedding'], theirs)
  raw = hf_config.read_config(tmp_path / 'a')
  hf.save(tmp_path / 'b', params, config, raw, dtype='bfloat16')
  a, b = tensors(tmp_path / 'a'), tensors(tmp_path / 'b')
  for k in b:  # theirs may store the tied head as well
    assert a[k].dtype == b[k].dtype == ml_dtypes.bfloat16
    assert np.array_equal(a[k].view(np.uint16), b[k].view(np.uint16)), k
