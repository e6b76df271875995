"""y = x @ w.T for low-bit w by multiply-add: shift the codes out of packed words, dot them with int8 activations.

A vector of 64 bytes holds one packed word of 16 weight rows (tiles.py, mad order).  Byte j of row r carries, in fields
of `bits` bits, the codes of that row's weights 4 s + j: one shift and one mask make the operand of quad s.  The four
activations it meets are the same for all rows, so they are broadcast.  For one row of activations the shift can be left
out: a mask alone makes codes times a power of two, whose sums stay apart until the end of a group (Plan.in_place).
Where a CPU multiplies matrices, rows of activations are taken two by two (squares.py).

One task is one pair of row tiles times `tile_m` rows of activations, row blocks fastest.
Specification: formats/integer.matmul, bit for bit.
Bounds: a group's int32 sum holds while 127 * 255 * group < 2**31: K < 66,000 in one group, for codes of any width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Operand,
    Pointer,
    Value,
    bitcast,
    const,
    convert,
    dot4_sum,
    f32,
    fma,
    i8,
    i32,
    i64,
    load,
    loop,
    minimum,
    splat,
    u8,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.kernels import matmul_tiles, tuned
from lutra.kernels.activations import Activations
from lutra.kernels.beside import Beside, stored_chunk, terms_of
from lutra.kernels.epilogue import finish_pair
from lutra.kernels.interleave import Act, interleaved
from lutra.kernels.levels import Levels, join, levels_of
from lutra.kernels.mad import W, arguments, row_counts
from lutra.kernels.plan import Plan, tile_blocks
from lutra.kernels.squares import Squares
from lutra.kernels.tiles import CHUNK, ROWS, TiledWeight

QUADS = CHUNK // 4  # operands in a chunk, each meeting 4 activations
# tile_m → the rows of a shorter block, for the last rows: one less, as the row block is chosen so that few are wasted.
# The usual blocks have none: their code would take twice as long to compile
SHORT = {7: 6, 9: 8, 10: 9, 11: 10}


@kernel
def matmul_mad(
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
    plan,
):
    """`chunks` counts 32 weights along K; y_column is where outputs start in a row of y."""
    num_rows = load(state, 0)
    blocks = (num_rows + (tile_m - 1)) // tile_m
    pair, first = task // blocks, (task % blocks) * tile_m
    beside = Beside(scales, zeros, mins, super_scales, super_mins, chunks, format)
    w = W(codes, pair, chunks, format, beside, range(ROWS))
    for count, chosen in row_counts(num_rows - first, tile_m, SHORT):
        with when((pair < pairs) if chosen is None else (pair < pairs) & chosen):
            # a row there is not reads the last one, and stores nothing
            rows = [minimum(first + m, num_rows - 1) if m else first for m in range(count)]
            starts = ([row * stride for row in rows] for stride in (xq_stride, xs_stride, sums_stride))
            x = X(xq, xs, sums, *starts, plan.lanes)
            passes = [multiply_tiles(w, x, range(t, t + plan.tiles), plan) for t in range(0, 2, plan.tiles)]
            for m, row in enumerate(rows):
                outs = [out for one in passes for out in one[m]]
                with when(first + m < num_rows) if m else nullcontext():
                    finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class X:
    """Activations of a row block: pointers, where each row starts, and how many weight rows a number is for."""

    xq: Value
    xs: Value
    sums: Value
    xq_rows: list[Value]
    xs_rows: list[Value]
    sums_rows: list[Value]
    lanes: int

    def quad(self, m: int, k: Value) -> Value:
        """Activations k .. k + 3 of row m, in every lane: i8x(4 lanes)."""
        return bitcast(splat(bitcast(load(self.xq, self.xq_rows[m] + k, 4), i32), self.lanes), i8)

    def eights(self, m: int, k: Value) -> Value:
        """Activations k .. k + 31 of row m, eight to a lane: i64x4."""
        return bitcast(load(self.xq, self.xq_rows[m] + k, CHUNK), i64)

    def scale(self, m: int, group: Operand) -> Value:
        return splat(load(self.xs, self.xs_rows[m] + group), self.lanes)

    def sum(self, m: int, group: Operand) -> Value:
        return load(self.sums, self.sums_rows[m] + group)


class Chunk:
    """Some quads of a chunk of 32 weights, and the activations they meet; codes are taken when first asked for.

    words   of each row tile
    start   of the chunk, in weights along K
    """

    def __init__(self, words: list[list[Value]], x: X, start: Value, quads: range, levels: Levels):
        self.x, self.start, self.quads, self.levels = x, start, quads, levels
        self.codes = cache(lambda side, quad: levels.take(words[side], quad))
        self.eights = cache(lambda m: x.eights(m, start))

    def activations(self, m: int, quad: int) -> Value:
        return self.x.quad(m, self.start + 4 * quad)

    def quads_of(self, power: int) -> list[int]:
        return [quad for quad in self.quads if self.levels.power(quad) == power]


class QuadSums:
    """int32 sums of one term in one group: [row of activations][row tile][power][partial].

    A partial holds its sum times 2**power.  The first partial of power 0 starts at `starts[row]`, minus what the bias
    adds to every level; the others at 0.  `accumulators` are shared out to the powers.
    """

    def __init__(self, starts: list[Value], tiles: int, powers: Sequence[int], accumulators: int):
        none, count = const(0, i32, starts[0].type.lanes), max(1, accumulators // len(powers))
        self.parts = [
            [
                {power: [var(none if power or part else start) for part in range(count)] for power in powers}
                for _ in range(tiles)
            ]
            for start in starts
        ]

    def dots(self, chunk: Chunk) -> list[Act]:
        """What adds the dot products of a chunk: a call for each row of activations and partial, of both tiles.

        The quads of a power are dealt to its partials in turn.
        """
        shares = [
            (m, power, i, chunk.quads_of(power)[i :: len(parts)])
            for m, (tile, *_) in enumerate(self.parts)
            for power, parts in tile.items()
            for i in range(len(parts))
        ]
        return [partial(self._add, m, chunk, power, i, quads) for m, power, i, quads in shares if quads]

    def _add(self, m: int, chunk: Chunk, power: int, i: int, quads: list[int]) -> None:
        fours = [chunk.activations(m, quad) for quad in quads]
        for side, tile in enumerate(self.parts[m]):
            pairs = [(chunk.codes(side, quad), four) for quad, four in zip(quads, fours, strict=True)]
            tile[power][i].set(dot4_sum(tile[power][i], pairs, bound=chunk.levels.bound << power))

    def total(self, m: int, side: int) -> Value:
        """The sum of all partials; the bits that a shift loses are 0."""
        powers = self.parts[m][side].items()
        sums = [(power, _add_up([part.get() for part in parts])) for power, parts in powers]
        return _add_up([total >> power if power else total for power, total in sums])


def _add_up(parts: list[Value]) -> Value:
    """The sum of 1, 2, 4, ... values, neighbours first: no long chain."""
    while len(parts) > 1:
        parts = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
    return parts[0]


Sums = QuadSums | Squares


def sums_of(starts: list[Value], tiles: int, levels: Levels, plan: Plan) -> Sums:
    """The sums of one term in one group, as the plan wants them."""
    return Squares(starts, tiles) if plan.squares else QuadSums(starts, tiles, levels.powers, plan.accumulators)


def multiply_tiles(w: W, x: X, tiles: range, plan: Plan) -> list[list[Value]]:
    """f32x16 results [row of activations][tile], for as many lanes at once as the plan says."""
    spans = [range(first, first + plan.lanes) for first in range(0, ROWS, plan.lanes)]
    parts = [multiply(replace(w, lanes=lanes), x, tiles, plan) for lanes in spans]  # [lanes][row][tile]
    return [[join(list(tile)) for tile in zip(*row, strict=True)] for row in zip(*parts, strict=True)]


def multiply(w: W, x: X, tiles: range, plan: Plan) -> list[list[Value]]:
    """f32 results [row of activations][tile], groups added in ascending order, and in a group its terms."""
    outs = [[var(const(0.0, f32, x.lanes)) for _ in tiles] for _ in x.xq_rows]
    levels = levels_of(w.format, plan.in_place and not plan.squares)
    for group, spans in groups(w.chunks, w.format.group_size, plan.unroll):
        if plan.second_bytes:
            w.beside.ask(w.pair, group + max(1, plan.second_bytes // w.group_bytes))
        for term in terms_of(w.format):
            starts = [splat(x.sum(m, group) * -levels.bias, x.lanes) for m in range(len(outs))]
            sums = sums_of(starts, len(tiles), levels, plan)
            for chunk, quads in spans():
                stored = stored_chunk(w.format, w.chunks, chunk, group, term)
                asks = w.asks(tiles, stored, plan.ahead if quads.start == w.lanes.start == 0 else [])
                taken = Chunk(w.words(tiles, stored), x, chunk * CHUNK, quads, levels)
                for act in interleaved(sums.dots(taken), asks):
                    act()
            for side, tile in enumerate(tiles):
                scale_term(outs, sums, w, x, side, tile, group, term)
        if w.format.offset == "mins":
            for side, tile in enumerate(tiles):
                add_mins(outs, w, x, side, tile, group)
    return [[out.get() for out in row] for row in outs]


Spans = Iterator[tuple[Value, range]]


def groups(chunks: Value, group_size: int, unroll: int) -> Iterator[tuple[Operand, Callable[[], Spans]]]:
    """Each group of weights along K, and a function that goes over its chunks, and which quads of them; makes loops."""
    if group_size == 0:
        yield 0, lambda: row_spans(chunks, unroll)
    elif group_size >= CHUNK:
        per_group = group_size // CHUNK
        for group in loop(0, chunks // per_group):
            yield group, partial(group_spans, group * per_group, per_group, unroll)
    else:
        quads = group_size // 4
        for chunk in loop(0, chunks):
            for part in range(CHUNK // group_size):
                span = (chunk, range(part * quads, (part + 1) * quads))
                yield chunk * (CHUNK // group_size) + part, partial(iter, [span])


def row_spans(chunks: Value, unroll: int) -> Spans:
    """All chunks of a row, `unroll` a turn, then the rest one by one."""
    whole = chunks // unroll * unroll
    for chunk in loop(0, whole, unroll):
        for i in range(unroll):
            yield chunk + i, range(QUADS)
    if unroll > 1:
        for chunk in loop(whole, chunks):
            yield chunk, range(QUADS)


def group_spans(first: Value, per_group: int, unroll: int) -> Spans:
    """The chunks of one group, `unroll` a turn; without a loop where one turn is enough."""
    step = unroll if per_group % unroll == 0 else 1
    if per_group <= unroll:
        for i in range(per_group):
            yield first + i, range(QUADS)
        return
    for chunk in loop(0, per_group, step):
        for i in range(step):
            yield first + (chunk + i), range(QUADS)


def scale_term(outs: list, sums: Sums, w: W, x: X, side: int, tile: int, group: Operand, term: Operand) -> None:
    """out = fma(f32(sum of (level - zero) * xq), scale * x_scale, out)."""
    scale = w.beside.scale(w.rows(tile), group, term)
    zeros = w.beside.zero(w.rows(tile), group) if w.format.offset == "zeros" else None
    for m, row in enumerate(outs):
        acc = sums.total(m, side)
        if zeros is not None:
            acc = acc - zeros * splat(x.sum(m, group), x.lanes)
        row[side].set(fma(convert(acc, f32), scale * x_scale(w, x, m, group), row[side].get()))


def add_mins(outs: list, w: W, x: X, side: int, tile: int, group: Operand) -> None:
    """out = fma(f32(sum of xq), min * x_scale, out)."""
    low = w.beside.low(w.rows(tile), group)
    for m, row in enumerate(outs):
        xsum = splat(convert(x.sum(m, group), f32), x.lanes)
        row[side].set(fma(xsum, low * x_scale(w, x, m, group), row[side].get()))


def x_scale(w: W, x: X, m: int, group: Operand) -> Value:
    return x.scale(m, group if w.format.activation_group else 0)


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
    shape: Plan | None = None,
) -> Step:
    """Bind y = epilogue(x @ weight.T) to buffers.

    weight   mad order
    x        Activations allocated for the weight's format, rows a multiple of tile_m or of 16
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows
    bias     f32 [padded_n] or None
    shape    the plan; None takes the one measured best, else the table's
    Raises KernelError when the buffers do not fit the weight.
    """
    if tile_m in tile_blocks("mad", targets.choose(isa).isa):
        return matmul_tiles.bind(
            weight, x, y, state, epilogue=epilogue, bias=bias, column=column, tile_m=tile_m, isa=isa
        )
    launch = matmul_mad.bind(
        arguments(weight, x, y, state, epilogue, bias, column, tile_m),
        isa, format=weight.format, epilogue=epilogue, has_bias=bias is not None, tile_m=tile_m,
        plan=shape or tuned.plan(weight, tile_m, isa),
    )  # fmt: skip
    return Step(launch, weight.num_pairs, tile_m)
