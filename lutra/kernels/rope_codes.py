"""The store of rotated keys and of values into a KV cache of codes, and of queries as integers.

Rotated queries and keys stay in their row of q | k | v; the key and the value go into the cache as codes, the queries
beside it as signed integers, whose bytes attention multiplies with codes.  Layouts: cache.py; rounding: codes.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    absolute,
    bitcast,
    const,
    convert,
    extract,
    f16,
    f32,
    i8,
    i32,
    i64,
    load,
    loop,
    maximum,
    reduce_add,
    reduce_max,
    shuffle,
    splat,
    store,
    u8,
    u32,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.cache import BLOCK, STRIDE, Cache, Queries
from lutra.kernels.codes import (
    CODES,
    QUERY_LIMIT,
    SMALLEST,
    Codes,
    integers,
    integers_spec,
    joined,
    joined_spec,
    quantize_spec,
    quantized,
    signed_bytes,
)
from lutra.kernels.rope import held, held_spec
from lutra.kernels.rotary import Row, bind_rows, chunks, rotate_in_place, rotated_spec, row_of


def rope_store_spec(
    qkv: np.ndarray, cache: Cache, queries: Queries, cos: np.ndarray, sin: np.ndarray, position: int, heads: int,
    *norms: Any, **options: Any,
) -> None:  # fmt: skip
    """Rotate queries and keys of qkv [M, stride] in place; write codes into the cache, integers into `queries`.

    Arguments as for rope.rope_store_spec.
    """
    rows = np.arange(position, position + len(qkv))
    q, k, v = rotated_spec(qkv, heads, cache.kv_heads, cache.head_dim, cos, sin, rows, *norms, **options)
    rotated = np.concatenate([q, k], axis=1).reshape(len(qkv), -1)
    qkv[:, : rotated.shape[1]] = rotated
    _store_queries_spec(q, queries, CODES[cache.kind])
    for row, at in enumerate(rows):
        for kv in range(cache.kv_heads):
            _store_key_spec(k[row, kv], cache, kv, int(at))
            store_value_spec(v[row, kv], cache, kv, int(at))


def _store_queries_spec(q: np.ndarray, queries: Queries, codes: Codes) -> None:
    parts, queries.scales[: len(q), :, 0], queries.scales[: len(q), :, 1] = queries_spec(q, codes)
    queries.codes[: len(q)] = 0
    queries.codes[: len(q), :, :, : q.shape[2]] = parts.transpose(1, 2, 0, 3)


def queries_spec(q: np.ndarray, codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries f32 [..., D] as integers: their bytes i8 [parts, ..., D], the value of 1 and the integers' sum [...]."""
    q = held_spec(q, QUERY_LIMIT)
    largest = np.maximum(np.abs(q).max(-1), np.float32(SMALLEST))
    parts = integers_spec(q, np.float32(codes.most) / largest, codes.parts)
    weights = 256 ** np.arange(codes.parts)[::-1]
    sums = np.tensordot(weights, parts.astype(np.int32).sum(-1), 1).astype(np.float32)
    return parts, largest * np.float32(1 / codes.most), sums


def _store_key_spec(k: np.ndarray, cache: Cache, kv: int, position: int) -> None:
    codes = CODES[cache.kind]
    block, lane = divmod(position, BLOCK)
    found, scale, least = quantize_spec(k, cache.kind)
    words = _padded(found, codes.key_columns(len(k))).reshape(-1, codes.per_byte, 4)
    cache.keys[kv, block, :, lane] = joined_spec(words, codes)
    cache.key_scales[kv, block, :, lane] = scale, least


def store_value_spec(v: np.ndarray, cache: Cache, kv: int, position: int) -> None:
    codes = CODES[cache.kind]
    step, at = divmod(position, STRIDE)
    found, scale, least = quantize_spec(v, cache.kind)
    vectors = _padded(found, codes.value_columns(len(v))).reshape(-1, codes.per_byte, NUM_LANES)
    cache.values[kv, step, :, at // 4, :, at % 4] = joined_spec(vectors, codes)
    cache.value_scales[kv, position // BLOCK, :, position % BLOCK] = scale, least


def _padded(codes: np.ndarray, columns: int) -> np.ndarray:
    """The codes, then zeros."""
    return np.concatenate([codes, np.zeros(columns - len(codes), np.uint8)])


# ---- the kernel -----------------------------------------------------------------------------------------------------


@kernel
def rope_store_codes(
    qkv: Pointer[f32],
    cos: Pointer[f32],
    sin: Pointer[f32],
    q_norm: Pointer[f32],
    k_norm: Pointer[f32],
    keys: Pointer[u32],
    values: Pointer[u8],
    key_scales: Pointer[f16],
    value_scales: Pointer[f16],
    query_codes: Pointer[i8],
    query_scales: Pointer[f32],
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
    kind,
):
    """Rotate one row's queries of one key/value head, and store that head's key and value."""
    codes = CODES[kind]
    row = row_of(state, task, stride, heads, kv_heads, head_dim)
    angles = (cos, sin, row.table)
    columns = len(chunks(head_dim)) * NUM_LANES
    for index in loop(0, heads // kv_heads):
        at = row.queries + index * head_dim
        rotate_in_place(qkv, at, *angles, q_norm if qk_norm else None, head_dim, eps)
        place = row.number * heads + row.kv * (heads // kv_heads) + index
        store_query(vectors(qkv, at, head_dim, 0.0), query_codes, query_scales, place, columns, codes)
    rotate_in_place(qkv, row.key, *angles, k_norm if qk_norm else None, head_dim, eps)
    block, lane = row.kv * blocks + row.position // BLOCK, row.position % BLOCK
    found, *range_ = quantized(vectors(qkv, row.key, head_dim), codes, head_dim)
    _store_key(found, keys, block, lane, codes, head_dim)
    _store_scales(range_, key_scales, block, lane)
    store_value(qkv, row, values, value_scales, blocks, codes, head_dim)


def vectors(qkv: Value, at: Value, head_dim: int, padding: float | None = None) -> list[Value]:
    """A head in vectors of 16 lanes; the last is filled with `padding`, or with its own first element."""
    parts = []
    for start, lanes in chunks(head_dim):
        v = load(qkv, at + start, lanes)
        if lanes < NUM_LANES:
            other = v if padding is None else const(padding, f32, lanes)
            rest = 0 if padding is None else lanes
            v = shuffle(v, other, [i if i < lanes else rest for i in range(NUM_LANES)])
        parts.append(v)
    return parts


def store_query(parts: list[Value], codes: Value, scales: Value, place: Value, columns: int, kind: Codes) -> None:
    """Integers of a query, the value of 1 and the integers' sum."""
    parts = [held(v, QUERY_LIMIT) for v in parts]
    largest = absolute(parts[0])
    for v in parts[1:]:
        largest = maximum(largest, absolute(v))
    top = maximum(reduce_max(largest), SMALLEST)
    inverse = splat(float(kind.most) / top, NUM_LANES)
    total = const(0, i32, NUM_LANES)
    for i, v in enumerate(parts):
        whole = integers(v, inverse)
        total = total + whole
        for part, narrow in enumerate(signed_bytes(whole, kind.parts)):
            store(codes, (place * kind.parts + part) * columns + i * NUM_LANES, narrow)
    store(scales, place * 2, top * (1 / kind.most))
    store(scales, place * 2 + 1, convert(reduce_add(total), f32))


def _store_scales(numbers: list[Value], scales: Value, block: Value, lane: Value) -> None:
    """Scale and minimum of one of 16 positions."""
    for i, number in enumerate(numbers):
        store(scales, block * (2 * BLOCK) + i * BLOCK + lane, number)


def _store_key(found: list[Value], keys: Value, block: Value, lane: Value, kind: Codes, head_dim: int) -> None:
    """Words of a key, 16 apart."""
    words = kind.key_columns(head_dim) // (4 * kind.per_byte)
    quads = [extract(bitcast(v, u32), i) for v in found for i in range(NUM_LANES // 4)]
    for word in range(words):
        part = quads[word * kind.per_byte : (word + 1) * kind.per_byte]
        store(keys, block * (words * BLOCK) + lane + word * BLOCK, joined(part, kind))


def store_value(qkv: Value, row: Row, values: Value, scales: Value, blocks: Value, kind: Codes, head_dim: int) -> None:
    """Codes of a row's value, one byte of every word of its vectors; its scale and minimum."""
    block, inside = row.kv * blocks + row.position // BLOCK, row.position % STRIDE
    found, *range_ = quantized(vectors(qkv, row.value, head_dim), kind, head_dim)
    _store_scales(range_, scales, block, row.position % BLOCK)
    count = kind.value_columns(head_dim) // (NUM_LANES * kind.per_byte)
    found = found + [const(0, u8, NUM_LANES)] * (-len(found) % kind.per_byte)
    at = block // (STRIDE // BLOCK) * (count * STRIDE * NUM_LANES) + inside // 4 * (4 * NUM_LANES) + inside % 4
    for vector in range(count):
        total = joined(found[vector * kind.per_byte : (vector + 1) * kind.per_byte], kind)
        for lane in range(NUM_LANES):
            store(values, at + (vector * (STRIDE * NUM_LANES) + lane * 4), extract(total, lane))


def bind(
    qkv: np.ndarray, cache: Cache, queries: Queries, cos: np.ndarray, sin: np.ndarray, state: np.ndarray, *,
    isa: str | None = None, **options: Any,
) -> Step:  # fmt: skip
    """Rotate, and store codes of rows 0 .. state[0] - 1 at positions state[1] + row; arguments as for rope.bind.

    Raises KernelError when shapes disagree.
    """
    args, static = bind_rows(qkv, cos, sin, state, cache.kv_heads, cache.head_dim, **options)
    check_queries(queries, cache, len(qkv), static["heads"])
    args |= dict(keys=cache.keys.view(np.uint32), values=cache.values)
    args |= dict(key_scales=cache.key_scales, value_scales=cache.value_scales)
    args |= dict(query_codes=queries.codes, query_scales=queries.scales, blocks=cache.keys.shape[1])
    return Step(rope_store_codes.bind(args, isa, **static, kind=cache.kind), cache.kv_heads, 1)


def check_queries(queries: Queries, cache: Cache, rows: int, heads: int) -> None:
    """Raise KernelError unless the room for queries is that of cache.allocate_queries."""
    codes = CODES[cache.kind]
    wanted = (heads, codes.parts, len(chunks(cache.head_dim)) * NUM_LANES)
    rooms = (queries.codes, queries.scales)
    if queries.codes.shape[1:] != wanted or min(map(len, rooms)) < rows:
        raise KernelError(
            f"expected room for {rows} rows of {wanted} queries, got {queries.codes.shape}; make it with "
            "cache.allocate_queries"
        )
