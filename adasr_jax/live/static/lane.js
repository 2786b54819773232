// A policy's line of time: words that arrive, tokens that are written.

import {el, seconds, svg} from './dom.js';

const WIDTH = 1000;
const LINES = {word: [0, 9], token: [13, 21]};  // y and height

export class Lane {
  /** @param {string} title What the policy does. */
  constructor(title) {
    this.title = title;
    this.status = el('span', {class: 'status'});
    this.stream = el('dd', {class: 'stream'}, '–');
    this.wait = el('dd', {class: 'wait'}, '–');
    this.strip = svg('svg', {viewBox: `0 0 ${WIDTH} 36`, role: 'img',
      preserveAspectRatio: 'none'});
    this.marks = svg('g');
    this.strip.append(this.marks);
    this.element = el('div', {class: 'lane'},
      el('p', {class: 'name'}, el('b', {}, title), ' ', this.status),
      this.strip,
      el('dl', {class: 'clocks'},
        el('div', {}, el('dt', {}, 'Text'), this.stream),
        el('div', {}, el('dt', {}, 'Wait'), this.wait)));
    this.clear();
  }

  clear() {
    this.marks.replaceChildren();
    this.status.textContent = '';
    this.stream.textContent = this.wait.textContent = '–';
    this.latest = 0;
    this.describe('Nothing yet.');
  }

  describe(text) {
    this.strip.setAttribute('aria-label', `${this.title}: ${text}`);
  }

  /** A mark from `at` on, both in seconds. */
  mark(kind, at, width) {
    const [y, height] = LINES[kind === 'word' ? 'word' : 'token'];
    this.marks.append(svg('rect', {class: kind, x: at, y, width, height}));
    this.latest = Math.max(this.latest, at + width);
  }

  /** The last word has arrived. */
  last(at) {
    this.marks.append(svg('line', {class: 'last', x1: at, x2: at, y1: 0,
      y2: 36}));
  }

  /** The strip shows [0, most] seconds. */
  scale(most) {
    this.marks.setAttribute('transform', `scale(${WIDTH / most} 1)`);
  }

  clocks(stream, wait, digits) {
    this.stream.textContent = stream == null ? '–' : seconds(stream);
    this.wait.textContent = wait == null ? '–' : seconds(wait, digits);
  }
}
