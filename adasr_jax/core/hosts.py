"""Several processes, one a host: what each does, and what they tell each other.

All hosts run the same program on the same global arrays. A host takes its own
slice of a step's problems and verifies its own answers, in an evaluation too;
what it found is told to the others, so that every later decision (which groups
are kept, which bucket, when to stop) is made everywhere from the same values.
What the file system says is asked by one host, which also writes.
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

# Seconds after which a host that has not come, and one that does not answer,
# counts as gone.
JOIN, HEARTBEAT = 120, 60


def join(coordinator: str, num_processes: int | None = None,
         process_id: int | None = None) -> None:
  """Joins the other hosts; before anything else is asked of JAX.

  Args:
    coordinator: 'auto' on TPU VMs, SLURM, Open MPI or GKE, which say the rest
      themselves; else HOST:PORT of process 0.
    num_processes, process_id: Without 'auto'.

  Raises:
    ValueError: They are missing, `coordinator` is not of this form, or nobody
      answers there within JOIN seconds.
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
  """Until somebody listens there. (JAX would abort the process instead, with
  a stack trace that does not name the coordinator.)"""
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
  """Index of this host, and how many there are."""
  return jax.process_index(), jax.process_count()


def first() -> bool:
  """Whether this host is the one that writes."""
  return jax.process_index() == 0


def all_hosts(values: Sequence[Any]) -> list[Any]:
  """The values of all hosts, in their order; anything that pickle takes."""
  if jax.process_count() == 1:
    return list(values)
  said = np.frombuffer(pickle.dumps(list(values)), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([said.size]))
  # A few sizes, since each is compiled.
  room = np.zeros(1 << (int(sizes.max()) - 1).bit_length(), np.uint8)
  room[:said.size] = said
  heard = np.asarray(multihost_utils.process_allgather(room))
  return [v for row, n in zip(heard, sizes.reshape(-1))
          for v in pickle.loads(row[:n].tobytes())]


def by_first(f: Callable[[], Any]) -> Any:
  """What f() gives on the first host, told to all.

  Raises:
    ValueError: What f raised there (or an OSError), on all hosts.
  """
  if jax.process_count() == 1:
    return f()
  said = None, None
  if first():
    try:
      said = f(), None
    except (ValueError, OSError) as e:
      said = None, str(e)
  value, error = all_hosts([said])[0]
  if error is not None:
    raise ValueError(error)
  return value


def any_of(flag: bool) -> bool:
  """Whether it is true on some host."""
  return any(all_hosts([bool(flag)]))


def wait(name: str) -> None:
  """Until all hosts are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
