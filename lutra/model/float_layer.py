"""One decoder layer in plain f32 NumPy, in the steps between which calibration looks at the inputs of the linears.

The kernels compute the same; here a layer needs no tiles, no cache and no recorded program, and its matrices may come
and go one at a time.  Rows are tokens of several windows, one window behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lutra.model.config import ModelConfig

GATE_ROWS = 32  # all that is made of them stays in the cache


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of every row: f32 [M, K] to f32 [M, K]."""
    mean = np.einsum("mk,mk->m", x, x) / np.float32(x.shape[1])
    result: np.ndarray = x * (np.float32(1) / np.sqrt(mean + np.float32(eps)))[:, None]
    result *= weight
    return result


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding, half rotation: x f32 [M, heads, head_dim], cos and sin f32 [M, head_dim / 2]."""
    half = x.shape[-1] // 2
    a, b, cos, sin = x[..., :half], x[..., half:], cos[:, None], sin[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(
    config: ModelConfig,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    lengths: Sequence[int],
    angles: tuple[np.ndarray, np.ndarray],
    norms: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> np.ndarray:
    """Attention of every window to itself, each token to those before it.

    q         f32 [M, heads * head_dim]     k, v  f32 [M, kv_heads * head_dim]
    lengths   of the windows, M together
    angles    cos and sin of positions, f32 [longest window, head_dim / 2]
    norms     weights of the norms of q and k, where the family has them
    returns   f32 [M, heads * head_dim]
    """
    heads = [x.reshape(len(x), -1, config.head_dim) for x in (q, k, v)]
    out = np.empty_like(heads[0])
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        q, k, v = (x[rows] for x in heads)
        q, k = (_turned(x, weight, config, angles) for x, weight in zip((q, k), norms, strict=True))
        out[rows] = _attend_window(q, k, v, config.num_heads // config.num_kv_heads)
        start += length
    return out.reshape(len(out), -1)


def _turned(
    x: np.ndarray, weight: np.ndarray | None, config: ModelConfig, angles: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    if weight is not None:
        x = norm(x.reshape(-1, config.head_dim), weight, config.norm_eps).reshape(x.shape)
    cos, sin = (table[: len(x)] for table in angles)
    return rotate(x, cos, sin)


def _attend_window(q: np.ndarray, k: np.ndarray, v: np.ndarray, per_key: int) -> np.ndarray:
    """One window: q f32 [M, heads, head_dim], k and v f32 [M, kv_heads, head_dim]."""
    m, num_heads, width = q.shape
    out = np.empty_like(q)
    hidden = np.triu(np.ones((m, m), bool), 1)
    for head in range(num_heads):
        scores = q[:, head] @ k[:, head // per_key].T
        scores *= np.float32(1 / np.sqrt(width))
        scores[hidden] = -np.inf
        np.exp(scores - scores.max(1, keepdims=True), out=scores)
        scores /= scores.sum(1, keepdims=True)
        out[:, head] = scores @ v[:, head // per_key]
    return out


def gate(config: ModelConfig, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """act(gate) * up, f32 [M, ffn], in the place of `up`."""
    for start in range(0, len(up), GATE_ROWS):
        x = gate[start : start + GATE_ROWS]
        if config.activation == "relu2":
            act = np.maximum(x, 0) ** 2
        else:
            with np.errstate(over="ignore"):  # exp(89) is inf, and x / inf the 0 that it should be
                act = x / (np.float32(1) + np.exp(-x))
        up[start : start + GATE_ROWS] *= act
    return up
