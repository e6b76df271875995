"""Planes with free scales: exact where levels are sums, never worse than the grid they start from."""

from __future__ import annotations

import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.quantize.hlq import choose_bits, fit, hlq, least_squares, solve_small
from lutra.quantize.quality import sqnr_db
from lutra.quantize.rounding import round_to_nearest


def test_least_squares_is_numpys() -> None:
    rng = np.random.default_rng(0)
    w, bits = rng.standard_normal((5, 40)).astype(np.float32), rng.integers(0, 2, (5, 3, 40), dtype=np.uint8)
    scales, mins = least_squares(w, bits)
    for row in range(5):
        a = np.concatenate([bits[row].T, np.ones((40, 1))], 1)
        wanted = np.linalg.lstsq(a, w[row], rcond=None)[0]
        assert [*scales[row], mins[row]] == pytest.approx(wanted, abs=1e-5)


def test_an_empty_plane_and_two_equal_ones_are_no_error() -> None:
    w = np.array([[1, 2, 3, 4]], np.float32)
    bits = np.array([[[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]]], np.uint8)
    scales, mins = least_squares(w, bits)
    assert np.isfinite(scales).all()
    assert scales[0, 1] + scales[0, 2] == pytest.approx(1, abs=1e-5) and mins[0] == pytest.approx(2, abs=1e-5)


def test_small_systems_are_solved() -> None:
    normal = np.array([[4.0, 2], [2, 3]])[..., None]
    assert solve_small(normal, np.array([[8.0], [7]]))[:, 0] == pytest.approx([1.25, 1.5], abs=1e-6)


def test_bits_are_the_nearest_of_all_sums() -> None:
    rng = np.random.default_rng(1)
    w, scales = rng.standard_normal((4, 50)).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32)
    mins = rng.standard_normal(4).astype(np.float32)
    patterns = np.arange(8)[:, None] >> np.arange(3) & 1
    sums = scales @ patterns.T + mins[:, None]
    away = np.abs(w[:, :, None] - sums[:, None]).min(-1)
    values = np.einsum("mtk,mt->mk", choose_bits(w, scales, mins), scales) + mins[:, None]
    assert np.abs(w - values) == pytest.approx(away, abs=1e-5)


def test_every_round_lowers_the_error() -> None:
    w = np.random.default_rng(2).standard_normal((30, 64)).astype(np.float32)
    errors = []
    for rounds in range(6):
        found = fit(w, 2, rounds)
        values = np.einsum("mtk,mt->mk", found.codes, found.scales) + found.mins[:, None]
        errors.append(((values - w) ** 2).sum())
    assert all(after <= before * (1 + 1e-5) for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize(("terms", "db"), [(1, 4.52), (2, 9.57), (3, 14.79), (4, 20.72)])
def test_normal_weights_reach_what_the_paper_promises(terms: int, db: float) -> None:
    """Signal to noise on N(0, 1), 256 x 1024, groups of 128, f16 scales: near the limit of any 2**terms levels."""
    w = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    form = catalog.planes(1, 128, offset="mins", terms=terms)
    assert sqnr_db(w, hlq(w, form).dequantize()) == pytest.approx(db, abs=0.1)
    tied = catalog.planes(terms, 128, offset="mins")
    assert sqnr_db(w, hlq(w, form).dequantize()) > sqnr_db(w, round_to_nearest(w, tied).dequantize())


def test_two_level_scales_cost_little() -> None:
    w = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    wide = catalog.planes(1, 64, offset="mins", terms=2)
    narrow = catalog.planes(1, 64, offset="mins", terms=2, scale_dtype="i8", super_dtype="f16")
    loss = sqnr_db(w, hlq(w, wide).dequantize()) - sqnr_db(w, hlq(w, narrow).dequantize())
    assert narrow.bits_per_weight(1024) == wide.bits_per_weight(1024) - 0.25 and -0.01 < loss < 0.02


def test_a_short_last_group_and_equal_weights() -> None:
    w = np.random.default_rng(3).standard_normal((3, 172)).astype(np.float32)
    w[0] = 0.5
    q = hlq(w, catalog.planes(1, 32, offset="mins", terms=2))
    assert q.shape == (3, 172) and q.dequantize()[0] == pytest.approx(0.5)


def test_other_formats_are_refused() -> None:
    with pytest.raises(FormatError, match="expected codes of 1 bit, in terms, with mins"):
        hlq(np.ones((1, 4), np.float32), catalog.planes(2, 32, offset="mins"))
