"""One codec for every format that is a list of levels times a scale per block: MX, NV, NF4, FP6, FP8 and their kin.

The levels come from a Format (`quantize`) or, for floats of more bits than its tables have, from ELEMENTS (`encode`).
Elements round to the nearest level, a tie to the even code, and saturate.  The scale of a block is found by a RULE:

    absmax   max|w| / top, in the float type of the scale
    floor    2**(floor(log2 max|w|) - emax), OCP MX: the top may be half of what the block needs; the rest is cut
    ceil     2**ceil(log2(max|w| / top)): nothing is cut
    shared   one float t for all blocks of the matrix (of a super group, where the format has them), and a small one for
             each block: t = max|W| / (top * largest), times max|w| / (top * t) rounded to its type.  NVFP4's rule

top is the largest magnitude among the levels, emax the exponent of the power of two at or below it.  Levels of a Format
are whole numbers (e2m1 doubled, e2m3 times 8); the factor is a power of two, so all rules give the same values.

Sources   OCP Microscaling Formats 1.0, sections 5 and 6; NVFP4: NVIDIA ModelOpt
          NF4: QLoRA, arXiv 2305.14314, appendix E
          NVINT4, MXINT4, ends of integers alike and `ceil`: INT vs FP, arXiv 2510.25602, section 3
          ZeroQuant-FP, arXiv 2307.09782, section 3.2: scales rounded up to powers of two
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lutra.errors import FormatError
from lutra.formats import scales as scale_types
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import reduce, spread
from lutra.quantize.rounding import as_finite_f32
from lutra.quantize.store import as_float_type, of_groups, two_level

SMALLEST_EXPONENT, LARGEST_EXPONENT = -127, 127  # of e8m0


@dataclass(frozen=True, eq=False)
class Element:
    """The levels a code can mean.

    levels   f64 [codes]   by code; nan where a code means no number
    """

    levels: np.ndarray

    @cached_property
    def top(self) -> float:
        """The largest magnitude among the levels."""
        return float(np.nanmax(np.abs(self.levels)))

    @property
    def emax(self) -> int:
        """Exponent of the largest power of two that is not above top."""
        return int(np.frexp(self.top)[1]) - 1

    @cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes by rising level, of equal levels the first, and the borders between neighbours."""
        usable = np.flatnonzero(~np.isnan(self.levels))
        rising, first = np.unique(self.levels[usable], return_index=True)
        return usable[first].astype(np.uint8), (rising[1:] + rising[:-1]) / 2

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """Return the code of the nearest level for f64 values, uint8; ties go to the even code."""
        codes, borders = self._steps
        low, high = (codes[np.searchsorted(borders, values, side)] for side in ("left", "right"))
        nearest: np.ndarray = np.where(low & 1, high, low)  # they differ on ties alone
        return nearest


def minifloat(exponent_bits: int, mantissa_bits: int, num_specials: int = 0) -> Element:
    """Return a float of few bits: sign, exponent, mantissa from the high end, bias 2**(exponent_bits - 1) - 1.

    num_specials   largest codes of each sign that mean no number: 1 for e4m3, 4 (inf and NaN) for e5m2

    >>> minifloat(2, 1).levels[:8].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    code = np.arange(2 ** (exponent_bits + mantissa_bits))
    exponent, mantissa = code >> mantissa_bits, code % 2**mantissa_bits
    size = np.ldexp(
        mantissa / 2**mantissa_bits + (exponent > 0), np.maximum(exponent, 1) - 2 ** (exponent_bits - 1) + 1
    )
    size[len(size) - num_specials :] = np.nan
    return Element(np.concatenate([size, -size]))


ELEMENTS = {
    "e2m1": minifloat(2, 1), "e2m3": minifloat(2, 3), "e3m2": minifloat(3, 2),
    "e4m3": minifloat(4, 3, num_specials=1), "e5m2": minifloat(5, 2, num_specials=4),
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """A matrix of floats of few bits.

    codes    uint8 [N, K]    bits of an element
    scales   f32 [N, G]
    """

    element: str
    group_size: int
    codes: np.ndarray
    scales: np.ndarray

    def dequantize(self) -> np.ndarray:
        """Return f32 [N, K]: level * scale, rounded once."""
        levels = ELEMENTS[self.element].levels.astype(np.float32)[self.codes]
        return np.asarray(levels * spread(self.scales, self.codes.shape[1], self.group_size))


def encode(w: np.ndarray, element: str, group_size: int, rule: str) -> Encoded:
    """Quantise to floats of few bits, which need no Format.

    w        float [N, K]   finite
    element  a key of ELEMENTS
    rule     "absmax" (f32 scales), "floor" or "ceil"
    raises   FormatError    weights that are not finite, an element or a rule that does not exist

    >>> encoded = encode(np.array([[0.9, -7.0, 2.6, 5.0]], np.float32), "e2m1", 32, "floor")     # 4 <= 7 < 8: scale 1
    >>> encoded.codes.tolist(), encoded.dequantize().tolist()                                    # 5 is a tie
    ([[2, 15, 5, 6]], [[1.0, -6.0, 3.0, 4.0]])
    """
    if element not in ELEMENTS or rule not in POWERS and rule != "absmax":
        raise FormatError(f"expected an element of {', '.join(ELEMENTS)} and a rule of absmax, floor, ceil, got "
                          f"{element} and {rule}; choose among these")  # fmt: skip
    w = as_finite_f32(w)
    levels, most = ELEMENTS[element], reduce(np.maximum, np.abs(w), group_size)
    scales = (
        np.ldexp(np.float32(1), _exponents(most, levels, rule)) if rule in POWERS else most / np.float32(levels.top)
    )
    return Encoded(element, group_size, _codes(w, scales, levels, group_size), scales)


def quantize(w: np.ndarray, format: Format, rule: str | None = None) -> QTensor:
    """Quantise to any format of one term without an offset.

    w        float [N, K]   finite
    rule     "floor" or "ceil" where scales are powers of two; default: ceil for integers, floor for tables
    raises   FormatError    a format with offset or terms, weights that are not finite, scales too large for their type

    >>> from lutra.formats import catalog
    >>> quantize(np.array([[0.9, -7.0, 2.6, 5.0]], np.float32), catalog.find("e2m1-g32-e8m0")).dequantize().tolist()
    [[1.0, -6.0, 3.0, 4.0]]
    """
    w = as_finite_f32(w)
    if format.terms > 1 or format.offset != "none" or rule not in (None, *POWERS):
        raise FormatError(
            f"{format.name}: expected a format of one term without offset and a rule of floor or ceil, "
            f"got {format.terms} terms, offset {format.offset}, rule {rule}; choose another of these"
        )
    levels, most = element_of(format), reduce(np.maximum, np.abs(w), format.group_size)
    upper = None
    if format.scale_dtype == "e8m0":
        rule = rule or ("ceil" if format.levels == "uniform" else "floor")
        stored = (_exponents(most, levels, rule) + 127).astype(np.uint8)
    elif format.scale_kind == "two-level":
        stored, upper = two_level(most / np.float32(levels.top), format, w.shape[1])
    else:
        stored = as_float_type(most / np.float32(levels.top), format)
    scales = scale_types.widen(format.scale_dtype, stored)
    if upper is not None:
        scales = scales * of_groups(upper, scales.shape[1], format)
    return QTensor.from_codes(format, _codes(w, scales, levels, format.group_size), stored, super_scales=upper)


def element_of(format: Format) -> Element:
    """Return the levels of a format; of integers around 0, those that have a counterpart of the other sign."""
    levels = format.level_values.astype(np.float64)
    levels[~np.isfinite(levels)] = np.nan  # codes of floats that are no numbers
    if format.levels == "uniform":
        levels[np.abs(levels) > levels.max()] = np.nan
        levels[format.num_codes :] = np.nan  # the fourth code of trits
    return Element(levels)


def _codes(w: np.ndarray, scales: np.ndarray, levels: Element, group_size: int) -> np.ndarray:
    wide = spread(scales, w.shape[1], group_size).astype(np.float64)
    return levels.nearest(np.divide(w, wide, out=np.zeros(w.shape), where=wide != 0))


def _floor(most: np.ndarray, levels: Element) -> np.ndarray:
    return np.asarray(np.frexp(most)[1] - 1 - levels.emax)


def _ceil(most: np.ndarray, levels: Element) -> np.ndarray:
    fraction, power = np.frexp(most.astype(np.float64) / levels.top)
    return np.asarray(power - (fraction == 0.5))


POWERS: dict[str, Callable[[np.ndarray, Element], np.ndarray]] = {"floor": _floor, "ceil": _ceil}


def _exponents(most: np.ndarray, levels: Element, rule: str) -> np.ndarray:
    """Return the exponents of scales by a rule of POWERS, as e8m0 can hold them; 0 for a group of zeros."""
    powers: np.ndarray = np.where(most > 0, POWERS[rule](most, levels), 0).clip(SMALLEST_EXPONENT, LARGEST_EXPONENT)
    return powers
