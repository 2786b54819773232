"""What a profile shows of the decoder, and what its modules share."""

import jax
import jax.numpy as jnp
import pytest

from adasr_jax.models import decoder
from tests.small import make_config, make_source

CONFIG, SOURCE = make_config(), make_source()


def step(params):
  P = SOURCE.tokens.shape[0]
  kv = (jnp.zeros((CONFIG.num_layers, P, CONFIG.num_kv_heads, 8,
                   CONFIG.head_dim)),) * 2
  row = jnp.zeros(P, jnp.int32)
  return decoder.decode_step(
      params, decoder.by_layer(params['layers']), CONFIG,
      decoder.for_decoding(kv), row, decoder.for_decoding(kv), row, row)


@pytest.mark.parametrize('scope,part', [
    ('prefill', lambda params: decoder.prefill(params, CONFIG, SOURCE)),
    ('decode', step),
    ('head', lambda params: decoder.logits(
        params, CONFIG, jnp.zeros((1, CONFIG.d_model))))])
def test_a_profile_names_the_parts(params, scope, part):
  text = jax.jit(part).lower(params).as_text(debug_info=True)
  assert f'/{scope}/' in text
