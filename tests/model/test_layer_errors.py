"""Errors of linears: by hand, of a model beside itself, and of its quantised twin."""

from pathlib import Path

import numpy as np
import pytest

from lutra.errors import RequestError
from lutra.model.inputs import HEAD, collect
from lutra.model.layer_errors import LayerError, _ratio, layer_errors
from lutra.model.load import load_model
from lutra.model.pack import pack
from lutra.model.weights import widen
from tests.files.make_models import tiny_llama_gguf

TOKENS = list(range(3, 90))


def test_a_ratio_by_hand() -> None:
    assert _ratio(np.array([[0.0, 1.0]]), np.array([[3.0, 4.0]])) == pytest.approx(0.2)
    assert _ratio(np.zeros((1, 2)), np.zeros((1, 2))) == 0
    cells = LayerError("layers.0.q", 0.125, 0.25, ("float32", "planes4-g32")).cells()
    assert list(cells.values()) == ["layers.0.q", "float32", "planes4-g32", "12.500 %", "25.000 %"]


def test_a_model_beside_itself_and_its_twin(tmp_path: Path) -> None:
    floats, rough = (tiny_llama_gguf(tmp_path / f"{quant}.gguf", quant=quant) for quant in ("F32", "Q4_0"))
    a, b = (load_model(path, 1, 128, None) for path in (floats, rough))
    inputs = collect(a.transformer, [TOKENS])
    same = list(layer_errors(a, a, inputs))
    assert len(same) == 7 * a.config.num_layers + 1 and same[-1].name == HEAD
    assert all(row.output == row.weight == 0 for row in same)
    told: list[int] = []
    rows = list(layer_errors(a, b, inputs, lambda label, done, total: told.append(done)))
    assert told == list(range(1, len(rows) + 1)) and rows[0].formats == ("float32", "planes4-g32")
    q = rows[0]
    w, v = (widen(model.file.tensors["layers.0.q"].read()) for model in (a, b))
    x = inputs["layers.0.qkv"]
    assert q.name == "layers.0.q" and q.output == pytest.approx(np.linalg.norm(x @ (w - v).T) / np.linalg.norm(x @ w.T))


def test_packed_and_other_models_are_refused(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "a.gguf")
    pack(path, tmp_path / "a.lutra", "auto", lambda *step: None)
    a, packed = load_model(path, 1, 64, None), load_model(tmp_path / "a.lutra", 1, 64, None)
    with pytest.raises(RequestError, match="which is packed; name its source"):
        list(layer_errors(a, packed, {}))
