"""Error feedback: as column by column in float64, better for the outputs than rounding, and sound at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.quantize.clip import clip
from lutra.quantize.gptq import Factor, gptq, inverse_factor, invert_root, run_width
from lutra.quantize.hlq import hlq
from lutra.quantize.levels import levels_of
from lutra.quantize.methods import METHODS, Quantise, method_for
from lutra.quantize.quality import output_error
from lutra.quantize.rounding import round_to_nearest


def inputs(k: int, seed: int = 0, rows: int = 0) -> np.ndarray:
    """Inputs that have to do with one another, some large: float64 [rows, k]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows or 4 * k, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    return x * rng.lognormal(0, 1, k)


def plain_gptq(w: np.ndarray, hessian: np.ndarray, format: Format, base: Quantise, damp: float) -> np.ndarray:
    """The specification: values, column by column, no run ever waits; float64 throughout."""
    w, k = w.astype(np.float64), w.shape[1]
    damped = hessian + damp * np.diagonal(hessian).mean() * np.eye(k)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    run = run_width(k, format)
    out = np.empty_like(w)
    for j in range(k):
        if j % run == 0:
            levels = levels_of(base(w[:, j : j + run].astype(np.float32), format)).astype(np.float64)
        mine = levels[:, j % run // (format.group_size or k)]
        out[:, j] = mine[np.arange(len(w)), np.abs(mine - w[:, j : j + 1]).argmin(1)]
        w[:, j + 1 :] -= np.outer((w[:, j] - out[:, j]) / upper[j, j], upper[j, j + 1 :])
    return out


@pytest.mark.parametrize("name", ["planes3-g32-zeros", "planes4-g16-mins", "planes2-row", "planes1x2-g64-mins",
                                  "iq4nl-g32", "planes3-g16-i8xf16", "planes4-g256"])  # fmt: skip
@pytest.mark.parametrize("k", [1, 31, 32, 33, 100, 172, 300])
def test_it_is_column_by_column(name: str, k: int) -> None:
    """A value next to a border may fall to either side in f32; then later columns differ too, in that row alone."""
    form = catalog.find(name)
    base = METHODS[method_for(form, "rtn")].quantise
    x = inputs(k)
    w = np.random.default_rng(1).standard_normal((24, k)).astype(np.float32)
    hessian = x.T @ x / len(x)
    found = gptq(w, hessian, form, base).dequantize()
    wanted = plain_gptq(w, hessian, form, base, 0.01)
    same = (np.abs(found - wanted) < 1e-3).all(1)
    assert same.sum() >= 22
    assert output_error(w, found, hessian) == pytest.approx(output_error(w, wanted, hessian), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"static_groups": True}, {"act_order": True}])
@pytest.mark.parametrize("base", [round_to_nearest, clip])
def test_outputs_are_nearer_than_rounded(base: Quantise, options: dict[str, bool]) -> None:
    x = inputs(192)
    hessian, form = x.T @ x, catalog.planes(3, 64, offset="zeros")
    w = np.random.default_rng(2).standard_normal((40, 192)).astype(np.float32)
    rounded = output_error(w, base(w, form).dequantize(), hessian)
    assert output_error(w, gptq(w, hessian, form, base, **options).dequantize(), hessian) < 0.75 * rounded


def test_planes_with_free_scales_gain_too() -> None:
    x = inputs(128)
    hessian, form = x.T @ x, catalog.planes(1, 64, offset="mins", terms=2)
    w = np.random.default_rng(3).standard_normal((40, 128)).astype(np.float32)
    rounded = output_error(w, hlq(w, form).dequantize(), hessian)
    assert output_error(w, gptq(w, hessian, form, hlq).dequantize(), hessian) < 0.7 * rounded


def test_inputs_without_anything_in_common_leave_rounding() -> None:
    w = np.random.default_rng(4).standard_normal((9, 70)).astype(np.float32)
    form = catalog.planes(4, 32, offset="zeros")
    found = gptq(w, np.diag(np.arange(1.0, 71)), form)
    assert np.array_equal(found.dequantize(), round_to_nearest(w, form).dequantize())


def test_inputs_never_seen_become_0() -> None:
    x = inputs(64)
    x[:, [3, 40]] = 0
    w = np.random.default_rng(5).standard_normal((8, 64)).astype(np.float32)
    found = gptq(w, x.T @ x, catalog.planes(4, 32, offset="zeros")).dequantize()
    assert not found[:, [3, 40]].any() and found.any(1).all()


def test_fewer_tokens_than_inputs_are_damped() -> None:
    x = inputs(96, rows=5)
    w = np.random.default_rng(6).standard_normal((8, 96)).astype(np.float32)
    found = gptq(w, (x.T @ x).astype(np.float32), catalog.planes(4, 32, offset="zeros"), damp=0)
    assert np.isfinite(found.dequantize()).all()


def test_a_factor_serves_several_weights() -> None:
    x = inputs(64)
    hessian, form = x.T @ x, catalog.planes(3, 32, offset="zeros")
    kept = hessian.copy()
    factor = Factor.of(hessian, act_order=True)
    w = np.random.default_rng(7).standard_normal((8, 64)).astype(np.float32)
    assert np.array_equal(gptq(w, factor, form).dequantize(), gptq(w, hessian, form, act_order=True).dequantize())
    assert np.array_equal(hessian, kept)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 63, 64, 65, 200])
def test_the_factor_is_that_of_the_inverse(k: int, dtype: type) -> None:
    x = inputs(k)
    hessian = (x.T @ x / len(x) + np.eye(k)).astype(dtype)
    upper = inverse_factor(hessian.copy(), 0)
    assert upper.dtype == dtype and not np.tril(upper, -1).any()
    assert upper @ hessian @ upper.T == pytest.approx(np.eye(k), abs=1e-2 if dtype == np.float32 else 1e-9)
    inverse = hessian.astype(np.float64)
    lower = np.linalg.cholesky(inverse)
    invert_root(inverse)
    assert inverse @ lower == pytest.approx(np.eye(k), abs=1e-9)


def test_what_is_not_positive_has_no_root() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        invert_root(np.diag([*np.ones(99), -1.0]))


@pytest.mark.parametrize("hessian", [np.ones((3, 3)), np.full((4, 4), np.nan), np.ones((4, 5))])
def test_hessians_that_do_not_fit_are_refused(hessian: np.ndarray) -> None:
    with pytest.raises(FormatError, match="hessian"):
        gptq(np.ones((2, 4), np.float32), hessian, catalog.planes(4, 32))
