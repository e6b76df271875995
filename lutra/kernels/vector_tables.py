"""Tables for matmul_vector.py: what every vector of activations gives with every centroid, as two bytes.

    tables   [row of activations][vector][side][book][plane][centroid]       entry + 32768; plane 0 low bytes, 1 high

One task is the vectors of 128 activations of one row.  Meaning: formats/vectors.build_tables; |entry| <= 258 * 127.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    bitcast,
    const,
    convert,
    dot4,
    i8,
    i32,
    i64,
    load,
    loop,
    minimum,
    splat,
    store,
    u8,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.vectors import CENTROIDS, VectorFormat
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import check_state
from lutra.kernels.tiles import ROWS, TiledWeight
from lutra.kernels.tiles_vector import PART_BYTES, book_bytes, parts_of, side_bytes, sides_of

BIAS = 32768  # makes every entry positive
PLANES = 2
TABLE_BYTES = PLANES * CENTROIDS
COLUMNS = 128  # activations of a task


def tables_bytes(weight: TiledWeight, rows: int) -> int:
    """Bytes of the tables of `rows` rows of activations for a weight in vector order."""
    assert isinstance(weight.format, VectorFormat)
    tables = weight.format.num_vectors(weight.k) * sides_of(weight) * weight.format.terms
    return rows * tables * TABLE_BYTES


@kernel
def vector_tables(
    xq: Pointer[i8],
    books: Pointer[u8],
    tables: Pointer[u8],
    state: Pointer[i64],
    xq_stride: i64,
    columns: i64,
    task: i64,
    *,
    format,
    sides,
):
    """`columns` is the weight's padded K."""
    rows = load(state, 0)
    row, first = task % rows, task // rows * COLUMNS
    step = max(format.length, 4)  # activations that are read together
    parts = parts_of(format)
    for column in loop(first, minimum(first + COLUMNS, columns), step):
        x = [splat_four(xq, row * xq_stride + column + four) for four in range(0, step, 4)]
        vector = (row * columns + column) // format.length
        for book in range(sides * format.terms):
            for part in range(parts if format.length == 2 else 1):
                at = ((vector + part) * (sides * format.terms) + book) * TABLE_BYTES
                first_part = book * book_bytes(format) + part * PART_BYTES
                store_table(tables, at, books, first_part, x, half_mask(format, part))


def splat_four(xq: Value, at: Value) -> Value:
    """The same four activations 16 times."""
    return bitcast(splat(bitcast(load(xq, at, 4), i32), ROWS), i8)


def half_mask(format: VectorFormat, part: int) -> int:
    """128 in each byte whose activation a part meets, which level + 128 counts too often; as an i32."""
    return (0x00008080, 0x80800000 - 2**32)[part] if format.length == 2 else 0x80808080 - 2**32


def store_table(tables: Value, at: Value, books: Value, first: Value, x: list[Value], mask: int) -> None:
    """The table of one vector and book, 16 centroids at a time."""
    over = const(0, i32, ROWS)
    for four in x:
        over = dot4(over, bitcast(const(mask, i32, ROWS), u8), four, bound=128)
    start = const(BIAS, i32, ROWS) - over
    for centroid in loop(0, CENTROIDS, ROWS):
        entry = start
        for part, four in enumerate(x):
            levels = load(books, centroid * 4 + (first + part * PART_BYTES), 4 * ROWS)
            entry = dot4(entry, levels, four)
        store(tables, at + centroid, convert(entry & 255, u8))
        store(tables, at + (centroid + CENTROIDS), convert(entry >> 8, u8))


def bind(weight: TiledWeight, x: Activations, tables: np.ndarray, state: np.ndarray, *, isa: str | None = None) -> Step:
    """Fill the tables of a weight in vector order from x.xq, for state[0] rows.

    tables   uint8, tables_bytes(weight, rows) or more
    raises   KernelError   buffers that do not fit the weight
    """
    format = weight.format
    if not isinstance(format, VectorFormat):
        raise KernelError(f"expected a weight in vector order, got {weight.order}; make it with tiles_vector")
    if x.xq.shape[1] != weight.padded_k or tables.nbytes < tables_bytes(weight, 1):
        raise KernelError(f"expected activations of {weight.padded_k} columns and tables of "
                          f"{tables_bytes(weight, 1)} bytes a row, got {x.xq.shape} and {tables.nbytes}; "
                          "allocate both for this weight")  # fmt: skip
    check_state(state)
    assert weight.books.size == sides_of(weight) * side_bytes(format)
    args = {"xq": x.xq, "books": weight.books, "tables": tables, "state": state,
            "xq_stride": x.xq.shape[1], "columns": weight.padded_k}  # fmt: skip
    return Step(vector_tables.bind(args, isa, format=format, sides=sides_of(weight)), -(-weight.padded_k // COLUMNS), 1)
