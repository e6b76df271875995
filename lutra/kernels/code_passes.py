"""The three passes of attention over codes: scores of a piece, their integer weights, weights times codes.

What they compute, attention_codes.py says.
"""

from __future__ import annotations

from dataclasses import dataclass

from lutra.compiler.language import (
    Value,
    Var,
    bitcast,
    const,
    convert,
    dot4,
    f32,
    i8,
    i32,
    load,
    loop,
    maximum,
    prefetch,
    reduce_max,
    splat,
    store,
    var,
)
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.cache import BLOCK, QUARTERS, STRIDE
from lutra.kernels.codes import SMALLEST, Codes, code, low_integers, signed_bytes
from lutra.kernels.exp2 import exp2
from lutra.kernels.items import NEAR, Item
from lutra.kernels.pieces import PIECE, PIECE_BLOCKS, record_size
from lutra.kernels.records import clear_part, top_score
from lutra.kernels.rotary import chunks

NUM_SUMS = 2  # of a record: l and b
STRIDES = PIECE // STRIDE


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


def score(
    item: Item, piece: Value, shape: Shape, rows: Rows, keys: Value, scales: tuple[Value, Value],
    block: Value, scores: Value, values: Value,
) -> None:  # fmt: skip
    """Scores of all queries of an item and the positions of a piece; -infinity for those a row does not see.

    keys and values, and their two scales, lie alike: while keys are read, values are asked for.
    """
    together = shape.together
    for quarter in loop(0, num_strides(item, piece) * QUARTERS, together):
        for slot in loop(0, item.num_slots, shape.tile):
            queries = item.queries(slot, shape.tile)
            indices = [row * shape.heads + head for row, head in queries]
            found = products(item, shape, rows.codes, indices, keys, block + quarter, values)
            for b in range(together):
                at = (block + quarter + b) * (2 * BLOCK)
                if item.piece is not None:  # scales of the next piece of keys, and of these positions' values
                    prefetch(scales[0], at + PIECE_BLOCKS * (2 * BLOCK), 2)
                    prefetch(scales[1], at)
                ks, km = (convert(load(scales[0], at + i * BLOCK, BLOCK), f32) for i in range(2))
                for i, ((row, _), index) in enumerate(zip(queries, indices, strict=True)):
                    unit = load(rows.scales, index * 2) * rows.scale
                    offset = unit * load(rows.scales, index * 2 + 1)
                    score = found[i][b] * (ks * splat(unit, BLOCK)) + km * splat(offset, BLOCK)
                    at = (item.first_slot + slot + i) * PIECE + (quarter + b) * BLOCK
                    store(scores, at, item.seen(row, piece, quarter + b, score))


def products(
    item: Item, shape: Shape, codes: Value, indices: list[Value], keys: Value, block: Value, values: Value
) -> list[list[Value]]:
    """f32x16 of the integers of queries, by their numbers in `codes`, times `together` blocks: [query][block]."""
    kind, words, together = shape.kind, shape.key_words, shape.together
    ahead = words * (4 * STRIDE) if item.piece is None else NEAR
    accs = [_Sums(together, kind.parts) for _ in indices]
    for word in loop(0, words):
        places = [((block + i) * words + word) * (4 * BLOCK) for i in range(together)]
        stored = [_fetch(keys, place, ahead) for place in places]
        if item.piece is not None:  # a piece of values is as large as one of keys, and read next
            for place in places:
                prefetch(values, place, 2)
        for i in range(kind.per_byte):
            fields = [code(v, i, kind) for v in stored]
            for index, acc in zip(indices, accs, strict=True):
                for part in range(kind.parts):
                    at = (index * kind.parts + part) * shape.query_words + word * kind.per_byte + i
                    acc.add(part, fields, load(codes, at), kind)
    return [acc.values() for acc in accs]


def num_strides(item: Item, piece: Value) -> Value:
    """Steps of 64 positions of a piece that the last row sees."""
    return (item.num_blocks(piece) + (QUARTERS - 1)) // QUARTERS


def weigh(item: Item, piece: Value, shape: Shape, room: Weights, scales: Value, block: Value) -> None:
    """Scores become integer weights; their maximum, their sums and zeros become the record of the piece."""
    strides, tile, kind = num_strides(item, piece), shape.tile, shape.kind
    own_scales = item.task * (2 * PIECE)
    for quarter in loop(0, strides * QUARTERS):
        for i in range(2):
            wide = convert(load(scales, (block + quarter) * (2 * BLOCK) + i * BLOCK, BLOCK), f32)
            store(room.scales, own_scales + i * PIECE + quarter * BLOCK, wide)
    for slot in loop(0, item.whole_tiles(tile)):
        (query,) = item.queries(slot, 1)
        own = item.first_slot + slot
        record = item.part(slot, query, piece)
        clear_part(room.parts, record, shape.record)
        m = top_score(room.scores, own * PIECE, num_strides(item, piece) * QUARTERS)
        sums = [var(const(0.0, f32, BLOCK)) for _ in range(NUM_SUMS)]
        for step in loop(0, strides):
            ws = []
            for quarter in range(QUARTERS):
                score = load(room.scores, own * PIECE + step * STRIDE + quarter * BLOCK, BLOCK)
                p = exp2(score - m)
                at = own_scales + step * STRIDE + quarter * BLOCK
                vs, vm = (load(room.scales, at + i * PIECE, BLOCK) for i in range(2))
                sums[0] += p
                sums[1] += p * vm
                ws.append(p * vs)
            largest = maximum(reduce_max(maximum(maximum(ws[0], ws[1]), maximum(ws[2], ws[3]))), SMALLEST)
            inverse = splat(float(kind.most) / largest, BLOCK)
            store(room.units, own * STRIDES + step, largest * (1 / kind.most))
            for quarter, w in enumerate(ws):
                for part, narrow in enumerate(signed_bytes(low_integers(w, inverse), kind.parts)):
                    at = (own * kind.parts + part) * (PIECE // 4) + step * (STRIDE // 4) + quarter * (BLOCK // 4)
                    store(room.words, at, bitcast(narrow, i32))
        store(room.parts, record, m)
        for i, acc in enumerate(sums):
            store(room.parts, record + (1 + i) * NUM_LANES, acc.get())


def gather(
    item: Item, piece: Value, shape: Shape, room: Weights, values: Value, block: Value, keys: Value, blocks: Value
) -> None:  # fmt: skip
    """out of the record of the piece = weights times codes, 64 positions at a time."""
    kind, vectors, size = shape.kind, shape.vectors, STRIDE * NUM_LANES
    following = block if item.piece is None else item.next_block(blocks)
    ahead = vectors * size if item.piece is None else NEAR
    for step in loop(0, num_strides(item, piece)):
        for vector in loop(0, vectors, shape.span):
            start = (block // QUARTERS + step) * (vectors * size) + vector * size
            coming = (following // QUARTERS + step) * (vectors * size) + vector * size
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
                    codes = [[code(v, i, kind) for v in stored] for i in range(kind.per_byte)]
                    for h, acc in enumerate(accs):
                        for part in range(kind.parts):
                            at = ((own + h) * kind.parts + part) * (PIECE // 4) + step * (STRIDE // 4) + quad
                            word = load(room.words, at)
                            for i in range(kind.per_byte):
                                acc[i].add(part, codes[i], word, kind)
                totals = []
                for h, (query, acc) in enumerate(zip(queries, accs, strict=True)):
                    unit = splat(load(room.units, (own + h) * STRIDES + step), NUM_LANES)
                    first = item.part(slot + h, query, piece) + (1 + NUM_SUMS) * NUM_LANES
                    for i in range(kind.per_byte):
                        for j, found in enumerate(acc[i].values()):
                            at = first + ((vector + j) * kind.per_byte + i) * NUM_LANES
                            totals.append((at, load(room.parts, at, NUM_LANES) + found * unit))
                for at, total in totals:  # all are loaded by now: queries that fill a tile share the last one's record
                    store(room.parts, at, total)


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
