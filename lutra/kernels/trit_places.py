"""Activations as matmul_trit_rows.py meets them: those of four steps, sorted by their place among five.

A word of four bytes holds 20 weights, and the digits of one place in it belong to activations five apart.  One word of
activations for each place makes them the operands of one dot4:

    places   byte 4 * place + step of group g   is activation 20 g + 5 step + place        place 0 .. 4, step 0 .. 3

One task is one row of activations.
"""

from __future__ import annotations

import numpy as np

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, i8, i64, load, loop, shuffle, store
from lutra.compiler.launch import Step
from lutra.errors import KernelError
from lutra.formats.trits import TRITS
from lutra.kernels.activations import Activations
from lutra.kernels.buffers import check_state
from lutra.kernels.tiles import CHUNK
from lutra.kernels.tiles_trit import GROUP, GROUP_COLUMNS, place_columns

# A vector of 32 activations gives 20 and whatever; the next group's store covers the rest
PICKS = [step * TRITS + place for place in range(TRITS) for step in range(GROUP)]


@kernel
def trit_places(xq: Pointer[i8], places: Pointer[i8], xq_stride: i64, places_stride: i64, groups: i64, task: i64):
    """`groups` counts 20 activations of a row; rows of both buffers reach 12 bytes beyond the last one."""
    for group in loop(0, groups):
        first = load(xq, task * xq_stride + group * GROUP_COLUMNS, CHUNK)
        sorted_ = shuffle(first, first, [*PICKS, *range(GROUP_COLUMNS, CHUNK)])
        store(places, task * places_stride + group * GROUP_COLUMNS, sorted_)


def buffers(x: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Places and parts of tables that x was allocated with.  Raises KernelError where there are none, or too few."""
    if x.places is None or x.trits is None:
        raise KernelError(
            "expected activations with places and tables of five, got none; "
            "allocate them with activations.allocate(rows, k, format, with_trits=True)"
        )
    wanted = place_columns(x.trits.shape[1])
    if min(x.xq.shape[1], x.places.shape[1]) < wanted or len(x.xq) > min(len(x.places), len(x.trits)):
        raise KernelError(
            f"expected at least {wanted} columns of codes and of places, and tables, for {len(x.xq)} rows, got "
            f"{x.xq.shape}, {x.places.shape}, {x.trits.shape}; allocate them with activations.allocate"
        )
    return x.places, x.trits


def bind(x: Activations, state: np.ndarray, *, isa: str | None = None) -> Step:
    """Fill x.places from x.xq, for state[0] rows.  Raises KernelError when x was allocated without them."""
    places, parts = buffers(x)
    check_state(state)
    args = {
        "xq": x.xq, "places": places, "xq_stride": x.xq.shape[1], "places_stride": places.shape[1],
        "groups": -(-parts.shape[1] // GROUP),
    }  # fmt: skip
    return Step(trit_places.bind(args, isa), 1, 1)
