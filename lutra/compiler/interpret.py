"""Run a traced kernel in NumPy: the living definition of the language, and where `breakpoint()` works.

Every memory access is checked, so a kernel that passes here never leaves its buffers on the inputs tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lutra.compiler.instructions import MEANING, bitcast, convert
from lutra.compiler.ir import Function, Op, Value
from lutra.compiler.tile_registers import Tile
from lutra.compiler.types import Pointer, Type
from lutra.errors import KernelError

GARBAGE = 0xA5  # in each byte of scratch memory at first

State = dict[str, Any]  # value name → number, vector, or (for pointers) flat array


def interpret(function: Function, args: dict[str, Any], tasks: Iterable[int]) -> None:
    """Execute `function` for each task number, writing through its pointer arguments.

    args   name → contiguous ndarray (pointers) or number
    Raises KernelError when an access leaves its buffer.
    """
    base: State = {param.name: _argument(param, args[param.name]) for param in function.params}
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for task in tasks:
            _run(function.body, {**base, "task": np.int64(task)})


def _argument(param: Value, value: Any) -> Any:
    if isinstance(param.type, Pointer):
        flat = value.reshape(-1).view()
        flat.shape = (value.size,)  # raises instead of copying when the array is not contiguous
        return flat
    return param.type.dtype.numpy(value)


def _run(body: list[Op], state: State) -> None:
    for op in body:
        handler = _SPECIAL.get(op.name, _elementwise)
        handler(op, state)


def _elementwise(op: Op, state: State) -> None:
    assert op.result is not None
    operands = [state[operand.name] for operand in op.operands]
    state[op.result.name] = MEANING[op.name](*operands, **op.attributes)


def _define(op: Op, state: State, value: Any) -> None:
    assert op.result is not None
    state[op.result.name] = value


def _result_type(op: Op) -> Type:
    assert op.result is not None and isinstance(op.result.type, Type)
    return op.result.type


def _const(op: Op, state: State) -> None:
    kind = _result_type(op)
    number = np.asarray(op.attributes["number"]).astype(kind.dtype.numpy)
    _define(op, state, np.full(kind.lanes, number) if kind.lanes > 1 else number[()])


def _convert(op: Op, state: State) -> None:
    _define(op, state, convert(state[op.operands[0].name], _result_type(op).dtype))


def _bitcast(op: Op, state: State) -> None:
    _define(op, state, bitcast(state[op.operands[0].name], _result_type(op)))


def _splat(op: Op, state: State) -> None:
    _define(op, state, np.full(_result_type(op).lanes, state[op.operands[0].name]))


def _shuffle(op: Op, state: State) -> None:
    both = np.concatenate([np.atleast_1d(state[operand.name]) for operand in op.operands])
    picked = both[list(op.attributes["indices"])]
    _define(op, state, picked if picked.size > 1 else picked[0])


def _extract(op: Op, state: State) -> None:
    _define(op, state, np.atleast_1d(state[op.operands[0].name])[op.attributes["lane"]])


def _span(op: Op, state: State, lanes: int) -> tuple[Any, int]:
    pointer, index = op.operands[:2]
    buffer, start = state[pointer.name], int(state[index.name])
    _check_span(op, buffer, start, lanes)
    return buffer, start


def _check_span(op: Op, buffer: np.ndarray, start: int, lanes: int) -> None:
    if start < 0 or start + lanes > buffer.size:
        raise KernelError(
            f"{op.location}: {op.name} of elements {start}..{start + lanes - 1} "
            f"leaves {op.operands[0].name}[0..{buffer.size - 1}]"
        )


def _load(op: Op, state: State) -> None:
    lanes = _result_type(op).lanes
    buffer, start = _span(op, state, lanes)
    _define(op, state, buffer[start : start + lanes].copy() if lanes > 1 else buffer[start])


def _store(op: Op, state: State) -> None:
    value = op.operands[2]
    buffer, start = _span(op, state, value.type.lanes)
    buffer[start : start + value.type.lanes] = state[value.name]


def _scratch(op: Op, state: State) -> None:
    assert op.result is not None and isinstance(op.result.type, Pointer)
    dtype = np.dtype(op.result.type.dtype.numpy)
    _define(op, state, np.full(op.attributes["count"] * dtype.itemsize, GARBAGE, np.uint8).view(dtype))


def _rows(op: Op, state: State) -> list[np.ndarray]:
    """The elements of a buffer that are the rows of a tile."""
    tile, (pointer, index, stride) = op.attributes["tile"], op.operands
    first, step, buffer = int(state[index.name]), int(state[stride.name]), state[pointer.name]
    starts = [first + row * step for row in range(tile.rows)]
    for start in starts:
        _check_span(op, buffer, start, tile.columns)
    return [buffer[start : start + tile.columns] for start in starts]


def _tile_zero(op: Op, state: State) -> None:
    tile = op.attributes["tile"]
    state[_register(tile)] = np.zeros((tile.rows, tile.columns), tile.dtype.numpy)


def _tile_load(op: Op, state: State) -> None:
    state[_register(op.attributes["tile"])] = np.stack(_rows(op, state))


def _tile_store(op: Op, state: State) -> None:
    for row, values in zip(_rows(op, state), state[_register(op.attributes["tile"])], strict=True):
        row[:] = values


def _tile_dot4(op: Op, state: State) -> None:
    sums, left, right = (state[_register(op.attributes[name])] for name in ("tile", "left", "right"))
    columns = right.reshape(len(right), -1, 4).transpose(0, 2, 1).reshape(left.shape[1], -1)  # [4K, N]
    sums += left.astype(np.int32) @ columns.astype(np.int32)


def _register(tile: Tile) -> str:
    return f"tile {tile.number}"


def _loop(op: Op, state: State) -> None:
    begin, end = (int(state[operand.name]) for operand in op.operands)
    for counter in range(begin, end, op.attributes["step"]):
        _define(op, state, np.int64(counter))
        _run(op.body, state)


def _when(op: Op, state: State) -> None:
    if state[op.operands[0].name]:
        _run(op.body, state)


def _copy(op: Op, state: State) -> None:
    _define(op, state, state[op.operands[0].name])


def _set(op: Op, state: State) -> None:
    state[op.operands[0].name] = state[op.operands[1].name]


_SPECIAL = {
    "const": _const,
    "convert": _convert,
    "bitcast": _bitcast,
    "splat": _splat,
    "shuffle": _shuffle,
    "extract": _extract,
    "load": _load,
    "store": _store,
    "prefetch": lambda op, state: None,
    "scratch": _scratch,
    "tile_zero": _tile_zero,
    "tile_load": _tile_load,
    "tile_store": _tile_store,
    "tile_dot4": _tile_dot4,
    "loop": _loop,
    "when": _when,
    "var": _copy,
    "get": _copy,
    "set": _set,
}
