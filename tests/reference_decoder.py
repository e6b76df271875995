"""A decoder in plain float64 NumPy, written from the papers: what lutra's kernels are compared with.

Shares with lutra only the reading of files.  Linears that meet int8 activations in lutra do so here too when
`int8` is set, so that the comparison is of arithmetic, not of quantisation.
"""

from __future__ import annotations

import numpy as np

from lutra.files.model_file import ModelFile
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.model.config import ModelConfig
from lutra.model.rope import rope_frequencies
from lutra.quantize.ternary import absmean


class ReferenceDecoder:
    """All logits of a token list at once: no cache, no chunks, no threads."""

    def __init__(self, file: ModelFile, config: ModelConfig):
        self.config = config
        self.weights = {name: tensor.read() for name, tensor in file.tensors.items()}
        if config.family.quantize_activations:
            for name, value in self.weights.items():
                if isinstance(value, np.ndarray) and value.ndim == 2 and name not in ("embed", "head"):
                    self.weights[name] = absmean(value.astype(np.float32))

    def logits(self, tokens: list[int]) -> np.ndarray:
        """float64 [len(tokens), vocab]."""
        c = self.config
        x = self._dense("embed")[tokens]
        for i in range(c.num_layers):
            p = f"layers.{i}."
            x = x + self._attention(p, self._norm(x, p + "attn_norm"))
            x = x + self._feed_forward(p, self._norm(x, p + "ffn_norm"))
        return self._linear("embed" if c.tied else "head", self._norm(x, "final_norm"))

    def _attention(self, p: str, x: np.ndarray) -> np.ndarray:
        c, m = self.config, len(x)
        q = self._linear(p + "q", x).reshape(m, c.num_heads, c.head_dim)
        k = self._linear(p + "k", x).reshape(m, c.num_kv_heads, c.head_dim)
        v = self._linear(p + "v", x).reshape(m, c.num_kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = self._norm(q, p + "q_norm"), self._norm(k, p + "k_norm")
        q, k = self._rotate(q), self._rotate(k)
        group = c.num_heads // c.num_kv_heads
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        scores = np.einsum("mhd,nhd->hmn", q, k) / np.sqrt(c.head_dim)
        scores[:, np.triu(np.ones((m, m), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hmn,nhd->mhd", weights, v).reshape(m, -1)
        return self._linear(p + "o", self._norm(out, p + "attn_sub_norm") if c.attn_sub_norm else out)

    def _feed_forward(self, p: str, x: np.ndarray) -> np.ndarray:
        gate, up = self._linear(p + "gate", x), self._linear(p + "up", x)
        act = np.maximum(gate, 0) ** 2 if self.config.activation == "relu2" else gate / (1 + np.exp(-gate))
        out = act * up
        return self._linear(p + "down", self._norm(out, p + "ffn_sub_norm") if self.config.ffn_sub_norm else out)

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        angle = np.arange(len(x))[:, None] * rope_frequencies(self.config, self.weights.get("rope_freqs"))
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.norm_eps) * self._dense(name)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, dense = self.weights[name], self._dense(name)
        if isinstance(weight, Adapted):  # int8 groups are runs of inputs in the weight's order
            x, weight = weight.inputs(x), weight.weight
            dense = weight.dequantize().astype(np.float64)
        if isinstance(weight, QTensor):
            x = _through_int8(x, weight.format.activation_group)
        bias = self.weights.get(name + ".bias")
        return x @ dense.T + (0 if bias is None else bias.astype(np.float64))

    def _dense(self, name: str) -> np.ndarray:
        weight = self.weights[name]
        return (weight if isinstance(weight, np.ndarray) else weight.dequantize()).astype(np.float64)


def _through_int8(x: np.ndarray, group: int) -> np.ndarray:
    """Round to 255 levels, one scale per row or per group of columns."""
    groups = x.reshape(len(x), -1, group or x.shape[1])
    scale = np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-5) / 127
    return (np.rint(groups / scale) * scale).reshape(x.shape)
