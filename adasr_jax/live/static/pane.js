// What one policy reads, thinks and answers.

import {announce, ask, count, el, percent, seconds} from './dom.js';
import {Lane} from './lane.js';
import {plain} from './run.js';

export const TITLES = {
  streaming: 'Thinks while it reads',
  read_then_think: 'Reads, then thinks',
};

export class Pane {
  /** @param {object} policy As in /api/info. */
  constructor(policy) {
    this.policy = policy;
    this.mode = policy.mode;
    this.title = TITLES[policy.mode] || policy.mode;
    this.lane = new Lane(this.title);
    this.list = el('ol', {class: 'sentences'});
    this.deep = el('p', {class: 'deep'});
    this.deepTitle = el('h3', {}, 'Deep thinking, after the last word');
    this.reply = el('b', {class: 'reply'}, '–');
    this.verdict = el('span', {class: 'verdict'});
    this.tokens = el('dl', {class: 'tokens'});
    const id = `pane-${policy.mode}`;
    this.element = el('article', {class: `card pane ${policy.mode}`,
      'aria-labelledby': id},
    el('h2', {id}, this.title),
    el('p', {class: 'small about'}, el('b', {}, policy.name),
      `, ${policy.model} parameters. ${measured(policy)}`,
      policy.note ? ` It ${policy.note}.` : ''),
    this.list, this.deepTitle, this.deep,
    el('p', {class: 'end'}, 'Answer ', this.reply, ' ', this.verdict),
    this.tokens);
    this.clear();
  }

  clear() {
    this.list.replaceChildren();
    this.deep.textContent = '–';
    this.deep.classList.add('none');
    this.reply.textContent = '–';
    this.verdict.textContent = '';
    this.verdict.className = 'verdict';
    this.tally = {streaming: 0, deep: 0, answer: 0};
    this.show(this.tally);
    this.chunks = new Map();  // number -> its thought's element
    this.open = '';  // text that is not committed
    this.committed = '';  // text that is, or was left out
    this.openItem = null;
    this.answer = null;
    this.waited = null;
    this.zero = this.heardAt = null;  // on this page's clock, ms
    this.pace = 0;
    this.ending = false;
    this.lane.clear();
  }

  /** Seconds since the session's start. */
  now() {
    return this.zero == null ? 0 : (performance.now() - this.zero) / 1000;
  }

  /** Text was sent; it is shown at once. */
  sent(text) {
    this.open += text;
    this.heardAt = performance.now();
    this.lane.mark('word', this.now(), 0.05);
    this.showOpen();
  }

  /** No more text comes. */
  end() {
    if (this.heardAt == null || this.answer != null) return;
    this.lane.last((this.heardAt - this.zero) / 1000);
    this.ending = true;
    this.lane.status.textContent = 'thinking';
  }

  showOpen() {
    if (!this.open.trim()) {
      this.openItem?.remove();
      this.openItem = null;
    } else if (this.openItem) {
      this.openItem.firstChild.textContent = this.open.trim();
    } else {
      this.openItem = this.item(this.open.trim(), 'open');
    }
  }

  item(text, kind) {
    const out = el('li', {class: kind}, el('p', {class: 'read'}, text));
    this.list.append(out);
    return out;
  }

  /** The committed text becomes an item of its own. */
  cut(text, kind) {
    this.committed += text;
    this.open = this.open.slice(text.length);
    this.openItem?.remove();
    this.openItem = null;
    const out = this.item(text.trim(), kind);
    this.showOpen();
    return out;
  }

  hear(e) {
    const of = {
      'session.created': () => {
        this.zero = performance.now() - 1000 * e.t;
        this.lane.status.textContent = 'reading';
      },
      'chunk.committed': () => this.commit(e),
      'input_text.cleared': () => {
        this.open = '';
        this.showOpen();
      },
      'thought.start': () => this.begin(e),
      'thought.token': () => {
        this.add(this.chunks.get(e.chunk), e.text);
        this.count('streaming', e.t);
      },
      'thought.end': () => this.thought(e),
      'thought.skipped': () => this.skip(e),
      'deep.token': () => {
        if (this.deep.classList.contains('none')) {
          this.deep.classList.remove('none');
          this.deep.textContent = '';
        }
        this.add(this.deep, e.text);
        this.count('deep', e.t);
      },
      'answer.token': () => {
        if (!this.tally.answer) this.reply.textContent = '';
        this.reply.append(e.text);
        this.count('answer', e.t);
      },
      'answer': () => this.answered(e),
      'done': () => this.done(e),
      'error': () => this.error(e),
    }[e.event];
    if (of) of();
  }

  commit(e) {
    const item = this.cut(e.text, '');
    if (this.mode !== 'streaming') return;
    const thought = el('p', {class: 'thought waiting'}, '…');
    item.append(thought);
    this.chunks.set(e.chunk, thought);
  }

  begin(e) {
    const thought = this.chunks.get(e.chunk);
    if (!thought) return;
    thought.className = 'thought writing';
    thought.textContent = '';
    thought.parentElement.classList.remove('skipped');
  }

  thought(e) {
    const thought = this.chunks.get(e.chunk);
    if (!thought) return;
    thought.className = 'thought';
    if (thought.textContent.trim() !== e.text) thought.textContent = e.text;
    if (!e.text) thought.textContent = '(no words)';
    if (e.cut) thought.append(' ', el('em', {}, '(cut: too long)'));
    this.count('streaming', e.t);
    announce(`Sentence ${e.chunk}: ${e.text || 'no words'}.`);
  }

  skip(e) {
    const thought = this.chunks.get(e.chunk);
    if (!thought) return;
    thought.className = 'thought skipped';
    thought.textContent = 'skipped';
    thought.parentElement.classList.add('skipped');
    this.count('streaming', e.t, 'skip');
    announce(`Sentence ${e.chunk}: skipped.`);
  }

  add(place, text) {
    if (place && text) place.append(el('span', {class: 'token'}, text));
  }

  count(phase, at, kind) {
    this.tally[phase] += 1;
    this.show(this.tally);
    this.lane.mark(kind || (phase === 'streaming' ? 'thought' : phase), at,
      this.pace ? 0.8 / this.pace : 0.04);
  }

  show(tokens) {
    const all = tokens.streaming + tokens.deep + tokens.answer;
    const entry = (name, n) => el('div', {}, el('dt', {}, name),
      el('dd', {}, `${n}`));
    this.tokens.replaceChildren(entry('Tokens of thoughts', tokens.streaming),
      entry('deep thinking', tokens.deep), entry('answer', tokens.answer),
      entry('all', all));
  }

  answered(e) {
    this.answer = e.text;
    this.reply.textContent = e.text || 'none';
    if (this.deep.classList.contains('none')) {
      this.deep.textContent = '(no thinking)';
    } else if (this.deep.textContent.trim() !== e.deep) {
      this.deep.textContent = e.deep;
    }
    if (!e.finished) {
      this.verdict.textContent = e.text ? 'cut: too long'
        : 'it stopped before an answer';
    }
  }

  done(e) {
    this.waited = e.wait.end;
    this.show(e.tokens);
    this.lane.status.textContent = 'answered';
    const said = this.answer ? `answers ${this.answer}` : 'gives no answer';
    const after = this.waited == null ? ''
      : `, ${seconds(this.waited, 2)} after the last word`;
    this.lane.describe(`${said}${after}; ` +
      `${count(e.tokens.streaming, 'token')} of thoughts, ` +
      `${e.tokens.deep} of deep thinking, ${e.tokens.answer} of the answer.`);
    announce(`${this.title}: ${said}${after}.`);
    this.tick();
  }

  error(e) {
    const said = plain(e);
    const text = e.text ?? '';
    // A chunk, or what was appended and not taken.
    const at = e.appended ? this.open.lastIndexOf(text) : -1;
    if (at >= 0) {
      this.open = this.open.slice(0, at) + this.open.slice(at + text.length);
      this.showOpen();
    }
    const item = text && at < 0 && this.open.startsWith(text)
      ? this.cut(text, 'bad') : this.item(text.trim(), 'bad');
    item.append(el('p', {class: 'error'}, said));
    announce(said);
  }

  /** Marks the answer as the task judges it, and what was not needed. */
  async reveal({seed, answer, sentences}) {
    const mine = this.answer;
    sentences.forEach((s, k) => {
      if (s.relevant === false) {
        this.list.children[k]?.firstChild.append(' ',
          el('span', {class: 'tag'}, 'not needed'));
      }
    });
    const query = new URLSearchParams({seed, answer: mine ?? ''});
    const {right} = await ask(`/api/judge?${query}`).catch(() => ({}));
    if (right == null || mine !== this.answer) return;  // another run
    this.verdict.textContent = right ? '✓ right' : `✗ wrong: it is ${answer}`;
    this.verdict.className = `verdict ${right ? 'right' : 'wrong'}`;
  }

  stopped(text) {
    this.lane.status.textContent = text;
    this.zero = null;
  }

  /** The clocks, as they run. */
  tick() {
    if (this.zero == null) return;
    const heard = this.heardAt == null ? null
      : (this.heardAt - this.zero) / 1000;
    if (this.waited != null) {
      this.lane.clocks(heard, this.waited, 2);
    } else if (this.ending) {
      this.lane.clocks(heard, this.now() - heard, 1);
    } else {
      this.lane.clocks(this.now(), null);
    }
  }
}

function measured(policy) {
  if (policy.accuracy == null) {
    return 'Nobody has measured how often it is right.';
  }
  const [low, high] = policy.interval || [];
  const range = low == null ? '' : ` [${(100 * low).toFixed(1)}–` +
      `${(100 * high).toFixed(1)}]`;
  const of = policy.n == null ? 'problems'
    : `${policy.n.toLocaleString('en')} problems`;
  return `Right on ${percent(policy.accuracy)}${range} of ${of}` +
      `${policy.split ? ` (${policy.split} split)` : ''}.`;
}
