"""The head in another format than the file's: fewer bytes for what is often the largest matrix of a small model."""

from __future__ import annotations

import numpy as np

from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.model.weights import Matrix, widen
from lutra.quantize.rounding import round_to_nearest

_ROWS = 8192  # that are floats at a time


def recode(matrix: Matrix, format: Format) -> QTensor:
    """Round a weight [N, K] to the nearest levels of a format; one that is in it already stays as it is.

    Raises FormatError for floats that are not finite or that the format has no scale for.
    """
    if isinstance(matrix, QTensor) and matrix.format == format:
        return matrix
    starts = range(0, matrix.shape[0], _ROWS)
    return QTensor.concat([round_to_nearest(_rows(matrix, start), format) for start in starts])


def _rows(matrix: Matrix, start: int) -> np.ndarray:
    if isinstance(matrix, QTensor):
        return widen(matrix.rows(slice(start, start + _ROWS)))
    return widen(matrix[start : start + _ROWS])
