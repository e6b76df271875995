"""Groups of weights as rows of a plain matrix, so that an algorithm sees [M, width] and never a short tail.

Shapes    M groups of equal width at a time; `terms` code sets per weight, each with a scale of its own
          W[n, k] = sum over t of scales[n, g * terms + t] * (codes[n, t, k] - zero) + mins[n, g]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fitted:
    """What an algorithm found for groups or, joined, for a matrix.

    codes    uint8 [M, terms, width]   |  [N, terms, K]
    scales   f32   [M, terms]          |  [N, G * terms], the terms of a group side by side
    mins     f32   [M] or None         |  [N, G]
    """

    codes: np.ndarray
    scales: np.ndarray
    mins: np.ndarray | None = None


def by_groups(w: np.ndarray, group_size: int, fit: Callable[..., Fitted], *beside: np.ndarray) -> Fitted:
    """Fit every group of a matrix: all whole groups at once, then the short ones at the end of the rows.

    w           f32 [N, K]
    group_size  weights along K that share scales; 0 = the row
    fit         f32 [M, width] and the same cut of each array `beside` -> Fitted of these M groups
    beside      [N, K], or what NumPy broadcasts to it

    >>> mean = lambda rows: Fitted((rows > 0)[:, None].astype(np.uint8), np.abs(rows).mean(1, keepdims=True))
    >>> by_groups(np.array([[1, 3, -8]], np.float32), 2, mean).scales.tolist()
    [[2.0, 8.0]]
    """
    n, k = w.shape
    width = min(group_size or k, k)
    whole = k // width * width
    arrays = (w, *(np.broadcast_to(array, w.shape) for array in beside))
    parts = [_joined(fit(*(array[:, :whole].reshape(-1, width) for array in arrays)), n)]
    if whole < k:
        parts.append(_joined(fit(*(array[:, whole:] for array in arrays)), n))
    mins = None if parts[0].mins is None else np.concatenate([part.mins for part in parts], 1)
    return Fitted(np.concatenate([part.codes for part in parts], 2),
                  np.concatenate([part.scales for part in parts], 1), mins)  # fmt: skip


def reduce(ufunc: np.ufunc, w: np.ndarray, group_size: int) -> np.ndarray:
    """Reduce each group of weights to one number, [N, ceil(K / group_size)]; the last group may be short."""
    result: np.ndarray = ufunc.reduceat(w, np.arange(0, w.shape[1], group_size or w.shape[1]), axis=1)
    return result


def spread(per_group: np.ndarray, k: int, group_size: int) -> np.ndarray:
    """Give every weight the value of its group: [N, G] to [N, K]."""
    return np.repeat(per_group, group_size or k, axis=1)[:, :k]


def nearest_level(rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Pick for every weight the nearest of its row's own levels.

    rows     f32 [M, width]      levels  f32 [M, L], in any order, L <= 256
    returns  uint8 [M, width]    an index into `levels`; half way, the smaller level

    >>> nearest_level(np.array([[0.0, 1.5, 9.0]]), np.array([[2.0, 1.0, 0.5]])).tolist()
    [[2, 1, 0]]
    """
    order = np.argsort(levels, axis=1, kind="stable")
    rising = np.take_along_axis(levels, order, 1)
    borders = (rising[:, 1:] + rising[:, :-1]) / 2
    place = np.zeros(rows.shape, np.uint8)
    for border in borders.T:
        place += rows > border[:, None]
    return np.take_along_axis(order.astype(np.uint8), place.astype(np.intp), 1)


def _joined(fitted: Fitted, n: int) -> Fitted:
    """Put the groups of a row, [N * G, ...], side by side again."""
    groups, terms, width = len(fitted.codes) // n, *fitted.codes.shape[1:]
    codes = fitted.codes.reshape(n, groups, terms, width).swapaxes(1, 2).reshape(n, terms, groups * width)
    mins = None if fitted.mins is None else fitted.mins.reshape(n, groups)
    return Fitted(codes, fitted.scales.reshape(n, groups * terms), mins)
