"""Attention over a KV cache of int8 or int4 codes, in integers: what attention.py does for floats.

Queries come as integers from rope_codes.py; attention weights become integers here, 64 positions at a time, relative to
the largest.  Codes are multiplied with the bytes of either by dot4, so sums are exact and a cached byte is touched once
per query and byte, not once per float.  Work is cut as pieces.py says.  Of a query and a piece, f the value of 1 of the
query times log2(e) * scale:

    s     = f32(q . codes) * (key_scale * f) + key_minimum * (f * sum of q)        q . codes = 256 * high + low
    m     = max s, p = 2**(s - m)      positions after the row's own do not take part
    l     = p added up, 16 lanes
    b     = p * n added up, 16 lanes   n the minimum of a value

and for each 64 of its positions, one after the other:

    w     = p * value_scale, as integers of largest magnitude `most`: w = u * integer, u = max w / most
    out   = out + f32(w . codes) * u

Pieces are merged, and y = (out + sum b) / sum l.

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
    reduce_max,
    select,
    splat,
    store,
    u8,
    var,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.buffers import aligned, check_state
from lutra.kernels.cache import BLOCK, CODES, STRIDE, Cache, Codes, Queries, integers_spec
from lutra.kernels.exp2 import exp2
from lutra.kernels.pieces import (
    NEAR,
    PIECE,
    PIECE_BLOCKS,
    TASKS,
    Item,
    Part,
    Room,
    allocate_room,
    bind_merge,
    clear_part,
    cut_for,
    empty_part,
    factor,
    finish,
    held,
    items,
    lanes_spec,
    largest_divisor,
    merge_part,
    merge_spec,
    record_size,
    scores_spec,
    tile_for,
    weights_spec,
)
from lutra.kernels.rope import chunks
from lutra.kernels.rope_codes import SMALLEST, check_queries, low_integers, signed_bytes
from lutra.kernels.softmax import iota

NUM_SUMS = 2  # of a record: l and b
_QUARTERS = STRIDE // BLOCK
_STRIDES = PIECE // STRIDE


def attention_spec(
    queries: Queries, cache: Cache, rows: int, position: int, heads: int, scale: float | None = None
) -> np.ndarray:
    """Attention of the first `rows` rows, which stand at position, position + 1, ...: f32 [rows, heads, D]."""
    by = np.float32(factor(scale, cache.head_dim))
    kv = np.arange(heads) // (heads // cache.kv_heads)
    return np.stack([_row_spec(queries, cache, row, position + row, kv, by) for row in range(rows)])


def _row_spec(queries: Queries, cache: Cache, row: int, position: int, kv: np.ndarray, scale: np.float32) -> np.ndarray:
    total = empty_part(len(kv), NUM_SUMS, cache.head_dim)
    for first in range(0, position + 1, PIECE):
        total = merge_spec(total, _part_spec(queries, cache, row, first, position, kv, scale))
    l, b = (tree_sum(total.sums[:, i]) for i in range(NUM_SUMS))  # noqa: E741  the letter of the papers
    return (total.out + b[:, None]) / l[:, None]


def _part_spec(
    queries: Queries, cache: Cache, row: int, first: int, position: int, kv: np.ndarray, scale: np.float32
) -> Part:
    """One piece, whose first position is `first`."""
    codes, heads = CODES[cache.kind], len(kv)
    steps = range(first // STRIDE, min(first + PIECE, position // STRIDE * STRIDE + STRIDE) // STRIDE)
    unit = queries.scales[row, :, 0] * scale  # [heads]
    offset = unit * queries.scales[row, :, 1]
    q = queries.codes[row, :, :, : cache.head_dim]  # [heads, parts, D]
    dots, scales = [], []
    for step in steps:
        ks, km = _scales(cache.key_scales, step)[:, kv]
        dots.append(_joined_spec(q, keys_of(cache, step)[kv]) * (ks * unit[:, None]) + km * offset[:, None])
        scales.append(_scales(cache.value_scales, step)[:, kv])
    m, p = weights_spec(scores_spec(np.concatenate(dots, 1), first, position))
    vs, vm = np.concatenate(scales, 2)
    sums = np.stack([lanes_spec(p), lanes_spec(p * vm)], 1)
    out = np.zeros((heads, cache.head_dim), np.float32)
    for step, w in zip(steps, np.split(p * vs, len(steps), 1), strict=True):
        largest = np.maximum(w.max(1), np.float32(SMALLEST))
        weights = integers_spec(w, np.float32(codes.most) / largest, codes.parts)  # [parts, heads, 64]
        unit = largest * np.float32(1 / codes.most)
        v = values_of(cache, step)[kv].swapaxes(1, 2)  # [heads, D, 64]
        out = out + _joined_spec(weights.transpose(1, 0, 2), v) * unit[:, None]
    return Part(m, sums, out)


def _joined_spec(parts: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """i8 [heads, parts, n] times codes [heads, m, n], the bytes put together: f32 [heads, m]."""
    sums = np.einsum("hpn,hmn->phm", parts.astype(np.int32), codes.astype(np.int32)).astype(np.float32)
    return sums[0] if len(sums) == 1 else sums[0] * np.float32(256) + sums[1]


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
    keys: Pointer[u8],
    values: Pointer[u8],
    key_scales: Pointer[f16],
    value_scales: Pointer[f16],
    scores: Pointer[f32],
    weights: Pointer[i32],
    units: Pointer[f32],
    wide_scales: Pointer[f32],
    parts: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    y_stride: i64,
    blocks: i64,
    pieces: i64,
    scale: f32,
    task: i64,
    *,
    heads,
    kv_heads,
    head_dim,
    rows,
    tile,
    together,
    span,
    split,
    kind,
):
    """y of the items of a task; or, split, the records of their pieces.

    query_codes, weights   bytes, four a word
    together, span         vectors of codes that meet the queries of a tile at once: of positions, of elements
    """
    shape = Shape(CODES[kind], heads, head_dim, tile, together, span)
    queries = Rows(query_codes, query_scales, scale)
    integer_weights = Weights(scores, weights, units, parts, wide_scales)
    sizes = dict(heads=heads, kv_heads=kv_heads, max_rows=rows, split=split, record=shape.record)
    for item in items(state, task, pieces, **sizes):
        if not split:
            for slot in loop(0, item.num_slots):
                clear_part(parts, item.total(slot), shape.record)
        for piece in item.pieces():
            block = item.kv * blocks + piece * PIECE_BLOCKS
            _score(item, piece, shape, queries, keys, (key_scales, value_scales), block, scores, values)
            _weigh(item, piece, shape, integer_weights, value_scales, block)
            _gather(item, piece, shape, integer_weights, values, block, keys, blocks)
            if not split:
                for slot in loop(0, item.num_slots):
                    merge_part(parts, item.total(slot), item.part(slot, (slot, slot), piece), shape.record)
        if not split:
            for slot in loop(0, item.num_slots):
                ((row, head),) = item.queries(slot, 1)
                finish(parts, item.total(slot), y, row * y_stride + head * head_dim, NUM_SUMS, head_dim)


@dataclass(frozen=True)
class Shape:
    """The kind of codes, a head, and the register tiles."""

    kind: Codes
    heads: int
    head_dim: int
    tile: int
    together: int
    span: int

    @property
    def record(self) -> int:
        return record_size(NUM_SUMS, self.kind.value_columns(self.head_dim))

    @property
    def key_words(self) -> int:
        """Words of a key."""
        return self.kind.key_columns(self.head_dim) // (4 * self.kind.per_byte)

    @property
    def query_words(self) -> int:
        """Words of one byte of every element of a query."""
        return len(chunks(self.head_dim)) * NUM_LANES // 4

    @property
    def vectors(self) -> int:
        """Vectors of 16 words of a value."""
        return self.kind.value_columns(self.head_dim) // (NUM_LANES * self.kind.per_byte)


@dataclass(frozen=True)
class Rows:
    """The queries of a step, and what scores are multiplied with."""

    codes: Value
    scales: Value
    scale: Value


@dataclass(frozen=True)
class Weights:
    """What becomes of the scores of a piece, by slot: integers, their values of 1, the record; and scales of values."""

    scores: Value
    words: Value
    units: Value
    parts: Value
    scales: Value


def _score(
    item: Item, piece: Value, shape: Shape, rows: Rows, keys: Value, scales: tuple[Value, Value],
    block: Value, scores: Value, values: Value,
) -> None:  # fmt: skip
    """Scores of all queries of an item and the positions of a piece; -infinity for those a row does not see.

    keys and values, and their two scales, lie alike: while keys are read, values are asked for.
    """
    kind, words, together = shape.kind, shape.key_words, shape.together
    ahead = words * (4 * STRIDE) if item.piece is None else NEAR
    for quarter in loop(0, _strides(item, piece) * _QUARTERS, together):
        for slot in loop(0, item.num_slots, shape.tile):
            queries = item.queries(slot, shape.tile)
            indices = [row * shape.heads + head for row, head in queries]
            accs = [_Sums(together, kind.parts) for _ in queries]
            for word in loop(0, words):
                stored = [
                    _fetch(keys, ((block + quarter + i) * words + word) * (4 * BLOCK), ahead)
                    for i in range(together)
                ]
                if item.piece is not None:  # a piece of values is as large as one of keys, and read next
                    for i in range(together):
                        prefetch(values, ((block + quarter + i) * words + word) * (4 * BLOCK), 2)
                for i in range(kind.per_byte):
                    codes = [_code(v, i, kind) for v in stored]
                    for index, acc in zip(indices, accs, strict=True):
                        for part in range(kind.parts):
                            at = (index * kind.parts + part) * shape.query_words + word * kind.per_byte + i
                            acc.add(part, codes, load(rows.codes, at), kind)
            found = [acc.values() for acc in accs]
            for b in range(together):
                at = (block + quarter + b) * (2 * BLOCK)
                if item.piece is not None:  # scales of the next piece of keys, and of these positions' values
                    prefetch(scales[0], at + PIECE_BLOCKS * (2 * BLOCK), 2)
                    prefetch(scales[1], at)
                ks, km = (convert(load(scales[0], at + i * BLOCK, BLOCK), f32) for i in range(2))
                for i, ((row, _), index) in enumerate(zip(queries, indices, strict=True)):
                    unit = load(rows.scales, index * 2) * rows.scale
                    offset = unit * load(rows.scales, index * 2 + 1)
                    score = held(found[i][b] * (ks * splat(unit, BLOCK)) + km * splat(offset, BLOCK))
                    ahead = item.position + row - piece * PIECE - (quarter + b) * BLOCK
                    seen = splat(convert(ahead, i32), BLOCK) >= iota(BLOCK)
                    at = (item.first_slot + slot + i) * PIECE + (quarter + b) * BLOCK
                    store(scores, at, select(seen, score, float("-inf")))


def _strides(item: Item, piece: Value) -> Value:
    """Steps of 64 positions of a piece that the last row sees."""
    return (item.num_blocks(piece) + (_QUARTERS - 1)) // _QUARTERS


def _weigh(item: Item, piece: Value, shape: Shape, room: Weights, scales: Value, block: Value) -> None:
    """Scores become integer weights; their maximum, their sums and zeros become the record of the piece."""
    strides, tile, kind = _strides(item, piece), shape.tile, shape.kind
    own_scales = item.task * (2 * PIECE)
    for quarter in loop(0, strides * _QUARTERS):
        for i in range(2):
            wide = convert(load(scales, (block + quarter) * (2 * BLOCK) + i * BLOCK, BLOCK), f32)
            store(room.scales, own_scales + i * PIECE + quarter * BLOCK, wide)
    for slot in loop(0, (item.num_slots + (tile - 1)) // tile * tile):
        (query,) = item.queries(slot, 1)
        own = item.first_slot + slot
        record = item.part(slot, query, piece)
        clear_part(room.parts, record, shape.record)
        top = var(const(float("-inf"), f32, BLOCK))
        for quarter in loop(0, strides * _QUARTERS):
            top.set(maximum(top, load(room.scores, own * PIECE + quarter * BLOCK, BLOCK)))
        m = splat(reduce_max(top), BLOCK)
        sums = [var(const(0.0, f32, BLOCK)) for _ in range(NUM_SUMS)]
        for step in loop(0, strides):
            ws = []
            for quarter in range(_QUARTERS):
                score = load(room.scores, own * PIECE + step * STRIDE + quarter * BLOCK, BLOCK)
                p = exp2(score - m)
                at = own_scales + step * STRIDE + quarter * BLOCK
                vs, vm = (load(room.scales, at + i * PIECE, BLOCK) for i in range(2))
                sums[0] += p
                sums[1] += p * vm
                ws.append(p * vs)
            largest = maximum(reduce_max(maximum(maximum(ws[0], ws[1]), maximum(ws[2], ws[3]))), SMALLEST)
            inverse = splat(float(kind.most) / largest, BLOCK)
            store(room.units, own * _STRIDES + step, largest * (1 / kind.most))
            for quarter, w in enumerate(ws):
                for part, narrow in enumerate(signed_bytes(low_integers(w, inverse), kind.parts)):
                    at = (own * kind.parts + part) * (PIECE // 4) + step * (STRIDE // 4) + quarter * (BLOCK // 4)
                    store(room.words, at, bitcast(narrow, i32))
        store(room.parts, record, m)
        for i, acc in enumerate(sums):
            store(room.parts, record + (1 + i) * NUM_LANES, acc.get())


def _gather(
    item: Item, piece: Value, shape: Shape, room: Weights, values: Value, block: Value, keys: Value, blocks: Value
) -> None:  # fmt: skip
    """out of the record of the piece = weights times codes, 64 positions at a time."""
    kind, vectors, size = shape.kind, shape.vectors, STRIDE * NUM_LANES
    following = block if item.piece is None else item.next_block(blocks)
    ahead = vectors * size if item.piece is None else NEAR
    for step in loop(0, _strides(item, piece)):
        for vector in loop(0, vectors, shape.span):
            start = (block // _QUARTERS + step) * (vectors * size) + vector * size
            coming = (following // _QUARTERS + step) * (vectors * size) + vector * size
            for slot in loop(0, item.num_slots, shape.tile):
                queries = item.queries(slot, shape.tile)
                accs = [[_Sums(shape.span, kind.parts) for _ in range(kind.per_byte)] for _ in queries]
                own = item.first_slot + slot
                for quad in loop(0, STRIDE // 4):
                    stored = [
                        _fetch(values, start + i * size + quad * (4 * NUM_LANES), ahead)
                        for i in range(shape.span)
                    ]
                    if item.piece is not None:  # the next piece of keys
                        for i in range(shape.span):
                            prefetch(keys, coming + i * size + quad * (4 * NUM_LANES), 2)
                    codes = [[_code(v, i, kind) for v in stored] for i in range(kind.per_byte)]
                    for h, acc in enumerate(accs):
                        for part in range(kind.parts):
                            at = ((own + h) * kind.parts + part) * (PIECE // 4) + step * (STRIDE // 4) + quad
                            word = load(room.words, at)
                            for i in range(kind.per_byte):
                                acc[i].add(part, codes[i], word, kind)
                for h, (query, acc) in enumerate(zip(queries, accs, strict=True)):
                    unit = splat(load(room.units, (own + h) * _STRIDES + step), NUM_LANES)
                    first = item.part(slot + h, query, piece) + (1 + NUM_SUMS) * NUM_LANES
                    for i in range(kind.per_byte):
                        for j, found in enumerate(acc[i].values()):
                            at = first + ((vector + j) * kind.per_byte + i) * NUM_LANES
                            store(room.parts, at, load(room.parts, at, NUM_LANES) + found * unit)


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
class CodesRoom(Room):
    """And what the weights of a piece become.

    weights  i8 [TASKS, queries of a block, parts, PIECE]
    units    f32 [TASKS, queries of a block, PIECE / 64]     the values of 1
    scales   f32 [TASKS, 2, PIECE]                           scales and minima of values
    """

    weights: np.ndarray
    units: np.ndarray
    scales: np.ndarray


# (queries of a tile, sums of 16 lanes a tile keeps in registers)
TILES = {"avx512": (8, 16), "avxvnni": (2, 4), "avx2": (2, 4), "portable": (2, 4)}


def allocate(cache: Cache, rows: int, heads: int) -> CodesRoom:
    """Room for steps of at most `rows` rows over caches of this shape."""
    codes, group = CODES[cache.kind], heads // cache.kv_heads
    cut = cut_for(rows, group, cache.keys.shape[1] * BLOCK)
    room = allocate_room(cut, heads, cache.kv_heads, NUM_SUMS, codes.value_columns(cache.head_dim))
    queries = (TASKS, cut.rows * group)
    weights, units = aligned((*queries, codes.parts, PIECE), np.int8), aligned((*queries, _STRIDES), np.float32)
    scales = aligned((TASKS, 2, PIECE), np.float32)
    return CodesRoom(cut, room.scores, room.parts, weights, units, scales)


def bind(
    queries: Queries,
    cache: Cache,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    room: CodesRoom | None = None,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    sums: int | None = None,
) -> list[Step]:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    queries      of rope_codes.bind, the step before
    y            f32 [rows, stride]     heads side by side
    room         of `allocate`; default: one for all rows of y
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
    room = room or allocate(cache, len(y), heads)
    kind, cut = CODES[cache.kind], room.cut
    wanted, registers = TILES.get(targets.choose(isa).isa, TILES["portable"])
    tile = tile_for(cut, heads // kv_heads, tile or wanted)
    vectors = (sums or registers) // (tile * kind.parts)
    args = dict(query_codes=queries.codes.view(np.int32), query_scales=queries.scales)
    args |= dict(keys=cache.keys, values=cache.values, key_scales=cache.key_scales, value_scales=cache.value_scales)
    args |= dict(scores=room.scores, weights=room.weights.view(np.int32), units=room.units)
    args |= dict(wide_scales=room.scales, parts=room.parts)
    args |= dict(y=y, state=state, y_stride=y.shape[1], blocks=cache.keys.shape[1], pieces=cut.pieces)
    args |= dict(scale=factor(scale, head_dim))
    static = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rows=cut.rows, split=cut.split, kind=cache.kind)
    static |= dict(tile=tile, together=largest_divisor(_QUARTERS, vectors))
    static |= dict(span=largest_divisor(cache.values.shape[2], vectors // kind.per_byte))
    step = Step(attention_codes.bind(args, isa, **static), TASKS, 0)
    if not cut.split:
        return [step]
    return [step, bind_merge(room, y, state, heads=heads, head_dim=head_dim, num_sums=NUM_SUMS, isa=isa)]
