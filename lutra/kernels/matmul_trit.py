"""y = x @ w.T for ternary weights of 1.6 bits by looking up sums of five activations, one byte of weights at a time.

Meaning: formats/integer.matmul, bit for bit.  The integers are those of formats/trits.group_dot_trits.

One task is a tile of 128 weight rows times `tile_m` rows of activations.  A byte's low seven bits look up a low and a
high byte, its sign bit negates them.  Five lookups are added as bytes, at most 5 * 25 = 125; then dot4 with the weights
1 or 25 in one of four bytes widens 16 rows to int32 and makes low + 25 * high of them (tiles_trit.py).

Work per 5 weights along K, 64 rows and row of activations: 2 lookups, 2 negations, 2 additions of bytes and 8/5 dot4,
against 5 dot4 of a multiply-add kernel.
Bounds    |sum| <= 127 K fits int32; QTensor allows K = 65,536 in a row
Source    bitnet.cpp, arXiv 2502.11880, section 3.1 (element-wise lookup tables, TL2: three trits in 5 bits)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    Var,
    bitcast,
    const,
    convert,
    dot4,
    f32,
    i8,
    i32,
    i64,
    load,
    lookup,
    loop,
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
from lutra.formats.format import Format
from lutra.kernels import activations
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import check_state
from lutra.kernels.epilogue import bias_or_dummy, check_output, finish_pair
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight
from lutra.kernels.tiles_trit import HIGH, LARGEST, PARTS, STEPS, TILE, VECTOR, VECTORS
from lutra.kernels.trit_tables import half_table
from lutra.kernels.unpack import load_as

SUMS = VECTOR // ROWS  # int32 vectors that hold the sums of a vector of rows
PREFETCH_BYTES = 8192  # ahead in the codes, which are read straight through: 36 GB/s; 4096 gives 30

Sums = list[list[list[Var]]]  # i32x16 [row of activations][vector of the tile][16 rows of the vector]


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
    tile_m,
):
    """`pairs` counts 32 weight rows, `steps` 5 weights along K; y_column is where outputs start in a row of y."""
    blocks = (load(state, 0) + (tile_m - 1)) // tile_m
    tile = task // blocks
    rows = [(task % blocks) * tile_m + m for m in range(tile_m)]
    source = Source(codes, parts, tile * steps, [row * steps for row in rows])
    whole = steps // STEPS * STEPS
    acc = [[[var(const(0, i32, ROWS)) for _ in range(SUMS)] for _ in range(VECTORS)] for _ in rows]
    for step in loop(0, whole, STEPS):
        add_steps(acc, source, step, STEPS)
    for step in loop(whole, steps):
        add_steps(acc, source, step, 1)
    for side in range(TILE // PAIR):
        pair = tile * (TILE // PAIR) + side
        with when(pair < pairs):
            for m, row in enumerate(rows):
                x_scale = splat(load(xs, row), ROWS)
                both = [acc[m][part // SUMS][part % SUMS].get() for part in (2 * side, 2 * side + 1)]
                outs = [
                    0.0 + convert(sum_, f32) * (floats(scales, pair * PAIR + part * ROWS, format) * x_scale)
                    for part, sum_ in enumerate(both)
                ]
                finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class Source:
    """What one task reads: pointers, and the number of the first step of its codes and of each row's tables."""

    codes: Value
    parts: Value
    tile: Value
    rows: list[Value]

    def bytes(self, step: Value, vector: int) -> Value:
        """Five trits of 64 rows: u8x64."""
        at = (self.tile + step) * TILE + vector * VECTOR
        prefetch(self.codes, at + PREFETCH_BYTES)
        return load(self.codes, at, VECTOR)

    def tables(self, m: int, step: Value) -> list[Value]:
        """Low and high bytes of the sums of five activations: two i8x128."""
        parts = load(self.parts, (self.rows[m] + step) * PARTS, PARTS)
        return [half_table(parts, half) for half in range(2)]


def add_steps(acc: Sums, source: Source, first: Value, count: int) -> None:
    """Add the lookups of `count` steps, as bytes, then widened; count * LARGEST < 128."""
    totals: dict[tuple[int, int, int], Value] = {}  # (row, vector, half) → i8x64
    for i in range(count):
        step = first + i
        weights = [source.bytes(step, vector) for vector in range(VECTORS)]
        for m in range(len(source.rows)):
            for half, table in enumerate(source.tables(m, step)):
                for vector, byte in enumerate(weights):
                    found = lookup(table, byte & (trits.NEGATIVE - 1))
                    signed = select(byte >= trits.NEGATIVE, 0 - found, found)
                    so_far = totals.get((m, vector, half))
                    totals[m, vector, half] = signed if so_far is None else so_far + signed
    for (m, vector, half), total in totals.items():
        for part, sums in enumerate(acc[m][vector]):
            counts = HIGH if half else 1
            picked = bitcast(const(counts << 8 * part, i32, ROWS), u8)
            sums.set(dot4(sums, picked, total, bound=counts, signed_bound=count * LARGEST))


def floats(pointer: Value, index: Value, format: Format) -> Value:
    """16 stored scales."""
    return convert(load_as(pointer, index, format.scale_dtype, ROWS), f32)


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
    x        Activations allocated with_trits, its tables filled by trit_tables.bind, rows a multiple of tile_m
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows
    bias     f32 [padded_n] or None
    Raises KernelError when the buffers do not fit the weight.
    """
    if weight.order != "trit5":
        raise KernelError(f"expected a weight in trit5 order, got {weight.order}; make it with tiles_trit.tile_trit")
    check_output(weight, y, column, epilogue, bias, tile_m)
    steps = trits.num_steps(weight.k)
    activations.check(x, weight, tile_m, ", with_trits=True")
    check_state(state)
    launch = matmul_trit.bind(
        dict(
            codes=weight.codes, scales=weight.scales, parts=x.trits, xs=x.xs, bias=bias_or_dummy(bias), y=y,
            state=state, pairs=weight.num_pairs, steps=steps, y_stride=y.shape[1], y_column=column,
        ),
        isa, format=weight.format, epilogue=epilogue, has_bias=bias is not None, tile_m=tile_m,
    )  # fmt: skip
    return Step(launch, -(-weight.padded_n // TILE), tile_m)
