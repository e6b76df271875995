"""The specification itself: checked by hand, against scalar loops, and its two roads against each other."""

import doctest
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lutra.errors import FormatError
from lutra.formats import catalog, integer
from lutra.formats.qtensor import QTensor
from lutra.formats.tables import TABLES
from tests.formats.parts import min_at, scale_at

PLANES = [name for name, form in catalog.FORMATS.items() if form.storage == "planes" and form.levels == "uniform"]


def activations(m: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, (m, k)).astype(np.int8)


def test_docstrings():
    assert doctest.testmod(integer).failed == 0


def test_matmul_by_hand():
    """Two groups of 16, each with its scales: 1 * (16 * 1) * (0.5 * 4) + 2 * 16 * (3 * 0.25)."""
    codes = np.concatenate([np.full((1, 16), 9), np.full((1, 16), 10)], axis=1).astype(np.uint8)
    w = QTensor.from_codes(catalog.planes(4, 16), codes, np.array([[0.5, 3]], np.float16))
    xq, xs = np.ones((1, 32), np.int8), np.array([[4, 0.25]], np.float32)
    assert integer.group_dot(xq, w).tolist() == [[[16, 32]]]
    assert integer.matmul(xq, xs, w).tolist() == [[16 * 2.0 + 32 * 0.75]]


def test_mins_and_zeros_by_hand():
    codes, xq = np.full((1, 32), 5, np.uint8), np.full((1, 32), 2, np.int8)
    scales, xs = np.array([[0.5]], np.float16), np.array([[2]], np.float32)
    mins = QTensor.from_codes(catalog.planes(4, 32, offset="mins"), codes, scales, mins=np.array([[-1]], np.float16))
    assert integer.matmul(xq, xs, mins).tolist() == [[32 * 4 * (0.5 * 5 - 1)]]
    zeros = QTensor.from_codes(catalog.planes(4, 32, offset="zeros"), codes, scales, np.array([[3]], np.uint8))
    assert integer.matmul(xq, xs, zeros).tolist() == [[32 * 4 * 0.5 * (5 - 3)]]


def test_terms_by_hand():
    """32 activations of 2 and a row of 1 in plane 0, half of it in plane 1: 64 and 32, their scales 0.5 and 4."""
    codes = np.zeros((1, 2, 32), np.uint8)
    codes[0, 0], codes[0, 1, :16] = 1, 1
    w = QTensor.from_codes(
        catalog.planes(1, 32, terms=2, offset="mins"), codes, np.array([[0.5, 4]], np.float16),
        mins=np.array([[-1]], np.float16),
    )  # fmt: skip
    xq, xs = np.full((1, 32), 2, np.int8), np.array([[0.25]], np.float32)
    assert integer.group_dot(xq, w).tolist() == integer.group_dot_lut(xq, w).tolist() == [[[64, 32]]]
    assert integer.matmul(xq, xs, w).tolist() == [[0.25 * (64 * 0.5 + 32 * 4 - 64)]]


def test_table_by_hand():
    """IQ4_NL: codes 0 and 15 are -127 and 113; 16 of each."""
    codes = np.repeat(np.array([[0, 15]], np.uint8), 16, axis=1)
    w = QTensor.from_codes(catalog.table("iq4nl", 32), codes, np.array([[0.5]], np.float16))
    xq, xs = np.ones((1, 32), np.int8), np.ones((1, 1), np.float32)
    assert integer.group_dot(xq, w).tolist() == [[[16 * (113 - 127)]]]
    assert integer.matmul(xq, xs, w).tolist() == [[-112]]


def test_an_upper_scale_rounds_before_the_activations_scale():
    """7 * f32(0.1) rounds, and times f32(0.1) rounds again: not the same as 7 * (0.1 * 0.1)."""
    form = catalog.planes(4, 32, scale_dtype="u8", super_dtype="f32", super_group=0)
    codes, tenth = np.full((1, 32), 9, np.uint8), np.float32(0.1)
    w = QTensor.from_codes(form, codes, np.array([[7]], np.uint8), super_scales=np.array([[tenth]], np.float32))
    xq, xs = np.zeros((1, 32), np.int8), np.array([[tenth]], np.float32)
    xq[0, 0] = 1
    assert integer.matmul(xq, xs, w).item() == (np.float32(7) * tenth) * tenth != np.float32(7) * (tenth * tenth)


def test_a_product_and_its_sum_round_once():
    """3 * f32(1/3) is 1 + 2**-25, and f32 has no such number: rounded on its own, it would leave nothing beside -1."""
    third = np.float32(1 / 3)
    xq, xs = np.zeros((1, 32), np.int8), np.ones((1, 1), np.float32)
    xq[0, [0, 16, 17, 18]] = 1
    groups = QTensor.from_codes(catalog.planes(4, 16, scale_dtype="f32", zero=0), np.ones((1, 32), np.uint8),
                                np.array([[-1, third]], np.float32))  # fmt: skip
    assert integer.group_dot(xq, groups).tolist() == [[[1, 3]]]
    assert integer.matmul(xq, xs, groups).tolist() == [[2**-25]]
    xq = np.zeros((1, 32), np.int8)
    xq[0, :3] = 1
    mins = QTensor.from_codes(catalog.planes(4, 32, scale_dtype="f32", offset="mins"), np.eye(1, 32, dtype=np.uint8),
                              np.array([[-1]], np.float32), mins=np.array([[third]], np.float32))  # fmt: skip
    assert integer.matmul(xq, xs, mins).tolist() == [[2**-25]]


@pytest.mark.parametrize(
    "bits, group, offset, lower", [(4, 32, "mins", "u8"), (2, 16, "mins", "u8"), (6, 16, "none", "i8")]
)
def test_k_quants_are_the_same_with_their_scales_multiplied_out(bits, group, offset, lower, random_weight):
    """An f16 times a byte is exact in f32: 11 + 8 bits of 24."""
    two = random_weight(catalog.planes(bits, group, offset=offset, scale_dtype=lower, super_dtype="f16"), 5, 600)
    mins = None if two.mins is None else two.min_values()[:, : -(-600 // group)]
    one = QTensor.from_codes(catalog.planes(bits, group, offset=offset, scale_dtype="f32", zero=two.format.zero),
                             two.codes(), two.scale_values()[:, : -(-600 // group)], mins=mins)  # fmt: skip
    xq, xs = integer.quantize_activations(np.random.default_rng(1).standard_normal((3, 600)).astype(np.float32), group)
    assert integer.matmul(xq, xs, two).tobytes() == integer.matmul(xq, xs, one).tobytes()
    assert two.dequantize().tobytes() == one.dequantize().tobytes()


def test_quantize_activations_rounds_halves_to_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)              # scale 1
    values, scales = integer.quantize_activations(x, 0)
    assert values[0, :6].tolist() == [127, 0, 2, 2, 0, -2] and scales.tolist() == [[1]]
    assert values.shape == (1, 32) and not values[0, 6:].any()


def test_quantize_activations_per_group():
    x = np.concatenate([np.full((2, 32), 2), np.full((2, 8), -5)], axis=1).astype(np.float32)
    values, scales = integer.quantize_activations(x, 32)
    assert values.shape == (2, 64) and scales.shape == (2, 2)
    assert values[0, :40].tolist() == [127] * 32 + [-127] * 8 and not values[:, 40:].any()
    assert scales[0].tolist() == [np.float32(2) / np.float32(127), np.float32(5) / np.float32(127)]


def test_zeros_quantise_to_zero():
    values, scales = integer.quantize_activations(np.zeros((1, 32), np.float32), 0)
    assert not values.any() and scales[0, 0] == np.float32(1e-5) / np.float32(127)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-20, 30))
def test_quantised_activations_are_close_and_never_minus_128(seed, power):
    x = (np.random.default_rng(seed).standard_normal((2, 64)) * 2.0**power).astype(np.float32)
    values, scales = integer.quantize_activations(x, 32)
    assert values.min() >= -127
    assert (np.abs(values * np.repeat(scales, 32, axis=1) - x) <= np.repeat(scales, 32, axis=1) * 0.5001).all()


@pytest.mark.parametrize("name", catalog.FORMATS)
@pytest.mark.parametrize("n, k", [(1, 32), (5, 100), (3, 512)])
def test_group_dot_is_the_integer_sum(name, n, k, random_weight):
    w = random_weight(catalog.find(name), n, k)
    xq = activations(3, k)
    acc = integer.group_dot(xq, w)
    assert acc.dtype == np.int32 and acc.shape == (3, n, w.scales.shape[1])
    form, group = w.format, w.format.group_size or k
    levels = w.codes().reshape(n, form.terms, k).astype(np.int64) - form.zero
    if form.levels != "uniform":
        levels = np.array([TABLES[form.levels][code] for code in levels.ravel()], np.int64).reshape(levels.shape)
    if w.zeros is not None:
        levels -= np.repeat(w.zeros.astype(np.int64), form.group_size, axis=1)[:, None, :k]
    for g, term in np.ndindex(form.num_groups(k), form.terms):
        part = slice(g * group, (g + 1) * group)
        expected = xq[:, part].astype(np.int64) @ levels[:, term, part].T
        assert np.array_equal(acc[:, :, g * form.terms + term], expected)


@pytest.mark.parametrize("name", ["int8-row", "planes4-row", "planes7-row"])
def test_group_dot_at_its_bound(name):
    """The longest row, the largest values: past 2**24, where f32 would not be exact."""
    form, k = catalog.find(name), 65536
    w = QTensor.from_codes(form, np.zeros((1, k), np.uint8), np.ones((1, 1), np.float32))
    xq = np.full((1, k), -127, np.int8)
    xq[0, 0] = -126
    assert integer.group_dot(xq, w).item() == form.zero * (127 * k - 1)
    if form.storage == "planes":
        assert integer.group_dot_lut(xq, w).item() == form.zero * (127 * k - 1)


@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("n, k", [(1, 32), (5, 100), (7, 256)])
def test_lookup_equals_multiplication(name, n, k, random_weight):
    w = random_weight(catalog.find(name), n, k)
    for xq in (activations(3, k), np.full((1, k), 127, np.int8), np.full((1, k), -127, np.int8)):
        looked_up = integer.group_dot_lut(xq, w)
        assert looked_up.dtype == np.int32
        assert np.array_equal(looked_up, integer.group_dot(xq, w))


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(1, 7), n=st.integers(1, 4), k4=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_lut_dot_is_a_product_with_odd_levels(bits, n, k4, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (n, 4 * k4)).astype(np.uint8)
    x = rng.integers(-128, 128, (3, 4 * k4)).astype(np.int8)
    levels = 2 * codes.astype(np.int32) - (2**bits - 1)
    y = integer.lut_dot(integer.build_tables(x), integer.split_planes(codes, bits))
    assert np.array_equal(y, x.astype(np.int32) @ levels.T)


def test_half_a_table_says_everything():
    tables = integer.build_tables(np.full((1, 8), -128, np.int8))
    assert np.array_equal(tables[..., ::-1], -tables)
    assert np.abs(tables).max() == 512


def rounded_once(a, b, c):
    """f32(a * b + c): of the f32 near the exact value the nearest one, of two as near the one whose last bit is 0."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = np.float32(float(exact))
    some = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return min(some, key=lambda x: (abs(Fraction(float(x)) - exact), x.view(np.int32) & 1))


def scalar_matmul(xq, xs, w):
    """One output at a time, every operation an f32 scalar, in the order of the contract."""
    form = w.format
    codes = w.codes().reshape(w.shape[0], form.terms, w.shape[1])
    levels = range(256) if form.levels == "uniform" else TABLES[form.levels].tolist()
    group = form.group_size or w.padded_k
    y = np.zeros((len(xq), w.shape[0]), np.float32)
    for m, n in np.ndindex(y.shape):
        out = np.float32(0)
        for g in range(form.num_groups(w.shape[1])):
            columns = range(g * group, min((g + 1) * group, w.shape[1]))
            zero = form.zero + (0 if w.zeros is None else int(w.zeros[n, g]))
            x_scale = xs[m, min(g, xs.shape[1] - 1)]
            for term in range(form.terms):
                acc = sum((levels[codes[n, term, k]] - zero) * int(xq[m, k]) for k in columns)
                out = rounded_once(np.float32(acc), np.float32(scale_at(w, n, g, term) * x_scale), out)
            if w.mins is not None:
                xsum = sum(int(xq[m, k]) for k in columns)
                out = rounded_once(np.float32(xsum), np.float32(min_at(w, n, g) * x_scale), out)
        y[m, n] = out
    return y


@pytest.mark.parametrize("name", catalog.FORMATS)
def test_matmul_order(name, random_weight):
    w = random_weight(catalog.find(name), 2, 300)
    x = np.random.default_rng(3).standard_normal((2, 300)).astype(np.float32)
    for group in {0, w.format.group_size}:
        xq, xs = integer.quantize_activations(x, group)
        if xs.shape[1] in (1, w.format.num_groups(300)):
            assert integer.matmul(xq, xs, w).tobytes() == scalar_matmul(xq, xs, w).tobytes()


@pytest.mark.parametrize(
    "name", ["ternary", "planes4-g32", "planes4-g32-mins-f32", "planes3-g128-zeros", "planes6-g16-f32", "int8-g32",
             "planes1x3-g128-mins", "ternaryx2-g128", "nf4-g64", "e2m3-g32-e8m0", "planes4-g32-mins-u8xf16"]
)
def test_matmul_is_close_to_floats(name, random_weight):
    w = random_weight(catalog.find(name), 8, 256)
    x = np.random.default_rng(4).standard_normal((4, 256)).astype(np.float32)
    y = integer.matmul(*integer.quantize_activations(x, w.format.activation_group), w)
    exact = x @ w.dequantize().T
    assert np.abs(y - exact).max() < 0.02 * np.abs(exact).max()


def test_errors(random_weight):
    w = random_weight(catalog.planes(4, 64), 2, 100)
    with pytest.raises(FormatError, match=r"expected int8 \[M, 100\] or \[M, 128\], got int8 \[1, 96\]"):
        integer.group_dot(activations(1, 96), w)
    with pytest.raises(FormatError, match=r"scales: expected float32 \[1, 1\] or \[1, 2\], got float32 \[1, 4\]"):
        integer.matmul(activations(1, 100), np.ones((1, 4), np.float32), w)
    with pytest.raises(FormatError, match=r"activations: expected float32 \[M, K\], got float64 \[1, 8\]"):
        integer.quantize_activations(np.zeros((1, 8)), 0)
    with pytest.raises(FormatError, match="K must be a multiple of 4, got K=6"):
        integer.split_planes(np.zeros((1, 6), np.uint8), 2)
    with pytest.raises(FormatError, match="int8-g32: expected a format stored as planes, got bytes; use group_dot"):
        integer.group_dot_lut(activations(1, 64), random_weight(catalog.int8(32), 2, 64))
    with pytest.raises(FormatError, match="iq4nl-g32: expected a format stored as planes, got levels iq4nl"):
        integer.group_dot_lut(activations(1, 64), random_weight(catalog.table("iq4nl", 32), 2, 64))
