"""What a policy is trained on: TASKS."""

from adasr_jax.core.options import Sections
from adasr_jax.data.dataset import PROCEDURAL
from adasr_jax.tasks import countdown
from adasr_jax.tasks.task import Entry
from adasr_jax.tasks import text
from adasr_jax.tasks import word_problems

# config.task -> what it is. A new task is one more entry.
TASKS: dict[str, Entry] = {'word_problems': word_problems.ENTRY,
                           'countdown': countdown.ENTRY}
# The task of every data.source but 'procedural'; config.task is not read.
TEXT: Entry = text.ENTRY


def chosen(s: Sections) -> Entry:
  """The task of a run: that of config.task, or the records of data.path."""
  return TASKS[s['run'].task] if s['data'].source == PROCEDURAL else TEXT
