"""LoRA (low-rank adaptation): training changes a second, small tree.

  W' = W + (alpha / rank) A B,   A [in, rank], B [rank, out]

for the chosen matrices of every layer. A is random and B zero at the start, so
that the policy starts as the frozen model. Training adds A B layer by layer
inside the decoder's scan, so that the gradient with respect to W' exists for
only one layer at a time; rollouts and exports get all of W' at once.

Source: arXiv 2106.09685. q, k and v of a layer are one matrix here, so they
share A; each has its own columns of B.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from adasr_jax.core.options import option
from adasr_jax.core import sharding
from adasr_jax.core.types import Array

# A layer's matrix -> how many of its axes (without L) are inputs.
TARGETS = {'qkv': 1, 'out': 3, 'gate': 1, 'up': 1, 'down': 1}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """LoRA's options. With rank > 0 the model's own parameters are frozen.

  Attributes:
    rank: 0 = off.
    alpha: What is added is scaled by alpha / rank.
    targets: Names in TARGETS, the matrices that are changed.
  """
  rank: int = option(0, least=0, most=2**12)
  alpha: float = option(16.0, above=0, most=1e6)
  targets: tuple[str, ...] = option(tuple(TARGETS), choices=tuple(TARGETS),
                                    some=True)


@struct.dataclass
class Frozen:
  """What a LoRA tree adds to.

  Attributes:
    params: The decoder's parameter tree.
    scale: alpha / rank.
  """
  params: Any
  scale: float = struct.field(pytree_node=False)


def init(key: Array, params: Any, *, rank: int, targets: Sequence[str]
         ) -> Any:
  """{target: {'a': [L, in, rank], 'b': [L, rank, out...]}} float32.

  Args:
    key: Random key.
    params: The decoder's parameters, or their shapes.
    rank: > 0.
    targets: Names in TARGETS.

  Raises:
    ValueError: An unknown target.
  """
  out = {}
  for i, name in enumerate(targets):
    if name not in TARGETS:
      raise ValueError(f'LoRA target {name!r} is not one of '
                       f'{", ".join(TARGETS)}')
    L, *shape = params['layers'][name].shape
    fan_in = math.prod(shape[:TARGETS[name]])
    a = jax.random.normal(jax.random.fold_in(key, i), (L, fan_in, rank))
    out[name] = {'a': a * fan_in**-0.5,
                 'b': jnp.zeros((L, rank, *shape[TARGETS[name]:]))}
  return out


def attach(frozen: Frozen | None, params: Any) -> Any:
  """The decoder's tree with the LoRA tree inside, for `merge_layer`.

  Args:
    frozen: None if `params` is the decoder's tree itself.
    params: What is trained.
  """
  if frozen is None:
    return params
  tree = {k: dict(a=v['a'], b=frozen.scale * v['b'])
          for k, v in params.items()}
  return dict(frozen.params, layers=dict(frozen.params['layers'], lora=tree))


def merge_layer(layer: Any) -> Any:
  """One layer's parameters (no L), with the LoRA of `attach` added to them."""
  if 'lora' not in layer:
    return layer
  out = {k: v for k, v in layer.items() if k != 'lora'}
  for name, ab in layer['lora'].items():
    flat = ab['a'] @ ab['b'].reshape(ab['b'].shape[0], -1)
    out[name] = out[name] + flat.reshape(out[name].shape).astype(
        out[name].dtype)
  return out


@jax.jit
def _merged(layers):
  return {k: sharding.constrain(a, *sharding.spec(f'layers/{k}', a))
          for k, a in jax.lax.map(merge_layer, layers).items()}


def merge(frozen: Frozen | None, params: Any) -> Any:
  """The decoder's tree with A B added; `params` itself without `frozen`."""
  if frozen is None:
    return params
  layers = attach(frozen, params)['layers']
  changed = _merged({k: layers[k] for k in (*params, 'lora')})
  return dict(frozen.params, layers=frozen.params['layers'] | changed)
