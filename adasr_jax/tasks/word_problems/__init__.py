"""The embedded task: seeded word problems that arrive sentence by sentence.

A problem is a chain of small arithmetic steps, one per relevant sentence, with
distractors in between. There are three families, each with its own wording of
the question, so that the question and what was read so far decide what is
relevant:

  running     'how many apples does tom have in the end ?'
              relevant: what tom has, gets, loses or gives away
  comparison  'how many apples does bob have compared with others ?'
              relevant: everyone with apples; they form one chain up to bob
  units       'how many cups are in the boxes of tom ?' and
              'how many coins do the cups in the boxes of tom cost ?'
              relevant: the boxes of tom, then what each box holds and what
              each cup costs

Relevant kinds: start, gain, loss, transfer, more, fewer, unit, question.
Distractors: scene (no number), entity (someone else), object (another
object), rate (what another container holds or an animal eats).

Where the question comes last or in the middle, relevance and traces are still
those of a reader who knows the question.

task.py holds Task, from which to start; problems.py the problems, teacher.py
their traces, vocabulary.py the words.
"""

from adasr_jax.tasks.word_problems.problems import (
    DEFAULT, DISTRACTORS, EASY, FAMILIES, HARD, OOD, QUESTIONS, RELEVANT,
    SPLITS, Difficulty, content_hash, split_of)
from adasr_jax.tasks.word_problems.task import ENTRY, Task
from adasr_jax.tasks.word_problems.teacher import (
    PERFECT, UNDISCIPLINED, Teacher)
from adasr_jax.tasks.word_problems.vocabulary import (
    CONTROL, build_tokenizer, embedded, vocabulary)

__all__ = [
    'CONTROL', 'DEFAULT', 'DISTRACTORS', 'EASY', 'ENTRY', 'FAMILIES', 'HARD',
    'OOD', 'PERFECT', 'QUESTIONS', 'RELEVANT',
    'SPLITS', 'UNDISCIPLINED', 'Difficulty', 'Task', 'Teacher',
    'build_tokenizer', 'content_hash', 'embedded', 'split_of', 'vocabulary']
