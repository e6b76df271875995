"""y = x @ w.T for weights of vectors: one lookup for 2, 4 or 8 weights.

Meaning: formats/vectors.matmul, bit for bit.  Few rows of activations look up in tables that vector_tables.py makes for
every vector of theirs; many rows multiply: vector_expand.py turns the indices into codes of 8 bits once, and
matmul_mad.py reads those.

One task of the lookup is 128 weight rows times `tile_m` rows of activations.  For every vector along K and each side of
the tile 64 indices are looked up in both planes of a table, 256 bytes each as two of 128.  A plane's bytes are added as
16-bit numbers, all of them and apart from that the odd ones:

    odd  += found >> 8          all += found          even = all - odd * 256          (modulo 2**16)

so a byte costs no widening.  After 256 lookups, at most 255 * 256 < 2**16, both are added up as int32.

Work per 64 rows, vector and row of activations: 4 lookups of 64 lanes, 2 selects, 6 additions and shifts, for `length`
weights of each.  Tables are 512 bytes for each vector: they come from the second cache.
Bounds    |sum| <= 65536 * 128 * 127 < 2**31; what BIAS adds goes out with every block
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    bitcast,
    const,
    convert,
    f32,
    fma,
    i32,
    i64,
    load,
    lookup,
    loop,
    minimum,
    prefetch,
    select,
    shuffle,
    splat,
    u8,
    u16,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.vectors import CENTROIDS, VectorFormat
from lutra.kernels import activations, vector_tables
from lutra.kernels.activations import Activations
from lutra.kernels.epilogue import finish_pair, outputs
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight
from lutra.kernels.tiles_vector import PAIRS, SIDE, TILE, sides_of
from lutra.kernels.vector_tables import BIAS, PLANES, TABLE_BYTES

LOOKUPS = 256  # that 16 bits hold
ENTRIES = CENTROIDS // 2  # of one lookup
PREFETCH_BYTES = 4096


@kernel
def matmul_vector(
    codes: Pointer[u8],
    scales: Pointer[f32],
    tables: Pointer[u8],
    xs: Pointer[f32],
    bias: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    pairs: i64,
    vectors: i64,
    y_stride: i64,
    y_column: i64,
    task: i64,
    *,
    terms,
    sides,
    epilogue,
    has_bias,
    tile_m,
):
    """`pairs` counts 32 weight rows, `vectors` those of a row of weights."""
    tiles = (pairs + (PAIRS - 1)) // PAIRS  # all of them before other rows: tables of few rows stay in the cache
    tile = task % tiles
    rows = [task // tiles * tile_m + m for m in range(tile_m)]
    weight = W(codes, tables, vectors, terms, sides)
    with when(rows[0] < load(state, 0)):
        dots = [[[var(const(0, i32, ROWS)) for _ in range(PAIRS)] for _ in range(2)] for _ in rows]
        block = LOOKUPS // terms
        for first in loop(0, vectors, block):
            end = minimum(first + block, vectors)
            sums = [[[Sum() for _ in range(PLANES)] for _ in range(2)] for _ in rows]
            for vector in loop(first, end):
                for term in range(terms):
                    weight.look_up(sums, tile, rows, vector, term)
            over = splat(convert(end - first, i32) * (BIAS * terms), ROWS)
            for m in range(tile_m):
                for side in range(2):
                    low, high = (sums[m][side][plane].widened() for plane in range(PLANES))
                    for pair, dot in enumerate(dots[m][side]):
                        dot += low[pair] + (high[pair] << 8) - over
        for pair in range(PAIRS):
            at = tile * PAIRS + pair
            with when(at < pairs):
                scale = [load(scales, at * PAIR + side * ROWS, ROWS) for side in range(2)]
                for m, row in enumerate(rows):
                    x_scale = splat(load(xs, row), ROWS)
                    outs = [
                        fma(convert(dots[m][side][pair].get(), f32), scale[side] * x_scale, const(0.0, f32, ROWS))
                        for side in range(2)
                    ]
                    finish_pair(outs, y, row * y_stride + y_column, at, epilogue, bias if has_bias else None)


class Sum:
    """The bytes of 64 rows added up in 16 bits: even and odd lanes apart."""

    def __init__(self) -> None:
        self.all, self.odd = (var(const(0, u16, SIDE // 2)) for _ in range(2))

    def add(self, found: Value) -> None:
        """Add u8x64."""
        pairs = bitcast(found, u16)
        self.all += pairs
        self.odd += pairs >> 8

    def widened(self) -> list[Value]:
        """i32x16 for each 16 rows."""
        odd = self.odd.get()
        even = self.all.get() - (odd << 8)
        half, lanes = ROWS // 2, SIDE // 2
        return [
            convert(shuffle(even, odd, [part * half + i // 2 + lanes * (i % 2) for i in range(ROWS)]), i32)
            for part in range(PAIRS)
        ]


@dataclass(frozen=True)
class W:
    """A weight and its tables: where they lie."""

    codes: Value
    tables: Value
    vectors: Value
    terms: int
    sides: int

    def look_up(self, sums: list[list[list[Sum]]], tile: Value, rows: list[Value], vector: Value, term: int) -> None:
        """Add what the indices of both sides name."""
        start = ((tile * self.vectors + vector) * self.terms + term) * TILE
        for side in range(2):
            prefetch(self.codes, start + (PREFETCH_BYTES + side * SIDE))
            index = load(self.codes, start + side * SIDE, SIDE)
            place, is_upper = index & (ENTRIES - 1), index >= ENTRIES
            for m, row in enumerate(rows):
                book = (side % self.sides) * self.terms + term
                table = ((row * self.vectors + vector) * (self.sides * self.terms) + book) * TABLE_BYTES
                for plane, total in enumerate(sums[m][side]):
                    lower, upper = (
                        lookup(load(self.tables, table + (plane * CENTROIDS + half * ENTRIES), ENTRIES), place)
                        for half in range(2)
                    )
                    total.add(select(is_upper, upper, lower))


def bind(
    weight: TiledWeight,
    x: Activations,
    tables: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    epilogue: str,
    bias: np.ndarray | None = None,
    column: int = 0,
    tile_m: int,
    isa: str | None = None,
) -> list[Step]:
    """Bind y = epilogue(x @ weight.T) by lookup: the tables, then the lookups.

    weight   vector order
    x        Activations allocated for the weight's format, rows a multiple of tile_m
    tables   uint8: room for the tables of a multiple of tile_m rows, vector_tables.tables_bytes; written
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows, which `tables` must have room for
    bias     f32 [padded_n] or None
    Raises KernelError when the buffers do not fit the weight.
    """
    format = weight.format
    if not isinstance(format, VectorFormat):
        raise KernelError(f"expected a weight in vector order, got {weight.order}; make it with tiles_vector")
    written = outputs(weight, y, state, column, epilogue, bias, tile_m)
    activations.check(x, weight, tile_m, "")
    if tables.nbytes < vector_tables.tables_bytes(weight, tile_m):
        raise KernelError(f"expected tables of {tile_m} rows or more, got {tables.nbytes} bytes; see tables_bytes")
    launch = matmul_vector.bind(
        written | dict(
            codes=weight.codes, scales=weight.scales.view(np.float32), tables=tables, xs=x.xs,
            vectors=format.num_vectors(weight.k),
        ),
        isa, terms=format.terms, sides=sides_of(weight), epilogue=epilogue, has_bias=bias is not None, tile_m=tile_m,
    )  # fmt: skip
    made = vector_tables.bind(weight, x, tables, state, isa=isa)
    return [made, Step(launch, -(-weight.num_pairs // PAIRS), tile_m, weight.codes)]
