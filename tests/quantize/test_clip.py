"""Cut ranges: never worse than none, and as a plain search finds them."""

from __future__ import annotations

import numpy as np
import pytest

from lutra.formats import catalog
from lutra.quantize.clip import clip, power_sum, shares
from lutra.quantize.levels import recode
from lutra.quantize.methods import rtn
from lutra.quantize.quality import sqnr_db
from lutra.quantize.rounding import round_to_nearest

NAMES = ["planes2-g32-zeros", "planes3-g64-mins", "planes4-g128", "planes4-row", "int8-g32", "planes1-g32-mins"]


def weights(n: int = 7, k: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(5, (n, k)).astype(np.float32)


@pytest.mark.parametrize("power", [2.0, 2.4])
@pytest.mark.parametrize("name", NAMES)
def test_each_group_gets_its_best_share(name: str, power: float) -> None:
    """The specification: every share for every group, with tensors packed and unpacked."""
    w, form = weights(), catalog.find(name)
    tries = [recode(round_to_nearest(w * share, form), w).dequantize() - w for share in shares()]
    best = np.min([power_sum(difference, form, power) for difference in tries], 0)
    found = power_sum(clip(w, form, power=power).dequantize() - w, form, power)
    assert found == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("name", ["iq4nl-g32", "e2m1-g32-e8m0", "planes4-g32-mins-u8xf16", "planes4-g128-bf16"])
def test_it_serves_formats_of_other_levels_and_scales(name: str) -> None:
    w, form = weights(k=256), catalog.find(name)
    assert sqnr_db(w, clip(w, form, rtn).dequantize()) >= sqnr_db(w, rtn(w, form).dequantize()) - 0.05


def test_few_bits_gain_most() -> None:
    w = weights(64, 1024)
    gains = []
    for bits in (4, 3, 2):
        form = catalog.planes(bits, 128, offset="zeros")
        gains.append(sqnr_db(w, clip(w, form).dequantize()) - sqnr_db(w, round_to_nearest(w, form).dequantize()))
    assert 0.2 < gains[0] < gains[1] < gains[2]


def test_rows_do_not_depend_on_one_another() -> None:
    w, form = weights(70, 2000), catalog.find("planes3-g64-mins")
    assert np.array_equal(clip(w, form).dequantize()[40:], clip(w[40:], form).dequantize())


def test_another_measure_decides() -> None:
    w, form = weights(), catalog.find("planes2-g32-zeros")
    seen = []

    def error(difference: np.ndarray, rows: slice) -> np.ndarray:
        seen.append(rows)
        return -power_sum(difference, form, 2)  # the worst share of all

    worst = clip(w, form, error=error).dequantize()
    assert sqnr_db(w, worst) < sqnr_db(w, clip(w, form).dequantize())
    assert len(seen) == len(shares())
