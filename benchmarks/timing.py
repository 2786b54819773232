"""Timing: interleaved repeats, and the machine's peak for comparison."""

from __future__ import annotations

from collections.abc import Callable
import statistics
import time

import jax
import jax.numpy as jnp
import tqdm


def timed(call: Callable[[], object]) -> float:
  """Seconds until the result of `call` is ready."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[int], object]], repeats: int
                ) -> dict[str, dict[str, float]]:
  """Times A B A B ..., so that other load affects all calls alike.

  Args:
    calls: Name -> function of the number of the repeat (a seed).
    repeats: Timed calls per name, after one that compiles.

  Returns:
    Name -> seconds: first (with the compilation), median, min.
  """
  bar = tqdm.tqdm(total=(repeats + 1) * len(calls), leave=False)
  seconds = {name: [] for name in calls}
  for repeat in range(repeats + 1):
    for name, call in calls.items():
      bar.set_postfix_str(name)
      seconds[name].append(timed(lambda: call(repeat)))
      bar.update()
  bar.close()
  return {name: dict(first=s[0], median=statistics.median(s[1:]),
                     min=min(s[1:])) for name, s in seconds.items()}


def matmul_peak(size: int = 1024, repeats: int = 9) -> float:
  """FLOP/s of a [size, size] float32 matrix product; the best of `repeats`."""
  multiply = jax.jit(jnp.matmul)
  a = jax.random.normal(jax.random.key(0), (size, size))
  jax.block_until_ready(multiply(a, a))
  return 2 * size**3 / min(timed(lambda: multiply(a, a))
                           for _ in range(repeats))


def show(title: str, rows: dict[str, dict[str, float]], columns: str) -> None:
  """Prints a table: one line per name, with median, min and `columns`."""
  print(f'\n{title}')
  names = columns.split()
  width = max(map(len, rows)) + 2
  print(f'  {"":{width}}{"median":>10}{"min":>10}'
        + ''.join(f'{n.replace("_", " "):>{max(len(n) + 2, 10)}}'
                  for n in names))
  for name, row in rows.items():
    cells = ''.join(f'{_number(row.get(n)):>{max(len(n) + 2, 10)}}'
                    for n in names)
    print(f'  {name:{width}}{row["median"] * 1e3:>7.1f} ms'
          f'{row["min"] * 1e3:>7.1f} ms{cells}')


def _number(x) -> str:
  if x is None:
    return '-'
  return f'{x:,.0f}' if abs(x) >= 100 else f'{x:.2f}'
