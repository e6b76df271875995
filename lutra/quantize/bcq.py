"""Binary codes: a weight is a sum of signed scales, w = a1 s1 + a2 s2 + ..., each s -1 or +1, no zero point.

    greedy   a = mean|r|, s = sign(r), r -= a s, plane after plane
    refine   in turns: scales by least squares for given signs, then for every weight the nearest of the 2**B sums

ShiftAddLLM rounds the scales to powers of two, or to sums of up to three of them, so that hardware shifts and adds.  It
names two errors to lower: of the weights (every weight counts the same) and of the outputs (column k counts by
h[k] = mean x[k]**2); `importance` is that choice, and fit and refinement are weighted with it.

Sources   LUT-GEMM, arXiv 2206.09557, section 3.1; greedy and alternating: arXiv 1802.00150, sections 2 and 3
          ShiftAddLLM, arXiv 2406.05981, sections 4.1 (powers of two) and 4.2 (both objectives)
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import Fitted, by_groups, nearest_level
from lutra.quantize.rounding import as_finite_f32
from lutra.quantize.store import store

ROUNDS = 15
RIDGE = 1e-6  # of the diagonal: planes with equal signs would make the least squares singular


def bcq(w: np.ndarray, format: Format, *, rounds: int = ROUNDS, powers: int = 0,
        importance: np.ndarray | None = None) -> QTensor:  # fmt: skip
    """Quantise to signed scales.

    w           float [N, K]
    format      levels "sign" with 1 to 4 terms, as signx3-g128
    powers      0: scales are any; 1 to 3: each is a sum of so many signed powers of two
    importance  f32 [K], > 0, or None: how much a squared error in each column counts
    raises      FormatError   weights that are not finite, another format, numbers of powers there are none of

    >>> from lutra.formats import catalog
    >>> q = bcq(np.array([[3, 1, -1, -3]], np.float32), catalog.table("sign", 0, terms=2))
    >>> q.scales.tolist(), q.codes()[0].tolist()                               # 2 and 1, signs ++--, +-+-
    ([[2.0, 1.0]], [[1, 1, 0, 0], [1, 0, 1, 0]])
    """
    w = as_finite_f32(w)
    if format.levels != "sign" or format.offset != "none" or not 0 <= powers <= 3:
        raise FormatError(
            f"{format.name}: expected signs without offset, as signx2-g128, and 0 to 3 powers of two, "
            f"got levels {format.levels}, offset {format.offset} and {powers}; choose among these"
        )
    importance = np.ones(w.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    if importance.shape != w.shape[1:] or not (importance > 0).all():
        raise FormatError(f"expected an importance above 0 for each of {w.shape[1]} columns, got shape "
                          f"{list(importance.shape)}; give the mean square of each input")  # fmt: skip

    def fit(rows: np.ndarray, counts: np.ndarray) -> Fitted:
        alphas, signs = _greedy(rows, counts, format.terms)
        if format.terms > 1:
            _refine(rows, counts, alphas, signs, rounds)
        return Fitted((signs > 0).astype(np.uint8), sum_of_powers(alphas, powers) if powers else alphas)

    return store(by_groups(w, format.group_size, fit, importance), format, w)


def sum_of_powers(values: np.ndarray, terms: int) -> np.ndarray:
    """Round each value to a sum of signed powers of two: the nearest power of what the ones before left over.

    >>> sum_of_powers(np.array([3.1, 0.7, 0.0]), 1).tolist(), sum_of_powers(np.array([3.1]), 2).tolist()
    ([4.0, 0.5, 0.0], [3.0])
    """
    rest, total = values.astype(np.float64), np.zeros(values.shape)
    for _ in range(terms):
        fraction, exponent = np.frexp(np.abs(rest))  # in [1/2, 1): below 3/4 the nearer power is the lower
        power = np.where(rest == 0, 0, np.sign(rest) * np.ldexp(1.0, exponent - (fraction < 0.75)))
        total, rest = total + power, rest - power
    return total.astype(np.float32)


def _greedy(rows: np.ndarray, counts: np.ndarray, planes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scales [M, B] and signs [M, B, width], plane after plane."""
    rest, alphas, signs = rows, [], []
    for _ in range(planes):
        sign = np.where(rest >= 0, np.float32(1), np.float32(-1))
        alpha = (np.abs(rest) * counts).sum(1) / counts.sum(1)
        rest = rest - alpha[:, None] * sign
        alphas.append(alpha)
        signs.append(sign)
    return np.stack(alphas, 1), np.stack(signs, 1)


def _refine(rows: np.ndarray, counts: np.ndarray, alphas: np.ndarray, signs: np.ndarray, rounds: int) -> None:
    """Take turns in every group for as long as it gains; scales and signs are changed in place."""
    error = _error(rows, counts, alphas, signs)
    gaining = np.arange(len(rows))
    for _ in range(rounds):
        some, weights = rows[gaining], counts[gaining]
        new = _solve(some, weights, signs[gaining])
        new_signs = _signs(some, new)
        new_error = _error(some, weights, new, new_signs)
        less = new_error < error[gaining]
        gaining = gaining[less]
        if not len(gaining):
            break
        alphas[gaining], signs[gaining], error[gaining] = new[less], new_signs[less], new_error[less]


def _solve(rows: np.ndarray, counts: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return the scales [M, B] of least squares for given signs, the largest first and none below 0."""
    weighted = signs * counts[:, None]
    gram = weighted @ signs.swapaxes(1, 2)  # [M, B, B]
    gram += RIDGE * counts.sum(1)[:, None, None] * np.eye(signs.shape[1], dtype=np.float32)
    solved = np.linalg.solve(gram, weighted @ rows[..., None])[..., 0]
    return -np.sort(-np.abs(solved), 1)  # a sign belongs to the codes


def _signs(rows: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return the signs [M, B, width] of the nearest sum."""
    planes = alphas.shape[1]
    choices = (2 * (np.arange(2**planes)[:, None] >> np.arange(planes)[::-1] & 1) - 1).astype(np.float32)  # [2**B, B]
    signs: np.ndarray = choices[nearest_level(rows, alphas @ choices.T)].swapaxes(1, 2)
    return signs


def _error(rows: np.ndarray, counts: np.ndarray, alphas: np.ndarray, signs: np.ndarray) -> np.ndarray:
    error: np.ndarray = (counts * (rows - np.einsum("mb,mbk->mk", alphas, signs)) ** 2).sum(1)
    return error
