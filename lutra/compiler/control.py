"""Control flow in the machine code; Python's own `for` and `if` run while tracing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lutra.compiler.builder import current, fail
from lutra.compiler.ir import Value
from lutra.compiler.memory import index_of
from lutra.compiler.types import Type, i1, i64
from lutra.compiler.values import Operand


def loop(begin: Operand, end: Operand, step: int = 1) -> Iterator[Value]:
    """`for k in loop(0, n, 4):` runs while k < end."""
    builder = current()
    counter = builder.emit("loop", (index_of(begin), index_of(end)), Type(i64), step=step)
    with builder.nested():
        yield counter


@contextmanager
def when(condition: Value) -> Iterator[None]:
    """`with when(i < n):` runs its body where the scalar condition holds."""
    if condition.type != Type(i1):
        raise fail(f"when needs a scalar condition, got {condition.type}")
    builder = current()
    builder.emit("when", (condition,), None)
    with builder.nested():
        yield
