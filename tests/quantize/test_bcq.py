"""Binary codes: never worse than greedy, on levels they found, and powers of two where asked for."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import bcq as module
from lutra.quantize.bcq import bcq, sum_of_powers
from lutra.quantize.quality import output_error, sqnr_db


def gauss(n: int = 16, k: int = 256) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


def signs(terms: int, group: int = 128):
    return catalog.table("sign", group, terms=terms)


def test_docstrings():
    assert doctest.testmod(module).failed == 0


def test_one_plane_is_the_mean_size():
    w = gauss()
    q = bcq(w, signs(1))
    assert np.allclose(q.scales, np.abs(w).reshape(16, 2, 128).mean(2), rtol=1e-3)
    assert np.array_equal(q.codes(), (w > 0).astype(np.uint8))


@pytest.mark.parametrize("terms, limit_db", [(1, 4.40), (2, 9.30), (3, 14.62)])
def test_normal_weights_come_near_the_best_scalar_quantiser(terms, limit_db):
    """Lloyd and Max's limits; groups of 128 may lie a little above, as they know their own spread."""
    w = np.random.default_rng(1).standard_normal((64, 512)).astype(np.float32)
    assert abs(sqnr_db(w, bcq(w, signs(terms)).dequantize()) - limit_db) < 0.3


@pytest.mark.parametrize("terms", [2, 3, 4])
def test_rounds_never_raise_the_error(terms):
    w = gauss()
    found = [sqnr_db(w, bcq(w, signs(terms), rounds=rounds).dequantize()) for rounds in (0, 1, 5, 15)]
    assert found == sorted(found) and found[-1] > found[0]


def test_values_stay():
    first = bcq(gauss(), signs(2)).dequantize()
    assert np.allclose(bcq(first, signs(2)).dequantize(), first, atol=2e-3)


@pytest.mark.parametrize("powers", [1, 2, 3])
def test_scales_are_sums_of_powers(powers):
    q = bcq(gauss(), signs(3), powers=powers)
    assert np.array_equal(q.scales, sum_of_powers(q.scales.astype(np.float32), powers).astype(np.float16))
    if powers == 1:
        assert (np.frexp(q.scales.astype(np.float32))[0] == 0.5).all()


def test_more_powers_less_error():
    w = gauss()
    found = [sqnr_db(w, bcq(w, signs(3), powers=powers).dequantize()) for powers in (1, 2, 3)]
    assert found[0] < found[1] < found[2] + 0.05


def test_importance_lowers_the_error_of_outputs():
    w, h = gauss(), np.exp(2 * np.random.default_rng(2).standard_normal(256)).astype(np.float32)
    plain, weighted = (bcq(w, signs(2), importance=i).dequantize() for i in (None, h))
    assert output_error(w, weighted, h) < output_error(w, plain, h)
    assert sqnr_db(w, weighted) < sqnr_db(w, plain)


def test_short_groups_and_zeros():
    assert bcq(gauss(3, 100), signs(2, 64)).shape == (3, 100)
    assert not bcq(np.zeros((2, 64), np.float32), signs(2, 64)).dequantize().any()


def test_errors():
    with pytest.raises(FormatError, match="planes4-g32: expected signs without offset"):
        bcq(gauss(), catalog.planes(4, 32))
    with pytest.raises(FormatError, match="expected an importance above 0 for each of 256 columns"):
        bcq(gauss(), signs(2), importance=np.zeros(256))
