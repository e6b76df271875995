"""Counts a person can check, T-MAC's law for the lookup kernels, and what a predicted time may not do."""

import numpy as np
import pytest

from lutra.compiler import cost
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, const, dot4, i8, i32, i64, load, loop, store, u8, var, when
from lutra.formats import catalog
from lutra.kernels.matmul_lut import matmul_lut
from lutra.kernels.matmul_mad import matmul_mad
from lutra.kernels.plan import Plan, plan_for

BITS = (1, 2, 3, 4)
CHUNKS = 80  # K = 2560
MAD = {"pairs": 1, "chunks": CHUNKS, "xq_stride": 2560, "xs_stride": 1, "sums_stride": 1, "y_stride": 64, "y_column": 0}
LUT = {"pairs": 2, "chunks": CHUNKS, "y_stride": 64, "y_column": 0}
ROOF = {"gb_per_s": 40.0, "int8_gops": 950.0}


@kernel
def dots(a: Pointer[u8], b: Pointer[i8], out: Pointer[i32], n: i64, task: i64):
    """n products of 64 bytes in groups of two."""
    acc = var(const(0, i32, 16))
    for group in loop(0, n // 2):
        for k in loop(group * 2, (group + 1) * 2):
            acc.set(dot4(acc, load(a, k * 64, 64), load(b, 0, 64)))
    with when(n > 0):
        store(out, task * 16, acc)


def mad(tile_m: int = 1, bits: int = 2, tiles: int = 2, **plan) -> cost.Work:
    static = {"format": catalog.planes(bits, 32), "epilogue": "store", "has_bias": False, "tile_m": tile_m}
    return cost.work(matmul_mad.trace(**static, plan=Plan(tiles, 1, 1, 0, **plan)), MAD)


def lut(bits: int, tile_m: int = 1) -> cost.Work:
    static = {"format": catalog.planes(bits, 32), "epilogue": "store", "has_bias": False, "tile_m": tile_m}
    return cost.work(matmul_lut.trace(**static, vectors_at_once=4), LUT)


def r_squared(counts: list[float]) -> float:
    """How much of the counts for 1, 2, 3, 4 bits a straight line explains."""
    return float(np.corrcoef(BITS, counts)[0, 1] ** 2)


def test_by_hand():
    """5 groups of 2 products: 10 * 64 bytes of each operand, 10 * 128 operations; two loads and a product a turn."""
    found = cost.work(dots.trace(), {"n": 10})
    assert found == cost.Work({"a": 640, "b": 640, "out": 64}, 1280, 10 * (0.5 + 0.5 + 1.0) + 0.5, 64)


def test_a_predicted_time_by_hand():
    """Two tasks move 2 * 1000 bytes of a and all 500 of b at 1 GB/s; 2 * 50 products of 128 at 6.4 Gop/s take 2 µs."""
    work = cost.Work({"a": 1000, "b": 1000}, 0, 50.0, 0)
    assert cost.predict_us(work, 2, {"a": 4000, "b": 500}, 1.0, 6.4) == pytest.approx(2.5)
    assert cost.predict_us(work, 2, {"a": 4000, "b": 500}, 100.0, 6.4) == pytest.approx(2.0)


def test_bounds_that_memory_decides_count_one_turn():
    @kernel
    def copy(n: Pointer[i64], y: Pointer[u8], task: i64):
        for k in loop(0, load(n, 0)):
            store(y, k, const(0, u8))

    assert cost.work(copy.trace(), {}).moved == {"n": 8, "y": 1}


@pytest.mark.parametrize("bits", BITS)
def test_a_matmul_reads_its_codes_once(bits):
    """32 rows (64 for lookups) of 2560 weights; a lookup loads an index byte for each of its nibbles."""
    assert mad(bits=bits).moved["codes"] == 32 * 2560 * bits // 8
    assert lut(bits).moved["codes"] == 2 * 64 * 2560 * bits // 8
    assert mad(bits=bits).int8_ops == 2 * 32 * 2560


def test_lookups_are_linear_in_bits():
    """T-MAC's law (arXiv 2407.00088, section 3): each bit costs as much as the one before."""
    works = [lut(bits) for bits in BITS]
    assert r_squared([work.vectors for work in works]) >= 0.98
    assert r_squared([work.moved["codes"] for work in works]) == pytest.approx(1)
    assert works[3].vectors < 4 * works[0].vectors
    least, *_, most = sorted(mad(bits=bits).vectors for bits in (1, 2, 4))
    assert most < 1.1 * least  # a multiply-add costs the same, however many bits it came from


def test_squares_make_the_same_products_in_fewer_instructions():
    squares, rows_apart = mad(8, tiles=1, squares=True, lanes=8), mad(8, tiles=1)
    assert squares.int8_ops == rows_apart.int8_ops == 8 * 2 * 32 * 2560
    assert squares.moved["codes"] == rows_apart.moved["codes"] and squares.vectors < rows_apart.vectors


def test_times_are_monotone():
    """More rows, more bits, or a slower machine never take less time."""

    def us(work: cost.Work, tasks: int = 100, **roof: float) -> float:
        return cost.predict_us(work, tasks, dict.fromkeys(work.moved, 1 << 40), **{**ROOF, **roof})

    for works in ([mad(tile_m) for tile_m in (1, 2, 4, 8)], [lut(bits) for bits in BITS], [mad(bits=b) for b in BITS]):
        times = [us(work) for work in works]
        assert times == sorted(times) and times[0] > 0
    assert us(mad(), gb_per_s=20) >= us(mad()) and us(mad(), int8_gops=400) >= us(mad())
    assert us(mad(), tasks=200) == pytest.approx(2 * us(mad()))


def test_a_row_is_bound_by_memory_and_eight_by_arithmetic():
    """On the roofs of a server core: 2 bits of 2560 x 32 weights are 20 KiB, half a microsecond at 40 GB/s."""
    sizes = dict.fromkeys(mad().moved, 1 << 40)
    faster = {"gb_per_s": 80.0, "int8_gops": 950.0}
    one, eight = mad(), mad(8)
    assert cost.predict_us(one, 100, sizes, **faster) < cost.predict_us(one, 100, sizes, **ROOF)
    assert cost.predict_us(eight, 100, sizes, **faster) == cost.predict_us(eight, 100, sizes, **ROOF)


def test_sums_in_flight_fit_the_registers_of_the_table():
    """32 registers of 64 bytes.  Two tiles at once: two results, two sums; one after the other: one sum at a time."""
    static = {"format": catalog.find("ternary"), "epilogue": "store", "has_bias": False}
    for tile_m in (1, 2, 4, 8):
        traced = matmul_mad.trace(**static, tile_m=tile_m, plan=plan_for("mad", "avx512", tile_m))
        assert cost.work(traced, MAD).live_bytes <= 32 * 64
    assert (mad(tiles=2).live_bytes, mad(tiles=1).live_bytes) == (4 * 64, 3 * 64)
