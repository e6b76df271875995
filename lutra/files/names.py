"""Two worlds of tensor names, one of ours.

Ours: `embed`, `final_norm`, `head`, `rope_freqs`, and per layer `layers.{i}.` + attn_norm q k v o q_norm k_norm
attn_sub_norm ffn_norm gate up down ffn_sub_norm; a bias is its matrix's name + `.bias`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")  # the parts that may have a bias


@dataclass(frozen=True)
class Naming:
    """How one world names tensors: whole names outside the layers, and a pattern (layer, part, weight|bias) inside."""

    outside: dict[str, str]
    layer: re.Pattern[str]
    parts: dict[str, str]

    def canonical(self, source_name: str) -> str | None:
        """Return lutra's name for a stored name, None if lutra has no use for it."""
        if source_name in self.outside:
            return self.outside[source_name]
        match = self.layer.fullmatch(source_name)
        part = self.parts.get(match["part"]) if match else None
        if match is None or part is None:
            return None
        name = f"layers.{match['index']}.{part}"
        if match["kind"] == "weight":
            return name
        return f"{name}.bias" if part in LINEARS else None


INDEX = "(?P<index>0|[1-9][0-9]{0,3})"  # no leading zero: one layer, one spelling

# llama.cpp, gguf-py/gguf/constants.py (TENSOR_NAMES); bitnet's sub-norms included
GGUF = Naming(
    outside={
        "token_embd.weight": "embed",
        "output_norm.weight": "final_norm",
        "output.weight": "head",
        "rope_freqs.weight": "rope_freqs",
    },
    layer=re.compile(rf"blk\.{INDEX}\.(?P<part>[a-z_]+)\.(?P<kind>weight|bias)"),
    parts={
        "attn_norm": "attn_norm",
        "attn_q": "q",
        "attn_k": "k",
        "attn_v": "v",
        "attn_output": "o",
        "attn_q_norm": "q_norm",
        "attn_k_norm": "k_norm",
        "attn_sub_norm": "attn_sub_norm",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "gate",
        "ffn_up": "up",
        "ffn_down": "down",
        "ffn_sub_norm": "ffn_sub_norm",
    },
)

# transformers, modeling_llama / modeling_qwen3 / modeling_bitnet; the last two rows are 1bitLLM/bitnet_b1_58-*
HUGGING_FACE = Naming(
    outside={
        "model.embed_tokens.weight": "embed",
        "model.norm.weight": "final_norm",
        "lm_head.weight": "head",
    },
    layer=re.compile(rf"model\.layers\.{INDEX}\.(?P<part>[a-z_.]+)\.(?P<kind>weight|bias)"),
    parts={
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "self_attn.q_norm": "q_norm",
        "self_attn.k_norm": "k_norm",
        "self_attn.attn_sub_norm": "attn_sub_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
        "mlp.ffn_sub_norm": "ffn_sub_norm",
        "self_attn.inner_attn_ln": "attn_sub_norm",
        "mlp.ffn_layernorm": "ffn_sub_norm",
    },
)

# GGUF architectures whose q and k rows pair neighbours for the rotary embedding.  qwen2 and qwen3 pair halves, and so
# do the bitnet ones (bitnet, bitnet-25, bitnet-b1.58), which are converted from Hugging Face without permuting.
INTERLEAVED_ARCHITECTURES = ("llama",)
HEAD_COUNT_KEYS = {"q": ("attention.head_count",), "k": ("attention.head_count_kv", "attention.head_count")}


def rotated_part(name: str) -> str | None:
    """Return "q" or "k" for the tensors whose rows the rotary embedding turns, biases included; None for others."""
    match = re.fullmatch(r"layers\.[0-9]+\.(q|k)(\.bias)?", name)
    return match[1] if match else None


def half_rotation_rows(num_rows: int, num_heads: int) -> np.ndarray:
    """Return which stored row goes where, from interleaved to half-rotation order.

    returns  int64 [num_rows]    row i of the Hugging Face order is stored row result[i]

    A head of size d is stored as pairs (0, 1), (2, 3) ...; half rotation wants all first members, then all second.
    """
    pairs = np.arange(num_rows).reshape(num_heads, -1, 2)  # [heads, d/2, 2]
    return pairs.swapaxes(1, 2).reshape(-1)
