"""Causal attention of one step's queries over a KV cache of floats, with grouped heads.

Work is cut as pieces.py says.  Of a query and a piece of 256 positions, 16 positions in lanes:

    s     = (q[0] * k[0] + q[1] * k[1] + ...) * (log2(e) * scale), one after the other
    m     = max s                      positions after the row's own do not take part
    p     = 2**(s - m)
    l     = p added up, 16 lanes
    out   = p[0] * v[0] + p[1] * v[1] + ..., one after the other

then pieces are merged, and y = out / sum of l.  What the cache holds after the row's position does not matter as long
as it is finite.  A register tile is some queries times some vectors, of positions in s and of elements in out: a vector
of the cache is converted once for all queries of the tile.

Source    Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867; and those of pieces.py
"""

from dataclasses import dataclass

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import Kernel, kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    convert,
    f32,
    i32,
    i64,
    load,
    loop,
    maximum,
    minimum,
    prefetch,
    reduce_max,
    select,
    splat,
    store,
    var,
)
from lutra.compiler.launch import Step
from lutra.compiler.types import DType
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.buffers import check_state
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
from lutra.kernels.rope import BLOCK, FLOATS, STRIDE, float_name, padded
from lutra.kernels.softmax import iota

NUM_SUMS = 1  # of a record: l
UNROLL = 4


def attention_spec(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, scale: float | None = None
) -> np.ndarray:
    """Attention in NumPy, in the kernel's order.

    q              f32 [M, heads, D]       rows at position, position + 1, ...
    keys, values   as in rope.py
    returns        f32 [M, heads, D]
    """
    _, heads, head_dim = q.shape
    kv = np.arange(heads) // (heads // len(keys))
    by = np.float32(factor(scale, head_dim))
    return np.stack([_row_spec(row, keys[kv], values[kv], position + i, by) for i, row in enumerate(q)])


def _row_spec(q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, scale: np.float32) -> np.ndarray:
    total = empty_part(*q.shape[:1], NUM_SUMS, q.shape[1])
    for first in range(0, position + 1, PIECE):
        k = keys[:, first // BLOCK : (first + PIECE) // BLOCK].astype(np.float32)  # [heads, blocks, D, 16]
        v = values[:, first : first + PIECE, : q.shape[1]].astype(np.float32)  # [heads, n, D]
        total = merge_spec(total, _part_spec(q, k, v, first, position, scale))
    return total.out / tree_sum(total.sums[:, 0])[:, None]


def _part_spec(q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, position: int, scale: np.float32) -> Part:
    """One piece, whose first position is `first`."""
    dot = np.zeros((len(k), k.shape[1], BLOCK), np.float32)
    for d in range(q.shape[1]):
        dot = dot + q[:, d, None, None] * k[:, :, d]
    m, p = weights_spec(scores_spec(dot.reshape(len(q), -1) * scale, first, position))
    out = np.zeros_like(q)
    for j in range(min(v.shape[1], position + 1 - first)):
        out = out + p[:, j, None] * v[:, j]
    return Part(m, lanes_spec(p)[:, None], out)


def _make(cache: DType) -> Kernel:
    """The kernel for one element type of the cache."""

    @kernel
    def attention(
        q: Pointer[f32],
        keys: Pointer[cache],
        values: Pointer[cache],
        scores: Pointer[f32],
        parts: Pointer[f32],
        y: Pointer[f32],
        state: Pointer[i64],
        q_stride: i64,
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
        cache_dtype,
    ):
        """y of the items of a task; or, split, the records of their pieces."""
        shape = Shape(head_dim, tile, together, span)
        sizes = dict(heads=heads, kv_heads=kv_heads, max_rows=rows, split=split, record=shape.record)
        for item in items(state, task, pieces, **sizes):
            if not split:
                for slot in loop(0, item.num_slots):
                    clear_part(parts, item.total(slot), shape.record)
            for piece in item.pieces():
                _score(item, piece, shape, q, q_stride, keys, blocks, scores, scale, values)
                _weigh(item, piece, shape, scores, parts)
                _gather(item, piece, shape, values, blocks, scores, parts, keys)
                if not split:
                    for slot in loop(0, item.num_slots):
                        merge_part(parts, item.total(slot), item.part(slot, (slot, slot), piece), shape.record)
            if not split:
                for slot in loop(0, item.num_slots):
                    ((row, head),) = item.queries(slot, 1)
                    finish(parts, item.total(slot), y, row * y_stride + head * head_dim, NUM_SUMS, head_dim)

    return attention


@dataclass(frozen=True)
class Shape:
    """A head, and the register tiles: `tile` queries times `together` blocks of scores, times `span` vectors of out."""

    head_dim: int
    tile: int
    together: int
    span: int

    @property
    def record(self) -> int:
        return record_size(NUM_SUMS, padded(self.head_dim))


def _score(
    item: Item, piece: Value, shape: Shape, q: Value, q_stride: Value, keys: Value, blocks: Value, scores: Value,
    scale: Value, values: Value,
) -> None:  # fmt: skip
    """Scores of all queries of an item and the positions of a piece; -infinity for those a row does not see."""
    head_dim, tile, size = shape.head_dim, shape.tile, shape.head_dim * BLOCK
    ahead = _ahead(item, keys, shape.together * size)
    for block in loop(0, item.num_blocks(piece), shape.together):
        first = item.kv * blocks + piece * PIECE_BLOCKS + block
        for slot in loop(0, item.num_slots, tile):
            queries = item.queries(slot, tile)
            sources = [row * q_stride + head * head_dim for row, head in queries]
            sums = [[var(const(0.0, f32, BLOCK)) for _ in range(shape.together)] for _ in range(tile)]

            def add(d: Value | int, i: int) -> None:
                place = first * size + (d * BLOCK + i * BLOCK)  # noqa: B023
                ks = [_vector(keys, place + b * size, i, ahead) for b in range(shape.together)]
                if item.piece is not None and i % _per_line(values) == 0:  # the values are as many, and read next
                    coming = first * (BLOCK * padded(head_dim)) + (d * BLOCK + i * BLOCK)  # noqa: B023
                    for b in range(shape.together):
                        prefetch(values, coming + b * (BLOCK * padded(head_dim)), 2)
                for source, accs in zip(sources, sums, strict=True):  # noqa: B023
                    x = splat(load(q, source + d + i), BLOCK)
                    for acc, k in zip(accs, ks, strict=True):
                        acc += x * k

            whole = head_dim // UNROLL * UNROLL
            for d in loop(0, whole, UNROLL):
                for i in range(UNROLL):
                    add(d, i)
            for i in range(whole, head_dim):
                add(0, i)
            for i, ((row, _), accs) in enumerate(zip(queries, sums, strict=True)):
                at = (item.first_slot + slot + i) * PIECE + block * BLOCK
                for b, acc in enumerate(accs):
                    offset = item.position + row - piece * PIECE - (block + b) * BLOCK
                    seen = splat(convert(offset, i32), BLOCK) >= iota(BLOCK)
                    score = held(acc.get() * splat(scale, BLOCK))
                    store(scores, at + b * BLOCK, select(seen, score, float("-inf")))


def _weigh(item: Item, piece: Value, shape: Shape, scores: Value, parts: Value) -> None:
    """Scores become weights; their maximum, their sum and zeros become the record of the piece."""
    num_blocks, tile = item.num_blocks(piece), shape.tile
    for slot in loop(0, (item.num_slots + (tile - 1)) // tile * tile):
        (query,) = item.queries(slot, 1)
        at, record = (item.first_slot + slot) * PIECE, item.part(slot, query, piece)
        clear_part(parts, record, shape.record)
        top = var(const(float("-inf"), f32, BLOCK))
        for block in loop(0, num_blocks):
            top.set(maximum(top, load(scores, at + block * BLOCK, BLOCK)))
        m = splat(reduce_max(top), BLOCK)
        total = var(const(0.0, f32, BLOCK))
        for block in loop(0, num_blocks):
            p = exp2(load(scores, at + block * BLOCK, BLOCK) - m)
            store(scores, at + block * BLOCK, p)
            total += p
        store(parts, record, m)
        store(parts, record + NUM_LANES, total.get())


def _gather(
    item: Item, piece: Value, shape: Shape, values: Value, blocks: Value, scores: Value, parts: Value, keys: Value
) -> None:  # fmt: skip
    """out of the record of the piece = weights times values."""
    # STRIDE positions at a time, whose values stay in the nearest cache from one tile to the next
    columns, width, end = padded(shape.head_dim), shape.span * NUM_LANES, item.num_blocks(piece) * BLOCK
    first = (item.kv * blocks + piece * PIECE_BLOCKS) * BLOCK
    ahead = _ahead(item, values, BLOCK * columns)
    for begin in loop(0, end, STRIDE):
        for start in loop(0, columns, width):
            for slot in loop(0, item.num_slots, shape.tile):
                queries = item.queries(slot, shape.tile)
                places = [
                    item.part(slot + i, query, piece) + ((1 + NUM_SUMS) * NUM_LANES + start)
                    for i, query in enumerate(queries)
                ]
                outs = [
                    [var(load(parts, place + i * NUM_LANES, NUM_LANES)) for i in range(shape.span)] for place in places
                ]
                for j in loop(begin, minimum(begin + STRIDE, end), UNROLL):
                    for u in range(UNROLL):
                        at = (first + j + u) * columns + start
                        vs = [_vector(values, at + i * NUM_LANES, i, ahead) for i in range(shape.span)]
                        if item.piece is not None:  # the next piece of keys
                            coming = (item.next_block(blocks) * BLOCK + j + u) * shape.head_dim + start
                            for i in range(0, shape.span, _per_line(keys)):
                                prefetch(keys, coming + i * NUM_LANES, 2)
                        for i, accs in enumerate(outs):
                            p = splat(load(scores, (item.first_slot + slot + i) * PIECE + j + u), NUM_LANES)
                            for acc, v in zip(accs, vs, strict=True):
                                acc += p * v
                for place, accs in zip(places, outs, strict=True):
                    for i, acc in enumerate(accs):
                        store(parts, place + i * NUM_LANES, acc.get())


def _ahead(item: Item, cache: Value, otherwise: int) -> int:
    """Numbers ahead to ask for: few where another loop has brought them into the second cache."""
    return otherwise if item.piece is None else NEAR // cache.type.dtype.size_bytes


def _vector(cache: Value, at: Value, i: int, ahead: int) -> Value:
    """16 numbers of the cache; the line `ahead` numbers further is asked for, once for the vectors i that share it."""
    if i % _per_line(cache) == 0:
        prefetch(cache, at + ahead)
    return convert(load(cache, at, NUM_LANES), f32)


def _per_line(cache: Value) -> int:
    """Vectors of 16 numbers that share a cache line."""
    return max(1, 4 // cache.type.dtype.size_bytes)


KERNELS = {name: _make(dtype) for name, (dtype, _) in FLOATS.items()}

# (queries of a tile, sums of 16 lanes a tile keeps in registers)
TILES = {"avx512": (16, 16), "avxvnni": (4, 4), "avx2": (4, 4), "portable": (2, 2)}


def allocate(keys: np.ndarray, rows: int, heads: int) -> Room:
    """Room for steps of at most `rows` rows over caches of this shape."""
    kv_heads, blocks, head_dim, _ = keys.shape
    cut = cut_for(rows, heads // kv_heads, blocks * BLOCK)
    return allocate_room(cut, heads, kv_heads, NUM_SUMS, padded(head_dim))


def bind(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    heads: int,
    room: Room | None = None,
    scale: float | None = None,
    isa: str | None = None,
    tile: int | None = None,
    sums: int | None = None,
) -> list[Step]:
    """y = attention of rows 0 .. state[0] - 1, which stand at positions state[1] + row of the cache.

    q              f32 [rows, stride]     rotated query heads side by side (the front of the q | k | v rows)
    keys, values   f16, bf16 or f32       one layer's cache, holding every position up to the last row's
    y              f32 [rows, stride]     heads side by side
    room           of `allocate`; default: one for all rows of q
    scale          factor of the scores   default 1 / sqrt(D)
    tile, sums     change the speed, never the result
    Raises KernelError when shapes disagree.
    """
    _check(q, keys, values, y, heads)
    check_state(state)
    kv_heads, blocks, head_dim, _ = keys.shape
    room = room or allocate(keys, len(q), heads)
    name, cut, group = float_name(keys), room.cut, heads // kv_heads
    wanted, registers = TILES.get(targets.choose(isa).isa, TILES["portable"])
    tile, sums = tile_for(cut, group, tile or wanted), sums or registers
    args = {"q": q, "keys": keys, "values": values, "scores": room.scores, "parts": room.parts, "y": y, "state": state}
    args |= {"q_stride": q.shape[1], "y_stride": y.shape[1], "blocks": blocks, "pieces": cut.pieces}
    args |= {"scale": factor(scale, head_dim)}
    static = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "rows": cut.rows, "split": cut.split}
    static |= {"tile": tile, "together": largest_divisor(STRIDE // BLOCK, sums // tile), "cache_dtype": name}
    static |= {"span": largest_divisor(padded(head_dim) // NUM_LANES, sums // tile)}
    step = Step(KERNELS[name].bind(args, isa, **static), TASKS, 0)
    if not cut.split:
        return [step]
    return [step, bind_merge(room, y, state, heads=heads, head_dim=head_dim, num_sums=NUM_SUMS, isa=isa)]


def _check(q: np.ndarray, keys: np.ndarray, values: np.ndarray, y: np.ndarray, heads: int) -> None:
    kv_heads, blocks, head_dim, _ = keys.shape
    if heads % kv_heads:
        raise KernelError(f"expected heads a multiple of kv_heads={kv_heads}, got {heads}; check the model's config")
    if min(q.shape[1], y.shape[1]) < heads * head_dim or len(y) < len(q):
        raise KernelError(
            f"expected rows of at least {heads * head_dim} columns, and as many of y as of q, got q {q.shape} and "
            f"y {y.shape}; widen them"
        )
    if (
        values.shape != (kv_heads, blocks * BLOCK, padded(head_dim))
        or values.dtype != keys.dtype
        or blocks % (STRIDE // BLOCK)
    ):
        raise KernelError(f"keys {keys.shape} and values {values.shape} do not fit; make both with rope.allocate_cache")
