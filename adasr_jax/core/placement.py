"""Where arrays lie between two programs: created, moved, cast, fetched.

Training keeps parameters and moments split over `fsdp` and `tensor`. Once per
step a rollout gets a copy split only over `tensor`, in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from adasr_jax.core.sharding import (
    ROWS, constrain, leaf_path, lean, row_ways, shardings, specs,
    state_shardings, without_fsdp)
from adasr_jax.core.types import TrainState


@functools.partial(jax.jit, static_argnames=('dtype', 'specs'))
def _cast(leaves, *, dtype, specs):
  return [constrain(a.astype(d), *s)
          for a, d, s in zip(leaves, dtype, specs)]


def for_rollout(params: Any, dtype: str) -> Any:
  """The parameters as a rollout reads them, or `params` if nothing changes.

  Matrices are in `dtype`, to which the decoder casts them anyway, and split
  only over `tensor`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  dtypes, specs, tree = _rollout_form(params, dtype)
  leaves = jax.tree.leaves(params)
  if ((mesh.empty or mesh.shape['fsdp'] == 1)
      and all(a.dtype == d for a, d in zip(leaves, dtypes))):
    return params
  return tree.unflatten(_cast(leaves, dtype=dtypes, specs=specs))


def narrow(params: Any, dtype: str) -> Any:
  """A copy of the parameters for a policy that only scores.

  Matrices are in `dtype`, as in `for_rollout`, but lie where training keeps
  them.
  """
  dtypes, _, tree = _rollout_form(params, dtype)
  return tree.unflatten([jnp.copy(a).astype(d) for a, d in zip(
      jax.tree.leaves(params), dtypes)])


def _rollout_form(params, dtype):
  """Each leaf's dtype and PartitionSpec in a rollout, and the tree's shape."""
  paths, tree = jax.tree.flatten_with_path(params)
  dtypes = tuple(jnp.dtype(jnp.float32 if 'norm' in leaf_path(k) else dtype)
                 for k, _ in paths)
  whole = tuple(P(*without_fsdp(spec)) for spec in jax.tree.leaves(
      specs(params), is_leaf=lambda s: isinstance(s, P)))
  return dtypes, whole, tree


@jax.jit
def _finite(leaves):
  return [jnp.isfinite(a).all() for a in leaves]


def nonfinite(tree: Any) -> list[str]:
  """Paths of the leaves that hold NaN or an infinity; [] where all is well."""
  leaves = jax.tree.leaves_with_path(tree)
  fine = jax.device_get(_finite([a for _, a in leaves]))
  return [leaf_path(k) for (k, _), ok in zip(leaves, fine) if not ok]


def to_devices(tree: Any) -> Any:
  """Host arrays [B, ...] of all rows, on the devices: each gets its own rows.

  Every process must hold all rows.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  mesh = jax.sharding.get_mesh()
  def place(a):
    a = np.asarray(a)
    return jax.make_array_from_callback(
        a.shape, _of_rows(mesh, a), lambda index: a[index])
  return jax.tree.map(place, tree)


def row_places(tree: Any) -> Any:
  """Shapes [B, ...] with the shardings that `to_devices` gives."""
  mesh = jax.sharding.get_mesh()
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=_of_rows(mesh, a)), tree)


def _of_rows(mesh, a):
  split = a.ndim and a.shape[0] % row_ways() == 0
  return NamedSharding(mesh, P(ROWS) if split else P())


def to_host(tree: Any) -> Any:
  """All rows of device arrays, as host arrays, on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils
  return multihost_utils.process_allgather(tree, tiled=True)


def params_to_host(params: Any) -> Any:
  """A parameter tree as host arrays; devices gather one layer at a time."""
  if jax.process_count() == 1:
    return jax.device_get(params)
  layers = jax.tree.map(
      lambda a: np.stack([to_host(a[l]) for l in range(a.shape[0])]),
      params['layers'])
  ends = {k: to_host(v) for k, v in params.items() if k != 'layers'}
  return dict(ends, layers=layers)


def places(tree: Any) -> Any:
  """Shapes with the shardings of training; without a mesh, only shapes.

  Args:
    tree: Parameters or a TrainState; arrays or their shapes.

  Raises:
    ValueError: See `shardings`.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
                        tree)
  where = (state_shardings if isinstance(tree, TrainState) else shardings)(
      mesh, tree)
  return jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree,
      where)


def rollout_places(params: Any, dtype: str) -> Any:
  """Shapes of the parameters with the dtypes and shardings of `for_rollout`."""
  mesh = jax.sharding.get_mesh()
  dtypes, specs, tree = _rollout_form(params, dtype)
  return tree.unflatten([
      jax.ShapeDtypeStruct(a.shape, d, sharding=NamedSharding(
          mesh, lean(mesh, spec)))
      for a, d, spec in zip(jax.tree.leaves(params), dtypes, specs)])


def born(f: Callable[[], Any]) -> Any:
  """The parameters f(); each device computes the part that it keeps."""
  like = places(jax.eval_shape(f))
  return jax.jit(f, out_shardings=jax.tree.map(lambda a: a.sharding, like))()


def place(params: Any) -> Any:
  """Parameters moved to where training keeps them, unless there already."""
  return jax.tree.map(lambda a, like: jax.device_put(a, like.sharding),
                      params, places(params))
