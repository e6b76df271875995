"""The dense kernel equals its NumPy page bit for bit, and double precision closely."""

import ml_dtypes
import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.formats import catalog
from lutra.kernels import choose, matmul_dense
from lutra.kernels.buffers import aligned
from lutra.kernels.elementwise import silu_spec
from lutra.kernels.tiles import interleave_rows, tile_dense, tile_mad
from tests.kernels.linears import random_weight, run, state

ISAS = [target.isa for target in targets.available()]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
SIZES = [(1, 1, 1), (2, 31, 32), (3, 33, 33), (7, 48, 97), (16, 67, 160), (1, 33, 257), (5, 20, 600)]


def random_linear(m: int, n: int, k: int, dtype, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x f32 [rows, stride], rubbish behind row M; w [N, K]."""
    rng = np.random.default_rng(n + k)
    x = aligned((rows, -(-k // 64) * 64), np.float32)
    x[:, :k] = rng.standard_normal((rows, k))
    return x, rng.standard_normal((n, k)).astype(np.float32).astype(dtype)


def test_by_hand():
    """Five columns: p0 takes columns 0 and 4, p1, p2, p3 one each."""
    x, y = aligned((1, 64), np.float32), aligned((1, 32), np.float32)
    x[0, :5] = [1, 2, 3, 4, 5]
    w = np.array([[10, 1, 1, 1, 2]], np.float32)
    run(matmul_dense.bind(tile_dense(w), x, y, state(1), epilogue="store", tile_m=1), 1)
    assert y[0].tolist() == [29.0] + [0.0] * 31


def test_the_order_of_the_sum_is_the_meaning():
    """1e8 + 1 - 1e8 loses the 1 in one partial sum and keeps it when the three lie in different ones."""
    row = np.zeros((1, 12), np.float32)
    row[0, [0, 4, 8]] = [1e8, 1, -1e8]
    assert matmul_dense.dense_spec(row, np.ones((1, 12), np.float32))[0, 0] == 0
    row[0, [0, 4, 8]], row[0, :3] = 0, [1e8, 1, -1e8]
    assert matmul_dense.dense_spec(row, np.ones((1, 12), np.float32))[0, 0] == 1


def test_the_columns_that_fill_a_block_make_0_of_minus_0():
    """A product of -1e-60 rounds to -0, and adding 0 to that gives 0: in NumPy as in the kernel."""
    x, w = np.full((1, 4), 1e-30, np.float32), np.full((1, 4), -1e-30, np.float32)
    assert not np.signbit(matmul_dense.dense_spec(x, w)).any()
    assert np.signbit(matmul_dense.dense_spec(np.tile(x, 8), np.tile(w, 8))).all()  # nothing to fill
    padded, y = aligned((1, 32), np.float32), aligned((1, 64), np.float32)
    padded[:, :4] = x
    run(matmul_dense.bind(tile_dense(w), padded, y, state(1), epilogue="store", tile_m=1), 1)
    assert not np.signbit(y[0, 0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_specification(dtype, isa):
    for tile_m in choose.row_blocks("dense", isa):
        for m, n, k in SIZES:
            x, w = random_linear(m, n, k, dtype, -(-m // tile_m) * tile_m)
            tiled = tile_dense(w)
            y = np.full((len(x), tiled.padded_n), np.nan, np.float32)
            run(matmul_dense.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, isa=isa), m)
            assert y[:m, :n].tobytes() == matmul_dense.dense_spec(x[:m, :k], w).tobytes(), (m, n, k, tile_m)
            assert not y[:m, n:].any()


def test_is_close_to_double_precision():
    x, w = random_linear(4, 50, 1000, np.float32, 4)
    exact = x[:, :1000].astype(np.float64) @ w.T.astype(np.float64)
    assert np.abs(matmul_dense.dense_spec(x[:, :1000], w) - exact).max() < 1e-3


def test_epilogues():
    m, (x, gate), (_, up) = 3, random_linear(3, 20, 40, np.float32, 4), random_linear(3, 20, 41, np.float32, 4)
    parts = [matmul_dense.dense_spec(x[:m, :40], w) for w in (gate, up[:, :40])]
    y = aligned((4, 64), np.float32)
    both = tile_dense(interleave_rows(gate, up[:, :40]))
    run(matmul_dense.bind(both, x, y, state(m), epilogue="silu", tile_m=2), m)
    assert np.array_equal(y[:m, :20], silu_spec(parts[0]) * parts[1])
    bias = aligned(32, np.float32)
    bias[:20], y[:] = 3, 1
    run(matmul_dense.bind(tile_dense(gate), x, y, state(m), epilogue="add", bias=bias, column=32, tile_m=1), m)
    assert np.array_equal(y[:m, 32:52], np.float32(1) + (parts[0] + np.float32(3)))


@pytest.mark.parametrize("isa", ISAS)
def test_a_product_is_added_to_what_it_starts_with_before_bias_and_gate(isa):
    m, (x, gate), (_, up) = 3, random_linear(3, 20, 40, np.float32, 4), random_linear(3, 20, 41, np.float32, 4)
    both = tile_dense(interleave_rows(gate, up[:, :40]))
    start, y = aligned((4, both.padded_n), np.float32), aligned((4, 64), np.float32)
    start[:] = np.random.default_rng(0).standard_normal(start.shape)
    pairs = start.reshape(4, -1, 2, 16)[:m]
    parts = [pairs[:, :, side].reshape(m, -1)[:, :20] + matmul_dense.dense_spec(x[:m, :40], w)
             for side, w in enumerate((gate, up[:, :40]))]  # fmt: skip
    run(matmul_dense.bind(both, x, y, state(m), epilogue="silu", tile_m=2, start=start, isa=isa), m)
    assert np.array_equal(y[:m, :20], silu_spec(parts[0]) * parts[1])
    bias = aligned(32, np.float32)
    bias[:20], y[:] = 3, 1
    options = dict(epilogue="add", tile_m=1, isa=isa)
    run(matmul_dense.bind(tile_dense(gate), x, y, state(m), bias=bias, start=start, **options), m)
    product = start[:m, :20] + matmul_dense.dense_spec(x[:m, :40], gate)
    assert np.array_equal(y[:m, :20], np.float32(1) + (product + np.float32(3)))
    with pytest.raises(KernelError, match="expected start of 4 rows and at least 32 columns, got .4, 16."):
        matmul_dense.bind(tile_dense(gate), x, y, state(m), start=np.zeros((4, 16), np.float32), **options)


def test_the_interpreter_agrees_and_stays_inside_the_buffers():
    x, w = random_linear(2, 33, 33, ml_dtypes.bfloat16, 2)
    step = matmul_dense.bind(tile_dense(w), x, aligned((2, 64), np.float32), state(2), epilogue="store", tile_m=2)
    step.launch.kernel.check(step.launch.args, step.count(2), **step.launch.static)


def test_a_short_x_is_refused():
    weight = tile_dense(np.ones((4, 65), np.float32))
    with pytest.raises(KernelError, match="a multiple of 2 rows and at least 96 columns, got .2, 64."):
        matmul_dense.bind(weight, np.zeros((2, 64), np.float32), np.zeros((2, 32), np.float32), state(2),
                          epilogue="store", tile_m=2)  # fmt: skip


def test_a_weight_in_another_order_is_an_error():
    weight = tile_mad(random_weight(catalog.planes(2, 32), 4, 32))
    with pytest.raises(KernelError, match="expected a weight in dense order, got mad"):
        matmul_dense.bind(weight, aligned((2, 32), np.float32), aligned((2, 32), np.float32), state(2),
                          epilogue="store", tile_m=2)  # fmt: skip
