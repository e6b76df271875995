"""RMSNorm, alone or fused with the quantisation of activations.  One task is one row.

`bind`            x f32 → y f32, normalised
`bind_quantize`   x f32 → Activations, normalised first where a weight is given

Meaning: `rms_norm_spec` below, then formats/integer.quantize_activations, activation_sums and build_tables.
Columns beyond the true width must be 0 in x; they come out as 0.

Source    Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv 1910.07467
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    absolute,
    bitcast,
    concat,
    const,
    convert,
    dot4,
    f32,
    i8,
    i32,
    i64,
    load,
    loop,
    maximum,
    reduce_add,
    reduce_max,
    shuffle,
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
from lutra.kernels.activations import Activations
from lutra.kernels.tiles_lut import HALF_BITS, TABLE_BIAS

LANES = NUM_LANES
_MAGIC = 12582912.0  # 1.5 * 2**23: after adding it the low bits of the float are the nearest integer, halves to even
_SMALLEST = 1e-5  # least largest magnitude of a row or group, as in formats/integer.quantize_activations


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
        total = var(const(0, i32, unit // 4 if unit < 64 else LANES)) if group == 0 else None
        for k in loop(0, columns, unit):
            parts = values(k)
            if per_group:
                at = task * (columns // group) + k // group
                inverses = _group_scales(parts, group // LANES, xs, at)
            else:
                inverses = [inverse] * len(parts)
            codes = [_round(part * inv) for part, inv in zip(parts, inverses, strict=True)]
            pieces = _join(codes)
            for i, piece in enumerate(pieces):
                store(xq, task * columns + k + i * piece.type.lanes, piece)
            quads = [dot4(const(0, i32, p.type.lanes // 4), const(1, u8, p.type.lanes), p, bound=1) for p in pieces]
            if group == 0:
                total += quads[0]
            else:
                _store_sums(quads, group, sums, task * (columns // group) + k // group)
        if group == 0:
            store(sums, task, reduce_add(total))
        if with_tables:
            _store_tables(xq, tables, task * columns, columns)


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


def _largest(parts: list[Value]) -> Value:
    """Largest magnitude, lane by lane; the order does not matter for a maximum."""
    parts = [absolute(part) for part in parts]
    while len(parts) > 1:
        half = -(-len(parts) // 2)
        parts = [maximum(a, b) for a, b in zip(parts[:half], parts[half:], strict=False)] + parts[
            len(parts) // 2 : half
        ]
    return parts[0]


def _row_scale(values, columns: Value, unit: int, xs: Value, row: Value) -> Value:
    """Store the row's scale and return 127 / largest magnitude in every lane."""
    largest = var(const(0.0, f32, LANES))
    for k in loop(0, columns, unit):
        largest.set(maximum(largest, _largest(values(k))))
    return _store_scale(reduce_max(largest), xs, row)


def _group_scales(parts: list[Value], per_group: int, xs: Value, at: Value) -> list[Value]:
    """One inverse scale a part, equal within a group of `per_group` parts."""
    inverses: list[Value] = []
    for i in range(0, len(parts), per_group):
        inverse = _store_scale(reduce_max(_largest(parts[i : i + per_group])), xs, at + i // per_group)
        inverses += [inverse] * per_group
    return inverses


def _store_scale(largest: Value, xs: Value, at: Value) -> Value:
    largest = maximum(largest, _SMALLEST)
    store(xs, at, largest / 127.0)
    return splat(127.0 / largest, LANES)


def _round(v: Value) -> Value:
    """Nearest int8, halves to even; |v| <= 127 up to rounding."""
    return convert(bitcast(v + _MAGIC, i32), i8)


def _join(parts: list[Value]) -> list[Value]:
    """Vectors of 64 lanes, or one shorter vector."""
    while len(parts) > 1 and parts[0].type.lanes < 64:
        parts = [concat(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts


def _store_sums(quads: list[Value], group: int, sums: Value, at: Value) -> None:
    """Add sums of 4 neighbouring codes up to sums of a group, and store them side by side."""
    covered = 4 * quads[0].type.lanes  # codes one vector of sums covers
    if group >= covered:
        per_group = group // covered
        for i in range(0, len(quads), per_group):
            total = quads[i]
            for quad in quads[i + 1 : i + per_group]:
                total = total + quad
            store(sums, at + i // per_group, reduce_add(total))
        return
    for i, quad in enumerate(quads):
        while quad.type.lanes > covered // group:
            lanes = quad.type.lanes
            quad = shuffle(quad, quad, range(0, lanes, 2)) + shuffle(quad, quad, range(1, lanes, 2))
        store(sums, at + i * (covered // group), quad)


# Entry p of a table adds x[i] where bit i of p is 1 and subtracts it where it is 0: two dot products with 0 or 1.
_LOW_THEN_HIGH = [4 * entry + byte for byte in (0, 1) for entry in range(16)]


def _store_tables(xq: Value, tables: Value, start: Value, columns: Value) -> None:
    plus = _bits(tuple(p >> i & 1 for p in range(16) for i in range(4)))
    minus = plus ^ 1
    for k in loop(0, columns, 4):
        four = bitcast(splat(bitcast(load(xq, start + k, 4), i32), 16), i8)  # the same 4 codes 16 times
        zero = const(0, i32, 16)
        table = dot4(zero, plus, four, bound=1) - dot4(zero, minus, four, bound=1)  # i32, |entry| <= 508
        biased = table + TABLE_BIAS
        entries = bitcast((biased & (1 << HALF_BITS) - 1) | (biased >> HALF_BITS << 8), u8)
        store(tables, (start + k) * 8, shuffle(entries, entries, _LOW_THEN_HIGH))


def _bits(pattern: tuple[int, ...]) -> Value:
    """A constant u8 vector of zeros and ones."""
    zero = const(0, u8, len(pattern))
    return shuffle(zero, zero + 1, [i + len(pattern) * bit for i, bit in enumerate(pattern)])


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
    columns = _columns(width, 16)
    _check(x, width, columns, source_row)
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


def _columns(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def _padded(weight: np.ndarray, columns: int) -> np.ndarray:
    """The weight with zeros up to `columns`."""
    return np.pad(weight.astype(np.float32), (0, columns - weight.size))


def _check(x: np.ndarray, width: int, columns: int, source_row: str) -> None:
    if x.ndim != 2 or x.shape[1] < columns or not width <= columns:
        raise KernelError(
            f"expected x [rows, stride >= {columns}] for width {width}, got {x.shape}; pad the buffer's rows"
        )
    if source_row not in ("all", "head"):
        raise KernelError(f"expected source_row 'all' or 'head', got {source_row!r}")
