"""Levels that are not evenly spaced: what each code of a table format is worth, as int8.

The levels of a paper are multiplied by a factor that makes them whole numbers; the scale takes it out again.  Bits are
what a code has; entries that a definition leaves open are 0.  Where a definition has a sign bit, it is the top one.

Sources   sign      BCQ, LUT-GEMM, arXiv 2206.09557: a plane of signs
          iq1       ggml, src/ggml-common.h, iq1s_grid: -1, 0, 1, moved by 1/8 up or down; times 8
          iq2       iq2xxs_grid, iq2xs_grid and iq2s_grid of the same file: magnitudes 8, 25, 43
          iq3xxs    iq3xxs_grid: magnitudes 4, 12 .. 52, 62
          iq3s      iq3s_grid: odd magnitudes up to 15
          iq4nl     kvalues_iq4nl
          e2m1      OCP Microscaling Formats 1.0, section 5.3.3: 4-bit floats; times 2
          e2m3      section 5.3.2: 6-bit floats; times 8
          nf4       QLoRA, arXiv 2305.14314, appendix E: quantiles of a normal distribution; times 127, rounded
          bitmod3   BitMoD, arXiv 2411.11745, section III: 3-bit floats, and all four of its special values, of which a
          bitmod4   group uses one; the same with 4-bit floats, times 2.  One bit more than there, and no selector

Floats of 8 bits reach too far for int8: they are rows of FLOATS, and multiply f32 activations (format.py, is_float).
          e4m3      OCP 8-bit Floating Point Specification 1.0, section 5: no infinities, one NaN of each sign
          e5m2      the same; the upper byte of an f16
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def _both_signs(magnitudes: list[int], bits: int) -> np.ndarray:
    """Magnitudes in the lower half, their negatives in the upper: int8 [2**bits]."""
    half = np.zeros(2 ** (bits - 1), np.int8)
    half[: len(magnitudes)] = magnitudes
    return np.concatenate([half, -half])


def _floats(exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """Small floats in units of the smallest: subnormals count up from 0, then each exponent doubles the step."""
    ones = 2**mantissa_bits
    normal = [(ones + m) << e for e in range(2**exponent_bits - 1) for m in range(ones)]
    return _both_signs([*range(ones), *normal], 1 + exponent_bits + mantissa_bits)


def _listed(levels: list[int], bits: int) -> np.ndarray:
    """These levels in this order, then zeros: int8 [2**bits]."""
    table = np.zeros(2**bits, np.int8)
    table[: len(levels)] = levels
    return table


TABLES: dict[str, np.ndarray] = {
    "sign": _listed([-1, 1], 1),
    "iq1": _listed([-9, -7, -1, 1, 7, 9], 3),
    "iq2": _both_signs([8, 25, 43], 3),
    "iq3xxs": _both_signs([4, 12, 20, 28, 36, 44, 52, 62], 4),
    "iq3s": _both_signs([1, 3, 5, 7, 9, 11, 13, 15], 4),
    "iq4nl": _listed([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], 4),
    "e2m1": _floats(2, 1),
    "e2m3": _floats(2, 3),
    "nf4": _listed([-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127], 4),
    "bitmod3": _listed([0, 1, 2, 4, -1, -2, -4, 3, -3, 6, -6], 4),
    "bitmod4": _listed([0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12, 10, -10, 16, -16], 5),
}
for _table in TABLES.values():
    _table.flags.writeable = False


FLOATS: dict[str, np.dtype[Any]] = {
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}


def table_bits(name: str) -> int:
    """Bits of a code of a table, or of FLOATS."""
    return 8 if name in FLOATS else int(len(TABLES[name])).bit_length() - 1


def float_values(name: str) -> np.ndarray:
    """What each code of FLOATS is worth, f32 [256], not finite where it stands for no number.

    >>> float_values("e4m3")[[0x38, 0x7E, 0x81]].tolist()
    [1.0, 448.0, -0.001953125]
    """
    return np.arange(256, dtype=np.uint8).view(FLOATS[name]).astype(np.float32)
