"""Countdown: make a target of given numbers, each used exactly once.

'24 from 9 3 4 5' is answered by steps, '9 - 4 = 5 , ...'. problems.py draws
solvable ones by index, solve.py solves them exhaustively, search.py writes
demonstrations of one thread or of a tree of threads, answers.py verifies,
vocabulary.py holds the words, task.py the task.

Source: arXiv 2504.15466 and Parallel-Reasoning/APR @ 5577928. Its code draws
problems that no seed reproduces, evaluates what a model writes and accepts
answers that use a number twice; here draws are functions of seed and index,
and there is one strict verifier.
"""

from adasr_jax.tasks.countdown.answers import agrees, parse, right, spell
from adasr_jax.tasks.countdown.problems import (
    SPLITS, Problem, Size, content_hash, problem, split_of)
from adasr_jax.tasks.countdown.search import (
    APR, DIRECT, GREEDY_PARALLEL, GREEDY_SERIAL, PARALLEL, SERIAL, SOS,
    Demonstration, Search, Thread, demonstrate)
from adasr_jax.tasks.countdown.task import ENTRY, Task, answer_cap
from adasr_jax.tasks.countdown.vocabulary import (
    CONTROL, embedded, ids, vocabulary)

__all__ = [
    'APR', 'CONTROL', 'DIRECT', 'Demonstration', 'ENTRY', 'GREEDY_PARALLEL',
    'GREEDY_SERIAL', 'PARALLEL', 'Problem', 'SERIAL', 'SOS', 'SPLITS',
    'Search', 'Size', 'Task', 'Thread', 'agrees', 'answer_cap',
    'content_hash', 'demonstrate', 'embedded', 'ids', 'parse', 'problem',
    'right', 'spell', 'split_of', 'vocabulary']
