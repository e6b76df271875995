"""What a matmul does with a finished pair of row tiles before it stores: traced into every matmul kernel.

store   y = out
add     y = y + out                  the residual stream
silu    y = silu(gate) * up          rows of gate and up alternate in tiles, see tiles.interleave_rows
relu2   y = relu2(gate) * up
A bias is added to `out` first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lutra.compiler.language import Value, load, store
from lutra.errors import KernelError
from lutra.kernels.buffers import aligned, check_state
from lutra.kernels.elementwise import relu2, silu
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight

GATES: dict[str, Callable[[Value], Value]] = {"silu": silu, "relu2": relu2}
EPILOGUES = ("store", "add", *GATES)


def finish_pair(
    outs: Sequence[Value], y: Value, row: Value, pair: Value, epilogue: str, bias: Value | None = None
) -> None:
    """Store one row of activations times both tiles of a pair.

    outs   two f32x16
    y      pointer to f32; `row` is the index where this row's outputs start
    bias   pointer to f32 [padded_n], or None
    """
    first, second = outs
    if bias is not None:
        first = first + load(bias, pair * PAIR, ROWS)
        second = second + load(bias, pair * PAIR + ROWS, ROWS)
    if epilogue in GATES:
        store(y, row + pair * ROWS, GATES[epilogue](first) * second)
        return
    for tile, out in enumerate((first, second)):
        at = row + (pair * PAIR + tile * ROWS)
        store(y, at, load(y, at, ROWS) + out if epilogue == "add" else out)


def check_epilogue(epilogue: str) -> None:
    """Raise KernelError for a name that is not in the table above."""
    if epilogue not in EPILOGUES:
        raise KernelError(f"expected an epilogue of {', '.join(EPILOGUES)}, got {epilogue!r}; see kernels/epilogue.py")


def output_columns(epilogue: str, padded_n: int) -> int:
    """Columns of y that a matmul of `padded_n` weight rows writes."""
    return padded_n // 2 if epilogue in GATES else padded_n


def outputs(
    weight: TiledWeight, y: np.ndarray, state: np.ndarray, column: int, epilogue: str, bias: np.ndarray | None,
    tile_m: int,
) -> dict[str, Any]:  # fmt: skip
    """Where a matmul writes, as arguments of its kernel.

    raises   KernelError   the padded outputs of `weight` do not fit y from `column` on, or another bias or state
    """
    check_epilogue(epilogue)
    check_state(state)
    end = column + output_columns(epilogue, weight.padded_n)
    if y.ndim != 2 or y.shape[0] % tile_m or y.shape[1] < end:
        raise KernelError(
            f"expected y of a multiple of {tile_m} rows and at least {end} columns, got {y.shape}; "
            f"round its rows up to 16 and its columns up to 64"
        )
    if bias is not None and bias.shape != (weight.padded_n,):
        raise KernelError(f"expected a bias of {weight.padded_n} numbers, got {bias.shape}; pad it with zeros")
    return dict(bias=bias_or_dummy(bias), y=y, state=state, pairs=weight.num_pairs, y_stride=y.shape[1],
                y_column=column)  # fmt: skip


def bias_or_dummy(bias: np.ndarray | None) -> np.ndarray:
    """The bias, or one unread number for the kernel's pointer."""
    return aligned(1, np.float32) if bias is None else bias
