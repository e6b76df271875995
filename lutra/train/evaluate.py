"""Held-out perplexity of an exported model: the numbers of its card.

It runs the reference forward pass on the folder as shipped, so it measures the packed weights, not the training run.

Example
    python -m lutra.train.evaluate lutra/models/stories --corpus english_novels --stories tinystories
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from lutra.train import data
from lutra.train.export import Reference


def perplexity(model: Reference, windows: np.ndarray) -> float:
    """Return exp of the mean loss over windows uint16 [windows, length]; a window predicts length - 1 tokens."""
    losses = []
    for window in windows.astype(np.int64):
        logits = model.logits(window[:-1].tolist())
        losses.append(F.cross_entropy(logits, torch.from_numpy(window[1:])).item())
    return math.exp(sum(losses) / len(losses))


def report(folder: Path, corpus: data.Corpus, length: int, count: int) -> list[str]:
    """Measure three kinds of text; one line each.  Training stories beside held-out ones show learning by heart."""
    tokenizer, model = Tokenizer.from_file(str(folder / "tokenizer.json")), Reference(folder)
    bos, _ = data.bos_and_eos(tokenizer)
    rng = np.random.default_rng(0)
    texts = {
        "held-out novels": data.novel_windows(data.encode_novels(tokenizer, corpus.held_out_novels), length + 1, bos),
        "held-out stories": data.story_windows(data.encode_tales(tokenizer, corpus.held_out_stories), length + 1, rng),
        "training stories": data.story_windows(data.encode_tales(tokenizer, corpus.train_stories), length + 1, rng),
    }
    lines = []
    for name, windows in texts.items():
        chosen = data.spread(windows, count)
        lines.append(f"{name}: perplexity {perplexity(model, chosen):.2f} over {len(chosen) * length} tokens")
    return lines


def main() -> None:
    p = argparse.ArgumentParser("python -m lutra.train.evaluate", description="Held-out perplexity of a model folder.")
    p.add_argument("folder", type=Path)
    p.add_argument("--corpus", type=Path, required=True)
    p.add_argument("--stories", type=Path, required=True)
    p.add_argument("--length", type=int, default=512, help="tokens per window (default 512)")
    p.add_argument("--windows", type=int, default=128, help="windows of each kind at most (default 128)")
    args = p.parse_args()
    torch.set_num_threads(2)
    print(*report(args.folder, data.read_corpus(args.corpus, args.stories), args.length, args.windows), sep="\n")


if __name__ == "__main__":
    main()
