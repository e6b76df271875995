"""The three passes of attention over floats: scores of a piece, their weights, weights times values.

What they compute, attention.py says.
"""

from __future__ import annotations

from dataclasses import dataclass

from lutra.compiler.language import Value, const, convert, f32, fma, load, loop, minimum, prefetch, splat, store, var
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.exp2 import exp2
from lutra.kernels.items import NEAR, Item
from lutra.kernels.pieces import PIECE, PIECE_BLOCKS, record_size
from lutra.kernels.records import clear_part, top_score
from lutra.kernels.rope import BLOCK, STRIDE, padded

NUM_SUMS = 1  # of a record: l
UNROLL = 4


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


def score(
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
                        acc.set(fma(x, k, acc.get()))

            whole = head_dim // UNROLL * UNROLL
            for d in loop(0, whole, UNROLL):
                for i in range(UNROLL):
                    add(d, i)
            for i in range(whole, head_dim):
                add(0, i)
            for i, ((row, _), accs) in enumerate(zip(queries, sums, strict=True)):
                at = (item.first_slot + slot + i) * PIECE + block * BLOCK
                for b, acc in enumerate(accs):
                    found = acc.get() * splat(scale, BLOCK)
                    store(scores, at + b * BLOCK, item.seen(row, piece, block + b, found))


def weigh(item: Item, piece: Value, shape: Shape, scores: Value, parts: Value) -> None:
    """Scores become weights; their maximum, their sum and zeros become the record of the piece."""
    num_blocks, tile = item.num_blocks(piece), shape.tile
    for slot in loop(0, item.whole_tiles(tile)):
        (query,) = item.queries(slot, 1)
        at, record = (item.first_slot + slot) * PIECE, item.part(slot, query, piece)
        clear_part(parts, record, shape.record)
        m = top_score(scores, at, num_blocks)
        total = var(const(0.0, f32, BLOCK))
        for block in loop(0, num_blocks):
            p = exp2(load(scores, at + block * BLOCK, BLOCK) - m)
            store(scores, at + block * BLOCK, p)
            total += p
        store(parts, record, m)
        store(parts, record + NUM_LANES, total.get())


def gather(
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
                                acc.set(fma(p, v, acc.get()))
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
