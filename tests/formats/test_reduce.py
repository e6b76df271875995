"""tree_sum adds in one order only."""

import doctest

import numpy as np
import pytest

from lutra.formats import reduce


def test_docstrings():
    assert doctest.testmod(reduce).failed == 0


def test_order_by_hand():
    """1 is lost beside 2**24 in f32, so the result tells who was added to whom."""
    big = np.float32(2**24)
    x = np.zeros(32, np.float32)
    x[0], x[16], x[1] = big, 1, 1                            # lane 0: big + 1 = big; then + lane 1 = big
    assert reduce.tree_sum(x) == big
    x[:] = 0
    x[0], x[1], x[17] = big, 1, 1                            # lane 1: 1 + 1 = 2; then big + 2
    assert reduce.tree_sum(x) == big + 2
    x[:] = 0
    x[0], x[1], x[9] = big, 1, 1                             # lanes 1 and 9 meet before lane 0 sees them
    assert reduce.tree_sum(x) == big + 2


@pytest.mark.parametrize("k", [1, 15, 16, 17, 64, 101])
def test_against_scalars(k):
    x = np.random.default_rng(k).standard_normal((3, k)).astype(np.float32)
    for row, total in zip(x, reduce.tree_sum(x), strict=True):
        lanes = [np.float32(0)] * 16
        for i, value in enumerate(row):
            lanes[i % 16] = np.float32(lanes[i % 16] + value)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [np.float32(a + b) for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        assert lanes[0] == total


def test_nothing_sums_to_plus_zero():
    assert not np.signbit(reduce.tree_sum(np.full(5, -0.0, np.float32)))
