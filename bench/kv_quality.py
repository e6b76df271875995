"""What each kind of KV cache costs: perplexity, divergence from a cache of f32, and the likeliest token kept.

    python bench/kv_quality.py MODEL text.txt --context 256 [--bytes 20000] [--kv int8 int4 ...]

All kinds read the same windows with the same weights, so what differs is the cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lutra.engine.divergence import divergence
from lutra.engine.llm import LLM
from lutra.engine.perplexity import cut
from lutra.kernels.cache import KINDS, position_bytes
from lutra.model.transformer import Transformer

REFERENCE = "f32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--bytes", type=int, default=20_000, help="of the text, from its start")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    llm = LLM.load(options.model, options.threads, options.context)
    tokens = llm.tokenizer.encode(options.text.read_bytes()[: options.bytes].decode("utf-8", "ignore"), False)
    windows = cut(tokens, llm.tokenizer.bos_id, options.context)
    c, reference = llm.config, scorer(llm, REFERENCE)
    print(f"{len(tokens)} tokens in windows of {options.context}, {c.num_kv_heads} heads of {c.head_dim}")
    print("| kind | bytes of a position and head | perplexity | KL | same top token |\n|---|--:|--:|--:|--:|")
    for kind in options.kv:
        found = divergence(reference, scorer(llm, kind), windows)
        row = position_bytes(kind, 1, c.head_dim), found.perplexities[1], found.kl_summary()["mean"], found.top1
        print("| {} | {} | {:.4f} | {:.6f} | {:.2%} |".format(f"`{kind}`", *row), flush=True)


def scorer(llm: LLM, kind: str) -> Transformer:
    """The model's weights with a cache of this kind."""
    t = llm.transformer
    return Transformer(t.config, t.weights, t.workers, t.context, all_logits=True, factors=t.factors, kv=kind)


if __name__ == "__main__":
    main()
