"""Bytes and operations of a kernel, counted from its IR, one row per loop nest."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lutra.compiler.ir import Function, Op, Value

# Operations an int8 or float roof counts, as work per result lane.
_WORK = {
    "dot4": ("int8_ops", 8),
    "dot4_sum": ("int8_ops", 8),  # of each pair
    "mul": ("lane_ops", 1),
    "add": ("lane_ops", 1),
    "sub": ("lane_ops", 1),
    "lookup": ("lookups", 1),
}


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
    elif op.name in _WORK and op.result is not None:
        kind, work = _WORK[op.name]
        times = len(op.operands) // 2 if op.name == "dot4_sum" else 1
        totals[kind] += work * times * op.result.type.lanes


def _bytes(value: Value) -> int:
    return value.type.lanes * value.type.dtype.bits // 8
