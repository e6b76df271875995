"""A rotation keeps products and lengths, undoes itself, and flattens outliers."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import hadamard
from lutra.quantize.codec import quantize
from lutra.quantize.hadamard import random_signs, rotate, unrotate
from lutra.quantize.quality import sqnr_db


def test_docstrings():
    assert doctest.testmod(hadamard).failed == 0


def test_four_by_hand():
    assert (2 * rotate(np.eye(4))).tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]


@pytest.mark.parametrize("k, block", [(64, None), (172, None), (96, 8), (7, None)])
def test_products_stay(k, block):
    rng, signs = np.random.default_rng(0), random_signs(k, 3)
    w, x = rng.standard_normal((5, k)).astype(np.float32), rng.standard_normal((3, k)).astype(np.float32)
    turned = rotate(x, signs, block) @ rotate(w, signs, block).T
    assert np.allclose(turned, x @ w.T, atol=1e-4)
    assert np.allclose(unrotate(rotate(w, signs, block), signs, block), w, atol=1e-5)


def test_outliers_are_spread_and_integers_gain():
    w = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    w[:, 3] *= 30
    signs, form = random_signs(256), catalog.find("planes4-g16-e4m3xf32-row")
    plain = sqnr_db(w, quantize(w, form).dequantize())
    turned = unrotate(quantize(rotate(w, signs), form).dequantize(), signs)
    assert np.abs(rotate(w, signs)).max() < np.abs(w).max() / 4
    assert plain != sqnr_db(w, turned) and sqnr_db(w, turned) > 20


def test_signs_are_the_same_everywhere():
    assert random_signs(8, 0).tolist() == [1, 1, 1, -1, -1, -1, -1, -1]


def test_errors():
    with pytest.raises(FormatError, match="expected a block that is a power of two and divides K=12, got 8; use 4"):
        rotate(np.ones(12), block=8)
    with pytest.raises(FormatError, match="expected 12 signs"):
        rotate(np.ones(12), np.ones(3))
