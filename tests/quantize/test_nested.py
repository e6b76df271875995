"""Children of a parent: high bits of its codes, levels in the middle, and a better fit on request."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import nested
from lutra.quantize.nested import child
from lutra.quantize.quality import sqnr_db
from lutra.quantize.rounding import round_to_nearest

PARENTS = ("planes7-g64-zeros", "planes6-g32", "planes4-g32-mins", "int8-row", "int8-g32")


def gauss() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(nested).failed == 0


@pytest.mark.parametrize("name", PARENTS)
@pytest.mark.parametrize("refit", [True, False])
def test_a_child_has_the_high_bits_of_its_parent(name, refit):
    parent = round_to_nearest(gauss(), catalog.find(name))
    values = parent.dequantize()
    for bits in range(1, min(parent.format.bits, 7) + 1):
        q = child(parent, bits, refit)
        assert np.array_equal(q.codes(), parent.codes() >> (parent.format.bits - bits))
        if bits == parent.format.bits:
            assert np.allclose(q.dequantize(), values, atol=0.01)


@pytest.mark.parametrize("name", PARENTS)
def test_levels_lie_in_the_middle_of_those_they_stand_for(name):
    parent = round_to_nearest(gauss(), catalog.find(name))
    step = np.abs(parent.scale_values()).max() * 2 ** (parent.format.bits - 2)
    assert np.abs(child(parent, 2, refit=False).dequantize() - parent.dequantize()).max() <= step / 2 * 1.01


def test_a_refit_is_nearer():
    parent = round_to_nearest(gauss(), catalog.find("planes7-g64-zeros"))
    for bits in (1, 2, 3):
        plain, refit = (sqnr_db(gauss(), child(parent, bits, how).dequantize()) for how in (False, True))
        assert refit > plain + 0.05


def test_errors():
    with pytest.raises(FormatError, match="with float scales, and 1 to 4 bits of them, got 5"):
        child(round_to_nearest(gauss(), catalog.planes(4, 32)), 5)
