"""Scales of every kind come back as what was fitted, as near as their types allow."""

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize.groups import Fitted
from lutra.quantize.store import store, two_level


def test_two_levels_by_hand():
    form = catalog.planes(4, 32, scale_dtype="u8", super_dtype="f32")
    small, upper = two_level(np.array([[2.55, 1.0, 0.004]], np.float32), form, 96)
    assert small.tolist() == [[255, 100, 0]] and upper.round(6).tolist() == [[np.float32(0.01)]]


def test_minima_of_one_sign_are_stored_by_a_negative_float():
    form = catalog.find("planes4-g32-mins-u8xf16")
    w = np.linspace(-1, 2, 64, dtype=np.float32)[None]
    codes = np.zeros((1, 1, 64), np.uint8)
    q = store(Fitted(codes, np.full((1, 2), 0.1, np.float32), np.array([[-1.0, 0.0]], np.float32)), form, w)
    assert q.super_mins[0, 0] < 0 and np.abs(q.dequantize() - w)[0, :20].max() < 0.06
    with pytest.raises(FormatError, match="expected values of one sign for u8, got both; use i8 or e4m3"):
        store(Fitted(codes, np.full((1, 2), 0.1, np.float32), np.array([[-1.0, 1.0]], np.float32)), form, w)


@pytest.mark.parametrize("name", ["planes1x3-g64-mins-i8xf16", "planes1x3-g64-mins", "planes1x2-g128-mins-f32"])
def test_scales_of_terms_lie_group_by_group(name):
    form = catalog.find(name)
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 1, (2, 512 // form.group_size * form.terms)).astype(np.float32)
    mins = rng.uniform(-1, -0.5, (2, 512 // form.group_size)).astype(np.float32)
    q = store(Fitted(np.zeros((2, form.terms, 512), np.uint8), scales, mins), form, np.zeros((2, 512), np.float32))
    assert np.allclose(q.scale_values(), scales, atol=0.005) and np.allclose(q.min_values(), mins, atol=0.005)


def test_too_large():
    with pytest.raises(FormatError, match="expected weights in reach of f16 scales"):
        fitted = Fitted(np.zeros((1, 1, 32), np.uint8), np.array([[1e9]], np.float32))
        store(fitted, catalog.planes(4, 32), np.zeros((1, 32), np.float32))
