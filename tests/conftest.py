"""How the tests run: eight devices, quick compilation, long files first."""

from importlib import metadata
import os
import pathlib
import tempfile

# What one test compiles, all others have: of this process, of the other workers
# and of the programs that tests start, all of which inherit this. A largest
# size, for with it JAX locks the folder.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.TemporaryDirectory(prefix='adasr_jax_tests_')
  os.environ.update(JAX_COMPILATION_CACHE_DIR=_compiled.name,
                    JAX_COMPILATION_CACHE_MAX_SIZE=str(2**32),
                    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.1',
                    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES='-1')

# The older emitters of fusions, which runs do not use, compile in three fifths
# of the time. A version that does not know a flag would end the process.
if metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] = ('--xla_cpu_use_fusion_emitters=false '
                             + os.environ.get('XLA_FLAGS', ''))

import jax
import pytest

from adasr_jax.models import decoder
from adasr_jax.policy import engine
from tests.small import make_config

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_num_cpu_devices', 8)  # for the tests of sharding
jax.config.update('jax_disable_most_optimizations', True)  # compiles sooner
# One decoding loop compiles in a quarter of the time of four; that the cache
# may grow between loops has a test of its own.
engine.FIRST_CACHE = 256

# Minutes each; they come first, so that no worker ends on one of them alone.
LONG = ('sharding_test', 'hosts_test', 'resume_test', 'train_test',
        'update_test', 'lora_test', 'engine_test', 'packing_test')
# A process may have 65,530 mapped regions, and each compiled program has some:
# one too many is a segmentation fault in the compiler.
MAPS, MOST_MAPS = pathlib.Path('/proc/self/maps'), 30_000


def pytest_collection_modifyitems(items):
  last = len(LONG)
  items.sort(key=lambda item: LONG.index(item.path.stem)
             if item.path.stem in LONG else last)


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  yield
  if MAPS.exists() and MAPS.read_bytes().count(b'\n') > MOST_MAPS:
    jax.clear_caches()


@pytest.fixture(scope='session')
def params():
  """A decoder whose outputs depend on what it reads, with long rollouts."""
  tree = decoder.init(make_config(), jax.random.key(0))
  return tree | {'embedding': tree['embedding'] * 2.0}
