"""The kernel language: every word a kernel author may use.

A kernel is a Python function that runs once per specialisation, on symbols.  Python's own `for` and `if` run while
tracing (they unroll and specialise); `loop` and `when` become control flow in the machine code.  The NumPy meaning
of every operation stands in instructions.py; interpret.py executes it.

    @kernel
    def scale(x: Pointer[f32], y: Pointer[f32], task: i64, *, lanes):
        start = task * lanes
        store(y, start, load(x, start, lanes) * 2.0)

The last positional parameter, `task`, numbers the piece of work this call does; pieces are independent and may run
in any order on any thread.  Keyword-only parameters are Python values fixed per specialisation.

Floats: every multiply and every add rounds on its own; nothing is fused or reordered, on any CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Union

from lutra.compiler.ir import Op, Value
from lutra.compiler.types import (
    DType,
    Pointer,
    Type,
    bf16,
    f16,
    f32,
    i1,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
)
from lutra.errors import KernelError

__all__ = [
    "Pointer", "Value", "Var", "absolute", "bf16", "bitcast", "concat", "const", "convert", "dot4", "dot4_sum",
    "extract",
    "f16", "f32", "i1", "i16", "i32", "i64", "i8", "load", "lookup", "loop", "maximum", "minimum", "prefetch",
    "reduce_add", "reduce_max", "round_even", "select", "shuffle", "splat", "sqrt", "store", "u16", "u32", "u8",
    "var", "when",
]  # fmt: skip


class Builder:
    """Collects operations while a kernel is traced."""

    def __init__(self, source_file: str):
        self.source_file = source_file
        self.bodies: list[list[Op]] = [[]]
        self.count = 0

    def emit(self, name: str, operands: Sequence[Value], type: Type | None, **attributes: Any) -> Value:
        """Append one operation and return its result (an unused `void` value where there is none)."""
        result = None
        if type is not None:
            self.count += 1
            result = Traced(str(self.count), type)
        self.bodies[-1].append(Op(name, tuple(operands), attributes, result, _kernel_line(self.source_file)))
        return result if result is not None else Traced("void", Type(i1))

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Collect into the body of the operation just emitted."""
        owner = self.bodies[-1][-1]
        self.bodies.append(owner.body)
        yield
        self.bodies.pop()


CURRENT: ContextVar[Builder] = ContextVar("builder")


def _builder() -> Builder:
    try:
        return CURRENT.get()
    except LookupError:
        raise KernelError(
            "kernel words work only inside a traced kernel; call the kernel object, not its body"
        ) from None


def _kernel_line(source_file: str) -> str:
    frame = sys._getframe(1)
    inner = ""
    while frame is not None:
        if frame.f_code.co_filename == source_file:
            return f"{source_file}:{frame.f_lineno}"
        if not inner and not frame.f_code.co_filename.endswith("language.py"):
            inner = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return inner


def fail(message: str) -> KernelError:
    """A KernelError that names the kernel's own line."""
    return KernelError(f"{_kernel_line(_builder().source_file)}: {message}")


# ---- values -----------------------------------------------------------------------------------------------------


class Traced(Value):
    """A value with arithmetic.  Python numbers beside it become constants of its type."""

    __slots__ = ()

    def __add__(self, other: Operand) -> Value:
        return binary("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return binary("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return binary("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return binary("div", other, self)

    def __floordiv__(self, other: Operand) -> Value:
        return binary("quotient", self, other)

    def __mod__(self, other: Operand) -> Value:
        return binary("remainder", self, other)

    def __and__(self, other: Operand) -> Value:
        return binary("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return binary("or", self, other)

    def __xor__(self, other: Operand) -> Value:
        return binary("xor", self, other)

    def __lshift__(self, other: Operand) -> Value:
        return binary("shl", self, other)

    def __rshift__(self, other: Operand) -> Value:
        return binary("shr", self, other)

    def __neg__(self) -> Value:
        return binary("sub", 0, self)

    def __lt__(self, other: Operand) -> Value:
        return compare("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return compare("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return compare("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return compare("ge", self, other)

    def equals(self, other: Operand) -> Value:
        """Lane-wise equality (== keeps Python's meaning: the same traced value)."""
        return compare("eq", self, other)

    def __bool__(self) -> bool:
        raise fail("a traced value has no truth while tracing; use when(condition) or select(condition, a, b)")


Operand = Union[Value, "Var", int, float]


def _value(x: Operand, like: Type | None = None) -> Value:
    """Read a Var, or make a Python number a constant of type `like`."""
    if isinstance(x, Var):
        return x.get()
    if isinstance(x, Value):
        return x
    if like is None:
        raise fail(f"expected a traced value, got the Python number {x!r}; wrap it in const(number, dtype, lanes)")
    return const(x, like.dtype, like.lanes)


def _type(value: Value) -> Type:
    if not isinstance(value.type, Type):
        raise fail(f"expected a number, got the pointer {value!r}; load from it first")
    return value.type


def binary(name: str, a: Operand, b: Operand) -> Value:
    """Lane-wise arithmetic of two values of one type; a scalar beside a vector is an error, not a broadcast."""
    if isinstance(a, (Var, Value)):
        left = _value(a)
        right = _value(b, _type(left))
    else:
        right = _value(b)
        left = _value(a, _type(right))
    if left.type != right.type:
        raise fail(f"{name} needs two values of one type, got {left.type} and {right.type}; convert or splat one")
    if _type(left).dtype in (f16, bf16):
        raise fail(f"{name} on {left.type}: f16 and bf16 are storage types; convert to f32 first")
    return _builder().emit(name, (left, right), _type(left))


def compare(name: str, a: Operand, b: Operand) -> Value:
    left = _value(a)
    right = _value(b, _type(left))
    if left.type != right.type:
        raise fail(f"comparison needs two values of one type, got {left.type} and {right.type}")
    return _builder().emit(name, (left, right), _type(left).with_dtype(i1))


def const(number: int | float, dtype: DType, lanes: int = 1) -> Value:
    """The same Python number in every lane."""
    if not dtype.is_float and int(number) != number:
        raise fail(f"expected an integer for {dtype}, got {number!r}")
    return _builder().emit("const", (), Type(dtype, lanes), number=float(number) if dtype.is_float else int(number))


class Var:
    """A mutable local: `acc = var(zero)`, `acc += x`, `acc.set(x)`, `acc.get()`.  It becomes a register."""

    __slots__ = ("slot",)

    def __init__(self, slot: Value):
        self.slot = slot

    def get(self) -> Value:
        return _builder().emit("get", (self.slot,), _type(self.slot))

    def set(self, value: Operand) -> None:
        new = _value(value, _type(self.slot))
        if new.type != self.slot.type:
            raise fail(f"variable of type {self.slot.type} cannot hold {new.type}")
        _builder().emit("set", (self.slot, new), None)

    def __iadd__(self, value: Operand) -> Var:
        self.set(binary("add", self, value))
        return self


def var(initial: Value) -> Var:
    """A variable that starts as `initial` each time this line is reached."""
    return Var(_builder().emit("var", (initial,), _type(initial)))


# ---- memory -----------------------------------------------------------------------------------------------------


def _pointer(value: Value) -> DType:
    if not isinstance(value.type, Pointer):
        raise fail(f"expected a pointer parameter, got {value!r}")
    return value.type.dtype


def _index(index: Operand) -> Value:
    value = _value(index, Type(i64))
    if value.type != Type(i64):
        raise fail(f"an index is an i64 scalar, got {value.type}; convert it")
    return value


def load(pointer: Value, index: Operand, lanes: int = 1) -> Value:
    """Read elements index .. index + lanes - 1.  The buffer must hold all of them; nothing is masked."""
    return _builder().emit("load", (pointer, _index(index)), Type(_pointer(pointer), lanes))


def store(pointer: Value, index: Operand, value: Operand) -> None:
    """Write a scalar or all lanes of a vector from element `index` on."""
    dtype = _pointer(pointer)
    new = _value(value, Type(dtype))
    if _type(new).dtype != dtype:
        raise fail(f"cannot store {new.type} through {pointer.type}; convert it first")
    _builder().emit("store", (pointer, _index(index), new), None)


def prefetch(pointer: Value, index: Operand, level: int = 1) -> None:
    """Ask for the cache line of element `index`.  A hint: it may lie outside the buffer and never faults.

    level   the cache to bring it into: 1, the nearest, 2 or 3
    """
    _pointer(pointer)
    if level not in (1, 2, 3):
        raise fail(f"prefetch brings a line into cache 1, 2 or 3, got {level}")
    _builder().emit("prefetch", (pointer, _index(index)), None, level=level)


# ---- lane-wise --------------------------------------------------------------------------------------------------


def minimum(a: Operand, b: Operand) -> Value:
    """a where a < b, else b."""
    return binary("min", a, b)


def maximum(a: Operand, b: Operand) -> Value:
    """a where a > b, else b."""
    return binary("max", a, b)


def absolute(a: Operand) -> Value:
    value = _value(a)
    return _builder().emit("abs", (value,), _type(value))


def sqrt(a: Operand) -> Value:
    """Correctly rounded square root of f32."""
    value = _value(a)
    return _builder().emit("sqrt", (value,), _type(value))


def round_even(a: Operand) -> Value:
    """Nearest integer as f32, halves to even; |a| < 2**22."""
    value = _value(a)
    return _builder().emit("round_even", (value,), _type(value))


def select(condition: Value, a: Operand, b: Operand) -> Value:
    """a where the condition holds, else b."""
    first = _value(a, _type(b) if isinstance(b, Value) else None)
    second = _value(b, _type(first))
    if first.type != second.type or _type(condition) != _type(first).with_dtype(i1):
        raise fail(
            f"select needs i1 lanes and two values of one type, got {condition.type}, {first.type}, {second.type}"
        )
    return _builder().emit("select", (condition, first, second), _type(first))


def convert(a: Operand, dtype: DType) -> Value:
    """Change the element type, keep the lanes.

    int to wider int extends by the source's signedness, to narrower keeps the low bits; int to f32 rounds to even;
    f32 to int truncates (the value must fit); f32 to f16/bf16 rounds to even; f16/bf16 to f32 is exact.
    """
    value = _value(a)
    if _type(value).dtype == dtype:
        return value
    return _builder().emit("convert", (value,), _type(value).with_dtype(dtype))


def bitcast(a: Operand, dtype: DType) -> Value:
    """Read the same bits as another element type; lanes follow (little-endian)."""
    value = _value(a)
    bits = _type(value).dtype.bits * _type(value).lanes
    if bits % dtype.bits:
        raise fail(f"cannot read {value.type} as {dtype}: {bits} bits do not divide")
    return _builder().emit("bitcast", (value,), Type(dtype, bits // dtype.bits))


# ---- across lanes -----------------------------------------------------------------------------------------------


def splat(a: Operand, lanes: int) -> Value:
    """A scalar in every lane."""
    value = _value(a)
    if _type(value).lanes != 1:
        raise fail(f"splat takes a scalar, got {value.type}")
    return value if lanes == 1 else _builder().emit("splat", (value,), Type(_type(value).dtype, lanes))


def shuffle(a: Operand, b: Operand, indices: Sequence[int]) -> Value:
    """Pick lanes of the concatenation of a and b by constant indices."""
    first, second = _value(a), _value(b)
    if first.type != second.type:
        raise fail(f"shuffle needs two vectors of one type, got {first.type} and {second.type}")
    picks = tuple(int(i) for i in indices)
    if not all(0 <= i < 2 * _type(first).lanes for i in picks):
        raise fail(f"shuffle indices must lie in 0..{2 * _type(first).lanes - 1}, got {picks}")
    return _builder().emit("shuffle", (first, second), Type(_type(first).dtype, len(picks)), indices=picks)


def concat(a: Operand, b: Operand) -> Value:
    """The lanes of a, then the lanes of b."""
    first = _value(a)
    return shuffle(first, b, range(2 * _type(first).lanes))


def extract(a: Operand, lane: int) -> Value:
    """One lane as a scalar."""
    value = _value(a)
    if not 0 <= lane < _type(value).lanes:
        raise fail(f"lane must lie in 0..{_type(value).lanes - 1}, got {lane}")
    return _builder().emit("extract", (value,), Type(_type(value).dtype), lane=lane)


def reduce_add(a: Operand) -> Value:
    """Sum of all lanes by halving: lane i + lane i + lanes/2, again and again.  The order is part of the meaning."""
    return _reduce("reduce_add", a)


def reduce_max(a: Operand) -> Value:
    """Largest lane, by the same halving."""
    return _reduce("reduce_max", a)


def _reduce(name: str, a: Operand) -> Value:
    value = _value(a)
    lanes = _type(value).lanes
    if lanes & (lanes - 1):
        raise fail(f"{name} halves its lanes, so their number must be a power of two, got {lanes}")
    return _builder().emit(name, (value,), Type(_type(value).dtype))


# ---- the operations low-bit matmuls live on -----------------------------------------------------------------------


def dot4(acc: Operand, a: Operand, b: Operand, *, bound: int = 255, signed_bound: int = 128) -> Value:
    """acc[i] + sum of a[4i+j] * b[4i+j] for j = 0..3, exactly.

    acc    i32 x L
    a      u8 x 4L, every element <= bound
    b      i8 x 4L, every magnitude <= signed_bound (two promises that let AVX2 use 16-bit sums without overflow)
    """
    total, left, right = _value(acc), _value(a), _value(b)
    lanes = _type(total).lanes
    if (total.type, left.type, right.type) != (Type(i32, lanes), Type(u8, 4 * lanes), Type(i8, 4 * lanes)):
        raise fail(f"dot4 needs i32xL, u8x4L, i8x4L, got {total.type}, {left.type}, {right.type}")
    return _builder().emit("dot4", (total, left, right), _type(total), bound=bound, signed_bound=signed_bound)


LOOKUP_ENTRIES = (16, 128)  # one byte shuffle of every CPU; one of AVX-512 VBMI, two of NEON


def dot4_sum(
    acc: Operand, pairs: Sequence[tuple[Operand, Operand]], *, bound: int = 255, signed_bound: int = 128
) -> Value:
    """acc plus the dot4 of every pair (a, b), exactly.

    The same as one dot4 after the other, and so emitted where the CPU has a dot product; where it has none, the sums
    stay in 16 bits as long as the bounds allow.
    """
    total, flat = _value(acc), [_value(x) for pair in pairs for x in pair]
    lanes = _type(total).lanes
    kinds = [Type(u8, 4 * lanes), Type(i8, 4 * lanes)] * len(pairs)
    if not pairs or total.type != Type(i32, lanes) or [x.type for x in flat] != kinds:
        raise fail(f"dot4_sum needs i32xL and pairs of u8x4L and i8x4L, got {total.type}, {[x.type for x in flat]}")
    return _builder().emit("dot4_sum", (total, *flat), _type(total), bound=bound, signed_bound=signed_bound)


def lookup(table: Operand, index: Operand) -> Value:
    """table[index] for each lane; 16 or 128 entries of 8 bits, every index below that (a promise)."""
    entries, picks = _value(table), _value(index)
    kind = _type(entries)
    if kind.lanes not in LOOKUP_ENTRIES or kind.dtype.bits != 8 or _type(picks).dtype != u8:
        raise fail(f"lookup needs a table of 16 or 128 bytes and u8 indices, got {kind} and {picks.type}")
    return _builder().emit("lookup", (entries, picks), Type(kind.dtype, _type(picks).lanes))


# ---- control flow in the machine code -----------------------------------------------------------------------------


def loop(begin: Operand, end: Operand, step: int = 1) -> Iterator[Value]:
    """`for k in loop(0, n, 4):` runs while k < end."""
    builder = _builder()
    counter = builder.emit("loop", (_index(begin), _index(end)), Type(i64), step=step)
    with builder.nested():
        yield counter


@contextmanager
def when(condition: Value) -> Iterator[None]:
    """`with when(i < n):` runs its body where the scalar condition holds."""
    if condition.type != Type(i1):
        raise fail(f"when needs a scalar condition, got {condition.type}")
    builder = _builder()
    builder.emit("when", (condition,), None)
    with builder.nested():
        yield
