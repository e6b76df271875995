"""Small random models, complete with tokenizer, for any test that needs a model file.

    tiny_llama_gguf(path, quant="Q4_0")      a GGUF file; family="qwen2" and "qwen3" too
    tiny_hf(folder, family="bitnet")         a Hugging Face folder; llama, qwen2, qwen3 load in transformers

All have 2 layers, 4 heads, 2 kv heads, head size 16 (64 where blocks are longer than 32), byte-level vocabulary of 264.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.files.gguf_writer import BLOCKS, random_blocks, write_gguf
from tests.files.safetensors_writer import bfloat16, write_safetensors

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 2, 4, 2
CONTEXT = 256
ROPE_THETA = 10000.0
NORM_EPS = 1e-5
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "a n", "e r"]
BOS, EOS = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    hidden: int = 64
    ffn: int = 160

    @property
    def head_dim(self) -> int:
        return self.hidden // NUM_HEADS

    @property
    def kv_size(self) -> int:
        return self.head_dim * NUM_KV_HEADS


def byte_letters() -> list[str]:
    """Return the printable letter GPT-2 gives each byte: itself where visible, else the next of U+0100 and up."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def vocabulary() -> list[str]:
    """Return the tokens by id: 256 bytes, one per merge, then BOS and EOS."""
    return [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES), BOS, EOS]


VOCAB_SIZE = len(vocabulary())
BOS_ID, EOS_ID = VOCAB_SIZE - 2, VOCAB_SIZE - 1


def linear_shapes(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return {Hugging Face name in a layer: (N, K)}."""
    return {
        "self_attn.q_proj": (sizes.hidden, sizes.hidden),
        "self_attn.k_proj": (sizes.kv_size, sizes.hidden),
        "self_attn.v_proj": (sizes.kv_size, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, sizes.hidden),
        "mlp.gate_proj": (sizes.ffn, sizes.hidden),
        "mlp.up_proj": (sizes.ffn, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.ffn),
    }


def norm_sizes(sizes: Sizes, family: str) -> dict[str, int]:
    """Return {Hugging Face name in a layer: length}."""
    lengths = {"input_layernorm": sizes.hidden, "post_attention_layernorm": sizes.hidden}
    if family == "qwen3":
        lengths |= {"self_attn.q_norm": sizes.head_dim, "self_attn.k_norm": sizes.head_dim}
    if family.startswith("bitnet"):
        lengths |= {"self_attn.attn_sub_norm": sizes.hidden, "mlp.ffn_sub_norm": sizes.ffn}
    return lengths


def random_state(rng: np.random.Generator, family: str, sizes: Sizes) -> dict[str, np.ndarray]:
    """Return a Hugging Face state dict, f32: weights of size 1/sqrt(K), norms near 1, biases near 0."""
    def matrix(n: int, k: int) -> np.ndarray:
        return (rng.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32)

    def norm(length: int) -> np.ndarray:
        return rng.uniform(0.7, 1.3, length).astype(np.float32)

    state = {"model.embed_tokens.weight": rng.standard_normal((VOCAB_SIZE, sizes.hidden)).astype(np.float32)}
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}."
        for part, shape in linear_shapes(sizes).items():
            state[f"{prefix}{part}.weight"] = matrix(*shape)
            if family == "qwen2" and part[-6] in "qkv" and part.startswith("self_attn"):
                state[f"{prefix}{part}.bias"] = (0.1 * rng.standard_normal(shape[0])).astype(np.float32)
        for part, length in norm_sizes(sizes, family).items():
            state[f"{prefix}{part}.weight"] = norm(length)
    state["model.norm.weight"] = norm(sizes.hidden)
    if not is_tied(family):
        state["lm_head.weight"] = 4 * matrix(VOCAB_SIZE, sizes.hidden)
    return state


def is_tied(family: str) -> bool:
    return family in ("qwen3", "bitnet", "bitnet-master")


ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM", "silu"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", "silu"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", "silu"),
    "bitnet": ("bitnet", "BitNetForCausalLM", "relu2"),
    "bitnet-master": ("bitnet", "BitNetForCausalLM", "relu2"),
}


def hf_config(family: str, sizes: Sizes) -> dict[str, Any]:
    model_type, architecture, activation = ARCHITECTURES[family]
    config: dict[str, Any] = {
        "architectures": [architecture], "model_type": model_type, "hidden_act": activation,
        "hidden_size": sizes.hidden, "intermediate_size": sizes.ffn, "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS, "num_key_value_heads": NUM_KV_HEADS, "head_dim": sizes.head_dim,
        "vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT, "rope_theta": ROPE_THETA,
        "rms_norm_eps": NORM_EPS, "tie_word_embeddings": is_tied(family), "attention_bias": False,
        "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
        "torch_dtype": "bfloat16" if family.startswith("bitnet") else "float32",
    }  # fmt: skip
    if family.startswith("bitnet"):
        mode = "offline" if family == "bitnet" else "online"
        config["quantization_config"] = {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode
        }  # fmt: skip
    return config


def tokenizer_json() -> dict[str, Any]:
    """Return a byte-level BPE tokenizer that puts BOS in front, in the form the `tokenizers` library reads."""
    tokens = vocabulary()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": BOS_ID, "content": BOS, **special}, {"id": EOS_ID, "content": EOS, **special}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [BOS_ID], "tokens": [BOS]}},
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [merge.split(" ") for merge in MERGES],
        },
    }  # fmt: skip


def absmean(master: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Return (trits int8 in -1..1, scale): BitNet b1.58's rule, scale = mean|W| as bf16 stores it."""
    scale = np.float32(np.abs(master).mean()).astype(bfloat16(master).dtype).astype(np.float32)
    return np.clip(np.rint(master / scale), -1, 1).astype(np.int8), scale


def pack_bitnet(trits: np.ndarray) -> np.ndarray:
    """Pack int8 [N, K] to uint8 [N / 4, K]: row i * N/4 + r in bits 2i of row r, plus 1."""
    slots = (trits + 1).astype(np.uint8).reshape(4, -1, trits.shape[1])
    return slots[0] | slots[1] << 2 | slots[2] << 4 | slots[3] << 6


def tiny_hf(folder: Path, family: str = "llama", dtype: type = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Write a model folder and return the weights it means, f32, by Hugging Face names.

    family   "llama" | "qwen2" | "qwen3" | "bitnet" (packed uint8 + weight_scale) | "bitnet-master" (bf16 masters,
             returned as masters)
    dtype    of the dense tensors; BitNet's are bf16 whatever this says
    """
    sizes = Sizes()
    is_bitnet = family.startswith("bitnet")
    stored = {
        name: bfloat16(values) if is_bitnet else values.astype(dtype)
        for name, values in random_state(np.random.default_rng(seed), family, sizes).items()
    }
    meant = {name: values.astype(np.float32) for name, values in stored.items()}
    if family == "bitnet":
        for name in [name for name in stored if "_proj" in name]:
            trits, scale = absmean(meant[name])
            meant[name] = trits * scale
            stored[name] = pack_bitnet(trits)
            stored[name + "_scale"] = bfloat16(np.array([scale]))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", stored)
    write_json(folder / "config.json", hf_config(family, sizes))
    write_json(folder / "tokenizer.json", tokenizer_json())
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
    })  # fmt: skip
    return meant


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


GGUF_PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GGUF_OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight"}  # fmt: skip


def gguf_name(hf_name: str) -> str:
    if hf_name in GGUF_OUTSIDE:
        return GGUF_OUTSIDE[hf_name]
    _, _, layer, *part, kind = hf_name.split(".")
    return f"blk.{layer}.{GGUF_PARTS['.'.join(part)]}.{kind}"


def interleave(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Permute q or k rows as llama.cpp's converter does: (half, pair) becomes (pair, half)."""
    return values.reshape(num_heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def gguf_metadata(family: str, sizes: Sizes) -> dict[str, Any]:
    return {
        "general.architecture": family, "general.name": f"tiny {family}",
        f"{family}.context_length": CONTEXT, f"{family}.embedding_length": sizes.hidden,
        f"{family}.feed_forward_length": sizes.ffn, f"{family}.block_count": NUM_LAYERS,
        f"{family}.attention.head_count": NUM_HEADS, f"{family}.attention.head_count_kv": NUM_KV_HEADS,
        f"{family}.rope.dimension_count": sizes.head_dim, f"{family}.rope.freq_base": ROPE_THETA,
        f"{family}.attention.layer_norm_rms_epsilon": NORM_EPS,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": [1] * (VOCAB_SIZE - 2) + [3, 3], "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": BOS_ID, "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": CHAT_TEMPLATE,
    }  # fmt: skip


def tiny_llama_gguf(path: Path, quant: str = "F32", family: str = "llama", embed: str = "F32", seed: int = 0) -> Path:
    """Write a GGUF model whose linears have type `quant` and whose embedding and head have type `embed`.

    quant, embed   "F32", "F16", "BF16" or a row of gguf_writer.BLOCKS (random blocks; K is 256 where one is long)
    """
    block = max(BLOCKS[kind][0] if kind in BLOCKS else 1 for kind in (quant, embed))
    sizes = Sizes(256, 256) if block > 32 else Sizes()
    rng = np.random.default_rng(seed)
    tensors = []
    for hf_name, values in random_state(rng, family, sizes).items():
        is_table = "embed" in hf_name or "lm_head" in hf_name
        kind = "F32" if values.ndim == 1 else embed if is_table else quant
        if kind in BLOCKS:
            values = random_blocks(rng, kind, *values.shape)
        elif family == "llama" and ("q_proj" in hf_name or "k_proj" in hf_name):
            values = interleave(values, NUM_HEADS if "q_proj" in hf_name else NUM_KV_HEADS)
        tensors.append((gguf_name(hf_name), kind, values))
    return write_gguf(path, gguf_metadata(family, sizes), tensors)
