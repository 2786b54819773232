"""Ahead of time: counts compared with those by hand, and refusals."""

import dataclasses
import importlib.util
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.config import sections
from adasr_jax.core import sharding
from adasr_jax.learn.hrpo import loss_of
from adasr_jax.learn.update import update
from adasr_jax.models import attention as kernels
from adasr_jax.policy.rollout import rollout
from adasr_jax.run import factories
from adasr_jax.tools.aot import hlo
from adasr_jax.tools.aot import programs as aot
from adasr_jax.tools.aot import report as aot_report
from configs import hrpo

SIZES = dict(num_layers=2, d_model=256, num_heads=8, num_kv_heads=4,
             head_dim=128, d_ff=512, vocab_size=1024, dtype='bfloat16')
with_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='libtpu is not installed (requirements-dev.txt has it)')


def config(**mesh):
  """The demo's config with heads and widths that meshes divide."""
  c = hrpo.get_config()
  c.init = ''
  c.model.update(SIZES)
  c.tokenizer.kind = 'folder'
  c.data.prompts, c.rollout.samples, c.data.lengths = 4, 4, (128,)
  c.data.max_chunks = 3
  c.rollout.thought_cap, c.rollout.deep_cap, c.rollout.answer_cap = 32, 24, 4
  c.mesh.update(mesh)
  return c


@pytest.mark.parametrize('remat,attention', [
    ('full', 'einsum'), ('none', 'einsum'), ('full', 'blockwise')])
def test_the_programs_products_are_those_by_hand(remat, attention,
                                                 monkeypatch):
  monkeypatch.setattr(kernels, 'BLOCK', 64)  # divides all lengths
  c = config(data=1, fsdp=2, tensor=4)
  c.model.dtype = 'float32'  # CPU computes bfloat16 differently
  c.model.remat, c.model.attention = remat, attention
  decoder = aot.decoder_config(c)
  protocol = aot.protocol_of(c, decoder.vocab_size)
  static = dict(model_config=decoder, protocol=protocol, temperature=1.0)
  with jax.set_mesh(factories.mesh(sections(c))):
    s = aot.shapes(c, decoder, protocol)
    key, rate = jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))
    got = {
        'rollout': rollout.lower(s['policy'], s['source'], key, samples=4,
                                 max_chunks=3, **static),
        'update': update.lower(
            s['state'], s['batch'], rate, None, micro_batches=1,
            loss=loss_of(sections(c)['loss'].loss()),
            optimizer=factories.optimizer(sections(c)),
            **static)}
    by_hand = aot_report.flops(c, decoder, protocol)
  for name, lowered in got.items():
    cost = hlo.analyse(lowered.compile().as_text())
    assert 8 * cost.flops == pytest.approx(by_hand[name][0], rel=.02), name
    assert cost.collectives  # fsdp gathers, tensor sums


def test_what_is_needed_is_less_than_what_is_done():
  c = config(data=1, fsdp=2, tensor=4)
  decoder = aot.decoder_config(c)
  for done, needed in aot_report.flops(
      c, decoder, aot.protocol_of(c, decoder.vocab_size)).values():
    assert 0 <= needed <= done


@pytest.mark.parametrize('topology', ['v7x:2x2', 'v5p', 'v5p:', 'v5e:4xx4',
                                      '2x2', ''])
def test_an_invalid_topology_is_named(topology):
  with pytest.raises(ValueError, match=f"topology='{topology}' is not CHIP"):
    aot.devices(topology)


def test_a_missing_libtpu_is_reported(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"needs libtpu: pip install 'jax\[tpu"):
    aot.devices('v5e:2x2')


def test_other_methods_are_refused():
  c = config()
  c.lora.rank = 4
  with pytest.raises(ValueError, match='lora.rank=4'):
    aot.compile_run(c, 'v5e:2x2')


@pytest.mark.parametrize('most,knob', [
    ('optimizer', 'optim.mu_dtype'), ('rollout copy', 'mesh.tensor'),
    ('KV cache', 'rollout.samples')])
def test_a_refusal_names_the_largest_part_and_its_knob(most, knob):
  parts = dict.fromkeys(aot_report.KNOBS, 10**9) | {most: 7 * 10**9}
  said = aot_report.refusal('rollout', 18e9, parts, 16e9)
  assert said.startswith('does not fit: the rollout needs 18.0 GB of 16.0 GB')
  assert f'{most} 7.0' in said and knob in said.partition('helps most')[2]


def test_a_collective_sends_what_a_ring_does():
  one = hlo.Collective('all-gather', '', bytes=800, group=4, times=3, where='')
  assert aot_report.on_links(one) == 3 * 600
  assert aot_report.on_links(
      dataclasses.replace(one, kind='all-reduce')) == 3 * 1200
  assert aot_report.on_links(
      dataclasses.replace(one, kind='collective-permute')) == 3 * 800


@pytest.mark.parametrize('name', ['qwen3_0_6b', 'qwen3_4b', 'qwen3_32b'])
def test_the_papers_sizes_are_valid_without_their_files(name):
  c = hrpo.get_config(name)
  config_lib.validate(c, files=False)
  with pytest.raises(ValueError, match='is not a file'):
    config_lib.validate(c)
  protocol = aot.protocol_of(c, c.model.vocab_size)
  assert protocol.max_target(c.data.max_chunks) == 1024


# ------------------------------------------------------------ with a compiler
@with_libtpu
@pytest.mark.parametrize('topology', ['v5e:3x5', 'v5p:1x1x1'])
def test_an_impossible_slice_is_named(topology):
  with pytest.raises(ValueError, match=f"topology='{topology}': "):
    aot.devices(topology)


@with_libtpu
def test_a_mesh_that_does_not_fit_the_slice_is_named():
  with pytest.raises(ValueError, match='mesh data=1, fsdp=3, tensor=1 does '
                                       'not fit 4 tpu'):
    aot.compile_run(config(data=1, fsdp=3, tensor=1), 'v5e:2x2')


@with_libtpu
@pytest.mark.parametrize('topology,tensor', [
    ('v5p:4x4x4', 2), ('v5p:2x2x4', 8), ('v5e:4x4', 8), ('v6e:8x8', 4)])
def test_devices_that_share_a_matrix_are_neighbours(topology, tensor):
  mesh = sharding.make_mesh(dict(data=1, fsdp=-1, tensor=tensor),
                            aot.devices(topology))
  at = np.array([d.coords for d in mesh.devices[0, 0]])
  assert math.prod(1 + at.max(0) - at.min(0)) == tensor  # a box of chips


@with_libtpu
def test_a_run_is_compiled_for_a_slice(monkeypatch):
  monkeypatch.setattr(kernels, 'BLOCK', 128)  # divides all lengths
  c = config(data=1, fsdp=2, tensor=2)
  c.loss.kl_weight, c.loss.behaviour_cap = .05, 2.0
  summary = aot.summary(c, 'v5e:2x2', aot.compile_run(c, 'v5e:2x2'))
  assert list(summary['programs']) == ['cast', 'rollout', 'old', 'reference',
                                       'update']
  # In the compute dtype, sharded like the parameters.
  assert 2 * summary['memory']['reference'] == pytest.approx(
      summary['memory']['parameters'], rel=.01)
  for name, p in summary['programs'].items():
    held = sum(n for k, n in aot_report.held(name, summary['memory']).items()
               if k not in ('activations', 'gradients', 'KV cache'))
    assert held <= p['peak'] < summary['hbm']
  # The rollout's copy lies there until both have scored.
  for name in ('old', 'reference'):
    assert summary['programs'][name]['peak'] >= sum(
        summary['memory'][k] for k in (
            'parameters', 'optimizer', 'reference', 'rollout copy'))
  _, rolled, old, scored, updated = summary['programs'].values()
  for p in (rolled, old, scored, updated):
    assert p['flops'] == pytest.approx(p['flops_by_hand'], rel=.02)
    assert 0 < p['seconds']['XLA'] and p['bytes'] > 0
    assert p['cycles'] > 0 and p['seconds']['kernels'] > 0
  vocab = c.model.vocab_size
  for x in rolled['collectives']:  # no logits travel, no cache, no embedding
    assert f',{vocab}]' not in x['shape'] and x['group'] == 2
    assert x['times'] < 10 or x['bytes'] < 8 * vocab
  assert 'reduce-scatter' in {x['kind'] for x in updated['collectives']}
  text = aot_report.report(summary)
  assert 'peak, by XLA' in text and 'v5e:2x2: 4 chips' in text


@with_libtpu
def test_what_cannot_fit_is_refused_before_it_is_compiled():
  said = subprocess.run(
      [sys.executable, '-m', 'adasr_jax.tools.aot', '--topology=v5e:4x4',
       '--config=configs/hrpo.py:qwen3_32b'], text=True, capture_output=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, timeout=120)
  assert said.returncode == 1 and not said.stdout
  last = said.stderr.strip().splitlines()[-1]
  assert last.startswith('error: does not fit: the cast needs at')
