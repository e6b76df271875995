"""How far a model's expectations are from another's: Kullback-Leibler divergence, agreement on the likeliest token.

Both models read the same windows of the same text; the reference is usually the float model, the other a quantised one.
Perplexity can stay the same while a model changes; the divergence is 0 only where nothing changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lutra.engine.perplexity import Window, log_probabilities, logits_of
from lutra.errors import RequestError
from lutra.model.load import Progress
from lutra.model.transformer import Transformer


@dataclass(frozen=True, eq=False)
class Divergence:
    """What every scored position of the text says; all float64 [num_scored] in nats, but `agrees`, bool.

    kl          sum over tokens of p * (log p - log q), p the reference's
    agrees      whether both hold the same token for likeliest (the lowest id on ties)
    reference   minus log p of the token that came
    other       minus log q of it
    """

    kl: np.ndarray
    agrees: np.ndarray
    reference: np.ndarray
    other: np.ndarray

    @property
    def top1(self) -> float:
        """Share of positions with the same likeliest token."""
        return float(self.agrees.mean())

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the reference and of the other."""
        return _perplexity(self.reference), _perplexity(self.other)

    @property
    def loss_increase(self) -> tuple[float, float]:
        """Mean of `other - reference` and its standard error: paired, so much sharper than that of either."""
        difference = self.other - self.reference
        error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
        return math.fsum(difference) / len(difference), float(error)

    def kl_summary(self) -> dict[str, float]:
        """Mean, median, 99th percentile and largest divergence."""
        return {
            "mean": math.fsum(self.kl) / len(self.kl),
            "median": float(np.median(self.kl)),
            "99 %": float(np.percentile(self.kl, 99)),
            "max": float(self.kl.max()),
        }


def _perplexity(scores: np.ndarray) -> float:
    return math.exp(math.fsum(scores) / len(scores))


def divergence(
    reference: Transformer, other: Transformer, windows: Sequence[Window], progress: Progress | None = None
) -> Divergence:
    """Read every window with both, which `scorer` made; windows come from `perplexity.cut`.

    Raises RequestError where the vocabularies differ in size.
    """
    sizes = reference.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"expected two models of one vocabulary, got {sizes[0]} and {sizes[1]} tokens; compare others"
        )
    parts: list[tuple[np.ndarray, ...]] = []
    total, done = sum(window.num_scored for window in windows), 0
    for window in windows:
        pairs = zip(logits_of(reference, window), logits_of(other, window), strict=True)
        parts += [compare(p, q, targets) for (p, targets), (q, _) in pairs]
        done += window.num_scored
        if progress is not None:
            progress("comparing", done, total)
    return Divergence(*map(np.concatenate, zip(*parts, strict=True)))


def compare(reference: np.ndarray, other: np.ndarray, targets: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The four arrays of Divergence for some rows.

    reference, other   f32 [rows, vocab] logits
    targets            the tokens that came
    """
    p, q = log_probabilities(reference), log_probabilities(other)
    kl = np.einsum("ij,ij->i", np.exp(p), p - q)
    rows = np.arange(len(targets))
    agrees = reference.argmax(1) == other.argmax(1)
    return np.maximum(kl, 0), agrees, -p[rows, targets], -q[rows, targets]


def distance_from(reference: Transformer, windows: Sequence[Window]) -> Callable[[Transformer], float]:
    """Mean divergence of any other model from this one, in nats; this one reads the windows once, here.

    Holds an f32 for every scored position and token of the vocabulary.
    """
    held = [[log_probabilities(p).astype(np.float32) for p, _ in logits_of(reference, each)] for each in windows]

    def distance(other: Transformer) -> float:
        found = [
            np.einsum("ij,ij->i", np.exp(p, dtype=np.float64), p - log_probabilities(logits))
            for parts, window in zip(held, windows, strict=True)
            for p, (logits, _) in zip(parts, logits_of(other, window), strict=True)
        ]
        return max(float(np.concatenate(found).mean()), 0.0)

    return distance
