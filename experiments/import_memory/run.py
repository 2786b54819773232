"""Peak host memory of importing a Hugging Face folder.

  python -m experiments.import_memory.run [--model=qwen3-0.6b] [--folder=DIR]

Makes a folder of random bfloat16 weights of a published size, imports it in its
own process, and compares the growth of that process's resident memory with what
the devices hold plus 1.3 times the largest tensor. On CPU the devices use host
memory, so both are part of the same number; mapped pages of the files count
too.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from adasr_jax.models import hf
from adasr_jax.models import hf_config
from adasr_jax.models import presets


def make(folder: pathlib.Path, model: str) -> None:
  """A folder of random weights, in four shards with an index."""
  config = presets.preset(model, dtype='float32', remat='none')
  raw = hf_config.config_json(config, dtype='bfloat16', max_position=4096)
  table = hf.places(raw['model_type'], config, config.vocab_size)
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  names, index = sorted(table), {}
  count = 4
  for i in range(count):
    file = f'model-{i + 1:05d}-of-{count:05d}.safetensors'
    shard = names[i::count]
    index |= dict.fromkeys(shard, file)
    save_file({k: (rng.random(table[k].shape, np.float32) - 0.5).astype(
        ml_dtypes.bfloat16) for k in shard}, str(folder / file),
              {'format': 'pt'})
  (folder / hf.INDEX).write_text(json.dumps({'weight_map': index}))
  (folder / 'config.json').write_text(json.dumps(raw))


def status(field: str) -> int:
  """Bytes of a field of /proc/self/status."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(field + ':'):
      return int(line.split()[1]) * 1024
  raise KeyError(field)


def measure(folder: str) -> None:
  """Prints peak and held bytes of one import, as JSON."""
  import jax
  jax.block_until_ready(jax.numpy.ones(8) + 1)  # starts the backend
  config = hf_config.decoder_config(folder, dtype='float32', remat='none')
  before, peak, done = status('VmRSS'), {'VmRSS': 0, 'RssAnon': 0}, []
  def watch():
    while not done:
      for field in peak:
        peak[field] = max(peak[field], status(field))
      time.sleep(0.002)
  watcher = threading.Thread(target=watch)
  watcher.start()
  start = time.perf_counter()
  params = jax.block_until_ready(hf.load(folder, config))
  seconds = time.perf_counter() - start
  done.append(True)
  watcher.join()
  table = hf.places(hf_config.read_config(folder)['model_type'], config,
                    config.vocab_size)
  print(json.dumps(dict(
      seconds=seconds, before=before, peak=max(peak['VmRSS'],
                                               status('VmHWM')),
      peak_anonymous=peak['RssAnon'], after=status('VmRSS'),
      held=sum(a.nbytes for a in jax.tree.leaves(params)),
      largest=2 * max(math.prod(p.shape) for p in table.values()))))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='qwen3-0.6b')
  parser.add_argument('--folder', default='')
  parser.add_argument('--measure', default='', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    measure(args.measure)
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.folder or f'{temporary}/model')
    if not folder.exists():
      make(folder, args.model)
    got = json.loads(subprocess.run(
        [sys.executable, '-m', 'experiments.import_memory.run',
         f'--measure={folder}'], check=True, capture_output=True,
        text=True).stdout.splitlines()[-1])
  extra = got['peak'] - got['before'] - got['held']
  mb = {k: round(v / 1e6) for k, v in got.items() if k != 'seconds'}
  print(f'{args.model}: {got["seconds"]:.1f} s; MB {mb}')
  print(f'above what the devices hold: {extra / 1e6:.0f} MB = '
        f'{extra / got["largest"]:.2f} of the largest tensor (limit 1.3)')
  if extra > 1.3 * got['largest']:
    sys.exit('above the limit')


if __name__ == '__main__':
  main()
