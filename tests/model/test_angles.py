"""cos_sin against the standard library, over every quadrant and far out."""

import math

import numpy as np
import pytest

from lutra.model.angles import cos_sin


def test_by_hand():
    cos, sin = cos_sin(np.array([0.0, math.pi / 2, math.pi, 3 * math.pi / 2, math.pi / 6]))
    assert np.round(cos, 15).tolist() == [1, 0, -1, 0, 0.866025403784439]
    assert np.round(sin, 15).tolist() == [0, 1, 0, -1, 0.5]


@pytest.mark.parametrize("largest", [1.0, 100.0, 4096.0, 1.5e6])
def test_close_to_the_standard_library(largest):
    angles = np.random.default_rng(0).uniform(0, largest, 4000)
    cos, sin = cos_sin(angles)
    np.testing.assert_allclose(cos, [math.cos(a) for a in angles], rtol=0, atol=3e-16)
    np.testing.assert_allclose(sin, [math.sin(a) for a in angles], rtol=0, atol=3e-16)
