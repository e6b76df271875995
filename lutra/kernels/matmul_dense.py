"""y = x @ w.T for weights stored as f32, f16 or bf16, or as 8-bit floats with scales.

out = (p0 + p2) + (p1 + p3), where p_i adds x[k] * w[k] for k = i, i + 4, i + 8, ... in ascending order, a product and
its sum rounded to f32 together: formats/reduce.dense_spec.  An 8-bit float is first multiplied with its scale and
rounded, so that w is what QTensor.dequantize gives.  One task is one pair of row tiles times `tile_m` rows.
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
    i64,
    load,
    loop,
    minimum,
    prefetch,
    splat,
    u8,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.compiler.types import DTYPES, DType
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.formats.reduce import PARTIALS
from lutra.formats.reduce import dense_spec as dense_spec  # this kernel's meaning
from lutra.kernels import tuned
from lutra.kernels.beside import Beside, Row
from lutra.kernels.buffers import LINE_BYTES
from lutra.kernels.epilogue import bias_or_dummy, finish_pair, outputs
from lutra.kernels.levels import float_unit, small_float
from lutra.kernels.plan import Plan
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight

BLOCK = 256  # columns of a pair that stay in the first cache: 8 to 32 KiB


@kernel
def matmul_dense(
    codes: Pointer[u8],
    scales: Pointer[u8],
    x: Pointer[f32],
    bias: Pointer[f32],
    start: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    pairs: i64,
    columns: i64,
    x_stride: i64,
    start_stride: i64,
    y_stride: i64,
    y_column: i64,
    task: i64,
    *,
    dtype,
    format,
    epilogue,
    has_bias,
    has_start,
    tile_m,
    plan,
):
    """`columns` is the weight's padded K, a multiple of 32."""
    blocks = (load(state, 0) + (tile_m - 1)) // tile_m
    pair = task // blocks
    rows = [(task % blocks) * tile_m + m for m in range(tile_m)]
    with when(pair < pairs):
        w = W(codes, Beside(scales, *[scales] * 4, columns // CHUNK, format), pair, columns, DTYPES[dtype], format)
        starts = [row * x_stride for row in rows]
        passes = [multiply(w, x, starts, range(t, t + plan.tiles), plan) for t in range(0, 2, plan.tiles)]
        for m, row in enumerate(rows):
            outs = [out for one in passes for out in one[m]]
            if has_start:
                at = row * start_stride + pair * PAIR
                outs = [load(start, at + tile * ROWS, ROWS) + out for tile, out in enumerate(outs)]
            finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class W:
    """A pair of row tiles: where its columns are, and what they mean.

    dtype    of the elements; u8 where they are the floats of a format
    format   None for dense arrays
    """

    codes: Value
    beside: Beside
    pair: Value
    columns: Value
    dtype: DType
    format: Format | None

    @property
    def vector(self) -> int:
        """Bytes of one column of a tile."""
        return self.dtype.size_bytes * ROWS

    @property
    def block(self) -> int:
        """Columns that have the same scale, a multiple of 16."""
        return (self.format and self.format.group_size) or BLOCK

    def scale(self, tile: int, block: Value) -> Value | None:
        """f32x16: what the elements of a block are multiplied with; finite, as QTensor holds their products to be."""
        if self.format is None:
            return None
        group = block // self.block if self.format.group_size else 0
        return self.beside.scale(Row(self.pair, tile * ROWS, ROWS), group) * float_unit(self.format.levels)

    def at(self, k: Value, i: int, tile: int) -> Value:
        """The byte at which column k + i of a tile begins."""
        return (self.pair * self.columns + k) * (2 * self.vector) + (i * 2 + tile) * self.vector

    def load(self, at: Value, scale: Value | None) -> Value:
        """f32x16: one column of a tile."""
        stored = load(self.codes, at, self.vector)
        if self.format is None or scale is None:
            return convert(bitcast(stored, self.dtype), f32)
        return small_float(stored, self.format.levels) * scale


def multiply(w: W, x: Value, starts: list[Value], tiles: range, plan: Plan) -> list[list[Value]]:
    """f32x16 results [row][tile]."""
    sums = [[[var(const(0.0, f32, ROWS)) for _ in range(PARTIALS)] for _ in tiles] for _ in starts]
    for block in loop(0, w.columns, w.block):
        for side, tile in enumerate(tiles):  # one after the other: fewer sums in registers, more lines in flight
            scale = w.scale(tile, block)
            for k in loop(block, minimum(block + w.block, w.columns), PARTIALS):
                for i in range(PARTIALS):
                    at = w.at(k, i, tile)
                    if (i * 2 + side) * w.vector % LINE_BYTES == 0:  # tiles, and columns of bytes, share a line
                        for level, distance in plan.ahead:
                            prefetch(w.codes, at + distance, level)
                    weights = w.load(at, scale)
                    for m, start in enumerate(starts):
                        total = sums[m][side][i]
                        total.set(fma(splat(load(x, start + (k + i)), ROWS), weights, total.get()))
    return [[combine([part.get() for part in parts]) for parts in row] for row in sums]


def combine(parts: list[Value]) -> Value:
    p0, p1, p2, p3 = parts
    return (p0 + p2) + (p1 + p3)


def bind(
    weight: TiledWeight,
    x: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    epilogue: str,
    bias: np.ndarray | None = None,
    column: int = 0,
    tile_m: int,
    isa: str | None = None,
    shape: Plan | None = None,
    start: np.ndarray | None = None,
) -> Step:
    """Bind y = epilogue(x @ weight.T), or of start + x @ weight.T, to buffers.

    weight   dense order
    x        f32 [rows, stride >= padded_k], rows a multiple of tile_m, columns beyond K zero
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows
    bias     f32 [padded_n] or None
    shape    the plan; None takes the one measured best, else the table's
    start    f32 [rows, stride >= padded_n], what the product is added to before bias and epilogue; None for nothing
    Raises KernelError when the buffers do not fit the weight.
    """
    if weight.order != "dense":
        raise KernelError(f"expected a weight in dense order, got {weight.order}; make it with tiles.tile_dense")
    written = outputs(weight, y, state, column, epilogue, bias, tile_m)
    if x.ndim != 2 or x.shape[1] < weight.padded_k or len(x) % tile_m:
        raise KernelError(
            f"expected x of a multiple of {tile_m} rows and at least {weight.padded_k} columns, got {x.shape}; "
            f"round its rows up to 16 and its columns up to 64"
        )
    if start is not None and (start.ndim != 2 or start.shape[1] < weight.padded_n or len(start) < len(y)):
        raise KernelError(f"expected start of {len(y)} rows and at least {weight.padded_n} columns, got {start.shape}; "
                          "allocate it like y")  # fmt: skip
    launch = matmul_dense.bind(
        written | dict(
            codes=weight.codes, scales=weight.scales, x=x, columns=weight.padded_k, x_stride=x.shape[1],
            start=bias_or_dummy(start), start_stride=0 if start is None else start.shape[1],
        ),
        isa, dtype=weight.dtype or "u8", format=weight.format, epilogue=epilogue, has_bias=bias is not None,
        has_start=start is not None, tile_m=tile_m, plan=shape or tuned.plan(weight, tile_m, isa),
    )  # fmt: skip
    return Step(launch, weight.num_pairs, tile_m)
