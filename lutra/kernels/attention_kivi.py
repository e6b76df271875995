"""Attention over a KIVI cache: keys by channel, what attention_codes.py does where every key has a scale of its own.

A row reads the keys of its own group of positions as floats, and those of the groups before as codes, whose scales
belong to channels.  So they go to the query, once for each group:

    t[d]  = q[d] * key_scale[d], as integers: t = u * integer, u = max t / most
    base  = q[0] * middle[0] + ... in 16 lanes      middle = key_minimum + key_scale * c, c = (2**bits - 1) / 2
    s     = (f32(integers . codes) - c * sum of integers) * (u * f) + base * f

for f = log2(e) * scale: half the codes lie on either side of c, so what rounding t costs is not multiplied by their
mean.  Of its own group, s = (q[0] * k[0] + q[1] * k[1] + ...) * f.  The rest is as with other codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    convert,
    f16,
    f32,
    i8,
    i32,
    i64,
    load,
    loop,
    minimum,
    reduce_add,
    splat,
    store,
    u8,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels import attention_codes
from lutra.kernels.attention_codes import CodesRoom, bind_pieces, check_step, products_spec, row_spec
from lutra.kernels.buffers import aligned
from lutra.kernels.cache import BLOCK, QUARTERS, STRIDE, Cache, keys_of
from lutra.kernels.code_passes import NUM_SUMS, Shape, Weights, gather, num_strides, products, weigh
from lutra.kernels.codes import CODES
from lutra.kernels.items import Item, items
from lutra.kernels.pieces import PIECE, PIECE_BLOCKS, factor, largest_divisor
from lutra.kernels.records import merged_pieces, steps_of
from lutra.kernels.rope import padded
from lutra.kernels.rope_codes import queries_spec, store_query, vectors
from lutra.kernels.rope_kivi import recent_of

SHARED = 4  # heads, at most, that read floats of the cache together


def attention_spec(q: np.ndarray, cache: Cache, position: int, scale: float | None = None) -> np.ndarray:
    """Attention of queries f32 [rows, heads, D], which stand at position, position + 1, ...: f32 [rows, heads, D]."""
    by = np.float32(factor(scale, cache.head_dim))
    kv = np.arange(q.shape[1]) // (q.shape[1] // cache.kv_heads)
    every = [partial(_scores_spec, row, cache, position + i, kv, by) for i, row in enumerate(q)]
    return np.stack([row_spec(cache, position + i, kv, scores) for i, scores in enumerate(every)])


def _scores_spec(
    q: np.ndarray, cache: Cache, position: int, kv: np.ndarray, scale: np.float32, step: int
) -> np.ndarray:
    """Scores of a block of 64 positions, 0 for groups after the row's own: f32 [heads, 64]."""
    size = CODES[cache.kind].group
    found = np.zeros((len(q), STRIDE // size, size), np.float32)
    for i in range(STRIDE // size):
        group = step * STRIDE // size + i
        if group < position // size:
            codes = keys_of(cache, step)[kv, i * size : (i + 1) * size]
            found[:, i] = _coded_spec(q, cache, group, kv, codes, scale)
        elif group == position // size:
            keys = recent_of(cache, group)[kv]  # [heads, D, positions]
            for d in range(q.shape[1]):
                found[:, i] = found[:, i] + q[:, d, None] * keys[:, d]
            found[:, i] = found[:, i] * scale
    return found.reshape(len(q), STRIDE)


def _coded_spec(
    q: np.ndarray, cache: Cache, group: int, kv: np.ndarray, codes: np.ndarray, scale: np.float32
) -> np.ndarray:
    """Scores of a whole group, whose codes are uint8 [heads, positions, D]: f32 [heads, positions]."""
    kind = CODES[cache.kind]
    centre = np.float32(kind.levels / 2)
    ks, km = cache.key_scales[kv, group].astype(np.float32).transpose(1, 0, 2)[..., : q.shape[1]]  # [heads, D]
    integers, unit, total = queries_spec(q * ks, kind)
    base = tree_sum(q * (km + ks * centre)) * scale
    found = products_spec(integers.transpose(1, 0, 2), codes) - (total * centre)[:, None]
    return found * (unit * scale)[:, None] + base[:, None]


# ---- the kernel -----------------------------------------------------------------------------------------------------


@kernel
def attention_kivi(
    q: Pointer[f32],
    recent: Pointer[f16],
    keys: Pointer[u8],
    values: Pointer[u8],
    key_scales: Pointer[f16],
    value_scales: Pointer[f16],
    integers: Pointer[i8],
    query_codes: Pointer[i32],
    query_scales: Pointer[f32],
    bases: Pointer[f32],
    scores: Pointer[f32],
    weights: Pointer[i32],
    units: Pointer[f32],
    wide_scales: Pointer[f32],
    parts: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    q_stride: i64,
    y_stride: i64,
    blocks: i64,
    recent_groups: i64,
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

    integers, query_codes   the same bytes: one query of every slot, as the group at hand wants it
    together, span          vectors of codes that meet the queries of a tile at once: of positions, of elements
    """
    shape = Shape(CODES[kind], heads, head_dim, tile, together, span)
    queries = Rows(q, q_stride, integers, query_codes, query_scales, bases, scale)
    integer_weights = Weights(scores, weights, units, parts, wide_scales)
    sizes = dict(heads=heads, kv_heads=kv_heads, max_rows=rows, split=split, record=shape.record)
    for item in items(state, task, pieces, **sizes):
        for piece in merged_pieces(item, parts, y, y_stride, NUM_SUMS, head_dim):
            block = item.kv * blocks + piece * PIECE_BLOCKS
            _score_codes(item, piece, shape, queries, keys, key_scales, block, scores, values)
            _score_recent(item, piece, shape, queries, recent, recent_groups, scores)
            weigh(item, piece, shape, integer_weights, value_scales, block)
            gather(item, piece, shape, integer_weights, values, block, keys, blocks)


@dataclass(frozen=True)
class Rows:
    """The queries of a step, what becomes of them by slot, and what scores are multiplied with."""

    q: Value
    stride: Value
    integers: Value
    codes: Value
    scales: Value
    bases: Value
    scale: Value


def _score_codes(
    item: Item, piece: Value, shape: Shape, rows: Rows, keys: Value, key_scales: Value, block: Value, scores: Value,
    values: Value,
) -> None:  # fmt: skip
    """Scores of the whole groups of a piece before the last row's, -infinity for what comes after them."""
    steps, tile, together = shape.kind.group // BLOCK, shape.tile, shape.together
    last = (item.end - 1) // BLOCK // steps * steps - piece * PIECE_BLOCKS
    for slot in loop(0, item.whole_tiles(tile)):
        for quarter in loop(last, num_strides(item, piece) * QUARTERS):
            at = (item.first_slot + slot) * PIECE + quarter * BLOCK
            store(scores, at, const(float("-inf"), f32, BLOCK))
    for first in loop(0, minimum(last, PIECE_BLOCKS), steps):
        group = (block + first) // steps
        for slot in loop(0, item.whole_tiles(tile)):
            _prepare(item, slot, shape, rows, key_scales, group * (2 * padded(shape.head_dim)))
        for start in loop(0, steps, together):
            quarter = first + start
            for slot in loop(0, item.num_slots, tile):
                indices = [item.first_slot + slot + i for i in range(tile)]
                found = products(item, shape, rows.codes, indices, keys, block + quarter, values)
                for i, ((row, _), index) in enumerate(zip(item.queries(slot, tile), indices, strict=True)):
                    unit, shift = (splat(load(rows.scales, index * 2 + j), BLOCK) for j in range(2))
                    base = splat(load(rows.bases, index), BLOCK)
                    for b in range(together):
                        score = (found[i][b] - shift) * unit + base
                        store(scores, index * PIECE + (quarter + b) * BLOCK, item.seen(row, piece, quarter + b, score))


def _prepare(item: Item, slot: Value, shape: Shape, rows: Rows, scales: Value, at: Value) -> None:
    """The query of a slot for a group whose scales begin at `at`: integers, u * f, c * their sum, base * f."""
    ((row, head),) = item.queries(slot, 1)
    centre, columns, own = shape.kind.levels / 2, padded(shape.head_dim), item.first_slot + slot
    scaled, base = [], const(0.0, f32, NUM_LANES)
    for i, x in enumerate(vectors(rows.q, row * rows.stride + head * shape.head_dim, shape.head_dim, 0.0)):
        ks, km = (convert(load(scales, at + j * columns + i * NUM_LANES, NUM_LANES), f32) for j in range(2))
        scaled.append(x * ks)
        base = base + x * (km + ks * centre)
    store_query(scaled, rows.integers, rows.scales, own, columns, shape.kind)
    store(rows.scales, own * 2, load(rows.scales, own * 2) * rows.scale)
    store(rows.scales, own * 2 + 1, load(rows.scales, own * 2 + 1) * centre)
    store(rows.bases, own, reduce_add(base) * rows.scale)


def _score_recent(
    item: Item, piece: Value, shape: Shape, rows: Rows, recent: Value, recent_groups: Value, scores: Value
) -> None:
    """Scores of every query and the positions of its row's own group, if they lie in this piece."""
    size, head_dim = shape.kind.group, shape.head_dim
    steps, shared = size // BLOCK, largest_divisor(item.group, SHARED)
    for slot in loop(0, item.whole_tiles(shape.tile), shared):
        queries = item.queries(slot, shared)  # heads of one row
        row, _ = queries[0]
        own = (item.position + row) // size
        with when((own // (PIECE // size)).equals(piece)):
            block = (item.kv * recent_groups + own % recent_groups) * steps
            sums = [[var(const(0.0, f32, BLOCK)) for _ in range(steps)] for _ in queries]
            for d in loop(0, head_dim):
                places = [((block + b) * head_dim + d) * BLOCK for b in range(steps)]
                ks = [convert(load(recent, place, BLOCK), f32) for place in places]
                for (_, head), accs in zip(queries, sums, strict=True):
                    x = splat(load(rows.q, row * rows.stride + head * head_dim + d), BLOCK)
                    for acc, k in zip(accs, ks, strict=True):
                        acc += x * k
            for i, accs in enumerate(sums):
                for b, acc in enumerate(accs):
                    quarter = own * steps - piece * PIECE_BLOCKS + b
                    score = item.seen(row, piece, quarter, acc.get() * splat(rows.scale, BLOCK))
                    store(scores, (item.first_slot + slot + i) * PIECE + quarter * BLOCK, score)


@dataclass(frozen=True)
class KiviRoom(CodesRoom):
    """And what a group wants of the queries of a block.

    integers      i8 [TASKS, queries of a block, parts, columns]
    query_scales  f32 [TASKS, queries of a block, 2]     the value of 1 times f, c times the sum of the integers
    bases         f32 [TASKS, queries of a block]
    """

    integers: np.ndarray
    query_scales: np.ndarray
    bases: np.ndarray


def allocate(cache: Cache, rows: int, heads: int) -> KiviRoom:
    """Room for steps of at most `rows` rows over caches of this shape."""
    room = attention_codes.allocate(cache, rows, heads)
    queries = room.weights.shape[:2]
    integers = aligned((*queries, CODES[cache.kind].parts, padded(cache.head_dim)), np.int8)
    return KiviRoom(**vars(room), integers=integers, query_scales=aligned((*queries, 2), np.float32),
                    bases=aligned(queries, np.float32))  # fmt: skip


def bind(
    q: np.ndarray,
    cache: Cache,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    room: KiviRoom | None = None,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    sums: int | None = None,
) -> list[Step]:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    q           f32 [rows, stride]   rotated query heads side by side (the front of the q | k | v rows)
    cache       holding what rope_kivi.bind, the steps before, stored
    The others  as for attention_codes.bind.  Raises KernelError when shapes disagree.
    """
    check_step(cache, y, state, heads)
    room = room or allocate(cache, len(y), heads)
    args, static = bind_pieces(cache, y, state, heads, room, isa, tile, sums)
    if q.shape[1] < heads * cache.head_dim or len(q) < len(y):
        raise KernelError(
            f"expected rows of at least {heads * cache.head_dim} columns, and as many of q as of y, got q {q.shape} "
            f"and y {y.shape}; widen them"
        )
    args |= dict(q=q, q_stride=q.shape[1], recent=cache.recent, recent_groups=cache.recent_groups)
    args |= dict(integers=room.integers, query_codes=room.integers.view(np.int32), query_scales=room.query_scales)
    args |= dict(bases=room.bases, scale=factor(scale, cache.head_dim))
    launch = attention_kivi.bind(args, isa, **static)
    return steps_of(launch, room, y, state, heads=heads, head_dim=cache.head_dim, num_sums=NUM_SUMS, isa=isa)
