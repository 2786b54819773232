"""The device mesh, and where parameters and rows lie on it.

Three axes: rows (prompts and their samples) are split over `data` and `fsdp`,
parameters over `fsdp` and `tensor`. JAX moves the data (GSPMD): the program is
the same on one device and on many, and so are its numbers, except rounding.

Training keeps parameters and optimizer state split over fsdp and gathers a
layer when it computes it. A rollout reads every matrix for each token, so once
per step it gets a copy split only over `tensor`, in the compute dtype.

`constrain` acts inside a mesh's context (jax.set_mesh); outside it returns its
argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adasr_jax.core.options import option
from adasr_jax.core.types import TrainState

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')  # split the leading axis of arrays of prompts or rows

# Path in the decoder's tree (models/decoder.py has the axes) -> spec.
RULES: Mapping[str, P] = {
    'embedding|head': P('tensor', 'fsdp'),
    'layers/qkv': P(None, 'fsdp', 'tensor'),
    'layers/out': P(None, 'tensor', None, None, 'fsdp'),
    'layers/(gate|up)': P(None, 'fsdp', 'tensor'),
    'layers/down': P(None, 'tensor', 'fsdp'),
    r'(layers/)?(\w+_norm|qkv_bias)': P(),
}
# The same for a LoRA tree, which is small.
LORA_RULES: Mapping[str, P] = {r'\w+/[ab]': P()}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each of AXES; one may be -1 (all remaining)."""
  data: int = option(1, least=-1, most=2**20)
  fsdp: int = option(-1, least=-1, most=2**20)
  tensor: int = option(1, least=-1, most=2**20)


def make_mesh(sizes: Mapping[str, int],
              devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of all devices, or of those given.

  Args:
    sizes: Devices along each axis; one may be -1 (all remaining).
    devices: None = jax.devices().

  Raises:
    ValueError: The sizes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {axis: sizes[axis] for axis in AXES}
  given = ', '.join(f'{k}={v}' for k, v in sizes.items())
  if any(v < 1 and v != -1 for v in sizes.values()) or list(
      sizes.values()).count(-1) > 1:
    raise ValueError(f'mesh {given}: sizes are positive, one may be -1')
  known = math.prod(v for v in sizes.values() if v != -1)
  if -1 in sizes.values() and len(devices) % known == 0:
    sizes = {k: len(devices) // known if v == -1 else v
             for k, v in sizes.items()}
  if math.prod(sizes.values()) != len(devices):
    raise ValueError(f'mesh {given} does not fit {len(devices)} '
                     f'{devices[0].platform} device(s)')
  # An axis of the mesh may be a part of a torus axis, such as 2 of 4 chips.
  return Mesh(mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, allow_split_physical_axes=True), AXES,
              axis_types=(AxisType.Auto,) * len(AXES))


def leaf_path(keys) -> str:
  """A leaf's path as rules name it: 'layers/qkv'."""
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', k)))
                  for k in keys)


def spec(path: str, leaf: Any, rules: Mapping[str, P] = RULES) -> P:
  """The PartitionSpec of one leaf, by the first rule that matches its path.

  Raises:
    ValueError: No rule matches.
  """
  for pattern, out in rules.items():
    if re.fullmatch(pattern, path):
      return out
  raise ValueError(f'no sharding rule for {path} {leaf.shape}')


def specs(params: Any, rules: Mapping[str, P] | None = None) -> Any:
  """The tree of PartitionSpecs of a parameter tree.

  Args:
    params: The decoder's tree or a LoRA tree; arrays or their shapes.
    rules: Regular expression for a whole path -> spec; None = the rules of
      this module.

  Raises:
    ValueError: A rule that matches nothing, or a leaf that no rule matches.
  """
  if rules is None:
    rules = RULES if 'layers' in params else LORA_RULES
  paths = {leaf_path(keys) for keys, _ in jax.tree.leaves_with_path(params)}
  for pattern in rules:
    if not any(re.fullmatch(pattern, path) for path in paths):
      raise ValueError(f'sharding rule {pattern!r} matches nothing')
  return jax.tree_util.tree_map_with_path(
      lambda keys, leaf: spec(leaf_path(keys), leaf, rules), params)


def shardings(mesh: Mesh, params: Any,
              rules: Mapping[str, P] | None = None) -> Any:
  """The tree of NamedShardings of a parameter tree.

  Raises:
    ValueError: As `specs`; or a mesh axis does not divide a dimension that it
      must split. Names leaf, dimension and axis.
  """
  def place(keys, leaf, spec):
    for size, axes in zip(leaf.shape, spec):
      ways = math.prod(mesh.shape[a] for a in axis_names(axes))
      if size % ways:
        raise ValueError(
            f'mesh axis {"·".join(axis_names(axes))}={ways} does not divide '
            f'{size}, of {leaf_path(keys)} {tuple(leaf.shape)}')
    return NamedSharding(mesh, lean(mesh, spec))
  return jax.tree_util.tree_map_with_path(place, params,
                                          specs(params, rules))


def lean(mesh, spec):
  """The spec without mesh axes of size 1, as in what a program returns.

  With them the same placement would not compare equal, and programs would be
  compiled again.
  """
  ways = lambda axes: math.prod(mesh.shape[a] for a in axis_names(axes))
  kept = [axes if ways(axes) > 1 else None for axes in spec]
  while kept and kept[-1] is None:
    kept.pop()
  return P(*kept)


def without_fsdp(spec):
  """The spec's entries, with None for fsdp."""
  return tuple(None if axes == 'fsdp' else axes for axes in spec)


def axis_names(entry) -> tuple[str, ...]:
  """The mesh axes that one entry of a PartitionSpec names."""
  return () if entry is None else (entry,) if isinstance(entry, str) else entry


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
  """Shardings of a TrainState: moments lie where their parameters do."""
  params = shardings(mesh, state.params)
  everywhere = NamedSharding(mesh, P())
  return state.replace(
      params=params, step=everywhere,
      opt_state=_map_copies(state.opt_state, state.params,
                            lambda _: params, lambda _: everywhere))


def _map_copies(opt_state, params, copy, other):
  """copy() of each part of an optimizer's state that is a tree like params.

  Such parts are moments. Each other leaf becomes other() of it.
  """
  like = jax.tree.structure(params)
  is_copy = lambda x: jax.tree.structure(x) == like
  return jax.tree.map(lambda x: copy(x) if is_copy(x) else other(x),
                      opt_state, is_leaf=is_copy)


# ------------------------------------------------------- inside a program
def constrain(x: jax.Array, *spec: Any) -> jax.Array:
  """x with its leading dimensions placed by `spec`.

  A dimension that its mesh axes do not divide stays whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  fits = lambda size, axes: size % math.prod(
      mesh.shape[a] for a in axis_names(axes)) == 0
  return jax.lax.with_sharding_constraint(x, P(*(
      axes if fits(size, axes) else None
      for size, axes in zip(x.shape, spec))))


def constrain_rows(tree: Any) -> Any:
  """Arrays [B, ...] split over rows."""
  return jax.tree.map(lambda a: constrain(a, ROWS), tree)


def constrain_params(params: Any) -> Any:
  """A parameter tree, or its gradient, placed where training keeps it."""
  return jax.tree.map(lambda a, spec: constrain(a, *spec), params,
                      specs(params))


def gather_layer(layer: Mapping[str, jax.Array], dtype: str
                 ) -> dict[str, jax.Array]:
  """One layer's parameters in the form in which it computes with them.

  Matrices are in `dtype` and whole along fsdp. They are gathered at once; XLA
  for TPU would otherwise send them around a ring, piece by piece, between
  partial products.
  """
  out = {}
  for name, a in layer.items():
    if a.ndim > 1:
      a = a.astype(dtype)
    axes = spec(f'layers/{name}', a)[1:]
    out[name] = constrain(a, *without_fsdp(axes))
  return out


def constrain_moments(opt_state: Any, params: Any) -> Any:
  """An optimizer's state, its moments placed like their parameters."""
  return _map_copies(opt_state, params, constrain_params, lambda x: x)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': the platform that programs are compiled for.

  It is that of the mesh, which may describe another machine's devices; without
  a mesh, that of the first device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return (jax.devices()[0].platform if mesh.empty
          else mesh.abstract_device.platform)


def row_ways() -> int:
  """Devices that rows are split over; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[a] for a in ROWS)
