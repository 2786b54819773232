"""Rendering: the same text comes back, and control tokens are single ids."""

import json
import os
import pathlib
import shutil

import pytest

from adasr_jax.core.types import Example
from adasr_jax.data import tokenizer as tl
from adasr_jax.tasks import word_problems
from tests.small import save_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
QWEN = pathlib.Path(os.environ.get(
    'ADASR_DATA', ROOT / '../shared/data')) / 'qwen3_tokenizer'
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
  with pytest.raises(Exception, match='UNK'):
    words.encode('zebra')


def test_a_trace_is_required(words):
  with pytest.raises(ValueError, match='example 3 has no supervised trace'):
    words.render_trace(Example(id=3, preamble='', chunks=('1',), answer='1'))


# ------------------------------------------------------------------- folder
def test_control_tokens_are_single_ids(qwen):
  for text, i in ((tl.EOT, qwen.eot), (tl.SKIP, qwen.skip),
                  (tl.END_THINK, qwen.end_think)):
    assert qwen.encode(f'a{text}b').count(i) == 1
    assert qwen.encode(text) == [i]
  # Qwen3's own ids: </think>, <|im_end|>, <|endoftext|>; ours follow.
  assert (qwen.end_think, qwen.eos, qwen.pad) == (151668, 151645, 151643)
  assert {qwen.eot, qwen.skip} == {151669, 151670}


def test_the_turns_are_the_templates(qwen):
  assert qwen.encode('<|im_start|>user\n') == list(qwen.head)
  assert qwen.encode('<|im_end|>\n') == list(qwen.tail)
  assert qwen.encode('<|im_start|>assistant\n<think>\n') == list(qwen.prefix)


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
