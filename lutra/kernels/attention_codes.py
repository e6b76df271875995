"""Attention over a KV cache of int8 or int4 codes, in integers: what attention.py does for floats.

Queries come as integers from rope_codes.py; attention weights become integers here, 64 positions at a time, relative to
the largest.  Codes are multiplied with the bytes of either by dot4, so sums are exact and a cached byte is touched once
per head and byte, not once per float.  Per 64 positions and head, f the value of 1 of the query times `scale`:

    s     = f32(q . codes) * (key_scale * f) + key_minimum * (f * sum of q)        q . codes = 256 * high + low
    m'    = max(m, max s), p = e**(s - m'), c = e**(m - m')     positions after the row's own do not take part
    l     = l * c + ((p0 + p1) + (p2 + p3))                     16 lanes; p0 .. p3 are the quarters of the 64
    b     = b * c + ((p0 n0 + p1 n1) + (p2 n2 + p3 n3))         n the minimum of a value
    w     = p * value_scale, as integers of largest magnitude `most`: w = u * integer, u = max w / most
    out   = out * c + f32(w . codes) * u

and at the end y = (out + sum b) / sum l.  A task is one row and `tile` query heads that share a key/value head.

Source    as attention.py; integers on both sides: SageAttention, arXiv 2410.02367, section 4
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    Var,
    bitcast,
    const,
    convert,
    dot4,
    f16,
    f32,
    i8,
    i32,
    i64,
    load,
    loop,
    maximum,
    prefetch,
    reduce_add,
    reduce_max,
    select,
    shuffle,
    splat,
    store,
    u8,
    var,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.attention import largest_divisor
from lutra.kernels.buffers import check_state
from lutra.kernels.cache import BLOCK, CODES, STRIDE, Cache, Codes, Queries, integers_spec
from lutra.kernels.elementwise import exp, exp_spec
from lutra.kernels.rope import chunks
from lutra.kernels.rope_codes import SMALLEST, check_queries, integers, signed_bytes
from lutra.kernels.softmax import iota

_LOWEST = -1e30  # a running maximum before the first score
_QUARTERS = STRIDE // BLOCK


def attention_spec(
    queries: Queries, cache: Cache, rows: int, position: int, heads: int, scale: float | None = None
) -> np.ndarray:
    """Attention of the first `rows` rows, which stand at position, position + 1, ...: f32 [rows, heads, D]."""
    factor = np.float32(1 / np.sqrt(cache.head_dim) if scale is None else scale)
    kv = np.arange(heads) // (heads // cache.kv_heads)
    return np.stack([_row_spec(queries, cache, row, position + row, kv, factor) for row in range(rows)])


def _row_spec(
    queries: Queries, cache: Cache, row: int, position: int, kv: np.ndarray, scale: np.float32
) -> np.ndarray:
    codes, heads, head_dim = CODES[cache.kind], len(kv), cache.head_dim
    factor = queries.scales[row, :, 0] * scale  # [heads]
    offset = factor * queries.scales[row, :, 1]
    q = queries.codes[row, :, :, :head_dim]  # [heads, parts, D]
    m = np.full((heads, 1), _LOWEST, np.float32)
    l = np.zeros((heads, BLOCK), np.float32)  # noqa: E741  the letter of the papers
    b, out = np.zeros_like(l), np.zeros((heads, head_dim), np.float32)
    for step in range(position // STRIDE + 1):
        seen = step * STRIDE + np.arange(STRIDE) <= position
        k, v = keys_of(cache, step)[kv], values_of(cache, step)[kv]  # [heads, 64, D]
        (ks, km), (vs, vm) = (_scales(scales, step)[:, kv] for scales in (cache.key_scales, cache.value_scales))
        score = _joined_spec(q, k) * (ks * factor[:, None]) + km * offset[:, None]
        score = np.where(seen, score, np.float32(_LOWEST))
        new = np.maximum(m, score.max(1, keepdims=True))
        p = np.where(seen, exp_spec(score - new), np.float32(0))
        c = exp_spec(m - new)
        m, l, b = new, l * c + _quarters(p), b * c + _quarters(p * vm)  # noqa: E741
        w = p * vs
        largest = np.maximum(w.max(1), np.float32(SMALLEST))
        weights = integers_spec(w, np.float32(codes.most) / largest, codes.parts)  # [parts, heads, 64]
        unit = largest * np.float32(1 / codes.most)
        out = out * c + _joined_spec(weights.transpose(1, 0, 2), v.swapaxes(1, 2)) * unit[:, None]
    return (out + tree_sum(b)[:, None]) / tree_sum(l)[:, None]


def _joined_spec(parts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """i8 [heads, parts, n] times codes [heads, m, n], the bytes put together: f32 [heads, m]."""
    sums = np.einsum("hpn,hmn->phm", parts.astype(np.int32), codes.astype(np.int32)).astype(np.float32)
    return sums[0] if len(sums) == 1 else sums[0] * np.float32(256) + sums[1]


def _quarters(p: np.ndarray) -> np.ndarray:
    """[heads, 64] to [heads, 16]."""
    p0, p1, p2, p3 = np.split(p, _QUARTERS, axis=1)
    return (p0 + p1) + (p2 + p3)


def _scales(scales: np.ndarray, step: int) -> np.ndarray:
    """f32 [scale and minimum, kv_heads, 64] of a block of positions."""
    blocks = scales[:, step * _QUARTERS : (step + 1) * _QUARTERS].astype(np.float32)  # [kv, 4, 2, 16]
    return blocks.transpose(2, 0, 1, 3).reshape(2, len(scales), STRIDE)


def keys_of(cache: Cache, step: int) -> np.ndarray:
    """Codes of a block of 64 keys: uint8 [kv_heads, 64, D]."""
    stored = cache.keys[:, step * _QUARTERS : (step + 1) * _QUARTERS]  # [kv, 4, words, 16, 4]
    parts = _split(stored, CODES[cache.kind])  # [per_byte, kv, 4, words, 16, 4]
    return parts.transpose(1, 2, 4, 3, 0, 5).reshape(cache.kv_heads, STRIDE, -1)[..., : cache.head_dim]


def values_of(cache: Cache, step: int) -> np.ndarray:
    """Codes of a block of 64 values: uint8 [kv_heads, 64, D]."""
    parts = _split(cache.values[:, step], CODES[cache.kind])  # [per_byte, kv, vectors, 16 quads, 16 lanes, 4]
    return parts.transpose(1, 3, 5, 2, 0, 4).reshape(cache.kv_heads, STRIDE, -1)[..., : cache.head_dim]


def _split(stored: np.ndarray, kind: Codes) -> np.ndarray:
    """Codes that share a byte, the lowest first: uint8 [per_byte, ...]."""
    return np.stack([stored >> np.uint8(kind.bits * i) & np.uint8(kind.levels) for i in range(kind.per_byte)])


# ---- the kernel -----------------------------------------------------------------------------------------------------


@kernel
def attention_codes(
    query_codes: Pointer[i32],
    query_scales: Pointer[f32],
    weights: Pointer[i32],
    keys: Pointer[u8],
    values: Pointer[u8],
    key_scales: Pointer[f16],
    value_scales: Pointer[f16],
    y: Pointer[f32],
    state: Pointer[i64],
    y_stride: i64,
    blocks: i64,
    scale: f32,
    task: i64,
    *,
    heads,
    kv_heads,
    head_dim,
    tile,
    sums,
    kind,
):
    """y of one row and `tile` heads; y itself holds the unfinished sums between blocks.

    query_codes, weights   bytes, four a word
    sums                   accumulators worth keeping in registers
    """
    codes = CODES[kind]
    num_rows = load(state, 0)
    row, piece = task % num_rows, task // num_rows
    position = load(state, 1) + row
    kv = (piece * tile) // (heads // kv_heads)
    first = row * heads + piece * tile  # the first head of this task among all rows' heads
    target = row * y_stride + piece * (tile * head_dim)
    states = [_Head(query_scales, first + h, scale) for h in range(tile)]
    output = Output(y, target, head_dim)
    for i, lanes in chunks(tile * head_dim):
        store(y, target + i, const(0.0, f32, lanes))

    for step in loop(0, position // STRIDE + 1):
        block = kv * blocks + step * _QUARTERS
        scores = _scores(query_codes, first, keys, block, head_dim, tile, sums, codes)
        for quarter in range(_QUARTERS):
            at = (block + quarter) * (2 * BLOCK)
            ks, km = (convert(load(key_scales, at + i * BLOCK, BLOCK), f32) for i in range(2))
            seen = splat(convert(position - (step * STRIDE + quarter * BLOCK), i32), BLOCK) >= iota(BLOCK)
            for head, score in zip(states, scores, strict=True):
                head.score(quarter, score[quarter], ks, km, seen)
        corrections = [head.correct() for head in states]
        units = []
        for h, (head, c) in enumerate(zip(states, corrections, strict=True)):
            units.append(head.weigh(c, value_scales, block * (2 * BLOCK), weights, first + h, codes))
        _accumulate(output, corrections, units, weights, first, values, block, sums, codes)

    for h, head in enumerate(states):
        total, bias = (splat(reduce_add(sum_), BLOCK) for sum_ in (head.l, head.b))
        for i, lanes in chunks(head_dim):
            v = load(y, output.at(h, i), lanes)
            store(y, output.at(h, i), (v + _front(bias, lanes)) / _front(total, lanes))


class _Head:
    """What one query head carries from block to block, and between the parts of one."""

    def __init__(self, query_scales: Value, head: Value, scale: Value) -> None:
        factor = load(query_scales, head * 2) * scale
        self.factor = splat(factor, BLOCK)
        self.offset = splat(factor * load(query_scales, head * 2 + 1), BLOCK)
        self.m = var(const(_LOWEST, f32, BLOCK))  # running maximum, the same in every lane
        self.l = var(const(0.0, f32, BLOCK))
        self.b = var(const(0.0, f32, BLOCK))
        self.scores: list[Value] = []
        self.seen: list[Value] = []

    def score(self, quarter: int, dot: Value, ks: Value, km: Value, seen: Value) -> None:
        """Take the products of 16 positions."""
        if quarter == 0:
            self.scores, self.seen = [], []
        score = dot * (ks * self.factor) + km * self.offset
        self.scores.append(select(seen, score, _LOWEST))
        self.seen.append(seen)

    def correct(self) -> Value:
        """Move the maximum; return the factor of everything before."""
        s0, s1, s2, s3 = self.scores
        old = self.m.get()
        self.m.set(maximum(old, splat(reduce_max(maximum(maximum(s0, s1), maximum(s2, s3))), BLOCK)))
        return exp(old - self.m.get())

    def weigh(self, c: Value, scales: Value, at: Value, weights: Value, head: Value, kind: Codes) -> Value:
        """Fold 64 scores in and store their weights as integers; return the value of 1."""
        new = self.m.get()
        p = [select(seen, exp(score - new), 0.0) for score, seen in zip(self.scores, self.seen, strict=True)]
        vs, vm = (
            [convert(load(scales, at + (2 * quarter + i) * BLOCK, BLOCK), f32) for quarter in range(_QUARTERS)]
            for i in range(2)
        )
        self.l.set(self.l.get() * c + _add(p))
        self.b.set(self.b.get() * c + _add([a * b for a, b in zip(p, vm, strict=True)]))
        w = [a * b for a, b in zip(p, vs, strict=True)]
        top = maximum(reduce_max(maximum(maximum(w[0], w[1]), maximum(w[2], w[3]))), SMALLEST)
        inverse = splat(float(kind.most) / top, BLOCK)
        for quarter, v in enumerate(w):
            for part, narrow in enumerate(signed_bytes(integers(v, inverse), kind.parts)):
                place = (head * kind.parts + part) * (STRIDE // 4) + quarter * (BLOCK // 4)
                store(weights, place, bitcast(narrow, i32))
        return splat(top * (1 / kind.most), BLOCK)


def _add(p: list[Value]) -> Value:
    return (p[0] + p[1]) + (p[2] + p[3])


def _scores(
    q: Value, first: Value, keys: Value, block: Value, head_dim: int, tile: int, sums: int, kind: Codes
) -> list[list[Value]]:
    """q . codes of `tile` heads and the quarters of a block, f32x16 each."""
    words, columns = kind.key_columns(head_dim) // (4 * kind.per_byte), len(chunks(head_dim)) * NUM_LANES
    together = largest_divisor(_QUARTERS, sums // (tile * kind.parts))
    found: list[list[Value]] = [[] for _ in range(tile)]
    for quarter in range(0, _QUARTERS, together):
        accs = [_Sums(together, kind.parts) for _ in range(tile)]
        for word in loop(0, words):
            stored = [
                _fetch(keys, ((block + (quarter + i)) * words + word) * (4 * BLOCK), words * (4 * STRIDE))
                for i in range(together)
            ]
            for i in range(kind.per_byte):
                codes = [_code(v, i, kind) for v in stored]
                for h, acc in enumerate(accs):
                    for part in range(kind.parts):
                        at = ((first + h) * kind.parts + part) * (columns // 4) + word * kind.per_byte + i
                        acc.add(part, codes, load(q, at), kind)
        for h, acc in enumerate(accs):
            found[h] += acc.values()
    return found


def _fetch(codes: Value, at: Value, ahead: int) -> Value:
    """A cache line of codes; the same of the next block is asked for, since hardware loses the thread at its end."""
    prefetch(codes, at + ahead)
    return load(codes, at, 4 * NUM_LANES)


class _Sums:
    """Integer sums of several vectors of codes with the bytes of one head."""

    def __init__(self, count: int, parts: int):
        self.parts = [[var(const(0, i32, NUM_LANES)) for _ in range(count)] for _ in range(parts)]

    def add(self, part: int, codes: list[Value], word: Value, kind: Codes) -> None:
        """Add codes times the four bytes of a word."""
        quad = bitcast(splat(word, NUM_LANES), i8)
        for acc, v in zip(self.parts[part], codes, strict=True):
            acc.set(dot4(acc, v, quad, bound=kind.levels))

    def values(self) -> list[Value]:
        """f32x16 of every sum, its bytes put together."""
        if len(self.parts) == 1:
            return [_float(acc) for acc in self.parts[0]]
        return [_float(high) * 256.0 + _float(low) for high, low in zip(*self.parts, strict=True)]


def _float(acc: Var) -> Value:
    return convert(acc.get(), f32)


def _code(stored: Value, i: int, kind: Codes) -> Value:
    """The i-th code of every byte."""
    if kind.per_byte == 1:
        return stored
    return stored >> kind.bits if i else stored & kind.levels


@dataclass(frozen=True)
class Output:
    """Where the sums of a task's heads stand in y."""

    y: Value
    target: Value
    head_dim: int

    def at(self, head: int, column: Value | int) -> Value:
        return self.target + column + head * self.head_dim


def _accumulate(
    output: Output,
    corrections: list[Value],
    units: list[Value],
    weights: Value,
    first: Value,
    values: Value,
    block: Value,
    sums: int,
    kind: Codes,
) -> None:
    """out = out * c + (w . codes) * u in place, for all columns of all heads."""
    tile, head_dim = len(units), output.head_dim
    width = NUM_LANES * kind.per_byte  # columns that a vector of bytes holds
    vectors = kind.value_columns(head_dim) // width
    whole = head_dim // width
    span = largest_divisor(whole, sums // (tile * kind.parts * kind.per_byte)) if whole else 1

    def add(vector: Value | int, count: int) -> None:
        accs = [[_Sums(count, kind.parts) for _ in range(kind.per_byte)] for _ in range(tile)]
        start = block // _QUARTERS * (vectors * STRIDE * NUM_LANES) + vector * (STRIDE * NUM_LANES)
        for quad in loop(0, STRIDE // 4):
            stored = [
                _fetch(values, start + i * (STRIDE * NUM_LANES) + quad * (4 * NUM_LANES), vectors * STRIDE * NUM_LANES)
                for i in range(count)
            ]
            codes = [[_code(v, i, kind) for v in stored] for i in range(kind.per_byte)]
            for h in range(tile):
                for part in range(kind.parts):
                    word = load(weights, ((first + h) * kind.parts + part) * (STRIDE // 4) + quad)
                    for i in range(kind.per_byte):
                        accs[h][i].add(part, codes[i], word, kind)
        for h in range(tile):
            for i in range(kind.per_byte):
                for j, found in enumerate(accs[h][i].values()):
                    column = (j * kind.per_byte + i) * NUM_LANES
                    known = head_dim if isinstance(vector, Value) else head_dim - vector * width
                    lanes = min(NUM_LANES, known - column)
                    if lanes > 0:
                        at = output.at(h, vector * width + column)
                        out = load(output.y, at, lanes) * _front(corrections[h], lanes)
                        store(output.y, at, out + _front(found * units[h], lanes))

    if whole:
        for vector in loop(0, whole, span):
            add(vector, span)
    if whole < vectors:
        add(whole, vectors - whole)


def _front(v: Value, lanes: int) -> Value:
    """The first lanes of a vector."""
    return v if lanes == v.type.lanes else shuffle(v, v, range(lanes))


# (query heads a task takes together, which share the loads of K and V; sums of 16 lanes kept in registers)
TILES = {"avx512": (4, 8), "avxvnni": (2, 4), "avx2": (2, 4), "portable": (2, 4)}


def bind(
    queries: Queries,
    cache: Cache,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    sums: int | None = None,
) -> Step:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    queries      of rope_codes.bind, the step before
    y            f32 [rows, stride]     heads side by side
    scale        factor of the scores   default 1 / sqrt(D)
    tile, sums   change the speed, never the result
    Raises KernelError when shapes disagree.
    """
    head_dim, kv_heads = cache.head_dim, cache.kv_heads
    if heads % kv_heads or y.shape[1] < heads * head_dim:
        raise KernelError(
            f"expected heads a multiple of kv_heads={kv_heads} and rows of at least {heads * head_dim} columns, got "
            f"{heads} heads and y {y.shape}; check the model's config"
        )
    check_queries(queries, cache, len(y), heads)
    check_state(state)
    wanted, registers = TILES.get(targets.choose(isa).isa, TILES["portable"])
    tile = tile or largest_divisor(heads // kv_heads, wanted)
    args = dict(query_codes=queries.codes.view(np.int32), query_scales=queries.scales)
    args |= dict(weights=queries.weights.view(np.int32), keys=cache.keys, values=cache.values)
    args |= dict(key_scales=cache.key_scales, value_scales=cache.value_scales, y=y, state=state)
    args |= dict(y_stride=y.shape[1], blocks=cache.keys.shape[1], scale=head_dim**-0.5 if scale is None else scale)
    static = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, kind=cache.kind)
    return Step(attention_codes.bind(args, isa, **static, tile=tile, sums=sums or registers), heads // tile, 1)
