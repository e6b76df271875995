"""What `lutra pack` refuses, and what it says."""

from pathlib import Path

import pytest

from lutra.errors import FileError, RequestError
from lutra.files import open_model
from lutra.formats.qtensor import QTensor
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.pack import pack
from tests.files.make_models import tiny_llama_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", quant="Q4_0")


def nobody(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def test_it_says_what_was_written(gguf: Path, tmp_path: Path) -> None:
    """Eight quantised weights, and an embedding and a head of floats."""
    calls: list[str] = []
    said = pack(gguf, tmp_path / "m.lutra", "auto", lambda label, done, total: calls.append(label))
    size = (tmp_path / "m.lutra").stat().st_size / 1e6
    assert said == f"{tmp_path}/m.lutra: {size:.1f} MB, 2 weights in dense order, 8 weights in mad order"
    assert calls[0] == "embedding and head" and calls[-1].startswith("writing ")


def test_an_order_takes_the_weights_it_can(gguf: Path, tmp_path: Path) -> None:
    assert "2 weights in dense order, 8 weights in lut order" in pack(gguf, tmp_path / "m.lutra", "lut", nobody)


def test_a_tied_head_in_an_order_without_rows_leaves_the_embedding_in_mad(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", quant="Q4_0", family="qwen3", embed="Q4_0")
    file = open_model(path)
    assert isinstance(file.tensors["embed"].read(), QTensor)
    weights = load_weights(file, config_from(file), order="lut")
    assert (weights.embed.order, weights.head.weight.order) == ("mad", "lut")
    weights = load_weights(file, config_from(file), order="mad")
    assert weights.embed is weights.head.weight


@pytest.mark.parametrize("order", ["zigzag", "dense", ""])
def test_orders_there_are_not(gguf: Path, tmp_path: Path, order: str) -> None:
    with pytest.raises(RequestError, match=f"an order of auto, mad, lut.*, got '{order}'; leave --order out"):
        pack(gguf, tmp_path / "m.lutra", order, nobody)


@pytest.mark.parametrize("name", ["m.gguf", "m", "m.LUTRA"])
def test_the_ending_is_lutra(gguf: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="ends in .lutra"):
        pack(gguf, tmp_path / name, "auto", nobody)


def test_packed_models_are_not_packed_again(gguf: Path, tmp_path: Path) -> None:
    pack(gguf, tmp_path / "m.lutra", "auto", nobody)
    with pytest.raises(RequestError, match="is packed; copy it"):
        pack(tmp_path / "m.lutra", tmp_path / "n.lutra", "auto", nobody)


def test_no_model_and_nowhere_to_write(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nothing there"):
        pack(tmp_path / "absent.gguf", tmp_path / "m.lutra", "auto", nobody)
    with pytest.raises(FileError, match="make room or name another place"):
        pack(gguf, tmp_path / "absent" / "m.lutra", "auto", nobody)
    assert list(tmp_path.iterdir()) == []
