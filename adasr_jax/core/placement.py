"""What lies where between two programs: born, moved, cast, fetched.

Training keeps parameters and moments split over fsdp; a rollout gets a copy
split only over `tensor`, in the compute dtype, once per step.
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
  """The parameters as a rollout reads them.

  Matrices in `dtype`, which is what the decoder casts them to anyway; split
  over `tensor` alone. Where that changes nothing, `params` itself.
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

  Where training keeps them, matrices in `dtype` as in `for_rollout`.
  """
  dtypes, _, tree = _rollout_form(params, dtype)
  return tree.unflatten([jnp.copy(a).astype(d) for a, d in zip(
      jax.tree.leaves(params), dtypes)])


def _rollout_form(params, dtype):
  """Leaf by leaf: dtype and PartitionSpec in a rollout; and the tree."""
  paths, tree = jax.tree.flatten_with_path(params)
  dtypes = tuple(jnp.dtype(jnp.float32 if 'norm' in leaf_path(k) else dtype)
                 for k, _ in paths)
  whole = tuple(P(*without_fsdp(spec)) for spec in jax.tree.leaves(
      specs(params), is_leaf=lambda s: isinstance(s, P)))
  return dtypes, whole, tree


def to_devices(tree: Any) -> Any:
  """Host arrays [B, ...] of all rows, each device getting its own.

  Every process holds all rows and hands its devices theirs.
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
  """A parameter tree as host arrays; a layer at a time on the devices."""
  if jax.process_count() == 1:
    return jax.device_get(params)
  layers = jax.tree.map(
      lambda a: np.stack([to_host(a[l]) for l in range(a.shape[0])]),
      params['layers'])
  ends = {k: to_host(v) for k, v in params.items() if k != 'layers'}
  return dict(ends, layers=layers)


def places(tree: Any) -> Any:
  """Shapes with the shardings of training; without a mesh, shapes alone.

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
  """f() of parameters, each device computing the part that it keeps."""
  like = places(jax.eval_shape(f))
  return jax.jit(f, out_shardings=jax.tree.map(lambda a: a.sharding, like))()


def place(params: Any) -> Any:
  """Parameters on their devices; those that are there already stay."""
  return jax.tree.map(lambda a, like: jax.device_put(a, like.sharding),
                      params, places(params))
