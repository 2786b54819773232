"""Distilled students beside their teachers, on problems of no training step.

  python -m experiments.distill.heldout WORKDIR [WORKDIR ...]

Rollouts of 200 validation problems (all, if there are fewer) at the temperature
of training, by the policy that the run began from and by the one that it ended
with, each compared with the teacher over the whole vocabulary (distill.beside).
Writes teacher.json into a finished workdir that has none, and its report again.
"""

import argparse
import functools
import math
import pathlib

import jax

from adasr_jax import config as config_lib
from adasr_jax.core import placement
from adasr_jax.learn import distill
from adasr_jax.models import weights
from adasr_jax.policy.rollout import rollout
from adasr_jax.run import factories
from adasr_jax.run import logs
from adasr_jax.run import report
from adasr_jax.run import workdir as workdir_lib

PROBLEMS, SPLIT, ROWS = 200, 'validation', 50  # rows at once, of the rollout


def compare(workdir: pathlib.Path) -> dict:
  """teacher.json of a finished run: 'start', 'final', 'problems', 'split'."""
  s = config_lib.sections(config_lib.of_workdir(
      workdir_lib.read_config(workdir)))
  with jax.set_mesh(factories.mesh(s)):
    parts = factories.parts(s)
    teacher = factories.teacher_params(s, parts)
    problems = min(PROBLEMS, parts.data.size(SPLIT))
    source = parts.data.collate(parts.data.evaluation(SPLIT, problems)).source
    static = dict(model_config=parts.model_config, protocol=parts.protocol,
                  temperature=s['rollout'].temperature)
    policies = {
        'start': factories.initial_params(s, parts),
        'final': placement.place(weights.load(
            str(workdir / 'model.safetensors'), parts.model_config))}
    beside = jax.jit(functools.partial(
        distill.beside, teacher_config=parts.teacher,
        reads=s['teacher'].reads, **static))
    out = {'problems': problems, 'split': SPLIT}
    for name, params in policies.items():
      target = placement.to_host(rollout(
          params, placement.to_devices(source), jax.random.key(0), samples=1,
          max_chunks=parts.data.max_chunks, rows=ROWS, **static))
      means = beside(params, teacher, *placement.to_devices((source, target)))
      out[name] = {k: None if math.isnan(v) else float(v)
                   for k, v in jax.device_get(means).items()}
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdirs', type=pathlib.Path, nargs='+')
  for workdir in parser.parse_args().workdirs:
    if not (workdir / 'teacher.json').exists():
      logs.write_json(workdir / 'teacher.json', compare(workdir))
      report.write_report(workdir)
      print(f'--- {workdir / "teacher.json"}', flush=True)


if __name__ == '__main__':
  main()
