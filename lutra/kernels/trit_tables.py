"""Tables for matmul_trit.py: sums of five activations as two bytes, for every magnitude of five trits.

One task is the parts of 64 tables of one row of activations; `half_table` makes a table of them where it is needed.

A magnitude v = 0 .. 121 falls into w + 27 a: the first three trits give w = -13 .. 13, the other two a = 0 .. 4.  So
an entry is one of 27 sums of three activations plus one of 5 sums of two, and all 32, cut into low and high bytes, fit
one vector `parts`; the table is that vector shuffled twice and added.

    parts    byte 4 * (i % 16) + 2 * (i / 16) + half of sum i          i = 0 .. 31, half 0 low, 1 high

    |sum of three| <= 381 = 15 * 25 + 6,   |sum of two| <= 254 = 10 * 25 + 4:    |low| <= 12 + 12, |high| <= 15 + 10

Meaning: low + 25 * high equals formats/trits.build_trit_tables.  Entries 122 .. 127 repeat 121; nothing reads them.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    bitcast,
    concat,
    const,
    dot4,
    i8,
    i32,
    i64,
    load,
    loop,
    minimum,
    shuffle,
    splat,
    store,
    u8,
)
from lutra.compiler.launch import Step
from lutra.formats import trits
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import check_state
from lutra.kernels.tiles_trit import ENTRIES, HIGH, PARTS
from lutra.kernels.trit_places import buffers

TABLES = 64  # of a task
LANES = 16  # int32 sums of a vector
THREES = 27  # sums of three activations
# high = (sum * 82 + 1024) >> 11 is sum / 25, rounded well enough for the bounds above
FACTOR, SHIFT = 82, 11


def _trits(number: int, places: int) -> list[int]:
    """Digits of a number in balanced base 3."""
    return [(number + (3**places - 1) // 2) // 3**place % 3 - 1 for place in range(places)]


# What each of 32 sums counts of the activations: x0 .. x2 for the first 27, x3 and x4 for the rest (from x1 .. x4).
COUNTS = [[*_trits(w - THREES // 2, 3), 0] for w in range(THREES)] + [[0, 0, *_trits(a, 2)] for a in range(5)]


@kernel
def trit_tables(xq: Pointer[i8], parts: Pointer[i8], state: Pointer[i64], xq_stride: i64, steps: i64, task: i64):
    """`steps` counts tables of a row."""
    rows = load(state, 0)
    row, first = task % rows, task // rows * TABLES
    for step in loop(first, minimum(first + TABLES, steps)):
        store(parts, (row * steps + step) * PARTS, both_bytes(*sums(xq, row * xq_stride + step * trits.TRITS)))


def sums(xq: Value, at: Value) -> list[tuple[Value, Value]]:
    """(sum, its high part) of the 32 sums, 16 at a time."""
    first, last = (splat(bitcast(load(xq, at + i, 4), i32), LANES) for i in (0, 1))
    mixed = shuffle(first, last, [lane if lane < THREES - LANES else LANES + lane for lane in range(LANES)])
    return [_sums(four, COUNTS[i * LANES : (i + 1) * LANES]) for i, four in enumerate((first, mixed))]


def _sums(four: Value, counts: list[list[int]]) -> tuple[Value, Value]:
    """Added and subtracted activations apart: with x + 128 as the unsigned operand LLVM 22 never ends legalising it."""
    each = [count for row in counts for count in row]
    x = bitcast(four, i8)

    def weighted(factor: int, start: int) -> Value:
        plus, minus = (vector([factor * (count == sign) for count in each], u8) for sign in (1, -1))
        added = dot4(const(start, i32, LANES), plus, x, bound=factor)
        return added - dot4(const(0, i32, LANES), minus, x, bound=factor)

    return weighted(1, 0), weighted(FACTOR, 1 << SHIFT - 1) >> SHIFT


def vector(numbers: list[int], dtype) -> Value:
    """Constants that differ from lane to lane; small ones."""
    lanes = len(numbers)
    values = sorted(set(numbers))
    result = const(values[0], dtype, lanes)
    for value in values[1:]:
        picks = [lane + lanes * (number >= value) for lane, number in enumerate(numbers)]
        result = shuffle(result, const(value, dtype, lanes), picks)
    return result


def both_bytes(first: tuple[Value, Value], second: tuple[Value, Value]) -> Value:
    """The parts, i8x64, of two vectors of sums."""
    bytes_ = [part & 255 for sum_, high in (first, second) for part in (sum_ - high * HIGH, high)]
    return bitcast(bytes_[0] | bytes_[1] << 8 | bytes_[2] << 16 | bytes_[3] << 24, i8)


def half_table(parts: Value, half: int) -> Value:
    """i8x128: the low bytes (half 0) or the high bytes of a table."""
    first, last = (_entries(parts, half, range(start, start + PARTS)) for start in range(0, ENTRIES, PARTS))
    return concat(first, last)


def _entries(parts: Value, half: int, magnitudes: range) -> Value:
    picks = [part_places(min(magnitude, trits.ENTRIES - 1), half) for magnitude in magnitudes]
    threes, twos = zip(*picks, strict=True)
    return shuffle(parts, parts, threes) + shuffle(parts, parts, twos)


def part_places(magnitude: int, half: int) -> tuple[int, int]:
    """Where the two bytes stand whose sum is an entry's low or high byte."""
    a, w = divmod(magnitude + THREES // 2, THREES)
    three, two = (4 * (i % LANES) + 2 * (i // LANES) + half for i in (w, THREES + a))
    return three, two


def bind(x: Activations, state: np.ndarray, *, isa: str | None = None) -> Step:
    """Fill x.trits from x.xq, for state[0] rows.  Raises KernelError when x was allocated without them."""
    parts = buffers(x)[1]
    check_state(state)
    steps = parts.shape[1]
    args = {"xq": x.xq, "parts": parts, "state": state, "xq_stride": x.xq.shape[1], "steps": steps}
    return Step(trit_tables.bind(args, isa), -(-steps // TABLES), 1)
