"""How well a model expects a text: exp of the mean negative log-likelihood of its tokens, by one of three protocols.

A protocol says how a text is cut into windows that the model reads anew, and which tokens of a window are scored.
Two perplexities can be compared only if their protocol, context and text are the same: `PROTOCOLS` has the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lutra.errors import RequestError
from lutra.model.load import Progress
from lutra.model.transformer import Transformer


@dataclass(frozen=True)
class Window:
    """Tokens that are read together; those from index `first` (at least 1) on are scored."""

    tokens: list[int]
    first: int = 1

    @property
    def num_scored(self) -> int:
        return len(self.tokens) - self.first


@dataclass(frozen=True)
class Protocol:
    """A row of PROTOCOLS.

    cut           (tokens without BOS, BOS id or None, context) → windows; raises RequestError for a text too short
    context       the usual one; None for all that the model has room for
    means         what is done, in words
    """

    cut: Callable[[Sequence[int], int | None, int], list[Window]]
    context: int | None
    means: str


def cut_all(tokens: Sequence[int], bos_id: int | None, context: int) -> list[Window]:
    """Every window begins with BOS, the last one is as long as it is: each token of the text is shown or scored."""
    begin = [] if bos_id is None else [bos_id]
    room = context - len(begin)
    windows = [Window([*begin, *tokens[start : start + room]]) for start in range(0, len(tokens), room)]
    return [window for window in windows if window.num_scored > 0]


def cut_gptq(tokens: Sequence[int], bos_id: int | None, context: int) -> list[Window]:
    """BOS once, in front of the text; windows of exactly `context` tokens, the tail dropped.

    Every token of a window but its first is scored, so the mean over tokens is the mean over windows.
    Source: GPTQ, arXiv 2210.17323, its code's llama_eval.
    """
    stream = [*([] if bos_id is None else [bos_id]), *tokens]
    _check_length(stream, context)
    return [Window(stream[start : start + context]) for start in range(0, len(stream) - context + 1, context)]


def cut_llama_cpp(tokens: Sequence[int], bos_id: int | None, context: int) -> list[Window]:
    """Windows of exactly `context` tokens whose first token BOS takes the place of; the second half is scored.

    The stream that is cut begins with BOS too.  Source: llama.cpp, tools/perplexity/perplexity.cpp.
    """
    stream = [*([] if bos_id is None else [bos_id]), *tokens]
    _check_length(stream, 2 * context)
    windows = []
    for start in range(0, len(stream) - context + 1, context):
        window = stream[start : start + context]
        window[0] = window[0] if bos_id is None else bos_id
        windows.append(Window(window, context // 2 + 1))
    return windows


def _check_length(stream: Sequence[int], least: int) -> None:
    if len(stream) < least:
        raise RequestError(
            f"expected a text of at least {least} tokens, got {len(stream)}; give a longer one or a smaller --context"
        )


PROTOCOLS = {
    "windows": Protocol(cut_all, None, "windows that do not overlap, BOS in each, every token scored"),
    "gptq": Protocol(cut_gptq, 2048, "windows that do not overlap, BOS once in front of the text, tail dropped"),
    "llama.cpp": Protocol(cut_llama_cpp, 512, "windows that do not overlap, BOS in each, second half scored"),
}
DEFAULT_PROTOCOL = "windows"


@dataclass(frozen=True, eq=False)
class Perplexity:
    """The result of one measurement.

    scores   float64 [num_scored]   minus log p of every scored token, in nats
    """

    protocol: str
    context: int
    num_windows: int
    scores: np.ndarray

    @property
    def nats(self) -> float:
        """Mean over the scored tokens; summed exactly, so that no order of windows changes it."""
        return math.fsum(self.scores) / len(self.scores)

    @property
    def value(self) -> float:
        return math.exp(self.nats)

    @property
    def error(self) -> float:
        """Standard error of `value`, from that of the mean; tokens taken as independent."""
        if len(self.scores) < 2:
            return math.inf
        return self.value * float(self.scores.std(ddof=1)) / math.sqrt(len(self.scores))

    def __str__(self) -> str:
        return (
            f"perplexity {self.value:.4f} ± {self.error:.4f}\n"
            f"protocol   {self.protocol}, context {self.context}: {PROTOCOLS[self.protocol].means}\n"
            f"scored     {len(self.scores)} tokens in {self.num_windows} windows, {self.nats:.4f} nats per token"
        )


def window_size(protocol: str, context: int | None, room: int) -> int:
    """Tokens of a window: those asked for, or the protocol's, or the room there is where that is less.

    Raises RequestError for a protocol there is not.
    """
    _check_protocol(protocol)
    return context or min(PROTOCOLS[protocol].context or room, room)


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise RequestError(f"expected a protocol of {', '.join(PROTOCOLS)}, got {protocol!r}; change --protocol")


def cut(tokens: Sequence[int], bos_id: int | None, context: int, protocol: str = DEFAULT_PROTOCOL) -> list[Window]:
    """Cut a text (without BOS) into windows; bos_id None for a model that wants none.

    Raises RequestError for a protocol there is not, and when there is nothing to score.
    """
    _check_protocol(protocol)
    if context < 2:
        raise RequestError(
            f"expected windows of at least 2 tokens to measure perplexity, got {context}; change --context"
        )
    windows = PROTOCOLS[protocol].cut(tokens, bos_id, context)
    if not sum(window.num_scored for window in windows):
        raise RequestError("expected a text of at least two tokens to measure perplexity on; give a longer one")
    return windows


def logits_of(transformer: Transformer, window: Window) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Run a window; yield logits f32 [rows, vocab] (until the next) and the tokens they should have expected.

    Rows go through the layers a chunk at a time, and only scored ones through the head.
    """
    start = window.first - 1
    if start:
        transformer.prefill(window.tokens[:start], 0)
    for at in range(start, len(window.tokens) - 1, transformer.chunk):
        inputs = window.tokens[at : min(at + transformer.chunk, len(window.tokens) - 1)]
        yield transformer.score(inputs, at), window.tokens[at + 1 : at + 1 + len(inputs)]


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return log softmax of every row, float64 [rows, vocab]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def negative_log_likelihoods(transformer: Transformer, window: Window) -> list[float]:
    """Minus log p(token | tokens before it) in nats for the scored tokens, float64 softmax over the f32 logits."""
    scores: list[float] = []
    for logits, targets in logits_of(transformer, window):
        rows = np.arange(len(targets))
        shifted = logits.astype(np.float64)
        shifted -= shifted.max(1, keepdims=True)
        scores += (np.log(np.exp(shifted).sum(1)) - shifted[rows, targets]).tolist()
    return scores


def measure(
    transformer: Transformer,
    tokens: Sequence[int],
    bos_id: int | None,
    context: int,
    protocol: str = DEFAULT_PROTOCOL,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure the perplexity of `tokens` (without BOS) with a transformer made by `scorer`.

    progress   called as progress(label, done, total), in scored tokens
    Raises RequestError as `cut` does.
    """
    windows = cut(tokens, bos_id, context, protocol)
    total = sum(window.num_scored for window in windows)
    scores: list[float] = []
    for window in windows:
        scores += negative_log_likelihoods(transformer, window)
        if progress is not None:
            progress("measuring", len(scores), total)
    return Perplexity(protocol, context, len(windows), np.array(scores))
