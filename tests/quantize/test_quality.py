"""Measures of error, by hand."""

import doctest
import math

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.quantize import quality
from lutra.quantize.quality import output_error, relative_error, sqnr_db, worst_error


def test_docstrings():
    assert doctest.testmod(quality).failed == 0


def test_equal_matrices():
    w = np.ones((2, 3), np.float32)
    assert sqnr_db(w, w) == math.inf and relative_error(w * 0, w * 0) == 0 and worst_error(w, w) == 0


def test_output_error_is_that_of_outputs():
    rng = np.random.default_rng(0)
    w, other, x = rng.standard_normal((3, 8)), rng.standard_normal((3, 8)), rng.standard_normal((50, 8))
    mean = ((x @ w.T - x @ other.T) ** 2).sum() / len(x)
    assert math.isclose(output_error(w, other, x.T @ x / len(x)), mean)
    assert math.isclose(output_error(w, other, np.eye(8)), output_error(w, other, np.ones(8)))


def test_errors():
    with pytest.raises(FormatError, match="expected two matrices of one shape, got .* compare"):
        sqnr_db(np.zeros((1, 2)), np.zeros((2, 1)))
    with pytest.raises(FormatError, match="expected weights that are not all zero"):
        sqnr_db(np.zeros(2), np.ones(2))
