"""A teacher has a shape of its own and the student's vocabulary."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from adasr_jax import config as config_lib
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.models import decoder
from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.models import weights
from adasr_jax.run import factories
from adasr_jax.run import start as start_lib
from adasr_jax.run import teacher as teacher_lib
from adasr_jax.run import workdir
from configs import distill
from configs import sft
from tests.small import make_config, save_tokenizer

TEMPLATE = ("{% for m in messages %}{{ m['role'] }} {{ m['content'] }} "
            "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}")
WORDS = ['<unk>', '<end>', 'user', 'assistant', 'one', 'two', 'three']


def saved(path, **changes):
  """Random parameters of another shape in a file; the shape."""
  config = make_config(vocab_size=206, **changes)
  path.parent.mkdir(exist_ok=True)
  weights.save(path, decoder.init(config, jax.random.key(0)), config)
  return config


def sections(init, **changes):
  c = distill.get_config('smoke')
  c.teacher.init = str(init)
  c.update_from_flattened_dict(changes)
  return config_lib.validate(c)


def shape(s):
  tokenizer, student = factories.tokenizer_and_decoder(s)
  return teacher_lib.shape(s, tokenizer, student)


def test_the_shape_is_that_of_the_file(tmp_path):
  path = tmp_path / 'a.safetensors'
  want = saved(path, num_layers=3, d_model=16, remat='none', target_offset=7)
  s = sections(path, **{'model.dtype': 'bfloat16'})
  assert shape(s) == dataclasses.replace(want, remat='full', dtype='bfloat16')
  p = factories.parts(s)
  assert p.teacher.num_layers == 3 and p.model_config.num_layers == 4
  params = factories.teacher_params(s, p)
  assert params['embedding'].dtype == 'bfloat16'
  assert params['final_norm'].dtype == 'float32'


def test_the_shape_is_that_of_the_run(tmp_path):
  c = distill.get_config('smoke')
  c.model.num_layers, c.model.d_ff = 2, 40
  workdir.prepare(tmp_path, c.to_dict(), command='x')
  got = shape(sections(tmp_path))
  assert (got.num_layers, got.d_ff, got.vocab_size) == (2, 40, 206)


@pytest.mark.parametrize('make,match', [
    (lambda path: None, 'does not exist'),
    (lambda path: path.write_text('x'), 'not a readable safetensors file'),
    (lambda path: weights.save(
        path, decoder.init(make_config(), jax.random.key(0)), make_config()),
     'has another vocabulary: 40 rows, not 206')])
def test_what_cannot_teach_is_named(make, match, tmp_path):
  path = tmp_path / 'a.safetensors'
  make(path)
  with pytest.raises(ValueError, match=f'teacher.init=.*{match}'):
    factories.parts(sections(path))


def test_a_teacher_reads_what_it_was_trained_on(tmp_path):
  c = sft.get_config('smoke,reads=all')
  workdir.prepare(tmp_path, c.to_dict(), command='x')
  assert shape(sections(tmp_path, **{'teacher.reads': 'all'}))
  with pytest.raises(ValueError, match="trained with sft.reads='all', not "
                     "teacher.reads='stream'"):
    shape(sections(tmp_path))


def test_parameters_that_are_not_finite_are_named(tmp_path):
  config = make_config(vocab_size=206)
  params = decoder.init(config, jax.random.key(0))
  params['final_norm'] = params['final_norm'] * np.nan
  weights.save(tmp_path / 'a.safetensors', params, config)
  s = sections(tmp_path / 'a.safetensors')
  with pytest.raises(ValueError, match='teacher.init=.*final_norm'):
    factories.teacher_params(s, factories.parts(s))


# ------------------------------------------------------------ vocabularies
def run_with_words(folder, words):
  """A run whose tokenizer has these words."""
  (folder / 'words').mkdir(parents=True)
  save_tokenizer(folder / 'words', words, TEMPLATE)
  c = distill.get_config('smoke')
  c.tokenizer.kind, c.tokenizer.path = 'folder', str(folder / 'words')
  workdir.prepare(folder, c.to_dict(), command='x')
  return folder


def test_another_vocabulary_is_refused_by_name(tmp_path):
  same, swapped, longer = (run_with_words(tmp_path / name, words)
                           for name, words in (
                               ('same', WORDS),
                               ('swapped', [*WORDS[:4], 'two', 'one', 'three']),
                               ('longer', [*WORDS, 'four'])))
  s = sections(same)
  embedded, student = factories.tokenizer_and_decoder(s)
  with pytest.raises(ValueError, match="7 tokens of a folder, not the one of "
                                       "task='word_problems'"):
    teacher_lib.shape(s, embedded, student)

  ours = tokenizer_lib.from_folder(same / 'words')
  student = dataclasses.replace(student, vocab_size=ours.vocab_size)
  def of(init):
    there = dict(s, teacher=dataclasses.replace(s['teacher'], init=str(init)),
                 tokenizer=tokenizer_lib.TokenizerConfig(
                     'folder', str(same / 'words')))
    return teacher_lib.shape(there, ours, student)
  assert of(same).vocab_size == ours.vocab_size == 128
  with pytest.raises(ValueError, match="2 tokens differ, 'one' is 5 there and "
                                       '4 here'):
    of(swapped)
  with pytest.raises(ValueError, match="'four' is 7 there and None"):
    of(longer)
  with pytest.raises(ValueError, match="the one of task='word_problems', not "
                                       '7 tokens of a folder'):
    plain = tmp_path / 'plain'
    workdir.prepare(plain, distill.get_config('smoke').to_dict(), command='x')
    of(plain)

  (same / 'words' / 'tokenizer.json').write_text('{"x"')
  with pytest.raises(ValueError, match='tokenizer.json is not a tokenizer'):
    of(swapped)
  save_tokenizer(same / 'words', WORDS, TEMPLATE)

  # A workdir keeps its folder with the control tokens that were added.
  kept = run_with_words(tmp_path / 'kept', WORDS)
  tokenizer_lib.copy_folder(same / 'words', kept / 'words')
  assert of(kept).vocab_size == 128

  # Rows that stand for no token may differ; others may not be missing.
  def of_rows(rows):
    config = json.loads((same / 'config.json').read_text())
    config['model']['vocab_size'] = rows
    (same / 'config.json').write_text(json.dumps(config))
    return of(same)
  assert of_rows(256).vocab_size == 256
  assert of_rows(64).vocab_size == 64
  with pytest.raises(ValueError, match='another vocabulary: 8 rows, not 128'):
    of_rows(8)


def test_a_hugging_face_folder_teaches(tmp_path):
  """Seven rows: those of the control tokens are added, as for a student."""
  student = run_with_words(tmp_path / 'student', WORDS)
  s = sections(student)
  own = make_config(vocab_size=7, num_layers=1, remat='full')
  folder = tmp_path / 'teacher'
  hf.save(folder, decoder.init(own, jax.random.key(0)), own,
          hf_config.config_json(own, dtype='float32', max_position=64),
          dtype='float32')
  save_tokenizer(folder, WORDS, TEMPLATE)
  s = dict(s, teacher=dataclasses.replace(s['teacher'], init=str(folder)),
           tokenizer=tokenizer_lib.TokenizerConfig(
               'folder', str(student / 'words')))
  ours = tokenizer_lib.from_folder(student / 'words')
  config = make_config(vocab_size=128)
  got = teacher_lib.shape(s, ours, dataclasses.replace(config, remat='full'))
  assert got == dataclasses.replace(own, vocab_size=128)
  params = factories.teacher_params(s, factories.Parts(
      ours, None, dataclasses.replace(config, remat='full'), None, got))
  assert params['embedding'].shape == (128, 32)
  assert params['embedding'][ours.eot].any()


@pytest.mark.parametrize('rows', [48, 40, 30])
def test_tables_are_cut_or_padded_to_the_students_rows(rows):
  params = {'embedding': np.arange(rows * 2.).reshape(rows, 2),
            'final_norm': np.ones(2)}
  got = teacher_lib.fitted(params, 40)
  n = min(rows, 40)
  np.testing.assert_array_equal(got['embedding'][:n], params['embedding'][:n])
  assert got['embedding'].shape == (40, 2) and not got['embedding'][n:].any()
  assert got['final_norm'] is params['final_norm']


def test_the_teachers_step_is_pinned(tmp_path, monkeypatch):
  (tmp_path / 'checkpoints').mkdir()
  c = distill.get_config('smoke')
  c.teacher.init = str(tmp_path)
  monkeypatch.setattr(start_lib.checkpoint, 'find', lambda init: (init, 30))
  parts = factories.Parts(None, None, None, None, teacher=make_config())
  start_lib.record(c, parts)
  assert c.teacher.init == f'{tmp_path}@30'
  c.teacher.init = str(tmp_path)
  start_lib.record(c, dataclasses.replace(parts, teacher=None))
  assert c.teacher.init == str(tmp_path)


@pytest.mark.parametrize('field,value,match', [
    ('teacher.init', '', "teacher.init='': distillation needs a teacher"),
    ('loss.refills', 1, 'loss.refills=1'),
    ('rollout.top_k', 4, 'rollout.top_k=4'),
    ('distill.divergence', 'top_k', "distill.normalise='zscore' is of rewards"),
    ('distill.alpha', 0.0, 'distill.alpha=0.0 is outside'),
    ('teacher.reads', 'some', "teacher.reads='some' is not one of")])
def test_bad_values_are_named(field, value, match):
  c = distill.get_config('smoke')
  c.distill.normalise = 'zscore'
  c.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=match):
    config_lib.validate(c)
  c = distill.get_config('smoke')
  c.rollout.samples = 1  # enough for a teacher alone
  config_lib.validate(c)
  c.distill.advantage_weight = 1.0
  with pytest.raises(ValueError, match='rollout.samples=1'):
    config_lib.validate(c)
