"""Weights arrive in the shapes the config says, from either kind of file; what does not fit is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutra.errors import CapacityError, FileError
from lutra.files import open_model
from lutra.files.model_file import LazyTensor, ModelFile
from lutra.formats.qtensor import QTensor
from lutra.model.config import ModelConfig, config_from
from lutra.model.load import Reader, load_model, load_weights
from lutra.model.weights import Weights
from tests.files.make_models import tiny_hf, tiny_llama_gguf


def opened(path: Path) -> tuple[ModelFile, ModelConfig]:
    file = open_model(path)
    return file, config_from(file)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def folder(tmp_path: Path, family: str) -> tuple[ModelFile, ModelConfig]:
    tiny_hf(tmp_path, family=family)
    return opened(tmp_path)


def with_tensor(file: ModelFile, name: str, values: np.ndarray | QTensor | None) -> ModelFile:
    """The file with one tensor replaced, or left out."""
    tensors = {known: tensor for known, tensor in file.tensors.items() if known != name}
    if values is not None:
        tensors[name] = LazyTensor(name, f"file's {name}", "F32", values.shape, "as stored", lambda: values)
    return replace(file, tensors=tensors)


def formats(weights: Weights) -> set[str]:
    """Names of the formats in the layers; element types of dense ones."""
    linears = [linear.weight for layer in weights.layers for linear in (*layer.qkv, layer.o, layer.gate_up, layer.down)]
    return {weight.format.name if weight.format else weight.dtype for weight in linears}


def test_shapes_of_a_llama(gguf: Path) -> None:
    file, config = opened(gguf)
    weights = load_weights(file, config)
    layer = weights.layers[0]
    assert len(weights.layers) == 2 and len(layer.qkv) == 1
    assert (layer.qkv[0].weight.n, layer.qkv[0].weight.k) == (64 + 2 * 32, 64)  # q, k and v under one another
    assert (layer.gate_up.weight.n, layer.gate_up.weight.k) == (2 * 160, 64)
    assert (layer.down.weight.n, layer.down.weight.k) == (64, 160)
    assert layer.q_norm is None and layer.attn_sub_norm is None
    assert weights.embed is not weights.head.weight, "the head is a matrix of its own"


def test_tied_weights_lie_in_memory_once(tmp_path: Path) -> None:
    file, config = folder(tmp_path, "qwen3")
    weights = load_weights(file, config)
    assert config.tied and weights.embed is weights.head.weight
    assert weights.layers[0].q_norm is not None and weights.layers[0].q_norm.shape == (16,)


def test_biases_of_qwen2_stand_beside_their_rows(tmp_path: Path) -> None:
    file, config = folder(tmp_path, "qwen2")
    bias = load_weights(file, config).layers[1].qkv[0].bias
    want = np.concatenate([np.asarray(file.tensors[f"layers.1.{name}.bias"].read()) for name in "qkv"])
    assert bias is not None
    np.testing.assert_array_equal(bias[: len(want)], want)
    assert not bias[len(want) :].any()


@pytest.mark.parametrize("family", ["bitnet", "bitnet-master"])
def test_both_kinds_of_bitnet_become_ternary(tmp_path: Path, family: str) -> None:
    file, config = folder(tmp_path, family)
    weights = load_weights(file, config)
    assert formats(weights) == {"ternary"}
    assert weights.layers[0].ffn_sub_norm is not None and weights.layers[0].ffn_sub_norm.shape == (160,)
    assert weights.embed.format is None, "embeddings and the head stay floats"


def test_masters_and_ternary_floats_give_the_same_weights(tmp_path: Path) -> None:
    """A master is rounded by its mean; a file that already holds -s, 0, s keeps its s."""
    file, config = folder(tmp_path, "bitnet-master")
    reader = Reader(file, config, set())
    rounded = reader.matrix("layers.0.q", 64, 64)
    assert isinstance(rounded, QTensor)
    again = Reader(with_tensor(file, "layers.0.q", rounded.dequantize()), config, set()).matrix("layers.0.q", 64, 64)
    assert isinstance(again, QTensor)
    np.testing.assert_array_equal(again.dequantize(), rounded.dequantize())


def test_projections_of_several_formats_write_side_by_side(gguf: Path) -> None:
    file, config = opened(gguf)
    half = np.asarray(file.tensors["layers.0.v"].read()).astype(np.float16)
    qkv = load_weights(with_tensor(file, "layers.0.v", half), config).layers[0].qkv
    assert [(linear.weight.n, linear.column) for linear in qkv] == [(64, 0), (32, 64), (32, 96)]


def test_progress_counts_to_its_total(gguf: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    load_weights(*opened(gguf), lambda *step: calls.append(step))
    assert calls == [
        ("embedding and head", 1, 4), ("layer 1 of 2", 2, 4), ("layer 2 of 2", 3, 4), ("final norm", 4, 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("layers.1.down", None, "expected a tensor for layers.1.down, found none"),
        ("final_norm", None, "expected a tensor for final_norm"),
        ("layers.0.q", np.zeros((64, 32), np.float32), r"file's layers.0.q should have shape \(64, 64\) by the config"),
        ("layers.0.attn_norm", np.zeros((64, 1), np.float32), r"shape \(64,\) by the config, got \(64, 1\)"),
        ("layers.2.attn_norm", np.zeros(64, np.float32), "got 1 more .*file's layers.2.attn_norm"),
        ("layers.0.up.bias", np.zeros(160, np.float32), "got 1 more .*file's layers.0.up.bias"),
    ],
)
def test_what_does_not_fit_is_named(gguf: Path, name: str, values: np.ndarray | None, message: str) -> None:
    file, config = opened(gguf)
    with pytest.raises(FileError, match=message):
        load_weights(with_tensor(file, name, values), config)


def test_unknown_tensors_are_refused_but_for_what_can_be_recomputed(gguf: Path) -> None:
    file, config = opened(gguf)
    load_weights(replace(file, unknown=("model.layers.0.self_attn.rotary_emb.inv_freq",)), config)
    with pytest.raises(FileError, match="got 1 more .*blk.0.ffn_gate_exps.weight"):
        load_weights(replace(file, unknown=("blk.0.ffn_gate_exps.weight",)), config)


def test_a_whole_model_has_room_for_the_context_asked(gguf: Path) -> None:
    model = load_model(gguf, 1, 32, None)
    assert model.transformer.context == 32 and model.config.max_context == 256
    assert load_model(gguf, 1, None, None).transformer.context == 256
    with pytest.raises(CapacityError, match="a context of 1 to 256 tokens, got 257; change --ctx"):
        load_model(gguf, 1, 257, None)
