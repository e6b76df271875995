"""A config is read the same from both kinds of files, and what lutra does not compute is refused at the door."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lutra import files
from lutra.errors import FileError
from lutra.files.model_file import ModelFile
from lutra.model.config import ModelConfig, config_from
from lutra.model.families import FAMILIES
from lutra.model.rope import rope_frequencies

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
    "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128,
    "vocab_size": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}
BITNET = LLAMA | {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2"}
GGUF = {
    "general.architecture": "llama", "llama.embedding_length": 64, "llama.feed_forward_length": 172,
    "llama.block_count": 5, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4,
    "llama.context_length": 128, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 512,
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def from_folder(tmp_path: Path, **change) -> ModelConfig:
    values = {key: value for key, value in (LLAMA | change).items() if value != "left out"}
    return config_from(ModelFile(tmp_path, "safetensors", values, {}))


def from_gguf(**change) -> ModelConfig:
    metadata = GGUF | {key.replace("__", "."): value for key, value in change.items()}
    metadata = {key: value for key, value in metadata.items() if value != "left out"}
    return config_from(ModelFile(Path("made.gguf"), "gguf", metadata, {}))


def test_both_worlds_agree(tmp_path):
    assert from_folder(tmp_path) == from_gguf()
    config = from_gguf()
    assert (config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim) == (64, 8, 4, 8)
    assert (config.bos_id, config.eos_ids, config.tied, config.activation) == (1, (2,), True, "silu")
    assert config.family.name == "llama" and not config.family.quantize_activations


def test_a_real_file(shared):
    config = config_from(files.open_model(shared / "data/models/stories260K/stories260Ktok512.gguf"))
    assert (config.hidden_size, config.ffn_size, config.num_layers, config.vocab_size) == (64, 172, 5, 512)
    assert config.rope_theta == 10000.0 and config.norm_eps == pytest.approx(1e-5)


def test_bitnet(tmp_path):
    config = from_folder(tmp_path, **{key: BITNET[key] for key in ("architectures", "model_type", "hidden_act")})
    assert config.architecture == "bitnet" and config.activation == "relu2" and config.rope_theta == 500000.0
    assert config.attn_sub_norm and config.ffn_sub_norm and config.family.quantize_activations
    # 1bitLLM's reproduction calls itself a llama, but its class does not
    other = from_folder(tmp_path, architectures=["BitnetForCausalLM"])
    assert other.architecture == "bitnet-silu" and other.activation == "silu"


def test_qwen_rows(tmp_path):
    assert from_folder(tmp_path, architectures=["Qwen2ForCausalLM"]).qkv_bias
    qwen3 = from_folder(tmp_path, architectures=["Qwen3ForCausalLM"], head_dim=16)
    assert qwen3.qk_norm and qwen3.head_dim == 16 and not qwen3.qkv_bias
    window = {"use_sliding_window": True, "sliding_window": 32}
    assert from_folder(tmp_path, architectures=["Qwen2ForCausalLM"], **window).max_context == 32
    assert from_folder(tmp_path, architectures=["Qwen2ForCausalLM"], sliding_window=32).max_context == 128


def test_model_type_decides_where_no_class_is_named(tmp_path):
    assert from_folder(tmp_path, architectures="left out", model_type="qwen2").architecture == "qwen2"


def test_every_family_is_found_in_gguf():
    for family in FAMILIES:
        for name in family.gguf:
            metadata = {key.replace("llama.", name + "."): value for key, value in GGUF.items()}
            metadata["general.architecture"] = name
            assert config_from(ModelFile(Path("x.gguf"), "gguf", metadata, {})).architecture == family.name


def test_left_out_values_have_the_family_default(tmp_path):
    config = from_folder(tmp_path, num_key_value_heads=None, rms_norm_eps="left out", tie_word_embeddings="left out")
    assert config.num_kv_heads == 8 and config.norm_eps == 1e-6 and not config.tied
    assert from_gguf(llama__vocab_size="left out", tokenizer__ggml__tokens=["a"] * 7).vocab_size == 7
    assert from_gguf(tokenizer__ggml__bos_token_id=0xFFFFFFFF).bos_id is None


def test_end_tokens_are_gathered(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    assert from_folder(tmp_path).eos_ids == (2, 7, 9)
    assert from_folder(tmp_path, eos_token_id=[3, 4]).eos_ids == (3, 4, 7, 2, 9)
    assert from_gguf(tokenizer__ggml__eot_token_id=5).eos_ids == (2, 5)


@pytest.mark.parametrize("change, message", [
    ({"hidden_size": 0}, "hidden_size"), ({"hidden_size": 1 << 40}, "hidden_size"), ({"hidden_size": "64"}, "hidden"),
    ({"hidden_size": "left out"}, "hidden"), ({"hidden_size": True}, "hidden"), ({"hidden_size": 64.0}, "hidden"),
    ({"num_key_value_heads": 3}, "divisor"), ({"num_key_value_heads": 16}, "num_key_value_heads"),
    ({"head_dim": 7}, "even"), ({"hidden_size": 100}, "head_dim"), ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vocab_size": -1}, "vocab_size"), ({"rms_norm_eps": -1}, "rms_norm_eps"), ({"rms_norm_eps": math.nan}, "eps"),
    ({"rms_norm_eps": None}, "rms_norm_eps: expected a number .* got nothing"),
    ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
    ({"architectures": 3, "model_type": 5}, "model_type"),
    ({"hidden_act": "gelu"}, "gelu"), ({"mlp_bias": True}, "mlp_bias"), ({"rope_theta": 0}, "rope_theta"),
    ({"rope_scaling": {"type": "yarn"}}, "yarn"), ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic"),
    ({"rope_scaling": {"type": "linear"}}, "factor"), ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
    ({"rope_scaling": 3}, "rope_scaling"), ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"), ({"eos_token_id": -7}, "eos_token_id"),
    ({"eos_token_id": ["x"]}, "eos_token_id"), ({"bos_token_id": 1 << 30}, "bos_token_id"),
])
def test_folders_that_make_no_sense_are_refused(tmp_path, change, message):
    with pytest.raises(FileError, match=message):
        from_folder(tmp_path, **change)


@pytest.mark.parametrize("change, message", [
    ({"general__architecture": "mamba"}, "mamba"), ({"general__architecture": 7}, "architecture"),
    ({"llama__block_count": "left out"}, "block_count"), ({"llama__rope__dimension_count": 4}, "dimension_count"),
    ({"llama__expert_count": 8}, "expert_count"), ({"llama__rope__scaling__type": "yarn"}, "yarn"),
    ({"llama__attention__value_length": 4}, "value_length"), ({"llama__vocab_size": "left out"}, "vocab_size"),
    ({"llama__attention__head_count_kv": [4, 2]}, "head_count_kv"), ({"tokenizer__chat_template": 3}, "chat_template"),
])
def test_ggufs_that_make_no_sense_are_refused(change, message):
    with pytest.raises(FileError, match=message):
        from_gguf(**change)


def test_the_same_number_for_every_layer_is_one_number():
    assert from_gguf(llama__attention__head_count_kv=[2, 2, 2, 2, 2]).num_kv_heads == 2


def test_broken_side_files_are_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(FileError, match="generation_config.json"):
        from_folder(tmp_path)


# --- rotary frequencies ----------------------------------------------------------------------------------------------

def test_frequencies_by_hand(tmp_path):
    config = from_folder(tmp_path, num_attention_heads=16)  # heads of 4: theta ** 0 and theta ** (-2 / 4)
    assert rope_frequencies(config).tolist() == [1.0, 0.01]
    halved = from_folder(tmp_path, num_attention_heads=16, rope_scaling={"type": "linear", "factor": 2.0})
    assert rope_frequencies(halved).tolist() == [0.5, 0.005]
    assert rope_frequencies(config, np.array([1, 4], np.float32)).tolist() == [1.0, 0.0025]


def test_old_and_new_spelling_agree(tmp_path):
    old = from_folder(tmp_path, rope_theta=500000.0, rope_scaling=LLAMA3)
    new = from_folder(tmp_path, rope_parameters=LLAMA3 | {"rope_theta": 500000.0})
    assert old == new and old.rope_scaling["type"] == "llama3" and old.rope_theta == 500000.0
    assert from_folder(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5.0}).rope_scaling is None
    gguf = from_gguf(llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert gguf.rope_scaling == from_folder(tmp_path, rope_scaling={"type": "linear", "factor": 4.0}).rope_scaling


@pytest.mark.parametrize("scaling", [None, LLAMA3, LLAMA3 | {"factor": 32.0}, {"rope_type": "linear", "factor": 4.0}])
def test_frequencies_equal_transformers(tmp_path, scaling):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = {"hidden_size": 1024, "num_attention_heads": 8, "max_position_embeddings": 131072}
    stated = {"rope_parameters": {"rope_theta": 500000.0} | (scaling or {"rope_type": "default"})}
    reference = LlamaRotaryEmbedding(transformers.LlamaConfig(**shape, **stated)).inv_freq.numpy()
    mine = rope_frequencies(from_folder(tmp_path, **shape, **stated))
    np.testing.assert_allclose(mine, reference, rtol=2e-6)


@pytest.mark.parametrize("factors", [[1.0], [1.0, 0.0], [1.0, math.inf], [[1.0, 1.0]]])
def test_rope_factors_that_make_no_sense_are_refused(tmp_path, factors):
    config = from_folder(tmp_path, num_attention_heads=16)
    with pytest.raises(FileError, match="rope_freqs"):
        rope_frequencies(config, np.array(factors))
