"""The order of long float sums: the same on every machine, so norms, softmax and attention agree bit for bit."""

from __future__ import annotations

import numpy as np

NUM_LANES = 16  # partial sums, whatever the vector width: one AVX-512 register, two AVX2, four NEON or SSE


def tree_sum(x: np.ndarray) -> np.ndarray:
    """Sum the last axis in the fixed order.

    x        f32 [..., K]
    returns  f32 [...]

    Lane j starts at +0 and adds x[j], x[j + 16], x[j + 32], ... one after the other.  Then the lanes fold in half, lane
    i with lane i + 8, then i + 4, i + 2, i + 1.  Each addition rounds once.  The end of a K that is not a multiple of
    16 is filled with +0, which changes no lane: a sum that started at +0 is never -0.

    >>> float(tree_sum(np.arange(20, dtype=np.float32)))
    190.0
    """
    assert x.dtype == np.float32
    k = x.shape[-1]
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -k % NUM_LANES)])
    x = x.reshape(*x.shape[:-1], -1, NUM_LANES)
    lanes = np.zeros((*x.shape[:-2], NUM_LANES), np.float32)
    for step in range(x.shape[-2]):
        lanes = lanes + x[..., step, :]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]
