"""Levels of every format: what codes mean, and the nearest of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.quantize.levels import Search, digits, levels_of, num_levels, recode, with_codes
from lutra.quantize.methods import METHODS, method_for

NAMES = list(catalog.FORMATS)


def quantised(name: str, n: int = 3, k: int = 344, seed: int = 0) -> tuple[np.ndarray, QTensor]:
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    form = catalog.find(name)
    return w, METHODS[method_for(form)].quantise(w, form)


def test_two_terms_by_hand() -> None:
    form = catalog.planes(1, 0, offset="mins", terms=2)
    q = QTensor.from_codes(form, np.zeros((1, 2, 4), np.uint8), np.array([[1, 4]], np.float32),
                           mins=np.array([[-2]], np.float32))  # fmt: skip
    assert levels_of(q).tolist() == [[[-2, -1, 2, 3]]]  # neither, the first, the second, both
    assert recode(q, np.array([[-9, -1.4, 2.6, 0.6]], np.float32)).codes()[0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_what_codes_dequantise_to(name: str) -> None:
    _, q = quantised(name)
    form, levels = q.format, levels_of(q)
    codes = q.codes().reshape(3, form.terms, -1)
    index = sum(codes[:, term].astype(int) * form.num_codes**term for term in range(form.terms))
    group = np.arange(344) // (form.group_size or 344)
    assert np.array_equal(levels[np.arange(3)[:, None], group, index], q.dequantize())
    assert levels.shape == (3, group[-1] + 1, num_levels(form))


@pytest.mark.parametrize("name", NAMES)
def test_recode_takes_the_nearest_level(name: str) -> None:
    _, q = quantised(name)
    w = np.random.default_rng(1).standard_normal((3, 344)).astype(np.float32) * 2
    group = np.arange(344) // (q.format.group_size or 344)
    away = np.abs(levels_of(q)[:, group] - w[..., None]).min(-1)
    assert np.abs(recode(q, w).dequantize() - w) == pytest.approx(away, abs=1e-5)
    for part in ("scales", "zeros", "mins", "super_scales", "super_mins"):
        assert np.array_equal(getattr(recode(q, w), part), getattr(q, part))


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_search_finds_what_a_scan_finds(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(-4, 5, (5, count)).astype(np.float32)  # some equal
    column = rng.uniform(-5, 5, 5).astype(np.float32)
    index, values = Search.of(levels).nearest(column)
    assert np.array_equal(values, levels[np.arange(5), index])
    assert np.abs(values - column) == pytest.approx(np.abs(levels - column[:, None]).min(1), abs=1e-6)


def test_other_codes_may_be_of_another_width() -> None:
    _, q = quantised("planes4-g32", k=64)
    assert with_codes(q, np.zeros((3, 40), np.uint8)).shape == (3, 40)


def test_digits_count_the_first_term_lowest() -> None:
    form = catalog.ternary(128, terms=2)
    assert digits(np.array([[5, 7]]), form).tolist() == [[[2, 1], [1, 2]]]  # 5 = 2 + 3 * 1, 7 = 1 + 3 * 2
