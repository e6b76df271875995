"""Checks on traced IR that tracing itself cannot make."""

from __future__ import annotations

from lutra.compiler.ir import Function, Op
from lutra.compiler.tile_registers import tiles_of
from lutra.errors import KernelError


def check(function: Function) -> None:
    """Raise KernelError where a value is used outside the loop or when that defines it, or a loop cannot advance.

    And where a tile register has two shapes, as its shape is set once, when the kernel begins.
    """
    visible = {param.name for param in function.params} | {"task"}
    _check_body(function.body, visible)
    shapes: dict[int, tuple[int, int]] = {}
    for op in function.walk():
        for tile in tiles_of(op):
            if shapes.setdefault(tile.number, tile.shape) != tile.shape:
                raise KernelError(f"{op.location}: {tile} has been {shapes[tile.number]} (rows, bytes); take another")


def _check_body(body: list[Op], outer: set[str]) -> None:
    visible = set(outer)
    for op in body:
        for operand in op.operands:
            if operand.name not in visible:
                raise KernelError(
                    f"{op.location}: {op.name} uses a value born inside a loop or when that has ended; "
                    "carry it out in a var"
                )
        if op.name == "loop" and op.attributes["step"] <= 0:
            raise KernelError(f"{op.location}: expected a loop step of at least 1, got {op.attributes['step']}")
        if op.result is not None:
            visible.add(op.result.name)
        if op.body:
            _check_body(op.body, visible)
