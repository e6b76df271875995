"""The words that low-bit matmuls live on: dot products of bytes, and tables of bytes."""

from __future__ import annotations

from collections.abc import Sequence

from lutra.compiler.builder import current, fail
from lutra.compiler.ir import Value
from lutra.compiler.types import Type, i8, i32, u8
from lutra.compiler.values import Operand, type_of, value_of

LOOKUP_ENTRIES = (16, 128)  # one byte shuffle of every CPU; one of AVX-512 VBMI, two of NEON


def dot4(acc: Operand, a: Operand, b: Operand, *, bound: int = 255, signed_bound: int = 128) -> Value:
    """acc[i] + sum of a[4i+j] * b[4i+j] for j = 0..3, exactly.

    acc    i32 x L
    a      u8 x 4L, every element <= bound
    b      i8 x 4L, every magnitude <= signed_bound (two promises that let AVX2 use 16-bit sums without overflow)
    """
    total, left, right = value_of(acc), value_of(a), value_of(b)
    lanes = type_of(total).lanes
    if (total.type, left.type, right.type) != (Type(i32, lanes), Type(u8, 4 * lanes), Type(i8, 4 * lanes)):
        raise fail(f"dot4 needs i32xL, u8x4L, i8x4L, got {total.type}, {left.type}, {right.type}")
    return current().emit("dot4", (total, left, right), type_of(total), bound=bound, signed_bound=signed_bound)


def dot4_sum(
    acc: Operand, pairs: Sequence[tuple[Operand, Operand]], *, bound: int = 255, signed_bound: int = 128
) -> Value:
    """acc plus the dot4 of every pair (a, b), exactly.

    The same as one dot4 after the other, and so emitted where the CPU has a dot product; where it has none, the sums
    stay in 16 bits as long as the bounds allow.
    """
    total, flat = value_of(acc), [value_of(x) for pair in pairs for x in pair]
    lanes = type_of(total).lanes
    kinds = [Type(u8, 4 * lanes), Type(i8, 4 * lanes)] * len(pairs)
    if not pairs or total.type != Type(i32, lanes) or [x.type for x in flat] != kinds:
        raise fail(f"dot4_sum needs i32xL and pairs of u8x4L and i8x4L, got {total.type}, {[x.type for x in flat]}")
    return current().emit("dot4_sum", (total, *flat), type_of(total), bound=bound, signed_bound=signed_bound)


def dot2x2(acc: Operand, a: Operand, b: Operand, *, bound: int = 255, signed_bound: int = 128) -> Value:
    """Squares of dot products, exactly: two rows of a times two rows of b, 8 products each, in every four lanes.

    acc[4 s + 2 i + j] + sum of a[16 s + 8 i + t] * b[16 s + 8 j + t] for t = 0..7, with i, j = 0..1

    acc    i32 x 4 S
    a      u8 x 16 S, every element <= bound
    b      i8 x 16 S, every magnitude <= signed_bound
    """
    total, left, right = value_of(acc), value_of(a), value_of(b)
    lanes = type_of(total).lanes
    if lanes % 4 or (total.type, left.type, right.type) != (Type(i32, lanes), Type(u8, 4 * lanes), Type(i8, 4 * lanes)):
        raise fail(f"dot2x2 needs i32x4S, u8x16S, i8x16S, got {total.type}, {left.type}, {right.type}")
    return current().emit("dot2x2", (total, left, right), type_of(total), bound=bound, signed_bound=signed_bound)


def lookup(table: Operand, index: Operand) -> Value:
    """table[index] for each lane; 16 or 128 entries of 8 bits, every index below that (a promise)."""
    entries, picks = value_of(table), value_of(index)
    kind = type_of(entries)
    if kind.lanes not in LOOKUP_ENTRIES or kind.dtype.bits != 8 or type_of(picks).dtype != u8:
        raise fail(f"lookup needs a table of 16 or 128 bytes and u8 indices, got {kind} and {picks.type}")
    return current().emit("lookup", (entries, picks), Type(kind.dtype, type_of(picks).lanes))
