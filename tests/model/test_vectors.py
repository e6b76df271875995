"""A model of vectors: quantised, saved, loaded, packed and run; every way gives the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutra.compiler.launch import Workers
from lutra.errors import FileError, FormatError, RequestError
from lutra.files import open_model, saved
from lutra.formats.vectors import VectorWeight
from lutra.model.load import load_model, load_weights
from lutra.model.pack import pack
from lutra.model.quantize import Summary, quantize
from lutra.model.recipe import Recipe
from lutra.model.to_gguf import export
from lutra.model.transformer import Transformer
from tests.files.make_models import tiny_hf

TEXT = "the cat sat on the mat and in the end ran after another cat " * 40
TOKENS = [3, 7, 1, 20, 9, 5, 14, 2, 30, 11, 6, 4, 8, 25, 17, 3, 12, 19, 10, 33, 21]


def silent(label: str, done: int, total: int) -> None:
    pass


def run(source: Path, target: Path, recipe: Recipe) -> Summary:
    return quantize(source, target, recipe, TEXT, 2, silent)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_hf(folder, "llama")
    return folder


@pytest.fixture(scope="module", params=["vectors8", "vectors4x2"])
def path(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("vectors") / "m.safetensors"
    run(source, target, Recipe(request.param, "vptq"))
    return target


def logits(path: Path, order: str | None = None, chunk: int = 64) -> bytes:
    """Of a prompt and of three tokens after it."""
    model = load_model(path, 1, 32, None)
    weights = model.weights if order is None else load_weights(model.file, model.config, order=order)
    runs = Transformer(model.config, weights, Workers(1), 32, chunk=chunk)
    parts = [np.array(runs.prefill(TOKENS, 0))]
    parts += [np.array(runs.decode(token, len(TOKENS) + i)) for i, token in enumerate((5, 9, 11))]
    return np.concatenate(parts).tobytes()


def test_layers_are_vectors_and_the_rest_is_as_it_was(path: Path) -> None:
    file = open_model(path)
    kinds = {name: type(file.tensors[name].read()) for name in ("layers.0.q", "layers.1.down", "embed")}
    assert kinds["layers.0.q"] is kinds["layers.1.down"] is VectorWeight and kinds["embed"] is np.ndarray
    model = load_model(path, 1, 32, None)
    layer = model.weights.layers[0]
    orders = [linear.weight.order for linear in (*layer.qkv, layer.o, layer.gate_up, layer.down)]
    assert orders == ["vector"] * 6 and model.weights.head.weight.order != "vector"


def test_chunks_and_orders_do_not_matter(path: Path) -> None:
    want = logits(path)
    assert all(logits(path, chunk=chunk) == want for chunk in (1, 4))
    assert logits(path, "mad") == logits(path, "lut") == want


def test_logits_are_those_of_the_same_weights_in_int8(path: Path, tmp_path: Path) -> None:
    file = open_model(path)
    tensors = {name: tensor.read() for name, tensor in file.tensors.items()}
    plain = {name: value.as_int8() if isinstance(value, VectorWeight) else value for name, value in tensors.items()}
    header = {key: file.metadata[key] for key in ("config", "tokenizer")}
    saved.write(tmp_path / "int8.safetensors", header, plain)
    assert logits(tmp_path / "int8.safetensors") == logits(path)


@pytest.mark.parametrize("order", ["auto", "mad"])
def test_a_packed_file_gives_the_same_logits(path: Path, tmp_path: Path, order: str) -> None:
    said = pack(path, tmp_path / "m.lutra", order, silent)
    assert ("vector order" in said) == (order == "auto")
    assert logits(tmp_path / "m.lutra") == logits(path)


def test_calibration_is_heard(source: Path, tmp_path: Path) -> None:
    """The errors that feedback leaves in weights are larger; those of outputs are for tests/quantize."""
    recipe = Recipe("vectors8", "gptq+vptq", windows=6, length=48)
    deaf = run(source, tmp_path / "deaf.safetensors", replace(recipe, method="vptq")).sqnr_db()
    heard = run(source, tmp_path / "heard.safetensors", recipe).sqnr_db()
    assert all(heard[name] < deaf[name] for name in ("gate", "down"))


def test_vectors_beside_other_formats(source: Path, tmp_path: Path) -> None:
    """Gate and up share a format; q, k and v need not, nor does the head."""
    recipe = Recipe("vectors8", keep=(("layers.*.v", "int8-g32"), ("layers.1.down", "as-stored")), head="planes4-g32")
    summary = run(source, tmp_path / "m.safetensors", recipe)
    assert summary.formats() == {"vectors8": 11, "int8-g32": 2, "planes4-g32": 1}
    assert logits(tmp_path / "m.safetensors") == logits(tmp_path / "m.safetensors", "mad")


def test_errors(source: Path, path: Path, tmp_path: Path) -> None:
    for recipe in (Recipe("vectors8", "awq"), Recipe("vectors8", lorc=2)):
        with pytest.raises(RequestError, match="awq and lorc, got vectors; take gptq"):
            run(source, tmp_path / "m.safetensors", recipe)
    with pytest.raises(RequestError, match="for the head, got vectors8"):
        run(source, tmp_path / "m.safetensors", Recipe("planes4-g32", head="vectors8"))
    with pytest.raises(FormatError, match="with levels for the head, got vectors8, one of vectors; try int8-g32"):
        load_model(path, 1, 32, None, head="vectors8")
    with pytest.raises(FileError, match="got vectors.*, for which GGUF has no type; quantise the model to another"):
        export(path, tmp_path / "m.gguf")
