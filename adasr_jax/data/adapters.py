r"""Public datasets to examples: one function per schema, in FORMATS.

An adapter keeps the order of the file and leaves the preamble empty; the source
adds the instruction and moves the question (see sources).

  gsm8k          openai/grade-school-math: question, answer ('... #### 72')
  gsm_symbolic   apple/ml-gsm-symbolic, main, P1 and P2: the same, with
                 instance, original_question
  metamathqa     meta-math/MetaMathQA: query, response ('... The answer is: 72'
                 or '#### 72'), original_question
  pubmedqa       pubmedqa/pubmedqa, PQA-L: QUESTION, CONTEXTS, final_decision;
                 or as on Hugging Face: question, context.contexts. The
                 question comes first.
  gsm_infinite   Infini-AI-Lab/gsm_infinite, medium and hard: problem,
                 question, solution ('... Answer: 2.')
  logicnli       omnilabNLP/LogicNLI, *_language.json: stories of facts, rules,
                 statements, labels (one example per statement); or as in
                 tasksource/LogicNLI: premise, hypothesis, label
  streaming_cot  StreamingThinker's training files, see streaming_cot()
  streaming_reasoning
                 our own, see streaming_reasoning(); also that of TFDS folders
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import re
import statistics
from typing import Any

from adasr_jax.core.types import Example
from adasr_jax.data.records import field, items, kind, paragraphs, problem, text
from adasr_jax.data.text import content_id

PUBMEDQA = ('yes', 'no', 'maybe')
LOGICNLI = ('entailment', 'contradiction', 'neutral', 'self_contradiction')
# Marks of StreamingThinker's files, named after what they end.
END_SENTENCE, END_QUESTION, END_THOUGHT = '<EOS>', '<EOQ>', '<EOT>'
_END_DEEP = ('<EOR>', '<EOF>', '<EOA>')
_MARKS = (END_SENTENCE, END_QUESTION, END_THOUGHT, *_END_DEEP, '<SEP>',
          '<ignore>')


def example(record: Any, *, format: str, line: Any) -> Example:
  """The example of a record.

  Args:
    record: A JSON value.
    format: One of FORMATS.
    line: Where the record is, for errors.

  Raises:
    ValueError: `line: what is wrong`.
  """
  try:
    return FORMATS[format](record)
  except ValueError as e:
    raise ValueError(f'{line}: {e}') from e


def expand(record: Any, *, format: str) -> Iterator[Any]:
  """Splits a file's record into records of one example each.

  Raises:
    ValueError: A story's labels are not as many as its statements.
  """
  if (format != 'logicnli' or not isinstance(record, dict)
      or 'statements' not in record):
    yield record
    return
  said = items(record['statements'], 'statements', str, 'text')
  labels = items(field(record, 'labels'), 'labels', str, 'text')
  if len(said) != len(labels):
    raise ValueError(f"'labels' has {len(labels)} entries for {len(said)} "
                     f"statements")
  premise = [s for name in ('facts', 'rules')
             for s in items(field(record, name), name, str, 'text')]
  for statement, label in zip(said, labels):
    yield {'premise': '\n'.join(premise), 'hypothesis': statement,
           'label': label}


def over_sets(examples: Sequence[Example], correct: Sequence[bool]
              ) -> tuple[float, float]:
  """Mean and standard deviation of the accuracy over GSM-Symbolic's sets.

  A set holds one instance of every template. The deviation is that of the
  population, so 0 for a single set.

  Raises:
    ValueError: An example does not belong to a set.
  """
  sets: dict[int, list[bool]] = {}
  for e, right in zip(examples, correct, strict=True):
    if e.instance < 0:
      raise ValueError(f'example {e.id} does not belong to a set')
    sets.setdefault(e.instance, []).append(bool(right))
  accuracy = [statistics.fmean(x) for x in sets.values()]
  return statistics.fmean(accuracy), statistics.pstdev(accuracy)


# ------------------------------------------------------------------- schemas
def gsm8k(record: Any) -> Example:
  """GSM8K; the answer must follow '####'."""
  chunks, at = problem(_text(record, 'question'))
  return _plain(chunks, at, _after(record, 'answer', '####'))


def gsm_symbolic(record: Any) -> Example:
  """GSM-Symbolic; instances of a template are one group, also across files."""
  chunks, at = problem(_text(record, 'question'))
  instance = field(record, 'instance')
  if type(instance) is not int or instance < 0:
    raise ValueError(f"'instance' is {instance!r}, not 0, 1, ...")
  return _plain(chunks, at, _after(record, 'answer', '####'),
                group=_group(record, 'original_question'), instance=instance)


def metamathqa(record: Any) -> Example:
  """MetaMathQA; rephrasings of one problem are one group."""
  chunks, at = problem(_text(record, 'query'))
  return _plain(chunks, at,
                _after(record, 'response', 'The answer is:', '####'),
                group=_group(record, 'original_question'))


def pubmedqa(record: Any) -> Example:
  """PubMedQA: the question, then the sentences of the abstract."""
  if isinstance(record, dict) and 'QUESTION' in record:
    question, context = 'QUESTION', 'CONTEXTS'
  else:
    question, context = 'question', 'context.contexts'
  first, *rest = paragraphs(field(record, context), context)
  return _plain((_text(record, question).strip(), '\n' + first, *rest), 0,
                _one_of(record, 'final_decision', PUBMEDQA))


def gsm_infinite(record: Any) -> Example:
  """GSM-Infinite, medium and hard: the problem, then the question."""
  if isinstance(record, dict) and record.get('answer_list') is not None:
    raise ValueError('the symbolic subset asks for a set of variables, which '
                     'the verifier does not compare; use medium or hard')
  said = _text(record, 'solution')
  found = re.findall(r'\bAnswer:\s*(\S.*?)\.?\s*(?:$|\n)', said)
  if not found:
    raise ValueError("'solution' has no 'Answer:'")
  chunks = paragraphs(field(record, 'problem'), 'problem')
  question = '\n' + _text(record, 'question').strip()
  return _plain((*chunks, question), len(chunks), found[-1])


def logicnli(record: Any) -> Example:
  """LogicNLI: facts and rules, then the statement to judge.

  Statements on one story are one group. A story of *_language.json goes
  through expand() first.
  """
  # On Hugging Face no space parts the last fact and first rule: 'smart.If all'.
  premise = re.sub(r'(?<=\.)(?=[A-Z])', '\n', _text(record, 'premise'))
  lines = [x.strip() for x in premise.split('\n') if x.strip()]
  question = (f"\nIs this entailment, contradiction, neutral or "
              f"self_contradiction: {_text(record, 'hypothesis').strip()}")
  chunks = (lines[0], *(f'\n{x}' for x in lines[1:]), question)
  return _plain(chunks, len(lines), _one_of(record, 'label', LOGICNLI),
                group=content_id('\n'.join(lines)))


def streaming_cot(record: Any) -> Example:
  r"""StreamingThinker's schema; its thoughts are kept unchanged.

  Instruct_Context.instruct: the question, which comes first.
  Instruct_Context.context: each sentence ends with <EOS>; text after the last
    <EOS> is one more sentence.
  streaming_reasoning: the question restated, then <EOQ>; then a thought per
    sentence, each ended by <EOT>. So N sentences have N + 1 thoughts. The
    thought `<skip>` is a skip. Text after the last mark is an error.
  deep_reasoning: may be empty. <EOR>, <EOF> and <EOA> are removed, all text
    stays.
  answer: the content of its last balanced \boxed{} or \box{}, else all of it.

  Source: EIT-NLP/StreamingLLM at 066d3b2, whose reader drops the text after
  the last mark, does not compare counts and has no skips.

  Raises:
    ValueError: The counts differ, or a mark is in the wrong place.
  """
  question = _unmarked(_text(record, 'Instruct_Context.instruct'), 'instruct')
  *sentences, tail = _text(record, 'Instruct_Context.context').split(
      END_SENTENCE)
  sentences += [tail] if tail.strip() else []
  sentences = [_unmarked(s, f'context, sentence {i}')
               for i, s in enumerate(sentences, 1)]
  thoughts = _thoughts(_text(record, 'streaming_reasoning'))
  if len(thoughts) != len(sentences) + 1:
    raise ValueError(f'{len(thoughts)} thoughts for the question and '
                     f'{len(sentences)} sentences')
  deep = field(record, 'deep_reasoning')
  if not isinstance(deep, str):
    raise ValueError("'deep_reasoning' is not text")
  for mark in _END_DEEP:
    deep = deep.replace(mark, ' ')
  if deep.strip():
    deep = _unmarked(re.sub(r'(?<=\S) +', ' ', deep), 'deep_reasoning')
  chunks = (question, f'\n{sentences[0]}', *(f' {s}' for s in sentences[1:]))
  # All questions on one context are in one split.
  return _plain(chunks, 0, _boxed(_text(record, 'answer')).strip(),
                thoughts=thoughts, deep=deep.strip(),
                group=content_id(''.join(chunks[1:])))


# What an Example may lack: the type, and its name in errors.
_EXAMPLE = {
    'preamble': (str, 'text'), 'question_chunk': (int, 'a whole number'),
    'relevant': (bool, 'a truth value'),
    'thoughts': ((str, type(None)), 'text or null'), 'deep': (str, 'text'),
    'kinds': (str, 'text'), 'trace_answer': (str, 'text'),
    'group': (int, 'text or a whole number'),
    'instance': (int, 'a whole number')}
_LISTS = ('relevant', 'thoughts', 'kinds')


def streaming_reasoning(record: Any) -> Example:
  """An Example under its own names; see types.Example.

  `chunks` and `answer` are required. Any other field that is absent, null or
  an empty list is not known. `group` is any text that the variations share, or
  its hash as a number. The id is the hash of the text and not the file's own,
  whose numbers might not spread over the splits.

  Raises:
    ValueError: A value has the wrong type, or a list the wrong length.
  """
  chunks = items(field(record, 'chunks'), 'chunks', str, 'text')
  if not chunks:
    raise ValueError("'chunks' is empty")
  for i, chunk in enumerate(chunks):
    text(chunk, f'chunks[{i}]')
  known = {k: record[k] for k in _EXAMPLE if record.get(k) not in (None, [])}
  if isinstance(known.get('group'), str):
    known['group'] = _group(record, 'group')
  for name, value in known.items():
    kinds, what = _EXAMPLE[name]
    if name in _LISTS:
      known[name] = items(value, name, kinds, what)
    elif type(value) is not kinds:
      raise ValueError(f'{name!r} is {kind(value)}, not {what}')
  if not 0 <= known.get('group', 0) < 2**32:
    raise ValueError(f"'group' is {known['group']}, not in [0, 2**32)")
  return Example(**{
      'id': content_id(known.get('preamble', '') + ''.join(chunks)),
      'preamble': '', 'chunks': chunks, 'answer': _text(record, 'answer'),
      **known})


FORMATS: Mapping[str, Callable[[Any], Example]] = {
    f.__name__: f for f in (gsm8k, gsm_symbolic, metamathqa, pubmedqa,
                            gsm_infinite, logicnli, streaming_cot,
                            streaming_reasoning)}


# ------------------------------------------------------------------- helpers
def _plain(chunks, at, answer, **extra):
  return Example(id=content_id(''.join(chunks)), preamble='', chunks=chunks,
                 question_chunk=at, answer=answer, **extra)


def _text(record, name):
  return text(field(record, name), name)


def _group(record, name):
  """The hash that GSM8K's example has as id, so both are in one split."""
  return content_id(_text(record, name).strip())


def _after(record, name, *marks):
  """The text after the last occurrence of a mark, to the end of its line.

  The first of `marks` that occurs at all is used.
  """
  said = _text(record, name)
  for mark in marks:
    if mark in said:
      found = said.rpartition(mark)[2].strip().splitlines()
      if not found:
        raise ValueError(f'{name!r} gives an empty answer')
      return found[0].strip()
  raise ValueError(f'{name!r} has no {" or ".join(map(repr, marks))}')


def _one_of(record, name, known):
  value = _text(record, name).strip()
  if value not in known:
    raise ValueError(f'{name!r} is {value!r}, not one of {", ".join(known)}')
  return value


def _unmarked(said, name):
  for mark in _MARKS:
    if mark in said:
      raise ValueError(f'{name!r} has {mark} inside')
  return text(said, name).strip()


def _thoughts(said):
  """The restated question and the thoughts; None for a skip."""
  restated, mark, rest = said.partition(END_QUESTION)
  if not mark:
    raise ValueError(f"'streaming_reasoning' has no {END_QUESTION}")
  *parts, tail = rest.split(END_THOUGHT)
  if tail.strip():
    raise ValueError(f"'streaming_reasoning' has text after its last mark: "
                     f'{tail.strip()[:40]!r}')
  thoughts = [_unmarked(t, f'streaming_reasoning, thought {i}')
              for i, t in enumerate((restated, *parts))]
  return tuple(None if t == '<skip>' else t for t in thoughts)


def _boxed(said):
  r"""The content of the last balanced \boxed{} or \box{}, else all."""
  found, opened = None, []
  for token in re.finditer(r'\\box(?:ed)?\s*\{|\\.|[{}]', said):
    if token[0] == '}':
      if opened:
        start, box = opened.pop()
        found = said[start:token.start()] if box else found
    elif token[0][-1] == '{' and token[0] != r'\{':
      opened.append((token.end(), len(token[0]) > 1))
  return text(said if found is None else found, 'answer')
