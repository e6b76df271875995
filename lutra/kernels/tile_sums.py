"""Sums of the products of activations and a panel of levels, in tile registers: traced into the kernels that use them.

Registers 0 to 3 hold sums, 4 and 5 rows of activations, 6 and 7 two row tiles of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lutra.compiler.language import Operand, Tile, Value, i8, i32
from lutra.kernels.tiles import ROWS

SIDES = 2  # row tiles at once
LEFT, RIGHT = 4, 6  # the first register of each operand
SHORT = {32: 16}  # tile_m → the rows of a shorter block, for the last rows


class TileSums:
    """int32 sums of `count` rows of activations, at most 32, and both row tiles; tiles take `depth` weights along K."""

    def __init__(self, count: int, depth: int):
        heights = [min(ROWS, count - first) for first in range(0, count, ROWS)]
        self.sums = [
            [Tile(SIDES * m + side, i32, rows, ROWS) for side in range(SIDES)] for m, rows in enumerate(heights)
        ]
        self.lefts = [Tile(LEFT + m, i8, rows, depth) for m, rows in enumerate(heights)]

    def zero(self) -> None:
        for block in self.sums:
            for tile in block:
                tile.zero()

    def add(self, load: Callable[[Tile, int], None], rights: Sequence[Tile]) -> None:
        """Add the products of what `load` puts into a tile, given its first row, and of two tiles of levels."""
        for m, left in enumerate(self.lefts):
            load(left, m * ROWS)
            for tile, right in zip(self.sums[m], rights, strict=True):
                tile.dot4(left, right)

    def store(self, memory: Value, first: Operand, stride: int) -> None:
        """Write them as [row of activations][side][row]; rows lie `stride` numbers apart."""
        for m, block in enumerate(self.sums):
            for side, tile in enumerate(block):
                tile.store(memory, first + (m * ROWS * stride + side * ROWS), stride)
