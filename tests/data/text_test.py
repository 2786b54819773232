"""Sentences lose no letter, and abbreviations do not end them."""

import json

import pytest

from adasr_jax.data.text import content_id, split_sentences, words
from tests.small import DATA



def gsm8k(n):
  path = DATA / 'gsm8k_train.jsonl'
  if not path.is_file():
    pytest.skip(f'no {path.name}')
  with path.open(encoding='utf-8') as lines:
    return [json.loads(line)['question'] for line, _ in zip(lines, range(n))]


# '|' marks each break; the white space after it opens the next chunk.
@pytest.mark.parametrize('marked', [
    'Mr. Smith met Dr. Jones.| They ate.',
    'From his work, Mr. Banks got $500.| Ms. Elizabeth got $3.50.| Who won?',
    'He saw Ms. Lee.| Ms. Bo saw him.',
    "Are there more in Mr. Jones' class than in Ms. Swanson's?",
    'He lives in the U.S. and works.| She left at 5 a.m. on Monday.',
    'The bus left at 5 p.m.| He missed it.',
    'A fruit, e.g. an apple, i.e. this one.| Done.',
    'It weighs 3.5 kg and costs $3.50.| Another costs $.50 each.',
    'He said "Stop. Now." and left.| She ran.',
    'He said “Stop. Now.” and left.| She ran.',
    'She said, "Go."| Then she left.',
    'Wait... what?| Hmm... maybe.| Wait . . . what?',
    'Angie bought 3 lbs. of coffee.| It weighed 3 lbs.| She drank it.',
    '1. First item.| 2. Second item.',
    'a) One item.| b) Two items.',
    'Really?!| Yes!| no full stop',
    '  Two spaces lead.| One trails.  ',
    'One paragraph.|\n\n Another.|\nA new line.\n',
    'Line one.|\r\nLine two.|\r\n\r\nLine three.',
    'No space.|How many?',
    'E. coli, Fig. 1, et al. 2010 vs. placebo (P < .05).| Then we did.',
    '你好。| 再见。',
    'One',
    '   ',
])
def test_breaks(marked):
  assert split_sentences(marked.replace('|', '')) == tuple(marked.split('|'))


def test_empty_text_has_no_sentences():
  assert split_sentences('') == ()


def test_gsm8k_loses_no_letter_and_has_no_fragments():
  for question in gsm8k(500):
    chunks = split_sentences(question)
    assert ''.join(chunks) == question
    assert all(c.strip() for c in chunks)
    # In these 500 nothing is shorter; elsewhere 'None.' may be a sentence.
    assert min(map(words, chunks)) >= 2, chunks
    assert all(c[0].isspace() for c in chunks[1:]), chunks


def test_gsm8k_has_several_sentences():
  # 3.6 per problem: the question and what leads to it. One sentence per
  # problem would pass the test above.
  lengths = [len(split_sentences(q)) for q in gsm8k(500)]
  assert 3.0 < sum(lengths) / len(lengths) < 4.0


def test_words():
  assert words('') == words(' \n') == 0
  assert words(' She has  3.5 kg.\n') == 4


def test_content_id_is_stable_and_spreads():
  # The number itself: any other would change every split and rollout.
  assert content_id('') == 0x1271cf25
  ids = [content_id(str(i)) for i in range(2000)]
  assert len(set(ids)) == 2000 and all(0 <= i < 2**32 for i in ids)
  assert 900 < sum(i < 2**31 for i in ids) < 1100
