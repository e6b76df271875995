"""Groups come back in the order of the weights, whatever their size divides."""

import doctest

import numpy as np
import pytest

from lutra.quantize import groups
from lutra.quantize.groups import Fitted, by_groups, nearest_level, spread


def test_docstrings():
    assert doctest.testmod(groups).failed == 0


@pytest.mark.parametrize("k, group", [(64, 32), (100, 32), (20, 32), (100, 0), (96, 96)])
def test_every_weight_finds_its_group(k, group):
    """A `fit` that stores each weight in its code and each group's first weight as scale."""
    w = np.arange(2 * k, dtype=np.float32).reshape(2, k)

    def fit(rows: np.ndarray, twice: np.ndarray) -> Fitted:
        assert np.array_equal(twice, 2 * rows)
        codes = np.stack([rows, rows + 1], 1) % 256
        return Fitted(codes.astype(np.uint8), rows[:, :2], rows[:, 0])

    found = by_groups(w, group, fit, 2 * w)
    assert np.array_equal(found.codes[:, 0], w % 256) and np.array_equal(found.codes[:, 1], (w + 1) % 256)
    firsts = w[:, :: group or k]
    assert np.array_equal(found.mins, firsts)
    assert np.array_equal(found.scales, np.stack([firsts, firsts + 1], 2).reshape(2, -1))
    assert np.array_equal(spread(found.mins, k, group), w - np.arange(k) % (group or k))


def test_nearest_level_is_the_nearest():
    rng = np.random.default_rng(0)
    rows, levels = rng.standard_normal((5, 40)), rng.standard_normal((5, 7))
    found = np.take_along_axis(levels, nearest_level(rows, levels).astype(int), 1)
    assert np.allclose(np.abs(found - rows), np.abs(rows[:, :, None] - levels[:, None]).min(2))
