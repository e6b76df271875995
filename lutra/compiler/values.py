"""Values of a kernel: numbers of a type and lane count with arithmetic, constants, and variables."""

from __future__ import annotations

from typing import Union

from lutra.compiler.builder import current, fail
from lutra.compiler.ir import Value
from lutra.compiler.types import DType, Type, bf16, f16, i1


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


def value_of(x: Operand, like: Type | None = None) -> Value:
    """Read a Var, or make a Python number a constant of type `like`."""
    if isinstance(x, Var):
        return x.get()
    if isinstance(x, Value):
        return x
    if like is None:
        raise fail(f"expected a traced value, got the Python number {x!r}; wrap it in const(number, dtype, lanes)")
    return const(x, like.dtype, like.lanes)


def type_of(value: Value) -> Type:
    if not isinstance(value.type, Type):
        raise fail(f"expected a number, got the pointer {value!r}; load from it first")
    return value.type


def binary(name: str, a: Operand, b: Operand) -> Value:
    """Lane-wise arithmetic of two values of one type; a scalar beside a vector is an error, not a broadcast."""
    if isinstance(a, (Var, Value)):
        left = value_of(a)
        right = value_of(b, type_of(left))
    else:
        right = value_of(b)
        left = value_of(a, type_of(right))
    if left.type != right.type:
        raise fail(f"{name} needs two values of one type, got {left.type} and {right.type}; convert or splat one")
    if type_of(left).dtype in (f16, bf16):
        raise fail(f"{name} on {left.type}: f16 and bf16 are storage types; convert to f32 first")
    return current().emit(name, (left, right), type_of(left))


def compare(name: str, a: Operand, b: Operand) -> Value:
    left = value_of(a)
    right = value_of(b, type_of(left))
    if left.type != right.type:
        raise fail(f"comparison needs two values of one type, got {left.type} and {right.type}")
    return current().emit(name, (left, right), type_of(left).with_dtype(i1))


def const(number: int | float, dtype: DType, lanes: int = 1) -> Value:
    """The same Python number in every lane."""
    if not dtype.is_float and int(number) != number:
        raise fail(f"expected an integer for {dtype}, got {number!r}")
    return current().emit("const", (), Type(dtype, lanes), number=float(number) if dtype.is_float else int(number))


class Var:
    """A mutable local: `acc = var(zero)`, `acc += x`, `acc.set(x)`, `acc.get()`.  It becomes a register."""

    __slots__ = ("slot",)

    def __init__(self, slot: Value):
        self.slot = slot

    def get(self) -> Value:
        return current().emit("get", (self.slot,), type_of(self.slot))

    def set(self, value: Operand) -> None:
        new = value_of(value, type_of(self.slot))
        if new.type != self.slot.type:
            raise fail(f"variable of type {self.slot.type} cannot hold {new.type}")
        current().emit("set", (self.slot, new), None)

    def __iadd__(self, value: Operand) -> Var:
        self.set(binary("add", self, value))
        return self


def var(initial: Value) -> Var:
    """A variable that starts as `initial` each time this line is reached."""
    return Var(current().emit("var", (initial,), type_of(initial)))
