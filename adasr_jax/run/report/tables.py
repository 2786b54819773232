"""Sections of a report: tables of results and baselines, and samples."""

from __future__ import annotations

import re
from typing import Any

_SAMPLES = 4  # the newest are shown

# Label, path in a summary, decimals; shares have 3.
_ROWS = (
    ('accuracy (95 % interval)', 'accuracy', 3),
    ('format rate', 'format_rate', 3),
    ('skip rate', 'skip_rate', 3),
    ('skip precision', 'skip_precision', 3),
    ('skip recall', 'skip_recall', 3),
    ('streaming tokens', 'tokens_streaming', 1),
    ('deep tokens', 'tokens_deep', 1),
    ('total tokens', 'tokens_total', 1),
    ('to the first deep token (s)', 'latency_s.first_deep_token', 2),
    ('to the first answer token (s)', 'latency_s.first_answer_token', 2),
    ('to the end (s)', 'latency_s.end', 2),
    ('lag of thoughts (s)', 'lag_s', 2),
    ('rows with an answer', 'answered', 3),
    ('rows with a capped thought', 'thoughts_capped', 3),
    ('rows with a capped deep phase', 'deep_capped', 3))

# As _ROWS, of runs with threads.
_THREAD_ROWS = (
    ('sequential tokens', 'threads.tokens_sequential', 1),
    ('sampled tokens', 'threads.tokens_sampled', 1),
    ('forced tokens', 'threads.tokens_forced', 1),
    ('calls', 'threads.calls', 2),
    ('children asked for', 'threads.spawns', 2),
    ('children', 'threads.children', 2),
    ('children that returned something', 'threads.returned', 2),
    ('to the end, forced tokens fed together (s)',
     'threads.end_s_fed_together', 2))

# Label, name in teacher.json.
_TEACHER_ROWS = (('KL(student, teacher)', 'reverse_kl'),
                 ('KL(teacher, student)', 'forward_kl'),
                 ("mass on the teacher's top token", 'top_mass_1'),
                 ("mass on the teacher's top 4", 'top_mass_4'))


def lookup(summary: dict[str, Any] | None, path: str) -> Any:
  """The value at a dotted path; None where something is missing."""
  for key in path.split('.'):
    summary = (summary or {}).get(key)
  return summary


def _table(head, rows) -> str:
  lines = [head, ['---'] + ['---:'] * (len(head) - 1), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _number(summary, path, digits) -> str:
  value = lookup(summary, path)
  if value is None:
    return '–'
  text = f'{value:.{digits}f}'
  if path == 'accuracy':
    low, high = summary['accuracy_ci95']
    text += f' [{low:.3f}, {high:.3f}]'
  return text


def _change(start, final, path, digits) -> str:
  a, b = lookup(start, path), lookup(final, path)
  if a is None or b is None:
    return '–'
  share = f' ({(b - a) / a:+.0%})' if digits < 3 and a else ''
  return f'{b - a:+.{digits}f}{share}'


def results(evals: dict[str, Any]) -> str:
  """Start, final and their difference, from eval.json."""
  start, final = evals.get('start'), evals.get('final')
  if not (start or final):
    return 'No evaluation was found.'
  ks = sorted({int(k) for s in (start, final)
               for k in lookup(s, 'pass_at_k') or ()})
  metrics = _ROWS + _THREAD_ROWS + tuple(
      (f'{name}@{k}', f'{name}_at_k.{k}', 3) for name in ('pass', 'cons')
      for k in ks)
  rows = [[label, _number(start, path, digits), _number(final, path, digits),
           _change(start, final, path, digits)]
          for label, path, digits in metrics
          if lookup(start, path) is not None or lookup(final, path) is not None]
  settings = evals.get('settings', {})
  about = [f'{lookup(final or start, "n")} rollouts'] + [
      f'{k} {settings[k]}' for k in ('split', 'samples', 'temperature',
                                     'decisions') if k in settings]
  text = f'## Results\n\n{_table(["", "start", "final", "change"], rows)}\n\n'
  text += ', '.join(about) + '. Seconds count from the last sentence.'
  if clock := settings.get('clock'):
    text += (f' Virtual clock: {clock["words_per_minute"]:g} words per minute, '
             f'{clock["sigma"]:.3g} s per source token, {clock["tau"]:.3g} s '
             f'per target token ({clock.get("source", "given")}).')
  if over := lookup(final or start, 'accuracy_over_sets'):
    text += (f'\n\nOver the {over["sets"]} sets of instances the mean accuracy '
             f'is {over["mean"]:.3f}, with a deviation of '
             f'{over["deviation"]:.3f}.')
  return text


def comparison(evals: dict[str, Any], others: dict[str, dict[str, Any]]
               ) -> str:
  """This run beside the baselines; seconds only compare on the same clock.

  Args:
    evals: eval.json of the run.
    others: Label -> eval.json of each baseline.
  """
  final = evals.get('final')
  if not (final and others):
    return ''
  speeds = lambda e: [lookup(e, f'settings.clock.{k}')
                      for k in ('words_per_minute', 'sigma', 'tau')]
  rows = []
  for label, e in {'this run': evals, **others}.items():
    mine, its = (lookup(x, 'final.latency_s.end') for x in (evals, e))
    same = speeds(e) == speeds(evals) and mine and its is not None
    rows.append([label] + [_number(e['final'], *column) for column in (
        ('accuracy', 3), ('tokens_total', 1), ('tokens_deep', 1),
        ('latency_s.end', 2))] + [f'{its / mine:.2f}×' if same else '–'])
  return '## Baselines\n\n' + _table(
      ['', 'accuracy (95 % interval)', 'total tokens', 'deep tokens',
       'to the end (s)', 'against this run'], rows) + (
           '\n\nThe last column is only given for runs with the same clock.')


def beside_teacher(held_out: dict[str, Any]) -> str:
  """How far a distilled student was and is from its teacher.

  Args:
    held_out: teacher.json: 'start' and 'final' with the means of
      distill.beside; 'problems', 'split'.
  """
  start, final = held_out.get('start'), held_out.get('final')
  if not final:
    return ''
  cell = lambda summary, key: ('–' if (summary or {}).get(key) is None
                               else f'{summary[key]:.3f}')
  rows = [[label + f', {phase}', *(cell(x, f'{key}/{phase}')
                                   for x in (start, final))]
          for label, key in _TEACHER_ROWS for phase in ('streaming', 'deep')]
  return '### On held-out problems\n\n' + _table(
      ['', 'start', 'final'], rows) + (
          f'\n\nMeans over the tokens of the student\'s rollouts of '
          f'{held_out["problems"]} problems ({held_out["split"]}). Divergences '
          f'are in nats per token; the mass is what the student gives to the '
          f'teacher\'s most probable tokens.')


def _plain(text) -> str:
  """Escaped, so that Markdown shows the text as it is, on one line."""
  return re.sub(r'([\\`*_\[\]<>|~$])', r'\\\1', ' '.join(str(text).split()))


def samples(records: list[dict[str, Any]]) -> str:
  """The newest of samples.jsonl, sentence by sentence; one per problem."""
  if not records:
    return ''
  first = {}
  for record in records:
    first.setdefault((record['step'], record.get('id')), record)
  return '## Samples\n\nDistractors are in italics.\n\n' + '\n\n'.join(
      map(_sample, list(first.values())[-_SAMPLES:]))


def _sample(s) -> str:
  rows = []
  for chunk in s['chunks']:
    text = _plain(chunk['text'])
    thought = ('–' if not chunk['tokens'] else '`<skip>`'
               if chunk['thought'] is None else _plain(chunk['thought']))
    rows.append([f'*{text}*' if chunk['relevant'] is False and text else text,
                 thought + (' (cut)' if chunk['cut'] else ''),
                 str(chunk['tokens'])])
  verdict = (f'{"right" if s["correct"] else "wrong"}, '
             f'{"well-formed" if s["format"] else "not well-formed"}')
  lines = [f'### Step {s["step"]}: {verdict}']
  if asked := s.get('preamble') or s.get('question'):
    lines.append(f'**Question:** {_plain(asked)}')
  table = _table(['sentence', 'thought', 'tokens'], rows)
  lines.append(table.replace('| ---: | ---: |', '| --- | ---: |', 1))
  if threads := s.get('threads'):
    lines.append('**Threads:**')
    lines.append('\n'.join(f'    {" ".join(line.splitlines())}'
                           for line in threads))
  lines.append(f'**Deep:** {_plain(s["deep"]) or "–"}')
  lines.append(f'**Answer:** {_plain(s["answer"]) or "–"} '
               f'(reference {_plain(s["reference"])})')
  if rewards := s.get('rewards'):
    lines.append('Rewards: ' + ', '.join(
        f'{_plain(k)} {v:g}' for k, v in rewards.items()))
  return '\n\n'.join(lines)
