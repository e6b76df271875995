"""y = x @ w.T for low-bit w and many rows, on CPUs with tile registers: codes out of packed words, then small matrices.

A quad of 16 weight rows (matmul_mad.py) is 64 bytes: 16 rows times 4 weights along K, just what one row of the right
operand of Tile.dot4 holds.  So 16 quads, taken out of their words side by side into a panel in the first cache, are a
tile of 64 weights along K, and the left operand is 16 rows of activations as they lie in their buffer.  Two tiles of
activations meet two of weights: four sums of 16 by 16 in registers.

The panel of the next step is written while the tiles of this one are multiplied: a tile is not read until what was
written there has reached the cache.  One task is one pair of row tiles times `tile_m` rows of activations.
Specification: formats/integer.matmul, bit for bit.  Bounds as in matmul_mad.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Operand,
    Pointer,
    Tile,
    Value,
    const,
    convert,
    f32,
    fma,
    i8,
    i32,
    i64,
    load,
    loop,
    maximum,
    minimum,
    scratch,
    splat,
    store,
    u8,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.kernels.activations import Activations
from lutra.kernels.beside import Beside
from lutra.kernels.epilogue import finish_pair
from lutra.kernels.interleave import interleaved
from lutra.kernels.levels import SignedLevels
from lutra.kernels.mad import W, arguments, row_counts
from lutra.kernels.plan import FAR, NEAR
from lutra.kernels.tile_sums import RIGHT, SHORT, SIDES, TileSums
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight

DEEPEST = 64  # weights along K in a tile
AHEAD = ((2, FAR), (1, NEAR))  # caches, and bytes of codes to ask for ahead
UNROLL = 2  # rows that a turn scales; every tile_m is a multiple


@kernel
def matmul_tiles(
    codes: Pointer[u8],
    scales: Pointer[u8],
    zeros: Pointer[u8],
    mins: Pointer[u8],
    super_scales: Pointer[u8],
    super_mins: Pointer[u8],
    xq: Pointer[i8],
    xs: Pointer[f32],
    sums: Pointer[i32],
    bias: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    pairs: i64,
    chunks: i64,
    xq_stride: i64,
    xs_stride: i64,
    sums_stride: i64,
    y_stride: i64,
    y_column: i64,
    task: i64,
    *,
    format,
    epilogue,
    has_bias,
    tile_m,
    depth,
):
    """Parameters as of matmul_mad.matmul_mad; `depth` weights along K make a tile."""
    num_rows = load(state, 0)
    blocks = (num_rows + (tile_m - 1)) // tile_m
    pair, first = task // blocks, (task % blocks) * tile_m
    beside = Beside(scales, zeros, mins, super_scales, super_mins, chunks, format)
    w = W(codes, pair, chunks, format, beside, range(ROWS))
    outs, panel = scratch(f32, tile_m * PAIR), Panel(w, depth)
    for count, chosen in row_counts(num_rows - first, tile_m, SHORT):
        with when((pair < pairs) if chosen is None else (pair < pairs) & chosen):
            # tiles are read whole: the last block begins early enough for that, and stores what is its own
            begin = minimum(first, maximum(num_rows - count, 0))
            multiply(w, X(xq, xs, sums, begin, xq_stride, xs_stride, sums_stride), panel, outs, count)
            for m in loop(first - begin, minimum(num_rows - begin, count)):
                both = [load(outs, m * PAIR + side * ROWS, ROWS) for side in range(SIDES)]
                row = (begin + m) * y_stride + y_column
                finish_pair(both, y, row, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class X:
    """Activations of a block of rows: pointers, its first row, and how far its rows lie apart."""

    xq: Value
    xs: Value
    sums: Value
    first: Value
    xq_stride: Value
    xs_stride: Value
    sums_stride: Value

    def load(self, k: Value, tile: Tile, row: int) -> None:
        tile.load(self.xq, (self.first + row) * self.xq_stride + k, self.xq_stride)

    def scale(self, m: Value, group: Operand) -> Value:
        return splat(load(self.xs, (self.first + m) * self.xs_stride + group), ROWS)

    def sum(self, m: Value, group: Operand) -> Value:
        return splat(load(self.sums, (self.first + m) * self.sums_stride + group), ROWS)


class Panel:
    """Room for two steps of the weight's levels: [step % 2][side][quad of the step][row][4 weights along K].

    A step is a chunk of weights along K, or a tile where that is deeper; where it is not, `parts` tiles make a step.
    Steps are counted in the order they are stored.
    """

    def __init__(self, w: W, depth: int):
        self.w, self.depth, self.levels = w, depth, SignedLevels(w.format)
        self.step_k = max(depth, CHUNK)
        self.parts = self.step_k // depth
        self.side_bytes = self.step_k * ROWS
        self.room = scratch(self.levels.dtype, 2 * SIDES * self.side_bytes)
        self.tiles = [Tile(RIGHT + side, self.levels.dtype, depth // 4, 4 * ROWS) for side in range(SIDES)]

    def write(self, step: Operand) -> None:
        """Take the levels of a step out of their words."""
        chunks = self.step_k // CHUNK
        for chunk in range(chunks):
            at = step * chunks + chunk
            words = self.w.words(range(SIDES), at)
            acts = [
                partial(self._store, words[side], side, chunk, quad, step)
                for side, quad in product(range(SIDES), range(CHUNK // 4))
            ]
            for act in interleaved(acts, self.w.asks(range(SIDES), at, AHEAD)):
                act()

    def _store(self, words: list[Value], side: int, chunk: int, quad: int, step: Operand) -> None:
        at = self._at(step, side) + (chunk * CHUNK + 4 * quad) * ROWS
        store(self.room, at, self.levels.take(words, quad))

    def load(self, step: Operand, part: int) -> None:
        """Fill the tiles with the levels of a part of a step."""
        for side, tile in enumerate(self.tiles):
            tile.load(self.room, self._at(step, side) + part * self.depth * ROWS, 4 * ROWS)

    def _at(self, step: Operand, side: int) -> Operand:
        return ((step & 1) * SIDES + side) * self.side_bytes


def multiply(w: W, x: X, panel: Panel, outs: Value, count: int) -> None:
    """outs[m][side][row] of `count` rows: groups added in ascending order, and in a group its terms.

    Sums leave their registers through memory.  So that nothing waits, those of a turn are scaled while the tiles of the
    next are multiplied, before its own are stored.
    """
    f, sums, ints = w.format, TileSums(count, panel.depth), scratch(i32, count * PAIR)
    steps = w.chunks * CHUNK // panel.step_k  # of one term
    group_steps = max(1, f.group_size // panel.step_k) if f.group_size else steps
    turns = steps // group_steps * f.terms
    for m in loop(0, count * SIDES):
        store(outs, m * ROWS, const(0.0, f32, ROWS))
    panel.write(const(0, i64))
    for turn in loop(0, turns):
        for part in range(panel.parts):
            sums.zero()
            for i in loop(0, group_steps):
                step = turn * group_steps + i
                if part == 0:
                    panel.write(minimum(step + 1, turns * group_steps - 1))
                panel.load(step, part)
                k = (turn // f.terms * group_steps + i) * panel.step_k + part * panel.depth
                sums.add(partial(x.load, k), panel.tiles)
            done = turn * panel.parts + part
            with when(done > 0):
                scale(w, x, panel.levels.zero, ints, outs, count, done - 1)
            sums.store(ints, 0, PAIR)
    scale(w, x, panel.levels.zero, ints, outs, count, turns * panel.parts - 1)


def scale(w: W, x: X, zero: int, ints: Value, outs: Value, count: int, term: Value) -> None:
    """outs = fma(f32(sum of (level - zero) * xq), scale * x_scale, outs), and at the end of a group the min's part.

    ints   the sums of `count` rows, [m][side][row]
    term   counts the terms of all groups
    """
    f, group = w.format, term // w.format.terms
    zeros = [w.beside.zero(w.rows(tile), group) for tile in range(SIDES)] if f.offset == "zeros" else []
    scales = [w.beside.scale(w.rows(tile), group, term % f.terms) for tile in range(SIDES)]
    for m in rows_of(count):
        x_scale = x.scale(m, group if f.activation_group else 0)
        for side, its_scale in enumerate(scales):
            acc = load(ints, m * PAIR + side * ROWS, ROWS)
            if zero:
                acc = acc - x.sum(m, group) * zero
            if zeros:
                acc = acc - zeros[side] * x.sum(m, group)
            add_product(outs, m * PAIR + side * ROWS, convert(acc, f32), its_scale * x_scale)
    if f.offset == "mins":
        with when(term % f.terms >= f.terms - 1):
            add_mins(w, x, outs, count, group)


def add_mins(w: W, x: X, outs: Value, count: int, group: Value) -> None:
    """outs = fma(f32(sum of xq), min * x_scale, outs)."""
    lows = [w.beside.low(w.rows(tile), group) for tile in range(SIDES)]
    for m in rows_of(count):
        x_scale, x_sum = x.scale(m, group if w.format.activation_group else 0), convert(x.sum(m, group), f32)
        for side, low in enumerate(lows):
            add_product(outs, m * PAIR + side * ROWS, x_sum, low * x_scale)


def add_product(outs: Value, at: Value, a: Value, b: Value) -> None:
    store(outs, at, fma(a, b, load(outs, at, ROWS)))


def rows_of(count: int) -> Iterator[Value]:
    """Every row, in a loop that does `UNROLL` a turn; `count` is a multiple."""
    for m in loop(0, count, UNROLL):
        for i in range(UNROLL):
            yield m + i


def depth_of(weight: TiledWeight) -> int:
    """Weights along K in a tile: 64, or what divides a group, or a row that is one."""
    assert isinstance(weight.format, Format)
    return gcd(DEEPEST, weight.format.group_size or weight.padded_k)


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
    """As matmul_mad.bind, for a tile_m of plan.TILE_BLOCKS; buffers have at least as many rows."""
    check_rows(x, tile_m)
    launch = matmul_tiles.bind(
        arguments(weight, x, y, state, epilogue, bias, column, tile_m),
        isa, format=weight.format, epilogue=epilogue, has_bias=bias is not None, tile_m=tile_m,
        depth=depth_of(weight),
    )  # fmt: skip
    return Step(launch, weight.num_pairs, tile_m)


def check_rows(x: Activations, tile_m: int) -> None:
    """Raise KernelError where tiles of a block would be read beyond the buffers."""
    if len(x.xq) < tile_m:
        raise KernelError(f"expected activations of at least {tile_m} rows, got {len(x.xq)}; round them up")
