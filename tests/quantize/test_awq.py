"""Scales for inputs: found where a few inputs are large, and never worse than none on the inputs they were found on."""

from __future__ import annotations

import numpy as np
import pytest

from lutra.formats import catalog
from lutra.quantize.awq import candidate, clip_for_inputs, column_importance, output_error, search_scale
from lutra.quantize.clip import clip
from lutra.quantize.rounding import round_to_nearest

FORM = catalog.planes(3, 32, offset="zeros")


def inputs(k: int = 96, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, k)).astype(np.float32)
    x[:, ::17] *= 30  # a few large inputs, as language models have them
    return x


def weights(n: int = 24, k: int = 96, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def test_importance_by_hand() -> None:
    w = np.array([[1, -2, 4, 3], [0, 0, 5, 5]], np.float32)
    form = catalog.planes(4, 16)
    assert column_importance([w], form).tolist() == pytest.approx([1 / 8, 1 / 4, 1, 7 / 8])
    assert column_importance([w, np.zeros((2, 4), np.float32)], form).tolist() == pytest.approx(
        [1 / 16, 1 / 8, 1 / 2, 7 / 16]
    )


def test_duo_divides_by_importance() -> None:
    found = candidate(np.array([4, 1], np.float32), np.array([1, 0.25], np.float32), np.float32(0.5))
    assert found == pytest.approx([1, 1], rel=1e-3)  # 2 / 1 and 1 / 0.5


@pytest.mark.parametrize("duo", [False, True])
def test_large_inputs_gain(duo: bool) -> None:
    ws, x = [weights(), weights(seed=2)], inputs()
    scale = search_scale(ws, x, [FORM, FORM], duo=duo)
    ones = np.ones(96, np.float32)
    before, after = (output_error(ws, x, s, [FORM, FORM], round_to_nearest) for s in (ones, scale))
    assert after < 0.7 * before
    assert scale[::17].min() > 2 * np.delete(scale, np.s_[::17]).mean()
    assert scale.max() * scale.min() == pytest.approx(1, rel=1e-3)


def test_inputs_all_alike_are_left_alone() -> None:
    assert search_scale([weights()], np.eye(96, dtype=np.float32), [FORM]) == pytest.approx(1)


def test_the_scale_with_the_smallest_error_is_taken() -> None:
    ws, x = [weights()], inputs()
    mean = np.abs(x).mean(0)
    tries = [candidate(mean, None, np.float32(i / 20)) for i in range(20)]
    best = min(output_error(ws, x, scale, [FORM], round_to_nearest) for scale in tries)
    found = output_error(ws, x, search_scale(ws, x, [FORM]), [FORM], round_to_nearest)
    assert found == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("k", [96, 80])
def test_clipping_for_inputs_beats_clipping_for_weights(k: int) -> None:
    """Where inputs of a group go together: the sum of a group's errors counts, which weights alone do not show."""
    rng = np.random.default_rng(3)
    common = rng.standard_normal((200, 1)).astype(np.float32)
    x, w = common + 0.1 * inputs(k) / 30, weights(k=k)
    form = catalog.planes(2, 32, offset="zeros")
    parts = [slice(start, min(start + 32, k)) for start in range(0, k, 32)]

    def error(values: np.ndarray) -> float:
        return sum(float(((x[:, part] @ (values - w)[:, part].T) ** 2).sum()) for part in parts)

    assert error(clip_for_inputs(w, x, form).dequantize()) < 0.9 * error(clip(w, form, steps=11).dequantize())
