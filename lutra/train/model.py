"""The decoder of BitNet b1.58 2B4T in PyTorch, small; and its float twin, a Llama.

Both have RMSNorm before attention and before the feed-forward, rotary positions in the half-rotation order, grouped
key/value heads, the embedding as head, no biases.  Ternary weights come with one more norm (SubLN) in front of `o_proj`
and of `down_proj` and with `relu(gate)**2 * up`; float weights with `silu(gate) * up`, as every engine can run it.
Modules carry the names of the Hugging Face checkpoint, so a state dict exports by name.

Sources   BitNet b1.58 2B4T, arXiv 2504.12285, section 2; Llama, arXiv 2302.13971, section 2.2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lutra.train.bitlinear import BitLinear, share_input


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder.  Every size that a BitLinear sums over should be a multiple of 64.

    weights   "ternary" (BitNet b1.58) or "float" (Llama)
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    ffn_size: int = 768
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    weights: str = "ternary"

    def linear(self, num_inputs: int, num_outputs: int) -> nn.Linear:
        """A projection of the kind of weights that was chosen."""
        return (BitLinear if self.weights == "ternary" else nn.Linear)(num_inputs, num_outputs, bias=False)

    def sub_norm(self, size: int) -> nn.Module:
        """The norm in front of an output projection; float weights need none."""
        return nn.RMSNorm(size, self.norm_eps) if self.weights == "ternary" else nn.Identity()


def share(x: torch.Tensor, *layers: nn.Linear) -> tuple[torch.Tensor, ...]:
    """Apply several projections to one x; ternary ones quantise it once."""
    if all(isinstance(layer, BitLinear) for layer in layers):
        return share_input(x, *layers)
    return tuple(layer(x) for layer in layers)


def rotary_table(config: DecoderConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, f32 [length, head_dim / 2], of position times frequency."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angle = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-exponent)
    return angle.cos(), angle.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (i, i + head_dim / 2) of each head.  x [..., T, head_dim], cos and sin [T, head_dim / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(head_dim), past only) v; all [B, heads, T, head_dim].

    Written out because on CPU, forward and backward, it takes 0.6 (T = 512) to 0.4 (T = 256) of the time of PyTorch's
    fused `scaled_dot_product_attention` in bfloat16.
    """
    length = q.shape[-2]
    future = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # [B * heads, T, head_dim]
    scores = torch.baddbmm(future.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Causal attention with grouped heads and a norm in front of the output projection."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = config.linear(config.hidden_size, q_size)
        self.k_proj = config.linear(config.hidden_size, kv_size)
        self.v_proj = config.linear(config.hidden_size, kv_size)
        self.attn_sub_norm = config.sub_norm(q_size)
        self.o_proj = config.linear(q_size, config.hidden_size)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, heads * head_dim] -> [B, heads, T, head_dim]"""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.heads(y) for y in share(x, self.q_proj, self.k_proj, self.v_proj))
        cos, sin = cos.to(v.dtype), sin.to(v.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        sharing = self.config.num_heads // self.config.num_kv_heads
        k, v = k.repeat_interleave(sharing, 1), v.repeat_interleave(sharing, 1)
        y = causal_attention(q, k, v).unflatten(0, (len(x), -1))  # [B, heads, T, head_dim]
        return self.o_proj(self.attn_sub_norm(y.transpose(1, 2).flatten(2).float()))


class FeedForward(nn.Module):
    """Gated feed-forward: squared ReLU and a norm in front of the down projection, or SiLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = config.linear(config.hidden_size, config.ffn_size)
        self.up_proj = config.linear(config.hidden_size, config.ffn_size)
        self.ffn_sub_norm = config.sub_norm(config.ffn_size)
        self.down_proj = config.linear(config.ffn_size, config.hidden_size)
        self.activation = squared_relu if config.weights == "ternary" else F.silu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = share(x, self.gate_proj, self.up_proj)
        return self.down_proj(self.ffn_sub_norm((self.activation(gate) * up).float()))


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


class Layer(nn.Module):
    """One decoder layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """Embedding, layers and final norm: what Hugging Face calls `model`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)


class Decoder(nn.Module):
    """The language model.  `forward(ids int [B, T])` returns logits float [B, T, vocab_size]."""

    cos: torch.Tensor  # f32 [max_context, head_dim / 2]
    sin: torch.Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        cos, sin = rotary_table(config, config.max_context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.model.embed_tokens(ids)  # [B, T, hidden]
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)
