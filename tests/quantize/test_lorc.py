"""A low-rank correction is the best of its rank, for weights or for outputs."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import lorc
from lutra.quantize.lorc import factors, low_rank
from lutra.quantize.quality import output_error, sqnr_db
from lutra.quantize.rounding import round_to_nearest


def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(lorc).failed == 0


def test_more_rank_less_error_and_none_left_at_full_rank():
    w = weights()
    q = round_to_nearest(w, catalog.planes(2, 32, offset="mins"))
    found = [sqnr_db(w, low_rank(w, q, rank).dequantize()) for rank in (1, 4, 16, 24)]
    assert sqnr_db(w, q.dequantize()) < found[0] < found[1] < found[2] and found[3] > 100


def test_a_product_of_that_rank_comes_back():
    rng = np.random.default_rng(1)
    error = (rng.standard_normal((10, 3)) @ rng.standard_normal((3, 20))).astype(np.float32)
    u, v = factors(error, 3)
    assert u.shape == (10, 3) and v.shape == (3, 20) and np.allclose(u @ v, error, atol=1e-4)


def test_weights_of_inputs_lower_the_error_of_outputs():
    w, h = weights(), np.exp(2 * np.random.default_rng(2).standard_normal(64))
    q = round_to_nearest(w, catalog.planes(2, 32, offset="mins"))
    plain, weighted = (low_rank(w, q, 4, m).dequantize() for m in (None, h))
    assert output_error(w, weighted, h) < output_error(w, plain, h)
    assert sqnr_db(w, weighted) < sqnr_db(w, plain)


def test_inputs_that_were_never_seen():
    w = weights()
    q = round_to_nearest(w, catalog.planes(2, 32, offset="mins"))
    assert np.isfinite(low_rank(w, q, 2, np.zeros(64)).dequantize()).all()


def test_errors():
    q = round_to_nearest(weights(), catalog.planes(2, 32, offset="mins"))
    with pytest.raises(FormatError, match="and a rank of 1 to 24, got .* and 25; choose a smaller rank"):
        low_rank(weights(), q, 25)
    with pytest.raises(FormatError, match="expected a mean square >= 0 for each of 64 inputs"):
        low_rank(weights(), q, 2, -np.ones(64))
