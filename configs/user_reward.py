"""A reward of one's own: one function, named in the config.

  --config.reward.user=configs.user_reward:repeats_numbers
"""

import numpy as np


def repeats_numbers(examples, transcripts):
  """Share of thoughts with a digit in them; 0 for the deep and global levels.

  Args:
    examples: B examples.
    transcripts: B transcripts.

  Returns:
    [B, 3]: added to the streaming, deep and global rewards.
  """
  del examples
  out = np.zeros((len(transcripts), 3))
  for row, t in zip(out, transcripts):
    text = ' '.join(x for x in t.thoughts if x)
    row[0] = sum(c.isdigit() for c in text) / max(len(text), 1)
  return out
