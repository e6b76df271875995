"""AWQ: large inputs deserve finer weights, so scale their columns up before rounding, and the inputs down.

    W x = (W s) (x / s),  s > 0 [K].  Q(W s) spends its levels on the columns with a large s; 1 / s is folded into
    whatever makes x (a norm weight, or the rows of the linear before), so nothing is left to do at run time.

The scale is looked for along one line:  s = x_mean**r, r = 0, 1/20, .., 19/20, with x_mean the mean |x| of each input.
The r with the smallest error of the outputs wins; r = 0 scales nothing, so scaling never loses on the inputs it was
chosen on.  `duo` takes another line:  s = x_mean**r / w_mean**(1 - r), with w_mean the mean over rows of |W| as a share
of its group's largest; on the small models measured here it does less well.

Then ranges may be cut, group by group, for the smallest error of x W.T over a sample of inputs: `clip_for_inputs`.

Source   arXiv 2306.00978, sections 3.2 and appendix; `duo` is AutoAWQ's duo_scaling
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.clip import clip
from lutra.quantize.groups import reduce, spread
from lutra.quantize.rounding import as_finite_f32, round_to_nearest

RATIOS = 20
SMALLEST = np.float32(1e-4)
CLIP_STEPS, CLIP_LEAST = 11, 0.5

Quantise = Callable[[np.ndarray, Format], QTensor]


def search_scale(
    weights: Sequence[np.ndarray],
    x: np.ndarray,
    formats: Sequence[Format],
    base: Quantise = round_to_nearest,
    x_mean: np.ndarray | None = None,
    duo: bool = False,
) -> np.ndarray:
    """Find the scale of the inputs that several linears share.

    weights   float [N, K] each
    x         f32 [M, K]   a sample of their inputs
    formats   one for each weight
    x_mean    f32 [K]      mean |x| over all tokens; default: that of the sample
    duo       divide by the size of weights, too
    returns   f32 [K]      multiply columns with it, and divide inputs by it
    """
    weights = [as_finite_f32(w) for w in weights]
    x_mean = np.abs(x).mean(0, dtype=np.float64).astype(np.float32) if x_mean is None else x_mean
    w_mean = column_importance(weights, formats[0]) if duo else None
    best = np.ones(x.shape[1], np.float32)
    smallest = output_error(weights, x, best, formats, base)
    for ratio in np.arange(RATIOS, dtype=np.float32) / RATIOS:
        scale = candidate(x_mean, w_mean, ratio)
        error = output_error(weights, x, scale, formats, base)
        if error < smallest:
            best, smallest = scale, error
    return best


def candidate(x_mean: np.ndarray, w_mean: np.ndarray | None, ratio: np.float32) -> np.ndarray:
    """The scale of one ratio, f32 [K]: largest times smallest is 1.

    >>> candidate(np.array([16, 1], np.float32), None, np.float32(0.5)).tolist()      # 4 and 1, divided by 2
    [2.0, 0.5]
    """
    scale = x_mean**ratio
    if w_mean is not None:
        scale = scale / (w_mean ** (np.float32(1) - ratio) + SMALLEST)
    scale = np.maximum(scale, SMALLEST)
    scaled: np.ndarray = scale / (np.sqrt(scale.max()) * np.sqrt(scale.min()))
    return scaled.astype(np.float32)


def column_importance(weights: Sequence[np.ndarray], format: Format) -> np.ndarray:
    """Mean over all rows of |w| as a share of the largest of its group, f32 [K]."""
    total, k = np.zeros(weights[0].shape[1]), weights[0].shape[1]
    for w in weights:
        size = np.abs(w)
        largest = spread(reduce(np.maximum, size, format.group_size), k, format.group_size)
        total += np.divide(size, largest, out=np.zeros_like(size), where=largest > 0).sum(0, dtype=np.float64)
    mean: np.ndarray = (total / sum(map(len, weights))).astype(np.float32)
    return mean


def output_error(
    weights: Sequence[np.ndarray], x: np.ndarray, scale: np.ndarray, formats: Sequence[Format], base: Quantise
) -> float:
    """Sum of the squared changes of x @ w.T that scaling and rounding make."""
    error = 0.0
    for w, form in zip(weights, formats, strict=True):
        change = base(w * scale, form).dequantize() / scale - w
        error += float(((x @ change.T) ** 2).sum(dtype=np.float64))
    return error


def clip_for_inputs(
    w: np.ndarray, x: np.ndarray, format: Format, base: Quantise = round_to_nearest, steps: int = CLIP_STEPS
) -> QTensor:
    """Quantise with ranges cut where that makes the error of the outputs smaller, each group by itself.

    w   float [N, K]     x   f32 [M, K], a sample of inputs

    A group's error is e.T H e, with e the error of its weights in one row and H = x.T x of its inputs.
    """
    k = w.shape[1]
    width = format.group_size or k
    hessians = [x[:, start : start + width].T @ x[:, start : start + width] for start in range(0, k, width)]

    def error(difference: np.ndarray, rows: slice) -> np.ndarray:
        parts = [difference[:, width * g : width * (g + 1)] for g in range(len(hessians))]
        return np.stack([((e @ h) * e).sum(1) for e, h in zip(parts, hessians, strict=True)], 1)

    return clip(w, format, base, steps, CLIP_LEAST, error=error)
