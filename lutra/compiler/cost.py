"""Bytes and operations of a kernel, counted from its IR, and the time they take under the roofs of a machine.

`count` lists them one row per loop nest; `work` multiplies them by how often loops turn; `predict_us` makes a time.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lutra.compiler.ir import Function, Op, Value

# Operations an int8 or float roof counts, as work per result lane.
_WORK = {
    "dot2x2": ("int8_ops", 16),
    "dot4": ("int8_ops", 8),
    "dot4_sum": ("int8_ops", 8),  # of each pair
    "mul": ("lane_ops", 1),
    "add": ("lane_ops", 1),
    "sub": ("lane_ops", 1),
    "fma": ("lane_ops", 2),
    "lookup": ("lookups", 1),
}

# Vector operations in units of a dot product of as many bytes: CPUs start two dot products, byte shuffles or
# multiplications in a cycle, and three or four of the rest.
_EFFORT = dict.fromkeys(("dot2x2", "dot4", "dot4_sum", "lookup", "shuffle", "mul", "fma", "convert"), 1.0)
_FREE = dict.fromkeys(("const", "var", "get", "set", "bitcast", "splat"), 0.0)  # registers, or part of their user
_OTHER = 0.5
# The same of a row of a tile: a product takes a cycle, a row of memory half of one, or the only store of one
_TILE_ROWS = {"tile_dot4": 2.0, "tile_load": 1.0, "tile_store": 2.0, "tile_zero": 0.0}
_DOT_BYTES, _DOT_OPS = 64, 128  # a dot product of 64 bytes is 128 int8 operations

# Scalar operations that lead from a kernel's numbers to the bounds of its loops.
_FOLD: dict[str, Callable[[int, int], int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "quotient": operator.floordiv,
    "remainder": operator.mod, "shl": operator.lshift, "shr": operator.rshift, "min": min, "max": max,
}  # fmt: skip


def count(function: Function) -> list[dict[str, Any]]:
    """Static counts per execution of each loop body, outermost first.

    Each row: {"where": "task/loop1/...", "load_bytes", "store_bytes", "int8_ops", "lane_ops", "lookups"}.
    """
    rows: list[dict[str, Any]] = []
    _count_body(function.body, "task", rows)
    return rows


def _count_body(body: list[Op], where: str, rows: list[dict[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    row: dict[str, Any] = {"where": where}
    rows.append(row)
    nests = 0
    for op in body:
        _count_op(op, totals)
        if op.body:
            nests += 1
            _count_body(op.body, f"{where}/{op.name}{nests}", rows)
    row.update(totals)


def _count_op(op: Op, totals: Counter[str]) -> None:
    if op.name == "load":
        assert op.result is not None
        totals["load_bytes"] += _bytes(op.result)
    elif op.name == "store":
        totals["store_bytes"] += _bytes(op.operands[2])
    elif op.name == "tile_load":
        totals["load_bytes"] += _tile_bytes(op)
    elif op.name == "tile_store":
        totals["store_bytes"] += _tile_bytes(op)
    elif op.name == "tile_dot4":
        left, right = op.attributes["left"], op.attributes["right"]
        totals["int8_ops"] += 2 * left.rows * left.columns * right.columns // 4
    elif op.name in _WORK and op.result is not None:
        kind, work = _WORK[op.name]
        times = len(op.operands) // 2 if op.name == "dot4_sum" else 1
        totals[kind] += work * times * op.result.type.lanes


def _tile_bytes(op: Op) -> int:
    return int(op.attributes["tile"].rows * op.attributes["tile"].row_bytes)


def _bytes(value: Value) -> int:
    return value.type.lanes * value.type.dtype.bits // 8


@dataclass(frozen=True)
class Work:
    """What one task of a kernel does, loops counted as often as they turn.

    moved       pointer → bytes loaded and stored through it
    int8_ops    int8 operations, two a multiply-add
    vectors     vector operations, in dot products of 64 bytes that take as long
    live_bytes  vectors of variables that are alive at once: what must find room in registers
    """

    moved: Mapping[str, int]
    int8_ops: int
    vectors: float
    live_bytes: int


def work(function: Function, numbers: Mapping[str, int]) -> Work:
    """Count one task of a traced kernel.

    numbers   scalar parameters, which decide how often loops turn
    A `when` counts as taken, and a loop whose bounds are read from memory as one turn.
    """
    return _work_of(function.body, {"task": 0, **numbers})


def predict_us(work: Work, tasks: int, sizes: Mapping[str, int], gb_per_s: float, int8_gops: float) -> float:
    """Least time of `tasks` tasks under the roofs of a machine, in microseconds: max(memory, compute), where

    memory    sum over pointers of min(bytes moved by all tasks, bytes of the buffer) / gb_per_s
    compute   vector operations * 128 / int8_gops

    A buffer counts once however often it is read: caches keep what is small.  Latency and spilled registers do not
    count, so shapes of a kernel are ranked only roughly; a measurement decides among those that are left.

    sizes                 pointer → bytes of its buffer
    gb_per_s, int8_gops   1e9 bytes and 1e9 int8 operations a second, of the threads that will run it
    """
    # scratch memory, which has no size here, stays in the nearest cache
    moved = sum(min(tasks * num_bytes, sizes[name]) for name, num_bytes in work.moved.items() if name in sizes)
    compute_us = tasks * work.vectors * _DOT_OPS / int8_gops / 1e3
    return max(moved / gb_per_s / 1e3, compute_us)


def _work_of(body: list[Op], numbers: dict[str, int]) -> Work:
    """Count a body; `numbers` takes the integers found on the way."""
    moved: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    vectors, own_bytes, inner_bytes = 0.0, 0, 0
    for op in body:
        _fold(op, numbers)
        _count_op(op, totals)
        vectors += _effort(op)
        own_bytes += _bytes(_result(op)) if op.name == "var" and _result(op).type.lanes > 1 else 0
        if op.name in ("load", "store"):
            moved[op.operands[0].name] += _bytes(_value(op))
        elif op.name in ("tile_load", "tile_store"):
            moved[op.operands[0].name] += _tile_bytes(op)
        if op.body:
            turns = _turns(op, numbers)
            inner = _work_of(op.body, numbers)
            moved.update({name: turns * num_bytes for name, num_bytes in inner.moved.items()})
            totals["int8_ops"] += turns * inner.int8_ops
            vectors += turns * inner.vectors
            inner_bytes = max(inner_bytes, inner.live_bytes)
    return Work(dict(moved), totals["int8_ops"], vectors, own_bytes + inner_bytes)


def _turns(op: Op, numbers: dict[str, int]) -> int:
    """How often a body runs.  In it the counter stands for its first value, as every turn does the same."""
    if op.name != "loop":
        return 1
    begin, end = (numbers.get(operand.name) for operand in op.operands)
    if begin is None or end is None:
        return 1
    numbers[_result(op).name] = begin
    return max(0, -(-(end - begin) // int(op.attributes["step"])))


def _fold(op: Op, numbers: dict[str, int]) -> None:
    """Compute a scalar integer whose operands are known."""
    known = [numbers[operand.name] for operand in op.operands if operand.name in numbers]
    if op.name == "const" and _result(op).type.lanes == 1:
        numbers[_result(op).name] = int(op.attributes["number"])
    elif op.name in _FOLD and len(known) == 2:
        numbers[_result(op).name] = _FOLD[op.name](*known)
    elif op.name == "convert" and known:
        numbers[_result(op).name] = known[0]


def _effort(op: Op) -> float:
    """Dot products of 64 bytes that take as long as this operation; 0 for scalars and control flow."""
    if op.name in _TILE_ROWS:
        return _TILE_ROWS[op.name] * float(op.attributes["tile"].rows)
    if op.result is None and op.name != "store" or _value(op).type.lanes == 1:
        return 0.0
    times = len(op.operands) // 2 if op.name == "dot4_sum" else 1
    return times * _FREE.get(op.name, _EFFORT.get(op.name, _OTHER)) * _made(op) * _bytes(_value(op)) / _DOT_BYTES


def _made(op: Op) -> float:
    """The part of a result that takes an instruction: a shuffle that repeats itself is made once, as a splat is."""
    picks = op.attributes["indices"] if op.name == "shuffle" else (0,)
    period = next(n for n in range(1, len(picks) + 1) if picks == picks[:n] * (len(picks) // n))
    return period / len(picks)


def _value(op: Op) -> Value:
    return op.operands[2] if op.name == "store" else _result(op)


def _result(op: Op) -> Value:
    assert op.result is not None
    return op.result
