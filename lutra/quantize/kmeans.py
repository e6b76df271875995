"""A table of levels per row by k-means, and its halves: one code that holds every width from the seed up.

The seed of a row is weighted 1-D k-means of its weights.  Each level then splits in two, again and again, and every
split appends one bit to the code, so that the top b bits of a code are the code of b bits: one parent on disk, the
precision chosen when it is loaded.  Levels of a row rise with the code.

Both steps work on sorted rows and running sums, where a cluster is an interval: an iteration of k-means costs a binary
search per border, and the best split of an interval is found exactly, by looking at every place to cut.

Source   Any-Precision LLM, arXiv 2402.10517, section 4 (seed of 3 bits, incremental upscaling); weights of SqueezeLLM,
         arXiv 2306.07629
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.quantize.rounding import as_finite_f32

ROUNDS = 100
TABLE_DTYPE = np.float16


@dataclass(frozen=True)
class RowTables:
    """Nested codes of a matrix and a table per row for each width.

    codes    uint8 [N, K]                of `bits` bits; shifted right by bits - b they are those of b bits
    tables   width b -> f16 [N, 2**b]    levels, rising
    """

    codes: np.ndarray
    tables: dict[int, np.ndarray]

    @property
    def bits(self) -> int:
        """The largest width, that of `codes`."""
        return max(self.tables)

    def values(self, bits: int | None = None) -> np.ndarray:
        """Return f32 [N, K] at a width, by default the largest.

        raises   FormatError   a width without tables
        """
        bits = self.bits if bits is None else bits
        if bits not in self.tables:
            raise FormatError(f"expected a width of {', '.join(map(str, self.tables))} bits, got {bits}; choose one")
        code = (self.codes >> (self.bits - bits)).astype(np.intp)
        return np.take_along_axis(self.tables[bits], code, 1).astype(np.float32)

    def bits_per_weight(self, bits: int) -> float:
        """Return bits per weight of one width with its table."""
        return float(bits + 8 * np.dtype(TABLE_DTYPE).itemsize * (1 << bits) / self.codes.shape[1])


def row_tables(
    w: np.ndarray, seed_bits: int, bits: int | None = None, importance: np.ndarray | None = None
) -> RowTables:
    """Cluster every row, then split up to `bits`.

    w           float [N, K]
    seed_bits   width of the k-means, 1 to 8; the widths from here to `bits` get tables
    importance  f32 [N, K] or [K], >= 0: how much a squared error counts; None: all alike
    raises      FormatError   weights that are not finite, widths out of order

    >>> nested = row_tables(np.array([[0.0, 1.0, 8.0, 10.0]], np.float32), 1, 2)
    >>> nested.values(1).tolist(), nested.values(2).tolist(), nested.codes.tolist()
    ([[0.5, 0.5, 9.0, 9.0]], [[0.0, 1.0, 8.0, 10.0]], [[0, 1, 2, 3]])
    """
    w = as_finite_f32(w)
    bits = seed_bits if bits is None else bits
    if not 1 <= seed_bits <= bits <= 8:
        raise FormatError(f"expected widths with 1 <= seed <= bits <= 8, got {seed_bits} and {bits}; choose others")
    counts = np.ones_like(w) if importance is None else np.broadcast_to(importance, w.shape).astype(np.float64) + 1e-30
    order = np.argsort(w, axis=1, kind="stable")
    rows = _Sorted(np.take_along_axis(w, order, 1), np.take_along_axis(counts, order, 1))
    cuts = _seed(rows, 2**seed_bits)
    tables = {seed_bits: rows.means(cuts).astype(TABLE_DTYPE)}
    for width in range(seed_bits + 1, bits + 1):
        cuts = _split(rows, cuts)
        tables[width] = rows.means(cuts).astype(TABLE_DTYPE)
    place = np.arange(w.shape[1])
    codes = np.zeros(w.shape, np.uint8)
    for cut in cuts[:, 1:-1].T:
        codes += place >= cut[:, None]
    unsorted = np.empty_like(codes)
    np.put_along_axis(unsorted, order, codes, 1)
    return RowTables(unsorted, tables)


class _Sorted:
    """Sorted rows and what their intervals sum to.  An interval of row n is columns cuts[n, c] up to cuts[n, c + 1]."""

    def __init__(self, values: np.ndarray, counts: np.ndarray) -> None:
        zero = np.zeros((len(values), 1))
        self.values = values
        self.weight = np.concatenate([zero, np.cumsum(counts, 1, dtype=np.float64)], 1)  # [N, K + 1]
        self.total = np.concatenate([zero, np.cumsum(counts * values.astype(np.float64), 1)], 1)

    def means(self, cuts: np.ndarray) -> np.ndarray:
        """Return the mean of every interval, f64 [N, L]; an empty one takes the value at its place."""
        weight, total = (np.diff(np.take_along_axis(sums, cuts, 1), axis=1) for sums in (self.weight, self.total))
        here = np.take_along_axis(self.values, np.minimum(cuts[:, :-1], self.values.shape[1] - 1), 1)
        return np.divide(total, weight, out=here.astype(np.float64), where=weight > 0)

    def below(self, borders: np.ndarray) -> np.ndarray:
        """Count the values <= each border: intp [N, B], by binary search in all rows at once."""
        low = np.zeros(borders.shape, np.intp)
        high = np.full(borders.shape, self.values.shape[1], np.intp)
        for _ in range(self.values.shape[1].bit_length()):
            middle = (low + high) // 2
            at = np.take_along_axis(self.values, np.minimum(middle, self.values.shape[1] - 1), 1)
            up = (at <= borders) & (middle < high)
            low, high = np.where(up, middle + 1, low), np.where(up, high, middle)
        return low


def _seed(rows: _Sorted, levels: int) -> np.ndarray:
    """Lloyd's iteration from a row split again and again; returns cuts, intp [N, levels + 1]."""
    n, k = rows.values.shape
    cuts = np.tile(np.array([0, k]), (n, 1))
    while cuts.shape[1] <= levels:
        cuts = _split(rows, cuts)
    for _ in range(ROUNDS):
        means = rows.means(cuts)
        new = cuts.copy()
        new[:, 1:-1] = rows.below((means[:, 1:] + means[:, :-1]) / 2)
        if (new == cuts).all():
            break
        cuts = new
    return cuts


def _split(rows: _Sorted, cuts: np.ndarray) -> np.ndarray:
    """Cut every interval in two where the error falls most; returns cuts, intp [N, 2 L + 1]."""
    n, k = rows.values.shape
    inside = np.arange(k)
    owner = np.zeros((n, k), np.intp)
    for cut in cuts[:, 1:-1].T:
        owner += inside >= cut[:, None]
    first, last = (np.take_along_axis(cuts, owner + step, 1) for step in (0, 1))

    def gain(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """(sum w x)**2 / sum w of an interval: what knowing its mean takes off the error."""
        weight, total = (
            np.take_along_axis(s, end, 1) - np.take_along_axis(s, begin, 1) for s in (rows.weight, rows.total)
        )
        known: np.ndarray = np.divide(total**2, weight, out=np.zeros(weight.shape), where=weight > 0)
        return known

    here = np.broadcast_to(inside, (n, k))
    score = gain(first, here) + gain(here, last)  # of cutting in front of each place
    new = np.repeat(cuts, 2, axis=1)[:, :-1]
    for c in range(cuts.shape[1] - 1):
        mine = np.where(owner == c, score, -1)
        empty = cuts[:, c] == cuts[:, c + 1]
        new[:, 2 * c + 1] = np.where(empty, cuts[:, c], mine.argmax(1))
    return new
