"""Runs a sequence's pending tokens through the transformer, and keeps the books of the KV cache."""

from __future__ import annotations

import sys

import numpy as np

from lutra import debug
from lutra.engine.sequence import Sequence
from lutra.model.transformer import Transformer


def run_pending(transformer: Transformer, sequence: Sequence) -> np.ndarray:
    """Compute every token the cache lacks; return the logits after the last, f32 [vocab].

    Raises CapacityError before anything is computed when the context has no room.
    """
    pending = sequence.tokens[sequence.num_cached :]
    if debug.enabled("sched"):
        print(f"{len(pending)} tokens from position {sequence.num_cached}", file=sys.stderr)
    logits = transformer.prefill(pending, sequence.num_cached)
    sequence.num_cached = len(sequence.tokens)
    return logits
