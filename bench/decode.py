"""The table of decode speed: one model shape in every format that should run at memory speed.

    python bench/decode.py [--shape 2b] [--threads 1,2] [--rival llama-bench --rival-model FILE.gguf]

Prints Markdown: tokens per second, bytes per token, share of the read bandwidth measured in the same rounds.
"""

from __future__ import annotations

import tables

from lutra.bench.case import AUTO, Model

# format, order.  1.6, 2.0, 4.5, 4.1, 2.3, 1.0 bits per weight
FORMATS = (
    ("ternary", "trit5"),
    ("ternary", AUTO),
    ("planes4-g32", AUTO),
    ("planes4-g128", AUTO),
    ("planes2-g64", AUTO),
    ("planes1-row-mins", AUTO),
)

if __name__ == "__main__":
    options = tables.parse(__doc__, prompts="128", gen=16)
    tables.show([Model(options.shape, name, order=order) for name, order in FORMATS], options)
