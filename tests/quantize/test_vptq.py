"""Vectors: exact where there are few kinds, better than scalars at equal bits, and inputs heard."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats.vectors import VectorFormat
from lutra.quantize import vptq as module
from lutra.quantize.gptq import Factor
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


@pytest.mark.parametrize("length", [2, 4, 8])
def test_few_kinds_of_vectors_come_back(length):
    """Signs in any pattern; whole rows times a number, too."""
    signs = np.random.default_rng(2).choice(np.array([-1, 1], np.float32), (40, 64))
    w = signs * np.arange(1, 41, dtype=np.float32)[:, None]
    assert np.allclose(vptq(w, VectorFormat(length)).dequantize(), w, rtol=0.02)


def test_two_bits_beat_the_best_scalar_quantiser():
    """4 weights by 8 bits; Lloyd and Max's limit of 2 bits is 9.30 dB."""
    found = vptq(weights(256, 256), VectorFormat(4), rounds=20)
    assert sqnr_db(weights(256, 256), found.dequantize()) > 9.8
    assert 8 * found.nbytes / 256**2 == 2 + 8 * (256 * 4 + 256 * 4) / 256**2


def test_indices_are_the_nearest_without_a_hessian():
    w, found = weights(), vptq(weights(), VectorFormat(8), rounds=5)
    vectors = (w / found.scales).reshape(96, 8, 8)
    distance = ((vectors[:, :, None] - found.books[0].astype(np.float32)) ** 2).sum(-1)
    chosen = np.take_along_axis(distance, found.indices[:, 0][..., None].astype(int), -1)[..., 0]
    assert np.allclose(distance.min(-1), chosen, rtol=1e-4)


@pytest.mark.parametrize("format", [VectorFormat(4), VectorFormat(8), VectorFormat(8, 2)], ids=lambda f: f.name)
def test_inputs_lower_the_error_of_outputs(format):
    w, h = weights(400), hessian()
    deaf, heard = (vptq(w, format, seen, rounds=10) for seen in (None, h))
    assert output_error(w, heard.dequantize(), h) < 0.75 * output_error(w, deaf.dequantize(), h)


def test_errors_move_as_in_gptq():
    """One column at a time: with books of single weights the same values as the definition of error feedback."""
    w, h = weights(5, 8), hessian(8)
    upper = Factor.of(h).upper
    book = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    indices, _ = module._choose(w, [book], upper)
    moved, want = w.astype(np.float64), np.zeros_like(w)
    for j in range(0, 8, 2):
        roots = 1 / np.diagonal(upper)[j : j + 2]
        distance = (((moved[:, None, j : j + 2] - book) * roots) ** 2).sum(-1)
        want[:, j : j + 2] = book[distance.argmin(1)]
        for column in (j, j + 1):  # then the definition, one after the other
            error = (moved[:, column] - want[:, column]) / upper[column, column]
            moved[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    assert np.array_equal(book[indices[:, 0]].reshape(5, 8), want)


def test_panels_do_not_matter(monkeypatch):
    w, h = weights(20), hessian()
    whole = vptq(w, VectorFormat(4), h, rounds=3).dequantize()
    monkeypatch.setattr(module, "PANEL", 16)
    assert np.mean(vptq(w, VectorFormat(4), h, rounds=3).dequantize() == whole) > 0.99


def test_a_residual_codebook_helps():
    w = weights(400)
    one, two = (vptq(w, VectorFormat(8, terms), rounds=10) for terms in (1, 2))
    assert sqnr_db(w, two.dequantize()) > sqnr_db(w, one.dequantize()) + 3


def test_columns_that_are_no_whole_vectors():
    w, h = weights(300, 61), hessian(61)
    for seen, least in ((None, 4), (h, 2)):
        found = vptq(w, VectorFormat(8), seen, rounds=5)
        assert found.shape == w.shape and sqnr_db(w, found.dequantize()) > least


def test_rows_of_zeros_and_tiny_matrices():
    w = weights(3, 8)
    w[1] = 0
    found = vptq(w, VectorFormat(4)).dequantize()
    assert not found[1].any() and np.allclose(found, w, atol=0.03)
    assert not vptq(np.zeros((2, 8), np.float32), VectorFormat(8, 2)).dequantize().any()


def test_the_same_seed_gives_the_same_weight():
    a, b = (vptq(weights(), VectorFormat(4), rounds=3).dequantize() for _ in range(2))
    assert np.array_equal(a, b)


def test_errors():
    with pytest.raises(FormatError, match=r"expected a hessian \[64, 64\], got one of 3"):
        vptq(weights(), VectorFormat(4), np.eye(3))
    with pytest.raises(FormatError, match="finite"):
        vptq(np.full((2, 8), np.nan, np.float32), VectorFormat(4))
    with pytest.raises(FormatError, match="without act-order"):
        vptq(weights(), VectorFormat(4), Factor.of(hessian(), act_order=True))
