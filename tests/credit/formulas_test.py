r"""Which formulas are equal, how long that takes, and who is asked."""

import subprocess
import sys
import time

import pytest

from adasr_jax.credit import formulas

EQUAL = [
    (r'\sin^2 x+\cos^2 x', '1+0'), ('(x+1)^2', 'x^2+2x+1'), ('x^{-1}', '1/x'),
    (r'\frac{1}{2}3', '3/2+0'), (r'\sqrt{2}3', r'3\sqrt{2}'), ('2(3)', '6+0'),
    ('(2)(3)', '(6)'), (r'2\pi(3)', r'6\pi'), ('x^2(x+1)', 'x^3+x^2'),
    (r'\ln(e^2)', '2+0'), (r'\log_2 8', '3+0'), (r'e^{i\pi}', '-1+0'),
    ('(1+i)^2', '2i+0'), ('|-2|+x', '2+x'), ('0.1+0.2', '0.3+0'),
    ('(0.5,1)', '(1/2,1)'), (r'\{1,2\}', r'\{2,1\}'), ('1,2', '2,1'),
    (r'x=\pm 2', '2,-2'), (r'x=\pm 2', 'x=2,x=-2'), (r'x\in[1,2]', '[1,2]'),
    (r'[1,2)\cup(3,\infty)', r'[1,4/2)\cup(3, \infty)'),
    ('π/2', r'\frac{\pi}2'),
    ('x>3', '3<x'), ('2x>6', 'x>3'), ('-x>-3', 'x<3'), ('x>=3', r'x\ge 3'),
    (r'1<x\le 3', r'3\ge x>1'), ('y=2x+1', '2x-y+1=0'), ('y=2x+1', '2x+1'),
    ('f(x)=2x', '2x+0'), (r'\left(1,2\right)', '(1,2)'), ('2x=4', 'x=2'),
]
DIFFERENT = [
    ('(3,1)', '(2,1)'), ('(1,2)', '(2,1)'), ('(1,2)', '[1,2]'),
    ('(1,2)', r'\{1,2\}'), ('(1,2,3)', '(1,2)'), ('1,2', '1,1'),
    ('(0.3333333,1)', '(1/3,1)'), (r'5=\sqrt{2}', r'\sqrt{2}'),
    (r'x+1=\sqrt{2}', r'\sqrt{2}'), (r'x=\sqrt{2}', r'y=\sqrt{2}'),
    ('x>3', 'x<3'), ('x>3', r'x\ge 3'), ('-x>3', 'x>-3'), ('x=3', 'x>3'),
    ('x=x', 'x=3'), ('0=0', '1=1+0'), (r'\sqrt{x^2}', 'x+0'), ('2(3)', '5+0'),
    ('(2)(3)', '2+3'), ('{2}3', '5+0'), ('1/2x', r'\frac{1}{2}x'),
    (r'\pi+10^{-64}', r'\pi+0'), (r'\frac{x}{0}', r'\frac{y}{0}'),
    ('x/x', '(x-x)/(x-x)'), (r'\infty-\infty', '0+0'),
    ('(1,2)+(3,4)', '(1,2,4)'),
    (r'\cos 2x', r'2\cos x-1'), ('x(2)', '2x+0'), ('x+y', 'x+z'),
]


@pytest.mark.parametrize('a,b', EQUAL)
def test_equal(a, b):
  assert formulas.equal(a, b)
  assert formulas.equal(b, a)


@pytest.mark.parametrize('a,b', DIFFERENT)
def test_different(a, b):
  assert not formulas.equal(a, b)
  assert not formulas.equal(b, a)


# The slowest of many thousand pairs of random admitted formulas.
SLOWEST = [
    (r'\log_{2}(\log((1)/(191)))-\log_{3}(\log_{3}(99877 \cdot 1))',
     r'\log_{2}(\log((1)/(191)))-\log_{3}(\log_{3}(99877 \cdot 1))+0'),
    (r'\sqrt[7]{\log_{x}(2)-|\pi|-\log_{3}(e^{x+1})}',
     r'0+\sqrt[7]{\log_{x}(2)-|\pi|-\log_{3}(e^{x+1})}'),
    (r'\log \log_{3}(584.5) \cdot \frac{14}{55714}-\sin \sqrt[7]{y}',
     r'0+\log \log_{3}(584.5) \cdot \frac{14}{55714}-\sin \sqrt[7]{y}'),
    ('(((142886529.5-9)))', '(((142886522.5-9)))'),
]


@pytest.mark.parametrize('a,b', SLOWEST)
def test_the_slowest_are_fast(a, b):
  assert formulas._admitted(a) and formulas._admitted(b)
  formulas.compare('x+1', '1+x')  # imports
  took = []
  for _ in range(3):
    start = time.perf_counter()
    formulas.compare(a, b)
    took.append(time.perf_counter() - start)
  # At most 0.2 s on two cores of a server; the rest is for a busy machine.
  assert min(took) < 1.0


@pytest.fixture
def warnings(monkeypatch):
  """A fresh process to ask, and what is logged."""
  found = []
  monkeypatch.setattr(formulas.logging, 'warning',
                      lambda text, *args: found.append(text % args))
  monkeypatch.setattr(formulas, '_worker', formulas._Worker())
  yield found
  formulas._worker.stop()


def test_a_slow_pair_is_wrong_and_the_next_is_compared(warnings, monkeypatch):
  with monkeypatch.context() as m:
    m.setattr(formulas, 'LIMIT', 0.0)
    assert not formulas.equal('x+1', '1+x')
  assert len(warnings) == 1
  assert 'x+1' in warnings[0] and '1+x' in warnings[0]
  assert formulas.equal('x+1', '1+x')
  assert len(warnings) == 1


def test_a_process_that_died_is_started_again(warnings):
  assert formulas.equal('x+1', '1+x')
  formulas._worker._process.kill()
  formulas._worker._process.wait()
  assert formulas.equal('x+1', '1+x')
  assert not warnings


def test_what_kills_every_process_is_wrong(warnings, monkeypatch):
  assert formulas.equal('x+1', '1+x')
  start = formulas._worker._start

  def dead():
    start()
    formulas._worker._process.kill()
    formulas._worker._process.wait()
    return True

  monkeypatch.setattr(formulas._worker, '_start', dead)
  assert not formulas.equal('x+1', '1+x')
  assert len(warnings) == 1


def test_a_signal_to_all_processes_changes_no_verdict(warnings):
  assert formulas.equal('x+1', '1+x')
  process = formulas._worker._process
  process.terminate()
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(0.5)
  assert formulas.equal('x+2', '2+x') and not warnings
  assert formulas._worker._process is process


def test_a_process_is_renewed(warnings, monkeypatch):
  monkeypatch.setattr(formulas, '_PAIRS', 2)
  seen = set()
  for n in range(1, 6):
    assert formulas.equal(f'x+{n}', f'{n}+x')
    seen.add(formulas._worker._process.pid)
  assert len(seen) == 3 and not warnings


def test_without_a_process_we_compare_here(warnings, monkeypatch):
  monkeypatch.setattr(formulas.sys, 'executable', '/nowhere/python')
  assert formulas.equal('x+1', '1+x')
  assert not formulas.equal('x+1', '2+x')
  assert len(warnings) == 1


def test_the_process_ends_with_its_parent_and_never_imports_jax():
  program = '''if True:
    from adasr_jax.credit import formulas
    import sys
    assert formulas.equal('x+1', '1+x')
    assert not {'jax', 'math_verify'} & set(sys.modules)
    print(formulas._worker._process.pid)'''
  done = subprocess.run([sys.executable, '-c', program], check=True,
                        capture_output=True, text=True, timeout=120)
  assert done.stderr == ''
  alive = subprocess.run(['ps', '-p', done.stdout.strip()],
                         capture_output=True)
  assert alive.returncode != 0
  listed = subprocess.run(
      [sys.executable, '-X', 'importtime', '-P', formulas.__file__],
      input='', check=True, capture_output=True, text=True, timeout=120)
  assert 'math_verify' in listed.stderr and ' jax' not in listed.stderr
