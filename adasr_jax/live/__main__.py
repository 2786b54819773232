"""python -m adasr_jax.live [--of=RUN|FOLDER] [--port=N] [--stdin]

A policy that reads with you: a page and a WebSocket on this machine, or, with
--stdin, sentences from a pipe and JSON lines out. docs/live.md says more.

  --of=RUN|FOLDER   a run (RUN@STEP, RUN@best) or a Hugging Face folder; at most
                    twice, one of each mode. Default: the shipped policies
  --host, --port    127.0.0.1 and 8400
  --sessions=N      most sessions at once, of each mode
  --temperature=T   0: the most probable token; 1: sampled
  --stdin           with --question, --id, --seed, --mode, --chunks
"""

import sys

from absl import app
from absl import flags
from absl import logging

from adasr_jax.run import command

_OF = flags.DEFINE_multi_string('of', [], 'A run or a Hugging Face folder.')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Where to listen.')
_PORT = flags.DEFINE_integer('port', 8400, '0 = any that is free.',
                             lower_bound=0, upper_bound=65535)
_SESSIONS = flags.DEFINE_integer('sessions', 32, 'Most at once, of each mode.',
                                 lower_bound=1, upper_bound=4096)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, '0 = greedy.',
                                  lower_bound=0, upper_bound=100)
_STDIN = flags.DEFINE_bool('stdin', False, 'Read from a pipe.')
_QUESTION = flags.DEFINE_string('question', '', 'Known before the text.')
_ID = flags.DEFINE_integer('id', 0, 'Of the problem.', lower_bound=0,
                           upper_bound=2**32 - 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the random numbers.',
                             lower_bound=0, upper_bound=2**32 - 1)
_MODE = flags.DEFINE_enum('mode', 'streaming',
                          ('streaming', 'read_then_think'), 'How it reads.')
_CHUNKS = flags.DEFINE_enum('chunks', 'sentences', ('sentences', 'commits'),
                            'What ends a chunk, beside the end of a line.')


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  command.show_log(logging.WARNING)
  unused = ((_HOST, _PORT, _SESSIONS) if _STDIN.value else
            (_QUESTION, _ID, _SEED, _MODE, _CHUNKS))
  for flag in unused:
    if flag.present:
      command.fail(ValueError(
          f'--{flag.name} '
          f'{"has no use with" if _STDIN.value else "needs"} --stdin'))
  try:
    sys.exit(_pipe() if _STDIN.value else _serve())
  except (ValueError, OSError) as e:
    command.fail(e)


def _policies():
  from adasr_jax.live import policy  # after the flags: a fast --help
  return [policy.load(of) for of in _OF.value] or policy.shipped()


def _pipe():
  from adasr_jax.live import pipe
  from adasr_jax.live.session import House
  policies = {p.mode: p for p in _policies()}
  if _MODE.value not in policies:
    raise ValueError(f'--mode={_MODE.value}: --of gives only '
                     f'{", ".join(policies)}')
  house = House(policies[_MODE.value], 1, _TEMPERATURE.value)
  return pipe.main(house, question=_QUESTION.value, id=_ID.value,
                   seed=_SEED.value, chunks=_CHUNKS.value)


def _serve():
  from adasr_jax.live import app as app_lib
  from adasr_jax.live.server import Server
  listening = app_lib.listen(_HOST.value, _PORT.value)
  server = Server(_policies(), _SESSIONS.value, _TEMPERATURE.value)
  print('compiling', file=sys.stderr, flush=True)
  server.warm()
  try:
    app_lib.serve(server, _HOST.value, listening)
  except RuntimeError as e:
    command.fail(e)


if __name__ == '__main__':
  app.run(main, flags_parser=command.parse_flags)
