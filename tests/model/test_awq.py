"""Scales folded into a layer leave what it computes as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lutra.files import open_model
from lutra.formats.qtensor import QTensor
from lutra.model import awq
from lutra.model.load import Reader
from lutra.model.quantize import Job, Layer
from lutra.model.recipe import Recipe
from tests.files.make_models import tiny_hf

TEXT = "the cat sat on the mat and in the end ran after another cat " * 20


@pytest.fixture(autouse=True)
def known_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales that 8 bits would hardly ask for."""
    rng = np.random.default_rng(0)
    found = lambda weights, x, *_: rng.uniform(0.5, 2, x.shape[1]).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(awq, "search_scale", found)


def layers(folder: Path, family: str, keep: tuple[tuple[str, str], ...] = ()) -> tuple[Layer, Layer]:
    """The first layer as stored, and scaled and rounded to 8 bits."""
    tiny_hf(folder, family)
    recipe = Recipe("int8-g32", "awq", keep, windows=4, length=40)
    job = Job.of(folder, folder / "out.safetensors", recipe, TEXT, 1)
    before, after = (Layer(job, 0, Reader(open_model(folder), job.config, set())) for _ in range(2))
    seen: dict = {}
    job._stream().layer(before, lambda names, inputs: seen.update(dict.fromkeys(names, inputs)))
    awq.scale_layer(after, seen, clips=False)
    return before, after


def values(layer: Layer, name: str) -> np.ndarray:
    found = layer.done[layer.prefix + name]
    return found.dequantize() if isinstance(found, QTensor) else np.asarray(found)


@pytest.mark.parametrize(
    ("family", "norm", "linears"),
    [("llama", "attn_norm", "qkv"), ("qwen2", "attn_norm", "qkv"), ("llama", "ffn_norm", ("gate", "up")),
     ("bitnet-master", "attn_sub_norm", "o"), ("bitnet-master", "ffn_sub_norm", ("down",))],
)  # fmt: skip
def test_what_a_norm_loses_its_linears_gain(family: str, norm: str, linears: tuple[str, ...], tmp_path: Path) -> None:
    before, after = layers(tmp_path, family)
    scale = before.vector(norm) / after.vector(norm)
    assert scale.min() < 0.7 and scale.max() > 1.5
    for name in linears:
        if name != "up":  # which carries the scale of down, too
            wanted = before.matrix(name)
            assert values(after, name) / scale == pytest.approx(wanted, abs=0.03 * float(np.abs(wanted).max()))


def test_up_carries_the_scale_of_down(tmp_path: Path) -> None:
    before, after = layers(tmp_path, "llama")
    scale = np.median(values(after, "down") / before.matrix("down"), 0)
    assert scale.min() < 0.7 and scale.max() > 1.5
    into = before.vector("ffn_norm") / after.vector("ffn_norm")
    assert values(after, "up") / into * scale[:, None] == pytest.approx(before.matrix("up"), abs=0.05)


def test_a_weight_kept_as_stored_is_not_scaled(tmp_path: Path) -> None:
    before, after = layers(tmp_path, "llama", (("layers.0.k", "as-stored"),))
    assert np.array_equal(before.vector("attn_norm"), after.vector("attn_norm"))
    assert np.array_equal(values(after, "k"), before.matrix("k"))
    assert isinstance(after.done["layers.0.q"], QTensor)
