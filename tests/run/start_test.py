"""What a run leaves that could not begin; what one that does begin says."""

import jax
import pytest

from adasr_jax.run.start import start
from adasr_jax.run import train
from adasr_jax.run import workdir as workdir_lib
from configs import sft
from tests.run.train_test import small


def config(**changes):
  c = small(sft.get_config('smoke'))
  c.steps, c.data.prompts, c.eval.every = 1, 2, 0
  c.eval.examples = c.eval.batch = 2
  c.update(changes)
  return c


def begin(c, workdir):
  return start(c, workdir, 'test', jax.devices()[:1])


def test_what_is_refused_leaves_no_workdir(tmp_path):
  broken = tmp_path / 'broken.safetensors'
  broken.write_bytes(b'no weights')
  with pytest.raises(ValueError, match='broken.safetensors is not a readable'):
    begin(config(init=str(broken)), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  begin(config(), tmp_path / 'run')


@pytest.mark.parametrize('field,value,says', [
    ('eval.split', 'ood', "eval.split='ood': example .* chunks, max_chunks"),
    ('data.lengths', (40,), "eval.split='test': the source of .* slots"),
    ('rollout.deep_cap', 6, "split 'train': example .* its cap is 6")])
def test_what_would_not_fit_later_is_refused_now(field, value, says, tmp_path):
  c = config()
  c.update_from_flattened_dict({field: value, 'eval.examples': 60})
  with pytest.raises(ValueError, match=says):
    begin(c, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_what_fails_before_its_first_step_is_withdrawn(tmp_path):
  workdir = tmp_path / 'run'
  def run(c, fails):
    begun = begin(c, workdir)
    trainer = train.Trainer(begun)
    trainer.evaluate_start()
    trainer.save()
    if not fails:
      trainer.step()
    trainer.writer.close()
    workdir_lib.withdraw(workdir, begun.found)
  run(config(), fails=True)
  assert not workdir.exists()
  workdir.mkdir()
  (workdir / 'notes.txt').write_text('mine')
  run(config(seed=1), fails=True)
  assert [p.name for p in workdir.iterdir()] == ['notes.txt']
  # What has trained stays, and so does a run that was there before.
  run(config(seed=2), fails=False)
  held = workdir_lib.names(workdir)
  assert {'config.json', 'checkpoints', 'metrics.jsonl'} < held
  workdir_lib.withdraw(workdir, held)
  assert workdir_lib.names(workdir) == held
  with pytest.raises(ValueError, match='seed: 2 -> 3'):
    begin(config(seed=3), workdir)
  assert workdir_lib.names(workdir) == held


def test_baselines_without_a_final_evaluation_are_refused(tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  c = config()
  c.eval.baselines = (str(other),)
  for text, says in (('{"start": {}}', 'other.* has no final evaluation'),
                     ('{"fin', 'eval.json is damaged')):
    (other / 'eval.json').write_text(text)
    with pytest.raises(ValueError, match=says):
      begin(c, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_workdir_that_another_process_holds(tmp_path):
  workdir = tmp_path / 'run'
  begin(config(), workdir)
  with workdir_lib.held(workdir):
    with pytest.raises(workdir_lib.Busy, match='another process'):
      with workdir_lib.held(workdir):
        pass


def test_an_evaluation_that_has_ended_stays(tmp_path):
  workdir = tmp_path / 'run'
  found = begin(config(), workdir).found
  (workdir / 'eval.json').write_text('{"final": {}}')
  workdir_lib.withdraw(workdir, found)
  assert (workdir / 'config.json').is_file()


def test_the_log_of_a_run_as_it_begins(tmp_path, caplog):
  caplog.set_level('INFO', logger='absl')  # whatever tools have set
  c = config()
  c.eval.at_start = True
  train.train(begin(c, tmp_path / 'run'))
  said = caplog.text
  at = [said.index(x) for x in ('parameters trained', 'compiling the rollout',
                                'start: accuracy ', 'final: accuracy ',
                                'report.md')]
  assert at == sorted(at)
