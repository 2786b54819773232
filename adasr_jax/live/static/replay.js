// The rollouts of a training run, step by step.

import {ask, byId, count, el, notice, percent} from './dom.js';

let steps = [];
let fetchStep = null;  // step -> its samples
let asked = new AbortController();

const slider = byId('step');
const say = (text, kind) => notice(byId('replay-notice'), text, kind);

/** Shows the run that the server serves, if it does. */
export async function open(info) {
  byId('replay-says').textContent = info.replay
    ? 'Rollouts of the run that this server serves, with their rewards.'
    : 'This server serves no run with samples; “python -m adasr_jax.live ' +
      '--of=runs/demo” serves one of yours. Or open a samples.jsonl below.';
  if (!info.replay) return;
  try {
    show((await ask('/api/replay')).steps, async (step, signal) =>
      (await ask(`/api/replay?step=${step}`, {signal})).samples);
  } catch (e) {
    say(e.message, 'bad');
  }
}

function show(all, fetcher) {
  steps = all;
  fetchStep = fetcher;
  slider.max = Math.max(steps.length - 1, 0);
  slider.disabled = steps.length < 2;
  slider.value = slider.max;
  turn();
}

async function turn() {
  const k = Number(slider.value);
  byId('before').disabled = !(k > 0);
  byId('after').disabled = !(k < steps.length - 1);
  if (!steps.length) return say('There are no samples.', 'bad');
  const step = steps[k];
  byId('step-says').textContent = `${step} (${k + 1} of ${steps.length})`;
  slider.setAttribute('aria-valuetext', `step ${step}`);
  asked.abort();
  asked = new AbortController();
  try {
    const samples = await fetchStep(step, asked.signal);
    if (steps[Number(slider.value)] === step) draw(samples);
  } catch (e) {
    if (e.name !== 'AbortError') say(e.message, 'bad');
  }
}

function draw(samples) {
  const groups = new Map();
  for (const s of samples) {
    groups.set(s.id, [...(groups.get(s.id) || []), s]);
  }
  const right = samples.filter((s) => s.correct).length;
  const totals = samples.map((s) => s.rewards?.total)
    .filter((x) => typeof x === 'number');
  const mean = totals.reduce((a, b) => a + b, 0) / totals.length;
  say(`${count(samples.length, 'rollout')} of ` +
    `${count(groups.size, 'problem')}: ` +
    `${percent(right / samples.length)} right` +
    (totals.length ? `, mean total reward ${mean.toFixed(2)}.` : '.'));
  byId('groups').classList.toggle('single', groups.size === samples.length);
  byId('groups').replaceChildren(...[...groups.values()].map(group));
}

function group(samples) {
  const first = samples[0];
  return el('section', {class: 'group'},
    el('h2', {}, (first.preamble || first.question || 'Problem').trim()),
    el('p', {class: 'small'}, `Reference answer: ${first.reference}`),
    el('div', {class: 'rollouts', tabindex: samples.length > 1 ? 0 : null,
      role: 'group', 'aria-label': 'Rollouts, side by side'},
    ...samples.map((s, k) => rollout(s, k + 1))));
}

function rollout(s, k) {
  const sentences = s.chunks.map((c) => {
    const skipped = c.thought == null;
    const thought = c.tokens === 0 ? null : el('p',
      {class: `thought${skipped ? ' skipped' : ''}`},
      skipped ? 'skipped' : c.thought || '(no words)',
      c.cut ? el('em', {}, ' (cut: too long)') : null);
    return el('li', {class: skipped && c.tokens ? 'skipped' : ''},
      el('p', {class: 'read'}, c.text.trim(),
        c.relevant === false ? el('span', {class: 'tag'}, 'not needed') : null),
      thought);
  });
  return el('article', {class: 'card pane'},
    el('h3', {}, `Rollout ${k} `, el('span',
      {class: `verdict ${s.correct ? 'right' : 'wrong'}`},
      s.correct ? '✓ right' : '✗ wrong',
      s.format === false ? ', broken format' : '')),
    el('ol', {class: 'sentences'}, ...sentences),
    el('h4', {}, 'Deep thinking, after the last word'),
    el('p', {class: 'deep'}, s.deep || '(no thinking)'),
    s.threads ? el('pre', {tabindex: 0}, s.threads.join('\n')) : null,
    el('p', {class: 'end'}, 'Answer ', el('b', {class: 'reply'},
      s.answer || 'none')),
    table(s));
}

/** Rewards, and the advantages of the same names where they are logged. */
function table(s) {
  const [rewards, advantages] = [s.rewards || {}, s.advantages || {}];
  const names = [...new Set([...Object.keys(rewards),
    ...Object.keys(advantages)])];
  const cell = (x) => el('td', {}, typeof x === 'number'
    ? x.toFixed(2).replace('-', '−') : '–');
  const has = Object.keys(advantages).length > 0;
  const head = (text) => el('th', {scope: 'col'}, text);
  return el('table', {},
    el('thead', {}, el('tr', {}, head('Phase'), head('Reward'),
      has ? head('Advantage') : null)),
    el('tbody', {}, ...names.map((n) => el('tr', {},
      el('th', {scope: 'row'}, n), cell(rewards[n]),
      has ? cell(advantages[n]) : null))));
}

// ------------------------------------------------------------------- controls
slider.addEventListener('input', turn);
for (const [id, by] of [['before', -1], ['after', 1]]) {
  byId(id).addEventListener('click', () => {
    slider.value = Number(slider.value) + by;
    turn();
  });
}
byId('steps').addEventListener('submit', (e) => e.preventDefault());
byId('file').addEventListener('change', async (e) => {
  const [file] = e.target.files;
  if (!file) return;
  const of = new Map();
  let bad = 0;
  for (const line of (await file.text()).split('\n')) {
    if (!line) continue;
    try {
      const s = JSON.parse(line);
      if (!Array.isArray(s.chunks)) throw new Error('not a rollout');
      of.set(s.step, [...(of.get(s.step) || []), s]);
    } catch {
      bad += 1;
    }
  }
  byId('replay-says').textContent = `Rollouts of ${file.name}` +
    (bad ? `; ${count(bad, 'line')} could not be read.` : '.');
  byId('groups').replaceChildren();
  show([...of.keys()].sort((a, b) => a - b), async (step) => of.get(step));
});
