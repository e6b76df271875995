"""How a scale is stored: the types there are, and the f32 that each of their values stands for.

    f16 f32 bf16    themselves
    e8m0            uint8, a power of two: 2**(e - 127); 255 stands for nothing
    u8 i8           whole numbers, the lower of two levels
    e4m3            uint8 holding the bits of a small float, sign 1 exponent 4 mantissa 3; no infinities

Every value of every type is an f32 exactly.
Sources   e8m0: OCP Microscaling Formats 1.0, section 5.4; e4m3: the same, section 5.3.1
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e8m0": np.dtype(np.uint8),
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "e4m3": np.dtype(np.uint8),
}
FLOATS = ("f16", "f32", "bf16")
SINGLE = (*FLOATS, "e8m0")  # of a scale that is one number
LOWER = ("u8", "i8", "e4m3")  # of a scale that is a product: one for each group, times ...
UPPER = ("f16", "f32")  # ... one for many groups
LARGEST = {"u8": 255, "i8": 128, "e4m3": 448, "e5m2": 57344}  # magnitudes, of levels too
E8M0_NAN = 255
E4M3_NAN = 0x7F  # with either sign


def widen(name: str, stored: np.ndarray) -> np.ndarray:
    """Return the f32 values of stored scales, exactly.

    >>> widen("e8m0", np.array([127, 130, 0], np.uint8)).tolist() == [1, 8, 2**-127]
    True
    >>> widen("e4m3", np.array([0x38, 0x7E, 0x81], np.uint8)).tolist()
    [1.0, 448.0, -0.001953125]
    """
    if name == "e8m0":
        bits: np.ndarray = np.maximum(stored.astype(np.uint32) << 23, 1 << 22)  # 2**-127 is subnormal
        return bits.view(np.float32)
    if name == "e4m3":
        stored = stored.view(ml_dtypes.float8_e4m3fn)
    return stored.astype(np.float32)


def is_finite(name: str, stored: np.ndarray) -> bool:
    """Whether every stored scale stands for a number."""
    if name in FLOATS:
        return bool(np.isfinite(stored).all())
    if name == "e8m0":
        return not bool((stored == E8M0_NAN).any())
    if name == "e4m3":
        return not bool(((stored & E4M3_NAN) == E4M3_NAN).any())
    return True


def has_finite_products(lower: str, upper: np.ndarray) -> bool:
    """Whether upper scales times any lower one of a type stay in reach of f32."""
    return not upper.size or float(np.abs(upper).max()) * LARGEST[lower] < float(np.finfo(np.float32).max)
