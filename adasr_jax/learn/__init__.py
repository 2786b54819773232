"""How a policy learns: METHODS, and the one update that they share."""

from adasr_jax.learn import distill
from adasr_jax.learn import hrpo
from adasr_jax.learn.method import Entry
from adasr_jax.learn import sft

# config.method -> what it is. A new method is one more entry.
METHODS: dict[str, Entry] = {
    'sft': sft.ENTRY, 'hrpo': hrpo.ENTRY, 'distill': distill.ENTRY}
