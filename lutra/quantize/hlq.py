"""HLQ: every bit plane has a scale of its own, found by least squares, so that levels need not lie at equal distances.

A group of weights is approximated by  w = sum over t of scales[t] * bit[t] + min.  Two steps take turns:

    codes    for every weight the nearest of the 2**terms sums
    scales   the least squares solution of  [bits, 1] @ [scales, min] = w

The start is the uniform grid between the ends of the group: scales[t] = (max - min) / (2**terms - 1) * 2**t.  Scales
are then rounded to the type they are stored in, and the codes chosen once more for what is stored.

Source   ELUTQ, arXiv 2510.19482, hierarchical linear quantisation; ten rounds as its code has it
"""

from __future__ import annotations

from functools import partial

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import Fitted, by_groups
from lutra.quantize.rounding import as_finite_f32
from lutra.quantize.store import store

ROUNDS = 10
RIDGE = 1e-8  # of the mean of the diagonal: planes that are equal or empty have no single solution
BLOCK_WEIGHTS = 1 << 17  # fitted together: all that is made of them stays in the cache


def hlq(w: np.ndarray, format: Format, rounds: int = ROUNDS) -> QTensor:
    """Quantise a float matrix to planes with free scales.

    w        float [N, K]    finite
    format   codes of 1 bit in one term or several, with mins
    raises   FormatError     another format, weights that are not finite, scales too large for their type

    >>> from lutra.formats import catalog
    >>> w = np.array([[0, 1, 4, 5, 0, 1, 4, 5]], np.float32)
    >>> q = hlq(w, catalog.planes(1, 0, offset="mins", terms=2))
    >>> q.codes()[0, :, :4].tolist(), np.abs(q.dequantize() - w).max() < 1e-6
    ([[0, 1, 0, 1], [0, 0, 1, 1]], np.True_)
    """
    if not fits(format):
        raise FormatError(f"{format.name}: expected codes of 1 bit, in terms, with mins, as planes1x2-g64-mins, got "
                          f"{format.bits} bits and offset {format.offset}; choose such a format")  # fmt: skip
    w = as_finite_f32(w)
    step = max(1, BLOCK_WEIGHTS // w.shape[1])
    return QTensor.concat([_hlq_rows(w[row : row + step], format, rounds) for row in range(0, len(w), step)])


def fits(format: Format) -> bool:
    """Whether a format has planes with scales of their own and a min."""
    return format.bits == 1 and format.offset == "mins" and format.levels == "uniform"


def fit(w: np.ndarray, terms: int, rounds: int = ROUNDS) -> Fitted:
    """Fit planes to rows of weights, each a group.

    w        f32 [M, width]
    returns  Fitted      codes uint8 [M, terms, width], scales f32 [M, terms], mins f32 [M]

    >>> found = fit(np.array([[0, 1, 4, 5, 0, 1, 4, 5]], np.float32), 2)       # 0, 1, 4 and 1 + 4
    >>> found.scales.round(3).tolist(), found.mins.round(3).tolist()
    ([[1.0, 4.0]], [0.0])
    """
    least = w.min(1)
    width = (w.max(1) - least) / np.float32(2**terms - 1)
    scales, mins = width[:, None] * np.float32(2) ** np.arange(terms, dtype=np.float32), least
    for _ in range(rounds):
        scales, mins = least_squares(w, choose_bits(w, scales, mins))
    return Fitted(choose_bits(w, scales, mins), scales, mins)


def choose_bits(w: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Choose for every weight the nearest sum of scales.

    w        f32 [M, width]     scales  f32 [M, terms]     mins  f32 [M]
    returns  uint8 [M, terms, width]
    """
    terms = scales.shape[1]
    patterns = np.arange(2**terms)[:, None] >> np.arange(terms) & 1                # [L, terms]
    sums = scales @ patterns.T.astype(np.float32) + mins[:, None]                  # [M, L]
    order = np.argsort(sums, 1, kind="stable")
    rising = np.take_along_axis(sums, order, 1)
    borders = (rising[:, 1:] + rising[:, :-1]) / np.float32(2)
    order = order.astype(np.uint8)
    code = np.repeat(order[:, :1], w.shape[1], 1)                                  # [M, width]
    for i, border in enumerate(borders.T):  # beyond a border the code is the next one: what differs is turned over
        code ^= (w > border[:, None]).view(np.uint8) * (order[:, i] ^ order[:, i + 1])[:, None]
    return code[:, None] >> np.arange(terms, dtype=np.uint8)[:, None] & np.uint8(1)


def least_squares(w: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve [bits, 1] @ [scales, min] = w for every row.

    w        f32 [M, width]     bits  uint8 [M, terms, width]
    returns  scales f32 [M, terms], mins f32 [M]
    """
    terms, width = bits.shape[1:]
    normal = np.empty((terms + 1, terms + 1, len(w)))                              # A.T A, by row of M
    right = np.empty((terms + 1, len(w)))                                          # A.T w
    normal[terms, terms], right[terms] = width, np.einsum("mk->m", w)
    planes = [bits[:, i].astype(np.float32) for i in range(terms)]                 # counts are exact in f32
    for i, plane in enumerate(planes):
        right[i] = np.einsum("mk,mk->m", plane, w)
        normal[i, i] = normal[i, terms] = normal[terms, i] = np.einsum("mk->m", plane)
        for j in range(i):
            normal[i, j] = normal[j, i] = np.einsum("mk,mk->m", plane, planes[j])
    solved = solve_small(normal, right).astype(np.float32)
    return np.ascontiguousarray(solved[:terms].T), solved[terms]


def solve_small(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve many small symmetric systems at once, by elimination; a ridge takes the place of a pseudo-inverse.

    normal   f64 [n, n, M]     right  f64 [n, M]     both are used up
    returns  f64 [n, M]
    """
    n = len(right)
    diagonal = np.arange(n)
    normal[diagonal, diagonal] += RIDGE * normal[diagonal, diagonal].mean(0)
    for i in range(n):
        for j in range(i + 1, n):
            share = normal[j, i] / normal[i, i]
            normal[j, i:] -= share * normal[i, i:]
            right[j] -= share * right[i]
    for i in reversed(range(n)):
        for j in range(i + 1, n):
            right[i] -= normal[i, j] * right[j]
        right[i] /= normal[i, i]
    return right


def _hlq_rows(w: np.ndarray, format: Format, rounds: int) -> QTensor:
    fitted = by_groups(w, format.group_size, partial(fit, terms=format.terms, rounds=rounds))
    return store(fitted, format, w)
