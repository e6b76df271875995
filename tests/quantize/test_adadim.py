"""AdaDim takes the direction that harms outputs less; its row blocks are the same weight."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import adadim as module
from lutra.quantize.adadim import adadim
from lutra.quantize.quality import output_error
from lutra.quantize.rounding import round_to_nearest


def weights(n: int = 96, k: int = 64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("outlier_inputs", [True, False])
def test_the_direction_of_outliers_decides(outlier_inputs):
    w = weights()
    w[:, 5] *= 6 if outlier_inputs else 1
    w[5] *= 1 if outlier_inputs else 6
    form, hessian = catalog.planes(3, 32, offset="zeros"), np.ones(64)
    found = adadim(w, form, round_to_nearest, hessian)
    assert found.per_input == outlier_inputs
    usual = round_to_nearest(w, form).dequantize()
    assert output_error(w, found.dequantize(), hessian) <= output_error(w, usual, hessian)


@pytest.mark.parametrize("name", ["planes4-g32", "int8-g32", "planes3-g64"])
def test_row_blocks_are_the_same_weight(name):
    w = weights()
    w[:, 5] *= 6
    found = adadim(w, catalog.find(name), round_to_nearest, np.ones(64))
    assert found.per_input
    stacked = np.concatenate([block.dequantize() for block in found.row_blocks()])
    assert np.array_equal(stacked, found.dequantize())


def test_errors():
    found = adadim(weights(), catalog.planes(3, 32, offset="zeros"), round_to_nearest, np.ones(64))
    with pytest.raises(FormatError, match="planes3-g32-zeros: expected groups along outputs, evenly spaced"):
        found.row_blocks()
