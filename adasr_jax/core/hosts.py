"""Multi-host runs, one process per host: roles and communication.

All hosts run the same program on the same global arrays. A host takes its own
slice of a step's problems and verifies its own answers, in an evaluation too.
It sends the results to all others, so that every later decision (which groups
are kept, which bucket, when to stop) is made everywhere from the same values.
The first host decides whatever depends on the state of the file system; it also
writes the run's files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pickle
import socket
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

# Seconds after which a host counts as gone: one that has not joined, and one
# that no longer answers.
JOIN, HEARTBEAT = 120, 60


def join(coordinator: str, num_processes: int | None = None,
         process_id: int | None = None) -> None:
  """Joins the other hosts; must come before any other use of JAX.

  Args:
    coordinator: 'auto' on TPU VMs, SLURM, Open MPI or GKE, where JAX finds the
      other arguments itself; else HOST:PORT of process 0.
    num_processes, process_id: Required without 'auto'.

  Raises:
    ValueError: A required argument is missing, `coordinator` is not of this
      form, or nothing answers there within JOIN seconds.
  """
  address = None
  if coordinator != 'auto':
    if num_processes is None or process_id is None:
      raise ValueError(f'coordinator={coordinator!r} needs num_processes and '
                       f'process_id')
    address = coordinator
    host, _, port = address.rpartition(':')
    if not (host and port.isdecimal() and int(port) < 1 << 16):
      raise ValueError(f"coordinator={coordinator!r} is neither 'auto' nor "
                       f'HOST:PORT')
    if process_id:
      logging.info('waiting for %s, at most %d s', address, JOIN)
      _wait_for(host.strip('[]'), int(port))
  logging.info('waiting for the other hosts, at most %d s', JOIN)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
      address, num_processes, process_id, initialization_timeout=JOIN,
      heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT)


def _wait_for(host: str, port: int) -> None:
  """Waits until the coordinator listens.

  JAX itself would abort the process, with a stack trace that does not name
  the coordinator.
  """
  end = time.monotonic() + JOIN
  while True:
    try:
      return socket.create_connection((host, port), timeout=5).close()
    except OSError as e:
      if time.monotonic() > end:
        raise ValueError(f'no coordinator answers at {host}:{port} within '
                         f'{JOIN} s: {e}') from e
    time.sleep(0.5)


def shard() -> tuple[int, int]:
  """Index of this host, and the number of hosts."""
  return jax.process_index(), jax.process_count()


def first() -> bool:
  """Whether this host is the one that writes."""
  return jax.process_index() == 0


def all_hosts(values: Sequence[Any]) -> list[Any]:
  """The values of all hosts, in order of hosts; anything that pickle takes."""
  if jax.process_count() == 1:
    return list(values)
  sent = np.frombuffer(pickle.dumps(list(values)), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([sent.size]))
  # Rounded up to a power of two: each size is compiled anew.
  padded = np.zeros(1 << (int(sizes.max()) - 1).bit_length(), np.uint8)
  padded[:sent.size] = sent
  received = np.asarray(multihost_utils.process_allgather(padded))
  return [v for row, n in zip(received, sizes.reshape(-1))
          for v in pickle.loads(row[:n].tobytes())]


def by_first(f: Callable[[], Any]) -> Any:
  """What f() returns on the first host, on all hosts.

  Raises:
    ValueError: On all hosts, if f raised it, or an OSError, on the first.
  """
  if jax.process_count() == 1:
    return f()
  result = None, None
  if first():
    try:
      result = f(), None
    except (ValueError, OSError) as e:
      result = None, str(e)
  value, error = all_hosts([result])[0]
  if error is not None:
    raise ValueError(error)
  return value


def any_of(flag: bool) -> bool:
  """Whether the flag is true on any host."""
  return any(all_hosts([bool(flag)]))


def wait(name: str) -> None:
  """Waits until all hosts have reached this call."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
