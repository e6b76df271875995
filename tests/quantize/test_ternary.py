"""absmean is BitNet's rule; find_ternary returns exactly what came, or nothing."""

import doctest

import ml_dtypes
import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.quantize import ternary
from lutra.quantize.ternary import absmean, find_ternary


def test_docstrings():
    assert doctest.testmod(ternary).failed == 0


def test_absmean_by_hand():
    w = np.array([[2, -2, 0.9, 1], [-1, 1.1, -0.9, 7.1]], np.float32)         # mean|w| = 2, halves round to 0
    q = absmean(w)
    assert q.format.name == "ternary" and q.scales.tolist() == [[2], [2]]
    assert q.codes().tolist() == [[2, 0, 1, 1], [1, 2, 1, 2]]


def test_absmean_of_zeros():
    q = absmean(np.zeros((3, 5), np.float32))
    assert not q.dequantize().any() and (q.scales == np.float32(1e-5)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_absmean_is_the_formula(dtype):
    w = (np.random.default_rng(0).standard_normal((33, 70)) * 0.02).astype(dtype)
    wide = w.astype(np.float32)
    scale = np.float32(np.abs(wide.astype(np.float64)).mean())
    assert np.array_equal(absmean(w).codes().astype(int) - 1, np.clip(np.round(wide / scale), -1, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("group_size", [0, 64, 128])
def test_ternary_matrices_are_found(dtype, group_size):
    rng = np.random.default_rng(1)
    scale = np.repeat(rng.uniform(0.1, 2, (9, 3)), 128, axis=1) if group_size else rng.uniform(0.1, 2, (9, 1))
    w = (rng.integers(-1, 2, (9, 384)) * scale.astype(dtype).astype(np.float32)).astype(dtype)
    q = find_ternary(w, group_size)
    assert q is not None and np.array_equal(q.dequantize(), w.astype(np.float32))
    assert q.format.group_size == group_size
    assert q.format.scale_dtype == ("f16" if group_size and dtype is not np.float32 else "f32")


def test_other_matrices_are_not_found():
    w = np.random.default_rng(2).integers(-1, 2, (40, 96)).astype(np.float32)
    assert find_ternary(w) is not None
    w[37, 5] = 0.5
    assert find_ternary(w) is None
    assert find_ternary(np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)) is None


def test_rows_of_zeros_and_single_values():
    assert find_ternary(np.zeros((2, 7), np.float32)).scales.tolist() == [[0], [0]]
    assert find_ternary(np.full((1, 1), -3, np.float32)).dequantize().tolist() == [[-3]]


def test_errors():
    with pytest.raises(FormatError, match="expected finite weights"):
        find_ternary(np.array([[np.inf]], np.float32))
    with pytest.raises(FormatError, match="expected a weight matrix"):
        absmean(np.zeros((0, 4), np.float32))
    with pytest.raises(FormatError, match="group_size: expected one of"):
        find_ternary(np.zeros((1, 4), np.float32), 48)
