"""One format for all weights, beside a format for each in the same bytes: loss and divergence on text not chosen by.

    python bench/mixed_formats.py float.gguf text.txt

The first half of the text measures sensitivity, the second half what came of it.  Formats are data-free.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from lutra.bench.report import to_table
from lutra.cli.allocate import TOKENS
from lutra.cli.conditions import FORMATS
from lutra.engine.divergence import Divergence, divergence
from lutra.engine.llm import LLM
from lutra.engine.perplexity import cut
from lutra.errors import LutraError
from lutra.formats import catalog
from lutra.model import sensitivity
from lutra.model.transformer import Transformer
from lutra.quantize.allocate import allocate, totals

METHODS = ("scaled", "output")  # of sensitivity that are compared
HELD_OUT = 8000  # tokens


def rows(llm: LLM, text: str, context: int, names: list[str]) -> Iterator[dict[str, str]]:
    """A row for each format, alone and in mixtures of its size."""
    reference = llm.transformer.scorer(context)
    tokens, bos_id = llm.tokens_of(text)
    half = len(tokens) // 2
    read, held = cut(tokens[:half][:TOKENS], bos_id, context), cut(tokens[half:][:HELD_OUT], bos_id, context)

    def damage(transformer: Transformer) -> float:
        return float(divergence(reference, transformer, read).kl.mean())

    def outcome(allocation: dict[str, str]) -> Divergence:
        found: list[Divergence] = []

        def keep(transformer: Transformer) -> float:
            found.append(divergence(reference, transformer, held))
            return 0.0

        sensitivity.Swap(llm.model, context, keep).loss_of(allocation, sensitivity.by_default)
        return found[0]

    formats, ids = [catalog.find(name) for name in names], [window.tokens for window in read]
    costs = {method: sensitivity.measure(llm.model, ids, formats, damage, method, with_head=not llm.config.tied)
             for method in METHODS}  # fmt: skip
    count = sensitivity.num_weights(llm.config, not llm.config.tied)
    for name in names:
        table = sensitivity.join(costs[METHODS[0]], sensitivity.predicted_times(costs[METHODS[0]], 1.0))
        alone = dict.fromkeys(table, name)
        num_bytes = totals(table, alone)[0]
        yield row(name, 8 * num_bytes / count, outcome(alone))
        for method in METHODS:
            table = sensitivity.join(costs[method], sensitivity.predicted_times(costs[method], 1.0))
            mixed = allocate(table, num_bytes=num_bytes)
            yield row(f"mixed by {method}", 8 * totals(table, mixed)[0] / count, outcome(mixed))


def row(name: str, bpw: float, found: Divergence) -> dict[str, str]:
    increase, error = found.loss_increase
    return {
        "format": name, "bits per weight": f"{bpw:.3f}", "KL nats": f"{found.kl.mean():.4f}",
        "loss increase": f"{increase:+.4f} ± {error:.4f}", "top-1": f"{100 * found.top1:.1f} %",
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="of floats")
    options.add_argument("text", type=Path)
    options.add_argument("--context", type=int, default=128)
    options.add_argument("--formats", default=",".join(FORMATS))
    chosen = options.parse_args()
    try:
        llm, found = LLM.load(chosen.model), []
        for each in rows(llm, chosen.text.read_text("utf-8"), chosen.context, chosen.formats.split(",")):
            found.append(each)
            print(*each.values(), file=sys.stderr, flush=True)
        print(to_table(found))
    except LutraError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
