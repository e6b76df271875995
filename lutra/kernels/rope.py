"""Rotary position embedding of queries and keys, and the store into the KV cache.

Reads rows of `q heads | k heads | v heads`, optionally normalises each q and k head (Qwen3), rotates both in the
half-rotation order of Hugging Face (element i pairs with i + head_dim / 2), writes the queries back in place, and
keys and values into the cache of one layer.  One task is one row and one key/value head with its group of queries.

Cache layout, C = context padded to 64, D = head_dim:
    keys     [kv_heads, C / 16, D, 16]       sixteen positions lie side by side, as attention's lanes
    values   [kv_heads, C, D padded to 16]
in f32, or in f16 or bf16: rounded to even on the way in, held at their largest numbers, and 0 for NaN, so that all a
cache ever holds is finite.  A cache of int8 or int4 codes is rope_codes.py's.

Source    Su et al., RoFormer, arXiv 2104.09864; Qwen3 technical report, arXiv 2505.09388 (norm of q and k)
"""

import numpy as np

from lutra.compiler.kernel import Kernel, kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    bf16,
    const,
    convert,
    extract,
    f16,
    f32,
    i64,
    load,
    loop,
    maximum,
    minimum,
    reduce_add,
    select,
    shuffle,
    splat,
    sqrt,
    store,
)
from lutra.compiler.launch import Step
from lutra.compiler.types import DType
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import aligned, check_state
from lutra.kernels.norm import rms_norm_spec

BLOCK = 16  # positions side by side in the key cache
STRIDE = 64  # positions a cache grows by: attention reads some blocks together
# name -> (element type, what numbers are held at)
FLOATS: dict[str, tuple[DType, float]] = {
    "f16": (f16, 65504.0),
    "bf16": (bf16, 3.3895313892515355e38),
    "f32": (f32, 3.4028234663852886e38),
}


def allocate_cache(kv_heads: int, context: int, head_dim: int, dtype: str = "f16") -> tuple[np.ndarray, np.ndarray]:
    """Zeroed keys and values of one layer for at least `context` positions; shapes as in the module's docstring."""
    blocks = -(-context // STRIDE) * (STRIDE // BLOCK)
    numpy = _dtype(dtype).numpy
    return aligned((kv_heads, blocks, head_dim, BLOCK), numpy), aligned(
        (kv_heads, blocks * BLOCK, padded(head_dim)), numpy
    )


def rotate_spec(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate heads.

    x          f32 [M, heads, D]
    cos, sin   f32 [M, D / 2]      of the rows' positions
    returns    f32 [M, heads, D]
    """
    a, b = np.split(x, 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def rope_store_spec(
    qkv: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    position: int,
    heads: int,
    q_norm: np.ndarray | None = None,
    k_norm: np.ndarray | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate the queries of qkv [M, stride] in place; write rotated keys and values of M positions into the cache.

    The first row stands at `position`; cos and sin are tables [context, D / 2]; norms are weights [D].
    """
    kv_heads, _, head_dim, _ = keys.shape
    m = len(qkv)
    rows = np.arange(position, position + m)
    every = qkv[:, : (heads + 2 * kv_heads) * head_dim].reshape(m, -1, head_dim)
    q, k, v = np.split(every, [heads, heads + kv_heads], axis=1)  # [M, heads, D]
    if q_norm is not None and k_norm is not None:
        q, k = head_norm_spec(q, q_norm, eps), head_norm_spec(k, k_norm, eps)
    qkv[:, : heads * head_dim] = rotate_spec(q, cos[rows], sin[rows]).reshape(m, -1)
    limit = FLOATS[float_name(keys)][1]
    keys[:, rows // BLOCK, :, rows % BLOCK] = held_spec(rotate_spec(k, cos[rows], sin[rows]), limit)
    values[:, rows, :head_dim] = held_spec(v.swapaxes(0, 1), limit)


def held_spec(x: np.ndarray, limit: float) -> np.ndarray:
    """x between -limit and limit, 0 for NaN."""
    bound = np.float32(limit)
    return np.where(np.isnan(x), np.float32(0), x).clip(-bound, bound)


def head_norm_spec(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of each head: x f32 [M, heads, D], weight f32 [D]."""
    return rms_norm_spec(x.reshape(-1, x.shape[-1]), weight, eps).reshape(x.shape)


def _make(cache: DType) -> Kernel:
    """The kernel for one element type of the cache."""

    @kernel
    def rope_store(
        qkv: Pointer[f32],
        cos: Pointer[f32],
        sin: Pointer[f32],
        q_norm: Pointer[f32],
        k_norm: Pointer[f32],
        keys: Pointer[cache],
        values: Pointer[cache],
        state: Pointer[i64],
        stride: i64,
        blocks: i64,
        eps: f32,
        task: i64,
        *,
        heads,
        kv_heads,
        head_dim,
        qk_norm,
        cache_dtype,
    ):
        """Rotate one row's queries of one key/value head, and store that head's key and value."""
        num_rows = load(state, 0)
        row, kv = task % num_rows, task // num_rows
        position = load(state, 1) + row
        table = position * (head_dim // 2)
        group = heads // kv_heads
        first = row * stride

        for head in loop(0, group):
            at = first + (kv * group + head) * head_dim
            for start, rotated in rotate(qkv, at, cos, sin, table, q_norm if qk_norm else None, head_dim, eps):
                store(qkv, at + start, rotated)

        at = first + (kv + heads) * head_dim
        column = ((kv * blocks + position // BLOCK) * head_dim) * BLOCK + position % BLOCK
        for start, rotated in rotate(qkv, at, cos, sin, table, k_norm if qk_norm else None, head_dim, eps):
            narrow = _narrow(rotated, cache)
            for lane in range(rotated.type.lanes):
                store(keys, column + (start + lane) * BLOCK, extract(narrow, lane))

        at = first + (kv + heads + kv_heads) * head_dim
        target = (kv * (blocks * BLOCK) + position) * padded(head_dim)
        for start, lanes in chunks(head_dim):
            store(values, target + start, _narrow(load(qkv, at + start, lanes), cache))

    return rope_store


def chunks(head_dim: int) -> list[tuple[int, int]]:
    """(start, lanes) of vectors that cover a head: 16 lanes each, the last one shorter."""
    return [(start, min(NUM_LANES, head_dim - start)) for start in range(0, head_dim, NUM_LANES)]


def padded(head_dim: int) -> int:
    """Elements a position takes in the value cache."""
    return -(-head_dim // NUM_LANES) * NUM_LANES


def _narrow(v: Value, cache: DType) -> Value:
    """What the cache holds of f32 numbers."""
    v = held(v, FLOATS[cache.name][1])
    return v if cache == f32 else convert(v, cache)


def held(v: Value, limit: float) -> Value:
    """v between -limit and limit, 0 for NaN."""
    return minimum(maximum(select(v.equals(v), v, 0.0), -limit), limit)


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


KERNELS = {name: _make(dtype) for name, (dtype, _) in FLOATS.items()}


def bind(
    qkv: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    q_norm: np.ndarray | None = None,
    k_norm: np.ndarray | None = None,
    eps: float = 0.0,
    isa: str | None = None,
) -> Step:
    """Rotate queries in place and store keys and values of rows 0 .. state[0] - 1 at positions state[1] + row.

    qkv             f32 [rows, stride]             q heads | k heads | v heads, each D wide
    keys, values    f16, bf16 or f32               one layer's cache, from `allocate_cache`
    cos, sin        f32 [context, D / 2]           see model code for the frequencies
    state           i64 [4]
    q_norm, k_norm  f32 [D]                        both or neither
    Raises KernelError when shapes disagree.
    """
    kv_heads, blocks, head_dim, _ = keys.shape
    _check(qkv, keys, values, cos, sin, heads)
    check_norms(q_norm, k_norm, head_dim)
    check_state(state)
    qk_norm = q_norm is not None and k_norm is not None
    args = {
        "qkv": qkv,
        "cos": cos,
        "sin": sin,
        "q_norm": q_norm if qk_norm else cos,
        "k_norm": k_norm if qk_norm else cos,
    }
    args |= {"keys": keys, "values": values, "state": state, "stride": qkv.shape[1], "blocks": blocks, "eps": eps}
    name = float_name(keys)
    launch = KERNELS[name].bind(
        args, isa, heads=heads, kv_heads=kv_heads, head_dim=head_dim, qk_norm=qk_norm, cache_dtype=name
    )
    return Step(launch, kv_heads, 1)


def _check(qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int) -> None:
    kv_heads, blocks, head_dim, _ = keys.shape
    if head_dim % 2 or heads % kv_heads:
        raise KernelError(
            f"expected an even head_dim and heads a multiple of kv_heads, got head_dim={head_dim}, heads={heads}, "
            f"kv_heads={kv_heads}; check the model's config"
        )
    if qkv.shape[1] < (heads + 2 * kv_heads) * head_dim:
        raise KernelError(
            f"expected rows of at least {(heads + 2 * kv_heads) * head_dim} columns, got {qkv.shape[1]}; widen qkv"
        )
    if cos.shape != sin.shape or cos.shape[1] != head_dim // 2:
        raise KernelError(
            f"expected cos and sin [context, {head_dim // 2}], got {cos.shape} and {sin.shape}; rebuild the tables"
        )
    if values.shape != (kv_heads, blocks * BLOCK, padded(head_dim)) or values.dtype != keys.dtype:
        raise KernelError(f"keys {keys.shape} and values {values.shape} do not fit; make both with allocate_cache")


def check_norms(q_norm: np.ndarray | None, k_norm: np.ndarray | None, head_dim: int) -> None:
    """Raise KernelError unless both norms are there, [head_dim], or neither."""
    shapes = [None if weight is None else weight.shape for weight in (q_norm, k_norm)]
    if shapes not in ([None, None], [(head_dim,), (head_dim,)]):
        raise KernelError(f"expected norms of queries and keys of {head_dim} numbers, or neither, got {shapes}; "
                          "check the model's config")  # fmt: skip


def _dtype(name: str) -> DType:
    if name not in FLOATS:
        raise KernelError(f"expected a cache of {', '.join(FLOATS)}, got {name!r}; choose one of them")
    return FLOATS[name][0]


def float_name(keys: np.ndarray) -> str:
    """The name in FLOATS of a cache's element type."""
    return next(name for name, (dtype, _) in FLOATS.items() if keys.dtype == dtype.numpy)
