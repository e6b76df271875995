"""The indices of a weight turned into codes of 8 bits in mad order: what many rows of activations multiply with.

One task is 128 rows times 64 vectors along K.  A code is 128 plus the sum of the books' levels, as VectorWeight.as_int8
has it; the matmul that follows reads codes that are in the cache as often as there are blocks of rows.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, Value, convert, i64, load, loop, minimum, store, u8, when
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.catalog import int8
from lutra.formats.vectors import VectorFormat
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight
from lutra.kernels.tiles_vector import PAIRS, PART_BYTES, SIDE, TILE, parts_of, sides_of

VECTORS = 64  # of a task


@kernel
def vector_expand(
    codes: Pointer[u8], books: Pointer[u8], out: Pointer[u8], pairs: i64, vectors: i64, task: i64, *, format, sides
):
    """`pairs` counts 32 weight rows, `vectors` those of a row of weights."""
    pieces = (vectors + (VECTORS - 1)) // VECTORS
    tile, first = task // pieces, task % pieces * VECTORS
    row_bytes = vectors * format.length
    for pair in range(PAIRS):
        at = tile * PAIRS + pair
        with when(at < pairs):
            for vector in loop(first, minimum(first + VECTORS, vectors)):
                start = (tile * vectors + vector) * (format.terms * TILE) + pair * ROWS
                for side in range(2):
                    to = at * (PAIR * row_bytes) + word_of(vector, format) + side * ROWS * 4
                    for row in loop(0, ROWS):
                        places = [
                            index_of(codes, start + (term * TILE + side * SIDE) + row) * 4
                            + (side % sides * format.terms + term) * parts_of(format) * PART_BYTES
                            for term in range(format.terms)
                        ]
                        expand(books, places, out, to + row * 4, format)


def index_of(codes: Value, at: Value) -> Value:
    return convert(load(codes, at), i64)


def word_of(vector: Value, format: VectorFormat) -> Value:
    """Where the first code of a vector stands, within the rows of a pair: in words of four codes, see tiles.py."""
    if format.length == 2:
        return vector // 2 * (4 * PAIR) + vector % 2 * 2
    return vector * (format.length * PAIR)


def expand(books: Value, places: list[Value], out: Value, to: Value, format: VectorFormat) -> None:
    """Add the levels of one row's vector and store them, four at a time."""
    lanes = min(format.length, 4)
    for part in range(max(format.length // 4, 1)):
        total = load(books, places[0] + part * PART_BYTES, lanes)
        for place in places[1:]:
            total = (total + load(books, place + part * PART_BYTES, lanes)) ^ 128  # both have 128 added
        store(out, to + part * (4 * PAIR), total)


def expanded_bytes(weight: TiledWeight) -> int:
    """Bytes of the codes of a weight in vector order."""
    return weight.padded_n * weight.padded_k


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
    args = {"codes": weight.codes, "books": weight.books, "out": out, "pairs": weight.num_pairs, "vectors": vectors}
    launch = vector_expand.bind(args, isa, format=format, sides=sides_of(weight))
    tasks = -(-weight.num_pairs // PAIRS) * -(-vectors // VECTORS)
    made = TiledWeight("mad", int8(0), "", weight.n, weight.k, weight.padded_n, weight.padded_k, out[:size],
                       weight.scales, weight.zeros, weight.mins)  # fmt: skip
    return Step(launch, tasks, 0, weight.codes), made
