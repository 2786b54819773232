"""Every config builds, every bad value is named, no field is dead."""

import ast
import dataclasses
import importlib
import json
import os
import pathlib
import re

import pytest

from adasr_jax import config as config_lib
from adasr_jax.config import sections
from adasr_jax.run import factories
from adasr_jax.run import workdir
from adasr_jax.tasks.gsm8k import traces
from tests.small import DATA

ROOT = pathlib.Path(__file__).resolve().parent.parent
RL = ('', 'smoke', 'full', 'smoke,full', 'seed=3')
VARIANTS = [
    *(('sft', a) for a in (
        '', 'smoke', 'full', 'full,smoke', 'layout=read_then_think',
        'layout=read_then_think,full', 'traces=perfect,reads=all',
        'seed=3')),
    *((name, a) for name in ('hrpo', 'grpo', 'read_then_think') for a in RL),
    *(('distill', a) for a in (*RL, 'reads=all,alpha=0.5')),
    *(('apr', a) for a in (
        '', 'smoke', 'serial', 'sft', 'sft,serial', 'sft,serial,smoke,seed=3',
        'sft,smoke,context=256', 'paper', 'paper,serial', 'paper,sft')),
    *(('eval', a) for a in (
        '', 'smoke', 'split=ood', 'split=validation', 'samples=4',
        'decisions=gold', 'examples=10'))]


def get_config(name, arg=None):
  """The config; a shipped file that is not there yet is left out."""
  c = importlib.import_module(f'configs.{name}').get_config(arg)
  if c.init and not (ROOT / c.init).exists():
    c.init = __file__ if c.method == 'eval' else ''
  return c


@pytest.fixture(autouse=True)
def _here(monkeypatch):
  monkeypatch.chdir(ROOT)  # paths in configs are relative


def check(c):
  """Validates, and renders examples of every split that it would read."""
  config_lib.validate(c)
  p = factories.parts(sections(c))
  if c.method != 'eval':
    factories.method(sections(c), p)
  splits = {c.eval.split, c.eval.periodic_split}
  for examples in (p.data.train(0, c.data.prompts),
                   *(p.data.evaluation(s, min(64, c.eval.examples))
                     for s in splits)):
    batch = p.data.collate(examples)
    assert batch.source.valid.any()
    if c.method == 'sft':
      p.data.traces(examples)
  return p


@pytest.mark.parametrize('name,arg', VARIANTS)
def test_every_variant_builds(name, arg):
  check(get_config(name, arg or None))


@pytest.mark.parametrize('arg', [
    'sft', 'sft,layout=read_then_think', 'seed=1', 'layout=read_then_think'])
def test_a_pretrained_model_on_real_text_builds(arg, tmp_path):
  if not (DATA / 'gsm8k_train.jsonl').is_file():
    pytest.skip(f'no GSM8K in {DATA}')
  some = tmp_path / 'gsm8k_train.jsonl'
  with (DATA / 'gsm8k_train.jsonl').open(encoding='utf-8') as lines:
    some.write_text(''.join(line for _, line in zip(range(300), lines)))
  traces.main([f'--path={some}', '--style=arithmetic',
               f'--out={tmp_path / "gsm8k_traces.jsonl"}'])
  c = get_config('gsm8k', f'folder={tmp_path},{arg}')
  assert c.tokenizer.path == str(tmp_path / 'smollm2')
  # In place of the model, which is not there.
  c.init, c.tokenizer.path = '', str(DATA / 'qwen3_tokenizer')
  c.eval.examples = 4
  data = check(c).data
  if c.method == 'sft':
    data.traces(data.train(0, 100))  # what meets a cap was left out


@pytest.mark.parametrize('name', ['hrpo', 'grpo', 'read_then_think'])
def test_real_text_builds(name, monkeypatch):
  if not (DATA / 'gsm8k_train.jsonl').is_file():
    pytest.skip(f'no GSM8K in {DATA}')
  c = get_config(name, f'data=gsm8k,folder={DATA}')
  assert c.init == '' and c.data.source == 'jsonl'
  config_lib.validate(c)
  # The folder may come from the environment; smoke keeps the data.
  monkeypatch.setenv('ADASR_DATA', str(DATA))
  same = get_config(name, 'data=gsm8k,smoke')
  assert same.data.path == c.data.path
  config_lib.validate(same)
  if name == 'hrpo':
    check(c)


def test_every_config_file_is_tested():
  files = {p.stem for p in (ROOT / 'configs').glob('*.py')
           if 'def get_config' in p.read_text()}
  assert files == {name for name, _ in VARIANTS} | {'gsm8k'}


@pytest.mark.parametrize('name', ['sft', 'hrpo', 'distill', 'eval', 'gsm8k'])
def test_the_docstring_names_the_arguments(name):
  module = importlib.import_module(f'configs.{name}')
  table = module.__doc__.partition('Arguments')[2]
  documented = set(re.findall(r'^  (\w+)(?:=\S+)?  ', table, re.MULTILINE))
  with pytest.raises(ValueError, match='unknown config argument') as e:
    module.get_config('nonsense=1')
  known = set(str(e.value).partition('known: ')[2].split(', '))
  assert documented == known


@pytest.mark.parametrize('split', ['', ',split=ood'])
def test_evaluation_takes_over_the_run(split, tmp_path):
  run = get_config('sft', 'layout=read_then_think,seed=4')
  run.rollout.thought_cap = 11
  workdir.prepare(tmp_path, run.to_dict(), command='x')
  c = get_config('eval', f'of={tmp_path}{split}')
  assert (c.name, c.method, c.init) == (run.name, 'eval', str(tmp_path))
  assert (c.rollout.thought_cap, c.data.seed) == (11, 4)
  check(c)
  if not split:
    for name in ('data', 'model', 'rollout', 'reward', 'tokenizer'):
      assert not config_lib.difference(run[name].to_dict(),
                                       c[name].to_dict())


def test_evaluation_of_no_run():
  with pytest.raises(ValueError, match="of='nowhere'"):
    get_config('eval', 'of=nowhere')


# ---------------------------------------------------------------- arguments
@pytest.mark.parametrize('arg,want', [
    (None, (0, .1, False, 'x')), ('n=3,x=1e-4', (3, 1e-4, False, 'x')),
    ('on', (0, .1, True, 'x')), ('on=False,s=y', (0, .1, False, 'y')),
    ('x=2', (0, 2., False, 'x')), ('s=a=b', (0, .1, False, 'a=b'))])
def test_arguments(arg, want):
  got = config_lib.parse_arg(arg, n=0, x=.1, on=False, s='x')
  assert (got.n, got.x, got.on, got.s) == want


@pytest.mark.parametrize('arg', [
    'm=1', 'n=1.5', 'n=True', 'n=a', 'n', 'n=[1]', 'x=a', 'x=(1,)',
    'on=maybe', 'on='])
def test_bad_arguments(arg):
  name = arg.partition('=')[0]
  with pytest.raises(ValueError, match=f'config argument .{name}'):
    config_lib.parse_arg(arg, n=0, x=.1, on=False, s='x')


def test_fields_have_types():
  c = get_config('hrpo')
  with pytest.raises(TypeError):
    c.rollout.samples = 'many'
  with pytest.raises(TypeError):
    c.optim.learning_rate = 'low'
  c.lock()
  with pytest.raises((AttributeError, KeyError), match='sampels'):
    c.rollout.sampels = 3


# --------------------------------------------------------------- bad values
BAD = [
    ('method', 'ppo'), ('data.source', 'web'), ('data.layout', 'both'),
    ('data.overlong', 'cut'), ('data.format', 'gsm9k'),
    ('data.malformed', 'keep'), ('tokenizer.kind', 'bpe'),
    ('rollout.legality', 'strict'), ('reward.shaping', 'cubic'),
    ('advantage.granularity', 'word'), ('advantage.normaliser', 'max'),
    ('loss.ratio', 'row'), ('loss.surrogate', 'ppo'),
    ('loss.aggregation', 'mean'), ('optim.schedule', 'step'),
    ('eval.decisions', 'none'), ('eval.split', 'tset'),
    ('eval.periodic_split', 'dev'), ('steps', 0), ('data.prompts', 0),
    ('data.max_chunks', 0), ('rollout.samples', 0), ('rollout.samples', 1),
    ('eval.examples', 0), ('eval.batch', 0), ('eval.samples', 0),
    ('loss.inner_epochs', 0), ('loss.micro_batches', 0),
    ('loss.micro_batches', 3), ('checkpoint.every', 0),
    ('checkpoint.keep', 0), ('log.samples_every', 0),
    ('clock.words_per_minute', 0.), ('optim.learning_rate', 0.),
    ('optim.clip_norm', 0.), ('reward.budget', 0.), ('data.seed', -1),
    ('loss.refills', -1), ('lora.rank', -1), ('lora.alpha', 0.),
    ('lora.targets', ('query',)), ('eval.every', -1), ('optim.warmup', -1),
    ('clock.sigma', -1.), ('clock.tau', -1.), ('reward.think_weight', -1.),
    ('reward.overlong_window', -1), ('loss.kl_weight', -1.),
    ('eval.top_k', -1), ('eval.temperature', -1.),
    ('eval.temperature', 1e-30), ('rollout.temperature', 1e-30),
    ('reward.overlong_penalty', -1.), ('data.path', 'mine.jsonl'),
    ('data.overlong', 'drop'),
    ('optim.weight_decay', -1.), ('optim.mu_dtype', 'int8'),
    ('model.remat', 'some'), ('model.attention', 'flash'),
    ('advantage.lam', 1.5), ('reward.alpha', -.1), ('rollout.top_p', 0.),
    ('eval.top_p', 1.1),
    ('rollout.temperature', 0.), ('rollout.top_k', 5), ('rollout.top_p', .9),
    ('eval.samples', 4), ('init', 'nowhere'),
    ('eval.baselines', ('nowhere',)), ('reward.user', 'nothing:here'),
    ('reward.user', 'configs.user_reward:nothing'),
    # Refused by the parts themselves, still before anything is written.
    ('rollout.thought_cap', 1), ('rollout.deep_cap', 0),
    ('rollout.answer_cap', 1), ('model.num_kv_heads', 3),
    ('model.head_dim', 7), ('model.dtype', 'float16'),
    ('model.vocab_size', 100), ('loss.clip_low', 0.),
    ('loss.clip_high', -1.), ('loss.constant', 0.),
    ('loss.behaviour_cap', -1.), ('advantage.constant', 0.),
    ('data.task.max_number', 500), ('data.task.question', 'never'),
    ('data.ood_task.min_steps', 1), ('data.teacher.slip', 2.)]


@pytest.mark.parametrize('name,value', BAD)
def test_bad_values_are_named(name, value):
  c = get_config('hrpo', 'smoke')
  c.init = ''
  section, _, field = name.rpartition('.')
  holder = c
  for part in filter(None, section.split('.')):
    holder = holder[part]
  holder[field] = value
  said = re.escape(str(value[0] if isinstance(value, tuple) else value))
  with pytest.raises(ValueError, match=rf'{field}.*{said}'):
    config_lib.validate(c)
    factories.method(sections(c), factories.parts(sections(c)))


def test_an_integer_beyond_all_floats():
  c = get_config('hrpo', 'smoke')
  c.steps = 10**400
  with pytest.raises(ValueError, match='steps=10+ is not finite'):
    config_lib.validate(c)


@pytest.mark.parametrize('changes,match', [
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder'}, 'data.path'),
    ({'data.source': 'huggingface', 'tokenizer.kind': 'folder'}, 'data.path'),
    ({'data.source': 'jsonl', 'data.path': 'x'}, 'tokenizer.kind'),
    ({'data.source': 'tfds', 'tokenizer.kind': 'folder',
      'data.path': 'x@test'}, "data.path='x@test' is not a folder"),
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder',
      'data.path': __file__, 'data.test_path': 'y'},
     "data.test_path='y' is not a file"),
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder', 'data.path': 'x'},
     "data.path='x' is not a file"),
    ({'tokenizer.kind': 'folder'}, 'tokenizer.kind'),
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder',
      'data.path': __file__, 'tokenizer.path': 'x'}, "tokenizer.path='x'"),
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder',
      'data.path': __file__, 'data.question': 'middle'}, "'middle'"),
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder',
      'data.path': __file__, 'eval.decisions': 'gold'}, 'fields.relevant'),
    ({'data.source': 'jsonl', 'tokenizer.kind': 'folder',
      'data.path': __file__, 'tokenizer.path': str(ROOT),
      'eval.split': 'ood'}, "eval.split='ood'"),
    ({'method': 'eval'}, 'needs init')])
def test_rules_between_fields(changes, match):
  c = get_config('hrpo', 'smoke')
  c.init = ''
  c.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=match):
    config_lib.validate(c)


def test_every_unset_field_is_named():
  with pytest.raises(ValueError, match='method, name, steps must be set'):
    config_lib.validate(config_lib.base())


# ------------------------------------------------- every field, many values
NAN, INF = float('nan'), float('inf')
VALUES = {
    int: (NAN, INF, -INF, -1, 0, 1, 2.5, 'x', '', True, (), 10**8, 10**20),
    float: (NAN, INF, -INF, -1.0, 0.0, 1.0, 'x', '', True, (), 1e30, 10**400),
    str: ('', 'x', 0, NAN, (), 'x' * 10**5),
    bool: (0, 'x', NAN, ()),
    tuple: ((), 56, (0,), (-1,), ('a',), (NAN,), (INF,), ('a', 1), 'a',
            ((('a',),),), tuple(range(100)))}
FIELDS = config_lib.flatten(config_lib.base().to_dict())


def _kind(value):
  return tuple if isinstance(value, (tuple, list)) else type(value)


@pytest.mark.parametrize('name', sorted(FIELDS))
def test_every_field_has_values_that_work_or_is_named(name, monkeypatch):
  """A value is refused by the field's name, or a run can be built with it."""
  refused = 0
  fresh = get_config('hrpo', 'smoke')
  fresh.init = ''
  default = config_lib.flatten(fresh.to_dict())[name]
  for value in VALUES[_kind(default)]:
    c = fresh.copy_and_resolve_references()
    try:
      c.update_from_flattened_dict({name: value})
    except (TypeError, ValueError, OverflowError):
      refused += 1  # as the command line says it, by the flag's name
      continue
    try:
      s = config_lib.validate(c)
    except ValueError as e:
      assert name.rpartition('.')[2] in str(e), (value, str(e))
      assert len(str(e).splitlines()) == 1
      refused += 1
      continue
    # Accepted: it is in range, finite, and of the field's type.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
      assert value == value and abs(value) < 2**53, value
    try:
      p = factories.parts(s)
      if s['run'].method != 'eval':
        factories.method(s, p)
    except ValueError as e:
      assert name.rpartition('.')[2] in str(e), (value, str(e))
      refused += 1
  assert refused, 'nothing is refused'


@pytest.mark.parametrize('name,value', [
    ('data.lengths', ()), ('data.lengths', (0,)), ('loss.clip_low', NAN),
    ('reward.format_weight', NAN), ('optim.b1', 2.0), ('token_budget', -1),
    ('seed', -1), ('seed', 10**20), ('rollout.temperature', INF),
    ('model.num_layers', -1), ('model.d_model', 0), ('lora.rank', 100000),
    ('data.prompts', 10**8), ('reward.user', 'os:system'),
    ('optim.learning_rate', INF)])
def test_values_that_cannot_work(name, value):
  c = get_config('hrpo', 'smoke')
  c.init = ''
  c.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=re.escape(name)):
    config_lib.validate(c)


@pytest.mark.parametrize('name,value', [
    ('kl_weight', 0.1), ('refills', 2), ('aggregation', 'sequence')])
def test_what_supervised_learning_does_not_read(name, value):
  c = get_config('sft', 'smoke')
  c.loss[name] = value
  with pytest.raises(ValueError, match=f'loss.{name}={value!r} is not read'):
    config_lib.validate(c)


@pytest.mark.parametrize('method,name,value', [
    ('hrpo', 'sft.reads', 'all'), ('hrpo', 'teacher.init', 'nowhere'),
    ('hrpo', 'distill.alpha', 7.0), ('sft', 'advantage.lam', 0.1),
    ('distill', 'sft.traces', 'mine.jsonl')])
def test_what_only_other_methods_read(method, name, value):
  c = get_config(method, 'smoke')
  c.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f'{name}={value!r} is not read by '
                                       f'method={method!r}'):
    config_lib.validate(c)


def test_what_an_earlier_run_did_not_read_is_not_evaluated(tmp_path):
  saved = get_config('hrpo', 'smoke').to_dict() | {'command': ''}
  saved['sft']['reads'] = 'all'
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  c = get_config('eval', f'of={tmp_path},smoke')
  assert c.sft.reads == 'stream' and c.reward.alpha == saved['reward']['alpha']
  saved = get_config('sft', 'smoke,reads=all').to_dict() | {'command': ''}
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  assert get_config('eval', f'of={tmp_path},smoke').sft.reads == 'all'


def test_a_window_that_every_rollout_is_in():
  c = get_config('hrpo', 'smoke')
  c.reward.overlong_penalty, c.reward.overlong_window = .5, c.rollout.deep_cap
  with pytest.raises(ValueError, match='reward.overlong_window=.*deep_cap'):
    config_lib.validate(c)


@pytest.mark.parametrize('step', [0, 10**6])
def test_a_step_that_never_comes_is_not_traced(step):
  c = get_config('hrpo', 'smoke')
  c.log.profile_step = step
  with pytest.raises(ValueError, match=f'log.profile_step={step}'):
    config_lib.validate(c)


def test_a_budget_of_what_is_never_generated():
  c = get_config('sft', 'smoke')
  c.token_budget = 100
  with pytest.raises(ValueError, match='token_budget=100.*sft'):
    config_lib.validate(c)


def test_two_models_at_once():
  with pytest.raises(ValueError, match='qwen3_1_7b, qwen3_4b'):
    get_config('hrpo', 'qwen3_4b,qwen3_1_7b')


def test_the_baseline_begins_from_the_model_that_it_names():
  from configs import read_then_think
  assert read_then_think.get_config('qwen3_0_6b').init == os.path.join(
      'data', 'Qwen3-0.6B')
  assert read_then_think.get_config().init.endswith(
      'read_then_think.safetensors')


# --------------------------------------------------------------- difference
def test_difference():
  a = {'x': 1, 'y': {'z': (1, 2), 'w': 'a'}}
  assert config_lib.difference(a, {'x': 1, 'y': {'z': [1, 2], 'w': 'a'}}) == []
  b = {'x': 2, 'y': {'z': (1, 3)}, 'n': None}
  assert config_lib.difference(a, b) == [
      "n: '(absent)' -> None", "x: 1 -> 2", "y.w: 'a' -> '(absent)'",
      'y.z: [1, 2] -> [1, 3]']


# -------------------------------------------------------------- dead fields
# Sections that are handed over as a whole, to what takes such a dataclass.
WHOLE = {'model', 'reward', 'reward.threads', 'advantage', 'loss', 'distill',
         'eval', 'clock', 'data.task', 'data.ood_task', 'data.teacher',
         'data.countdown', 'data.search'}
# As a mapping: name of the section, what takes it.
MAPPINGS = {'mesh', 'data.fields'}


def _owner(node, alias):
  """'data' of c.data, s['data'], or d after d = s['data']; else ''."""
  if isinstance(node, ast.Name):
    return alias.get(node.id, node.id)
  if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
    return node.slice.value
  return getattr(node, 'attr', '')


def _reads():
  """(owner, field) of every attribute that is read, aliases resolved."""
  pairs, names = set(), set()
  for path in ROOT.glob('adasr_jax/**/*.py'):
    if path.name == 'config.py':  # what only validate() reads is dead
      continue
    tree = ast.parse(path.read_text())
    alias = {}
    for node in ast.walk(tree):  # d = c.data; l, r = s['loss'], s['rollout']
      if isinstance(node, ast.Assign) and isinstance(node.targets[0],
                                                     (ast.Name, ast.Tuple)):
        targets = getattr(node.targets[0], 'elts', node.targets)
        values = getattr(node.value, 'elts', [node.value])
        alias |= {a.id: _owner(b, {}) for a, b in zip(targets, values)
                  if isinstance(a, ast.Name)
                  and isinstance(b, (ast.Attribute, ast.Subscript))}
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        pairs.add((_owner(node.value, alias), node.attr))
        names.add(node.attr)
      elif isinstance(node, ast.Subscript):
        pairs.add((_owner(node, alias), None))
  return pairs, names


def test_every_field_is_read():
  pairs, names = _reads()
  assert ('data', 'prompts') in pairs and ('data', 'promts') not in pairs
  dead = []
  for name in config_lib.flatten(config_lib.base().to_dict()):
    section, _, field = name.rpartition('.')
    if section in MAPPINGS:
      read = (section, None) in pairs
    elif section in WHOLE:
      read = field in names
    else:
      read = (section or 'run', field) in pairs
    if not read:
      dead.append(name)
  assert not dead


# ------------------------------------------------------------------- tables
def test_sections_are_written_once():
  """Every field of the tree is a field of exactly one dataclass."""
  s = sections(get_config('hrpo'))
  fields = [f'{name}.{f.name}'.removeprefix('run.')
            for name, section in s.items()
            for f in dataclasses.fields(section)]
  assert sorted(fields) == sorted(
      config_lib.flatten(config_lib.base().to_dict()))


def test_an_old_config_loads():
  """config.json of a run of before tasks could be chosen."""
  old = get_config('hrpo', 'smoke').to_dict()
  del old['task']
  old['command'] = 'python -m adasr_jax.main'
  c = config_lib.of_workdir(json.loads(json.dumps(old)))
  assert not config_lib.difference(old, c.to_dict() | {
      'command': old['command']})
  assert sections(c)['run'].task == 'word_problems'
  assert sections(c)['data'].lengths == (56, 72)
