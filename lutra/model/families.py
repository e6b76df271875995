"""The decoder families lutra runs: one row each.  A new family is a row here, never a branch elsewhere.

Every family is a stack of  x += o(attention(q, k, v of norm(x)));  x += down(act(gate(norm(x))) * up(norm(x)))
with RMSNorm, rotary embedding in half-rotation order and grouped heads; a row says what differs from that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What differs from the common decoder, and the defaults for what a config file leaves out.

    name                   what ModelConfig.architecture says
    gguf                   values of general.architecture in GGUF files
    hugging_face           class names in "architectures" of config.json
    model_type             "model_type" of config.json, used when no class name matches; "" = never
    activation             "silu" | "relu2"; config.json's hidden_act overrides it
    attn_sub_norm          RMSNorm of the attention's output, before o
    ffn_sub_norm           RMSNorm of the gated product, before down
    qk_norm                RMSNorm of every head of q and k, before the rotary embedding
    qkv_bias               q, k and v have biases; config.json's attention_bias overrides False
    rope_theta, norm_eps   defaults of the family's config class
    quantize_activations   trained with int8 activations, one scale per token, in front of every linear but the head
    source                 where the row comes from
    """

    name: str
    gguf: tuple[str, ...]
    hugging_face: tuple[str, ...]
    model_type: str
    activation: str
    attn_sub_norm: bool
    ffn_sub_norm: bool
    qk_norm: bool
    qkv_bias: bool
    rope_theta: float
    norm_eps: float
    quantize_activations: bool
    source: str


FAMILIES = (
    Family(
        name="llama", gguf=("llama",), hugging_face=("LlamaForCausalLM",), model_type="llama",
        activation="silu", attn_sub_norm=False, ffn_sub_norm=False, qk_norm=False, qkv_bias=False,
        rope_theta=10000.0, norm_eps=1e-6, quantize_activations=False,
        source="arXiv 2302.13971; transformers/models/llama",
    ),
    Family(
        name="qwen2", gguf=("qwen2",), hugging_face=("Qwen2ForCausalLM",), model_type="qwen2",
        activation="silu", attn_sub_norm=False, ffn_sub_norm=False, qk_norm=False, qkv_bias=True,
        rope_theta=10000.0, norm_eps=1e-6, quantize_activations=False,
        source="arXiv 2407.10671; transformers/models/qwen2",
    ),
    Family(
        name="qwen3", gguf=("qwen3",), hugging_face=("Qwen3ForCausalLM",), model_type="qwen3",
        activation="silu", attn_sub_norm=False, ffn_sub_norm=False, qk_norm=True, qkv_bias=False,
        rope_theta=10000.0, norm_eps=1e-6, quantize_activations=False,
        source="arXiv 2505.09388; transformers/models/qwen3",
    ),
    Family(
        name="bitnet", gguf=("bitnet-b1.58", "bitnet-25"), hugging_face=("BitNetForCausalLM",), model_type="bitnet",
        activation="relu2", attn_sub_norm=True, ffn_sub_norm=True, qk_norm=False, qkv_bias=False,
        rope_theta=500000.0, norm_eps=1e-5, quantize_activations=True,
        source="BitNet b1.58 2B4T, arXiv 2504.12285; transformers/models/bitnet",
    ),
    Family(
        name="bitnet-silu", gguf=("bitnet",), hugging_face=("BitnetForCausalLM",), model_type="",
        activation="silu", attn_sub_norm=True, ffn_sub_norm=True, qk_norm=False, qkv_bias=False,
        rope_theta=10000.0, norm_eps=1e-5, quantize_activations=True,
        source="1bitLLM/bitnet_b1_58-3B, the reproduction of arXiv 2402.17764; its config says model_type llama",
    ),
)

BY_NAME = {family.name: family for family in FAMILIES}
BY_GGUF = {architecture: family for family in FAMILIES for architecture in family.gguf}
BY_CLASS = {class_name: family for family in FAMILIES for class_name in family.hugging_face}
BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES if family.model_type}
