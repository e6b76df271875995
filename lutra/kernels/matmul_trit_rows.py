"""y = x @ w.T for ternary weights of 1.6 bits and several rows of activations: trits out of bytes, then dot4.

Meaning: formats/integer.matmul, bit for bit.  The bytes are those that matmul_trit.py looks sums up with; for one row
of activations that is cheaper, but it shares nothing between rows.  Here a byte is taken apart once for `tile_m` rows.

One task is 64 weight rows, a vector of a tile, times `tile_m` rows of activations, row blocks fastest.  The vectors of
four steps are interleaved byte by byte, then two by two:

    lane 0 .. 15 of a vector   bytes of rows lane, 16 + lane, 32 + lane, 48 + lane         of one step
    lane 4 j + t of quarter q  bytes of steps 0 .. 3                                       of row 16 t + 4 j + q

A byte's magnitude looks up the four low trits, as codes 0 .. 2 in fields of two bits; the highest trit is 0 up to a
magnitude of 40.  A negative byte turns its codes c into 2 - c.  The codes of one place, four steps to a lane, meet the
activations of trit_places.py.  A plan's tiles are the quarters in registers at once; with 2 or 4 accumulators the
fields are not all shifted down, and places that count 4 or more are summed apart.

Instructions of 64 bytes: 2 to bring the steps together, 14 to 16 to take them apart, 5 dot4 for each row.
Bounds    |sum| <= 2 * 64 * 127 * K / 5 fits int32; QTensor allows K = 65,536 in a row
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Operand,
    Pointer,
    Value,
    Var,
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
    lookup,
    loop,
    maximum,
    minimum,
    prefetch,
    select,
    shuffle,
    splat,
    u8,
    u32,
    var,
    when,
)
from lutra.formats import trits
from lutra.formats.format import Format
from lutra.formats.trits import NEGATIVE, TRITS
from lutra.kernels.epilogue import finish_pair
from lutra.kernels.plan import Plan
from lutra.kernels.tiles import PAIR, ROWS
from lutra.kernels.tiles_trit import ENTRIES, GROUP, GROUP_COLUMNS, TILE, VECTOR, VECTORS
from lutra.kernels.unpack import load_as

FIELDS_PLACES = 4  # that a byte of two-bit fields holds
HIGHEST = trits.ENTRIES // 3 + 1  # the least magnitude whose highest trit is not 0: 41
QUARTERS = VECTOR // ROWS  # of the 64 rows of a vector
PAIRS = VECTOR // PAIR


def code_fields() -> np.ndarray:
    """u8 [128]: the four low trits of a magnitude, + 1, two bits each."""
    magnitudes = np.arange(trits.ENTRIES, dtype=np.uint8)[:, None]
    codes = trits.unpack_trits(magnitudes, TRITS)[:, :FIELDS_PLACES].astype(np.int64) + 1
    fields = (codes << 2 * np.arange(FIELDS_PLACES)).sum(1)
    return np.pad(fields, (0, ENTRIES - len(fields))).astype(np.uint8)


@kernel
def matmul_trit_rows(
    codes: Pointer[u8],
    scales: Pointer[u8],
    fields: Pointer[u8],
    places: Pointer[i8],
    xs: Pointer[f32],
    sums: Pointer[i32],
    bias: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    pairs: i64,
    steps: i64,
    places_stride: i64,
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
    """`pairs` counts 32 weight rows, `steps` 5 weights along K; y_column is where outputs start in a row of y."""
    blocks = (load(state, 0) + (tile_m - 1)) // tile_m
    vector = task // blocks
    rows = [(task % blocks) * tile_m + m for m in range(tile_m)]
    table = load(fields, 0, ENTRIES)
    x = X(places, sums, [row * places_stride for row in rows], rows)
    source = Source(codes, vector // VECTORS * (steps * TILE), vector % VECTORS, steps, plan)
    passes = [multiply(source, x, table, first) for first in range(0, QUARTERS, plan.tiles)]
    for m, row in enumerate(rows):
        tiles = in_order([quarter for one in passes for quarter in one[m]])
        x_scale = splat(load(xs, row), ROWS)
        for side in range(PAIRS):
            pair = vector * PAIRS + side
            with when(pair < pairs):
                outs = scaled(tiles[2 * side : 2 * side + 2], scales, pair, x_scale, format)
                finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


def scaled(sums: list[Value], scales: Value, pair: Value, x_scale: Value, format: Format) -> list[Value]:
    """The outputs of 32 weight rows, two f32x16, of their sums i32x16."""
    outs = []
    for part, total in enumerate(sums):
        scale = convert(load_as(scales, pair * PAIR + part * ROWS, format.scale_dtype, ROWS), f32)
        outs.append(fma(convert(total, f32), scale * x_scale, const(0.0, f32, ROWS)))
    return outs


@dataclass(frozen=True)
class X:
    """Activations of a row block: pointers, where each row starts in `places`, and its number."""

    places: Value
    sums: Value
    starts: list[Value]
    rows: list[Value]

    def word(self, m: int, group: Value, place: int) -> Value:
        """The four activations of one place in a group, in every lane: i8x64."""
        at = self.starts[m] + (group * GROUP_COLUMNS + place * GROUP)
        return bitcast(splat(bitcast(load(self.places, at, GROUP), i32), ROWS), i8)

    def start(self, m: int) -> Value:
        """What the 1 in every code takes from a sum."""
        return splat(0 - load(self.sums, self.rows[m]), ROWS)


@dataclass(frozen=True)
class Source:
    """The codes of one vector of rows: pointer, the first byte of its tile, which vector of it, steps of a row."""

    codes: Value
    tile: Value
    vector: Value
    steps: Value
    plan: Plan

    def quarters(self, group: Operand, first: int, last: Value | None = None) -> list[Value]:
        """Four steps of 16 rows, a step a byte, for the quarters of a pass: u8x64.

        last   the last step there is, where a group may reach beyond: it is repeated, and its activations are 0
        """
        steps = [group * GROUP + i for i in range(GROUP)]
        steps = steps if last is None else [minimum(step, last) for step in steps]
        a, b, c, d = (load(self.codes, self.tile + (step * TILE + self.vector * VECTOR), VECTOR) for step in steps)
        return [
            interleave(interleave(a, b, 1, quarter // 2), interleave(c, d, 1, quarter // 2), 2, quarter % 2)
            for quarter in range(first, first + self.plan.tiles)
        ]

    def fetch_ahead(self, groups: Value, group: Value, first: int) -> None:
        """Ask for a line of the next tile in each group and quarter: they make up a tile."""
        for i in range(self.plan.tiles):
            line = (self.vector * QUARTERS + first) * groups + (group * self.plan.tiles + i)
            prefetch(self.codes, self.tile + (self.steps * TILE + line * VECTOR), 2)


def interleave(a: Value, b: Value, size: int, half: int) -> Value:
    """Units of `size` bytes of a and b in turn, from the low or high half of every 16 bytes."""
    picks = range(half * 8, half * 8 + 8, size)
    return shuffle(
        a, b,
        [block + vector + at + i for block in range(0, VECTOR, 16) for at in picks for vector in (0, VECTOR)
         for i in range(size)],
    )  # fmt: skip


def in_order(quarters: list[Value]) -> list[Value]:
    """i32x16 of quarters → of the four row tiles: lane 4 j + q of tile t is lane 4 j + t of quarter q."""

    def mix(a: Value, b: Value, lanes: tuple[int, ...]) -> Value:
        return shuffle(a, b, [4 * j + lane % 4 + lane // 4 * ROWS for j in range(4) for lane in lanes])

    low, high = ([mix(quarters[i], quarters[i + 1], lanes) for i in (0, 2)] for lanes in ((0, 4, 1, 5), (2, 6, 3, 7)))
    return [mix(*halves, lanes) for halves in (low, high) for lanes in ((0, 1, 4, 5), (2, 3, 6, 7))]


def multiply(source: Source, x: X, table: Value, first: int) -> list[list[Value]]:
    """i32x16 sums [row of activations][quarter] of (code - 1) * activation, for the quarters of one pass."""
    plan, none = source.plan, const(0, i32, ROWS)
    acc = [
        [[var(none if part else x.start(m)) for part in range(plan.accumulators)] for _ in range(plan.tiles)]
        for m in range(len(x.rows))
    ]
    groups, last = (source.steps + (GROUP - 1)) // GROUP, source.steps - 1
    bounds = 0, maximum(source.steps // GROUP - 1, 0), groups

    def looked_up(group: Operand, last: Value | None) -> list[tuple[Value, Value]]:
        return [look_up(byte, table) for byte in source.quarters(group, first, last)]

    # one group ahead: else the dot products that wait for a lookup fill the CPU's queue, and nothing overlaps
    ready = [tuple(var(part) for part in one) for one in looked_up(const(0, i64), last)]
    for begin, end, limit in ((*bounds[:2], None), (*bounds[1:], last)):
        for group in loop(begin, end):
            if plan.second_bytes:
                source.fetch_ahead(groups, group, first)
            now = [(four.get(), highest.get()) for four, highest in ready]
            for slots, parts in zip(ready, looked_up(group + 1, limit), strict=True):
                for slot, part in zip(slots, parts, strict=True):
                    slot.set(part)
            for quarter, (four, highest) in enumerate(now):
                codes = take_apart(four, highest, plan.accumulators)
                add_quarter([row[quarter] for row in acc], x, group, codes)
    return [[_total([part.get() for part in parts]) for parts in row] for row in acc]


def _total(parts: list[Value]) -> Value:
    """Sums apart, those of field f counting 4**f each, as one."""
    total = parts[0]
    for field, part in enumerate(parts[1:], 1):
        total = total + (part >> 2 * field)
    return total


def add_quarter(acc: list[list[Var]], x: X, group: Value, codes: list[Value]) -> None:
    """Five dot4 for each row of activations."""
    for m, parts in enumerate(acc):
        words = [x.word(m, group, place) for place in range(TRITS)]
        for field, part in enumerate(parts):
            pairs = [(codes[place], words[place]) for place in range(TRITS) if field_of(place, len(parts)) == field]
            part.set(dot4_sum(part, pairs, bound=2 << 2 * field))


def field_of(place: int, fields: int) -> int:
    """Which field the codes of a place stay in; the fifth are made in the lowest."""
    return place % fields if place < FIELDS_PLACES else 0


def look_up(byte: Value, table: Value) -> tuple[Value, Value]:
    """Fields of the four low places, and codes of the highest: u8x64 each."""
    negative, magnitude = byte >= NEGATIVE, byte & (NEGATIVE - 1)
    four = lookup(table, magnitude)
    highest = select(magnitude >= HIGHEST, const(2, u8, VECTOR), const(1, u8, VECTOR))
    return select(negative, 0xAA - four, four), select(negative, 2 - highest, highest)


def take_apart(four: Value, highest: Value, fields: int) -> list[Value]:
    """Codes 0 .. 2 of the five places, those of field f times 4**f."""
    words = bitcast(four, u32)
    codes = []
    for place in range(FIELDS_PLACES):
        field = field_of(place, fields)
        moved = words >> 2 * (place - field) if place > field else words
        codes.append(bitcast(moved, u8) & 3 << 2 * field)
    return [*codes, highest]
