"""What stands beside the codes of a weight: scales, zeros and mins of its rows as f32, out of pair order (tiles.py).

The meaning of stored scales is formats/scales.py's; of two levels the product is rounded once, before anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lutra.compiler.language import Operand, Value, bitcast, convert, f16, f32, i32, load, loop, maximum, prefetch, u16
from lutra.formats import scales
from lutra.formats.format import Format
from lutra.kernels.buffers import LINE_BYTES
from lutra.kernels.tiles import CHUNK, PAIR
from lutra.kernels.unpack import load_as

# type of a stored scale -> type its bits are loaded as, where that is another
LOADED_AS = {"e8m0": "u8", "e4m3": "u8"}


@dataclass(frozen=True)
class Beside:
    """The arrays beside the codes: pointers, the chunks of a row, and what they mean."""

    scales: Value
    zeros: Value
    mins: Value
    super_scales: Value
    super_mins: Value
    chunks: Value
    format: Format

    @property
    def num_groups(self) -> Operand:
        size = self.format.group_size
        if size >= CHUNK:
            return self.chunks // (size // CHUNK)
        return self.chunks * (CHUNK // size) if size else 1

    def scale(self, row: Row, group: Operand, term: Operand = 0) -> Value:
        """f32: the scales of one term in one group."""
        f = self.format
        at = group if f.terms == 1 else group * f.terms + term
        lower = self._load(self.scales, f.scale_dtype, row, self.num_groups * f.terms, at)
        return self._times_upper(lower, self.super_scales, row, group)

    def low(self, row: Row, group: Operand) -> Value:
        """f32: the mins of one group."""
        lower = self._load(self.mins, self.format.scale_dtype, row, self.num_groups, group)
        return self._times_upper(lower, self.super_mins, row, group)

    def zero(self, row: Row, group: Operand) -> Value:
        """i32: the zeros of one group."""
        return convert(load(self.zeros, row.index(self.num_groups, group), row.lanes), i32)

    def ask(self, pair: Value, group: Operand) -> None:
        """Ask for what the group has beside its codes; it may lie beyond this pair's groups: then in the next pair."""
        for name, size in self._sizes().items():
            for line in range(0, size, LINE_BYTES):
                prefetch(getattr(self, name), (pair * self.num_groups + group) * size + line, level=2)

    def _sizes(self) -> dict[str, int]:
        """Bytes of each array that a pair has for one group; upper scales serve many groups and are not asked for."""
        f = self.format
        found = {"scales": scales.DTYPES[f.scale_dtype].itemsize * PAIR * f.terms}
        if f.offset != "none":
            found[f.offset] = (1 if f.offset == "zeros" else scales.DTYPES[f.scale_dtype].itemsize) * PAIR
        return found

    def _times_upper(self, lower: Value, upper: Value, row: Row, group: Operand) -> Value:
        f = self.format
        if f.scale_kind == "float":
            return lower
        if not f.super_group:
            return lower * self._load(upper, f.super_dtype, row, 1, 0)
        per_super = f.super_group // CHUNK
        supers = (self.chunks + (per_super - 1)) // per_super
        return lower * self._load(upper, f.super_dtype, row, supers, group * f.group_size // f.super_group)

    def _load(self, pointer: Value, kind: str, row: Row, columns: Operand, column: Operand) -> Value:
        return widen(load_as(pointer, row.index(columns, column), LOADED_AS.get(kind, kind), row.lanes), kind)


@dataclass(frozen=True)
class Row:
    """Rows that lie side by side: which pair, where in it, and how many."""

    pair: Value
    first: Operand
    lanes: int

    def index(self, columns: Operand, column: Operand) -> Value:
        return (self.pair * columns + column) * PAIR + self.first


def terms_of(format: Format) -> Iterator[Operand]:
    """Each term of a group.  A loop in the machine code too, or the code outgrows the cache of decoded instructions."""
    yield from loop(0, format.terms) if format.terms > 1 else [0]


def stored_chunk(format: Format, chunks: Value, chunk: Value, group: Operand, term: Operand) -> Value:
    """Where the codes of a chunk and term are stored, in chunks: the terms of a group lie one behind the other."""
    if format.terms == 1:
        return chunk
    return chunk + (group * (format.terms - 1) + term) * (format.group_size // CHUNK if format.group_size else chunks)


def widen(stored: Value, kind: str) -> Value:
    """f32 values of stored scales: formats/scales.widen."""
    if kind == "e8m0":  # the exponent's place in an f32; 2**-127 is subnormal, its highest bit one place lower
        return bitcast(maximum(convert(stored, i32) << 23, 1 << 22), f32)
    if kind == "e4m3":  # an f16 of the same exponent bits is 2**-8 times it, subnormals too
        wide = convert(stored, u16)
        return convert(bitcast((wide & 0x80) << 8 | (wide & 0x7F) << 7, f16), f32) * 256.0
    return convert(stored, f32)
