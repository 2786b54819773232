"""From a model folder through training back to a model folder."""

import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from adasr_jax import config as config_lib
from adasr_jax.config import sections
from adasr_jax.core.types import TrainState
from adasr_jax.data import tokenizer as tl
from adasr_jax.models import decoder, hf, hf_config
from adasr_jax.run import checkpoint
from adasr_jax.run import factories
from adasr_jax.run.start import start
from adasr_jax.run import train
from adasr_jax.tools.export import export
from configs import common
from configs import eval as eval_config
from tests.data.tokenizer_test import QWEN, TEMPLATE
from tests.models.hf_test import FAMILIES, assert_same, random_params, read
from tests.small import make_config, save_tokenizer

WORDS = ['<end>', 'user', 'assistant', '<unk>', 'Tom', 'has', 'gets', 'hats.',
         'How', 'many?', *map(str, range(30))]


def write_model(folder, rows, family='llama', dtype='bfloat16'):
  """A small random model whose tokenizer has len(WORDS) tokens."""
  config = make_config(**FAMILIES[family], vocab_size=rows)
  raw = hf_config.config_json(config, dtype=dtype, max_position=777)
  hf.save(folder, random_params(config), config, raw | {'bos_token_id': 1},
          dtype=dtype)
  (folder / 'generation_config.json').write_text('{"eos_token_id": [0, 3]}')
  save_tokenizer(folder, WORDS, TEMPLATE)
  return folder


def write_data(path):
  rows = [{'question': f'Tom has {i} hats. Tom gets {j} hats. How many?',
           'answer': f'{i} + {j} #### {i + j}'}
          for i in range(12) for j in range(12)]
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))


def make_run_config(folder, data):
  c = common.base('test', 'hrpo')
  common.smoke(c)
  c.steps, c.data.prompts, c.rollout.samples = 1, 2, 4
  c.init, c.tokenizer.kind, c.tokenizer.path = str(folder), 'folder', str(
      folder)
  c.data.source, c.data.path = 'jsonl', str(data)
  c.data.lengths, c.data.max_chunks = (32,), 4
  c.rollout.thought_cap, c.rollout.deep_cap, c.rollout.answer_cap = 4, 4, 2
  c.eval.at_start = False
  c.eval.examples = c.eval.batch = 2
  c.eval.split = 'validation'
  c.reward.user = 'tests.run.train_test:varied'
  c.log.tensorboard = False
  return c


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(workdir, model folder as it was, parameters at the start)."""
  path = tmp_path_factory.mktemp('run')
  folder = write_model(path / 'model', len(WORDS))
  write_data(path / 'data.jsonl')
  c = make_run_config(folder, path / 'data.jsonl')
  begun = start(c, path / 'run', devices=jax.devices()[:1])
  initial = jax.device_get(begun.initial)
  train.train(begun)
  # From here on the folder that the run began from no longer exists.
  shutil.move(folder, path / 'moved')
  return path / 'run', path / 'moved', initial


def test_the_folder_gives_the_architecture(run):
  workdir, folder, _ = run
  model = json.loads((workdir / 'config.json').read_text())['model']
  want = FAMILIES['llama']
  assert model['rope_theta'] == want['rope_theta']
  assert model['rope_scaling'] == list(want['rope_scaling'])
  assert (model['d_model'], model['qk_norm']) == (32, False)
  # 40 words and four control tokens; rows in multiples of 128.
  assert model['vocab_size'] == 128
  kept = {p.name for p in (workdir / 'huggingface').iterdir()}
  assert kept == {'config.json', 'generation_config.json', 'tokenizer.json',
                  'tokenizer_config.json'}


def test_step_0_is_the_model_of_the_start(run, tmp_path):
  workdir, folder, initial = run
  export(f'{workdir}@0', tmp_path / 'out')
  params, config = read(tmp_path / 'out')
  assert_same(jax.tree.map(np.asarray, params), initial)
  old, _ = read(folder)
  np.testing.assert_array_equal(params['embedding'][:40], old['embedding'])
  before, after = (json.loads((f / 'config.json').read_text())
                   for f in (folder, tmp_path / 'out'))
  assert after == before | {'vocab_size': 128}
  assert after['max_position_embeddings'] == 777
  assert after['torch_dtype'] == 'bfloat16'
  assert json.loads((tmp_path / 'out/generation_config.json').read_text()) == {
      'eos_token_id': [0, 3]}


def test_a_run_can_begin_from_an_export(run, tmp_path):
  workdir, _, initial = run
  export(str(workdir), tmp_path / 'out', dtype='float32')
  params, config = read(tmp_path / 'out')
  # One update later; float32 keeps every bit.
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, initial)
  assert max(jax.tree.leaves(moved)) > 0
  saved = checkpoint.restore_params(str(workdir), params)
  assert_same(params, jax.tree.map(np.asarray, saved))
  # The tokenizer already has the control tokens: the same ids, no new rows.
  tokenizer = tl.from_folder(tmp_path / 'out', config.vocab_size, resize=True)
  assert tokenizer.vocab_size == config.vocab_size == 128
  assert {tokenizer.eot, tokenizer.skip, tokenizer.end_think} < {
      40, 41, 42, 43}
  assert tokenizer.spell([4, tokenizer.eot, 5]) == 'Tom <EOT> has'


def test_a_later_run_takes_the_architecture_from_the_workdir(run, tmp_path):
  workdir, folder, _ = run
  c = make_run_config(f'{workdir}@1', workdir.parent / 'data.jsonl')
  c.tokenizer.path = str(workdir / 'huggingface')
  begun = start(c, tmp_path / 'run', devices=jax.devices()[:1])
  parts, initial = begun.parts, begun.initial
  assert parts.model_config == dataclasses.replace(
      read(folder)[1], vocab_size=128, remat='full')
  assert initial['embedding'].shape == (128, 32)
  again = tmp_path / 'run' / 'huggingface'
  for p in (workdir / 'huggingface').iterdir():
    assert p.read_bytes() == (again / p.name).read_bytes(), p.name
  # The single file of the final parameters does the same.
  c.init = str(workdir / 'model.safetensors')
  assert factories.parts(sections(c)).model_config == parts.model_config
  # An evaluation does, too.
  e = eval_config.get_config(f'of={workdir},examples=8,split=validation')
  e.tokenizer.path = str(workdir / 'huggingface')
  config_lib.validate(e)
  assert factories.parts(sections(e)).model_config == parts.model_config


def test_spare_rows_are_used(tmp_path):
  folder = write_model(tmp_path / 'm', 50)
  write_data(tmp_path / 'data.jsonl')
  parts = factories.parts(sections(make_run_config(
        folder, tmp_path / 'data.jsonl')))
  # 40 words, four control tokens, six rows to spare.
  assert parts.model_config.vocab_size == 50
  assert {parts.tokenizer.eot, parts.tokenizer.skip} < {40, 41, 42, 43}
  assert set(range(44, 50)) <= set(parts.tokenizer.undecodable)


@pytest.mark.parametrize('rows', [len(WORDS), 50])
def test_control_tokens_begin_apart_and_lora_resumes_there(rows, tmp_path):
  # Letters, so that their names are spelled with different tokens.
  folder = write_model(tmp_path / 'm', rows)
  t = tokenizers.Tokenizer(tokenizers.models.BPE(
      {w: i for i, w in enumerate([
          '<end>', 'user', 'assistant', '<unk>', *'<>/EOTskipthn 0123456789',
          *map(chr, range(ord('A'), ord('A') + 30))][:len(WORDS)])}, [],
      unk_token='<unk>'))
  t.save(str(folder / 'tokenizer.json'))
  write_data(tmp_path / 'data.jsonl')
  c = make_run_config(folder, tmp_path / 'data.jsonl')
  c.data.lengths, c.lora.rank, c.lora.targets = (96,), 2, ('qkv',)
  begun = start(c, tmp_path / 'run', devices=jax.devices()[:1])
  t, e = begun.parts.tokenizer, np.asarray(begun.initial['embedding'])
  new = [t.eot, t.skip, t.open_think, t.end_think]
  assert len(np.unique(e[new], axis=0)) == 4
  np.testing.assert_allclose(e[t.eot], e[t.encode('<EOT>')].mean(0),
                             rtol=2**-8, atol=1e-7)
  initial = jax.device_get(begun.initial)
  train.train(begun)
  again = factories.restored_params(f'{tmp_path}/run@0',
                                    begun.parts.model_config)
  assert_same(jax.tree.map(np.asarray, again), initial)
  # The base says as much as what the workdir keeps of it.
  shutil.rmtree(tmp_path / 'run/huggingface')
  again = factories.restored_params(f'{tmp_path}/run@0',
                                    begun.parts.model_config)
  assert_same(jax.tree.map(np.asarray, again), initial)


def test_a_foreign_tokenizer_is_refused(tmp_path):
  # It uses more ids than the model has rows, even without control tokens.
  folder = write_model(tmp_path / 'm', len(WORDS) - 1)
  write_data(tmp_path / 'data.jsonl')
  with pytest.raises(ValueError, match='vocab_size=39 is below the 44 ids'):
    factories.parts(sections(make_run_config(
        folder, tmp_path / 'data.jsonl')))


def test_wrong_starts(tmp_path):
  folder = write_model(tmp_path / 'm', 50)
  write_data(tmp_path / 'data.jsonl')
  c = make_run_config(folder, tmp_path / 'data.jsonl')
  c.tokenizer.kind = 'embedded'
  with pytest.raises(ValueError, match="needs tokenizer.kind='folder'"):
    factories.parts(sections(c))
  c = make_run_config(tmp_path, tmp_path / 'data.jsonl')
  with pytest.raises(ValueError, match='has no config.json'):
    factories.parts(sections(c))
  # A run that was killed before its first checkpoint is not a model.
  c = make_run_config(folder, tmp_path / 'data.jsonl')
  parts = start(c, tmp_path / 'run', devices=jax.devices()[:1]).parts
  shutil.rmtree(tmp_path / 'run/huggingface')
  c.init = str(tmp_path / 'run')
  with pytest.raises(ValueError, match="run' has no checkpoints"):
    factories.initial_params(sections(c), parts)


def test_wrong_exports(run, tmp_path):
  workdir = run[0]
  with pytest.raises(ValueError, match='is not a workdir'):
    export(str(tmp_path), tmp_path / 'out')
  with pytest.raises(ValueError, match='has no checkpoint 7'):
    export(f'{workdir}@7', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  with pytest.raises(ValueError, match='holds a model already'):
    export(str(workdir), workdir)
  (tmp_path / 'config.json').write_text('[1]')
  with pytest.raises(ValueError, match='config.json is not the config of a r'):
    export(str(tmp_path), tmp_path / 'out')


def test_a_killed_export_can_be_repeated(run, tmp_path, monkeypatch):
  workdir, *_ = run
  def die(*args, **kw):
    raise KeyboardInterrupt
  with monkeypatch.context() as m:
    m.setattr(hf, 'save', die)
    with pytest.raises(KeyboardInterrupt):
      export(str(workdir), tmp_path / 'out')
  export(str(workdir), tmp_path / 'out')
  assert {p.name for p in (tmp_path / 'out').iterdir()} == {
      'config.json', 'generation_config.json', 'model.safetensors',
      'tokenizer.json', 'tokenizer_config.json'}


def test_a_run_from_random_parameters(tmp_path):
  # The embedded task: its words are not a Hugging Face tokenizer.
  c = common.base('test', 'sft')
  common.smoke(c)
  c.model.num_layers, c.model.d_model, c.model.d_ff = 1, 32, 32
  begun = start(c, tmp_path / 'run', devices=jax.devices()[:1])
  parts, initial = begun.parts, begun.initial
  assert not (tmp_path / 'run/huggingface').exists()
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run/checkpoints')
  checkpoints.save(checkpoint.Progress(),
                   TrainState(initial, {}, jnp.int32(0)), {})
  checkpoints.close()
  export(f'{tmp_path}/run@0', tmp_path / 'out', max_position=99)
  params, config = read(tmp_path / 'out')
  assert config == dataclasses.replace(parts.model_config, remat='none')
  assert_same(jax.tree.map(np.asarray, params),
              jax.tree.map(np.asarray, initial))
  raw = json.loads((tmp_path / 'out/config.json').read_text())
  assert (raw['model_type'], raw['max_position_embeddings']) == ('qwen3', 99)
  assert raw['eos_token_id'] == parts.tokenizer.eos
  assert {p.name for p in (tmp_path / 'out').iterdir()} == {
      'config.json', 'generation_config.json', 'model.safetensors'}


def test_transformers_reads_the_export(run, tmp_path):
  torch = pytest.importorskip('torch', reason='needs torch==2.13.0')
  import transformers
  workdir = run[0]
  export(str(workdir), tmp_path / 'out')
  model = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / 'out', dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  ids = tokenizer.apply_chat_template(
      [{'role': 'user', 'content': 'Tom has 3 hats.'}],
      add_generation_prompt=True, tokenize=True, return_dict=False)
  assert tokenizer.decode(ids) == 'user Tom has 3 hats. <end> assistant'
  assert tokenizer.convert_tokens_to_ids(['<EOT>', '<think>']) == [40, 42]
  params, config = read(tmp_path / 'out')
  got = decoder.causal_logits(params, config, np.array([ids]))
  want = model(torch.tensor([ids])).logits.detach().numpy()
  np.testing.assert_allclose(got, want, atol=1e-4)
  out = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)
  assert out.shape[1] <= len(ids) + 3


# ------------------------------------------------------------ the tokenizer
def test_qwen_tokenizer_keeps_its_layout(tmp_path):
  if not QWEN.is_dir():
    pytest.skip(f'no Qwen3 tokenizer in {QWEN}')
  tl.copy_folder(QWEN, tmp_path / 'a')
  before, after = (json.loads((f / 'tokenizer_config.json').read_text())
                   for f in (QWEN, tmp_path / 'a'))
  new = {k: after['added_tokens_decoder'].pop(k) for k in ('151669', '151670')}
  assert after == before
  assert [v['content'] for v in new.values()] == [tl.EOT, tl.SKIP]
  a, b = tl.from_folder(QWEN, 151936), tl.from_folder(tmp_path / 'a', 151936)
  for name in ('eot', 'skip', 'end_think', 'eos', 'pad', 'head', 'tail',
               'prefix', 'undecodable'):
    assert getattr(a, name) == getattr(b, name), name
  text = 'Tom has 3 hats<EOT> and<skip></think>'
  assert a.encode(text) == b.encode(text)
  # A copy of the copy is the same.
  tl.copy_folder(tmp_path / 'a', tmp_path / 'b')
  for p in (tmp_path / 'a').iterdir():
    assert p.read_bytes() == (tmp_path / 'b' / p.name).read_bytes()


def test_old_workdirs_do_not_know_new_fields():
  new = config_lib.base().to_dict()
  old = config_lib.base().to_dict()
  del old['model']['rope_scaling']
  assert config_lib.difference(old, new) == []
  new['model']['rope_scaling'] = (8., 1., 4., 32.)
  line, = config_lib.difference(old, new)
  assert re.match(r'model.rope_scaling: \[\] -> \[8.0', line)


@pytest.mark.parametrize('size,match', [
    (dict(shard_gb=0), 'shard_gb=0'), (dict(shard_gb=math.nan), 'shard_gb=nan'),
    (dict(shard_gb=math.inf), 'shard_gb=inf'),
    (dict(max_position=-1), 'max_position=-1'),
    (dict(max_position=0), 'max_position=0')])
def test_sizes_that_cannot_be(run, size, match, tmp_path):
  workdir, *_ = run
  with pytest.raises(ValueError, match=match):
    export(str(workdir), tmp_path / 'out', **size)
  assert not (tmp_path / 'out').exists()
