"""Logits become one token: penalty, top-k, top-p, min-p, temperature, one draw.

The order is llama.cpp's default chain, so top-p and min-p look at the model's own probabilities and temperature only
reshapes what they left.  (Hugging Face applies temperature first; at temperature 1 both keep the same tokens.)

Same logits, params and seed give the same token on every machine: the arithmetic is float64 additions,
multiplications and comparisons in a fixed order, `exp` included, and ties go to the lowest token id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lutra.engine.params import SamplingParams
from lutra.errors import FileError

FIRST_SORTED = 256  # candidates that top-p sorts at first; eight times more whenever they do not suffice

# exp(x) = 2**k * exp(r) with k = round(x / ln 2); ln 2 in two parts (fdlibm, e_exp.c) so that k * LN2_HIGH is exact
INVERSE_LN2 = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
EXP_UNDERFLOW = -708.0  # below, exp(x) < 3.4e-308: counted as 0
EXP_SERIES = tuple(1 / math.factorial(n) for n in range(14))  # |r| <= ln(2) / 2: the rest is below 5e-18


def make_rng(seed: int | None) -> np.random.Generator:
    """Return the generator of one sequence: PCG64 of the seed (modulo 2**64), or of system entropy for None."""
    return np.random.Generator(np.random.PCG64(None if seed is None else seed % (1 << 64)))


def sample(
    logits: np.ndarray, params: SamplingParams, rng: np.random.Generator, history: Sequence[int] = ()
) -> int:
    """Choose the next token.

    logits    f32 [V]      -inf forbids a token
    history   token ids    of prompt and output, for repetition_penalty
    returns   int          temperature 0: the arg-max, lowest id on ties, rng untouched; else one draw from rng
    raises    FileError    logits with NaN or +inf, or nothing but -inf: the weights are broken
    """
    check_finite(logits.max())
    if params.repetition_penalty != 1.0:
        logits = penalize(logits, params.repetition_penalty, history)
    if params.temperature == 0:
        return int(np.argmax(logits))
    ids, weights = distribution(logits, params)
    edges = np.cumsum(weights)
    drawn = np.searchsorted(edges, rng.random() * edges[-1], side="right")
    return int(ids[min(int(drawn), len(ids) - 1)])


def check_finite(largest: float) -> None:
    """Refuse logits by their largest, which is NaN if any of them is."""
    if not np.isfinite(largest):
        raise FileError("logits: expected finite numbers, got NaN or infinity; the weights or scales are broken")


def distribution(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """Return what a draw chooses from.

    returns   int64 [S] surviving token ids, ascending; float64 [S] their weights, not normalised, the best one 1
    """
    ids = _top_k(logits, params.top_k)
    relative = logits[ids].astype(np.float64) - float(logits.max())  # [S]  <= 0, the best one 0
    keep = np.ones(len(ids), bool)
    if params.top_p < 1 or params.min_p > 0:
        weights = exp(relative)
        keep = _top_p(weights, params.top_p) & (weights >= params.min_p)
    return ids[keep], exp(relative[keep] / params.temperature)


def penalize(logits: np.ndarray, penalty: float, history: Sequence[int]) -> np.ndarray:
    """Return a copy in which tokens of `history` are less likely.  Source: CTRL, arXiv 1909.05858, section 4.1."""
    seen = np.unique(np.asarray(history, np.int64))
    changed = logits.copy()
    factor = np.float32(penalty)
    changed[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
    return changed


def exp(x: np.ndarray) -> np.ndarray:
    """Return e ** x for x <= 0, float64, within 2 units of the last place, equal on every machine.

    NumPy's own exp differs between vector units in the last bit.
    """
    k = np.rint(np.maximum(x, EXP_UNDERFLOW) * INVERSE_LN2)
    r = (np.maximum(x, EXP_UNDERFLOW) - k * LN2_HIGH) - k * LN2_LOW
    series = np.full_like(r, EXP_SERIES[-1])
    for coefficient in EXP_SERIES[-2::-1]:
        series *= r
        series += coefficient
    return np.where(x < EXP_UNDERFLOW, 0.0, np.ldexp(series, k.astype(np.int32)))


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the ids of the k largest logits, ascending; among equals at the border the lowest ids."""
    if k <= 0 or k >= len(logits):
        return np.arange(len(logits))
    border = np.partition(logits, len(logits) - k)[len(logits) - k]  # the k-th largest value
    above = np.flatnonzero(logits > border)
    at = np.flatnonzero(logits == border)[: k - len(above)]
    return np.sort(np.concatenate([above, at]))


def _top_p(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Return which weights belong to the smallest set of largest ones whose share reaches top_p; equals by lowest id.

    weights   float64 [S]    in order of token id
    returns   bool [S]
    """
    keep = np.ones(len(weights), bool)
    if top_p >= 1:
        return keep
    wanted = top_p * np.cumsum(weights)[-1]
    count = FIRST_SORTED
    while True:
        largest = _top_k(weights, count)
        largest = largest[np.argsort(-weights[largest], kind="stable")]  # [<= count]
        share = np.cumsum(weights[largest])
        if share[-1] >= wanted or len(largest) == len(weights):
            break
        count *= 8
    keep[:] = False
    keep[largest[: int(np.searchsorted(share, wanted)) + 1]] = True
    return keep
