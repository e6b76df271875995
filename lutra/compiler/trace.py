"""From a Python function to IR: run it once on symbols."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from lutra.compiler.builder import CURRENT, Builder
from lutra.compiler.ir import Function, Value
from lutra.compiler.types import DType, Pointer, Type, i64
from lutra.compiler.values import Traced
from lutra.errors import KernelError

Signature = dict[str, "Type | Pointer"]


def signature(function: Callable[..., None]) -> Signature:
    """The run-time parameters of a kernel, in order, `task` left out; raises KernelError on a bad annotation."""
    params: Signature = {}
    for param in inspect.signature(function, eval_str=True).parameters.values():
        if param.kind is param.KEYWORD_ONLY or param.name == "task":
            continue
        kind = param.annotation
        if not isinstance(kind, (DType, Pointer)):
            raise KernelError(
                f"{function.__module__}.{function.__name__}: parameter {param.name} needs Pointer[dtype], i64 or f32, "
                f"got {kind!r}"
            )
        params[param.name] = Type(kind) if isinstance(kind, DType) else kind
    return params


def trace(function: Callable[..., None], static: dict[str, Any]) -> Function:
    """Record what `function` does for one choice of its keyword-only parameters.

    Raises KernelError with the kernel's file and line where a word is misused.
    """
    params: list[Value] = [Traced(name, kind) for name, kind in signature(function).items()]
    task = Traced("task", Type(i64))
    builder = Builder(inspect.getsourcefile(function) or "<kernel>", Traced)
    token = CURRENT.set(builder)
    try:
        function(*params, task, **static)
    finally:
        CURRENT.reset(token)
    return Function(function.__name__, params, task, dict(static), builder.bodies[0])
