"""Rounding picks the nearest level, and the ranges are what their table says."""

import doctest

import ml_dtypes
import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import rounding
from lutra.quantize.rounding import round_to_nearest

MIDDLE = [
    form for form in catalog.FORMATS.values()
    if form.is_plain and form.alphabet == "uniform" and form.name != "planes2-g64-zero1"
]  # fmt: skip


def gauss(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(rounding).failed == 0


def test_ranges_by_hand():
    w = np.array([[-7, -1, 0, 14]], np.float32)
    symmetric = round_to_nearest(w, catalog.planes(4, 0), "symmetric")        # scale 14 / 7 = 2, -1 / 2 rounds to 0
    assert symmetric.codes().tolist() == [[4, 8, 8, 15]] and symmetric.scales.tolist() == [[2]]
    full = round_to_nearest(w, catalog.planes(4, 0), "full")                  # scale 14 / -8: 14 is code 0
    assert full.codes().tolist() == [[12, 9, 8, 0]] and full.scales.tolist() == [[-1.75]]
    mins = round_to_nearest(w, catalog.planes(4, 0, offset="mins"))           # 21 / 15 = 1.4 from -7 up
    assert mins.codes().tolist() == [[0, 4, 5, 15]] and mins.mins.tolist() == [[-7]]
    zeros = round_to_nearest(w, catalog.planes(4, 0, offset="zeros"))         # 7 / 1.4 = 5 is the code of 0
    assert zeros.codes().tolist() == [[0, 4, 5, 15]] and zeros.zeros.tolist() == [[5]]
    sign = round_to_nearest(w, catalog.planes(1, 0, offset="mins"))           # mean|w| = 5.5; 0 is halfway
    assert sign.dequantize().tolist() == [[-5.5, -5.5, -5.5, 5.5]]
    int8 = round_to_nearest(np.array([[-127, 3, 64]], np.float32), catalog.int8(0))
    assert int8.codes().tolist() == [[1, 131, 192]]


@pytest.mark.parametrize("form", MIDDLE, ids=lambda form: form.name)
@pytest.mark.parametrize("k", [100, 256])
def test_no_level_is_nearer(form, k):
    """Move every code one up and one down: the value gets no closer to the weight."""
    w = gauss(4, k)
    q = round_to_nearest(w, form)
    error = np.abs(q.dequantize() - w)
    for step in (-1, 1):
        codes = (q.codes().astype(int) + step).clip(0, form.num_codes - 1).astype(np.uint8)
        moved = type(q).from_codes(form, codes, q.scales, q.zeros, q.mins)
        assert (error <= np.abs(moved.dequantize() - w) + 1e-6).all()


@pytest.mark.parametrize("bits, at_least_db", [(2, 8), (3, 14), (4, 20), (5, 26), (6, 32), (7, 38), (8, 42)])
def test_more_bits_less_noise(bits, at_least_db):
    form = catalog.int8(32) if bits == 8 else catalog.planes(bits, 32, offset="mins")
    w = gauss(64, 256)
    error = round_to_nearest(w, form).dequantize() - w
    assert 10 * np.log10((w**2).mean() / (error**2).mean()) > at_least_db


@pytest.mark.parametrize("form", MIDDLE, ids=lambda form: form.name)
def test_zeros_stay_zeros(form):
    assert not round_to_nearest(np.zeros((2, 64), np.float32), form).dequantize().any()


def test_what_is_on_the_grid_stays():
    codes = np.random.default_rng(5).integers(0, 16, (3, 64))
    codes[:, ::32] = 0                                                        # every group reaches the far end
    w = (codes - 8).astype(np.float32) * 0.25
    assert np.array_equal(round_to_nearest(w, catalog.planes(4, 32)).dequantize(), w)


def test_other_float_types():
    w = gauss(2, 64).astype(ml_dtypes.bfloat16)
    a, b = round_to_nearest(w, catalog.planes(4, 32)), round_to_nearest(w.astype(np.float32), catalog.planes(4, 32))
    assert np.array_equal(a.packed, b.packed)


def test_huge_and_tiny_weights():
    huge = np.array([[3e38, -3e38]], np.float32)
    assert np.isfinite(round_to_nearest(huge, catalog.planes(4, 0, offset="mins")).scales).all()
    with pytest.raises(FormatError, match="planes4-g32: expected weights in reach of f16 scales, got .*; use"):
        round_to_nearest(huge, catalog.planes(4, 32))
    tiny = np.array([[1e-30, -1e-30]], np.float32)                            # f16 scale 0: the group has one level
    assert not round_to_nearest(tiny, catalog.planes(4, 32)).dequantize().any()


def test_errors():
    with pytest.raises(FormatError, match="expected finite weights, got inf or nan"):
        round_to_nearest(np.array([[np.nan]], np.float32), catalog.planes(4, 32))
    with pytest.raises(FormatError, match=r"expected a weight matrix \[N, K\], got shape \[3\]"):
        round_to_nearest(np.zeros(3, np.float32), catalog.planes(4, 32))
    with pytest.raises(FormatError, match="expected a range of symmetric, full, asymmetric, sign, got best"):
        round_to_nearest(np.zeros((1, 3), np.float32), catalog.planes(4, 32), "best")
    for form, name in [(catalog.planes(4, 32), "asymmetric"), (catalog.planes(4, 32, offset="mins"), "full"),
                       (catalog.ternary(), "full"), (catalog.planes(2, 64, zero=1), "full")]:  # fmt: skip
        with pytest.raises(FormatError, match=f"{form.name}: expected a format that can store the range {name}"):
            round_to_nearest(np.zeros((1, 3), np.float32), form, name)
