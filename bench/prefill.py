"""The table of prefill speed: one model shape, prompts of 128 and 512 tokens, codes of 1 to 4 bits.

    python bench/prefill.py [--shape 2b] [--threads 1,2] [--rival llama-bench --rival-model FILE.gguf]

Prints Markdown: tokens per second, int8 operations per second, share of the int8 peak measured in the same rounds.
"""

from __future__ import annotations

import tables

from lutra.bench.case import Model

FORMATS = ("planes1-row-mins", "ternary", "planes2-g64", "planes3-row", "planes4-g32", "planes4-g128")

if __name__ == "__main__":
    options = tables.parse(__doc__, prompts="128,512", gen=4)
    tables.show([Model(options.shape, name) for name in FORMATS], options)
