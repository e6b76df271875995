"""Round to nearest: every weight to the closest level of its group, looking at nothing but the group.

A *range* decides the levels, from the smallest and largest weight of the group:

    symmetric    levels  -m .. m             scale = max|w| / m, m = 2**(bits - 1) - 1; one code stays unused
    full         levels  -2**(bits-1) ..     scale = e / -2**(bits - 1), e the weight farthest from 0; e is met exactly
    asymmetric   levels  between both ends   scale = (max - min) / (2**bits - 1), offset by `zeros` or `mins`
    sign         levels  -a and a            a = mean|w|, the best pair for weights around 0; 1 bit

The scale is rounded to the type it is stored in first and the codes are chosen for what is stored, so f16 scales cost
as little as they can.

Sources   full: GGUF Q4_0, ggml/src/ggml-quants.c; sign: XNOR-Net, arXiv 1603.05279, section 3.1;
          symmetric and asymmetric: Jacob et al., arXiv 1712.05877, section 2.1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import reduce, spread
from lutra.quantize.store import as_float_type


@dataclass(frozen=True)
class Grid:
    """The levels of every group: scale * (code - zero - zeros) + mins, in arrays [N, G]."""

    scales: np.ndarray
    zeros: np.ndarray | None = None
    mins: np.ndarray | None = None
    smallest_code: int = 0


def round_to_nearest(w: np.ndarray, format: Format, range_name: str | None = None) -> QTensor:
    """Quantise a float matrix by rounding.

    w           float [N, K]    finite; f16, bf16 or f32
    range_name  a key of RANGES; default: sign for 1 bit, asymmetric where the format has an offset, symmetric for
                bytes, else full
    raises      FormatError     a range the format cannot store, weights that are not finite, scales too large for f16

    >>> from lutra.formats import catalog
    >>> w = np.array([[-8, 0, 3, 7]], np.float32)
    >>> round_to_nearest(w, catalog.planes(4, 0)).codes().tolist()     # e = -8: scale 1, zero 8
    [[0, 8, 11, 15]]
    """
    w = as_finite_f32(w)
    range_name = default_range(format) if range_name is None else range_name
    if range_name not in RANGES:
        raise FormatError(f"expected a range of {', '.join(RANGES)}, got {range_name}; choose one")
    fits, make_grid = RANGES[range_name]
    if format.alphabet != "uniform" or not format.is_plain or not fits(format):
        raise FormatError(f"{format.name}: expected a format that can store the range {range_name}, got offset "
                          f"{format.offset}, zero {format.zero}, {format.num_codes} codes; choose another of either")
    return _choose_codes(w, format, make_grid(w, format))


def default_range(format: Format) -> str:
    """Return the range that suits a format."""
    if format.bits == 1:
        return "sign"
    if format.offset != "none":
        return "asymmetric"
    return "symmetric" if format.storage == "bytes" else "full"


def as_finite_f32(w: np.ndarray) -> np.ndarray:
    """Widen a float matrix to f32.

    raises   FormatError   not a matrix, or not finite
    """
    if w.ndim != 2 or not w.size:
        raise FormatError(f"expected a weight matrix [N, K], got shape {list(w.shape)}; give two dimensions")
    w = w.astype(np.float32)
    if not np.isfinite(w).all():
        raise FormatError("expected finite weights, got inf or nan; the weight is damaged")
    return w


def symmetric(w: np.ndarray, format: Format) -> Grid:
    most = 2 ** (format.bits - 1) - 1
    scales = reduce(np.maximum, np.abs(w), format.group_size) / np.float32(most)
    return Grid(as_float_type(scales, format), smallest_code=1)


def full(w: np.ndarray, format: Format) -> Grid:
    least, most = reduce(np.minimum, w, format.group_size), reduce(np.maximum, w, format.group_size)
    extreme = np.where(-least >= most, least, most)  # the tie goes to the negative end, whose scale is positive
    return Grid(as_float_type(extreme / np.float32(-(2 ** (format.bits - 1))), format))


def asymmetric(w: np.ndarray, format: Format) -> Grid:
    least, most = reduce(np.minimum, w, format.group_size), reduce(np.maximum, w, format.group_size)
    if format.offset == "zeros":  # a zero is a code, so the range has to reach 0
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    half_range = most / np.float32(2) - least / np.float32(2)  # halves: most - least could overflow
    scales = as_float_type(half_range / np.float32((2**format.bits - 1) / 2), format)
    if format.offset == "mins":
        return Grid(scales, mins=as_float_type(least, format))
    zeros = np.rint(_divide(-least, scales.astype(np.float32))).clip(0, 2**format.bits - 1)
    return Grid(scales, zeros=zeros.astype(np.uint8))


def sign(w: np.ndarray, format: Format) -> Grid:
    counts = np.diff([*range(0, w.shape[1], format.group_size or w.shape[1]), w.shape[1]])
    mean = reduce(np.add, np.abs(w).astype(np.float64), format.group_size) / counts
    mins = as_float_type(-mean.astype(np.float32), format)
    return Grid(as_float_type(mins.astype(np.float32) * np.float32(-2), format), mins=mins)


def _is_centred(format: Format) -> bool:
    return format.offset == "none" and format.bits > 1 and format.zero == 2 ** (format.bits - 1)


# name -> (which formats can store it, what makes its levels)
RANGES: dict[str, tuple[Callable[[Format], bool], Callable[[np.ndarray, Format], Grid]]] = {
    "symmetric": (_is_centred, symmetric),
    "full": (_is_centred, full),
    "asymmetric": (lambda format: format.offset != "none" and format.zero == 0, asymmetric),
    "sign": (lambda format: format.offset == "mins" and format.zero == 0 and format.bits == 1, sign),
}


def spread_groups(per_group: np.ndarray, k: int, format: Format) -> np.ndarray:
    """Give every weight the f32 value of its group: [N, G] to [N, K]."""
    return spread(per_group.astype(np.float32), k, format.group_size)


def _choose_codes(w: np.ndarray, format: Format, grid: Grid) -> QTensor:
    """Pick the nearest code of the grid for each weight."""
    k = w.shape[1]
    with np.errstate(over="ignore"):  # inf lies beyond the last code, and is cut to it like any other value there
        values = w if grid.mins is None else w - spread_groups(grid.mins, k, format)
    codes = np.rint(_divide(values, spread_groups(grid.scales, k, format))) + np.float32(format.zero)
    if grid.zeros is not None:
        codes += spread_groups(grid.zeros, k, format)
    codes = codes.clip(grid.smallest_code, format.num_codes - 1).astype(np.uint8)
    return QTensor.from_codes(format, codes, grid.scales, grid.zeros, grid.mins)


def _divide(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Divide; a group of scale 0 has one level, and any code is it: give 0."""
    with np.errstate(over="ignore"):
        result: np.ndarray = np.divide(values, scales, out=np.zeros_like(values), where=scales != 0)
    return result
