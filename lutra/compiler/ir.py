"""The small intermediate representation that tracing a kernel produces, and how it prints.

A function is a list of operations.  `loop` and `when` hold a list of their own; everything else is straight-line
static single assignment.  Mutable state is explicit: `var`, `get`, `set`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lutra.compiler.types import Pointer, Type


class Value:
    """The result of an operation, or a parameter.  Arithmetic on it is recorded (see values.py)."""

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: Type | Pointer):
        self.name = name
        self.type = type

    def __repr__(self) -> str:
        return f"%{self.name}:{self.type}"


@dataclass
class Op:
    """One operation: `result = name(operands, **attributes)`, with `body` for loop and when."""

    name: str
    operands: tuple[Value, ...]
    attributes: dict[str, Any]
    result: Value | None
    location: str  # file:line of the kernel's source, for error messages
    body: list[Op] = field(default_factory=list)


@dataclass
class Function:
    """A traced kernel: parameters, the task number, the specialisation it was traced with, its operations."""

    name: str
    params: list[Value]
    task: Value
    static: dict[str, Any]
    body: list[Op]

    def walk(self) -> Iterator[Op]:
        """Every operation, outer before inner, in program order."""
        stack = list(reversed(self.body))
        while stack:
            op = stack.pop()
            yield op
            stack.extend(reversed(op.body))

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the pointers it writes through, sorted."""
        params = {param.name for param in self.params}
        written = {op.operands[0].name for op in self.walk() if op.name in ("store", "tile_store")}
        return tuple(sorted(written & params))


def to_text(function: Function) -> str:
    """Print a function, one operation a line."""
    static = ", ".join(f"{key}={value}" for key, value in function.static.items())
    params = ", ".join(map(repr, [*function.params, function.task]))
    lines = [f"kernel {function.name}({params}) [{static}]"]
    _print_body(function.body, "  ", lines)
    return "\n".join(lines) + "\n"


def _print_body(body: list[Op], indent: str, lines: list[str]) -> None:
    for op in body:
        left = f"{op.result!r} = " if op.result is not None else ""
        attributes = "".join(f" {key}={value}" for key, value in op.attributes.items())
        operands = ", ".join(f"%{operand.name}" for operand in op.operands)
        lines.append(f"{indent}{left}{op.name}({operands}){attributes}")
        if op.body:
            _print_body(op.body, indent + "  ", lines)
