"""The levels that a quantised weight can take, whatever its format, and the nearest of them for any value.

Clipping, GPTQ and their kin first find scales, by any method, and then choose codes for other values than those the
scales were found for.  All they need of a format is here.

    levels_of(q)     [N, G, L]   what code 0, 1, ... of each group means.  A code of several terms counts in digits,
                                 term 0 the lowest: 2 bits of 1-bit terms are 0 = (0, 0), 1 = (1, 0), 2 = (0, 1), ...
    recode(q, w)     the same scales, and for each value of w the nearest level; a tie goes to the lower one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import spread


def num_levels(format: Format) -> int:
    """L: how many values a weight of a group can have."""
    return int(format.num_codes ** format.terms)


def parts_of(q: QTensor) -> dict[str, np.ndarray]:
    """The arrays beside the codes, by the names that QTensor gives them."""
    named = {field.name: getattr(q, field.name) for field in fields(q) if field.name != "packed"}
    return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def with_codes(q: QTensor, codes: np.ndarray) -> QTensor:
    """The same scales with other codes, of the same K or of another that has as many groups.

    codes    uint8 [N, K], or [N, terms, K] where a format has several
    """
    return QTensor.from_codes(q.format, codes, **parts_of(q))


def digits(index: np.ndarray, format: Format) -> np.ndarray:
    """Split indices of levels into codes.

    index    integers [N, K]
    returns  uint8 [N, K], or [N, terms, K] where a format has several terms
    """
    terms, base = format.terms, format.num_codes
    if terms == 1:
        return index.astype(np.uint8)
    rest, codes = index.astype(np.uint32), np.empty((len(index), terms, index.shape[1]), np.uint8)
    for term in range(terms):
        codes[:, term] = rest % base
        rest //= base
    return codes


def levels_of(q: QTensor, wanted: Sequence[int] | None = None) -> np.ndarray:
    """Return what codes mean, group by group.

    wanted   indices of levels; default: all
    returns  f32 [N, G, len(wanted)], G = ceil(K / group_size)
    raises   FormatError   floats of 8 bits, of whose codes some are no levels

    >>> from lutra.formats import catalog
    >>> one = np.ones((1, 1), np.float32)
    >>> levels_of(QTensor.from_codes(catalog.planes(2, 0), np.zeros((1, 5), np.uint8), one)).tolist()
    [[[-2.0, -1.0, 0.0, 1.0]]]
    """
    form, (n, k) = q.format, q.shape
    if form.is_float:
        raise FormatError(f"{form.name}: expected levels that are searched, got floats of 8 bits; round them with rtn")
    index = np.arange(num_levels(form)) if wanted is None else np.asarray(wanted)
    width = form.group_size or k
    groups = -(-k // width)
    found = []
    for start in range(0, len(index), width):
        some = index[start : start + width]
        row = np.tile(np.pad(some, (0, width - len(some)), mode="edge"), groups)
        codes = digits(np.broadcast_to(row, (n, len(row))), form)
        found.append(with_codes(q, codes).dequantize().reshape(n, groups, width)[:, :, : len(some)])
    return np.concatenate(found, 2)


@dataclass(frozen=True)
class Search:
    """Levels by rising value, ready for values that come one column after another.

    order    uint16 [L, N]    index of the level that is the i-th smallest
    levels   f32 [L, N]       by rising value
    borders  f32 [B, N]       halfway between neighbours, then inf; B + 1 is a power of two
    """

    order: np.ndarray
    levels: np.ndarray
    borders: np.ndarray

    @classmethod
    def of(cls, levels: np.ndarray) -> Search:
        """Sort the levels of N rows, f32 [N, L]."""
        order = np.argsort(levels, 1, kind="stable")
        rising = np.ascontiguousarray(np.take_along_axis(levels, order, 1).T)
        most = 1 << (len(rising) - 1).bit_length()
        borders = np.full((max(most - 1, 1), rising.shape[1]), np.inf, np.float32)
        borders[: len(rising) - 1] = rising[1:] / np.float32(2) + rising[:-1] / np.float32(2)  # halves: no overflow
        return cls(np.ascontiguousarray(order.T.astype(np.uint16)), rising, borders)

    def nearest(self, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (index of the nearest level, its value) for one value of each row, f32 [N]."""
        n = len(column)
        flat = np.arange(n)  # place * n + row
        borders, step = self.borders.reshape(-1), (len(self.borders) + 1) // 2
        while step:
            flat += (column > borders[(step - 1) * n :].take(flat)) * (step * n)
            step //= 2
        return self.order.reshape(-1).take(flat), self.levels.reshape(-1).take(flat)


def recode(q: QTensor, w: np.ndarray) -> QTensor:
    """Choose the nearest level of q's groups for every weight.

    q        QTensor (N, K)
    w        f32 [N, K]

    >>> from lutra.formats import catalog
    >>> q = QTensor.from_codes(catalog.planes(2, 0), np.zeros((1, 3), np.uint8), np.ones((1, 1), np.float32))
    >>> recode(q, np.array([[-7, 0.4, 0.6]], np.float32)).dequantize().tolist()
    [[-2.0, 0.0, 1.0]]
    """
    choose = _uniform_index if _is_uniform(q.format) else _index
    return with_codes(q, digits(choose(q, w), q.format))


def _is_uniform(format: Format) -> bool:
    return format.terms == 1 and format.levels == "uniform"


def _uniform_index(q: QTensor, w: np.ndarray) -> np.ndarray:
    """Levels at equal distances need no search."""
    first, second = np.moveaxis(levels_of(q, (0, 1)), -1, 0)                       # [N, G]
    first, step = (spread(values, w.shape[1], q.format.group_size) for values in (first, second - first))
    with np.errstate(over="ignore"):
        place = np.divide(w - first, step, out=np.zeros_like(w), where=step != 0)
    index: np.ndarray = np.rint(place).clip(0, q.format.num_codes - 1)
    return index


def _index(q: QTensor, w: np.ndarray) -> np.ndarray:
    """Count the borders that lie below each weight."""
    n, k = w.shape
    levels = levels_of(q)                                                          # [N, G, L]
    order = np.argsort(levels, -1, kind="stable")
    rising = np.take_along_axis(levels, order, -1)
    borders = rising[..., 1:] / np.float32(2) + rising[..., :-1] / np.float32(2)
    place = np.zeros((n, k), np.uint16)
    for border in np.moveaxis(borders, -1, 0):
        place += w > spread(border, k, q.format.group_size)
    group = np.arange(k) // (q.format.group_size or k)
    index: np.ndarray = order[np.arange(n)[:, None], group, place]
    return index
