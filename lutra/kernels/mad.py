"""What the kernels of mad order share: the packed words of a pair of row tiles, and their arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import numpy as np

from lutra.compiler.language import Operand, Value, bitcast, load, prefetch, u32
from lutra.errors import KernelError
from lutra.formats.format import Format
from lutra.kernels import activations
from lutra.kernels.activations import Activations
from lutra.kernels.beside import Beside, Row
from lutra.kernels.epilogue import outputs
from lutra.kernels.interleave import Act
from lutra.kernels.tiles import CHUNK, ROWS, TiledWeight

VECTOR = 4 * ROWS  # bytes: one packed word of 16 rows
PADDED = 16  # rows of activations that buffers hold a multiple of


@dataclass(frozen=True)
class W:
    """A pair of row tiles of the weight: its codes, which pair, what its bits mean, and the scales beside them.

    lanes   which rows of its tiles are meant
    """

    codes: Value
    pair: Value
    chunks: Value
    format: Format
    beside: Beside
    lanes: range

    def words(self, tiles: range, chunk: Operand) -> list[list[Value]]:
        """Packed words [tile][word] of a chunk, read in the order they lie in memory: u32, one row a lane."""
        words: list[list[Value]] = [[] for _ in tiles]
        for at, side in self._lines(tiles, chunk):
            words[side].append(bitcast(load(self.codes, at, 4 * len(self.lanes)), u32))
        return words

    def asks(self, tiles: range, chunk: Operand, ahead: Sequence[tuple[int, int]]) -> list[Act]:
        """What asks for the lines that lie ahead of a chunk's, one call a line."""
        lines = [at for at, _ in self._lines(tiles, chunk)]
        return [partial(prefetch, self.codes, at + distance, level) for at in lines for level, distance in ahead]

    def _lines(self, tiles: range, chunk: Operand) -> list[tuple[Value, int]]:
        """Where the words of a chunk start, and whose of `tiles` they are."""
        start = (self.pair * (self.chunks * self.format.terms) + chunk) * (self.format.bits * 2 * VECTOR)
        places = [(word, side, tile) for word in range(self.format.bits) for side, tile in enumerate(tiles)]
        first = 4 * self.lanes.start
        return [(start + ((2 * word + tile) * VECTOR + first), side) for word, side, tile in places]

    @property
    def group_bytes(self) -> int:
        """Bytes of codes of a group, of both tiles; as if endless where a row is one group."""
        f = self.format
        return f.group_size * f.bits * f.terms * 2 * ROWS // 8 or sys.maxsize

    def rows(self, tile: int) -> Row:
        return Row(self.pair, tile * ROWS + self.lanes.start, len(self.lanes))


def arguments(
    weight: TiledWeight, x: Activations, y: np.ndarray, state: np.ndarray, epilogue: str, bias: np.ndarray | None,
    column: int, tile_m: int,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of the kernel, checked; as for `bind`."""
    if weight.format is None or weight.order != "mad":
        raise KernelError(f"expected a weight in mad order, got {weight.order}; make it with tiles.tile_mad")
    multiple = gcd(tile_m, PADDED)  # other rows of a block are not touched unless they are there
    written = outputs(weight, y, state, column, epilogue, bias, multiple)
    activations.check(x, weight, multiple, "")
    return written | dict(
        codes=weight.codes, scales=weight.scales, zeros=weight.zeros, mins=weight.mins,
        super_scales=weight.super_scales, super_mins=weight.super_mins,
        xq=x.xq, xs=x.xs, sums=x.sums, chunks=weight.padded_k // CHUNK,
        xq_stride=x.xq.shape[1], xs_stride=x.xs.shape[1], sums_stride=x.sums.shape[1],
    )  # fmt: skip


def row_counts(rest: Value, tile_m: int, shorter: Mapping[int, int]) -> list[tuple[int, Value | None]]:
    """Numbers of rows that code is made for, and when each is chosen: the fewest that hold the `rest` rows.

    shorter   tile_m → the rows of a shorter block, where there is one
    """
    short = shorter.get(tile_m)
    return [(tile_m, rest > short), (short, rest <= short)] if short else [(tile_m, None)]
