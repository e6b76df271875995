"""A head in another format than the file's: rounded once, the embedding left alone, and said so."""

from pathlib import Path

import numpy as np
import pytest

from lutra.errors import FormatError, RequestError
from lutra.files import open_model
from lutra.formats import catalog
from lutra.model import head
from lutra.model.config import config_from
from lutra.model.describe import describe
from lutra.model.head import recode
from lutra.model.load import load_model, load_weights
from lutra.model.pack import pack
from lutra.quantize.rounding import round_to_nearest
from tests.files.make_models import tiny_hf, tiny_llama_gguf

TOKENS = [1, *range(30, 50)]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    tiny_hf(folder, family="bitnet")
    return folder


def test_pieces_are_rounded_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_ROWS", 7)
    w = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    format = catalog.find("planes4-g32")
    whole, pieces = round_to_nearest(w, format), recode(w, format)
    np.testing.assert_array_equal(pieces.packed, whole.packed)
    np.testing.assert_array_equal(pieces.scales, whole.scales)
    assert recode(whole, format) is whole
    finer = recode(whole, catalog.find("int8-g32"))
    assert np.abs(finer.dequantize() - whole.dequantize()).max() < 0.02


@pytest.mark.parametrize("name", ["int8-g32", "planes6-g32", "planes4-g32", "planes2-row"])
def test_the_head_is_the_rounded_one(gguf: Path, name: str) -> None:
    file = open_model(gguf)
    want = recode(np.asarray(file.tensors["head"].read()), catalog.find(name)).dequantize()
    weights = load_weights(file, config_from(file), head=catalog.find(name))
    assert weights.head.weight.format == catalog.find(name) and weights.embed.format is None
    plain, rounded = load_model(gguf, 1, 32, None), load_model(gguf, 1, 32, None, head=name)
    logits, near = (model.transformer.prefill(TOKENS, 0).copy() for model in (plain, rounded))
    stored = np.asarray(file.tensors["head"].read())
    x = np.linalg.lstsq(stored, logits, rcond=None)[0]  # the hidden state that gave these logits
    assert np.abs(near - want @ x).max() < 0.03 * np.abs(logits).max()


def test_an_embedding_that_was_the_head_stays_as_stored(tied: Path) -> None:
    plain, rounded = load_model(tied, 1, 32, None), load_model(tied, 1, 32, None, head="planes4-g32")
    assert plain.config.tied and plain.weights.embed is plain.weights.head.weight
    np.testing.assert_array_equal(rounded.weights.embed.codes, plain.weights.embed.codes)
    assert rounded.weights.bytes_per_token < plain.weights.bytes_per_token


@pytest.mark.parametrize("model, stored", [("gguf", "F32"), ("tied", "BF16")])
def test_inspect_says_it(model: str, stored: str, request: pytest.FixtureRequest) -> None:
    loaded = load_model(request.getfixturevalue(model), 1, 32, None, kv="int8", head="int8-g32")
    text = describe(loaded).splitlines()
    (line,) = [line.split() for line in text if line.startswith("head ")]
    assert line[1] == stored and line[-4:] == ["re-coded", "to", "int8-g32", "(rounded)"]
    assert [line for line in text if line.startswith("embed ") and line.endswith("as stored")]
    assert "a token of context takes 0.16 kB of keys and values in int8, 32 tokens 0.0 MB" in text


def test_a_packed_model_keeps_the_head_it_was_packed_with(tied: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.lutra"
    pack(tied, target, "auto", lambda *_: None, head="planes4-g32")
    packed, plain = load_model(target, 1, 32, None), load_model(tied, 1, 32, None, head="planes4-g32")
    want = plain.transformer.prefill(TOKENS, 0)
    np.testing.assert_array_equal(packed.transformer.prefill(TOKENS, 0).view(np.uint32), want.view(np.uint32))
    with pytest.raises(RequestError, match="which is packed; pack it again with --head"):
        load_model(target, 1, 32, None, head="planes4-g32")


def test_an_unknown_format_is_named(gguf: Path) -> None:
    with pytest.raises(FormatError, match="planes9"):
        load_model(gguf, 1, 32, None, head="planes9-g32")
