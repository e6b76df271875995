"""Codes to the bytes that are multiplied: a code itself, or what a table of levels says, moved above 0.

The first operand of dot4 is unsigned.  A table's levels go up by `bias`, so that the lowest is 0, and the bias comes
out again with the sum of the activations, as the constant zero of evenly spaced codes does.  Floats of 8 bits become
f32, and go without dot4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lutra.compiler.language import Value, bitcast, concat, const, convert, f16, f32, i8, i16, i64, lookup, u8
from lutra.formats.format import Format
from lutra.formats.tables import FLOATS
from lutra.kernels.unpack import has_one_field, quad_in_place, shift_in_place, take_quad

F16_MANTISSA, F16_EXPONENT = 10, 5  # bits
TABLE_SIZES = (16, 128)  # bytes that `lookup` takes
SHORT_GROUP = 128  # weights: with so many of them or fewer, sums are no rarer than bytes


@dataclass(frozen=True)
class Levels:
    """What codes become for dot4.

    table      u8 vector, a level plus bias for each code; None where a code is its own
    bias       what is in every byte beyond the level
    bound      the largest byte
    in_place   codes stay where they stand in a word, times a power of two
    """

    bits: int
    table: Value | None
    bias: int
    bound: int
    in_place: bool

    @property
    def powers(self) -> Sequence[int]:
        """Every power of two that `take` gives."""
        return range(0, 8, self.bits) if self.in_place else [0]

    def power(self, quad: int) -> int:
        """The power of two in what `take` gives for a quad."""
        return shift_in_place(quad, self.bits) if self.in_place else 0

    def take(self, words: list[Value], quad: int) -> Value:
        """The bytes of weights 4 * quad .. 4 * quad + 3 of a chunk: levels plus bias, times 2**power, u8x64."""
        if self.in_place:
            return quad_in_place(words, quad, self.bits)
        codes = take_quad(words, quad, self.bits)
        return codes if self.table is None else lookup(self.table, codes)


class SignedLevels:
    """What codes become for Tile.dot4, whose right operand may be signed.

    dtype   i8: levels; u8: codes, whose sum of products is `zero` times the sum of the activations too large
    zero    0 where each byte is a level: a subtraction in every byte is less than one in the sums of a short group
    """

    def __init__(self, format: Format):
        self.bits, self.table, self.zero, self.shift = format.bits, None, 0, 0
        if format.levels != "uniform":
            self.table = bitcast(constant_bytes(format.level_values.astype(np.int8)), i8)
        elif format.group_size and format.group_size <= SHORT_GROUP:
            self.shift = format.zero
        else:
            self.zero = format.zero
        self.dtype = i8 if self.shift or self.table is not None else u8

    def take(self, words: list[Value], quad: int) -> Value:
        """The bytes of weights 4 * quad .. 4 * quad + 3 of a chunk: 64 lanes."""
        codes = take_quad(words, quad, self.bits)
        if self.table is not None:
            return lookup(self.table, codes)
        return bitcast(codes - self.shift, i8) if self.shift else codes


def levels_of(format: Format, in_place: bool) -> Levels:
    """The levels of a format; `in_place` where its codes are one field and worth themselves."""
    bits = format.bits
    if format.levels == "uniform":
        return Levels(bits, None, format.zero, 2**bits - 1, in_place and has_one_field(bits))
    values = format.level_values
    bias = -int(values.min())
    return Levels(bits, constant_bytes((values + bias).astype(np.uint8)), bias, int(values.max()) + bias, False)


def small_float(codes: Value, name: str) -> Value:
    """What codes of FLOATS stand for, divided by float_unit(name): u8xL to f32xL, exactly, subnormals too.

    The bits move to where f16 has sign, exponent and mantissa.  Copies of the sign come along where the exponent is
    shorter than its, and are cleared.
    """
    mantissa, exponent = _fields(name)
    moved = convert(bitcast(codes, i8), i16) << (F16_MANTISSA - mantissa)
    if exponent < F16_EXPONENT:
        moved = moved & ~(2 ** (F16_EXPONENT - exponent) - 1 << F16_MANTISSA + exponent)
    return convert(bitcast(moved, f16), f32)


def float_unit(name: str) -> float:
    """The power of two between a float and the f16 whose exponent field is the same."""
    return float(2 ** (2 ** (F16_EXPONENT - 1) - 2 ** (_fields(name)[1] - 1)))


def _fields(name: str) -> tuple[int, int]:
    """Bits of mantissa and exponent of a float of FLOATS."""
    mantissa = ml_dtypes.finfo(FLOATS[name]).nmant
    return mantissa, 7 - mantissa


def constant_bytes(values: np.ndarray) -> Value:
    """A vector of these bytes, filled up with zeros to a size that `lookup` takes: u8x16 or u8x128."""
    size = next(size for size in TABLE_SIZES if size >= len(values))
    padded = np.zeros(size, np.uint8)
    padded[: len(values)] = values.view(np.uint8)
    return join([bitcast(const(int(number), i64), u8) for number in padded.view(np.int64)])


def join(parts: list[Value]) -> Value:
    """The lanes of 1, 2, 4, ... vectors, side by side."""
    while len(parts) > 1:
        parts = [concat(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
