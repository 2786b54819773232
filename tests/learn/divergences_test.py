"""Rewards against the divergences that their exact expectation descends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adasr_jax.learn import divergences
from adasr_jax.learn.divergences import (
    Divergence, TopMass, normalised, power, reward)
from adasr_jax.models.attention import MASKED

V, ALPHAS = 7, (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
LEGAL = np.array([1, 1, 0, 1, 1, 1, 1], bool)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def logits(seed):
  """Of a student and a teacher, at temperature 0.8, one token not legal."""
  r = np.random.default_rng(seed)
  return [np.where(LEGAL, 3 * r.normal(size=V) / 0.8, MASKED)
          for _ in range(2)]


def log_softmax(x):
  return x - np.logaddexp.reduce(x)


def expected_gradient(x, r):
  """sum_o q r_o d log q(o) / d logits, with d log q(o) = e_o - q."""
  q = np.exp(log_softmax(x))
  return (q * r) @ (np.eye(V) - q)


def literal(alpha):
  """The Bregman divergence as it is written in the paper's terms."""
  def f(x, log_p):
    q, p = jax.nn.softmax(x), jnp.exp(log_p)
    return (q**(1 + alpha) / (1 + alpha) - q * p**alpha
            + alpha / (1 + alpha) * p**(1 + alpha)).sum()
  return f


def of(divergence):
  """The divergence as a function of the student's logits."""
  return lambda x, log_p: divergence(jax.nn.log_softmax(x), log_p)


@pytest.mark.parametrize('alpha', ALPHAS)
def test_the_expected_power_reward_descends_the_bregman_divergence(
    alpha, float64):
  for seed in range(5):
    x, y = logits(seed)
    log_q, log_p = log_softmax(x), log_softmax(y)
    r = power(log_p, log_q, alpha)
    ours = of(Divergence('bregman', alpha=alpha))
    value, gradient = jax.value_and_grad(ours)(x, log_p)
    want, true = jax.value_and_grad(literal(alpha))(x, log_p)
    np.testing.assert_allclose(value, want, atol=1e-12)
    np.testing.assert_allclose(gradient, true, atol=1e-10)
    np.testing.assert_allclose(expected_gradient(x, r), -true, atol=1e-10)
    # Not the gradient of the same sum with the reward differentiated, too.
    naive = jax.grad(lambda x: (jax.nn.softmax(x) * power(
        jnp.asarray(log_p), jax.nn.log_softmax(x), alpha)).sum())(x)
    assert np.abs(naive + true).max() > 0.02 * np.abs(true).max()


def test_the_expected_log_ratio_descends_the_reverse_kl(float64):
  for seed in range(5):
    x, y = logits(seed)
    r = log_softmax(y) - log_softmax(x)
    gradient = jax.grad(of(Divergence('reverse_kl')))(x, log_softmax(y))
    np.testing.assert_allclose(expected_gradient(x, r), -gradient,
                               atol=1e-10)


def test_a_small_alpha_is_the_log_ratio(float64):
  x, y = logits(0)
  log_p = log_softmax(y)
  kl = jax.value_and_grad(of(Divergence('reverse_kl')))(x, log_p)
  errors = []
  for alpha in (1e-2, 1e-3, 1e-4):
    got = jax.value_and_grad(of(Divergence('bregman', alpha=alpha)))(x, log_p)
    errors.append(max(abs(got[0] / alpha - kl[0]),
                      np.abs(got[1] / alpha - kl[1]).max()))
    np.testing.assert_allclose(
        power(log_p[LEGAL], log_softmax(x)[LEGAL], alpha) / alpha,
        (log_p - log_softmax(x))[LEGAL], rtol=20 * alpha)
  # The error is of first order in alpha.
  assert errors[2] < 2e-3 and errors[0] > 5 * errors[1] > 25 * errors[2]


# ---------------------------------------------------------------- rewards
def some_logps(dtype=np.float32):
  r = np.random.default_rng(1)
  return (-r.exponential(8, 1000)).astype(dtype), (
      -r.exponential(8, 1000)).astype(dtype)


@pytest.mark.parametrize('name', divergences.REWARDS)
def test_ranges_and_signs(name):
  p, q = some_logps()
  r = reward(name, p, q, alpha=0.5, clip=1.5, scale=5.0)
  assert r.dtype == np.float32
  np.testing.assert_array_equal(np.sign(r), np.sign(p - q))
  most = {'log_ratio': np.inf, 'log_ratio_clip': 1.5}.get(name, 1.0)
  assert np.abs(r).max() <= most
  assert not reward(name, p, p, alpha=5.0, clip=1.0, scale=5.0).any()
  on_device = reward(name, jnp.asarray(p), jnp.asarray(q), alpha=0.5,
                     clip=1.5, scale=5.0)
  np.testing.assert_allclose(on_device, r, atol=1e-6)


def test_half_and_one_are_roots_and_probabilities():
  p, q = some_logps(np.float64)
  np.testing.assert_allclose(power(p, q, 1.0), np.exp(p) - np.exp(q),
                             atol=1e-15)
  np.testing.assert_allclose(
      power(p, q, 0.5), np.sqrt(np.exp(p)) - np.sqrt(np.exp(q)), atol=1e-15)


def test_powers_underflow_where_the_module_says():
  of = lambda p, q, alpha: float(power(
      np.float32(np.log(p)).reshape(1), np.float32(np.log(q)).reshape(1),
      alpha)[0])
  for alpha, p in ((5., 9.2e-10), (50., .1249), (500., .8121)):
    assert of(p, p / 2, alpha) == 0.0
    assert of(1.02 * p, p / 2, alpha) > 0
  # What overflows or loses digits as a difference does neither here.
  assert of(0.999, 1e-38, 500.) == pytest.approx(.999**500, rel=1e-4)
  p, q = np.float32([-2.0]), np.float32([-2.0 - 1e-5])
  exact = np.exp(5 * p.astype(float)) - np.exp(5 * q.astype(float))
  np.testing.assert_allclose(power(p, q, 5.0), exact, rtol=1e-5)
  as_difference = np.exp(5 * p) - np.exp(5 * q)
  assert abs(as_difference / exact - 1) > 1e-4


def test_normalisation():
  r = np.array([[3., -1., 9.], [-4., 0., 2.]], np.float32)
  mask = np.array([[1, 1, 0], [1, 1, 1]], bool)
  np.testing.assert_array_equal(normalised(r, mask, 'none'),
                                [[3, -1, 0], [-4, 0, 2]])
  np.testing.assert_allclose(normalised(r, mask, 'sign_max'),
                             [[1, -.25, 0], [-1, 0, 2 / 3]], rtol=1e-6)
  # Mean 0, population variance 30 / 5; entries outside the mask do not count.
  np.testing.assert_allclose(normalised(r, mask, 'zscore'),
                             np.where(mask, r / np.sqrt(6), 0), rtol=1e-6)
  for how in divergences.NORMALISERS:
    assert not normalised(np.zeros((1, 2)), np.ones((1, 2), bool), how).any()
    assert not normalised(r, np.zeros_like(mask), how).any()
  # Rounding stays rounding.
  noise = np.array([[1e-7, -1e-7]])
  for how in ('sign_max', 'zscore'):
    assert abs(normalised(noise, np.ones((1, 2), bool), how)).max() < 2e-4
  positive = np.array([[1., 2.]])
  np.testing.assert_array_equal(
      normalised(positive, np.ones((1, 2), bool), 'sign_max'), [[.5, 1.]])


# ----------------------------------------------------- over the vocabulary
@pytest.mark.parametrize('name', divergences.DIVERGENCES)
def test_equal_policies_have_no_divergence_and_no_gradient(name):
  x = jnp.asarray(logits(3)[0], jnp.float32)
  d = of(Divergence(name, alpha=5.0, k=3))
  value, gradient = jax.value_and_grad(d)(x, jax.nn.log_softmax(x))
  assert abs(float(value)) < 1e-6 and np.abs(gradient).max() < 1e-6


def test_divergences_are_sums_over_tokens(float64):
  x, y = logits(4)
  log_q, log_p = log_softmax(x), log_softmax(y)
  q, p = np.exp(log_q), np.exp(log_p)
  terms = {
      'reverse_kl': [q[o] * (log_q[o] - log_p[o]) for o in range(V)],
      'forward_kl': [p[o] * (log_p[o] - log_q[o]) for o in range(V)],
      'bregman': [(q[o] - p[o])**2 / 2 for o in range(V)]}
  for name, values in terms.items():
    np.testing.assert_allclose(Divergence(name)(log_q, log_p), sum(values),
                               rtol=1e-12)
  for k in range(1, V + 3):
    own = np.argsort(-p)[:min(k, LEGAL.sum())]
    rest = np.setdiff1d(np.flatnonzero(LEGAL), own)
    want = sum(terms['reverse_kl'][o] for o in own)
    if len(rest):
      want += q[rest].sum() * np.log(q[rest].sum() / p[rest].sum())
    got = Divergence('top_k', k=k)(log_q, log_p)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    # One bucket knows less; all tokens alone are the whole divergence.
    assert -1e-12 < got <= sum(terms['reverse_kl']) + 1e-12
  np.testing.assert_allclose(got, sum(terms['reverse_kl']), rtol=1e-9)


def test_without_a_tail_top_k_would_be_negative(float64):
  """What the bucket is for: q may fall where only the top k are counted."""
  log_p = np.log(np.array([.5, .3, .1, .05, .03, .01, .01]))
  log_q = np.log(np.array([.1, .1, .2, .2, .2, .1, .1]))
  own = (np.exp(log_q) * (log_q - log_p))[:2].sum()
  assert own < 0 < Divergence('top_k', k=2)(log_q, log_p)


def test_mass_on_the_teachers_top_tokens(float64):
  q, p = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.1, 0.3, 0.1])
  mass = lambda k: float(TopMass(k)(np.log(q), np.log(p)))
  # By the student's own order they would be 0.4 and 0.7.
  assert mass(1) == pytest.approx(0.1)
  assert mass(2) == pytest.approx(0.4)
  assert mass(3) == pytest.approx(1.0)  # both at the tie
  assert mass(9) == pytest.approx(1.0)  # more than there are
