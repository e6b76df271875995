"""BitMoD: floats of 3 or 4 bits whose spare code, that of minus zero, becomes one more level, chosen group by group.

    3 bits   0, 1, 2, 4 and negatives, and one of  3, -3, 6, -6
    4 bits   0, 1, 2, 3, 4, 6, 8, 12 and negatives (e2m1 doubled), and one of  10, -10, 16, -16

Each of the four is tried with the scale max|w| / largest level, and the one of the least squared error is kept.  In a
QTensor the choice lies in the codes: its table has all four, so a code has one bit more than in the paper, where each
group has a selector of 2 bits.  The authors state that a patent is applied for.

Source   BitMoD, arXiv 2411.11745, section III
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.codec import Element
from lutra.quantize.groups import Fitted, by_groups
from lutra.quantize.rounding import as_finite_f32
from lutra.quantize.store import as_float_type

SPECIALS = {"bitmod3": (3, -3, 6, -6), "bitmod4": (10, -10, 16, -16)}
SELECTOR_BITS = 2


def bitmod(w: np.ndarray, format: Format) -> QTensor:
    """Quantise with the best special level of every group.

    w        float [N, K]
    format   levels bitmod3 or bitmod4, float scales, as bitmod4-g128
    raises   FormatError   another format, weights that are not finite, scales too large for their type

    >>> from lutra.formats import catalog
    >>> q = bitmod(np.array([[2, 4, -6, 1]], np.float32), catalog.table("bitmod3", 0))
    >>> q.scales.tolist(), q.dequantize().tolist()
    ([[1.0]], [[2.0, 4.0, -6.0, 1.0]])
    """
    w = as_finite_f32(w)
    if format.levels not in SPECIALS or format.terms > 1 or format.offset != "none" or format.scale_kind != "float":
        raise FormatError(f"{format.name}: expected levels of {', '.join(SPECIALS)} with a float scale per group, got "
                          f"{format.levels}; choose such a format")  # fmt: skip
    return _packed(by_groups(w, format.group_size, lambda rows: _best(rows, format)), format)


def bits_per_weight(format: Format, k: int) -> float:
    """Return the bits of a weight as the paper stores it: short codes and a selector per group."""
    groups = -(-k // (format.group_size or k))
    return format.bits - 1 + groups * (8 * format.dtype.itemsize + SELECTOR_BITS) / k


def _best(rows: np.ndarray, format: Format) -> Fitted:
    tries = [_with_special(rows, special, format) for special in SPECIALS[format.levels]]
    errors = [((values - rows) ** 2).sum(1) for _, _, values in tries]
    winner, which = np.argmin(errors, 0), np.arange(len(rows))
    codes, scales, _ = (np.stack(found)[winner, which] for found in zip(*tries, strict=True))
    return Fitted(codes[:, None], scales)


def _with_special(rows: np.ndarray, special: int, format: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes [M, width], scales [M, 1] and values [M, width] with one of the special levels."""
    levels = format.level_values.astype(np.float64)
    levels[np.isin(levels, SPECIALS[format.levels]) & (levels != special)] = np.nan
    element = Element(levels)
    scales = as_float_type(np.abs(rows).max(1, keepdims=True) / np.float32(element.top), format).astype(np.float32)
    codes = element.nearest(np.divide(rows, scales, out=np.zeros_like(rows), where=scales != 0))
    return codes, scales, levels.astype(np.float32)[codes] * scales


def _packed(fitted: Fitted, format: Format) -> QTensor:
    return QTensor.from_codes(format, np.ascontiguousarray(fitted.codes[:, 0]), as_float_type(fitted.scales, format))
