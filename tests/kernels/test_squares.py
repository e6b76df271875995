"""Sums in squares are those of dot4: the same bits for every kind of format, any number of rows, any tiles at once.

Here every CPU runs them in plain vector code; tests/arm runs the instruction they are for.
"""

import numpy as np
import pytest

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, bitcast, i8, i64, load, store, u8
from lutra.formats import catalog, integer
from lutra.kernels import matmul_mad
from lutra.kernels.buffers import aligned
from lutra.kernels.plan import Plan
from lutra.kernels.squares import activations, eights
from lutra.kernels.tiles import tile_mad
from tests.kernels.linears import random_activations, random_weight, run, state

HALF, ONE, BOTH = (Plan(tiles, 1, 1, 0, squares=True, lanes=lanes) for tiles, lanes in ((1, 8), (1, 16), (2, 16)))


@kernel
def interleave(a: Pointer[u8], b: Pointer[u8], x: Pointer[i8], codes: Pointer[u8], xs: Pointer[i8], task: i64):
    store(codes, 0, eights(load(a, 0, 32), load(b, 0, 32)))
    first, second = (bitcast(load(x, row * 32, 32), i64) for row in range(2))
    store(xs, 0, activations(first, second, 3, 4))


def test_operands_by_hand():
    """Row r has bytes r in quad 0 and 10 + r in quad 1; activations 24..31 of two rows are 24..31 and 56..63."""
    a, b = (np.repeat(np.arange(8, dtype=np.uint8) + first, 4) for first in (0, 10))
    codes, xs = np.zeros(64, np.uint8), np.zeros(64, np.int8)
    interleave.run({"a": a, "b": b, "x": np.arange(64, dtype=np.int8), "codes": codes, "xs": xs}, 1)
    assert codes[::4].tolist() == [0, 10, 1, 11, 2, 12, 3, 13, 4, 14, 5, 15, 6, 16, 7, 17]
    assert xs.tolist() == [*range(24, 32), *range(56, 64)] * 4


@pytest.mark.parametrize("name, plan", [
    ("ternary", HALF), ("ternary", ONE), ("ternary", BOTH), ("planes4-g16", BOTH), ("planes4-g32-mins-u8xf16", HALF),
    ("planes3-g64-mins", BOTH), ("planes4-g128-zeros", HALF), ("planes1x3-g128-mins", ONE), ("int8-g32", HALF),
    ("planes2-g16-mins-f32", ONE), ("planes2-g16-mins-f32", HALF), ("iq4nl-g32-i8xf16", HALF),
])  # fmt: skip
@pytest.mark.parametrize("tile_m", [4, 5])
def test_squares_equal_the_specification(name, plan, tile_m):
    """A block that is full, one with a row alone in its squares, and rows that are not there."""
    w, most = random_weight(catalog.find(name), 35, 160), 10
    x, tiled = random_activations(w, most, 16), tile_mad(w)
    want = integer.matmul(x.xq[:most], x.xs[:most], w)
    for m in (most, most - 1, 1):
        y = np.full((16, tiled.padded_n), np.nan, np.float32)
        run(matmul_mad.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, shape=plan), m)
        assert y[:m, :35].tobytes() == want[:m].tobytes(), m
        assert np.isnan(y[m:]).all()


@pytest.mark.parametrize("name", ["planes2-g16-mins-f32", "planes4-g32", "ternary"])
def test_the_interpreter_agrees_and_stays_inside_the_buffers(name):
    w = random_weight(catalog.find(name), 33, 64)
    x, y = random_activations(w, 3, 4), aligned((4, 64), np.float32)
    step = matmul_mad.bind(tile_mad(w), x, y, state(3), epilogue="store", tile_m=4, shape=HALF)
    step.launch.kernel.check(step.launch.args, step.count(3), **step.launch.static)


def test_codes_in_place_are_not_for_squares():
    """A plan that says both still gives the same bits: sums of several powers of two would not fit one square."""
    w = random_weight(catalog.find("ternary"), 33, 64)
    x, y = random_activations(w, 4, 4), aligned((4, 64), np.float32)
    plan = Plan(1, 4, 1, 0, in_place=True, squares=True)
    run(matmul_mad.bind(tile_mad(w), x, y, state(4), epilogue="store", tile_m=4, shape=plan), 4)
    assert y[:, :33].tobytes() == integer.matmul(x.xq, x.xs, w).tobytes()
