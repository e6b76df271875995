"""Inputs in another order and scaled, for weights with side-cars (formats/sidecars.py).  One task is one row.

y[row, j] = x[row, perm[j]] * factors[j]; specification: Adapted.inputs, bit for bit.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, convert, f32, i32, i64, load, loop, store, when
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.kernels.buffers import check_state


@kernel
def adapt(
    x: Pointer[f32],
    perm: Pointer[i32],
    factors: Pointer[f32],
    y: Pointer[f32],
    state: Pointer[i64],
    x_stride: i64,
    y_stride: i64,
    columns: i64,
    task: i64,
):
    with when(task < load(state, 0)):
        for j in loop(0, columns):
            source = convert(load(perm, j), i64)
            store(y, task * y_stride + j, load(x, task * x_stride + source) * load(factors, j))


def bind(
    x: np.ndarray,
    perm: np.ndarray,
    factors: np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    isa: str | None = None,
) -> Step:
    """y = x[:, perm] * factors, row by row.

    x, y      f32 [rows, stride]    columns of y beyond K stay as they are
    perm      int32 [K]             columns of x, checked here: the kernel trusts them
    factors   f32 [K]
    state     i64, state[0] rows
    Raises KernelError for sizes that do not fit, or a column that x does not have.
    """
    k = perm.size
    check_state(state)
    if perm.dtype != np.int32 or factors.shape != perm.shape or perm.ndim != 1 or k < 1:
        raise KernelError(f"expected int32 [K] and float32 [K], got {perm.dtype} {perm.shape} and {factors.shape}")
    if x.ndim != 2 or y.ndim != 2 or y.shape[1] < k or len(y) < len(x):
        raise KernelError(f"expected y to hold {len(x)} rows of {k}, got {y.shape}; allocate it like x")
    if perm.min() < 0 or perm.max() >= x.shape[1]:
        raise KernelError(f"expected columns 0 to {x.shape[1] - 1} of x, got {perm.min()} to {perm.max()}")
    args = {"x": x, "perm": perm, "factors": factors, "y": y, "state": state}
    args |= {"x_stride": x.shape[1], "y_stride": y.shape[1], "columns": k}
    return Step(adapt.bind(args, isa), 1, 1)
