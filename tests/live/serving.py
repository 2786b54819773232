"""Small policies to serve, problems for them, and servers that run."""

import asyncio
import contextlib
import functools
import threading
import time

import jax
import numpy as np

from adasr_jax.core.protocol import Protocol
from adasr_jax.data import pipeline
from adasr_jax.data import tokenizer as tokenizer_lib
from adasr_jax.live.app import Uvicorn
from adasr_jax.live.policy import Policy
from adasr_jax.models import decoder
from adasr_jax.policy.rollout import rollout
from adasr_jax.tasks import word_problems
from tests.small import make_config, save_tokenizer

TEMPLATE = ("{% for m in messages %}<user> {{ m.content }} <close> <turn> "
            "{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}")


def make_policy(tokenizer, mode='streaming', source_slots=72, **changes):
  """A random decoder whose outputs depend on what it reads."""
  config = make_config(vocab_size=tokenizer.vocab_size)
  params = decoder.init(config, jax.random.key(0))
  protocol = Protocol(
      vocab_size=tokenizer.vocab_size, eot=tokenizer.eot, skip=tokenizer.skip,
      end_think=tokenizer.end_think, eos=tokenizer.eos,
      undecodable=tokenizer.undecodable, prefix=tokenizer.prefix,
      thought_cap=6, deep_cap=7, answer_cap=4, legality='free')
  return Policy(**(dict(
      name='small', mode=mode, tokenizer=tokenizer, protocol=protocol,
      model_config=config,
      params=params | {'embedding': params['embedding'] * 2.0},
      max_chunks=9, source_slots=source_slots) | changes))


@functools.cache
def embedded(mode='streaming'):
  return make_policy(word_problems.embedded(), mode)


def of_folder(folder, mode='streaming'):
  """A policy whose turns have a head, a tail and a long prefix."""
  words = ['<user>', '<close>', '<turn>', '<bot>', '<end>', '<unk>',
           *word_problems.vocabulary()]
  save_tokenizer(folder, words, TEMPLATE)
  return make_policy(tokenizer_lib.from_folder(folder), mode,
                     instruction='so then')


def problem(i):
  return word_problems.Task().example('test', i)


def rolled(policy, session, temperature=1.0):
  """Token ids of the rollout of what the session has read, prefix first."""
  batch = pipeline.collate(
      [session.example()], policy.tokenizer, lengths=(policy.source_slots,),
      max_chunks=policy.max_chunks, layout=policy.mode)
  target = jax.device_get(rollout(
      policy.params, batch.source, jax.random.key(session.seed),
      model_config=policy.model_config, protocol=policy.protocol, samples=1,
      max_chunks=policy.max_chunks if policy.streams else 1,
      temperature=temperature))
  return target.tokens[0][target.valid[0]].tolist()


def written(policy, session):
  return [policy.protocol.prefix[0], *(t.id for t in session.tokens)]


def pieces(text, r: np.random.Generator):
  """The text, cut anywhere."""
  cuts = np.sort(r.integers(0, len(text) + 1, r.integers(1, 12)))
  return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


@contextlib.contextmanager
def running(server, port=0):
  """The address of a server that runs in a thread; 0 = any port."""
  web = Uvicorn(server, '127.0.0.1', port)
  web.install_signal_handlers = lambda: None

  async def main():
    server.loop = asyncio.get_running_loop()
    await web.serve()
  thread = threading.Thread(target=lambda: asyncio.run(main()))
  thread.start()
  try:
    while not web.started:
      time.sleep(0.01)
    yield web.address
  finally:
    web.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
