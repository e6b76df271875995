"""Codes out of packed words: traced into every kernel that reads the packed order of formats/packing.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from lutra.compiler.language import Operand, Value, bitcast, load, u8
from lutra.compiler.types import DTYPES
from lutra.formats import packing


def take_quad(words: Sequence[Value], quad: int, bits: int) -> Value:
    """Codes of weights 4 * quad .. 4 * quad + 3 of a chunk, one a byte.

    words    the chunk's words as u32 or u32xL
    returns  u8x4 or u8x(4 L)
    """
    parts = [
        _field(words[index], int(shift) - word.low, (2**word.width - 1) << word.low)
        for index, word in enumerate(packing.layout(bits))
        for step, shift in word.lanes()
        if step == quad
    ]
    return reduce(or_, parts)


def has_one_field(bits: int) -> bool:
    """Whether a code is one field of one word, so that quad_in_place can take it."""
    return len(packing.FIELDS[bits]) == 1


def shift_in_place(quad: int, bits: int) -> int:
    """Bits below a quad's codes where they stand in their word."""
    return _place(quad, bits)[1]


def quad_in_place(words: Sequence[Value], quad: int, bits: int) -> Value:
    """Codes of a quad times 2**shift_in_place, at most 255: masked where they stand in their word, not shifted.

    Arguments as of take_quad.
    """
    index, shift = _place(quad, bits)
    moved = bitcast(words[index], u8)
    return moved & (2**bits - 1) << shift if bits < 8 else moved


def _place(quad: int, bits: int) -> tuple[int, int]:
    """The word that holds a quad's codes, and how many bits are below them."""
    places = [(index, word.lanes()) for index, word in enumerate(packing.layout(bits))]
    return next((index, int(shift)) for index, lanes in places for step, shift in lanes if step == quad)


def _field(word: Value, right: int, mask: int) -> Value:
    """Move a field to where its bits stand in a code, and clear the rest."""
    if right > 0 and mask + 1 << right == 256:  # the highest bits of a byte: moved in bytes, ARM has nothing to clear
        return bitcast(word, u8) >> right
    moved = word >> right if right > 0 else word << -right if right < 0 else word
    return bitcast(moved, u8) if mask == 255 else bitcast(moved, u8) & mask


def load_as(pointer: Value, index: Operand, dtype: str, lanes: int = 1) -> Value:
    """`lanes` numbers of type `dtype` from element `index` of a buffer of bytes."""
    size = DTYPES[dtype].size_bytes
    return bitcast(load(pointer, index * size, size * lanes), DTYPES[dtype])
