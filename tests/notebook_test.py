"""The notebook, executed in smoke sizes in a copy of the repository."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

nbformat = pytest.importorskip('nbformat', reason='nbformat is missing')
nbclient = pytest.importorskip('nbclient', reason='nbclient is missing')
pytest.importorskip('ipykernel', reason='ipykernel is missing')

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = pathlib.Path('notebooks', 'adasr.ipynb')
COPIED = ('adasr_jax', 'configs', 'experiments/demo', 'experiments/warm_start',
          'notebooks')


def read(root=ROOT):
  return nbformat.read(root / NOTEBOOK, as_version=4)


def copy_to(folder):
  for name in COPIED:
    shutil.copytree(ROOT / name, folder / name,
                    ignore=shutil.ignore_patterns('__pycache__'))


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """The copy's root, and {id: cell} after all cells have been executed."""
  root = tmp_path_factory.mktemp('checkout')
  copy_to(root)
  notebook = read(root)
  with pytest.MonkeyPatch.context() as m:
    for name, value in dict(
        SMOKE='1', JAX_PLATFORMS='cpu', JAX_DISABLE_MOST_OPTIMIZATIONS='1',
        # The second run has the programs of the first.
        JAX_COMPILATION_CACHE_DIR=root / 'cache',
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.2',
        # This interpreter's kernel, and nothing written at home.
        JUPYTER_DATA_DIR=root / 'jupyter', JUPYTER_RUNTIME_DIR=root / 'jupyter',
        IPYTHONDIR=root / 'ipython').items():
      m.setenv(name, str(value))
    # As Jupyter does: in the notebook's folder.
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name='python3', resources={
            'metadata': {'path': str((root / NOTEBOOK).parent)}}).execute()
  return root, {cell.id: cell for cell in notebook.cells}


def printed(cell):
  return ''.join(o.text for o in cell.outputs if o.output_type == 'stream')


def shown(cell, kind):
  return [o.data[kind] for o in cell.outputs
          if o.output_type == 'display_data' and kind in o.data]


# ------------------------------------------------------------------ as it lies
def test_it_is_valid_and_cleared():
  notebook = read()
  nbformat.validate(notebook)
  assert notebook.nbformat_minor >= 5, 'cells without ids'
  for cell in notebook.cells:
    assert max(map(len, cell.source.splitlines())) <= 80, cell.id
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None, cell.id


# --------------------------------------------------------------------- set-up
def set_up(folder, repository=''):
  """The finished process of the first two code cells."""
  source = {cell.id: cell.source for cell in read().cells}
  options = source['options']
  assert options.count("REPOSITORY = ''") == 1
  options = options.replace("''", repr(str(repository)), 1)
  return subprocess.run([sys.executable, '-c', '\n'.join(
      [options, source['set-up'], 'print(pathlib.Path.cwd())'])],
      cwd=folder, capture_output=True, text=True, timeout=60)


def test_outside_a_checkout_it_says_what_to_set(tmp_path):
  got = set_up(tmp_path)
  assert got.returncode == 1
  assert 'set REPOSITORY to the' in got.stderr.splitlines()[-1]
  assert not list(tmp_path.iterdir())


def test_outside_a_checkout_it_clones_once(tmp_path):
  origin, folder = tmp_path / 'origin', tmp_path / 'content'
  (origin / 'configs').mkdir(parents=True)
  folder.mkdir()
  shutil.copy(ROOT / 'configs' / 'hrpo.py', origin / 'configs')
  git = lambda *a: subprocess.run(
      ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *a], cwd=origin,
      check=True, capture_output=True)
  git('init')
  git('add', '.')
  git('commit', '-m', 'all')
  for _ in range(2):
    got = set_up(folder, origin)
    assert not got.returncode, got.stderr
    assert got.stdout.splitlines()[-1] == str(folder / 'adasr_jax')
    shutil.rmtree(origin, ignore_errors=True)  # the second time it is there


# ------------------------------------------------------------------- executed
def test_training_is_shown_and_stays_in_the_copy(executed):
  root, cells = executed
  text = printed(cells['demo'])
  assert 'compiling the rollout' in text and '2/2' in text
  runs = {p.name for p in (root / 'runs' / 'notebook_smoke').iterdir()}
  assert runs == {'demo', 'reward'}


def test_the_report_is_shown(executed):
  _, cells = executed
  table, = shown(cells['table'], 'text/markdown')
  assert re.search(r'accuracy .*\| 0\.\d+ \[.*\| 0\.\d+ \[.*\|', table)
  assert len(shown(cells['figures'], 'image/png')) == 3


def test_ones_own_text_is_thought_over(executed):
  _, cells = executed
  lines = printed(cells['own-text']).splitlines()
  assert "no word 'zebra'" in lines[0]
  beside = dict(re.split(r'\s{2,}', line) for line in lines[1:7])
  assert beside['the road is long .'] == '(skipped)'
  assert beside['tom buys 4 apples .'] == '9 + 4 = 13'
  assert lines[-1] == 'answer: 11'
  assert 'zebra' not in printed(cells['vocabulary'])


def test_ones_own_reward_is_seen_in_the_metrics(executed):
  _, cells = executed
  rows = {name: (float(a), float(b)) for name, a, b in re.findall(
      r'^(\S+/\S+) +(\S+) +(\S+)$', printed(cells['reward-effect']), re.M)}
  tokens, same = rows['tokens/deep']
  assert tokens == same > 0
  without, own = rows['reward/deep']
  assert own - without == pytest.approx(-0.02 * tokens, abs=2e-4)
  assert len(set(rows['reward/streaming'])) == 1


def test_the_live_session_thinks_while_words_arrive(executed):
  _, cells = executed
  lines = printed(cells['live']).splitlines()
  names = [line.split()[2] for line in lines if ' s  ' in line]
  assert names[0] == 'session.created' and names[-1] == 'done'
  assert names.index('thought.end') < len(names) - 1 - names[::-1].index(
      'chunk.committed'), 'it has thought only after all had arrived'
  assert re.search(r'answer +11$', '\n'.join(lines), re.M)
  assert float(re.search(r"'end': ([\d.]+)", lines[-1])[1]) < 60
