"""The first index of the largest logit of a row.  One task is one row of the head's output."""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    Value,
    const,
    convert,
    f32,
    i32,
    i64,
    load,
    loop,
    maximum,
    reduce_max,
    select,
    splat,
    store,
    var,
    when,
)
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.buffers import check_state
from lutra.kernels.softmax import iota

UNROLL = 4  # independent running maxima: one comparison a cycle instead of one every four
STEP = UNROLL * NUM_LANES


def argmax_spec(x: np.ndarray) -> np.ndarray:
    """First index of the largest element, a NaN counting as infinity: x f32 [M, N] → i32 [M]."""
    return np.where(np.isnan(x), np.float32(np.inf), x).argmax(1).astype(np.int32)


@kernel
def argmax(x: Pointer[f32], y: Pointer[i32], state: Pointer[i64], stride: i64, width: i64, task: i64):
    """y[task] = first index of the largest of x[task, :width].

    A NaN counts as infinity: x[y] is finite only if there is none, and nothing else has to look for one.
    """
    with when(task < load(state, 3)):
        best = [var(const(float("-inf"), f32, NUM_LANES)) for _ in range(UNROLL)]
        where = [var(const(0, i32, NUM_LANES)) for _ in range(UNROLL)]
        for k in loop(0, width, STEP):
            for i in range(UNROLL):
                v = load(x, task * stride + (k + i * NUM_LANES), NUM_LANES)
                v = select(v.equals(v), v, float("inf"))
                index = iota(NUM_LANES) + splat(convert(k + i * NUM_LANES, i32), NUM_LANES)
                is_better = (v > best[i].get()) & (index < splat(convert(width, i32), NUM_LANES))
                best[i].set(select(is_better, v, best[i].get()))
                where[i].set(select(is_better, index, where[i].get()))
        store(y, task, _first([b.get() for b in best], [w.get() for w in where]))


def _first(best: list[Value], where: list[Value]) -> Value:
    """The smallest index among the lanes that hold the largest value."""
    top = best[0]
    for value in best[1:]:
        top = maximum(top, value)
    top = splat(reduce_max(top), NUM_LANES)
    nearest = const(-(2**31) + 1, i32, NUM_LANES)  # indices negated, so that the largest is the first
    for value, index in zip(best, where, strict=True):
        nearest = maximum(nearest, select(value.equals(top), -index, nearest))
    return 0 - reduce_max(nearest)


def bind(x: np.ndarray, y: np.ndarray, state: np.ndarray, *, width: int, isa: str | None = None) -> Step:
    """y = argmax of rows 0 .. state[3] - 1.

    x   f32 [rows, stride]   stride at least `width` rounded up to 64
    y   i32 [rows]
    """
    columns = -(-width // STEP) * STEP
    if width < 1 or x.shape[1] < columns:
        raise KernelError(f"expected rows of at least {columns} columns for width {width}, got {x.shape}; pad them")
    if len(y) < len(x):
        raise KernelError(f"expected an index for each of {len(x)} rows, got room for {len(y)}; allocate more")
    check_state(state)
    return Step(argmax.bind({"x": x, "y": y, "state": state, "stride": x.shape[1], "width": width}, isa), 1, 1)
