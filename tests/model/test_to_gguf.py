"""Models of other containers as GGUF: the same weights, the same tokens, the same logits."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from lutra.cli import cli
from lutra.compiler.launch import Workers
from lutra.errors import FileError
from lutra.files import open_model
from lutra.files.blocks_write import WRITABLE
from lutra.formats import aliases, catalog, vectors
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.to_gguf import export, takes
from lutra.model.tokenizer import Tokenizer
from lutra.model.transformer import Transformer
from tests.files.make_models import tiny_hf, tiny_llama_gguf

TOKENS = [1, *(int(i) for i in np.random.default_rng(6).integers(3, 250, 20))]
NEEDS = "needs the gguf package: pip install lutra[gguf]"


def logits(path):
    file = open_model(path)
    config = config_from(file)
    factors = file.tensors["rope_freqs"].read() if "rope_freqs" in file.tensors else None
    model = Transformer(config, load_weights(file, config), Workers(1), 64, all_logits=True, factors=factors)
    return model.score(TOKENS, 0).copy()


def exported(tmp_path, source):
    pytest.importorskip("gguf", reason=NEEDS)
    export(source, tmp_path / "out.gguf")
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_hugging_face_folders(tmp_path, family):
    tiny_hf(tmp_path / "hf", family=family)
    out = exported(tmp_path, tmp_path / "hf")
    assert np.array_equal(logits(out), logits(tmp_path / "hf"))
    ours, theirs = (Tokenizer.from_file(open_model(path)) for path in (tmp_path / "hf", out))
    text = "The inn, then 12 naïve<|end|> men\n"
    assert ours.encode(text) == theirs.encode(text) and ours.eos_ids == theirs.eos_ids


def test_norms_are_f32(tmp_path):
    """llama.cpp aborts when it meets one of 16 bits, the last one too."""
    tiny_hf(tmp_path / "hf", dtype=np.float16)
    stored = {name: tensor for name, tensor in open_model(exported(tmp_path, tmp_path / "hf")).tensors.items()}
    norms = {name: tensor.stored_type for name, tensor in stored.items() if len(tensor.shape) == 1}
    assert any(not name.startswith("layers.") for name in norms) and set(norms.values()) == {"F32"}
    assert {stored[name].stored_type for name in stored.keys() - norms.keys()} == {"F16"}


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "TQ2_0"])
def test_gguf_files_come_back(tmp_path, quant):
    source = tiny_llama_gguf(tmp_path / "in.gguf", quant=quant)
    out = exported(tmp_path, source)
    before, after = open_model(source), open_model(out)
    assert {name: tensor.stored_type for name, tensor in before.tensors.items()} == {
        name: tensor.stored_type for name, tensor in after.tensors.items()
    }
    assert np.array_equal(logits(source), logits(out))
    assert config_from(before) == config_from(after)


def test_llama3_scaling_becomes_a_tensor(tmp_path):
    tiny_hf(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_scaling": scaling}))
    out = exported(tmp_path, tmp_path / "hf")
    np.testing.assert_allclose(logits(out), logits(tmp_path / "hf"), atol=2e-3)


def test_what_no_gguf_type_holds_is_refused_and_leaves_nothing(tmp_path):
    tiny_hf(tmp_path / "hf", family="bitnet")  # K = 64: no ternary type has blocks so short
    with pytest.raises(FileError, match=r"expected .* got .*; "):
        exported(tmp_path, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_which_quantised_formats_have_a_type():
    """Of the names of GGUF types those whose scales a quantiser makes finer than their blocks hold have none."""
    refused = {name for name, format in WRITABLE.items() if not takes(format)}
    assert refused == set(aliases.NOT_EXPORTED)
    assert takes(None) and takes(catalog.find("planes4-g64")) and not takes(vectors.find("vectors8"))
    assert not takes(catalog.find("planes1x2-g64-mins"))


def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(tmp_path):
    tiny_hf(tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}  # fmt: skip
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(FileError, match="byte-level BPE"):
        exported(tmp_path, tmp_path / "hf")


def test_the_command(tmp_path):
    pytest.importorskip("gguf", reason=NEEDS)
    source = tiny_llama_gguf(tmp_path / "in.gguf", quant="Q4_0")
    result = CliRunner().invoke(cli, ["export", str(source), str(tmp_path / "out.gguf")])
    assert result.exit_code == 0 and result.output.startswith(f"{tmp_path / 'out.gguf'}: ")
    assert np.array_equal(logits(tmp_path / "out.gguf"), logits(source))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    pytest.importorskip("gguf", reason=NEEDS)
    source = tiny_llama_gguf(tmp_path / "in.gguf", quant="Q4_0")
    with pytest.raises(FileError, match="room for the model"):
        export(source, tmp_path / "no" / "out.gguf")
