"""Words that compute lane by lane, and words that move or add up lanes."""

from __future__ import annotations

from collections.abc import Sequence

from lutra.compiler.builder import current, fail
from lutra.compiler.ir import Value
from lutra.compiler.types import DType, Type, f32, i1
from lutra.compiler.values import Operand, binary, type_of, value_of


def minimum(a: Operand, b: Operand) -> Value:
    """a where a < b, else b."""
    return binary("min", a, b)


def maximum(a: Operand, b: Operand) -> Value:
    """a where a > b, else b."""
    return binary("max", a, b)


def absolute(a: Operand) -> Value:
    value = value_of(a)
    return current().emit("abs", (value,), type_of(value))


def sqrt(a: Operand) -> Value:
    """Correctly rounded square root of f32."""
    value = value_of(a)
    return current().emit("sqrt", (value,), type_of(value))


def fma(a: Operand, b: Operand, c: Operand) -> Value:
    """a * b + c of f32 vectors, rounded once: the same bits on every CPU, fast on those that have the instruction."""
    values = [value_of(x) for x in (a, b, c)]
    if len({value.type for value in values}) > 1 or type_of(values[0]).dtype != f32 or type_of(values[0]).lanes < 2:
        raise fail(f"fma needs three vectors of f32 of one type, got {[str(value.type) for value in values]}")
    return current().emit("fma", tuple(values), type_of(values[0]))


def round_even(a: Operand) -> Value:
    """Nearest integer as f32, halves to even; |a| < 2**22."""
    value = value_of(a)
    return current().emit("round_even", (value,), type_of(value))


def select(condition: Value, a: Operand, b: Operand) -> Value:
    """a where the condition holds, else b."""
    first = value_of(a, type_of(b) if isinstance(b, Value) else None)
    second = value_of(b, type_of(first))
    if first.type != second.type or type_of(condition) != type_of(first).with_dtype(i1):
        raise fail(
            f"select needs i1 lanes and two values of one type, got {condition.type}, {first.type}, {second.type}"
        )
    return current().emit("select", (condition, first, second), type_of(first))


def convert(a: Operand, dtype: DType) -> Value:
    """Change the element type, keep the lanes.

    int to wider int extends by the source's signedness, to narrower keeps the low bits; int to f32 rounds to even;
    f32 to int truncates (the value must fit); f32 to f16/bf16 rounds to even; f16/bf16 to f32 is exact.
    """
    value = value_of(a)
    if type_of(value).dtype == dtype:
        return value
    return current().emit("convert", (value,), type_of(value).with_dtype(dtype))


def bitcast(a: Operand, dtype: DType) -> Value:
    """Read the same bits as another element type; lanes follow (little-endian)."""
    value = value_of(a)
    bits = type_of(value).dtype.bits * type_of(value).lanes
    if bits % dtype.bits:
        raise fail(f"cannot read {value.type} as {dtype}: {bits} bits do not divide")
    return current().emit("bitcast", (value,), Type(dtype, bits // dtype.bits))


# ---- across lanes -------------------------------------------------------------------------------------------------


def splat(a: Operand, lanes: int) -> Value:
    """A scalar in every lane."""
    value = value_of(a)
    if type_of(value).lanes != 1:
        raise fail(f"splat takes a scalar, got {value.type}")
    return value if lanes == 1 else current().emit("splat", (value,), Type(type_of(value).dtype, lanes))


def shuffle(a: Operand, b: Operand, indices: Sequence[int]) -> Value:
    """Pick lanes of the concatenation of a and b by constant indices."""
    first, second = value_of(a), value_of(b)
    if first.type != second.type:
        raise fail(f"shuffle needs two vectors of one type, got {first.type} and {second.type}")
    picks = tuple(int(i) for i in indices)
    if not all(0 <= i < 2 * type_of(first).lanes for i in picks):
        raise fail(f"shuffle indices must lie in 0..{2 * type_of(first).lanes - 1}, got {picks}")
    return current().emit("shuffle", (first, second), Type(type_of(first).dtype, len(picks)), indices=picks)


def concat(a: Operand, b: Operand) -> Value:
    """The lanes of a, then the lanes of b."""
    first = value_of(a)
    return shuffle(first, b, range(2 * type_of(first).lanes))


def extract(a: Operand, lane: int) -> Value:
    """One lane as a scalar."""
    value = value_of(a)
    if not 0 <= lane < type_of(value).lanes:
        raise fail(f"lane must lie in 0..{type_of(value).lanes - 1}, got {lane}")
    return current().emit("extract", (value,), Type(type_of(value).dtype), lane=lane)


def reduce_add(a: Operand) -> Value:
    """Sum of all lanes by halving: lane i + lane i + lanes/2, again and again.  The order is part of the meaning."""
    return _reduce("reduce_add", a)


def reduce_max(a: Operand) -> Value:
    """Largest lane, by the same halving."""
    return _reduce("reduce_max", a)


def _reduce(name: str, a: Operand) -> Value:
    value = value_of(a)
    lanes = type_of(value).lanes
    if lanes & (lanes - 1):
        raise fail(f"{name} halves its lanes, so their number must be a power of two, got {lanes}")
    return current().emit(name, (value,), Type(type_of(value).dtype))
