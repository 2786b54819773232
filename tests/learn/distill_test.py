"""Distillation: what a teacher makes of a rollout, and what is learned."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adasr_jax.core import visibility
from adasr_jax.core.types import TrainState
from adasr_jax.learn import distill
from adasr_jax.learn.distill import Distill, DistillConfig
from adasr_jax.learn import divergences
from adasr_jax.learn.divergences import Divergence
from adasr_jax.learn.losses import LossConfig
from adasr_jax.learn import packing
from adasr_jax.learn.update import UpdateBatch, update
from adasr_jax.models.attention import MASKED
from adasr_jax.models import decoder
from adasr_jax.models import weights
from adasr_jax.policy.rollout import rollout
from adasr_jax.policy import scoring
from adasr_jax.policy.scoring import Against, score, score_against
from adasr_jax.run.start import start
from adasr_jax.run import train
from configs import common
from configs import distill as distill_config
from configs import sft as sft_config
from tests.small import make_config, make_protocol, make_source

CONFIG = make_config()
OTHER = make_config(num_layers=1, d_model=24, num_heads=2, num_kv_heads=1,
                    head_dim=6, d_ff=20, tie_embedding=False)
PROTOCOL = make_protocol(thought_cap=5, deep_cap=6, answer_cap=4)
SOURCE, G = make_source(), 2
STATIC = dict(model_config=CONFIG, protocol=PROTOCOL, temperature=0.8)
SGD = optax.sgd(1.0)
CHUNKS = np.repeat(SOURCE.num_chunks, G)


@pytest.fixture(scope='module')
def teacher():
  tree = decoder.init(OTHER, jax.random.key(5))
  return tree | {'head': 3 * tree['head']}


@pytest.fixture(scope='module')
def batch(params):
  target = jax.device_get(rollout(params, SOURCE, jax.random.key(1),
                                  samples=G, max_chunks=4, **STATIC))
  zero = np.zeros_like(target.logp)
  return UpdateBatch(
      source=SOURCE, target=target, mask=target.sampled,
      deep=target.phase > CHUNKS[:, None], advantage=zero,
      old=target.logp_untruncated, reference=zero)


def method(config, teacher_config=OTHER, reads='stream', **loss) -> Distill:
  rest = {f.name: None for f in dataclasses.fields(Distill)}
  return Distill(**rest | dict(
      model_config=CONFIG, protocol=PROTOCOL, temperature=0.8, samples=G,
      mask_overlong=False, loss_config=LossConfig(**loss), config=config,
      teacher_config=teacher_config, reads=reads))


def step(params, batch, m: Distill, teacher=None, micro_batches=1):
  """Metrics of an update, and the gradient, which SGD at rate 1 shows."""
  against = None
  if m.config.divergence:
    against = Against(m.teacher_config, m.reads, Divergence(
        m.config.divergence, alpha=m.config.alpha, k=m.config.top_k))
  before = jax.tree.map(jnp.array, params)
  state, metrics = update(
      TrainState(before, SGD.init(before), jnp.int32(0)), batch,
      jnp.float32(1), None, teacher if against else None, against=against,
      loss=m.loss, optimizer=SGD, micro_batches=micro_batches, **STATIC)
  return metrics, jax.tree.map(lambda a, b: a - b, params, state.params)


def close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance),
               a, b)


# ------------------------------------------------------- whole vocabulary
def test_divergences_in_blocks_are_those_of_all_logits(
    params, teacher, batch, monkeypatch):
  protocol = dataclasses.replace(PROTOCOL, legality='masked')
  batch = packing.pack(batch, CONFIG.d_model)[0]
  # A free rollout has tokens that are not legal; their log-prob is MASKED.
  legal = protocol.allowed[batch.target.stage, batch.target.tokens]
  batch.target.sampled[:] &= legal
  given = batch.source, batch.target, batch.packing
  divergence = Divergence('bregman', alpha=0.5)

  def log_probs(params, config):
    target = batch.target
    hidden = decoder.target_hidden(
        params, config, batch.source, target.tokens[:, :-1],
        visibility.query_phase(target.phase), target.valid[:, :-1],
        batch.packing)
    x = decoder.logits(params, config, hidden) / 0.8
    return jax.nn.log_softmax(jnp.where(
        protocol.allowed[target.stage[:, 1:]], x, MASKED))

  q, p = log_probs(params, CONFIG), log_probs(teacher, OTHER)
  want = np.where(batch.target.sampled,
                  np.pad(divergence(q, p), ((0, 0), (1, 0))), 0)
  # Blocks of two tokens of each row.
  monkeypatch.setitem(scoring.HEAD_ELEMENTS, 'cpu',
                      4 * len(batch.target.tokens) * CONFIG.vocab_size)
  static = STATIC | dict(protocol=protocol)
  logp, entropy, other, got = score_against(
      params, teacher, *given, against=Against(OTHER, 'stream', divergence),
      **static)
  np.testing.assert_allclose(got, want, atol=2e-5)
  close((logp, entropy), score(params, *given, **static), atol=2e-5)
  np.testing.assert_allclose(
      other, score(teacher, *given, **static | dict(model_config=OTHER))[0],
      atol=2e-5)
  assert want.max() > 0.05 and (want >= -1e-6).all()


@pytest.mark.parametrize('name', divergences.DIVERGENCES)
def test_rows_that_stand_for_no_token_never_count(name, params, teacher, batch):
  """Whatever is in them, as in tables that are padded for a mesh."""
  unused = np.array(PROTOCOL.undecodable)
  far = lambda table: jnp.asarray(table).at[unused].set(1e3)
  untied = dataclasses.replace(CONFIG, tie_embedding=False)
  of = lambda params, teacher: score_against(
      params, teacher, batch.source, batch.target,
      against=Against(OTHER, 'stream', Divergence(name, k=4)),
      **STATIC | dict(model_config=untied))
  head = params | {'head': params['embedding']}
  want = of(head, teacher)
  got = of(head | {'head': far(head['head'])},
           teacher | {'head': far(teacher['head'])})
  close(got, want, rtol=1e-6, atol=1e-6)
  assert np.abs(want[3]).max() > 1e-2


def test_the_update_descends_the_divergence(params, teacher, batch):
  """In packed rows and two pieces, as in one and without packing."""
  m = method(DistillConfig(divergence='bregman', alpha=0.5, weight=2.0))
  packed, _ = packing.pack(batch, CONFIG.d_model, 2)
  metrics, gradient = step(params, packed, m, teacher, micro_batches=2)
  against = Against(OTHER, 'stream', Divergence('bregman', alpha=0.5))
  def mean(params):
    d = score_against(params, teacher, batch.source, batch.target,
                      against=against, **STATIC)[3]
    return 2 * jnp.where(batch.mask, d, 0).sum() / batch.mask.sum()
  value, want = jax.jit(jax.value_and_grad(mean))(params)
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-4)
  close(gradient, want, atol=1e-5)


def test_the_student_learns_nothing_from_itself(params, batch):
  batch = packing.pack(batch, CONFIG.d_model)[0]
  of = lambda **fields: method(  # the cap: it rescores what it wrote
      DistillConfig(**fields), CONFIG, behaviour_cap=1.0)
  for reward in divergences.REWARDS:
    got = of(reward=reward).scored(batch, params, params)
    assert not got.advantage.any() and got.reference[batch.mask].all()
  metrics, _ = step(params, got, of(divergence='reverse_kl'), params)
  assert metrics['grad_norm'] < 1e-6
  assert abs(metrics['teacher_kl/deep']) < 1e-5


# ---------------------------------------------------------------- rewards
def test_rewards_are_the_advantages(params, teacher, batch, monkeypatch):
  config = DistillConfig(reward='power', alpha=0.5, weight=3.0,
                         advantage_weight=0.5)
  monkeypatch.setattr(distill.HRPO, '_batch', lambda self, chosen: chosen)
  batch = method(config)._batch(batch.replace(
      advantage=np.ones_like(batch.advantage) / 2))
  got = method(config).scored(batch, params, teacher)
  p = score(teacher, batch.source, batch.target,
            **STATIC | dict(model_config=OTHER))[0]
  np.testing.assert_allclose(got.reference, p, atol=1e-5)
  r = np.exp(p / 2) - np.exp(batch.target.logp_untruncated / 2)
  np.testing.assert_allclose(
      got.advantage[batch.mask], (0.25 + 3 * r)[batch.mask], atol=1e-5)
  sections = {'distill': config}
  told = distill.metrics(sections, got)
  deep = r[batch.mask & batch.deep]
  np.testing.assert_allclose(told['teacher_reward/deep'], deep.mean(),
                             rtol=1e-4)
  np.testing.assert_allclose(told['teacher_reward_variance/deep'],
                             deep.var(), rtol=1e-3)
  # The estimate of the KL; and where the ratio is 1, the loss is -mean(A).
  terms = method(config).loss(batch.old, batch.old, got)
  total, tokens = terms['teacher_kl/deep']
  np.testing.assert_allclose(
      total / tokens, (batch.old - p)[batch.mask & batch.deep].mean(),
      rtol=1e-4)
  total, tokens = terms['loss']
  np.testing.assert_allclose(total / tokens, -got.advantage[batch.mask].mean(),
                             rtol=1e-4)


def test_normalisation_is_over_the_whole_batch(params, teacher, batch):
  got = method(DistillConfig(normalise='zscore')).scored(batch, params,
                                                         teacher)
  r = got.advantage[batch.mask]
  np.testing.assert_allclose((r.mean(), r.std()), (0, 1), atol=1e-4)


@pytest.mark.parametrize('terminal', ['keep', 'mask'])
def test_the_terminal_token(terminal, batch, monkeypatch):
  monkeypatch.setattr(distill.HRPO, '_batch', lambda self, chosen: chosen)
  got = method(DistillConfig(terminal=terminal))._batch(batch)
  ends = batch.mask & (batch.target.tokens == PROTOCOL.eos)
  assert ends.any()
  np.testing.assert_array_equal(
      got.mask, batch.mask & ~ends if terminal == 'mask' else batch.mask)


def test_the_reward_variance_by_slot_of_the_target(params, teacher, batch):
  config = DistillConfig(reward='log_ratio')
  told = [distill.metrics({'distill': config}, method(config).scored(
      b, params, teacher)) for b in (batch, packing.pack(
          batch, CONFIG.d_model)[0])]
  p = score(teacher, batch.source, batch.target,
            **STATIC | dict(model_config=OTHER))[0]
  r = np.asarray(p) - batch.old
  for a in told:
    names = [k for k in a if '/slots_' in k]
    assert names == [f'teacher_reward_variance/slots_{n}'
                     for n, first, _ in distill.SLOTS
                     if batch.mask[:, first:].any()] and len(names) > 2
    for name, first, end in distill.SLOTS[:len(names)]:
      np.testing.assert_allclose(
          a[f'teacher_reward_variance/slots_{name}'],
          r[:, first:end][batch.mask[:, first:end]].var(), rtol=1e-3)
    np.testing.assert_allclose(a['teacher_reward_peak'],
                               np.abs(r[batch.mask]).max(), rtol=1e-4)


def test_student_beside_teacher(params, teacher, batch):
  given = dict(teacher_config=OTHER, reads='stream', **STATIC)
  got = jax.jit(functools.partial(distill.beside, **given))(
      params, teacher, SOURCE, batch.target)
  against = Against(OTHER, 'stream', Divergence('reverse_kl'))
  kl = np.asarray(score_against(params, teacher, SOURCE, batch.target,
                                against=against, **STATIC)[3])
  for phase, mask in (('streaming', batch.mask & ~batch.deep),
                      ('deep', batch.mask & batch.deep)):
    np.testing.assert_allclose(got[f'reverse_kl/{phase}'], kl[mask].mean(),
                               rtol=1e-4)
    assert got[f'reverse_kl/{phase}'] > 0.01 < got[f'forward_kl/{phase}']
    assert 0 < got[f'top_mass_1/{phase}'] < got[f'top_mass_4/{phase}'] < 1
  own = distill.beside(params, params, SOURCE, batch.target,
                       **given | dict(teacher_config=CONFIG))
  assert abs(own['reverse_kl/deep']) < 1e-5
  assert own['top_mass_1/deep'] > got['top_mass_1/deep']
  # A teacher that reads all is another teacher.
  assert distill.beside(
      params, teacher, SOURCE, batch.target,
      **given | dict(reads='all'))['reverse_kl/streaming'] != (
          got['reverse_kl/streaming'])


# -------------------------------------------------------------- foresight
def test_a_teacher_that_reads_all_sees_what_is_to_come(params, batch):
  first = batch.mask & (batch.target.phase == 1)
  changed = batch.replace(source=dataclasses.replace(
      SOURCE, tokens=np.where(SOURCE.phase > 1, 9, SOURCE.tokens)))
  def teacher_logp(batch, reads):
    m = method(DistillConfig(), CONFIG, reads)
    return m.scored(batch, params, params).reference[first]
  np.testing.assert_allclose(teacher_logp(changed, 'stream'),
                             teacher_logp(batch, 'stream'), atol=1e-5)
  moved = teacher_logp(changed, 'all') - teacher_logp(batch, 'all')
  assert np.abs(moved).max() > 1e-2


def test_a_rollout_that_reads_all_is_scored_as_it_was(params):
  source = visibility.as_read(SOURCE, 'all')
  target = jax.device_get(rollout(params, source, jax.random.key(2),
                                  samples=G, max_chunks=4, **STATIC))
  np.testing.assert_array_equal(target.phase.max(1), CHUNKS + 1)
  logp, _ = score(params, source, target, **STATIC)
  np.testing.assert_allclose(logp, target.logp, atol=1e-4)
  with pytest.raises(ValueError, match="reads='most'"):
    visibility.as_read(SOURCE, 'most')


# -------------------------------------------------------------- end to end
def lines(workdir):
  return [r for r in map(json.loads, (workdir / 'metrics.jsonl').read_text()
                         .splitlines()) if r['kind'] == 'train']


def small(c):
  c.eval.at_start, c.eval.examples, c.eval.batch = False, 4, 4
  c.log.tensorboard = False
  return c


def test_the_warm_start_teaches_itself(tmp_path):
  c = small(distill_config.get_config('smoke'))
  c.data.prompts = c.rollout.samples = 2
  assert c.teacher.init == c.init == common.relative(common.WARM_START)
  train.train(start(c, tmp_path, 'test', jax.devices()[:1]))
  rows = lines(tmp_path)
  assert len(rows) == 2
  # Equal up to the rounding of decoding and scoring.
  assert abs(rows[0]['teacher_kl/streaming']) < 1e-5
  assert abs(rows[0]['teacher_reward/deep']) < 1e-5
  assert rows[0]['grad_norm'] < 1e-3


def test_another_decoder_teaches_over_the_vocabulary(tmp_path):
  """A LoRA student on two devices, its random teacher reads everything."""
  shape = make_config(vocab_size=206, num_layers=1)
  weights.save(tmp_path / 'teacher.safetensors',
               decoder.init(shape, jax.random.key(3)), shape)
  c = small(distill_config.get_config(
      f'smoke,reads=all,teacher={tmp_path / "teacher.safetensors"}'))
  c.init = ''
  c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 32
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
  c.distill.divergence, c.lora.rank, c.mesh.fsdp = 'top_k', 2, 2
  c.loss.micro_batches, c.mesh.data = 2, 1
  train.train(start(c, tmp_path / 'run', 'test', jax.devices()[:2]))
  rows = lines(tmp_path / 'run')
  assert len(rows) == 2
  for row in rows:
    assert row['grad_norm'] > 1e-3
    assert 0 < row['divergence/streaming'] < 20
    phases = sorted((row['divergence/streaming'], row['divergence/deep']))
    assert phases[0] <= row['loss'] <= phases[1]
    assert not any(k.startswith('teacher_reward') for k in row)


def test_a_mesh_gives_the_same_rewards(tmp_path):
  """As one device: rewards of another decoder, and what is learned of them."""
  shape = make_config(vocab_size=206, num_layers=1)
  weights.save(tmp_path / 'teacher.safetensors',
               decoder.init(shape, jax.random.key(3)), shape)
  rows = {}
  for devices in (1, 4):
    c = small(distill_config.get_config(
        f'smoke,teacher={tmp_path / "teacher.safetensors"}'))
    c.init, c.steps = '', 1
    c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 32
    c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 2, 8
    c.distill.reward, c.distill.normalise = 'log_ratio', 'zscore'
    if devices > 1:
      c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 2
    workdir = tmp_path / str(devices)
    train.train(start(c, workdir, 'test', jax.devices()[:devices]))
    rows[devices], = ({k: v for k, v in r.items()
                       if not k.startswith(('time/', 'tokens_per_s/'))}
                      for r in lines(workdir))
  assert rows[1]['grad_norm'] > 1e-3 and rows[1]['teacher_reward_peak'] > 0.1
  assert rows[1].keys() == rows[4].keys()
  for k, v in rows[1].items():
    if isinstance(v, float):
      np.testing.assert_allclose(rows[4][k], v, atol=1e-5, rtol=1e-3,
                                 err_msg=k)

def test_supervised_training_may_read_all(tmp_path):
  c = small(sft_config.get_config('smoke'))
  c.sft.reads = 'all'
  c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 32
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
  run = start(c, tmp_path, 'test', jax.devices()[:1])
  data = run.parts.data
  source = data.collate(data.train(0, 2)).source
  assert not source.phase.any() and (source.num_chunks > 0).all()
  got = run.method.collect(None, step=0, cursor=0).batch
  assert not got.source.phase.any()
  chunks = source.num_chunks[:, None]
  np.testing.assert_array_equal(got.deep[:2], got.target.phase[:2] > chunks)
