"""How well a model expects a text: exp of the mean negative log-likelihood of its tokens.

Protocol: the text is cut into windows that do not overlap, of `context` tokens or one less and the BOS token in
front (if the model wants one); each is read anew, and every token after the first of a window is scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lutra.errors import RequestError
from lutra.model.load import Progress
from lutra.model.transformer import Transformer


def negative_log_likelihoods(transformer: Transformer, window: Sequence[int]) -> list[float]:
    """Minus log p(token | tokens before it) in nats for window[1:], float64 softmax over the f32 logits."""
    scores: list[float] = []
    for start in range(0, len(window) - 1, transformer.chunk):
        inputs = window[start : min(start + transformer.chunk, len(window) - 1)]
        logits = transformer.score(inputs, start).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        targets = window[start + 1 : start + 1 + len(inputs)]
        picked = logits[np.arange(len(inputs)), targets]
        scores.extend((np.log(np.exp(logits).sum(1)) - picked).tolist())
    return scores


def perplexity(
    transformer: Transformer, tokens: Sequence[int], bos_id: int | None, context: int, progress: Progress | None = None
) -> float:
    """Perplexity of `tokens` (without BOS); bos_id None where windows begin without.

    Raises RequestError when there is nothing to score: a window or a text of fewer than two tokens.
    """
    if context < 2:
        raise RequestError(f"expected windows of at least 2 tokens to measure perplexity, got {context}; change --ctx")
    begin = [] if bos_id is None else [bos_id]
    room = context - len(begin)
    scores: list[float] = []
    for start in range(0, len(tokens), room):
        scores += negative_log_likelihoods(transformer, [*begin, *tokens[start : start + room]])
        if progress is not None:
            progress("measuring", min(start + room, len(tokens)), len(tokens))
    if not scores:
        raise RequestError("expected a text of at least two tokens to measure perplexity on; give a longer one")
    return math.exp(math.fsum(scores) / len(scores))
