"""Softmax of a row of logits.  One task is one row of the head's output."""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    concat,
    const,
    convert,
    f32,
    i32,
    i64,
    load,
    loop,
    maximum,
    reduce_add,
    reduce_max,
    select,
    shuffle,
    splat,
    store,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES, tree_sum
from lutra.kernels.buffers import check_state
from lutra.kernels.elementwise import exp, exp_spec


def softmax_spec(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """e**(scale * x - max) / sum, in the kernel's order: x f32 [M, N] → f32 [M, N]."""
    scaled = x * np.float32(scale)
    p = exp_spec(scaled - scaled.max(1, keepdims=True))
    return p / tree_sum(p)[:, None]


@kernel
def softmax(
    x: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    x_stride: i64,
    y_stride: i64,
    width: i64,
    scale: f32,
    task: i64,
):
    """y[task] = softmax(scale * x[task]); x and y may be the same buffer."""
    with when(task < load(state, 3)):
        source, target = task * x_stride, task * y_stride
        factor = splat(scale, NUM_LANES)
        largest = var(const(float("-inf"), f32, NUM_LANES))
        for k in loop(0, width, NUM_LANES):
            v = load(x, source + k, NUM_LANES) * factor
            largest.set(maximum(largest, select(is_inside(k, width), v, float("-inf"))))
        top = splat(reduce_max(largest), NUM_LANES)
        total = var(const(0.0, f32, NUM_LANES))
        for k in loop(0, width, NUM_LANES):
            p = exp(load(x, source + k, NUM_LANES) * factor - top)
            p = select(is_inside(k, width), p, 0.0)
            store(y, target + k, p)
            total += p
        whole = splat(reduce_add(total), NUM_LANES)
        for k in loop(0, width, NUM_LANES):
            store(y, target + k, load(y, target + k, NUM_LANES) / whole)


def iota(lanes: int) -> Value:
    """0, 1, 2, ... as i32; lanes is a power of two."""
    zero = const(0, i32)
    numbers = shuffle(zero, zero + 1, (0, 1))
    while numbers.type.lanes < lanes:
        numbers = concat(numbers, numbers + numbers.type.lanes)
    return numbers


def is_inside(k: Value, width: Value) -> Value:
    """Which of the 16 columns from k on lie before `width`."""
    return iota(NUM_LANES) < splat(convert(width - k, i32), NUM_LANES)


def bind(
    x: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    width: int,
    scale: float = 1.0,
    isa: str | None = None,
) -> Step:
    """y = softmax(scale * x) of rows 0 .. state[3] - 1.

    x, y    f32 [rows, stride]   strides are at least `width` rounded up to 16; y gets 0 in the columns between
    scale   1 / temperature
    """
    columns = -(-width // NUM_LANES) * NUM_LANES
    if min(x.shape[1], y.shape[1]) < columns or len(y) < len(x):
        raise KernelError(
            f"expected rows of at least {columns} columns, and as many of y as of x, got x {x.shape} and y {y.shape}; "
            "pad them"
        )
    check_state(state)
    args = {"x": x, "y": y, "state": state, "x_stride": x.shape[1], "y_stride": y.shape[1]}
    return Step(softmax.bind(args | {"width": width, "scale": scale}, isa), 1, 1)
