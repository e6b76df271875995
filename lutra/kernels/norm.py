"""RMSNorm, alone or fused with the quantisation of activations.  One task is one row.

`bind`            x f32 → y f32, normalised
`bind_quantize`   x f32 → Activations, normalised first where a weight is given

Meaning: `rms_norm_spec` below, then formats/integer.quantize_activations, activation_sums and build_tables.
Columns beyond the true width must be 0 in x; they come out as 0.

Source    Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    f32,
    i8,
    i32,
    i64,
    load,
    loop,
    maximum,
    reduce_add,
    splat,
    sqrt,
    store,
    u8,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.activations import Activations, largest, store_codes, store_scale, store_sums, store_tables
from lutra.kernels.buffers import check_state

LANES = NUM_LANES


def rms_norm_spec(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """y = (x / rms(x)) * weight, in the kernel's order.

    x        f32 [M, K]
    weight   f32 [K]
    returns  f32 [M, K]
    """
    mean = tree_sum(x * x) / np.float32(x.shape[1])  # [M]
    r = np.float32(1) / np.sqrt(mean + np.float32(eps))
    return (x * r[:, None]) * weight


@kernel
def rms_norm(
    x: Pointer[f32],
    weight: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    x_stride: i64,
    y_stride: i64,
    columns: i64,
    width: f32,
    eps: f32,
    task: i64,
    *,
    source_row,
):
    """y[task] = normalised row of x; `columns` is the padded width, a multiple of 16."""
    with when(_is_due(state, task, source_row)):
        source = _source_row(state, task, source_row) * x_stride
        scale = splat(inverse_rms(x, source, columns, width, eps), LANES)
        for k in loop(0, columns, LANES):
            store(y, task * y_stride + k, (load(x, source + k, LANES) * scale) * load(weight, k, LANES))


@kernel
def quantize(
    x: Pointer[f32],
    weight: Pointer[f32],
    xq: Pointer[i8],
    xs: Pointer[f32],
    sums: Pointer[i32],
    tables: Pointer[u8],
    state: Pointer[i64],
    x_stride: i64,
    columns: i64,
    width: f32,
    eps: f32,
    task: i64,
    *,
    norm,
    group,
    per_group,
    unit,
    with_tables,
    source_row,
):
    """Quantise one row to int8, `unit` columns a turn; group = 0 means one sum per row."""
    with when(_is_due(state, task, source_row)):
        source = _source_row(state, task, source_row) * x_stride
        scale = splat(inverse_rms(x, source, columns, width, eps), LANES) if norm else None

        def values(k: Value) -> list[Value]:
            parts = [load(x, source + (k + i), LANES) for i in range(0, unit, LANES)]
            if scale is None:
                return parts
            return [(part * scale) * load(weight, k + i * LANES, LANES) for i, part in enumerate(parts)]

        inverse = None if per_group else _row_scale(values, columns, unit, xs, task)
        total = var(const(0, i32, min(unit, 64) // 4))
        for k in loop(0, columns, unit):
            parts = values(k)
            at = task * (columns // group) + k // group if group else task  # index of this unit's first group
            inverses = _group_scales(parts, group // LANES, xs, at) if per_group else [inverse] * len(parts)
            quads = store_codes(parts, inverses, xq, task * columns + k)
            if group:
                store_sums(quads, group, sums, at)
            else:
                total += quads[0]
        if not group:
            store(sums, task, reduce_add(total))
        if with_tables:
            store_tables(xq, tables, task * columns, columns)


def inverse_rms(x: Value, start: Value, columns: Value | int, width: Value | float, eps: Value) -> Value:
    """1 / sqrt(mean of squares + eps) of `columns` elements from `start`: 16 strided sums, then the tree."""
    acc = var(const(0.0, f32, LANES))
    for k in loop(0, columns, LANES):
        v = load(x, start + k, LANES)
        acc += v * v
    return 1.0 / sqrt(reduce_add(acc) / width + eps)


def _is_due(state: Value, task: Value, source_row: str) -> Value:
    """The head computes state[3] rows, which are fewer than the step's."""
    return task < (load(state, 3) if source_row == "head" else load(state, 0))


def _source_row(state: Value, task: Value, source_row: str) -> Value:
    return load(state, 2) + task if source_row == "head" else task


def _row_scale(values: Callable[[Value], list[Value]], columns: Value, unit: int, xs: Value, row: Value) -> Value:
    """Store the row's scale; return its inverse in every lane."""
    top = var(const(0.0, f32, LANES))
    for k in loop(0, columns, unit):
        top.set(maximum(top, largest(values(k))))
    return store_scale(top.get(), xs, row)


def _group_scales(parts: list[Value], per_group: int, xs: Value, at: Value) -> list[Value]:
    """Store a scale for every `per_group` parts; return the inverse that belongs to each part."""
    inverses: list[Value] = []
    for i in range(0, len(parts), per_group):
        inverses += [store_scale(largest(parts[i : i + per_group]), xs, at + i // per_group)] * per_group
    return inverses


# ---- binding ------------------------------------------------------------------------------------------------------


def bind(
    x: np.ndarray,
    weight: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    width: int,
    eps: float,
    source_row: str = "all",
    isa: str | None = None,
) -> Step:
    """y = RMSNorm(x), row by row.

    x, y         f32 [rows, stride]   true width `width`; strides are multiples of 16
    weight       f32 [width]
    state        i64 [4]              number of rows, position, first head row, number of head rows
    source_row   "all": row i of x gives row i of y.  "head": row state[2] + i gives row i, for state[3] rows
    """
    columns = -(-width // LANES) * LANES
    _check(x, width, columns, source_row)
    _check_output(x, y, columns, source_row)
    _check_weight(weight, width)
    check_state(state)
    args = {"x": x, "weight": _padded(weight, columns), "y": y, "state": state, "x_stride": x.shape[1]}
    args |= {"y_stride": y.shape[1], "columns": columns, "width": float(width), "eps": eps}
    return Step(rms_norm.bind(args, isa, source_row=source_row), 1, 1)


def bind_quantize(
    x: np.ndarray,
    out: Activations,
    state: np.ndarray,
    *,
    width: int,
    weight: np.ndarray | None = None,
    eps: float = 0.0,
    source_row: str = "all",
    isa: str | None = None,
) -> Step:
    """Quantise x into `out` (whose shapes say the groups), after RMSNorm where `weight` is given; else as `bind`."""
    columns, num_groups = out.xq.shape[1], out.sums.shape[1]
    _check(x, width, columns, source_row)
    group = columns // num_groups if num_groups > 1 else 0
    if group % 16 or group & (group - 1):
        raise KernelError(f"expected groups of 16, 32, 64, 128, 256 or whole rows, got {group}; re-code the weight")
    _check_output(x, out.xq, columns, source_row)
    if weight is not None:
        _check_weight(weight, width)
    check_state(state)
    norm = weight is not None
    args = {"x": x, "weight": _padded(weight, columns) if norm else x, "xq": out.xq, "xs": out.xs, "sums": out.sums}
    args |= {"tables": out.sums.view(np.uint8) if out.tables is None else out.tables, "state": state}
    args |= {"x_stride": x.shape[1], "columns": columns, "width": float(width), "eps": eps}
    launch = quantize.bind(
        args,
        isa,
        norm=norm,
        group=group,
        per_group=out.xs.shape[1] > 1,
        unit=max(group, 32 if columns % 64 else 64),
        with_tables=out.tables is not None,
        source_row=source_row,
    )
    return Step(launch, 1, 1)


def _padded(weight: np.ndarray, columns: int) -> np.ndarray:
    """The weight with zeros up to `columns`."""
    return np.pad(weight.astype(np.float32), (0, columns - weight.size))


def _check_output(x: np.ndarray, y: np.ndarray, columns: int, source_row: str) -> None:
    """The head writes fewer rows than x has; the caller gives it no more than y has."""
    rows = len(x) if source_row == "all" else 1
    if y.ndim != 2 or y.shape[1] < columns or len(y) < rows:
        raise KernelError(
            f"expected an output of at least {rows} rows and {columns} columns, got {y.shape}; allocate it like x"
        )


def _check_weight(weight: np.ndarray, width: int) -> None:
    if weight.shape != (width,):
        raise KernelError(f"expected a norm weight of {width} numbers, got {weight.shape}; check the model's sizes")


def _check(x: np.ndarray, width: int, columns: int, source_row: str) -> None:
    if x.ndim != 2 or x.shape[1] < columns or not width <= columns:
        raise KernelError(
            f"expected x [rows, stride >= {columns}] for width {width}, got {x.shape}; pad the buffer's rows"
        )
    if source_row not in ("all", "head"):
        raise KernelError(f"expected source_row 'all' or 'head', got {source_row!r}")
