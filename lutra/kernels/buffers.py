"""Arrays that kernels read and write: zeroed, and starting on a cache line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LINE_BYTES = 64


def aligned(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate a C-contiguous array of zeros whose first byte lies on a 64-byte boundary."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    num_bytes = math.prod(sizes) * np.dtype(dtype).itemsize
    raw = np.zeros(num_bytes + LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + num_bytes].view(dtype).reshape(sizes)
