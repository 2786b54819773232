"""Rendering: the same text comes back, and control tokens are single ids."""

import json
import pathlib
import shutil

import pytest
import tokenizers

from adasr_jax.core.types import Example
from adasr_jax.data import chat
from adasr_jax.data import tokenizer as tl
from adasr_jax.tasks import word_problems
from tests.small import DATA, save_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
QWEN = DATA / 'qwen3_tokenizer'
EXAMPLE = Example(
    id=3, preamble='Read it.\n', chunks=('Tom has 3 hats.', ' He buys 2.',
                                         ' How many has he?'),
    answer='5', question_chunk=2, thoughts=('3', None, 'asked: hats'),
    deep='3 + 2 = 5', relevant=(True, False, True))


@pytest.fixture(scope='module')
def words():
  return word_problems.embedded()


@pytest.fixture(scope='module')
def qwen():
  if not QWEN.is_dir():
    pytest.skip(f'no Qwen3 tokenizer in {QWEN}')
  return tl.from_folder(QWEN, 151936)


# ----------------------------------------------------------------- embedded
@pytest.mark.parametrize('question', ['first', 'middle', 'last'])
def test_embedded_round_trip(words, question):
  task = word_problems.Task(
      difficulty=word_problems.Difficulty(question=question),
      teacher=word_problems.UNDISCIPLINED)
  for i in range(30):
    example = task.example('train', i)
    preamble, chunks = words.render(example)
    assert preamble[0] == words.head[0]
    assert words.decode(preamble[1:]) == example.preamble
    assert [words.decode(c) for c in chunks] == [
        c.strip() for c in example.chunks]
    trace = words.render_trace(example)
    assert tuple(trace[:1]) == words.prefix and trace[-1] == words.eos
    # One terminator per chunk; the thoughts are between them.
    streaming = trace[1:]
    for thought in example.thoughts:
      ends = min(streaming.index(t) for t in (words.eot, words.skip)
                 if t in streaming)
      assert words.decode(streaming[:ends]) == (thought or '')
      assert streaming[ends] == (words.skip if thought is None else words.eot)
      streaming = streaming[ends + 1:]
    close = streaming.index(words.end_think)
    assert words.decode(streaming[:close]) == example.deep
    assert words.decode(streaming[close + 1:]) == example.trace_answer


def test_embedded_controls(words):
  ids = (words.eot, words.skip, words.end_think, words.eos, words.pad)
  assert len(set(ids)) == 5 and max(ids) < words.vocab_size
  assert set(words.undecodable) == {words.pad, *words.head}
  # Decoding leaves control tokens out.
  apple, = words.encode('apple')
  assert words.decode([words.eot, apple, words.skip]) == 'apple'


def test_unknown_words_raise(words):
  with pytest.raises(ValueError, match="vocabulary has no word 'zebra'"):
    words.encode('7 zebra')
  for control in word_problems.CONTROL:
    with pytest.raises(ValueError, match=f"has no word '{control}'"):
      words.encode(f'apple {control}')


def test_a_trace_is_required(words):
  with pytest.raises(ValueError, match='example 3 has no supervised trace'):
    words.render_trace(Example(id=3, preamble='', chunks=('1',), answer='1'))


# ------------------------------------------------------------------- folder
def test_control_tokens_are_single_ids(qwen):
  for text, i in ((tl.EOT, qwen.eot), (tl.SKIP, qwen.skip),
                  (tl.END_THINK, qwen.end_think)):
    assert qwen.spell([i]) == text
  # Qwen3's own ids: </think>, <|im_end|>, <|endoftext|>; ours follow.
  assert (qwen.end_think, qwen.eos, qwen.pad) == (151668, 151645, 151643)
  assert {qwen.eot, qwen.skip} == {151669, 151670}


def test_the_turns_are_the_templates(qwen):
  assert qwen.spell(qwen.head) == '<|im_start|>user\n'
  assert qwen.spell(qwen.tail) == '<|im_end|>\n'
  assert qwen.spell(qwen.prefix) == '<|im_start|>assistant\n<think>\n'
  assert (len(qwen.head), len(qwen.tail), len(qwen.prefix)) == (3, 2, 5)


# -------------------------------------------------------------- text is text
def like_llama2(folder):
  """BPE with bytes for what it lacks; the control tokens are in its model."""
  words = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256)),
           '\u2581', 'a', 'b', '\u2581a', '</', 's>', '<custom>']
  t = tokenizers.Tokenizer(tokenizers.models.BPE(
      {w: i for i, w in enumerate(words)},
      # One of them could also be merged from text.
      [('\u2581', 'a'), ('</', 's>')], unk_token='<unk>', byte_fallback=True,
      fuse_unk=True))
  t.normalizer = tokenizers.normalizers.Replace(' ', '\u2581')
  t.decoder = tokenizers.decoders.Sequence([
      tokenizers.decoders.Replace('\u2581', ' '),
      tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
  t.add_special_tokens(['<unk>', '<s>', '</s>'])
  t.add_tokens(['<custom>', tokenizers.AddedToken('   ', normalized=False)])
  _save(t, folder, eos_token='</s>', bos_token='<s>', unk_token='<unk>')


def like_llama3(folder):
  """Byte-level BPE that takes whole words as they stand (ignore_merges)."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  words = [*alphabet, 'ab', '<tool>', '<|eot_id|>']
  t = tokenizers.Tokenizer(tokenizers.models.BPE(
      {w: i for i, w in enumerate(words)}, [('a', 'b')], ignore_merges=True))
  t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False)
  t.decoder = tokenizers.decoders.ByteLevel()
  t.add_special_tokens(['<|begin_of_text|>', '<|eot_id|>'])
  t.add_tokens(['<tool>', '</tool>'])
  t.post_processor = tokenizers.processors.TemplateProcessing(
      single='<|begin_of_text|> $A', special_tokens=[
          ('<|begin_of_text|>', t.token_to_id('<|begin_of_text|>'))])
  _save(t, folder, eos_token='<|eot_id|>', bos_token='<|begin_of_text|>')


def _save(t, folder, **special):
  t.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'chat_template': TEMPLATE.replace('<end>', '{{ eos_token }}'),
      **special}))


@pytest.fixture(scope='module', params=['qwen3', 'llama2', 'llama3'])
def folder(request, tmp_path_factory):
  if request.param == 'qwen3':
    if not QWEN.is_dir():
      pytest.skip(f'no Qwen3 tokenizer in {QWEN}')
    return QWEN
  path = tmp_path_factory.mktemp(request.param)
  {'llama2': like_llama2, 'llama3': like_llama3}[request.param](path)
  return path


def added_tokens(folder):
  import transformers
  hf = transformers.AutoTokenizer.from_pretrained(str(folder))
  return {t.content: i for i, t in hf.added_tokens_decoder.items()
          if t.content.strip() and t.content != hf.unk_token}


def test_text_never_becomes_an_added_token(folder):
  t = tl.from_folder(folder)
  added = added_tokens(folder)
  assert len(added) >= 3
  opens, = (i for i in t.prefix if t.spell([i]) == tl.OPEN_THINK)
  forbidden = {*added.values(), t.eot, t.skip, opens, t.end_think, t.eos}
  # Only our own template places them.
  assert not forbidden.isdisjoint(t.tail)
  assert not forbidden.isdisjoint(t.prefix)
  texts = (tl.EOT, tl.SKIP, tl.OPEN_THINK, tl.END_THINK, *added)
  for token in texts:
    for text in (token, f'a{token}b', f'a {token} b', token * 3,
                 f'<{token}>', f'\0{token}', f'{texts[0]}{token}'):
      ids = t.encode(text)
      assert forbidden.isdisjoint(ids), text
      assert t.decode(ids) == text == t.spell(ids)
    example = Example(
        id=1, preamble=token, chunks=(f'a{token}', token), answer=token,
        thoughts=(token, None), deep=f'{token} b', relevant=(True, False))
    preamble, chunks = t.render(example)
    source = [*preamble, *chunks[0], *chunks[1]]
    assert [i for i in source if i in forbidden] == [
        i for i in (*t.head, *t.tail) if i in forbidden]
    trace = t.render_trace(example)
    assert [i for i in trace if i in forbidden] == [
        *(i for i in t.prefix if i in forbidden),
        t.eot, t.skip, t.end_think, t.eos]


def test_new_control_tokens_are_spelled(folder, tmp_path):
  t = tl.from_folder(folder)
  got = tl.spelled(t, folder, t.vocab_size)
  want = {t.eot: tl.EOT, t.skip: tl.SKIP}
  if tl.END_THINK not in tl.vocabulary(folder):  # Qwen3 has both
    want |= {t.open_think: tl.OPEN_THINK, t.end_think: tl.END_THINK}
  assert {i: t.decode(pieces) for i, pieces in got.items()} == want
  # No two of them begin alike.
  assert len({tuple(sorted(p)) for p in got.values()}) == len(got)
  # A model that was saved with them has rows of its own.
  tl.copy_folder(folder, tmp_path / 'out')
  assert tl.spelled(t, tmp_path / 'out', 0) == {}
  # Where there is no tokenizer, it knows what has rows.
  last = max(got)
  assert tl.spelled(t, tmp_path, last) == {last: got[last]}
  assert tl.spelled(t, tmp_path, last + 1) == {}


def test_tokens_that_only_the_config_adds_are_known(folder, tmp_path):
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  path = tmp_path / 'tokenizer_config.json'
  config = json.loads(path.read_text())
  n = max(tl.vocabulary(folder).values()) + 1
  config['added_tokens_decoder'] = config.get('added_tokens_decoder', {}) | {
      str(n): dict(content=tl.SKIP, lstrip=False, normalized=False,
                   rstrip=False, single_word=False, special=True)}
  path.write_text(json.dumps(config))
  t = tl.from_folder(tmp_path)
  assert t.skip == n == tl.vocabulary(tmp_path)[tl.SKIP]
  assert t.skip not in tl.spelled(t, tmp_path, t.vocab_size)


def test_text_without_added_tokens_is_encoded_as_published(folder):
  import transformers
  hf = transformers.AutoTokenizer.from_pretrained(str(folder))
  t = tl.from_folder(folder)
  for text in ('', 'a', 'ab a  b   ab', 'x = 1;\n\n   y', ' a\tb', 'caf\u00e9',
               '\U0001f600 \u4e2d\u6587', EXAMPLE.preamble, *EXAMPLE.chunks):
    assert t.encode(text) == hf.encode(text, add_special_tokens=False)


def test_a_vocabulary_that_cannot_spell_it(tmp_path):
  t = tokenizers.Tokenizer(tokenizers.models.WordLevel(
      {'\0<end>': 0, 'a': 1, '<end>': 2, '<unk>': 3}, unk_token='<unk>'))
  t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  _save(t, tmp_path, eos_token='<end>', unk_token='<unk>')
  ours = tl.from_folder(tmp_path)
  assert ours.encode('a <end> <EOT>') == [1, 3, 3]
  # The name that stands for a control token is no way to it.
  with pytest.raises(ValueError, match='cannot spell'):
    ours.encode('a \0<end>')


# ------------------------------------------------------------- chat templates
LOOP = ('{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}'
        '{% endfor %}')
FILL = ("{% set x = namespace(s='abcdefgh') %}{% for i in range(60) %}"
        '{% set x.s = x.s ~ x.s %}{% endfor %}')
CONTENT = "{{ messages[0]['content'] }}"


@pytest.mark.parametrize('template, says', [
    (LOOP + CONTENT, 'did not end in 4 s'),
    (FILL + CONTENT, 'fails: .*MemoryError'),
    ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'fails: '),
    ("{{ raise_exception('no users here') }}", 'fails: .*no users here'),
    ('{% for %}', 'fails: '),
    ('user', "has the user's text 0 times"),
    (CONTENT * 2, "has the user's text 2 times"),
    ("{% if add_generation_prompt %}x{% endif %}" + CONTENT,
     "changes the user's turn"),
    ("{{ ''.__class__.__mro__ }}" + CONTENT, 'fails: '),
    (CONTENT + 'x' * 200_000, 'fails: .*200001 characters'),
])
def test_bad_templates(template, says, tmp_path, monkeypatch):
  if template.startswith(LOOP):
    monkeypatch.setattr(chat, 'TIME_LIMIT', 4)
  monkeypatch.setattr(chat, 'MEMORY', 2**30)
  says = f'the chat template .*{tmp_path}.* {says}'
  with pytest.raises(ValueError, match=says):
    tl.from_folder(small_folder(tmp_path, template))


def test_the_date_in_a_template_stands_still(tmp_path):
  template = ("{{ strftime_now('%d %b %Y') }} user " + CONTENT
              + ' <end>{% if add_generation_prompt %} assistant{% endif %}')
  turns = chat.turns(template, (), str(tmp_path))
  assert turns.head == '26 Jul 2024 user '


@pytest.mark.parametrize('change, said', [
    (lambda old: {'normalizer': {'type': 'Sequence', 'normalizers': [
        {'type': 'Prepend', 'prepend': '\u2581'}, old['normalizer']]}}, "' b'"),
    (lambda old: {'normalizer': None, 'pre_tokenizer': {
        'type': 'Metaspace', 'replacement': '\u2581',
        'prepend_scheme': 'always', 'split': False}}, r"'\\nb'")])
def test_a_tokenizer_that_puts_a_space_before_every_text(
    change, said, tmp_path):
  like_llama2(tmp_path)
  file = tmp_path / 'tokenizer.json'
  found = json.loads(file.read_text())
  file.write_text(json.dumps(found | change(found)))
  with pytest.raises(ValueError, match=f"adds to what it encodes: 'a' and "
                                       f'{said}'):
    tl.from_folder(tmp_path)


def test_undecodable_covers_the_padded_rows(qwen):
  bad = set(qwen.undecodable)
  assert set(range(151671, 151936)) <= bad
  assert not bad & {qwen.eot, qwen.skip, qwen.end_think, qwen.eos,
                    *qwen.prefix, *range(1000)}
  for i in sorted(bad)[:3]:
    assert qwen.decode([i]) == ''


def test_qwen_renders_every_letter(qwen):
  preamble, chunks = qwen.render(EXAMPLE)
  assert tuple(preamble[:len(qwen.head)]) == qwen.head
  assert qwen.decode(preamble[len(qwen.head):]) == EXAMPLE.preamble
  assert tuple(chunks[-1][-len(qwen.tail):]) == qwen.tail
  chunks[-1] = chunks[-1][:-len(qwen.tail)]
  assert [qwen.decode(c) for c in chunks] == list(EXAMPLE.chunks)


def test_qwen_trace(qwen):
  trace = qwen.render_trace(EXAMPLE)
  rest = trace[len(qwen.prefix):]
  want = (qwen.encode('3') + [qwen.eot, qwen.skip]
          + qwen.encode('asked: hats') + [qwen.eot]
          + qwen.encode('3 + 2 = 5') + [qwen.end_think]
          + qwen.encode('\\boxed{5}') + [qwen.eos])
  assert rest == want


def test_the_tail_follows_the_preamble_where_nothing_streams(qwen):
  preamble, chunks = qwen.render(
      Example(id=0, preamble='Hi', chunks=(), answer='1'))
  assert chunks == []
  assert preamble == [*qwen.head, *qwen.encode('Hi'), *qwen.tail]


# ------------------------------------------------------------------- errors
def test_missing_folder(tmp_path):
  with pytest.raises(ValueError, match='no tokenizer_config.json in .*nope'):
    tl.from_folder(tmp_path / 'nope')


def test_no_chat_template(tmp_path):
  from tokenizers import Tokenizer, models
  Tokenizer(models.WordLevel({'a': 0}, unk_token='a')).save(
      str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(
      json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast'}))
  with pytest.raises(ValueError, match='has no chat template'):
    tl.from_folder(tmp_path)


def test_no_token_that_ends_a_text(tmp_path):
  small_folder(tmp_path, '{{ messages[0].content }}')
  path = tmp_path / 'tokenizer_config.json'
  path.write_text(path.read_text().replace('"eos_token": "<end>", ', ''))
  with pytest.raises(ValueError, match=f'{tmp_path}.*has no eos_token'):
    tl.from_folder(tmp_path)


def small_folder(path, template):
  save_tokenizer(path, ['a', 'b', '<end>', 'user', 'assistant', '<unk>'],
                 template)
  return path


TEMPLATE = ("{% for m in messages %}user {{ m['content'] }} <end> {% endfor %}"
            '{% if add_generation_prompt %}assistant {% endif %}')


def test_a_family_without_think_tokens_gets_them(tmp_path):
  t = tl.from_folder(small_folder(tmp_path, TEMPLATE))
  # Six words, then <EOT>, <skip>, <think>, </think>; rounded up to 128.
  assert t.vocab_size == 128
  controls = {t.eot, t.skip, t.end_think}
  opening, = set(t.prefix) - {4}
  assert controls | {opening} == {6, 7, 8, 9}
  assert (t.head, t.tail, t.prefix[0]) == ((3,), (2,), 4)
  assert t.eos == t.pad == 2
  assert set(range(10, 128)) <= set(t.undecodable)


def test_vocab_size_must_hold_the_ids(tmp_path):
  with pytest.raises(ValueError, match='vocab_size=8 is below the 10 ids'):
    tl.from_folder(small_folder(tmp_path, TEMPLATE), 8)


def test_a_folder_without_its_vocabulary(qwen, tmp_path):
  # transformers would make a tokenizer of only special tokens.
  shutil.copy(QWEN / 'tokenizer_config.json', tmp_path)
  with pytest.raises(ValueError, match='no tokenizer.json in'):
    tl.from_folder(tmp_path)
