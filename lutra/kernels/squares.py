"""Sums in squares of 2 weight rows x 2 rows of activations: how matmul_mad.py uses an instruction for matrices.

In 128 bits `dot2x2` makes 32 products where dot4 makes 16.  It wants 8 weights of a row side by side, so the codes of
two quads are interleaved, and so are the activations of two rows, m and n:

    codes         r0 r0 | r1 r1     r2 r2 | r3 r3     ...    four codes each: of a quad, then of the next
    activations   m  m  | n  n      m  m  | n  n      ...    the same in every square
    sums          r0.m r0.n r1.m r1.n   r2.m r2.n r3.m r3.n  ...

A square is a register of four sums on ARM, which has 32: those of 8 weight rows x 8 rows of activations, or of 16 x 4,
are 16 of them, and leave room for codes, activations and what is on its way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lutra.compiler.language import Value, bitcast, dot2x2, i8, shuffle, u8, u32, var
from lutra.kernels.interleave import Act

if TYPE_CHECKING:
    from lutra.kernels.matmul_mad import Chunk


class Squares:
    """int32 sums of one term in one group: [two rows of activations][row tile].

    starts   of the sums of each row of activations, i32xL; of an odd number the last row is multiplied twice
    """

    def __init__(self, starts: list[Value], tiles: int):
        self.lanes = starts[0].type.lanes
        self.twos = [(m, min(m + 1, len(starts) - 1)) for m in range(0, len(starts), 2)]
        firsts = [shuffle(starts[m], starts[n], [0, self.lanes] * self.lanes) for m, n in self.twos]
        self.sums = [[var(first) for _ in range(tiles)] for first in firsts]

    def dots(self, chunk: Chunk) -> list[Act]:
        """What adds the dot products of a chunk: a call for every two quads."""
        return [partial(self._add, chunk, quad) for quad in chunk.quads[::2]]

    def _add(self, chunk: Chunk, quad: int) -> None:
        codes = [eights(chunk.codes(side, quad), chunk.codes(side, quad + 1)) for side in range(len(self.sums[0]))]
        for (m, n), tiles in zip(self.twos, self.sums, strict=True):
            xs = activations(chunk.eights(m), chunk.eights(n), quad // 2, self.lanes // 2)
            for total, code in zip(tiles, codes, strict=True):
                total.set(dot2x2(total, code, xs, bound=chunk.levels.bound))

    def total(self, m: int, side: int) -> Value:
        """The sums of one row of activations and a tile: i32xL."""
        sums = self.sums[m // 2][side].get()
        return shuffle(sums, sums, range(m % 2, 2 * self.lanes, 2))


def eights(a: Value, b: Value) -> Value:
    """The four bytes of each row in a, followed by those in b: two u8x(4 L) to u8x(8 L)."""
    first, second = bitcast(a, u32), bitcast(b, u32)
    lanes = first.type.lanes
    return bitcast(shuffle(first, second, [row + quad for row in range(lanes) for quad in (0, lanes)]), u8)


def activations(first: Value, second: Value, eight: int, squares: int) -> Value:
    """Eight activations of either row, the same in all squares: two i64x4 to i8x(16 squares)."""
    return bitcast(shuffle(first, second, [eight, 4 + eight] * squares), i8)
