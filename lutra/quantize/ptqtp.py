"""Trit planes: a weight is a sum of one or two scaled trits, w = a1 t1 + a2 t2 (+ z), each t -1, 0 or +1.

PTQTP takes two planes and turns between the scales (ridge least squares, 2 x 2 per group) and the trits (the best of 9
sums), data-free, until nothing moves.  One plane is a ternary weight with the best scale; `offset` adds a minimum per
group.  `tied` fixes a1 = 3 a2: nine levels of equal distance.

Sources   PTQTP, arXiv 2509.16989, section 3; one plane: Ternary Weight Networks, arXiv 1605.04711, section 2.2
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import Fitted, by_groups, nearest_level
from lutra.quantize.rounding import as_finite_f32
from lutra.quantize.store import store

ROUNDS = 50
RIDGES = (1e-8, 1e-4, 1.0)  # tried in turn, relative to the width of a group, until the system is well-conditioned
LARGEST_CONDITION = 1e6
# Starts of two scales, of max|w|: levels then lie closer around 0.  Normal weights, groups of 128: 15.4 dB from
# plane by plane alone, 15.5 with (0.75, 0.25), 15.9 with these
SHARES = ((0.5, 0.3), (0.4, 0.24), (0.6, 0.4))
TIED_SHARES = ((0.75, 0.25), (0.6, 0.2), (0.45, 0.15))


def trit_planes(w: np.ndarray, format: Format, *, tied: bool = False, rounds: int = ROUNDS) -> QTensor:
    """Quantise to one or two trits per weight.

    w        float [N, K]
    format   ternary of 1 or 2 terms, with mins or without
    tied     scales 3 : 1, two terms
    raises   FormatError   weights that are not finite, another format

    >>> from lutra.formats import catalog
    >>> q = trit_planes(np.array([[4, 3, 2, -1, 0, -4]], np.float32), catalog.ternary(terms=2))
    >>> q.scales.tolist(), q.dequantize().tolist()
    ([[3.0, 1.0]], [[4.0, 3.0, 2.0, -1.0, 0.0, -4.0]])
    """
    w = as_finite_f32(w)
    if format.alphabet != "trit" or format.terms > 2 or (tied and format.terms == 1):
        raise FormatError(f"{format.name}: expected trits of 1 term, or 2 that may be tied, as ternaryx2-g128, got "
                          f"{format.alphabet} codes of {format.terms}; choose such a format")  # fmt: skip
    offset = format.offset == "mins"

    def fit(rows: np.ndarray) -> Fitted:
        tries = [_improve(rows, start, offset, tied, rounds) for start in _starts(rows, format.terms, tied)]
        winner = np.argmin([error for *_, error in tries], 0)
        which = np.arange(len(rows))
        scales, mins, trits = (np.stack(found)[winner, which] for found in list(zip(*tries, strict=True))[:3])
        return Fitted((trits + 1).astype(np.uint8), scales, mins if offset else None)

    return store(by_groups(w, format.group_size, fit), format, w)


def _improve(rows: np.ndarray, scales: np.ndarray, offset: bool, tied: bool,
             rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Take turns in every group for as long as it gains; return scales, mins, trits and errors."""
    mins = rows.mean(1) if offset else np.zeros(len(rows), rows.dtype)
    trits = _trits(rows, scales, mins)
    best = (scales.copy(), mins, trits, _error(rows, scales, mins, trits))
    gaining = np.arange(len(rows))
    for _ in range(rounds):
        some = rows[gaining]
        new_scales, new_mins = _scales(some, best[2][gaining], offset, tied)
        new_trits = _trits(some, new_scales, new_mins)
        new = (new_scales, new_mins, new_trits, _error(some, new_scales, new_mins, new_trits))
        less = new[3] < best[3][gaining]
        gaining = gaining[less]
        if not len(gaining):
            break
        for kept, found in zip(best, new, strict=True):
            kept[gaining] = found[less]
    return best


def best_scale(rows: np.ndarray) -> np.ndarray:
    """Return the scale of one trit plane with the least error, [M]: that of the n largest |w|, for the best n.

    With t = sign(w) on a set and 0 elsewhere, the best scale is the mean |w| of the set and the error falls by
    (sum |w|)**2 / n, so the set is the n largest for some n; all n are tried.

    >>> best_scale(np.array([[3.0, -3.0, 0.5]])).tolist()
    [3.0]
    """
    size = -np.sort(-np.abs(rows), 1)
    total = np.cumsum(size, 1)
    counts = np.arange(1, rows.shape[1] + 1)
    best = np.argmax(total**2 / counts, 1)[:, None]
    scale: np.ndarray = (np.take_along_axis(total, best, 1) / (best + 1))[:, 0]
    return scale.astype(rows.dtype)


def _starts(rows: np.ndarray, planes: int, tied: bool) -> list[np.ndarray]:
    """Return scales [M, planes] to start from: plane by plane, each the best for the rest; for two also SHARES."""
    most = np.abs(rows).max(1, keepdims=True)
    if tied:
        return [most * np.array(shares, rows.dtype) for shares in TIED_SHARES]
    rest, scales = rows, []
    for _ in range(planes):
        scale = best_scale(rest)
        rest = rest - scale[:, None] * np.sign(rest) * (np.abs(rest) > scale[:, None] / 2)
        scales.append(scale)
    return [np.stack(scales, 1), *(most * np.array(shares, rows.dtype) for shares in (SHARES if planes == 2 else ()))]


def _scales(rows: np.ndarray, trits: np.ndarray, offset: bool, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scales [M, planes] and minima [M] by least squares for given trits."""
    if tied:
        trits = 3 * trits[:, :1] + trits[:, 1:]
    columns = np.concatenate([trits, np.ones((len(rows), 1, rows.shape[1]), rows.dtype)], 1) if offset else trits
    solved = _ridge(columns @ columns.swapaxes(1, 2), columns @ rows[..., None], rows.shape[1])
    scales = solved[:, : trits.shape[1]]
    mins = solved[:, -1] if offset else np.zeros(len(rows), rows.dtype)
    return (scales * np.array([3, 1], rows.dtype) if tied else scales), mins


def _ridge(gram: np.ndarray, right: np.ndarray, width: int) -> np.ndarray:
    """Solve [M, c, c] x = [M, c, 1] with the smallest ridge that leaves the system well-conditioned."""
    one = np.eye(gram.shape[1])
    systems = gram.astype(np.float64) + RIDGES[0] * width * one
    for ridge in RIDGES[1:]:
        systems = np.where(
            (np.linalg.cond(systems) > LARGEST_CONDITION)[:, None, None], gram + ridge * width * one, systems
        )
    solved: np.ndarray = np.linalg.solve(systems, right.astype(np.float64))[..., 0]
    return solved.astype(right.dtype)


def _trits(rows: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Return the trits [M, planes, width], f32, of the nearest sum."""
    planes = scales.shape[1]
    choices = (np.arange(3**planes)[:, None] // 3 ** np.arange(planes)[::-1] % 3 - 1).astype(np.float32)  # [3**p, p]
    trits: np.ndarray = choices[nearest_level(rows - mins[:, None], scales @ choices.T)].swapaxes(1, 2)
    return trits


def _error(rows: np.ndarray, scales: np.ndarray, mins: np.ndarray, trits: np.ndarray) -> np.ndarray:
    error: np.ndarray = ((rows - mins[:, None] - np.einsum("mp,mpk->mk", scales, trits)) ** 2).sum(1)
    return error
