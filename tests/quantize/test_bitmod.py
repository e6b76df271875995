"""BitMoD: at least as good as e2m1, each group with one special level only."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import bitmod as module
from lutra.quantize.bitmod import SPECIALS, bitmod, bits_per_weight
from lutra.quantize.codec import quantize
from lutra.quantize.quality import sqnr_db


def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_t(5, (16, 256)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", SPECIALS)
def test_a_group_uses_one_special_level(name):
    form = catalog.table(name, 64)
    q = bitmod(weights(), form)
    used = form.level_values[q.codes()].reshape(16, 4, 64)
    counts = [np.isin(used, special).any(2) for special in SPECIALS[name]]
    assert np.sum(counts, 0).max() == 1 and np.sum(counts) > 0


@pytest.mark.parametrize("name", SPECIALS)
def test_values_stay(name):
    first = bitmod(weights(), catalog.table(name, 64)).dequantize()
    assert np.array_equal(bitmod(first, catalog.table(name, 64)).dequantize(), first)


def test_a_special_level_pays():
    w = weights()
    plain = sqnr_db(w, quantize(w, catalog.table("e2m1", 64)).dequantize())
    assert sqnr_db(w, bitmod(w, catalog.table("bitmod4", 64)).dequantize()) > plain + 0.5


def test_bits():
    assert bits_per_weight(catalog.table("bitmod4", 128), 1024) == 4 + 18 / 128
    assert not bitmod(np.zeros((1, 64), np.float32), catalog.table("bitmod3", 64)).dequantize().any()
    with pytest.raises(FormatError, match="e2m1-g64: expected levels of bitmod3, bitmod4"):
        bitmod(weights(), catalog.table("e2m1", 64))
