"""y = x @ w.T for ternary weights of 1.6 bits by looking up sums of five activations, one byte of weights at a time.

Meaning: formats/integer.matmul, bit for bit.  The integers are those of formats/trits.group_dot_trits.

For one row of activations at a time; matmul_trit_rows.py multiplies several rows by the same bytes.  `bind` chooses.

One task is one or two tiles of 128 weight rows, which share the expansion of tables, times a row of activations.  A
byte's low seven bits look up a low and a high byte, its sign bit negates them.  Five lookups are added as bytes, at
most 5 * 25 = 125; then dot4 with the weights 1 or 25 in one of four bytes widens 16 rows to int32 and makes
low + 25 * high of them (tiles_trit.py).

Work per 5 weights along K and 64 rows: 2 lookups, 2 negations, 2 additions of bytes and 8/5 dot4, and a share of 12
instructions that make the table, against 5 dot4 of a multiply-add kernel.
Bounds    |sum| <= 127 K fits int32; QTensor allows K = 65,536 in a row
Source    bitnet.cpp, arXiv 2502.11880, section 3.1 (element-wise lookup tables, TL2: three trits in 5 bits)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    Var,
    bitcast,
    const,
    dot4,
    f32,
    i8,
    i32,
    i64,
    load,
    lookup,
    loop,
    minimum,
    prefetch,
    select,
    splat,
    u8,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats import trits
from lutra.kernels import activations, trit_places, trit_tables
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import aligned
from lutra.kernels.epilogue import finish_pair, outputs
from lutra.kernels.mad import PADDED
from lutra.kernels.matmul_tiles import check_rows
from lutra.kernels.matmul_trit_rows import code_fields, matmul_trit_rows, scaled
from lutra.kernels.matmul_trit_tiles import matmul_trit_tiles
from lutra.kernels.plan import Plan, plan_for, tile_blocks
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight
from lutra.kernels.tiles_trit import ENTRIES, HIGH, LARGEST, PARTS, STEPS, TILE, VECTOR, VECTORS
from lutra.kernels.trit_tables import half_table

SUMS = VECTOR // ROWS  # int32 vectors that hold the sums of a vector of rows
# Where a lookup in 128 entries is an instruction or a few.  On x86 without AVX-512 it is 23, and one row of activations
# takes .46 instructions a weight with dot4, .55 with lookups; on ARM with dotprod .58 and .56
LOOKING_UP = ("avx512", "i8mm", "dotprod", "neon")
FIELDS = aligned(ENTRIES, np.uint8)
FIELDS[:] = code_fields()

Sums = list[list[Var]]  # i32x16 [vector of the tiles][16 rows of the vector]


@kernel
def matmul_trit(
    codes: Pointer[u8],
    scales: Pointer[u8],
    parts: Pointer[i8],
    xs: Pointer[f32],
    bias: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    pairs: i64,
    steps: i64,
    y_stride: i64,
    y_column: i64,
    task: i64,
    *,
    format,
    epilogue,
    has_bias,
    plan,
):
    """`pairs` counts 32 weight rows, `steps` 5 weights along K; y_column is where outputs start in a row of y."""
    rows = load(state, 0)
    first, row = task // rows * plan.tiles, task % rows
    last = (pairs + (TILE // PAIR - 1)) // (TILE // PAIR) - 1
    starts = [minimum(first + i, last) * steps for i in range(plan.tiles)]  # a tile too many repeats the last one
    source = Source(codes, parts, starts, row * steps, plan)
    whole = steps // STEPS * STEPS
    acc = [[var(const(0, i32, ROWS)) for _ in range(SUMS)] for _ in range(plan.tiles * VECTORS)]
    for step in loop(0, whole, STEPS):
        add_steps(acc, source, step, STEPS)
    for step in loop(whole, steps):
        add_steps(acc, source, step, 1)
    sums = [part for vector in acc for part in vector]
    for side in range(len(sums) // 2):
        pair = first * (TILE // PAIR) + side
        with when(pair < pairs):
            both = [total.get() for total in sums[2 * side : 2 * side + 2]]
            outs = scaled(both, scales, pair, splat(load(xs, row), ROWS), format)
            finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class Source:
    """What one task reads: pointers, and the number of the first step of each tile's codes and of the row's tables."""

    codes: Value
    parts: Value
    tiles: list[Value]
    row: Value
    plan: Plan

    def bytes(self, step: Value) -> list[Value]:
        """Five trits of 64 rows, of every vector: u8x64."""
        found = []
        for tile in self.tiles:
            for vector in range(VECTORS):
                at = (tile + step) * TILE + vector * VECTOR
                for level, size in self.plan.ahead:
                    prefetch(self.codes, at + size, level)
                found.append(load(self.codes, at, VECTOR))
        return found

    def tables(self, step: Value) -> list[Value]:
        """Low and high bytes of the sums of five activations: two i8x128."""
        parts = load(self.parts, (self.row + step) * PARTS, PARTS)
        return [half_table(parts, half) for half in range(2)]


def add_steps(acc: Sums, source: Source, first: Value, count: int) -> None:
    """Add the lookups of `count` steps, as bytes, then widened; count * LARGEST < 128."""
    totals: dict[tuple[int, int], Value] = {}  # (vector, half) → i8x64
    for i in range(count):
        weights = source.bytes(first + i)
        for half, table in enumerate(source.tables(first + i)):
            for vector, byte in enumerate(weights):
                found = lookup(table, byte & (trits.NEGATIVE - 1))
                signed = select(byte >= trits.NEGATIVE, 0 - found, found)
                so_far = totals.get((vector, half))
                totals[vector, half] = signed if so_far is None else so_far + signed
    for (vector, half), total in totals.items():
        for part, sums in enumerate(acc[vector]):
            counts = HIGH if half else 1
            picked = bitcast(const(counts << 8 * part, i32, ROWS), u8)
            sums.set(dot4(sums, picked, total, bound=counts, signed_bound=count * LARGEST))


def looks_up(tile_m: int, isa: str | None = None) -> bool:
    """Whether sums are looked up for so many rows of activations at once, or trits taken out of bytes."""
    return tile_m == 1 and targets.choose(isa).vectors in LOOKING_UP


def bind_inputs(x: Activations, state: np.ndarray, row_blocks: Iterable[int], *, isa: str | None = None) -> list[Step]:
    """What fills x, from x.xq, for kernels bound with any of `row_blocks` as tile_m."""
    forms = {True: trit_tables.bind, False: trit_places.bind}
    return [forms[one](x, state, isa=isa) for one in sorted({looks_up(tile_m, isa) for tile_m in row_blocks})]


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

    weight   trit5 order
    x        Activations allocated with_trits and filled by bind_inputs, rows a multiple of tile_m
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows
    bias     f32 [padded_n] or None
    Raises KernelError when the buffers do not fit the weight.
    """
    if weight.order != "trit5":
        raise KernelError(f"expected a weight in trit5 order, got {weight.order}; make it with tiles_trit.tile_trit")
    by_lookup, by_tiles = looks_up(tile_m, isa), tile_m in tile_blocks("trit5", targets.choose(isa).isa)
    multiple = gcd(tile_m, PADDED) if by_tiles else tile_m
    written = outputs(weight, y, state, column, epilogue, bias, multiple)
    activations.check(x, weight, multiple, ", with_trits=True", ("trits", "xs") if by_lookup else ())
    if by_tiles:
        check_rows(x, tile_m)
    plan = plan_for("trit5", targets.choose(isa).isa, tile_m)
    args = written | dict(codes=weight.codes, scales=weight.scales, xs=x.xs, steps=trits.num_steps(weight.k))
    static: dict[str, Any] = dict(format=weight.format, epilogue=epilogue, has_bias=bias is not None)
    if by_lookup:
        launch = matmul_trit.bind(args | {"parts": x.trits}, isa, **static, plan=plan)
        return Step(launch, -(-weight.padded_n // (plan.tiles * TILE)), 1)
    places = x.places
    assert places is not None
    args |= {"fields": FIELDS, "places": places, "sums": x.sums, "places_stride": places.shape[1]}
    if by_tiles:
        launch = matmul_trit_tiles.bind(args, isa, **static, tile_m=tile_m)
    else:
        launch = matmul_trit_rows.bind(args, isa, **static, tile_m=tile_m, plan=plan)
    return Step(launch, -(-weight.padded_n // VECTOR), tile_m)
