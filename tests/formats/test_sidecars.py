"""Side-cars: what a permutation, a scale of the inputs and a low-rank term make of a weight."""

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted, matmul


def weight(values):
    """A ternary weight of these values and scale 1."""
    codes = (np.array(values) + 1).astype(np.uint8)
    return QTensor.from_codes(catalog.ternary(), codes, np.ones((len(codes), 1), np.float32))


def test_all_by_hand():
    """Inputs (1, 10, 100) scaled by (2, 1, 1), taken in the order 2, 0, 1, are (100, 2, 10); +1 0 -1 of them is 90."""
    adapted = Adapted(weight([[1, 0, -1]]), np.array([2, 0, 1], np.int32), np.array([2, 1, 1], np.float32),
                      (np.array([[3]], np.float32), np.array([[1, 0, 0]], np.float32)))  # fmt: skip
    x = np.array([[1, 10, 100]], np.float32)
    assert adapted.inputs(x).tolist() == [[100, 2, 10]]
    assert adapted.dequantize().tolist() == [[3, -1, 1]]  # column 0: 0 * 2 + 3; columns 1, 2: -1 and +1
    assert (x @ adapted.dequantize().T).tolist() == [[100 - 10 + 3]]


def test_multiplication_by_hand():
    """Inputs (127, 2, 1) scaled by (1, 2, 3), taken in the order 0, 2, 1: (127, 3, 4), their own int8 codes."""
    w, x = weight([[1, -1, 1]]), np.array([[127, 2, 1]], np.float32)
    plain = Adapted(w, np.array([0, 2, 1], np.int32), np.array([1, 2, 3], np.float32))
    assert matmul(x, plain).tolist() == [[127 - 3 + 4]]
    both = Adapted(w, plain.perm, plain.input_scale, (np.array([[10]], np.float32), np.array([[0, 1, 2]], np.float32)))
    assert matmul(x, both).tolist() == [[128 + 10 * (2 + 2 * 1)]]  # V @ x is 4


def test_without_sidecars_it_is_the_weight():
    w = weight([[1, 0, -1], [0, 1, 1]])
    assert np.array_equal(Adapted(w).dequantize(), w.dequantize())


@pytest.mark.parametrize("sidecar", [
    {"perm": np.array([0, 0, 1], np.int32)}, {"perm": np.array([0, 1, 3], np.int32)}, {"perm": np.arange(3)},
    {"perm": np.arange(2, dtype=np.int32)}, {"input_scale": np.ones(2, np.float32)},
    {"input_scale": np.array([1, np.inf, 1], np.float32)}, {"input_scale": np.ones(3)},
    {"low_rank": (np.ones((2, 1), np.float32), np.ones((1, 3), np.float32))},
    {"low_rank": (np.ones((1, 2), np.float32), np.ones((1, 3), np.float32))},
])  # fmt: skip
def test_what_does_not_fit_is_refused(sidecar):
    with pytest.raises(FormatError, match=r"expected .* got .*; "):
        Adapted(weight([[1, 0, -1]]), **sidecar)
