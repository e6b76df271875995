"""Blocks of two widths: the average that was asked for, important blocks first, all weights in their places."""

import doctest

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize import mixed
from lutra.quantize.mixed import plan, quantize, salience
from lutra.quantize.quality import output_error
from lutra.quantize.rounding import round_to_nearest


def form(bits: int):
    return catalog.planes(bits, 32, offset="mins")


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((100, 256)).astype(np.float32),
            "b": rng.standard_normal((64, 200)).astype(np.float32) * 3}  # fmt: skip


def importance(k: int) -> np.ndarray:
    return np.exp(2 * np.random.default_rng(1).standard_normal(k)).astype(np.float32)


def test_docstrings():
    assert doctest.testmod(mixed).failed == 0


@pytest.mark.parametrize("bits", [2, 2.3, 3.5, 3.99])
def test_the_average_is_kept_over_all_matrices(bits):
    plans = plan({name: salience(w) for name, w in weights().items()}, bits, (16, 32))
    sizes = {name: w.size for name, w in weights().items()}
    average = sum(plans[name].average() * size for name, size in sizes.items()) / sum(sizes.values())
    assert bits - 0.03 < average <= bits + 1e-6
    assert set(np.unique(np.concatenate([p.widths.ravel() for p in plans.values()]))) <= {int(bits), int(bits) + 1}


def test_blocks_that_matter_more_are_wider():
    w = weights()
    plans = plan({name: salience(value) for name, value in w.items()}, 2.4, (16, 32))
    assert plans["b"].average() > plans["a"].average()                         # b is three times larger
    sums = salience(w["b"]).sum(0)[plans["b"].columns]
    assert (np.diff(sums) <= 0).all() and (np.diff(plans["b"].widths.astype(int), axis=1) <= 0).mean() > 0.9


@pytest.mark.parametrize("bits", [3, 3.4])
def test_every_weight_is_in_its_place(bits):
    w = weights()["b"]
    planned = plan({"b": salience(w, importance(200))}, bits, (16, 32))["b"]
    found = quantize(w, planned, form, round_to_nearest)
    ordered = w[planned.rows][:, planned.columns]
    for piece in found.pieces:
        rows = slice(piece.first, piece.first + piece.weight.shape[0])
        expected = round_to_nearest(ordered[rows][:, piece.columns], piece.weight.format)
        assert np.array_equal(piece.weight.dequantize(), expected.dequantize())
    assert np.abs(found.dequantize() - w).max() < np.abs(w).max() / 3


def test_half_a_bit_more_helps_and_beats_bits_at_random():
    w, h = weights()["a"], importance(256)
    error = {bits: output_error(w, quantize(w, plan({"a": salience(w, h)}, bits, (16, 32))["a"], form,
                                            round_to_nearest).dequantize(), h) for bits in (2, 2.5, 3)}  # fmt: skip
    assert error[3] < error[2.5] < error[2]
    assert error[2.5] < (error[2] + error[3]) / 2


def test_errors():
    with pytest.raises(FormatError, match="expected some matrices and 1 to 7 bits, got 0 and 2"):
        plan({}, 2)
    planned = plan({"a": salience(weights()["a"])}, 2.5, (16, 32))["a"]
    with pytest.raises(FormatError, match=r"expected a weight \[100, 256\], got \[64, 200\]; plan it anew"):
        quantize(weights()["b"], planned, form, round_to_nearest)
    with pytest.raises(FormatError, match="planes2-g64: expected groups that divide blocks of 32 columns"):
        quantize(weights()["a"], planned, lambda bits: catalog.planes(bits, 64), round_to_nearest)
