"""Weights in the order kernels read them: straight through, one cache line after the other.

A row tile is 16 rows of a weight, one per 32-bit lane of a vector; two tiles side by side are a pair.

order   codes                                                 scales, zeros, mins, super_scales, super_mins
mad     [pair][word][tile 0..1][row 0..15][byte 0..3]         [pair][column: a group, or a term of it][tile][row]
dense   [pair][k][tile 0..1][row 0..15] of f32, f16, bf16     none
        the same of bytes, 8-bit floats                       scales as for mad

`word` counts the packed 4-byte words of formats/packing.py, moved whole.  Rows beyond N have scale 0 and min 0 (dense:
weight 0), so their outputs are 0; e8m0 has no 0, but 2**-127.  Lut order is in tiles_lut.py, trit5
in tiles_trit.py, vector in tiles_vector.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from lutra.errors import FormatError
from lutra.formats.format import Format
from lutra.formats.qtensor import ARRAYS, BESIDE, QTensor
from lutra.formats.vectors import VectorFormat
from lutra.kernels.buffers import aligned

ROWS = 16  # rows of a tile
PAIR = 2 * ROWS
CHUNK = 32  # weights along K that one step of a kernel takes; padded_k is a multiple
DENSE_DTYPES: dict[Any, str] = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
}


@dataclasses.dataclass(frozen=True)
class TiledWeight:
    """A weight [N, K] in the order of one kernel family; all arrays are flat bytes, 64-byte aligned.

    order      "mad" | "lut" | "trit5" | "vector" | "dense"
    format     what the codes mean; None for dense arrays
    dtype      "f32" | "f16" | "bf16" for dense without a format, else ""
    n, k       true sizes
    padded_n   n rounded up to whole pairs
    padded_k   k rounded up to whole chunks and groups; trit5: to whole steps of five, then chunks
    codes      uint8, see the table above
    scales     uint8 view of what QTensor has of this name; one byte where there is nothing (the others alike)
    books      of vector order, see tiles_vector.py
    """

    order: str
    format: Format | VectorFormat | None
    dtype: str
    n: int
    k: int
    padded_n: int
    padded_k: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    mins: np.ndarray
    super_scales: np.ndarray = dataclasses.field(default_factory=lambda: aligned(1, np.uint8))
    super_mins: np.ndarray = dataclasses.field(default_factory=lambda: aligned(1, np.uint8))
    books: np.ndarray = dataclasses.field(default_factory=lambda: aligned(1, np.uint8))

    @property
    def num_pairs(self) -> int:
        return self.padded_n // PAIR

    @property
    def num_bytes(self) -> int:
        """Bytes a matmul reads."""
        sidecars = sum(getattr(self, name).size for name in BESIDE if getattr(self, name).size > 1)
        return int(self.codes.size + sidecars)


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


def tile_mad(weight: QTensor) -> TiledWeight:
    """Move whole packed words into mad order."""
    return _tile("mad", weight, np.ascontiguousarray(weight.packed).view(np.uint32))  # [N, W]


def _tile(order: str, weight: QTensor, columns: np.ndarray) -> TiledWeight:
    n, k = weight.shape
    return TiledWeight(
        order, weight.format, "", n, k, round_up(n, PAIR), weight.padded_k,
        codes=interleave_pairs(columns), **{name: _sidecar(getattr(weight, name)) for name in BESIDE},
    )  # fmt: skip


def tile_dense(weight: np.ndarray | QTensor) -> TiledWeight:
    """Put a [N, K] matrix of f32, f16, bf16, or of 8-bit floats with scales, into dense order.

    raises   FormatError   other element types
    """
    if isinstance(weight, QTensor):
        return _tile("dense", weight, weight.packed)
    if weight.dtype not in DENSE_DTYPES:
        known = ", ".join(DENSE_DTYPES.values())
        raise FormatError(f"expected a dense weight of {known}, got {weight.dtype}; convert it to float32 first")
    n, k = weight.shape
    padded_k = round_up(k, CHUNK)
    none = aligned(1, np.uint8)
    return TiledWeight(
        "dense", None, DENSE_DTYPES[weight.dtype], n, k, round_up(n, PAIR), padded_k,
        codes=interleave_pairs(_pad_columns(weight, padded_k)), scales=none, zeros=none, mins=none,
    )  # fmt: skip


def interleave_pairs(rows: np.ndarray) -> np.ndarray:
    """Transpose every 32 rows of a [N, C] matrix: flat bytes of [pair][column][row 0..31], rows beyond N zero."""
    n, columns = rows.shape
    whole = n // PAIR
    pairs = aligned((-(-n // PAIR), columns, PAIR), rows.dtype)
    pairs[:whole] = rows[: whole * PAIR].reshape(whole, PAIR, columns).transpose(0, 2, 1)
    if n % PAIR:
        pairs[whole, :, : n % PAIR] = rows[whole * PAIR :].T
    return pairs.view(np.uint8).reshape(-1)


def _sidecar(values: np.ndarray | None) -> np.ndarray:
    return aligned(1, np.uint8) if values is None else interleave_pairs(values)


def _pad_columns(matrix: np.ndarray, columns: int) -> np.ndarray:
    missing = columns - matrix.shape[1]
    return np.pad(matrix, ((0, 0), (0, missing))) if missing else matrix


Rows = TypeVar("Rows", QTensor, np.ndarray)


def interleave_rows(gate: Rows, up: Rows) -> Rows:
    """Alternate row tiles of two equal weights (or biases) so that every pair is a gate tile and an up tile.

    gate, up   QTensor or ndarray, both of N rows
    returns    2 * ceil(N / 16) * 16 rows; the rows that fill a tile are zero, and so are their scales
    """
    if isinstance(gate, QTensor) and isinstance(up, QTensor):
        return _interleave_quantised(gate, up)
    assert isinstance(gate, np.ndarray) and isinstance(up, np.ndarray)
    return _interleave(gate, up)


def _interleave_quantised(gate: QTensor, up: QTensor) -> QTensor:
    if gate.format != up.format or gate.shape != up.shape:
        raise FormatError(
            f"expected gate and up of one format and shape, got {gate.format.name} {gate.shape} and "
            f"{up.format.name} {up.shape}; quantise both the same way"
        )
    arrays = {
        name: None if getattr(gate, name) is None else _interleave(getattr(gate, name), getattr(up, name))
        for name in ARRAYS
    }
    return dataclasses.replace(gate, shape=(2 * round_up(gate.shape[0], ROWS), gate.shape[1]), **arrays)


def _interleave(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    tiles = -(-len(gate) // ROWS)
    both = np.zeros((tiles, 2, ROWS, *gate.shape[1:]), gate.dtype)
    whole = len(gate) // ROWS
    for side, rows in enumerate((gate, up)):
        both[:whole, side] = rows[: whole * ROWS].reshape(whole, ROWS, *rows.shape[1:])
        if len(rows) % ROWS:
            both[whole, side, : len(rows) % ROWS] = rows[whole * ROWS :]
    return both.reshape(2 * tiles * ROWS, *gate.shape[1:])
