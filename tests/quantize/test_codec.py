"""One codec against ml_dtypes' casts, the MX and NV rules by hand, and levels that stay where they are."""

import doctest

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import codec
from lutra.quantize.codec import ELEMENTS, encode, quantize

NAMES = ("int8-g32-e8m0", "planes4-g32-e8m0", "planes4-g16-e4m3xf32-row", "e2m1-g32-e8m0", "e2m1-g16-e4m3xf32-row",
         "e2m1-g64", "e2m3-g32-e8m0", "nf4-g64", "iq4nl-g32", "iq4nl-g32-i8xf16", "planes4-g32", "int8-row",
         "planes4-g128-bf16", "ternary-g64")  # fmt: skip
CASTS = {"e2m1": ml_dtypes.float4_e2m1fn, "e2m3": ml_dtypes.float6_e2m3fn, "e3m2": ml_dtypes.float6_e3m2fn,
         "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}  # fmt: skip


def gauss(n: int = 8, k: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(codec).failed == 0


@pytest.mark.parametrize("name", CASTS)
def test_elements_are_the_floats_of_ml_dtypes(name):
    """All codes mean the same, and values within reach round as the cast rounds them, ties to even included."""
    element, dtype = ELEMENTS[name], CASTS[name]
    codes = np.arange(len(element.levels), dtype=np.uint8)
    meant = codes.view(dtype).astype(np.float64)
    finite = np.isfinite(meant)
    assert np.array_equal(element.levels[finite], meant[finite]) and np.isnan(element.levels[~finite]).all()
    rising = np.unique(element.levels[finite])
    ties = ((rising[1:] + rising[:-1]) / 2).astype(np.float32)
    above, below = (np.nextafter(ties, np.float32(end)) for end in (np.inf, -np.inf))
    values = np.concatenate([rising.astype(np.float32), ties, above, below])
    assert np.array_equal(element.levels[element.nearest(values)], values.astype(dtype).astype(float))


def test_floor_and_ceil_by_hand():
    w = np.array([[7, -0.9, 0.3, 2.4]], np.float32)
    floor, ceil = (quantize(w, catalog.find("e2m1-g32-e8m0"), rule) for rule in ("floor", "ceil"))
    assert floor.dequantize().tolist() == [[6, -1, 0.5, 2]] and ceil.dequantize().tolist() == [[8, -1, 0, 2]]
    assert floor.scales[0, 0] == 126 and ceil.scales[0, 0] == 127              # levels are doubled: 1/2 and 1
    int4 = quantize(np.array([[14, 3, -13.2]], np.float32), catalog.find("planes4-g32-e8m0"))
    assert int4.scales[0, 0] == 128 and int4.codes().tolist() == [[15, 10, 1]]  # 3 / 2 is a tie, to the even code


def test_nvfp4_by_hand():
    w = np.zeros((1, 32), np.float32)
    w[0, :3], w[0, 16:18] = [6 * 448, 1200, -100], [12, 5]
    q = quantize(w, catalog.find("e2m1-g16-e4m3xf32-row"))
    assert q.super_scales.tolist() == [[0.5]]                                  # 6 * 448 / (12 * 448)
    assert q.scales.view(ml_dtypes.float8_e4m3fn).tolist() == [[448, 2]]
    assert q.dequantize()[0, [0, 1, 2, 16, 17]].tolist() == [2688, 1344, 0, 12, 4]


@pytest.mark.parametrize("name", [name for name in NAMES if "iq4nl" not in name])     # its ends differ
def test_quantising_values_again_changes_nothing(name):
    first = quantize(gauss(), catalog.find(name)).dequantize()
    assert np.array_equal(quantize(first, catalog.find(name)).dequantize(), first)


@pytest.mark.parametrize("name", NAMES)
def test_no_code_is_nearer(name):
    form, w = catalog.find(name), gauss(4)
    q = quantize(w, form)
    error = np.abs(q.dequantize() - w)
    usable = np.flatnonzero(~np.isnan(codec.element_of(form).levels))
    for code in usable:
        other = type(q).from_codes(form, np.full(w.shape, code, np.uint8), q.scales, super_scales=q.super_scales)
        assert (error <= np.abs(other.dequantize() - w) * (1 + 1e-6) + 1e-12).all()


@given(st.integers(-100, 110), st.sampled_from(["floor", "ceil"]), st.sampled_from(sorted(CASTS)))
def test_powers_of_two_move_with_the_weights(power, rule, name):
    w = gauss(2, 64)
    moved = encode(np.ldexp(w, power), name, 32, rule)
    assert np.array_equal(moved.codes, encode(w, name, 32, rule).codes)


@pytest.mark.parametrize("rule", ["floor", "ceil", "absmax"])
def test_zeros_stay_zeros(rule):
    assert not encode(np.zeros((2, 40), np.float32), "e4m3", 32, rule).dequantize().any()
    assert not quantize(np.zeros((2, 40), np.float32), catalog.find("e2m1-g16-e4m3xf32-row")).dequantize().any()


def test_ceil_never_cuts_and_floor_may():
    w = np.full((1, 32), 7.9, np.float32)
    assert encode(w, "e2m1", 32, "floor").dequantize()[0, 0] == 6
    assert encode(w, "e2m1", 32, "ceil").dequantize()[0, 0] == 8


def test_errors():
    w = np.ones((1, 32), np.float32)
    with pytest.raises(FormatError, match="expected an element of e2m1, .* got e9m9 and floor; choose"):
        encode(w, "e9m9", 32, "floor")
    with pytest.raises(FormatError, match="planes4-g32-mins: expected a format of one term without offset"):
        quantize(w, catalog.planes(4, 32, offset="mins"))
    with pytest.raises(FormatError, match="expected weights in reach of f16 scales"):
        quantize(w * 1e30, catalog.planes(4, 32))
    with pytest.raises(FormatError, match="expected finite weights"):
        quantize(w * np.inf, catalog.planes(4, 32))
