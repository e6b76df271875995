"""The made models are what outside readers take for models of their family."""

import numpy as np
import pytest

from lutra.files import open_model
from tests.files.make_models import (
    BOS_ID,
    VOCAB_SIZE,
    interleave,
    pack_bitnet,
    tiny_hf,
    tiny_llama_gguf,
    vocabulary,
)


def test_by_hand():
    assert pack_bitnet(np.array([[-1], [0], [1], [0]], np.int8)).tolist() == [[0b01_10_01_00]]
    assert interleave(np.array([0, 1, 2, 3]), 1).tolist() == [0, 2, 1, 3]
    assert vocabulary()[32] == "Ġ" and vocabulary()[65] == "A" and VOCAB_SIZE == 264


def test_the_tokenizer_loads(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tiny_hf(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("the tin é").ids
    assert ids[0] == BOS_ID and tokenizer.decode(ids) == "the tin é"
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert [tokenizer.id_to_token(i) for i in range(VOCAB_SIZE)] == vocabulary()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_same_weights(tmp_path, family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="the outside reader of Hugging Face folders")
    meant = tiny_hf(tmp_path, family)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    state = model.state_dict()
    for name, values in meant.items():
        assert np.array_equal(state[name].numpy(), values), name


def test_gguf_reads_the_made_file(tmp_path):
    outside = pytest.importorskip("gguf")
    path = tiny_llama_gguf(tmp_path / "a.gguf", "Q4_K", embed="Q6_K")
    reader = outside.GGUFReader(path)
    model = open_model(path)
    assert {tensor.name for tensor in reader.tensors} == {tensor.source_name for tensor in model.tensors.values()}
    assert reader.fields["tokenizer.ggml.tokens"].contents() == vocabulary()
