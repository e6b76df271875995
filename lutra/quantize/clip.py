"""Cut the range of a group for a smaller error: a few large weights are rounded worse, all the others better.

For each of `steps` shares from 1 down to `least`, both ends of every group's range shrink to that share, the scale is
found anew and stored, and the share with the smallest sum |w - values|**power is kept, group by group.

Source   GPTQ, arXiv 2210.17323, its quantiser's `mse` option (80 shares from 1 to 0.21 and power 2.4 there);
         26 shares from 1 to 0.5 and the plain squared error here: finer, as smaller shares are never best
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import reduce
from lutra.quantize.levels import recode
from lutra.quantize.rounding import (
    RANGES,
    as_finite_f32,
    default_range,
    round_to_nearest,
    spread_groups,
)

STEPS, LEAST, POWER = 26, 0.5, 2.0
BLOCK_WEIGHTS = 1 << 16  # looked at together: all that is made of them stays in the cache

Quantise = Callable[[np.ndarray, Format], QTensor]
Error = Callable[[np.ndarray, slice], np.ndarray]  # (error f32 [n, K], rows) -> [n, G]


def clip(
    w: np.ndarray,
    format: Format,
    base: Quantise = round_to_nearest,
    steps: int = STEPS,
    least: float = LEAST,
    power: float = POWER,
    error: Error | None = None,
) -> QTensor:
    """Quantise a float matrix with the ranges of its groups cut where that makes the error smaller.

    w           float [N, K]     finite
    base        what finds scales for a range, and is given weights shrunk to it
    power       of |w - values| in the sum that is made small
    error       another measure of a group's error instead of that sum, from f32 [n, K] and which rows these are
    raises      FormatError      as base does

    >>> from lutra.formats import catalog
    >>> w = np.array([[-4, 1, 1, 1, 1, 1, 1, 1, 1]], np.float32)   # share p: 16 (1 - p)**2 + 8 (1 - 2 p)**2, p = 2 / 3
    >>> clip(w, catalog.planes(2, 0)).dequantize()[0, :2].round(2).tolist() == [np.float32(-2.64), np.float32(1.32)]
    True
    """
    w = as_finite_f32(w)
    measure = error or (lambda difference, rows: power_sum(difference, format, power))
    step = max(1, BLOCK_WEIGHTS // w.shape[1])
    blocks = [slice(start, start + step) for start in range(0, len(w), step)]
    return QTensor.concat([_clip_rows(w[rows], rows, format, base, shares(steps, least), measure) for rows in blocks])


def shares(steps: int = STEPS, least: float = LEAST) -> np.ndarray:
    """The shares of the range that are tried, f32 [steps], 1 first."""
    return np.linspace(1, least, steps, dtype=np.float32)


def power_sum(difference: np.ndarray, format: Format, power: float) -> np.ndarray:
    """Sum |difference|**power in each group: f32 [n, K] to [n, G]."""
    size = difference * difference if power == 2 else np.abs(difference) ** np.float32(power)
    return reduce(np.add, size, format.group_size)


def _clip_rows(
    w: np.ndarray, rows: slice, format: Format, base: Quantise, tried: np.ndarray, measure: Error
) -> QTensor:
    smallest = kept = None
    for share in tried:
        errors = measure(_difference(w, share, format, base), rows)                # [n, G]
        if smallest is None or kept is None:
            smallest, kept = errors, np.full_like(errors, share, np.float32)
            continue
        is_less = errors < smallest
        smallest, kept = np.where(is_less, errors, smallest), np.where(is_less, share, kept)
    assert kept is not None
    return recode(base(w * spread_groups(kept, w.shape[1], format), format), w)


def _difference(w: np.ndarray, share: np.float32, format: Format, base: Quantise) -> np.ndarray:
    """What rounding w to the levels of base(share * w) changes, f32 [n, K]; nothing is packed where a grid says all."""
    if base is not round_to_nearest or not format.is_plain:
        difference: np.ndarray = recode(base(w * share, format), w).dequantize() - w
        return difference
    grid = RANGES[default_range(format)][1](w * share, format)
    k, zero = w.shape[1], np.asarray(format.zero, np.float32)
    scale = spread_groups(grid.scales, k, format)
    if grid.zeros is not None:
        zero = zero + spread_groups(grid.zeros, k, format)
    least = None if grid.mins is None else spread_groups(grid.mins, k, format)
    with np.errstate(over="ignore"):
        place = w if least is None else w - least
        codes: np.ndarray = np.divide(place, scale, out=np.zeros_like(w), where=scale != 0)
    np.rint(codes, out=codes)
    codes += zero
    np.clip(codes, grid.smallest_code, format.num_codes - 1, out=codes)
    codes -= zero
    codes *= scale
    if least is not None:
        codes += least
    codes -= w
    return codes
