"""Reads and writes Hugging Face folders: Qwen3, Qwen2.5, Llama 3, SmolLM2.

A folder holds config.json and model.safetensors, or shards with an index. One
table says for each tensor of a family where it lies in our tree; an unknown,
missing, duplicate or misshapen tensor is an error.

Source: tensor names of transformers' Qwen3ForCausalLM, Qwen2ForCausalLM and
LlamaForCausalLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from adasr_jax.core import files
from adasr_jax.core import placement
from adasr_jax.core import sharding
from adasr_jax.models import decoder
from adasr_jax.models.hf_config import architecture, read_config

INDEX, SINGLE = 'model.safetensors.index.json', 'model.safetensors'
# Most bytes, counted in float32, of a tensor that are on the host at once.
CHUNK_BYTES = 32 * 2**20
DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}

# Name in the file: (leaf of our tree, axes of the file's tensor with a space
# between its dimensions, axes of ours). Axes as in types.py; k and v have size
# 1: the place of a key or value after the R queries of its group.
_ENDS = {
    'model.embed_tokens.weight': ('embedding', 'V D', 'VD'),
    'model.norm.weight': ('final_norm', 'D', 'D'),
}
_HEAD = {'lm_head.weight': ('head', 'V D', 'VD')}
_LAYER = {
    'input_layernorm.weight': ('attn_norm', 'D', 'D'),
    'self_attn.q_proj.weight': ('qkv', 'KRH D', 'DKRH'),
    'self_attn.k_proj.weight': ('qkv', 'KkH D', 'DKkH'),
    'self_attn.v_proj.weight': ('qkv', 'KvH D', 'DKvH'),
    'self_attn.o_proj.weight': ('out', 'D KRH', 'KRHD'),
    'post_attention_layernorm.weight': ('mlp_norm', 'D', 'D'),
    'mlp.gate_proj.weight': ('gate', 'F D', 'DF'),
    'mlp.up_proj.weight': ('up', 'F D', 'DF'),
    'mlp.down_proj.weight': ('down', 'D F', 'FD'),
}
_QKV_BIAS = {
    'self_attn.q_proj.bias': ('qkv_bias', 'KRH', 'KRH'),
    'self_attn.k_proj.bias': ('qkv_bias', 'KkH', 'KkH'),
    'self_attn.v_proj.bias': ('qkv_bias', 'KvH', 'KvH'),
}
_QK_NORM = {
    'self_attn.q_norm.weight': ('q_norm', 'H', 'H'),
    'self_attn.k_norm.weight': ('k_norm', 'H', 'H'),
}
FAMILIES = {'llama': _LAYER, 'qwen2': _LAYER | _QKV_BIAS,
            'qwen3': _LAYER | _QK_NORM}


# ------------------------------------------------------------------ mapping
@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a tensor of the file lies in our tree.

  Attributes:
    leaf: Path of the leaf.
    layer: Index along L; None if the leaf has no L.
    shape: Shape of the file's tensor.
    view: The same with a dimension for every axis.
    order: Transposes `view` to our axes.
    start: First index along each of our axes.
  """
  leaf: str
  layer: int | None
  shape: tuple[int, ...]
  view: tuple[int, ...]
  order: tuple[int, ...]
  start: tuple[int, ...]

  def at(self, offset: int = 0) -> tuple[int, ...]:
    """Start in the leaf of the part from `offset` on along view's axis 0."""
    start = list(self.start)
    start[self.order.index(0)] += offset
    return tuple(start) if self.layer is None else (self.layer, *start)


def places(family: str, config: decoder.DecoderConfig, rows: int
           ) -> dict[str, _Place]:
  """The place of every tensor of a model, by its name in the file.

  Args:
    family: Key of FAMILIES.
    config: Shape of the decoder.
    rows: Rows of the embedding in the file.
  """
  c = config
  R = c.num_heads // c.num_kv_heads
  size = dict(V=rows, D=c.d_model, K=c.num_kv_heads, R=R, H=c.head_dim,
              F=c.d_ff, k=1, v=1)
  after_queries = dict(k=R, v=R + 1)
  def place(entry, layer=None):
    leaf, theirs, ours = entry
    axes = theirs.replace(' ', '')
    return _Place(
        leaf=leaf if layer is None else f'layers.{leaf}', layer=layer,
        shape=tuple(int(np.prod([size[a] for a in group]))
                    for group in theirs.split()),
        view=tuple(size[a] for a in axes),
        order=tuple(axes.index(a) for a in ours),
        start=tuple(after_queries.get(a, 0) for a in ours))
  ends = _ENDS if c.tie_embedding else _ENDS | _HEAD
  return {name: place(entry) for name, entry in ends.items()} | {
      f'model.layers.{l}.{name}': place(entry, l)
      for l in range(c.num_layers) for name, entry in FAMILIES[family].items()}


# ------------------------------------------------------------------- import
@contextlib.contextmanager
def _open(path):
  try:
    f = safe_open(str(path), 'numpy')
  except Exception as e:  # the library raises its own untyped error
    raise ValueError(f'{path} is not a whole safetensors file: {e}') from e
  with f:
    yield f


def _refuse(folder, bad):
  if bad:
    more = f' and {len(bad) - 6} more' if len(bad) > 6 else ''
    raise ValueError(f'{folder} does not fit the model: '
                     f'{"; ".join(sorted(bad)[:6])}{more}')


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name of each tensor -> the file that holds it."""
  index = folder / INDEX
  if not index.is_file():
    if not (folder / SINGLE).is_file():
      raise ValueError(f'{folder} has neither {SINGLE} nor {INDEX}')
    with _open(folder / SINGLE) as f:
      return dict.fromkeys(f.keys(), folder / SINGLE)
  if (folder / SINGLE).is_file():
    raise ValueError(f'{folder} has both {SINGLE} and {INDEX}')
  raw = files.read_json(index)
  listed = raw.get('weight_map') if isinstance(raw, dict) else None
  if not isinstance(listed, dict) or not all(
      isinstance(v, str) for v in listed.values()):
    raise ValueError(f'{index} has no weight_map of tensors to files')
  shards = sorted(set(listed.values()))
  missing = [s for s in shards if not (folder / s).is_file()]
  if missing:
    raise ValueError(f'{folder} lacks {", ".join(missing)}, which {INDEX} '
                     f'names')
  out, twice = {}, []
  for shard in shards:
    with _open(folder / shard) as f:
      names = list(f.keys())
    twice += [f'{k} is in {out[k].name} and in {shard}'
              for k in names if k in out]
    out |= dict.fromkeys(names, folder / shard)
  _refuse(folder, twice)
  _refuse(folder, [f'{k} is not in {file}, where {INDEX} has it'
                   for k, file in listed.items()
                   if k not in out or out[k].name != file]
          + [f'{k} of {out[k].name} is not in {INDEX}'
             for k in out.keys() - listed.keys()])
  return out


def _check(folder, held_in, want):
  """Checks names, shapes and dtypes of all tensors, before any is read."""
  bad = [f'missing {k}' for k in want.keys() - held_in.keys()]
  bad += [f'unknown {k}' for k in held_in.keys() - want.keys()]
  for path in sorted(set(held_in.values())):
    with _open(path) as f:
      for name in want.keys() & {k for k, v in held_in.items() if v == path}:
        part = f.get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
        if shape != want[name].shape:
          bad.append(f'{name} has shape {shape}, not {want[name].shape}')
        if dtype not in DTYPES:
          bad.append(f'{name} is {dtype}, not one of {", ".join(DTYPES)}')
  _refuse(folder, bad)


def _chunks(path, name, place) -> Iterator[tuple[int, np.ndarray]]:
  """A tensor in parts: (offset along view's axis 0, part in the file's dtype).

  The file is opened anew for each part, because closing it frees what was
  mapped into memory.
  """
  unit = place.shape[0] // place.view[0]
  row = unit * int(np.prod(place.shape[1:])) * 4
  step = max(1, CHUNK_BYTES // row)
  for start in range(0, place.view[0], step):
    end = min(start + step, place.view[0])
    with _open(path) as f:
      part = f.get_slice(name)[start * unit:end * unit]
    yield start, part


@functools.partial(jax.jit, donate_argnums=0,
                   static_argnames=('view', 'order', 'spec'))
def _write(leaf, part, start, *, view, order, spec):
  part = part.reshape(-1, *view[1:]).transpose(order).astype(leaf.dtype)
  part = part.reshape((1,) * (leaf.ndim - part.ndim) + part.shape)
  return sharding.constrain(
      jax.lax.dynamic_update_slice(leaf, part, start), *spec)


@functools.partial(jax.jit, donate_argnums=0,
                   static_argnames=('rows', 'dtype', 'spec'))
def _fill_with_mean(leaf, *, rows, dtype, spec):
  mean = leaf[:rows].mean(0, keepdims=True).astype(dtype).astype(leaf.dtype)
  return sharding.constrain(leaf.at[rows:].set(jnp.broadcast_to(
      mean, (leaf.shape[0] - rows, leaf.shape[1]))), *spec)


@functools.partial(jax.jit, donate_argnums=0,
                   static_argnames=('spelled', 'dtype', 'spec'))
def _spell(leaf, *, spelled, dtype, spec):
  for row, pieces in spelled:
    mean = leaf[jnp.array(pieces)].mean(0).astype(dtype).astype(leaf.dtype)
    leaf = leaf.at[row].set(mean)
  return sharding.constrain(leaf, *spec)


def load(folder: str | pathlib.Path, config: decoder.DecoderConfig,
         spelled: Mapping[int, Sequence[int]] | None = None
         ) -> decoder.Params:
  """The folder's parameters in float32.

  Each tensor goes from the file to the devices in parts of CHUNK_BYTES, into
  the buffer of its leaf, which is already there, split over the mesh; the host
  holds one part, and what is mapped of it.

  Args:
    folder: Hugging Face folder.
    config: From hf_config.decoder_config(). Its vocab_size may be above the
      folder's: the rows that are added are the mean of the folder's own,
      rounded to its dtype so that a later export to it changes nothing.
    spelled: Tokens that are new to the model, id -> ids. Their rows become the
      mean of the rows of those ids, likewise rounded: rows that begin alike
      take long to be told apart.

  Raises:
    ValueError: Another architecture; a file is missing or cut off; tensors
      are missing, unknown, duplicate or misshapen. They are named.
  """
  folder = pathlib.Path(folder)
  raw = read_config(folder)
  own = architecture(raw, f'{folder}/config.json')
  rows = own.pop('vocab_size')
  bad = [f'{k} is {v}, not {getattr(config, k)}' for k, v in own.items()
         if v != getattr(config, k)]
  if rows > config.vocab_size:
    bad.append(f'vocab_size is {rows}, above {config.vocab_size}')
  _refuse(folder, bad)
  want = places(raw['model_type'], config, rows)
  held_in = _files(folder)
  (head, entry), = _HEAD.items()
  stored_twice = config.tie_embedding and head in held_in
  if stored_twice:
    want[head] = places(raw['model_type'], dataclasses.replace(
        config, tie_embedding=False), rows)[head]
  _check(folder, held_in, want)
  if stored_twice:
    del want[head]
    _check_equal(folder, held_in, 'model.embed_tokens.weight', head,
                 want['model.embed_tokens.weight'])
  shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  flat = functools.partial(traverse_util.flatten_dict, sep='.')
  leaves = flat(placement.born(lambda: jax.tree.map(
      lambda a: jnp.zeros(a.shape, a.dtype), shapes)))
  specs = flat(sharding.specs(shapes))
  stored = {}
  for name, place in want.items():
    for offset, part in _chunks(held_in[name], name, place):
      leaves[place.leaf] = jax.block_until_ready(_write(
          leaves[place.leaf], part, place.at(offset), view=place.view,
          order=place.order, spec=specs[place.leaf]))
      stored[place.leaf] = part.dtype
  if rows < config.vocab_size:
    for name in leaves.keys() & {'embedding', 'head'}:
      leaves[name] = _fill_with_mean(leaves[name], rows=rows,
                                     dtype=stored[name], spec=specs[name])
  new = tuple((row, tuple(ids)) for row, ids in (spelled or {}).items()
              if ids)
  if new:
    for name in leaves.keys() & {'embedding', 'head'}:
      leaves[name] = _spell(leaves[name], spelled=new, dtype=stored[name],
                            spec=specs[name])
  return traverse_util.unflatten_dict(leaves, sep='.')


def _check_equal(folder, held_in, a, b, place):
  """Checks that a tied head, where it is stored too, equals the embedding."""
  for (_, x), (_, y) in zip(_chunks(held_in[a], a, place),
                            _chunks(held_in[b], b, place)):
    if x.dtype != y.dtype or not np.array_equal(
        x.view(np.uint8), y.view(np.uint8)):
      raise ValueError(f'{folder}: tie_word_embeddings is true, but {b} '
                       f'differs from {a}')


# ------------------------------------------------------------------- export
def save(folder: str | pathlib.Path, params: decoder.Params,
         config: decoder.DecoderConfig, raw: dict[str, Any], *, dtype: str,
         shard_bytes: int = 5 * 10**9) -> None:
  """Writes config.json and the weights under their published names.

  Args:
    folder: Created if missing; must not hold a model.
    params: Parameter tree of `config`.
    config: Shape of the decoder.
    raw: Content of config.json: a published one, or that of
      hf_config.config_json(). vocab_size and dtype are set here, the rest must
      describe `config`.
    dtype: Dtype of the tensors: 'float32', 'bfloat16' or 'float16'.
    shard_bytes: Most bytes per file, unless a single tensor has more.

  Raises:
    ValueError: `raw` describes another decoder; the folder holds a model.
  """
  folder = pathlib.Path(folder)
  if dtype not in DTYPES.values():
    raise ValueError(f'dtype={dtype!r} is not one of '
                     f'{", ".join(DTYPES.values())}')
  raw = dict(raw, vocab_size=config.vocab_size)
  raw['dtype' if 'dtype' in raw else 'torch_dtype'] = dtype
  _refuse('config.json', [
      f'{k} is {v}, not {getattr(config, k)}' for k, v in architecture(
          raw, 'config.json').items() if v != getattr(config, k)])
  if (folder / 'config.json').exists():
    raise ValueError(f'{str(folder)!r} holds a model already')
  folder.mkdir(parents=True, exist_ok=True)
  table = places(raw['model_type'], config, config.vocab_size)
  size = {k: int(np.prod(p.shape)) * jnp.dtype(dtype).itemsize
          for k, p in table.items()}
  shards, room = [], 0
  for name in sorted(table):
    if room < size[name]:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= size[name]
  leaves = traverse_util.flatten_dict(params, sep='.')
  names = [SINGLE] if len(shards) == 1 else [
      f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
      for i in range(len(shards))]
  for file, shard in zip(names, shards):
    tensors = {k: _read(leaves[table[k].leaf], table[k], dtype)
               for k in shard}
    files.whole(folder / file, lambda new: _write_shard(new, tensors))
  if len(shards) > 1:
    _write_json(folder / INDEX, {
        'metadata': {'total_size': sum(size.values())},
        'weight_map': {k: file for file, shard in zip(names, shards)
                       for k in shard}})
  _write_json(folder / 'config.json', raw)


def _read(leaf, place, dtype):
  """One tensor in the shape that the file has."""
  sizes = tuple(place.view[i] for i in place.order)
  if place.layer is not None:
    sizes = (1, *sizes)
  part = np.asarray(jax.lax.dynamic_slice(leaf, place.at(), sizes))
  part = part.reshape(sizes[len(sizes) - len(place.view):])
  part = part.transpose(np.argsort(place.order)).reshape(place.shape)
  return np.ascontiguousarray(part.astype(jnp.dtype(dtype)))


def _write_shard(path, tensors):
  save_file(tensors, str(path), {'format': 'pt'})
  path.chmod(0o644)  # save_file lets only the owner read


def _write_json(path, tree):
  files.write_text(path, json.dumps(tree, indent=2) + '\n')
