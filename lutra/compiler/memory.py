"""Words that read and write memory: through the pointers that a kernel is given, and of its own."""

from __future__ import annotations

from lutra.compiler.builder import current, fail
from lutra.compiler.ir import Value
from lutra.compiler.types import DType, Pointer, Type, i64
from lutra.compiler.values import Operand, type_of, value_of


def pointed(value: Value) -> DType:
    """What a pointer points to.  Raises KernelError for another value."""
    if not isinstance(value.type, Pointer):
        raise fail(f"expected a pointer parameter, got {value!r}")
    return value.type.dtype


def index_of(index: Operand) -> Value:
    """An i64 scalar, also of a Python number.  Raises KernelError for another."""
    value = value_of(index, Type(i64))
    if value.type != Type(i64):
        raise fail(f"an index is an i64 scalar, got {value.type}; convert it")
    return value


def load(pointer: Value, index: Operand, lanes: int = 1) -> Value:
    """Read elements index .. index + lanes - 1.  The buffer must hold all of them; nothing is masked."""
    return current().emit("load", (pointer, index_of(index)), Type(pointed(pointer), lanes))


def store(pointer: Value, index: Operand, value: Operand) -> None:
    """Write a scalar or all lanes of a vector from element `index` on."""
    dtype = pointed(pointer)
    new = value_of(value, Type(dtype))
    if type_of(new).dtype != dtype:
        raise fail(f"cannot store {new.type} through {pointer.type}; convert it first")
    current().emit("store", (pointer, index_of(index), new), None)


def prefetch(pointer: Value, index: Operand, level: int = 1) -> None:
    """Ask for the cache line of element `index`.  A hint: it may lie outside the buffer and never faults.

    level   the cache to bring it into: 1, the nearest, 2 or 3
    """
    pointed(pointer)
    if level not in (1, 2, 3):
        raise fail(f"prefetch brings a line into cache 1, 2 or 3, got {level}")
    current().emit("prefetch", (pointer, index_of(index)), None, level=level)


def scratch(dtype: DType, count: int) -> Value:
    """A pointer to `count` elements of a task's own, on the stack; what they hold at first is not defined."""
    if count < 1:
        raise fail(f"expected scratch memory of at least one element, got {count}")
    return current().emit("scratch", (), Pointer(dtype), count=count)
