"""Rotary position embedding of rows of `q heads | k heads | v heads`: what every store into a KV cache begins with.

Optionally normalises each q and k head (Qwen3), and rotates both in the half-rotation order of Hugging Face (element i
pairs with i + head_dim / 2).  One task of a store is one row and one key/value head with its group of queries.

Source    Su et al., RoFormer, arXiv 2104.09864; Qwen3 technical report, arXiv 2505.09388 (norm of q and k)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.compiler.language import Value, const, f32, load, loop, reduce_add, shuffle, splat, sqrt, store
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import check_state
from lutra.kernels.norm import rms_norm_spec


def rotate_spec(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate heads.

    x          f32 [M, heads, D]
    cos, sin   f32 [M, D / 2]      of the rows' positions
    returns    f32 [M, heads, D]
    """
    a, b = np.split(x, 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def rotated_spec(
    qkv: np.ndarray,
    heads: int,
    kv_heads: int,
    head_dim: int,
    cos: np.ndarray,
    sin: np.ndarray,
    rows: np.ndarray,
    q_norm: np.ndarray | None = None,
    k_norm: np.ndarray | None = None,
    eps: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries and keys of qkv [M, stride], normalised and rotated, and values: f32 [M, heads or kv_heads, D].

    rows  of the tables cos and sin [context, D / 2]: the positions; norms are weights [D].
    """
    every = qkv[:, : (heads + 2 * kv_heads) * head_dim].reshape(len(qkv), -1, head_dim)
    q, k, v = np.split(every, [heads, heads + kv_heads], axis=1)
    if q_norm is not None and k_norm is not None:
        q, k = head_norm_spec(q, q_norm, eps), head_norm_spec(k, k_norm, eps)
    return rotate_spec(q, cos[rows], sin[rows]), rotate_spec(k, cos[rows], sin[rows]), v


def head_norm_spec(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of each head: x f32 [M, heads, D], weight f32 [D]."""
    return rms_norm_spec(x.reshape(-1, x.shape[-1]), weight, eps).reshape(x.shape)


# ---- in kernels -----------------------------------------------------------------------------------------------------


def chunks(head_dim: int) -> list[tuple[int, int]]:
    """(start, lanes) of vectors that cover a head: 16 lanes each, the last one shorter."""
    return [(start, min(NUM_LANES, head_dim - start)) for start in range(0, head_dim, NUM_LANES)]


@dataclass(frozen=True)
class Row:
    """What a task stores: one row and one key/value head with its group of queries.

    queries, key, value   where they begin in qkv
    table                 where the angles of its position begin in cos and sin
    """

    number: Value
    kv: Value
    position: Value
    queries: Value
    key: Value
    value: Value
    table: Value


def row_of(state: Value, task: Value, stride: Value, heads: int, kv_heads: int, head_dim: int) -> Row:
    """The row and key/value head of a task."""
    num_rows = load(state, 0)
    number, kv = task % num_rows, task // num_rows
    position = load(state, 1) + number
    first = number * stride
    at = [first + (kv + before) * head_dim for before in (heads, heads + kv_heads)]
    queries = first + kv * (heads // kv_heads * head_dim)
    return Row(number, kv, position, queries, *at, position * (head_dim // 2))


def rotate(
    qkv: Value, at: Value, cos: Value, sin: Value, table: Value, norm: Value | None, head_dim: int, eps: Value
) -> list[tuple[int, Value]]:
    """(start, vector) pieces of one rotated head; all loads come before the caller's stores."""
    half = head_dim // 2
    lanes = min(NUM_LANES, half & -half)  # largest power of two that divides half a head
    scale = None if norm is None else splat(_head_scale(qkv, at, head_dim, eps), lanes)

    def element(start: int) -> Value:
        v = load(qkv, at + start, lanes)
        return v if norm is None else (v * scale) * load(norm, start, lanes)

    pieces = []
    for i in range(0, half, lanes):
        a, b = element(i), element(i + half)
        c, s = load(cos, table + i, lanes), load(sin, table + i, lanes)
        pieces += [(i, a * c - b * s), (i + half, b * c + a * s)]
    return pieces


def rotate_in_place(
    qkv: Value, at: Value, cos: Value, sin: Value, table: Value, norm: Value | None, head_dim: int, eps: Value
) -> None:  # fmt: skip
    """Rotate a head where it stands."""
    for start, rotated in rotate(qkv, at, cos, sin, table, norm, head_dim, eps):
        store(qkv, at + start, rotated)


def rotate_row(
    qkv: Value, row: Row, cos: Value, sin: Value, q_norm: Value | None, k_norm: Value | None, heads: int, head_dim: int,
    eps: Value,
) -> list[tuple[int, Value]]:  # fmt: skip
    """Rotate a row's `heads` queries of one key/value head in place; return the pieces of that head's rotated key."""
    for head in loop(0, heads):
        rotate_in_place(qkv, row.queries + head * head_dim, cos, sin, row.table, q_norm, head_dim, eps)
    return rotate(qkv, row.key, cos, sin, row.table, k_norm, head_dim, eps)


def _head_scale(qkv: Value, at: Value, head_dim: int, eps: Value) -> Value:
    """1 / rms of a head, in the order of norm.inverse_rms."""
    acc = const(0.0, f32, NUM_LANES)
    for start, lanes in chunks(head_dim):
        v = load(qkv, at + start, lanes)
        square = v * v
        if lanes < NUM_LANES:
            square = shuffle(square, const(0.0, f32, lanes), [min(i, lanes) for i in range(NUM_LANES)])
        acc = acc + square
    return 1.0 / sqrt(reduce_add(acc) / float(head_dim) + eps)


# ---- at the door ----------------------------------------------------------------------------------------------------


def bind_rows(
    qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray, state: np.ndarray, kv_heads: int, head_dim: int, *,
    heads: int, q_norm: np.ndarray | None = None, k_norm: np.ndarray | None = None, eps: float = 0.0,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Arguments and static parameters that all stores have.

    qkv             f32 [rows, stride]             q heads | k heads | v heads, each D wide
    cos, sin        f32 [context, D / 2]           see model code for the frequencies
    state           i64 [4]
    q_norm, k_norm  f32 [D]                        both or neither
    Raises KernelError when shapes disagree.
    """
    if head_dim % 2 or heads % kv_heads or qkv.shape[1] < (heads + 2 * kv_heads) * head_dim:
        raise KernelError(
            f"expected an even head_dim, heads a multiple of kv_heads and rows of q | k | v, got head_dim={head_dim}, "
            f"heads={heads}, kv_heads={kv_heads}, rows of {qkv.shape[1]}; check the model's config"
        )
    if cos.shape != sin.shape or cos.shape[1] != head_dim // 2:
        raise KernelError(
            f"expected cos and sin [context, {head_dim // 2}], got {cos.shape} and {sin.shape}; rebuild the tables"
        )
    _check_norms(q_norm, k_norm, head_dim)
    check_state(state)
    qk_norm = q_norm is not None and k_norm is not None
    args = {"qkv": qkv, "cos": cos, "sin": sin, "state": state, "stride": qkv.shape[1], "eps": eps}
    args |= {"q_norm": q_norm if qk_norm else cos, "k_norm": k_norm if qk_norm else cos}
    return args, {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "qk_norm": qk_norm}


def _check_norms(q_norm: np.ndarray | None, k_norm: np.ndarray | None, head_dim: int) -> None:
    """Raise KernelError unless both norms are there, [head_dim], or neither."""
    shapes = [None if weight is None else weight.shape for weight in (q_norm, k_norm)]
    if shapes not in ([None, None], [(head_dim,), (head_dim,)]):
        raise KernelError(f"expected norms of queries and keys of {head_dim} numbers, or neither, got {shapes}; "
                          "check the model's config")  # fmt: skip
