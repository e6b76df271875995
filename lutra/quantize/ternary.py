"""Ternary weights: BitNet's rounding, and finding out that a float matrix is ternary already.

Sources   BitNet b1.58, arXiv 2402.17764, section 2 (absmean)
          TriLM, arXiv 2407.12327: published as 16-bit floats with a scale per block of rows
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.quantize.groups import reduce
from lutra.quantize.rounding import as_finite_f32, spread_groups

SMALLEST_SCALE = np.float32(1e-5)  # keeps a matrix of zeros from dividing by zero
BLOCK_WEIGHTS = 1 << 20  # looked at together: a matrix that is not ternary is given up after so many


def absmean(w: np.ndarray) -> QTensor:
    """Round a master weight to -1, 0, +1 times one scale: the mean of |w|.

    w        float [N, K]   finite
    returns  QTensor        ternary, every row with the same f32 scale
    raises   FormatError    weights that are not finite

    scale = max(mean|w|, 1e-5), value = round(w / scale) cut to -1 .. 1; halves round to even.  The mean is summed in
    f64 and rounded once to f32, so it does not depend on an order; an f32 sum elsewhere may differ in the last bit.

    >>> absmean(np.array([[3, -1, 0.5, 1.5]], np.float32)).dequantize().tolist()       # mean|w| = 1.5
    [[1.5, -1.5, 0.0, 1.5]]
    """
    w = as_finite_f32(w)
    scale = np.maximum(np.abs(w).mean(dtype=np.float64).astype(np.float32), SMALLEST_SCALE)
    codes = np.concatenate([_codes(w[rows], scale) for rows in _row_blocks(w)])
    return QTensor.from_codes(catalog.ternary(), codes, np.full((len(w), 1), scale, np.float32))


def find_ternary(w: np.ndarray, group_size: int = 0) -> QTensor | None:
    """Recognise a float matrix whose rows (or groups) hold only -s, 0 and s.

    w           float [N, K]      f16, bf16 or f32
    group_size  weights along K that may have an s of their own; 0 = the row
    returns     QTensor with exactly the values of w (a -0 becomes 0), or None where w is not ternary
    raises      FormatError       weights that are not finite; a group_size no format has

    Groups get f16 scales where f16 holds them exactly, else f32.

    >>> w = np.array([[0.5, 0, -0.5], [2, 2, -2]], np.float16)
    >>> find_ternary(w).scales.tolist()
    [[0.5], [2.0]]
    >>> find_ternary(w + np.float16(1)) is None
    True
    """
    if w.ndim != 2 or not w.size:
        raise FormatError(f"expected a weight matrix [N, K], got shape {list(w.shape)}; give two dimensions")
    form = catalog.ternary(group_size, scale_dtype="f32")
    codes, scales = [], []
    for rows in _row_blocks(w):
        block = as_finite_f32(w[rows])
        scale = reduce(np.maximum, np.abs(block), group_size)  # [n, G]
        size = np.abs(block)
        if not ((size == 0) | (size == spread_groups(scale, w.shape[1], form))).all():
            return None
        codes.append((np.sign(block) + 1).astype(np.uint8))
        scales.append(scale)
    found = np.concatenate(scales)
    if group_size and _fits_f16(found):
        form, found = catalog.ternary(group_size), found.astype(np.float16)
    return QTensor.from_codes(form, np.concatenate(codes), found)


def _codes(w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Round f32 weights to codes 0, 1, 2."""
    codes: np.ndarray = np.rint(w / scale).clip(-1, 1) + 1
    return codes.astype(np.uint8)


def _fits_f16(values: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16).astype(np.float32) == values).all())


def _row_blocks(w: np.ndarray) -> Iterator[slice]:
    step = max(1, BLOCK_WEIGHTS // w.shape[1])
    for row in range(0, len(w), step):
        yield slice(row, row + step)
