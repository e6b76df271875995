"""y = x @ w.T for ternary weights of 1.6 bits and many rows, on CPUs with tile registers.

The trits come out of their bytes as in matmul_trit_rows.py, whose vectors and places are those of a tile: the codes of
one place and four steps, of 16 rows of a quarter, are a row of the right operand of Tile.dot4, and three groups of five
such rows are a tile of 60 weights along K.  The left operand is 60 columns of `places`.  The panel is written a step
ahead as in matmul_tiles.py; two quarters of the 64 rows are done at once.

One task is 64 weight rows times `tile_m` rows of activations.  Meaning: formats/integer.matmul, bit for bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Operand,
    Pointer,
    Tile,
    Value,
    const,
    f32,
    i8,
    i32,
    i64,
    load,
    loop,
    maximum,
    minimum,
    scratch,
    select,
    splat,
    store,
    u8,
    when,
)
from lutra.formats.trits import TRITS
from lutra.kernels.epilogue import finish_pair
from lutra.kernels.mad import row_counts
from lutra.kernels.matmul_trit_rows import PAIRS, QUARTERS, Source, in_order, look_up, scaled, take_apart
from lutra.kernels.plan import Plan
from lutra.kernels.tile_sums import RIGHT, SHORT, SIDES, TileSums
from lutra.kernels.tiles import ROWS
from lutra.kernels.tiles_trit import ENTRIES, GROUP, GROUP_COLUMNS, GROUPS, TILE, VECTOR, VECTORS

QUADS = GROUPS * TRITS  # rows of a tile of codes
BOTH = Plan(tiles=SIDES, accumulators=1, unroll=1, prefetch_bytes=0)  # two quarters at once


@kernel
def matmul_trit_tiles(
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
):
    """Parameters as of matmul_trit_rows.matmul_trit_rows."""
    num_rows = load(state, 0)
    blocks = (num_rows + (tile_m - 1)) // tile_m
    vector, first = task // blocks, (task % blocks) * tile_m
    source = Source(codes, vector // VECTORS * (steps * TILE), vector % VECTORS, steps, BOTH)
    panel, totals = Panel(source, load(fields, 0, ENTRIES)), scratch(i32, tile_m * VECTOR)
    for count, chosen in row_counts(num_rows - first, tile_m, SHORT):
        with nullcontext() if chosen is None else when(chosen):
            begin = minimum(first, maximum(num_rows - count, 0))  # tiles are read whole, see matmul_tiles.py
            for quarter in range(0, QUARTERS, SIDES):
                multiply(panel, places, begin, places_stride, totals, count, quarter)
            for m in loop(first - begin, minimum(num_rows - begin, count)):
                row = begin + m
                less = splat(load(sums, row), ROWS)  # what the 1 in every code has added
                quarters = [load(totals, m * VECTOR + q * ROWS, ROWS) - less for q in range(QUARTERS)]
                tiles, x_scale = in_order(quarters), splat(load(xs, row), ROWS)
                for side in range(PAIRS):
                    pair = vector * PAIRS + side
                    with when(pair < pairs):
                        outs = scaled(tiles[2 * side : 2 * side + 2], scales, pair, x_scale, format)
                        finish_pair(outs, y, row * y_stride + y_column, pair, epilogue, bias if has_bias else None)


@dataclass
class Panel:
    """The codes of two steps of two quarters: [step % 2][side][group][place][row][step of the group]."""

    source: Source
    table: Value

    def __post_init__(self) -> None:
        self.groups = (self.source.steps + (GROUP - 1)) // GROUP
        self.steps = (self.groups + (GROUPS - 1)) // GROUPS
        self.room = scratch(u8, 2 * SIDES * QUADS * VECTOR)
        self.tiles = [Tile(RIGHT + side, u8, QUADS, VECTOR) for side in range(SIDES)]

    def first_group(self, step: Operand) -> Value:
        """The last step begins early enough for a whole tile, if the row has as much."""
        return minimum(step * GROUPS, maximum(self.groups - GROUPS, 0))

    def write(self, step: Value, quarter: int) -> None:
        """Take trits out of bytes; a group that the step before had, or that is not there, counts 0."""
        for i in range(GROUPS):
            group = self.first_group(step) + i
            is_new = (group >= step * GROUPS) & (group < self.groups)
            keep = splat(select(is_new, const(255, u8), const(0, u8)), VECTOR)
            for side, byte in enumerate(self.source.quarters(group, quarter, self.source.steps - 1)):
                four, highest = look_up(byte, self.table)
                for place, code in enumerate(take_apart(four & keep, highest & keep, 1)):
                    store(self.room, self._at(step, side) + (i * TRITS + place) * VECTOR, code)

    def load(self, step: Value) -> None:
        for side, tile in enumerate(self.tiles):
            tile.load(self.room, self._at(step, side), VECTOR)

    def _at(self, step: Value, side: int) -> Value:
        return ((step & 1) * SIDES + side) * (QUADS * VECTOR)


def multiply(panel: Panel, places: Value, begin: Value, stride: Value, totals: Value, count: int, quarter: int) -> None:
    """totals[m][quarter][row]: sums of code * activation of `count` rows, for two quarters from `quarter` on."""
    tiles = TileSums(count, GROUPS * GROUP_COLUMNS)
    tiles.zero()
    panel.write(const(0, i64), quarter)
    for step in loop(0, panel.steps):
        panel.write(minimum(step + 1, panel.steps - 1), quarter)
        panel.load(step)
        k = panel.first_group(step) * GROUP_COLUMNS
        tiles.add(lambda tile, row, k=k: tile.load(places, (begin + row) * stride + k, stride), panel.tiles)
    tiles.store(totals, quarter * ROWS, VECTOR)
