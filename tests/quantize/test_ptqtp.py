"""Trit planes: exact where weights are trits, the best scale of one plane, and never worse for more rounds."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import ptqtp
from lutra.quantize.ptqtp import best_scale, trit_planes
from lutra.quantize.quality import sqnr_db


def gauss(n: int = 16, k: int = 256) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(ptqtp).failed == 0


@pytest.mark.parametrize("terms, offset", [(1, "none"), (1, "mins"), (2, "none")])
def test_trits_come_back_exactly(terms, offset):
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (8, terms, 128)).astype(np.float32)
    w = (trits * np.array([0.75, 0.25])[:terms, None]).sum(1).astype(np.float32) + (0.5 if offset == "mins" else 0)
    assert np.array_equal(trit_planes(w, catalog.ternary(128, terms=terms, offset=offset)).dequantize(), w)


def test_no_other_scale_of_one_plane_is_better():
    rows = gauss(4, 64)
    scales = best_scale(rows)
    error = ((rows - scales[:, None] * np.rint(rows / scales[:, None]).clip(-1, 1)) ** 2).sum(1)
    for share in np.linspace(0.3, 3, 200):
        other = (share * scales)[:, None]
        assert (error <= ((rows - other * np.rint(rows / other).clip(-1, 1)) ** 2).sum(1) + 1e-4).all()


@pytest.mark.parametrize("tied", [False, True])
def test_rounds_never_raise_the_error(tied):
    w = gauss()
    form = catalog.ternary(128, terms=2)
    found = [sqnr_db(w, trit_planes(w, form, tied=tied, rounds=rounds).dequantize()) for rounds in (0, 2, 50)]
    assert found[0] <= found[1] <= found[2]
    assert found[2] > 15.0


def test_two_planes_beat_one_and_an_offset_helps():
    w = gauss() + np.float32(0.3)
    one, offset, two = (sqnr_db(w, trit_planes(w, catalog.ternary(128, **axes)).dequantize())
                        for axes in ({}, {"offset": "mins"}, {"terms": 2}))  # fmt: skip
    assert one < offset < two


def test_tied_scales_are_three_to_one():
    scales = trit_planes(gauss(), catalog.ternary(128, terms=2), tied=True).scales.astype(np.float32)
    assert np.allclose(scales[:, ::2], 3 * scales[:, 1::2], rtol=2e-3)


def test_equal_and_zero_weights():
    for value in (0, 2.5):
        w = np.full((2, 128), value, np.float32)
        assert np.array_equal(trit_planes(w, catalog.ternary(128, terms=2)).dequantize(), w)


def test_errors():
    with pytest.raises(FormatError, match="expected trits of 1 term, or 2 that may be tied"):
        trit_planes(gauss(), catalog.planes(2, 64))
    with pytest.raises(FormatError, match="expected trits of 1 term, or 2 that may be tied"):
        trit_planes(gauss(), catalog.ternary(128), tied=True)
