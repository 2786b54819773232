"""SFT on a teacher's own rollouts, as a method that the main program then has.

  python -m experiments.distill.imitate --config=configs/sft.py \
      --config.method=imitate --config.teacher.init=TEACHER --workdir=DIR \
      [flags of adasr_jax.main]

What is imitated are not the problems' traces but what the teacher writes about
them at temperature 1, one rollout of each, right or wrong: sequence-level
distillation (Kim and Rush, arXiv 1606.07947, there with the most probable
target). The teacher has the student's decoder.
"""

import dataclasses

from absl import app
from absl import flags
import jax

from adasr_jax import main
from adasr_jax.core import placement
from adasr_jax.core.types import Target
from adasr_jax.data.dataset import Dataset
from adasr_jax.learn.distill import TeacherConfig
from adasr_jax.learn import METHODS
from adasr_jax.learn import sft
from adasr_jax.learn.method import Parts
from adasr_jax.policy.rollout import rollout
from adasr_jax.run import command
from adasr_jax.run import factories


class Written(Dataset):
  """The same problems; their traces are the teacher's rollouts."""

  def __init__(self, s, parts: Parts):
    """Takes the teacher of s['teacher'] and the examples of `parts.data`."""
    self.__dict__.update(parts.data.__dict__)
    # It writes where the student reads what it imitates.
    teacher = dataclasses.replace(s['teacher'], reads=s['sft'].reads)
    self._teacher = factories.teacher_params(dict(s, teacher=teacher), parts)
    self._model_config, self._seed = parts.model_config, s['run'].seed

  def traces(self, examples) -> Target:
    """One rollout of each, [P, T]; its random numbers are the problem's."""
    source = placement.to_devices(self.collate(examples).source)
    return placement.to_host(rollout(
        self._teacher, source, jax.random.key(self._seed),
        model_config=self._model_config, protocol=self.protocol, samples=1,
        max_chunks=self.max_chunks, temperature=1.0))


def _build(s, parts):
  return sft.SFT(data=Written(s, parts), protocol=parts.protocol,
                 prompts=s['data'].prompts)


ENTRY = dataclasses.replace(
    sft.ENTRY, build=_build,
    sections={**sft.ENTRY.sections, 'teacher': TeacherConfig()})


if __name__ == '__main__':
  METHODS['imitate'] = ENTRY
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main.main, flags_parser=command.parse_flags)
