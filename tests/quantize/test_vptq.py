"""Vectors: exact where there are few kinds, better than scalars at equal bits, and inputs heard."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.quantize import vptq as module
from lutra.quantize.quality import output_error, sqnr_db
from lutra.quantize.vptq import vptq


def weights(n: int = 96, k: int = 64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32)


def hessian(k: int = 64) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k))) * np.exp(rng.standard_normal(k))
    return x.T @ x / 400


def test_docstrings():
    assert doctest.testmod(module).failed == 0


def test_few_kinds_of_vectors_come_back():
    rng = np.random.default_rng(2)
    kinds = rng.integers(-8, 8, (16, 4)).astype(np.float32)
    w = kinds[rng.integers(0, 16, (24, 64))].swapaxes(1, 2).reshape(96, 64)
    assert np.array_equal(vptq(w, length=4, centroids=32).dequantize(), w)


def test_two_bits_beat_the_best_scalar_quantiser():
    """4 weights by 8 bits; Lloyd and Max's limit of 2 bits is 9.30 dB.  """
    found = vptq(weights(256, 256), length=4, centroids=256, rounds=20)
    assert sqnr_db(weights(256, 256), found.dequantize()) > 9.8
    assert found.bits_per_weight() == 2 + 256 * 4 * 16 / 256**2


def test_indices_are_the_nearest_without_a_hessian():
    w, found = weights(), vptq(weights(), length=8, centroids=64, rounds=5)
    (part,) = found.parts
    vectors = w.reshape(12, 8, 64).swapaxes(1, 2)
    distance = ((vectors[:, :, None] - part.codebooks[0].astype(np.float32)) ** 2).sum(-1)
    chosen = np.take_along_axis(distance, part.indices[0][..., None].astype(int), -1)[..., 0]
    assert np.allclose(distance.min(-1), chosen)


@pytest.mark.parametrize("extra", [{}, {"residual": 32}, {"outliers": 0.2}, {"residual": 32, "normalise": True}],
                         ids=lambda extra: "-".join(extra) or "plain")  # fmt: skip
def test_inputs_lower_the_error_of_outputs(extra):
    w, h = weights(), hessian()
    deaf, heard = (vptq(w, seen, length=4, centroids=64, rounds=10, **extra) for seen in (None, h))
    assert output_error(w, heard.dequantize(), h) < 0.8 * output_error(w, deaf.dequantize(), h)


def test_a_residual_codebook_helps():
    w = weights()
    one, two = (vptq(w, length=4, centroids=64, residual=residual, rounds=10) for residual in (0, 32))
    assert sqnr_db(w, two.dequantize()) > sqnr_db(w, one.dequantize()) + 1.5
    assert two.bits_per_weight() > one.bits_per_weight() + 1


def test_outliers_are_the_largest_inputs():
    found = vptq(weights(), hessian(), length=4, centroids=16, outliers=0.25, rounds=3)
    largest = np.sort(np.argsort(-np.diag(hessian()))[:16])
    assert np.array_equal(found.parts[0].columns, largest)
    assert np.array_equal(np.sort(np.concatenate([part.columns for part in found.parts])), np.arange(64))


def test_rows_that_are_no_whole_vectors():
    w = weights(30, 64)
    assert vptq(w, length=8, centroids=16, rounds=3).dequantize().shape == w.shape


def test_the_same_seed_gives_the_same_weight():
    a, b = (vptq(weights(), length=4, centroids=32, rounds=3).dequantize() for _ in range(2))
    assert np.array_equal(a, b)


def test_errors():
    with pytest.raises(FormatError, match="expected at least 2048 vectors for a codebook, got 1536; use"):
        vptq(weights(), length=4, centroids=2048)
    with pytest.raises(FormatError, match="expected vectors of 2 to 16 weights"):
        vptq(weights(), length=1)
    with pytest.raises(FormatError, match=r"expected a hessian \[64, 64\]"):
        vptq(weights(), np.eye(3), length=4, centroids=16)
