// One text, read to every policy on one WebSocket: docs/live.md.

// What a message takes: sentences leave a long text as they are complete.
const PIECES = /.{1,1000}/gsu;
const ANSWERS = 10000;  // ms within which the server must open a session

const REASONS = {
  cancelled: 'It was stopped.',
  idle: 'The server ended it: no text came for two minutes.',
  failed: 'The server failed. Its log says why. Start tries again.',
  too_slow: 'The server hung up: this page read too slowly.',
  too_many_errors: 'The server hung up: it did not understand this page.',
  too_many_connections: 'The server has too many connections. ' +
      'Start again later.',
  no_session: 'The server hung up: nothing was started.',
  shutdown: 'The server is stopping.',
};

/** Words of a text, each with the white space before it. */
export const words = (text) => text.match(/\s*\S+/g) || [];

export class Run {
  /**
   * Opens the connection.
   * @param {{modes: string[], start: object, heard: function(string, object),
   *   sent: function(string), over: function(object)}} options
   *   `start`: fields of session.start. `heard(mode, event)`: each event of a
   *   session. `sent(text)`: text that both have got. `over({kind, text})`:
   *   once; kind is 'done', 'stopped', 'busy', 'refused', 'lost' or 'closed'.
   */
  constructor({modes, start, heard, sent, over}) {
    Object.assign(this, {modes, heard, sent, over});
    this.open = new Set(modes);  // sessions that have not ended
    this.created = new Set();
    this.ended = this.ending = false;
    this.failed = '';
    this.started = false;  // all sessions are open
    this.ready = new Promise((resolve) => { this.begin = resolve; });
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    this.socket = new WebSocket(`${scheme}://${location.host}/ws`);
    this.socket.onopen = () => {
      for (const mode of modes) {
        this.say('session.start', {...start, session: mode, mode});
      }
    };
    this.socket.onmessage = (m) => this.hear(JSON.parse(m.data));
    this.socket.onclose = () => this.finish('lost', this.failed ||
        'The connection to the server was lost before the answer.');
    this.patience = setTimeout(() => this.finish('lost',
        'The server does not answer.'), ANSWERS);
  }

  say(type, fields) {
    if (this.socket.readyState === WebSocket.OPEN) {
      this.socket.send(JSON.stringify({type, ...fields}));
    }
  }

  /** Says the same to every session that has not ended. */
  all(type, fields = {}) {
    for (const mode of this.open) this.say(type, {...fields, session: mode});
  }

  append(text) {
    if (this.ended) return;
    for (const piece of text.match(PIECES) || []) {
      this.all('input_text.append', {text: piece});
      this.sent(piece);
    }
  }

  /** There is no more text. */
  end() {
    if (!this.ending) this.all('session.end');
    this.ending = true;
  }

  /**
   * Reads at a speed.
   * @param {string[]} chunks Committed each, if there are several.
   * @param {number} speed Words per minute.
   */
  async read(chunks, speed) {
    await this.ready;
    const begun = performance.now();
    let n = 0;
    for (const chunk of chunks) {
      for (const word of words(chunk)) {
        n += 1;
        const due = begun + n * 60000 / speed;
        await new Promise((resolve) => {
          setTimeout(resolve, due - performance.now());
        });
        if (this.ended) return;
        this.append(word);
      }
      if (chunks.length > 1) this.all('input_text.commit');
    }
    this.end();
  }

  hear(event) {
    if (this.ended) return;
    const mode = event.session;
    if (event.event === 'busy') {
      this.finish('busy', event.sessions === 1 ? 'The only place is taken.'
        : `All ${event.sessions} places are taken.`);
    } else if (event.event === 'error' && !this.created.has(mode)) {
      this.finish('refused', plain(event));
    } else if (event.event === 'closed' && !this.modes.includes(mode)) {
      this.failed = REASONS[event.reason] || event.reason;
    } else if (['ended', 'no_session'].includes(event.code)) {
      // It stopped early, while a word was on its way.
    } else if (this.modes.includes(mode)) {
      if (event.event === 'session.created') {
        this.created.add(mode);
        if (this.created.size === this.modes.length) {
          clearTimeout(this.patience);
          this.started = true;
          this.begin();
        }
      }
      this.heard(mode, event);
      if (event.event === 'closed') {
        this.finish('closed', REASONS[event.reason] || event.reason);
      } else if (event.event === 'done') {
        this.open.delete(mode);
        if (!this.open.size) this.finish('done', '');
      }
    }
  }

  stop() {
    this.finish('stopped', 'Stopped.');
  }

  finish(kind, text) {
    if (this.ended) return;
    this.ended = true;
    clearTimeout(this.patience);
    this.begin();
    this.socket.onclose = null;
    this.socket.close();
    this.over({kind, text});
  }
}

const CODES = {
  unknown_words: 'Left out, for a word that the policy does not know',
  too_long: 'Left out, since the text is too long',
  too_many_chunks: 'Left out, since there are too many sentences',
};

/** An error event in plain words. */
export const plain = (event) =>
  `${CODES[event.code] || 'The server refused'}: ${event.message}.`;
