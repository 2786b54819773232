// The live view: the form, and the run that it starts.

import {announce, ask, byId, notice, percent, seconds} from './dom.js';
import {Pane} from './pane.js';
import {Run, words} from './run.js';

const BUSY = 3;  // seconds until a busy server is asked again

let panes = [];
let run = null;
let problem = null;
let problems = 0;  // of the server
let again = 0;  // timer of the next try
let most = 0;  // seconds that the strips show
let ticking = 0;

const fields = Object.fromEntries(['question', 'text', 'speed', 'typed', 'pace',
  'start', 'end', 'problem'].map((id) => [id, byId(id)]));
const say = (text, kind) => notice(byId('notice'), text, kind);

/** Shows the policies of /api/info; `query` may have a seed. */
export function open(info, query) {
  panes = [...info.policies].sort((a, b) =>
    (b.mode === 'streaming') - (a.mode === 'streaming'))
    .map((policy) => new Pane(policy));
  byId('lanes').replaceChildren(...panes.map((p) => p.lane.element));
  byId('panes').replaceChildren(...panes.map((p) => p.element));
  byId('panes').classList.toggle('one', panes.length === 1);
  weak(info.policies);
  if (panes.length === 1) {
    byId('lead').textContent = 'Text arrives word by word. See what the ' +
      'policy thinks, and how long you wait after the last word.';
  }
  problems = info.problems;
  fields.problem.hidden = !problems;
  scale(10);
  if (problems && !fields.text.value) {
    fetchProblem(query.has('seed') ? Number(query.get('seed')) : random());
  }
}

const random = () => Math.floor(Math.random() * problems);

function weak(policies) {
  const of = (mode) => policies.find((p) => p.mode === mode);
  const [ours, base] = [of('streaming'), of('read_then_think')];
  const place = byId('weak');
  place.hidden = !(ours?.accuracy != null && base?.accuracy < ours.accuracy);
  if (place.hidden) return;
  place.textContent = `${base.name} is a weak baseline here: right on ` +
    `${percent(base.accuracy)}, ${ours.name} on ${percent(ours.accuracy)}. ` +
    'So do not compare who is right, but where the thinking happens and how ' +
    'long the answer takes after the last word.';
}

async function fetchProblem(seed) {
  fields.problem.disabled = true;
  try {
    problem = await ask(`/api/problem?seed=${seed}`);
    problem.text = problem.sentences.map((s) => s.text).join('');
    fields.question.value = problem.question;
    fields.text.value = problem.text;
    clear();
    say('');
  } catch (e) {
    say(e.message, 'bad');
  } finally {
    fields.problem.disabled = Boolean(run);
  }
}

/** The problem, if question and text are still its own. */
const whole = () => (problem && fields.text.value === problem.text &&
  fields.question.value === problem.question ? problem : null);

function clear() {
  panes.forEach((p) => p.clear());
  byId('summary').textContent = '';
  scale(10);
}

function scale(seconds_) {
  most = seconds_;
  panes.forEach((p) => p.lane.scale(most));
  byId('axis-end').textContent = seconds(most, most < 10 ? 1 : 0);
}

function start() {
  clearTimeout(again);
  const typed = fields.typed.checked;
  if (typed && whole()) fields.text.value = '';
  if (!typed && !fields.text.value.trim()) {
    say('There is no text to read.', 'bad');
    fields.text.focus();
    return;
  }
  const own = typed ? null : whole();
  const text = fields.text.value;
  const pace = Number(fields.pace.value);
  const speed = Number(fields.speed.value);
  clear();
  say(typed ? 'Type into the text field. What has been read cannot be ' +
    'changed. “End of text” asks for the answer.' : '');
  panes.forEach((p) => { p.pace = pace; });
  scale(typed ? 10 : Math.max(2, words(text).length * 60 / speed + 1.5));
  run = new Run({
    modes: panes.map((p) => p.mode),
    start: {question: fields.question.value.trim(), pace,
      chunks: own ? 'commits' : 'sentences', id: own ? own.id : 0, seed: 0},
    heard: hear,
    sent: (part) => panes.forEach((p) => p.sent(part)),
    over: (how) => over(how, own),
  });
  running(true, typed);
  const started = run;
  if (typed) {
    fields.text.focus();
    run.ready.then(type);
  } else {
    run.read(own ? own.sentences.map((s) => s.text) : [text], speed)
      .then(() => { if (run === started) panes.forEach((p) => p.end()); });
  }
  ticking = setInterval(tick, 100);
  announce('Reading.');
}

function running(on, typed = false) {
  fields.start.textContent = on ? 'Stop' : 'Start';
  // What is disabled or hidden would lose the keyboard's focus.
  const names = ['speed', 'typed', 'pace', 'problem'];
  if ([...names, 'end'].some((n) => fields[n] === document.activeElement)) {
    fields.start.focus();
  }
  fields.end.hidden = !(on && typed);
  for (const name of names) fields[name].disabled = on;
  fields.question.readOnly = on;
  fields.text.readOnly = on && !typed;
}

function tick() {
  panes.forEach((p) => p.tick());
  const latest = Math.max(...panes.map((p) => Math.max(p.lane.latest,
    p.waited == null ? p.now() : 0)));
  if (latest > most) scale(latest * 1.1);
}

function hear(mode, event) {
  panes.find((p) => p.mode === mode).hear(event);
  if (['input_text.cleared', 'done'].includes(event.event)) retype(mode);
}

// ------------------------------------------------------------- as it is typed
let clearing = new Set();  // modes that have not dropped their open text
let endNext = false;  // the text ends when they have

/** Sends what was added; what was changed is dropped and sent again. */
function type() {
  if (!run?.started || run.ended || run.ending || clearing.size) return;
  const pane = panes[0];
  const known = pane.committed + pane.open;
  const value = fields.text.value;
  if (value.startsWith(known)) {
    run.append(value.slice(known.length));
  } else {
    clearing = new Set(run.open);
    run.all('input_text.clear');
  }
}

function retype(mode) {
  if (!clearing.delete(mode) || clearing.size) return;
  const read = panes[0].committed;
  if (!fields.text.value.startsWith(read)) {
    say('What has been read cannot be changed: the field shows it again.',
      'bad');
    fields.text.value = read;
  }
  if (endNext) endTyped(); else type();
}

function endTyped() {
  if (!run?.started) return;
  type();
  endNext = clearing.size > 0;
  if (endNext) return;
  run.end();
  panes.forEach((p) => p.end());
  fields.end.hidden = true;
  fields.text.readOnly = true;
  fields.start.focus();
}

// -------------------------------------------------------------------- the end
function over({kind, text}, own) {
  clearInterval(ticking);
  clearing.clear();
  endNext = false;
  tick();
  run = null;
  running(false);
  if (kind === 'done') {
    if (own) panes.forEach((p) => p.reveal(own));
    byId('summary').textContent = summary(own);
    announce(summary(own));
    say('');
    return;
  }
  panes.forEach((p) => { if (p.waited == null) p.stopped('stopped'); });
  if (kind === 'busy') return later(text, BUSY);
  if (kind === 'lost') return reach(text);
  say(text, kind === 'stopped' ? '' : 'bad');
}

function summary(own) {
  const timed = panes.filter((p) => p.waited != null);
  const said = timed.map((p) =>
    `${p.policy.name}: ${seconds(p.waited, 2)} after the last word`);
  const [a, b] = timed.map((p) => p.waited);
  const times = b > a && a > 0 ? ` (${(b / a).toFixed(1)} times as long)` : '';
  const reference = own ? ` The reference answer is ${own.answer}.`
    : ' There is no reference answer: the text is your own.';
  return `${said.join('; ')}${times}.${reference}`;
}

/** Counts down, then starts again. */
function later(text, left) {
  fields.start.textContent = 'Stop';
  if (!left) return start();
  say(`${text} Trying again in ${left} s.`, 'bad');
  again = setTimeout(() => later(text, left - 1), 1000);
}

/** Asks until the server is there again. */
function reach(text) {
  say(`${text} Trying to reach the server again …`, 'bad');
  again = setTimeout(async () => {
    try {
      await ask('/api/info');
      say(`${text} The server is there again: Start reads the text from the ` +
        'beginning.');
    } catch {
      reach(text);
    }
  }, 2000);
}

// ------------------------------------------------------------------- the form
function settings() {
  fields.speed.disabled = fields.typed.checked;
  const says = `${fields.speed.value} words per minute`;
  byId('speed-says').textContent = fields.typed.checked ? 'as you type' : says;
  fields.speed.setAttribute('aria-valuetext', says);
  byId('pace-says').textContent = Number(fields.pace.value)
    ? 'Simulates a larger model: the one here is held back.'
    : 'What this machine needs; nothing is held back.';
  byId('clock-says').textContent = Number(fields.pace.value)
    ? `simulating ${fields.pace.value} tokens per second`
    : 'as fast as this machine';
}

byId('form').addEventListener('submit', (e) => {
  e.preventDefault();
  if (run) {
    run.stop();
  } else if (fields.start.textContent === 'Stop') {  // it waits to try again
    clearTimeout(again);
    running(false);
    say('Stopped.');
  } else {
    start();
  }
});
fields.text.addEventListener('input', () => {
  if (run && fields.typed.checked) type();
});
fields.problem.addEventListener('click', () => fetchProblem(random()));
fields.end.addEventListener('click', endTyped);
for (const name of ['speed', 'typed', 'pace']) {
  fields[name].addEventListener('input', settings);
}
settings();
