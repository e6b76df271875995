"""The store of rotated keys and of values into a KV cache of floats.

Rotates queries in place (rotary.py) and writes keys and values into the cache of one layer.

Cache layout, C = context padded to 64, D = head_dim:
    keys     [kv_heads, C / 16, D, 16]       sixteen positions lie side by side, as attention's lanes
    values   [kv_heads, C, D padded to 16]
in f32, or in f16 or bf16: rounded to even on the way in, held at their largest numbers, and 0 for NaN, so that all a
cache ever holds is finite.  A cache of codes is rope_codes.py's.
"""

from typing import Any

import numpy as np

from lutra.compiler.kernel import Kernel, kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    bf16,
    convert,
    extract,
    f16,
    f32,
    i64,
    load,
    maximum,
    minimum,
    select,
    store,
)
from lutra.compiler.launch import Step
from lutra.compiler.types import DType
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import aligned
from lutra.kernels.rotary import bind_rows, chunks, rotate_row, rotated_spec, row_of

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


def rope_store_spec(
    qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, cos: np.ndarray, sin: np.ndarray, position: int, heads: int,
    *norms: Any, **options: Any,
) -> None:  # fmt: skip
    """Rotate the queries of qkv [M, stride] in place; write rotated keys and values of M positions into the cache.

    The first row stands at `position`; norms and options as for rotary.rotated_spec.
    """
    kv_heads, _, head_dim, _ = keys.shape
    rows = np.arange(position, position + len(qkv))
    q, k, v = rotated_spec(qkv, heads, kv_heads, head_dim, cos, sin, rows, *norms, **options)
    qkv[:, : heads * head_dim] = q.reshape(len(qkv), -1)
    limit = FLOATS[float_name(keys)][1]
    keys[:, rows // BLOCK, :, rows % BLOCK] = held_spec(k, limit)
    values[:, rows, :head_dim] = held_spec(v.swapaxes(0, 1), limit)


def held_spec(x: np.ndarray, limit: float) -> np.ndarray:
    """x between -limit and limit, 0 for NaN."""
    bound = np.float32(limit)
    return np.where(np.isnan(x), np.float32(0), x).clip(-bound, bound)


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
        row = row_of(state, task, stride, heads, kv_heads, head_dim)
        norms = (q_norm, k_norm) if qk_norm else (None, None)
        key = rotate_row(qkv, row, cos, sin, *norms, heads // kv_heads, head_dim, eps)
        store_key(key, keys, row.kv * blocks + row.position // BLOCK, row.position % BLOCK, head_dim)
        target = (row.kv * (blocks * BLOCK) + row.position) * padded(head_dim)
        for start, lanes in chunks(head_dim):
            store(values, target + start, _narrow(load(qkv, row.value + start, lanes), cache))

    return rope_store


def store_key(key: list[tuple[int, Value]], keys: Value, block: Value, lane: Value, head_dim: int) -> None:
    """Write the (start, vector) pieces of a key as one lane of a block of 16 positions."""
    column = block * head_dim * BLOCK + lane
    for start, vector in key:
        narrow = _narrow(vector, keys.type.dtype)
        for i in range(vector.type.lanes):
            store(keys, column + (start + i) * BLOCK, extract(narrow, i))


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


KERNELS = {name: _make(dtype) for name, (dtype, _) in FLOATS.items()}


def bind(
    qkv: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    state: np.ndarray,
    *,
    isa: str | None = None,
    **options: Any,
) -> Step:
    """Rotate queries in place and store keys and values of rows 0 .. state[0] - 1 at positions state[1] + row.

    keys, values   f16, bf16 or f32   one layer's cache, from `allocate_cache`
    The others     as for rotary.bind_rows.
    Raises KernelError when shapes disagree.
    """
    kv_heads, blocks, head_dim, _ = keys.shape
    if values.shape != (kv_heads, blocks * BLOCK, padded(head_dim)) or values.dtype != keys.dtype:
        raise KernelError(f"keys {keys.shape} and values {values.shape} do not fit; make both with allocate_cache")
    args, static = bind_rows(qkv, cos, sin, state, kv_heads, head_dim, **options)
    args |= {"keys": keys, "values": values, "blocks": blocks}
    name = float_name(keys)
    return Step(KERNELS[name].bind(args, isa, **static, cache_dtype=name), kv_heads, 1)


def _dtype(name: str) -> DType:
    if name not in FLOATS:
        raise KernelError(f"expected a cache of {', '.join(FLOATS)}, got {name!r}; choose one of them")
    return FLOATS[name][0]


def float_name(keys: np.ndarray) -> str:
    """The name in FLOATS of a cache's element type."""
    return next(name for name, (dtype, _) in FLOATS.items() if keys.dtype == dtype.numpy)
