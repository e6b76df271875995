"""y = x @ w.T for weights of 1 to 4 bits by looking up sums of four activations, one bit plane at a time.

Meaning: formats/integer.matmul, bit for bit.  The integers are those of formats/integer.group_dot_lut:

    lut = sum over planes and quads of table[index] << plane          index: one bit of each of 4 weights
    sum of code * xq = (lut + (2**bits - 1) * xsum) / 2               a table adds where a bit is 1, else subtracts

One task is a tile of 64 weight rows times `tile_m` rows of activations.  For every 32 weights along K and every vector
of 64 index bytes (drawn in tiles_lut.py), eight lookups in each half table are added as bytes, at most 8 * 31 = 248;
then one dot4 with the planes' weights 1, 2, 4, 8 widens the sums and combines the planes.  The halves meet at the end
of a group: lut = low + 32 * high - 512 * number of lookups.

Work per 32 weights along K, tile and row of activations: 16 * bits lookups of 64 lanes and as many additions of bytes.
Bounds    low + 32 * high < 15 * 1024 * K / 4 fits int32 for K < 500,000; QTensor allows 65,536 in a group
Source    T-MAC, arXiv 2407.00088, section 3 (bit-serial lookup; its int8 tables are approximate, these are exact)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Operand,
    Pointer,
    Value,
    Var,
    bitcast,
    const,
    convert,
    dot4,
    f32,
    fma,
    i8,
    i32,
    i64,
    load,
    lookup,
    loop,
    prefetch,
    splat,
    u8,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.kernels import activations
from lutra.kernels.activations import Activations
from lutra.kernels.beside import Beside, Row, terms_of
from lutra.kernels.epilogue import finish_pair, outputs
from lutra.kernels.tiles import CHUNK, ROWS, TiledWeight
from lutra.kernels.tiles_lut import HALF_BITS, TABLE_BIAS, TILE

VECTOR = 64  # index bytes of one pair of quads
PARTS = TILE // ROWS  # int32 vectors that hold the sums of a tile
HALVES = 2  # of a table
ENTRIES = 16  # of a half table, a byte each
HALF_MAX = 2**HALF_BITS - 1
PREFETCH_BYTES = 8192  # ahead in the codes, read straight through: 37 GB/s of 41 that a plain read reaches; 4096: 35

# Vectors of index bytes that share one load of a table.  With 32 registers all; with 16 two, or the byte sums spill:
# 4 bits on AVX2 read 28 GB/s so, 24 with all four.
VECTORS_AT_ONCE = {"avx512": 4, "avxvnni": 2, "avx2": 2, "i8mm": 1, "dotprod": 1, "neon": 1, "portable": 1}

Sums = list[list[list[Var]]]  # i32x16 [row of activations][part of the tile][half of the table]


@kernel
def matmul_lut(
    codes: Pointer[u8],
    scales: Pointer[u8],
    zeros: Pointer[u8],
    mins: Pointer[u8],
    super_scales: Pointer[u8],
    super_mins: Pointer[u8],
    tables: Pointer[u8],
    xs: Pointer[f32],
    sums: Pointer[i32],
    bias: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    pairs: i64,
    chunks: i64,
    y_stride: i64,
    y_column: i64,
    task: i64,
    *,
    format,
    epilogue,
    has_bias,
    tile_m,
    vectors_at_once,
):
    """`pairs` counts 32 weight rows, `chunks` 32 weights along K; y_column is where outputs start in a row of y."""
    blocks = (load(state, 0) + (tile_m - 1)) // tile_m
    tile = task // blocks
    rows = [(task % blocks) * tile_m + m for m in range(tile_m)]
    shape, beside = Shape(format, chunks), Beside(scales, zeros, mins, super_scales, super_mins, chunks, format)
    with when(tile * 2 < pairs):
        outs = [[var(const(0.0, f32, ROWS)) for _ in range(PARTS)] for _ in rows]
        for group in loop(0, shape.num_groups):
            for term in terms_of(format):
                acc = [[[var(const(0, i32, ROWS)) for _ in range(HALVES)] for _ in range(PARTS)] for _ in rows]
                for step in loop(group * shape.group_steps, (group + 1) * shape.group_steps):
                    starts = [shape.table_start(row, step) for row in rows]
                    at = shape.code_start(tile, shape.stored_step(step, group, term))
                    look_up(acc, codes, at, tables, starts, shape, vectors_at_once)
                for m, row in enumerate(rows):
                    xsum, x_scale = shape.inputs(sums, xs, row, group)
                    for part in range(PARTS):
                        place = Row(tile * 2 + part // 2, part % 2 * ROWS, ROWS)
                        dots = code_sums(acc[m][part], xsum, shape)
                        if format.offset == "zeros":
                            dots = dots - beside.zero(place, group) * splat(xsum, ROWS)
                        scale, out = beside.scale(place, group, term) * x_scale, outs[m][part]
                        out.set(fma(convert(dots, f32), scale, out.get()))
            for m, row in enumerate(rows if format.offset == "mins" else []):
                xsum, x_scale = shape.inputs(sums, xs, row, group)
                for part in range(PARTS):
                    low = beside.low(Row(tile * 2 + part // 2, part % 2 * ROWS, ROWS), group)
                    out = outs[m][part]
                    out.set(fma(splat(convert(xsum, f32), ROWS), low * x_scale, out.get()))
        for side in range(2):
            pair = tile * 2 + side
            with when(pair < pairs):
                for m, row in enumerate(rows):
                    both = [out.get() for out in outs[m][2 * side : 2 * side + 2]]
                    finish_pair(both, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class Shape:
    """How K falls into groups and steps.  A step is 32 weights along K, or a group if that is shorter."""

    format: Format
    chunks: Value

    @property
    def step_quads(self) -> int:
        return min(self.format.group_size or CHUNK, CHUNK) // 4

    @property
    def row_steps(self) -> Value:
        return self.chunks * (CHUNK // 4 // self.step_quads)

    @property
    def group_steps(self) -> Operand:
        return self.format.group_size // 4 // self.step_quads if self.format.group_size else self.row_steps

    @property
    def group_quads(self) -> Operand:
        return self.format.group_size // 4 or convert(self.chunks, i32) * (CHUNK // 4)

    @property
    def num_groups(self) -> Operand:
        return self.row_steps // self.group_steps if self.format.group_size else 1

    def stored_step(self, step: Value, group: Operand, term: Operand) -> Value:
        """Where the codes of a step and term are stored, in steps: the terms of a group lie one behind the other."""
        terms = self.format.terms
        return step if terms == 1 else step + (group * (terms - 1) + term) * self.group_steps

    def code_start(self, tile: Value, stored_step: Value) -> Value:
        first = tile * (self.row_steps * self.format.terms)
        return (first + stored_step) * (self.step_quads // 2 * self.format.bits * VECTOR)

    def inputs(self, sums: Value, xs: Value, row: Value, group: Value) -> tuple[Value, Value]:
        """Of one row of activations: the sum of a group, i32, and its scale, f32x16."""
        of_group = row * self.num_groups + group
        return load(sums, of_group), splat(load(xs, of_group if self.format.activation_group else row), ROWS)

    def table_start(self, row: Value, step: Value) -> Value:
        return (row * self.row_steps + step) * (self.step_quads * HALVES * ENTRIES)


def look_up(acc: Sums, codes: Value, at: Value, tables: Value, starts: list[Value],
            shape: Shape, vectors_at_once: int) -> None:  # fmt: skip
    """Add the lookups of one step to the sums of every row of activations.

    at                where the step's codes start
    starts            where the step's tables start, for each row of activations
    vectors_at_once   vectors that share one load of a table: the more, the fewer loads and the more registers
    """
    bits = shape.format.bits
    for first in range(0, bits, vectors_at_once):
        vectors = range(first, min(first + vectors_at_once, bits))
        totals: dict[tuple[int, int, int], Value] = {}  # (row, vector, half) → u8x64
        for quad in range(shape.step_quads):
            indices = {vector: load_indices(codes, at, bits, quad, vector) for vector in vectors}
            for m, start in enumerate(starts):
                for half in range(HALVES):
                    table = load(tables, start + (quad * HALVES + half) * ENTRIES, ENTRIES)
                    for vector in vectors:
                        found = lookup(table, indices[vector])
                        so_far = totals.get((m, vector, half))
                        totals[m, vector, half] = found if so_far is None else so_far + found
        for (m, vector, half), total in totals.items():
            for part, weights in plane_weights(bits, vector).items():
                sums = acc[m][part][half]
                sums.set(dot4(sums, total, bytes_in_every_lane(weights), bound=CHUNK // 4 * HALF_MAX, signed_bound=8))


def load_indices(codes: Value, at: Value, bits: int, quad: int, vector: int) -> Value:
    """The 64 table indices of a quad: low nibbles for even quads, high nibbles for odd ones."""
    place = at + (quad // 2 * bits + vector) * VECTOR
    if quad % 2:
        return load(codes, place, VECTOR) >> 4
    prefetch(codes, place + PREFETCH_BYTES)
    return load(codes, place, VECTOR) & 15


def plane_weights(bits: int, vector: int) -> dict[int, list[int]]:
    """What the four bytes of a vector's lanes count in each part of the tile: {part: [1, 2, 4, 8]} for 4 bits."""
    weights: dict[int, list[int]] = {}
    for byte in range(4):
        part, plane = divmod(4 * vector + byte, bits)
        weights.setdefault(part, [0] * 4)[byte] = 1 << plane
    return weights


def bytes_in_every_lane(four: list[int]) -> Value:
    """Four small bytes, 16 times: i8x64."""
    return bitcast(const(int.from_bytes(bytes(four), "little"), i32, ROWS), i8)


def code_sums(halves: list[Var], xsum: Value, shape: Shape) -> Value:
    """Sum of (code - zero) * xq of a group for 16 weight rows, exactly: the halves meet, and lut becomes codes."""
    bias = shape.group_quads * TABLE_BIAS
    constant = (xsum - bias) * (2**shape.format.bits - 1) - xsum * (2 * shape.format.zero)
    low, high = halves
    return (low.get() + (high.get() << HALF_BITS) + splat(constant, ROWS)) >> 1


def bind(
    weight: TiledWeight,
    x: Activations,
    y: np.ndarray,
    state: np.ndarray,
    *,
    epilogue: str,
    bias: np.ndarray | None = None,
    column: int = 0,
    tile_m: int,
    isa: str | None = None,
) -> Step:
    """Bind y = epilogue(x @ weight.T) to buffers.

    weight   lut order
    x        Activations with tables, allocated for the weight's format, rows a multiple of tile_m
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows
    bias     f32 [padded_n] or None
    Raises KernelError when the buffers do not fit the weight.
    """
    format = weight.format
    if format is None or weight.order != "lut":
        raise KernelError(f"expected a weight in lut order, got {weight.order}; make it with tiles_lut.tile_lut")
    written = outputs(weight, y, state, column, epilogue, bias, tile_m)
    activations.check(x, weight, tile_m, ", with_tables=True")
    launch = matmul_lut.bind(
        written | dict(
            codes=weight.codes, scales=weight.scales, zeros=weight.zeros, mins=weight.mins,
            super_scales=weight.super_scales, super_mins=weight.super_mins,
            tables=x.tables, xs=x.xs, sums=x.sums, chunks=weight.padded_k // CHUNK,
        ),
        isa, format=format, epilogue=epilogue, has_bias=bias is not None, tile_m=tile_m,
        vectors_at_once=VECTORS_AT_ONCE[targets.choose(isa).vectors],
    )  # fmt: skip
    return Step(launch, -(-weight.num_pairs // 2), tile_m)
