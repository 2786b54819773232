"""SmolLM2-135M on PubMedQA: does RL pay on real prose, and which credit?

  python -m experiments.pubmedqa.run --data=FILE --model=DIR [--only=NAME,...]

A question, then the abstract of a paper, read sentence by sentence; the answer
is yes, no or maybe. FILE is PQA-L (ori_pqal.json), DIR the model's folder
(docs/models.md). TEST of the 1,000 records, chosen by a shuffle, are for tests
alone; traces are made of the others (adasr_jax.tasks.pubmedqa.traces), without
their last sentence, the authors' conclusion: see notes.md. What is longer than
SIZES is left out.

  sft            supervised traces, each thought after its sentence
  sft_rtt        the same traces, written when all has been read
  hrpo, grpo     from sft, STEPS steps: the same flags but for the credit
  grpo_rtt       from sft_rtt, with GRPO

RL and evaluations allow only what the protocol does (rollout.legality=masked),
so that they are about answers, not about form. Each is evaluated, decoding
greedily, on the same EXAMPLES test problems. What is finished is not run again,
and a killed run goes on. Writes results.json and table.md beside this file.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import random
from typing import Any

import numpy as np

from adasr_jax.core import files
from adasr_jax.data import adapters
from adasr_jax.run import metrics
from adasr_jax.tasks.pubmedqa import traces
from experiments import cells

HERE = pathlib.Path(__file__).parent
TEST, EXAMPLES, STEPS = 300, 160, 24
SIZES = ('data.lengths=(320,448)', 'data.max_chunks=16',
         'rollout.thought_cap=48')
# Read-then-think has room for three thoughts more, as many as traces have.
DEEP_CAP, DEEP_CAP_RTT = 24, 24 + 3 * 48
SFT = ('data.format=streaming_reasoning', 'steps=64', 'data.prompts=8',
       'optim.learning_rate=5e-4', 'eval.examples=8', 'eval.batch=8')
MASKED = 'rollout.legality=masked'
# The rewards, weights and normaliser of configs/hrpo.py:full.
RL = (MASKED, 'data.format=pubmedqa', f'steps={STEPS}', 'data.prompts=4',
      'rollout.samples=6', 'optim.learning_rate=2e-5', 'optim.warmup=2',
      'reward.format_weight=0.2', 'reward.accuracy_weight=1.0',
      'reward.think_weight=0.3', 'reward.alpha=0.3', 'advantage.lam=0.5',
      'advantage.normaliser=decoupled', 'eval.examples=8', 'eval.batch=8')
CREDIT = {'hrpo': 'stage', 'grpo': 'sequence'}
BEGINS = {'hrpo': 'sft', 'grpo': 'sft', 'grpo_rtt': 'sft_rtt'}
NAMES = ('sft', 'sft_rtt', *BEGINS)
PAIRS = (('hrpo', 'grpo'), ('hrpo', 'sft'), ('grpo', 'sft'),
         ('sft', 'sft_rtt'), ('grpo_rtt', 'sft_rtt'), ('hrpo', 'grpo_rtt'))


def prepare(path: pathlib.Path, out: pathlib.Path) -> None:
  """Writes train.json, test.json, and the traces of train.json."""
  if (out / 'traces.jsonl').exists():
    return
  records = list(files.read_json(path).items())
  random.Random(0).shuffle(records)
  out.mkdir(parents=True, exist_ok=True)
  for name, some in (('test', records[:TEST]), ('train', records[TEST:])):
    (out / f'{name}.json').write_text(json.dumps(dict(some)))
  made = out / 'with_conclusions.jsonl'
  traces.main([f'--path={out / "train.json"}', f'--out={made}'])
  (out / 'traces.jsonl').write_text(''.join(
      json.dumps(json.loads(line) | {'deep': ''}) + '\n'
      for line in made.read_text().splitlines()))


def run(name: str, out: pathlib.Path, model: str) -> None:
  """Trains and evaluates one of NAMES, after what it begins from."""
  rtt = ',layout=read_then_think' * name.endswith('_rtt')
  deep_cap = DEEP_CAP_RTT if rtt else DEEP_CAP
  flags = [*SIZES, f'rollout.deep_cap={deep_cap}', 'checkpoint.every=4']
  if name in BEGINS:
    run(BEGINS[name], out, model)
    flags += [*RL, f'data.path={out / "train.json"}',
              f'data.test_path={out / "test.json"}',
              f'init={out / BEGINS[name]}',
              f'advantage.granularity={CREDIT[name.removesuffix("_rtt")]}']
  else:
    flags += [*SFT, f'data.path={out / "traces.jsonl"}']
  cells.run(out / name, f'gsm8k.py:model={model}{rtt}'
            + ',sft' * (name not in BEGINS),
            '--config.log.tensorboard=False', *(f'--config.{f}' for f in flags))
  cells.run(evaluation(out, name), f'eval.py:of={out / name},'
            f'examples={EXAMPLES}', '--config.log.tensorboard=False',
            f'--config.data.path={out / "train.json"}',
            f'--config.data.test_path={out / "test.json"}',
            f'--config.{MASKED}', '--config.data.format=pubmedqa',
            '--config.eval.batch=16', '--config.eval.rows=0')


def evaluation(out: pathlib.Path, name: str) -> pathlib.Path:
  """Where one of NAMES is evaluated on test.json."""
  return out / f'{name}_test'


def row(out: pathlib.Path, name: str) -> dict[str, Any] | None:
  """Of one of NAMES; None = it is not finished."""
  if (evals := cells.evaluated(evaluation(out, name))) is None:
    return None
  f = evals['final']
  answers = collections.Counter(
      str(a) for a in cells.problems(evaluation(out, name))['answer'])
  return {
      'name': name, 'n': f['n'], 'commit': cells.commit(),
      **{k: f[k] for k in (
          'accuracy', 'accuracy_ci95', 'format_rate', 'skip_rate',
          'tokens_streaming', 'tokens_deep', 'tokens_total')},
      'end_s': f['latency_s']['end'], 'answers': dict(answers.most_common()),
      'steps': len(cells.series(out / name, 'time/step')),
      'generated': cells.generated(out / name) if name in BEGINS else 0,
      'seconds': cells.seconds(out / name)}


def majority(out: pathlib.Path) -> dict[str, Any] | None:
  """What the most frequent answer has on the evaluated problems."""
  found = [w for n in NAMES if cells.evaluated(w := evaluation(out, n))]
  if not found:
    return None
  answers = {e.id: e.answer for e in map(
      adapters.pubmedqa, files.read_json(out / 'test.json').values())}
  gold = [answers[i] for i in cells.problems(found[0])['id']]
  answer, _ = collections.Counter(gold).most_common(1)[0]
  right = np.array(gold) == answer
  return {'answer': answer, 'n': len(gold), 'accuracy': float(right.mean()),
          'accuracy_ci95': metrics.accuracy_interval(right[:, None])}


def collect(out: pathlib.Path) -> dict[str, Any]:
  """results.json of what is finished."""
  difference = {}
  for pair in PAIRS:
    if found := cells.paired([tuple(evaluation(out, n) for n in pair)]):
      difference[' - '.join(pair)] = found[0]
  return {'always': majority(out),
          'cells': [r for n in NAMES if (r := row(out, n))],
          'paired': difference}


def table(results: dict[str, Any]) -> str:
  """The results as Markdown."""
  interval = lambda r: '{:.3f} [{:.3f}, {:.3f}]'.format(
      r['accuracy'], *r['accuracy_ci95'])
  lines = ['| policy | accuracy [95 %] | n | format | skipped '
           '| tokens, streaming + deep | end (s) | yes / no / maybe | steps '
           '| generated | seconds |', '|---|' + '---:|' * 10]
  if results['always']:
    a = results['always']
    lines.append(f'| always {a["answer"]} | {interval(a)} | {a["n"]} '
                 + '| – ' * 8 + '|')
  for r in results['cells']:
    said = ' / '.join(str(r['answers'].get(x, 0))
                      for x in ('yes', 'no', 'maybe'))
    skipped = '–' if r['skip_rate'] is None else f'{r["skip_rate"]:.2f}'
    lines.append(
        f'| {r["name"]} | {interval(r)} | {r["n"]} | {r["format_rate"]:.2f} '
        f'| {skipped} | {r["tokens_streaming"]:.1f} + '
        f'{r["tokens_deep"]:.1f} | {r["end_s"]:.2f} | {said} | {r["steps"]} '
        f'| {r["generated"]:,} | {r["seconds"]:,.0f} |')
  if results['paired']:
    lines += ['', '| on the same problems | accuracy, difference [95 %] |',
              '|---|---:|']
    lines += ['| {} | {:+.3f} [{:+.3f}, {:+.3f}] |'.format(
        pair, d['difference'], *d['ci95'])
              for pair, d in results['paired'].items()]
  return '\n'.join(lines) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--model', required=True)
  parser.add_argument('--only', default=','.join(NAMES))
  parser.add_argument('--out', type=pathlib.Path,
                      default=pathlib.Path('runs/pubmedqa'))
  args = parser.parse_args()
  prepare(args.data, args.out)
  for name in cells.chosen(parser, args.only, NAMES):
    run(name, args.out, args.model)
    results = collect(args.out)
    (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    (HERE / 'table.md').write_text(table(results))
  print(table(results))


if __name__ == '__main__':
  main()
