"""What linears read, against a plain float decoder that remembers it."""

from pathlib import Path

import numpy as np
import pytest

from lutra.files import open_model
from lutra.model.config import config_from
from lutra.model.inputs import HEAD, collect, units
from lutra.model.load import load_model
from tests.files.make_models import tiny_hf, tiny_llama_gguf
from tests.reference_decoder import ReferenceDecoder

TOKENS = list(range(3, 90))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("inputs") / "tiny.gguf")


def test_the_head_reads_what_makes_the_logits(path: Path) -> None:
    model = load_model(path, 1, 128, None, "f32")
    found = collect(model.transformer, [TOKENS], len(TOKENS))
    file = open_model(path)
    logits = ReferenceDecoder(file, config_from(file)).logits(TOKENS)
    name = "head" if "head" in file.tensors else "embed"
    head = np.asarray(file.tensors[name].read(), np.float32)
    assert found[HEAD] @ head.T == pytest.approx(logits, rel=2e-3, abs=2e-3)


def test_every_unit_is_there_with_its_width(path: Path) -> None:
    model = load_model(path, 1, 128, None)
    c = model.config
    found = collect(model.transformer, [TOKENS], len(TOKENS))
    assert set(found) == {*units(c), HEAD} and len(units(c)) == 4 * c.num_layers
    for unit, values in found.items():
        width = {"o": c.num_heads * c.head_dim, "down": c.ffn_size}.get(unit.split(".")[-1], c.hidden_size)
        assert values.shape == (len(TOKENS), width) and values.dtype == np.float32 and np.abs(values).max() > 0


def test_the_first_layer_by_hand(path: Path) -> None:
    model = load_model(path, 1, 128, None)
    found = collect(model.transformer, [TOKENS], len(TOKENS))["layers.0.qkv"]
    file = model.file
    x = np.asarray(file.tensors["embed"].read(), np.float64)[TOKENS]
    x /= np.sqrt((x * x).mean(1, keepdims=True) + model.config.norm_eps)
    assert found == pytest.approx(x * np.asarray(file.tensors["layers.0.attn_norm"].read()), rel=1e-4, abs=1e-5)


def test_rows_are_sampled_evenly_over_windows(path: Path) -> None:
    model = load_model(path, 1, 128, None)
    every = collect(model.transformer, [TOKENS, TOKENS[:31]], 10**6)
    some = collect(model.transformer, [TOKENS, TOKENS[:31]], 30)
    assert len(every[HEAD]) == len(TOKENS) + 31
    for unit, values in some.items():
        assert np.array_equal(values, every[unit][::3])


def test_sub_norms_are_part_of_what_is_read(tmp_path: Path) -> None:
    tiny_hf(tmp_path, family="bitnet")
    model = load_model(tmp_path, 1, 64, None)
    found = collect(model.transformer, [TOKENS[:20]])
    for unit in ("layers.1.o", "layers.1.down"):
        norm = getattr(model.weights.layers[1], "attn_sub_norm" if unit.endswith("o") else "ffn_sub_norm")
        plain = found[unit] / norm[: found[unit].shape[1]]
        assert (plain**2).mean(1) == pytest.approx(np.ones(20), rel=0.05)
