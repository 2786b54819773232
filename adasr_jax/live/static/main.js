// What is served decides what is shown; the address decides which view.

import {ask, byId, notice} from './dom.js';
import * as live from './live.js';
import * as replay from './replay.js';

const AGAIN = 3000;  // ms until a server that does not answer is asked again

function view() {
  const name = location.hash === '#replay' ? 'replay' : 'live';
  for (const other of ['live', 'replay']) {
    byId(other).hidden = other !== name;
    const link = byId(`to-${other}`);
    if (other === name) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

async function open() {
  let info;
  try {
    info = await ask('/api/info');
  } catch (e) {
    notice(byId('notice'), `${e.message} Trying again …`, 'bad');
    setTimeout(open, AGAIN);
    return;
  }
  notice(byId('notice'), '');
  live.open(info, new URLSearchParams(location.search));
  replay.open(info);
}

// The address must not change: it says which view is shown.
document.querySelector('.jump').addEventListener('click', (e) => {
  e.preventDefault();
  byId('view').focus();
});
window.addEventListener('hashchange', view);
view();
open();
