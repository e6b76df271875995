"""The indices of a weight turned into codes of 8 bits in mad order: what many rows of activations multiply with.

One task is 128 rows times 64 vectors along K.  A code is 128 plus the sum of the books' levels, as VectorWeight.as_int8
has it; the matmul that follows reads codes that are in the cache as often as there are blocks of rows.

For each place in a vector the levels of 64 rows are looked up at once, one row in a byte; four places then become the
words of 64 rows in two rounds of interleaving, within the 16 rows of a pair and side:

    a0 a1 a2 ..   b0 b1 b2 ..   c0 ..   d0 ..      ->      a0 b0 a1 b1 ..   c0 d0 ..      ->      a0 b0 c0 d0 a1 b1 ..
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    bitcast,
    i64,
    load,
    lookup,
    loop,
    minimum,
    select,
    shuffle,
    store,
    u8,
    u16,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.catalog import int8
from lutra.formats.vectors import CENTROIDS, VectorFormat
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight, round_up
from lutra.kernels.tiles_vector import (
    PAIRS,
    PART_BYTES,
    PLACE_BYTES,
    SIDE,
    TILE,
    book_bytes,
    parts_of,
    side_bytes,
    sides_of,
)

VECTORS = 64  # of a task
HALF = CENTROIDS // 2  # entries of one lookup
WORD = 4  # codes of a row that lie together


@kernel
def vector_expand(codes: Pointer[u8], books: Pointer[u8], out: Pointer[u8], vectors: i64, task: i64, *, format, sides):
    """`vectors` counts those of a row of weights."""
    pieces = (vectors + (VECTORS - 1)) // VECTORS
    tile, first = task // pieces, task % pieces * VECTORS
    together = max(WORD // format.length, 1)  # vectors that make whole words
    for vector in loop(first, minimum(first + VECTORS, vectors), together):
        for side in range(2):
            start = (tile * vectors + vector) * (format.terms * TILE) + side * SIDE
            levels = []
            for each in range(together):
                levels += look_up(codes, start + each * format.terms * TILE, books, side % sides, format)
            for first_place in range(0, len(levels), WORD):
                column = vector * format.length + first_place
                store_words(out, levels[first_place : first_place + WORD], tile, column, side, vectors * format.length)


def look_up(codes: Value, start: Value, books: Value, side: int, format: VectorFormat) -> list[Value]:
    """The codes of 64 rows, u8x64, for each place in a vector."""
    found: list[Value] = []
    for term in range(format.terms):
        index = load(codes, start + term * TILE, SIDE)
        low, is_upper = index & (HALF - 1), index >= HALF
        first = side * side_bytes(format) + term * book_bytes(format) + parts_of(format) * PART_BYTES
        for place in range(format.length):
            lower, upper = (
                lookup(load(books, first + place * PLACE_BYTES + half * HALF, HALF), low)
                for half in range(2)
            )
            level = select(is_upper, upper, lower)
            if term:
                found[place] = (found[place] + level) ^ 128  # both have 128 added
            else:
                found.append(level)
    return found


def store_words(out: Value, places: list[Value], tile: Value, column: Value, side: int, row_bytes: Value) -> None:
    """Store four codes of each of 64 rows, u8x64 each: 4 rows of 4 pairs at a time."""
    halves = [interleaved(*places[:2]), interleaved(*places[2:])]  # [a b, c d][rows 0-7, rows 8-15]
    quarters = [
        quarter for ab, cd in zip(*halves, strict=True) for quarter in interleaved(bitcast(ab, u16), bitcast(cd, u16))
    ]
    for pair in range(PAIRS):
        at = (tile * PAIRS + pair) * (PAIR * row_bytes) + column * PAIR + side * ROWS * WORD
        for number, quarter in enumerate(quarters):
            words = bitcast(quarter, u8)
            store(out, at + number * ROWS, shuffle(words, words, range(pair * ROWS, (pair + 1) * ROWS)))


def interleaved(a: Value, b: Value) -> tuple[Value, Value]:
    """Elements of a and b in turn within every 16 bytes: those of its lower half, and those of its upper half."""
    lanes = a.type.lanes
    each = lanes // PAIRS
    low, high = (
        [first + half * each // 2 + i // 2 + lanes * (i % 2) for first in range(0, lanes, each) for i in range(each)]
        for half in range(2)
    )
    return shuffle(a, b, low), shuffle(a, b, high)


def expanded_bytes(weight: TiledWeight) -> int:
    """Bytes of the codes of a weight in vector order, whole tiles."""
    return round_up(weight.padded_n, TILE) * weight.padded_k


def bind(weight: TiledWeight, out: np.ndarray, *, isa: str | None = None) -> tuple[Step, TiledWeight]:
    """Fill `out`, uint8 of expanded_bytes or more; return the step, and the weight in mad order that it makes.

    raises   KernelError   another order, too little room
    """
    format = weight.format
    if not isinstance(format, VectorFormat):
        raise KernelError(f"expected a weight in vector order, got {weight.order}; make it with tiles_vector")
    size, vectors = expanded_bytes(weight), format.num_vectors(weight.k)
    if out.nbytes < size:
        raise KernelError(f"expected room for {size} codes, got {out.nbytes}; see expanded_bytes")
    args = {"codes": weight.codes, "books": weight.books, "out": out, "vectors": vectors}
    launch = vector_expand.bind(args, isa, format=format, sides=sides_of(weight))
    tasks = -(-weight.num_pairs // PAIRS) * -(-vectors // VECTORS)
    made = TiledWeight("mad", int8(0), "", weight.n, weight.k, weight.padded_n, weight.padded_k,
                       out[: weight.padded_n * weight.padded_k], weight.scales, weight.zeros, weight.mins)  # fmt: skip
    return Step(launch, tasks, 0, weight.codes), made
