"""Int8 activations as the low-bit matmuls read them: codes, scales, sums, and tables for lookup kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.formats.integer import LUT_WIDTH
from lutra.formats.packing import padded_k
from lutra.kernels.buffers import aligned


@dataclass(frozen=True)
class Activations:
    """Buffers for up to `rows` rows of K quantised activations; Kp is K padded for the weight's format.

    xq       i8  [rows, Kp]            codes -127 .. 127; columns beyond K are 0
    xs       f32 [rows, 1 or G]        scale per row, or per group: x = xq * xs
    sums     i32 [rows, G]             sum of xq over each group of the *weight*
    tables   u8  [rows, Kp/4, 2, 16]   the two 5-bit halves of the tables of formats/integer.build_tables, see tiles_lut.py
    """

    xq: np.ndarray
    xs: np.ndarray
    sums: np.ndarray
    tables: np.ndarray | None = None


def allocate(rows: int, k: int, format: Format, with_tables: bool = False) -> Activations:
    """Zeroed, aligned buffers for `rows` rows of activations that meet weights of `format` with K = k."""
    if rows < 1 or k < 1:
        raise KernelError(f"expected at least one row and one column, got {rows} x {k}; check the model's sizes")
    kp = padded_k(k, format.group_size)
    num_groups = kp // format.group_size if format.group_size else 1
    return Activations(
        xq=aligned((rows, kp), np.int8),
        xs=aligned((rows, num_groups if format.activation_group else 1), np.float32),
        sums=aligned((rows, num_groups), np.int32),
        tables=aligned((rows, kp // LUT_WIDTH, 2, 16), np.uint8) if with_tables else None,
    )
