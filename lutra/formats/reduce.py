"""The order of long float sums: the same on every machine, so norms, softmax, attention and dense products agree."""

from __future__ import annotations

import numpy as np

from lutra import fused

PADDED = 32  # columns of a dense weight come in blocks of so many
PARTIALS = 4  # strided sums of a dense product: enough independent adds to hide their latency
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


def dense_spec(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Multiply by a dense weight in the fixed order: x @ w.T.

    x        f32 [M, K]
    w        f32, f16 or bf16 [N, K]
    returns  f32 [M, N]

    (p0 + p2) + (p1 + p3), where p_i adds x[k] * w[k] for k = i, i + 4, i + 8, ... in ascending order; a product and the
    sum it goes into round once, together.

    >>> dense_spec(np.array([[1, 2, 3, 4, 5]], np.float32), np.array([[1, 1, 1, 1, 2]], np.float16)).tolist()
    [[20.0]]
    """
    partial = np.zeros((PARTIALS, len(x), len(w)), np.float32)
    padding = [(0, 0), (0, -x.shape[1] % PADDED)]  # with zeros, as stored weights are: they make 0 of a sum of -0
    x, wide = np.pad(x, padding), np.pad(w.astype(np.float32), padding)
    for k in range(0, x.shape[1], PARTIALS):
        several = slice(k, k + PARTIALS)
        partial = fused.fma(x.T[several, :, None], wide.T[several, None, :], partial)
    p0, p1, p2, p3 = partial
    return np.asarray((p0 + p2) + (p1 + p3))
