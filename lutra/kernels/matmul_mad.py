"""y = x @ w.T for low-bit w by multiply-add: shift the codes out of packed words, dot them with int8 activations.

A vector of 64 bytes holds one packed word of 16 weight rows (tiles.py, mad order).  Byte j of row r carries, in fields
of `bits` bits, the codes of that row's weights 4 s + j: one shift and one mask make the operand of quad s.  The four
activations it meets are the same for all rows, so they are broadcast.  For one row of activations the shift can be left
out: a mask alone makes codes times a power of two, whose sums stay apart until the end of a group (Plan.in_place).

One task is one pair of row tiles times `tile_m` rows of activations, row blocks fastest.
Specification: formats/integer.matmul, bit for bit.
Bounds: a group's int32 sum holds while 127 * 255 * group < 2**31: K < 66,000 in one group, for codes of any width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

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
    i8,
    i32,
    i64,
    load,
    loop,
    prefetch,
    splat,
    u8,
    u32,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.kernels import activations, tuned
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import check_state
from lutra.kernels.epilogue import bias_or_dummy, check_output, finish_pair
from lutra.kernels.plan import Plan
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight
from lutra.kernels.unpack import has_one_field, load_as, quad_in_place, take_quad

VECTOR = 4 * ROWS  # bytes: one packed word of 16 rows
QUADS = CHUNK // 4  # operands in a chunk, each meeting 4 activations

Codes = tuple[Value, int]  # codes of a quad times 2**power, u8x64, and the power


@kernel
def matmul_mad(
    codes: Pointer[u8],
    scales: Pointer[u8],
    zeros: Pointer[u8],
    mins: Pointer[u8],
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
    blocks = (load(state, 0) + (tile_m - 1)) // tile_m
    pair = task // blocks
    rows = [(task % blocks) * tile_m + m for m in range(tile_m)]
    x = X(xq, xs, sums, [r * xq_stride for r in rows], [r * xs_stride for r in rows], [r * sums_stride for r in rows])
    w = W(codes, scales, zeros, mins, pair, chunks, format)
    with when(pair < pairs):
        passes = [multiply(w, x, range(t, t + plan.tiles), plan) for t in range(0, 2, plan.tiles)]
        for m, row in enumerate(rows):
            outs = [out for one in passes for out in one[m]]
            finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass(frozen=True)
class X:
    """Activations of a row block: pointers, and where each row starts."""

    xq: Value
    xs: Value
    sums: Value
    xq_rows: list[Value]
    xs_rows: list[Value]
    sums_rows: list[Value]

    def quad(self, m: int, k: Value) -> Value:
        """Activations k .. k + 3 of row m, in every lane: i8x64."""
        return bitcast(splat(bitcast(load(self.xq, self.xq_rows[m] + k, 4), i32), ROWS), i8)

    def scale(self, m: int, group: Operand) -> Value:
        return splat(load(self.xs, self.xs_rows[m] + group), ROWS)

    def sum(self, m: int, group: Operand) -> Value:
        return load(self.sums, self.sums_rows[m] + group)


@dataclass(frozen=True)
class W:
    """A pair of row tiles of the weight: pointers, which pair, and what its bits mean."""

    codes: Value
    scales: Value
    zeros: Value
    mins: Value
    pair: Value
    chunks: Value
    format: Format

    def words(self, tiles: range, chunk: Value, ahead: Sequence[tuple[int, int]]) -> list[list[Value]]:
        """Packed words [tile][word] of a chunk, read in the order they lie in memory: u32x16, one row a lane."""
        start = (self.pair * self.chunks + chunk) * (self.format.bits * 2 * VECTOR)
        words: list[list[Value]] = [[] for _ in tiles]
        for word in range(self.format.bits):
            for side, tile in enumerate(tiles):
                at = start + (2 * word + tile) * VECTOR
                for level, distance in ahead:
                    prefetch(self.codes, at + distance, level)
                words[side].append(bitcast(load(self.codes, at, VECTOR), u32))
        return words

    def sidecar(self, pointer: Value, dtype: str, tile: int, group: Operand) -> Value:
        """Scales, zeros or mins of 16 rows for one group."""
        size = self.format.group_size
        num_groups = self.chunks * CHUNK // size if size else 1
        return load_as(pointer, (self.pair * num_groups + group) * PAIR + tile * ROWS, dtype, ROWS)


class Sums:
    """int32 sums of one group: [row of activations][row tile][power][partial]; a partial holds its sum times 2**power.

    The first partial of power 0 starts at `starts[row]`, minus what the constant zero takes from every code; the others
    at 0.  `accumulators` are shared out to the powers.
    """

    def __init__(self, starts: list[Value], tiles: int, powers: Sequence[int], accumulators: int):
        none, count = const(0, i32, ROWS), max(1, accumulators // len(powers))
        self.parts = [
            [
                {power: [var(none if power or part else start) for part in range(count)] for power in powers}
                for _ in range(tiles)
            ]
            for start in starts
        ]

    def add(self, m: int, side: int, codes: list[Codes], fours: list[Value], bits: int) -> None:
        """Add the dot products of codes and activations, quad by quad, dealt to the partials in turn."""
        for power, parts in self.parts[m][side].items():
            ours = [(code, four) for (code, found), four in zip(codes, fours, strict=True) if found == power]
            for i, part in enumerate(parts):
                if dealt := ours[i :: len(parts)]:
                    part.set(dot4_sum(part, dealt, bound=(2**bits - 1) << power))

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


def multiply(w: W, x: X, tiles: range, plan: Plan) -> list[list[Value]]:
    """f32x16 results [row of activations][tile], groups added in ascending order."""
    outs = [[var(const(0.0, f32, ROWS)) for _ in tiles] for _ in x.xq_rows]
    bits, ahead = w.format.bits, plan.ahead
    in_place = plan.in_place and has_one_field(bits)
    powers = range(0, 8, bits) if in_place else [0]
    for group, spans in groups(w.chunks, w.format.group_size, plan.unroll):
        starts = [splat(x.sum(m, group) * -w.format.zero, ROWS) for m in range(len(outs))]
        sums = Sums(starts, len(tiles), powers, plan.accumulators)
        for chunk, quads in spans:
            words = w.words(tiles, chunk, ahead if quads.start == 0 else [])
            codes = [[quad_codes(both, quad, bits, in_place) for quad in quads] for both in words]
            add_chunk(sums, x, codes, bits, chunk, quads)
        for side, tile in enumerate(tiles):
            scale_group(outs, sums, w, x, side, tile, group)
    return [[out.get() for out in row] for row in outs]


Spans = Iterator[tuple[Value, range]]


def groups(chunks: Value, group_size: int, unroll: int) -> Iterator[tuple[Operand, Spans]]:
    """Each group of weights along K, with the chunks (and which quads of them) it is made of; makes the loops."""
    if group_size == 0:
        yield 0, row_spans(chunks, unroll)
    elif group_size >= CHUNK:
        per_group = group_size // CHUNK
        for group in loop(0, chunks // per_group):
            yield group, group_spans(group * per_group, per_group, unroll)
    else:
        quads = group_size // 4
        for chunk in loop(0, chunks):
            for part in range(CHUNK // group_size):
                span = (chunk, range(part * quads, (part + 1) * quads))
                yield chunk * (CHUNK // group_size) + part, iter([span])


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


def quad_codes(words: list[Value], quad: int, bits: int, in_place: bool) -> Codes:
    """The codes of a quad times a power of two."""
    return quad_in_place(words, quad, bits) if in_place else (take_quad(words, quad, bits), 0)


def add_chunk(sums: Sums, x: X, codes: list[list[Codes]], bits: int, chunk: Value, quads: range) -> None:
    """One dot4 for each quad, row of activations and row tile."""
    for m in range(len(x.xq_rows)):
        fours = [x.quad(m, chunk * CHUNK + 4 * quad) for quad in quads]
        for side, ours in enumerate(codes):
            sums.add(m, side, ours, fours, bits)


def scale_group(outs: list, sums: Sums, w: W, x: X, side: int, tile: int, group: Operand) -> None:
    """out += f32(sum of (code - zero) * xq) * (scale * x_scale); then the same for the group's minimum."""
    f = w.format
    scale = convert(w.sidecar(w.scales, f.scale_dtype, tile, group), f32)
    zeros = convert(w.sidecar(w.zeros, "u8", tile, group), i32) if f.offset == "zeros" else None
    low = convert(w.sidecar(w.mins, f.scale_dtype, tile, group), f32) if f.offset == "mins" else None
    for m, row in enumerate(outs):
        acc, x_scale = sums.total(m, side), x.scale(m, group if f.activation_group else 0)
        if zeros is not None:
            acc = acc - zeros * splat(x.sum(m, group), ROWS)
        row[side] += convert(acc, f32) * (scale * x_scale)
        if low is not None:
            row[side] += splat(convert(x.sum(m, group), f32), ROWS) * (low * x_scale)


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
    x        Activations allocated for the weight's format, rows a multiple of tile_m
    y        f32 [rows, stride]; outputs go to columns `column` ...
    state    int64; state[0] is the number of rows
    bias     f32 [padded_n] or None
    shape    the plan; None takes the one measured best, else the table's
    Raises KernelError when the buffers do not fit the weight.
    """
    format = weight.format
    if format is None or weight.order != "mad":
        raise KernelError(f"expected a weight in mad order, got {weight.order}; make it with tiles.tile_mad")
    check_output(weight, y, column, epilogue, bias, tile_m)
    activations.check(x, weight, tile_m, "")
    check_state(state)
    launch = matmul_mad.bind(
        dict(
            codes=weight.codes, scales=weight.scales, zeros=weight.zeros, mins=weight.mins,
            xq=x.xq, xs=x.xs, sums=x.sums, bias=bias_or_dummy(bias), y=y, state=state,
            pairs=weight.num_pairs, chunks=weight.padded_k // CHUNK, xq_stride=x.xq.shape[1],
            xs_stride=x.xs.shape[1], sums_stride=x.sums.shape[1], y_stride=y.shape[1], y_column=column,
        ),
        isa, format=format, epilogue=epilogue, has_bias=bias is not None, tile_m=tile_m,
        plan=shape or tuned.plan(weight, tile_m, isa),
    )  # fmt: skip
    return Step(launch, weight.num_pairs, tile_m)
