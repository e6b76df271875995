"""Rotary embedding with a KV cache of codes: rotates as rope.py does, and stores integers.

Rotated queries and keys stay in their row of q | k | v; the key and the value go into the cache as codes, the queries
beside it as signed integers, whose bytes attention multiplies with codes.  Layouts and rounding: cache.py.
One task is one row and one key/value head with its group of queries.
"""

from __future__ import annotations

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
    minimum,
    reduce_add,
    reduce_max,
    round_even,
    select,
    shuffle,
    splat,
    store,
    u8,
    u32,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import check_state
from lutra.kernels.cache import (
    BLOCK,
    CODES,
    F16_LIMIT,
    QUERY_LIMIT,
    STRIDE,
    Cache,
    Codes,
    Queries,
    integers_spec,
    quantize_spec,
)
from lutra.kernels.rope import check_norms, chunks, head_norm_spec, held, held_spec, rotate, rotate_spec

SMALLEST = 1e-20  # a largest magnitude below it counts as this, so that its reciprocal stays finite


def rope_store_spec(
    qkv: np.ndarray,
    cache: Cache,
    queries: Queries,
    cos: np.ndarray,
    sin: np.ndarray,
    position: int,
    heads: int,
    q_norm: np.ndarray | None = None,
    k_norm: np.ndarray | None = None,
    eps: float = 0.0,
) -> None:
    """Rotate queries and keys of qkv [M, stride] in place; write codes into the cache, integers into `queries`.

    Arguments as for rope.rope_store_spec.
    """
    codes, kv_heads, m = CODES[cache.kind], cache.kv_heads, len(qkv)
    rows = np.arange(position, position + m)
    every = qkv[:, : (heads + 2 * kv_heads) * cache.head_dim].reshape(m, -1, cache.head_dim)
    q, k, v = np.split(every, [heads, heads + kv_heads], axis=1)  # [M, heads, D]
    if q_norm is not None and k_norm is not None:
        q, k = head_norm_spec(q, q_norm, eps), head_norm_spec(k, k_norm, eps)
    q, k = rotate_spec(q, cos[rows], sin[rows]), rotate_spec(k, cos[rows], sin[rows])
    qkv[:, : (heads + kv_heads) * cache.head_dim] = np.concatenate([q, k], axis=1).reshape(m, -1)
    _store_queries_spec(q, queries, codes)
    for row, at in enumerate(rows):
        for kv in range(kv_heads):
            _store_key_spec(k[row, kv], cache, kv, int(at))
            _store_value_spec(v[row, kv], cache, kv, int(at))


def _store_queries_spec(q: np.ndarray, queries: Queries, codes: Codes) -> None:
    m, _, head_dim = q.shape
    q = held_spec(q, QUERY_LIMIT)
    largest = np.maximum(np.abs(q).max(-1), np.float32(SMALLEST))
    parts = integers_spec(q, np.float32(codes.most) / largest, codes.parts)  # [parts, M, heads, D]
    queries.codes[:m] = 0
    queries.codes[:m, :, :, :head_dim] = parts.transpose(1, 2, 0, 3)
    weights = 256 ** np.arange(codes.parts)[::-1]
    queries.scales[:m, :, 0] = largest * np.float32(1 / codes.most)
    queries.scales[:m, :, 1] = np.tensordot(weights, parts.astype(np.int32).sum(-1), 1)


def _store_key_spec(k: np.ndarray, cache: Cache, kv: int, position: int) -> None:
    codes = CODES[cache.kind]
    block, lane = divmod(position, BLOCK)
    found, scale, least = quantize_spec(k, cache.kind)
    words = _padded(found, codes.key_columns(len(k))).reshape(-1, codes.per_byte, 4)
    cache.keys[kv, block, :, lane] = _joined(words, codes)
    cache.key_scales[kv, block, :, lane] = scale, least


def _store_value_spec(v: np.ndarray, cache: Cache, kv: int, position: int) -> None:
    codes = CODES[cache.kind]
    step, at = divmod(position, STRIDE)
    found, scale, least = quantize_spec(v, cache.kind)
    vectors = _padded(found, codes.value_columns(len(v))).reshape(-1, codes.per_byte, NUM_LANES)
    cache.values[kv, step, :, at // 4, :, at % 4] = _joined(vectors, codes)
    cache.value_scales[kv, position // BLOCK, :, position % BLOCK] = scale, least


def _padded(codes: np.ndarray, columns: int) -> np.ndarray:
    """The codes, then zeros."""
    return np.concatenate([codes, np.zeros(columns - len(codes), np.uint8)])


def _joined(codes: np.ndarray, kind: Codes) -> np.ndarray:
    """uint8 [n, per_byte, width] to the bytes [n, width] that hold them, the first lowest."""
    shifts = np.arange(kind.per_byte, dtype=np.uint8)[:, None] * np.uint8(kind.bits % 8)
    return np.bitwise_or.reduce(codes << shifts, axis=1)


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
    num_rows = load(state, 0)
    row, kv = task % num_rows, task // num_rows
    position = load(state, 1) + row
    table = position * (head_dim // 2)
    group = heads // kv_heads
    first = row * stride
    columns = len(chunks(head_dim)) * NUM_LANES

    for index in loop(0, group):
        head = kv * group + index
        at = first + head * head_dim
        for start, rotated in rotate(qkv, at, cos, sin, table, q_norm if qk_norm else None, head_dim, eps):
            store(qkv, at + start, rotated)
        place = row * heads + head
        _store_query(_vectors(qkv, at, head_dim, 0.0), query_codes, query_scales, place, columns, codes)

    at = first + (kv + heads) * head_dim
    for start, rotated in rotate(qkv, at, cos, sin, table, k_norm if qk_norm else None, head_dim, eps):
        store(qkv, at + start, rotated)
    block, lane = kv * blocks + position // BLOCK, position % BLOCK
    scales = block * (2 * BLOCK) + lane
    found = _quantized(_vectors(qkv, at, head_dim), key_scales, scales, codes, head_dim)
    words = codes.key_columns(head_dim) // (4 * codes.per_byte)
    _store_key(found, keys, block * (words * BLOCK) + lane, words, codes)

    at = first + (kv + heads + kv_heads) * head_dim
    found = _quantized(_vectors(qkv, at, head_dim), value_scales, scales, codes, head_dim)
    vectors = codes.value_columns(head_dim) // (NUM_LANES * codes.per_byte)
    step, inside = (kv * blocks + position // BLOCK) // (STRIDE // BLOCK), position % STRIDE
    place = step * (vectors * STRIDE * NUM_LANES) + inside // 4 * (4 * NUM_LANES) + inside % 4
    _store_value(found, values, place, codes)


def _vectors(qkv: Value, at: Value, head_dim: int, padding: float | None = None) -> list[Value]:
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


def _store_query(parts: list[Value], codes: Value, scales: Value, place: Value, columns: int, kind: Codes) -> None:
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


def integers(v: Value, inverse: Value) -> Value:
    """i32 nearest to v * inverse."""
    return convert(round_even(v * inverse), i32)


def low_integers(v: Value, inverse: Value) -> Value:
    """i32 whose lowest 22 bits are those of `integers`: adding 1.5 * 2**23 leaves a whole number there."""
    return bitcast(v * inverse + 12582912.0, i32)


def signed_bytes(whole: Value, parts: int) -> list[Value]:
    """The bytes of integers as cache.integers_spec cuts them, the highest first; bits above theirs do not matter."""
    low = convert(whole, i8)
    return [low] if parts == 1 else [convert((whole + 128) >> 8, i8), low]


def _quantized(parts: list[Value], scales: Value, at: Value, kind: Codes, head_dim: int) -> list[Value]:
    """u8x16 codes of a vector, whose scale and minimum are stored; codes beyond head_dim are 0."""
    parts = [held(v, F16_LIMIT) for v in parts]
    low = high = parts[0]
    for v in parts[1:]:
        low, high = minimum(low, v), maximum(high, v)
    least, largest = 0.0 - reduce_max(0.0 - low), reduce_max(high)
    base = convert(least, f16)
    scale = convert((largest - least) / float(kind.levels), f16)
    store(scales, at, scale)
    store(scales, at + BLOCK, base)
    step = convert(scale, f32)
    inverse = splat(select(step > 0.0, 1.0 / select(step > 0.0, step, 1.0), 0.0), NUM_LANES)
    origin = splat(convert(base, f32), NUM_LANES)
    codes = [_code((v - origin) * inverse, kind) for v in parts]
    inside = head_dim % NUM_LANES
    if inside:
        none = const(0, u8, NUM_LANES)
        codes[-1] = shuffle(codes[-1], none, [i if i < inside else NUM_LANES for i in range(NUM_LANES)])
    return codes


def _code(steps: Value, kind: Codes) -> Value:
    limited = minimum(maximum(steps, 0.0), float(kind.levels))
    return convert(convert(round_even(limited), i32), u8)


def _store_key(found: list[Value], keys: Value, at: Value, words: int, kind: Codes) -> None:
    """Words of a key, 16 apart."""
    quads = [extract(bitcast(v, u32), i) for v in found for i in range(NUM_LANES // 4)]
    for word in range(words):
        total = quads[word * kind.per_byte]
        for i in range(1, kind.per_byte):
            total = total | quads[word * kind.per_byte + i] << kind.bits * i
        store(keys, at + word * BLOCK, total)


def _store_value(found: list[Value], values: Value, at: Value, kind: Codes) -> None:
    """Bytes of a value: one of every word of its vectors."""
    found = found + [const(0, u8, NUM_LANES)] * (-len(found) % kind.per_byte)
    for vector in range(0, len(found), kind.per_byte):
        total = found[vector]
        for i in range(1, kind.per_byte):
            total = total | found[vector + i] << kind.bits * i
        for lane in range(NUM_LANES):
            place = at + (vector // kind.per_byte * (STRIDE * NUM_LANES) + lane * 4)
            store(values, place, extract(total, lane))


def bind(
    qkv: np.ndarray,
    cache: Cache,
    queries: Queries,
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
    """Rotate, and store codes of rows 0 .. state[0] - 1 at positions state[1] + row; arguments as for rope.bind.

    Raises KernelError when shapes disagree.
    """
    head_dim, kv_heads = cache.head_dim, cache.kv_heads
    if head_dim % 2 or heads % kv_heads or qkv.shape[1] < (heads + 2 * kv_heads) * head_dim:
        raise KernelError(
            f"expected an even head_dim, heads a multiple of kv_heads and rows of q | k | v, got head_dim={head_dim}, "
            f"heads={heads}, kv_heads={kv_heads}, rows of {qkv.shape[1]}; check the model's config"
        )
    if cos.shape != sin.shape or cos.shape[1] != head_dim // 2:
        raise KernelError(
            f"expected cos and sin [context, {head_dim // 2}], got {cos.shape} and {sin.shape}; rebuild the tables"
        )
    check_queries(queries, cache, len(qkv), heads)
    check_norms(q_norm, k_norm, head_dim)
    check_state(state)
    qk_norm = q_norm is not None and k_norm is not None
    args = dict(qkv=qkv, cos=cos, sin=sin, q_norm=q_norm if qk_norm else cos, k_norm=k_norm if qk_norm else cos)
    args |= dict(keys=cache.keys.view(np.uint32), values=cache.values)
    args |= dict(key_scales=cache.key_scales, value_scales=cache.value_scales)
    args |= dict(query_codes=queries.codes, query_scales=queries.scales, state=state)
    args |= dict(stride=qkv.shape[1], blocks=cache.keys.shape[1], eps=eps)
    static = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, qk_norm=qk_norm, kind=cache.kind)
    return Step(rope_store_codes.bind(args, isa, **static), kv_heads, 1)


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
