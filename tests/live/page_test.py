"""The page in a browser, against a server with the shipped policies."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import urllib.request

import pytest

from adasr_jax.live import policy as policy_lib
from adasr_jax.live.server import Server
from tests.live import serving

playwright = pytest.importorskip(
    'playwright.sync_api', reason='playwright is not installed')
expect = playwright.expect

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
SEED = 3  # of the problem
TIMEOUT = 20_000  # ms

# Text against what is painted behind it; controls that are switched off are
# exempt. WCAG 2.2, relative luminance and contrast ratio.
CONTRAST = r'''() => {
  const numbers = (c) => c.match(/[\d.]+/g).map(Number);
  const light = (c) => numbers(c).slice(0, 3).map((x) => x / 255)
    .map((x) => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((numbers(color)[3] ?? 1) === 1) return color;
    }
    return getComputedStyle(document.documentElement).colorScheme
      .startsWith('dark') ? 'rgb(0, 0, 0)' : 'rgb(255, 255, 255)';
  };
  const out = [];
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3
      && n.data.trim()) || ['text', 'textarea', 'file'].includes(e.type);
    if (!own || !e.checkVisibility() || e.disabled) continue;
    const [a, b] = [getComputedStyle(e).color, behind(e)].map(light);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    out.push([ratio, `${e.tagName}.${e.className} ${e.textContent}`]);
  }
  return out;
}'''


@contextlib.contextmanager
def serve(policies, port=0):
  server = Server(policies, 1, 0.0)
  with serving.running(server, port) as address:
    yield server, address


@pytest.fixture(scope='module')
def policies(tmp_path_factory):
  samples = tmp_path_factory.mktemp('run') / 'samples.jsonl'
  samples.write_text(''.join(json.dumps(rollout(step, k)) + '\n'
                             for step in (1, 10) for k in range(2)))
  return [dataclasses.replace(p, samples=samples)
          for p in policy_lib.shipped()]


def rollout(step, k):
  return {'step': step, 'id': 7, 'preamble': 'how many <i>eggs</i> ?\n',
          'question': '', 'chunks': [
              {'text': 'tom has 3 eggs .', 'thought': '3', 'tokens': 2,
               'relevant': True, 'cut': False},
              {'text': ' the sky is blue .', 'thought': None, 'tokens': 1,
               'relevant': False, 'cut': False}],
          'deep': f'so 3 at {step}', 'answer': '3' if k else '4',
          'reference': '3', 'correct': bool(k), 'format': True,
          'rewards': {'accuracy': float(k), 'total': k + 0.25},
          'advantages': {'total': 2.0 * k - 1}}


@pytest.fixture(scope='module')
def browser():
  with playwright.sync_playwright() as p:
    path = next(filter(None, map(shutil.which, BROWSERS)),
                p.chromium.executable_path)
    if not os.path.exists(path):
      pytest.skip(f'no browser: none of {", ".join(BROWSERS)}')
    with p.chromium.launch(executable_path=path, args=['--no-sandbox']) as b:
      yield b


@pytest.fixture(scope='module')
def address(browser, policies):  # no browser, no server
  with serve(policies) as (server, address):
    server.warm()
    yield address


@contextlib.contextmanager
def opened(browser, address, path=f'?seed={SEED}', **kwargs):
  """A page on which nothing goes wrong unseen."""
  with browser.new_context(**kwargs) as context:
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    wrong = []
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('console', lambda m: m.type == 'error' and wrong.append(m.text))
    page.goto(f'{address}/{path}')
    expect(page.locator('.pane.streaming')).to_have_count(1, timeout=TIMEOUT)
    if 'replay' not in path:
      expect(page.locator('#text')).not_to_have_value('')
    page.wrong = wrong
    yield page
    assert not [w for w in wrong if 'ERR_CONNECTION' not in w]


def fast(page):
  page.locator('#speed').fill('1000')
  page.locator('#pace').select_option('0')


def until_answered(page):
  expect(page.locator('#summary')).not_to_be_empty(timeout=TIMEOUT)


def problem(address):
  with urllib.request.urlopen(f'{address}/api/problem?seed={SEED}') as reply:
    return json.loads(reply.read())


def number(text):
  return float(re.search(r'[\d.]+', text).group())


def test_a_generated_problem_runs_to_its_answer_in_both_panes(
    browser, address):
  wanted = problem(address)
  with opened(browser, address) as page:
    fast(page)
    page.locator('#start').click()
    expect(page.locator('#start')).to_have_text('Stop')
    expect(page.locator('li.open').first).to_be_visible()
    until_answered(page)
    for mode in ('streaming', 'read_then_think'):
      pane = page.locator(f'.pane.{mode}')
      assert pane.locator('.read').count() == len(wanted['sentences'])
      right = pane.locator('.reply').inner_text() == wanted['answer']
      verdict = pane.locator('.verdict')
      expect(verdict).to_have_text(
          '✓ right' if right else f'✗ wrong: it is {wanted["answer"]}')
      expect(verdict).to_have_class(
          f'verdict {"right" if right else "wrong"}')
      thoughts = pane.locator('.thought').all_inner_texts()
      counts = [int(x) for x in pane.locator('.tokens dd').all_inner_texts()]
      assert counts[3] == sum(counts[:3]) and counts[1] and counts[2]
      if mode == 'streaming':
        assert len(thoughts) == len(wanted['sentences'])
        assert 'skipped' in thoughts and '…' not in thoughts
        expect(pane.locator('.tag')).to_have_count(
            sum(not s['relevant'] for s in wanted['sentences']))
      else:
        assert not thoughts and counts[0] == 0
    waits = page.locator('dd.wait').all_inner_texts()
    assert all(0 < number(w) < 20 for w in waits)
    summary = page.locator('#summary').inner_text()
    assert all(w in summary for w in waits)
    assert f'reference answer is {wanted["answer"]}' in summary
    expect(page.locator('#weak')).to_contain_text('weak baseline')
    assert '87.5 %' in page.locator('.pane.streaming .about').inner_text()
    for kind in ('word', 'thought', 'skip', 'deep', 'answer'):
      assert page.locator(f'rect.{kind}').count(), kind


def test_an_unknown_word_is_named_and_the_rest_is_read(browser, address):
  with opened(browser, address) as page:
    fast(page)
    page.locator('#text').fill(
        'eve has 18 hats . zoe has <b>zebras</b> . zoe has 4 hats .')
    page.locator('#start').click()
    until_answered(page)
    for pane in page.locator('#panes .pane').all():
      bad = pane.locator('li.bad')
      expect(bad.locator('.read')).to_have_text('zoe has <b>zebras</b> .')
      expect(bad.locator('.error')).to_contain_text("no word '<b>zebras</b>'")
      assert pane.locator('li:not(.bad)').count() == 2
      assert pane.locator('.reply').inner_text().isdigit()
      expect(pane.locator('.verdict')).to_be_empty()
    expect(page.locator('#summary')).to_contain_text('no reference answer')
    # A question that the policy cannot read is refused as a whole.
    page.locator('#question').fill('how many zebras ?')
    page.locator('#start').click()
    expect(page.locator('#notice')).to_contain_text("no word 'zebras'")
    expect(page.locator('#start')).to_have_text('Start')


def test_text_is_read_as_it_is_typed_and_revised(browser, address):
  with opened(browser, address) as page:
    fast(page)
    page.locator('#typed').check()
    page.locator('#start').click()
    text = page.locator('#text')
    expect(text).to_have_value('')
    text.press_sequentially('eve has 18 hats . zoe has 5 eg')
    expect(page.locator('.streaming .thought').first).not_to_have_text('…')
    expect(page.locator('.streaming li.open .read')).to_have_text(
        'zoe has 5 eg')
    for _ in 'eg':
      text.press('Backspace')
    text.press_sequentially('hats . ')
    expect(page.locator('.streaming li.open')).to_have_text('zoe has 5 hats .')
    text.evaluate('(e) => e.setSelectionRange(0, 3)')
    text.press('x')  # over what has been read
    expect(page.locator('#notice')).to_contain_text('cannot be changed')
    expect(text).to_have_value('eve has 18 hats .')
    text.press('End')
    text.press_sequentially(' zoe has 6 hats .')
    page.locator('#end').click()
    until_answered(page)
    for pane in page.locator('#panes .pane').all():
      assert pane.locator('.read').all_inner_texts() == [
          'eve has 18 hats .', 'zoe has 6 hats .']
      expect(pane.locator('.error')).to_have_count(0)


def test_by_keyboard(browser, address):
  focused = '''() => {
    const e = document.activeElement;
    return [e.id, getComputedStyle(e).outlineStyle];
  }'''

  def tab_to(page, id):
    for _ in range(20):
      page.keyboard.press('Tab')
      at, outline = page.evaluate(focused)
      assert outline != 'none', f'no focus seen on {at}'
      if at == id:
        return
    raise AssertionError(f'Tab does not reach {id}')

  with opened(browser, address) as page:
    tab_to(page, 'start')
    tab_to(page, 'speed')
    page.keyboard.press('End')
    expect(page.locator('#speed-says')).to_have_text('1000 words per minute')
    tab_to(page, 'pace')
    page.keyboard.press('End')  # as fast as here
    for _ in range(20):
      if page.evaluate(focused)[0] == 'start':
        break
      page.keyboard.press('Shift+Tab')
    page.keyboard.press('Enter')
    until_answered(page)
    assert page.evaluate(focused)[0] == 'start'
    # A screen reader is told whole thoughts, not tokens.
    log = page.locator('#announce')
    assert log.get_attribute('aria-live') == 'polite'
    expect(log).to_contain_text('after the last word')
    for _ in range(12):
      if page.evaluate(focused)[0] == 'to-replay':
        break
      page.keyboard.press('Shift+Tab')
    page.keyboard.press('Enter')
    expect(page.locator('#replay')).to_be_visible()
    expect(page.locator('#live')).to_be_hidden()
    unlabelled = page.evaluate('''() => [...document.querySelectorAll(
      'input, select, textarea, button')].filter((e) => !e.labels?.length &&
      !e.textContent.trim() && !e.ariaLabel).map((e) => e.id)''')
    assert not unlabelled


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_narrow_and_readable(browser, address, scheme):
  with opened(browser, address, color_scheme=scheme,
              viewport={'width': 360, 'height': 740},
              reduced_motion='reduce') as page:
    fits = lambda: page.evaluate(
        'document.documentElement.scrollWidth') <= 360

    def readable(least):
      found = page.evaluate(CONTRAST)
      assert len(found) > least
      low = [(round(r, 2), what) for r, what in found if r < 4.5]
      assert not low
    assert fits()
    fast(page)
    page.locator('#start').click()
    until_answered(page)
    readable(50)
    assert page.locator('.token').first.evaluate(
        '(e) => getComputedStyle(e).animationName') == 'none'
    page.locator('#text').fill(f'zoe has {"x" * 300} . zoe has 4 hats .')
    page.locator('#start').click()
    until_answered(page)
    assert page.locator('.error').count() and fits()
    readable(50)
    page.locator('#to-replay').click()
    expect(page.locator('.rollouts .pane')).to_have_count(2)
    assert fits()
    readable(30)


def test_replay_of_a_run(browser, address, tmp_path):
  with opened(browser, address, '#replay') as page:
    cards = page.locator('.rollouts .pane')
    expect(cards).to_have_count(2)
    expect(page.locator('.group h2')).to_have_text('how many <i>eggs</i> ?')
    expect(page.locator('#step-says')).to_have_text('10 (2 of 2)')
    page.locator('#step').press('ArrowLeft')
    expect(page.locator('#step-says')).to_have_text('1 (1 of 2)')
    expect(cards.nth(0).locator('.deep')).to_have_text('so 3 at 1')
    expect(cards.nth(0)).to_contain_text('✗ wrong')
    expect(cards.nth(1)).to_contain_text('✓ right')
    expect(cards.nth(1).locator('.thought')).to_have_text(['3', 'skipped'])
    assert cards.nth(0).locator('tbody tr').all_inner_texts() == [
        'accuracy\t0.00\t–', 'total\t0.25\t−1.00']
    expect(page.locator('#replay-notice')).to_have_text(
        '2 rollouts of 1 problem: 50.0 % right, mean total reward 0.75.')
    # A file of this machine, with a damaged line.
    path = pathlib.Path(tmp_path, 'samples.jsonl')
    path.write_text(json.dumps(rollout(5, 1)) + '\n{"step": 6, "chu')
    page.locator('#file').set_input_files(path)
    expect(page.locator('#step-says')).to_have_text('5 (1 of 1)')
    expect(page.locator('#replay-says')).to_contain_text('1 line could not')
    expect(cards).to_have_count(1)


def test_busy_then_free(browser, address):
  with (opened(browser, address) as first, opened(browser, address) as second):
    first.locator('#typed').check()
    first.locator('#start').click()
    expect(first.locator('.status').first).to_have_text('reading')
    fast(second)
    second.locator('#start').click()
    expect(second.locator('#notice')).to_contain_text(
        'The only place is taken. Trying again in')
    first.locator('#start').click()
    expect(first.locator('#notice')).to_have_text('Stopped.')
    until_answered(second)


def test_a_server_that_stops_and_comes_back(browser, policies):
  with contextlib.ExitStack() as first:
    _, address = first.enter_context(serve(policies))
    with opened(browser, address) as page:
      page.locator('#typed').check()
      page.locator('#start').click()
      expect(page.locator('.status').first).to_have_text('reading')
      first.close()
      expect(page.locator('#notice')).to_contain_text(
          'The server is stopping. Trying to reach the server again')
      expect(page.locator('#start')).to_have_text('Start')
      with serve(policies, int(address.rpartition(':')[2])):
        expect(page.locator('#notice')).to_contain_text('is there again')
