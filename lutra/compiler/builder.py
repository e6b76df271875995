"""Where a kernel's operations go while it is traced, and which line of the kernel is to blame."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from lutra.compiler.ir import Op, Value
from lutra.compiler.types import Pointer, Type, i1
from lutra.errors import KernelError

_WORDS = str(Path(__file__).parent)  # where the words of the language are: a frame there is not the kernel's


class Builder:
    """Collects operations while a kernel is traced; their results are of the class `result`."""

    def __init__(self, source_file: str, result: type[Value]):
        self.source_file, self.result = source_file, result
        self.bodies: list[list[Op]] = [[]]
        self.count = 0

    def emit(self, name: str, operands: Sequence[Value], type: Type | Pointer | None, **attributes: Any) -> Value:
        """Append one operation and return its result (an unused `void` value where there is none)."""
        result = None
        if type is not None:
            self.count += 1
            result = self.result(str(self.count), type)
        self.bodies[-1].append(Op(name, tuple(operands), attributes, result, kernel_line(self.source_file)))
        return result if result is not None else self.result("void", Type(i1))

    @contextmanager
    def nested(self) -> Iterator[None]:
        """Collect into the body of the operation just emitted."""
        owner = self.bodies[-1][-1]
        self.bodies.append(owner.body)
        yield
        self.bodies.pop()


CURRENT: ContextVar[Builder] = ContextVar("builder")


def current() -> Builder:
    """The builder of the kernel that is being traced.  Raises KernelError outside of one."""
    try:
        return CURRENT.get()
    except LookupError:
        raise KernelError(
            "kernel words work only inside a traced kernel; call the kernel object, not its body"
        ) from None


def kernel_line(source_file: str) -> str:
    """file:line of the kernel, or of what it called where its own file is not on the stack."""
    frame = sys._getframe(1)
    inner = ""
    while frame is not None:
        if frame.f_code.co_filename == source_file:
            return f"{source_file}:{frame.f_lineno}"
        if not inner and not frame.f_code.co_filename.startswith(_WORDS):
            inner = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return inner


def fail(message: str) -> KernelError:
    """A KernelError that names the kernel's own line."""
    return KernelError(f"{kernel_line(current().source_file)}: {message}")
