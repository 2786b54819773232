// Elements, numbers and announcements. Text is always set as text.

export const byId = (id) => document.getElementById(id);

/** An element; null and undefined among its children are left out. */
export function el(tag, attributes = {}, ...children) {
  const out = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) out.setAttribute(name, '');
    else if (value !== false && value != null) out.setAttribute(name, value);
  }
  out.append(...children.filter((c) => c != null));
  return out;
}

export const svg = (tag, attributes = {}) => {
  const out = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [k, v] of Object.entries(attributes)) out.setAttribute(k, v);
  return out;
};

export const seconds = (s, digits = 1) => `${s.toFixed(digits)} s`;
export const percent = (x) => `${(100 * x).toFixed(1)} %`;
export const count = (n, noun) => `${n} ${noun}${n === 1 ? '' : 's'}`;

/** Shows a message in plain words; '' hides it. */
export function notice(place, text, kind = '') {
  place.hidden = !text;
  place.className = `notice ${kind}`;
  place.textContent = text;
}

/** JSON of a route; an Error in plain words where there is none. */
export async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, {cache: 'no-store', ...options});
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    throw new Error('The server does not answer.');
  }
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) {
    throw new Error(`The server refused: ${body.error || reply.status}.`);
  }
  return body;
}

// Screen readers hear whole thoughts, at most one message in two seconds.
const EVERY = 2000;
let waiting = [];
let timer = 0;

/** Tells a screen reader. */
export function announce(text) {
  waiting.push(text);
  if (!timer) tell();
}

function tell() {
  byId('announce').textContent = waiting.join(' ');
  timer = waiting.length ? setTimeout(tell, EVERY) : 0;
  waiting = [];
}
