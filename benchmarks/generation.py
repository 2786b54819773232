"""Generation without chunks: the rollout, plain JAX, tunix, transformers.

48 rows (6 prompts of 96 source tokens, 8 samples per prompt) write 128 tokens
each at temperature 1 and return their log-probs; no row ends early. Ours also
feeds the forced prefix token, so it takes 128 decode steps; the others take the
first token from the prefill and decode 127.
"""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from adasr_jax.core.protocol import TEXT, Protocol
from adasr_jax.core.types import Source
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from benchmarks import timing

PROMPTS, SAMPLES, SOURCE, NEW = 6, 8, 96, 128
CONFIG = decoder.DecoderConfig(
    vocab_size=512, num_layers=4, d_model=128, num_heads=4, num_kv_heads=2,
    head_dim=32, d_ff=384, rope_theta=1e6, norm_eps=1e-6, qk_norm=True,
    qkv_bias=False, tie_embedding=True, dtype='float32', remat='full')


class Endless(Protocol):
  """Allows only text, so that only the caps end a row."""

  @functools.cached_property
  def allowed(self):
    return np.broadcast_to(self.token_class == TEXT, (6, self.vocab_size))


PROTOCOL = Endless(
    vocab_size=512, eot=2, skip=3, end_think=4, eos=5, undecodable=(),
    prefix=(1,), thought_cap=2, deep_cap=NEW - 2, answer_cap=2,
    legality='free')
HOW_TO_INSTALL = (
    'in an environment of its own:\n'
    '    pip install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 '
    'flax==0.12.8 \\\n'
    '      torch==2.13.0 sentencex math-verify matplotlib')


def _rms(x, scale):
  return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def _rope(x, position):
  """x [B,heads,T,H], position [T]."""
  half = x.shape[-1] // 2
  angle = position[:, None] * CONFIG.rope_theta**(-jnp.arange(half) / half)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle),
                          b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


def _layer(w, x, position, cache):
  """One layer over x [B,T,D]; writes its keys to the cache at position."""
  c = CONFIG
  K, R = c.num_kv_heads, c.num_heads // c.num_kv_heads
  qkv = jnp.einsum('btd,dkrh->krbth', _rms(x, w['attn_norm']), w['qkv'])
  q = _rope(_rms(qkv[:, :R], w['q_norm']).reshape(
      -1, *qkv.shape[3:]), position).reshape(K, R, *qkv.shape[2:])
  k = _rope(_rms(qkv[:, R], w['k_norm']), position)  # [K,B,T,H]
  at = (0, 0, position[0], 0)
  keys = jax.lax.dynamic_update_slice(cache[0], k, at)
  values = jax.lax.dynamic_update_slice(cache[1], qkv[:, R + 1], at)
  scores = jnp.einsum('krbth,kbsh->krbts', q, keys) * c.head_dim**-0.5
  seen = jnp.arange(keys.shape[2]) <= position[:, None]
  probs = jax.nn.softmax(jnp.where(seen, scores, -1e30), -1)
  out = jnp.einsum('krbts,kbsh->krbth', probs, values)
  x = x + jnp.einsum('krbth,krhd->btd', out, w['out'])
  h = _rms(x, w['mlp_norm'])
  return x + (jax.nn.silu(h @ w['gate']) * (h @ w['up'])) @ w['down'], (
      keys, values)


@functools.partial(jax.jit, static_argnames='new')
def plain(params, prompts, key, *, new):
  """The baseline: simple JAX code in which every row has its own cache.

  Args:
    params: Parameter tree of adasr_jax.models.decoder.
    prompts: [B, S] int32, of equal length.
    key: Random key.
    new: Tokens to write per row.

  Returns:
    tokens, logp: [B, new].
  """
  B, S = prompts.shape
  layers = [jax.tree.map(lambda a: a[l], params['layers'])
            for l in range(CONFIG.num_layers)]
  shape = (CONFIG.num_kv_heads, B, S + new, CONFIG.head_dim)
  cache = [(jnp.zeros(shape), jnp.zeros(shape)) for _ in layers]

  def forward(tokens, position, cache):
    x, out = params['embedding'][tokens], []
    for w, kv in zip(layers, cache):
      x, kv = _layer(w, x, position, kv)
      out.append(kv)
    x = _rms(x[:, -1], params['final_norm'])
    return x @ params['embedding'].T, out

  def draw(logits, i):
    token = jax.random.categorical(jax.random.fold_in(key, i), logits)
    logp = jax.nn.log_softmax(logits)
    return token, jnp.take_along_axis(logp, token[:, None], 1)[:, 0]

  def step(carry, i):
    token, cache = carry
    logits, cache = forward(token[:, None], S + i[None] - 1, cache)
    token, logp = draw(logits, i)
    return (token, cache), (token, logp)

  logits, cache = forward(prompts, jnp.arange(S), cache)
  token, logp = draw(logits, 0)
  _, (tokens, logps) = jax.lax.scan(step, (token, cache),
                                    jnp.arange(1, new))
  return (jnp.concatenate([token[:, None], tokens.T], 1),
          jnp.concatenate([logp[:, None], logps.T], 1))


def prompts() -> Source:
  """The prompts, which arrive as a whole."""
  tokens = np.random.default_rng(0).integers(
      6, CONFIG.vocab_size, (PROMPTS, SOURCE)).astype(np.int32)
  same = lambda fill: np.full((PROMPTS, SOURCE), fill, np.int32)
  return Source(
      tokens=tokens, position=same(0) + np.arange(SOURCE, dtype=np.int32),
      phase=same(0), valid=same(1).astype(bool),
      num_chunks=np.zeros(PROMPTS, np.int32),
      problem_id=np.arange(PROMPTS, dtype=np.uint32))


def run(repeats: int) -> dict:
  """Measures, prints a table, returns the numbers."""
  source = prompts()
  params = jax.jit(decoder.init, static_argnums=0)(CONFIG, jax.random.key(0))
  rows = np.repeat(source.tokens, SAMPLES, 0)

  def ours(seed):
    target = jax.device_get(rollout(
        params, source, jax.random.key(seed), model_config=CONFIG,
        protocol=PROTOCOL, samples=SAMPLES, max_chunks=0, temperature=1.0))
    if target.valid.sum() != len(rows) * (NEW + 1):  # with the prefix token
      raise AssertionError(f'rollout wrote {target.valid.sum()} tokens')
    return target

  calls = {
      'adasr_jax rollout': ours,
      'plain JAX': lambda seed: jax.device_get(
          plain(params, rows, jax.random.key(seed), new=NEW))}
  installed = {name: importlib.util.find_spec(name) is not None
               for name in ('tunix', 'torch')}
  if installed['tunix']:
    from benchmarks.tunix_backend import Tunix
    tunix = Tunix(CONFIG, source=SOURCE, new=NEW)
    calls['tunix'] = lambda seed: tunix.generate(rows, seed)
  if installed['torch']:
    from benchmarks import transformers_backend
    torch = transformers_backend.Sampler(CONFIG, samples=SAMPLES, new=NEW)
    for n in transformers_backend.THREADS:
      calls[f'transformers, threads: {n}'] = lambda seed, n=n: torch.generate(
          source.tokens, seed, n)
  times = timing.interleaved(calls, repeats)
  best = times['adasr_jax rollout']['median']
  for row in times.values():
    row['tokens_per_s'] = len(rows) * NEW / row['median']
    row['ours_is_faster_by'] = row['median'] / best
  timing.show(
      f'generation: {len(rows)} rows x {NEW} tokens ({PROMPTS} prompts of '
      f'{SOURCE} tokens, {SAMPLES} samples per prompt)', times,
      'tokens_per_s ours_is_faster_by')
  for name, there in installed.items():
    if not there:
      print(f'  {name} is not installed; {HOW_TO_INSTALL}')
  return times
