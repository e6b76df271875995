"""Decoders with random weights of any shape and format: what benchmarks run, without a download."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lutra.errors import RequestError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import TiledWeight, round_up
from lutra.model.config import ModelConfig
from lutra.model.weights import LayerWeights, Linear, Weights

# hidden, ffn, layers, heads, kv_heads, vocabulary; heads are hidden / heads wide
SHAPES = {
    "tiny": (256, 688, 4, 4, 2, 4096),
    "125m": (768, 2048, 12, 12, 12, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "2b": (2560, 6912, 30, 20, 5, 32000),  # BitNet b1.58 2B4T with a Llama-2 vocabulary
    "3b": (3200, 8640, 26, 32, 32, 32000),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
_SAMPLE_ROWS = 192  # rows that are really random; the rest repeats them, which costs a kernel the same


def random_config(shape: str, activation: str = "relu2") -> ModelConfig:
    """The config of a named shape.  Raises RequestError for a name that is not in SHAPES."""
    if shape not in SHAPES:
        raise RequestError(f"expected a shape of {', '.join(SHAPES)}, got {shape!r}; choose one of them")
    hidden, ffn, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    return ModelConfig(
        architecture="bitnet", hidden_size=hidden, ffn_size=ffn, num_layers=layers, num_heads=heads,
        num_kv_heads=kv_heads, head_dim=hidden // heads, vocab_size=vocabulary, max_context=4096, rope_theta=1e4,
        rope_scaling=None, norm_eps=1e-5, activation=activation, tied=True, attn_sub_norm=True, ffn_sub_norm=True,
        qk_norm=False, qkv_bias=False, bos_id=1, eos_ids=(2,), chat_template=None,
    )  # fmt: skip


def random_weights(config: ModelConfig, format: Format, order: str | None = None, seed: int = 0) -> Weights:
    """Every matrix in `format`, the tied embedding and head too; order forces a kernel family."""
    rng = np.random.default_rng(seed)
    c = config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim

    def linear(n: int, k: int) -> Linear:
        return Linear(_random_tiled(rng, format, n, k, order))

    layers = [
        LayerWeights(
            attn_norm=np.ones(c.hidden_size, np.float32),
            qkv=(linear(queries + 2 * keys, c.hidden_size),),
            q_norm=None,
            k_norm=None,
            attn_sub_norm=np.ones(queries, np.float32),
            o=linear(c.hidden_size, queries),
            ffn_norm=np.ones(c.hidden_size, np.float32),
            gate_up=linear(2 * round_up(c.ffn_size, 16), c.hidden_size),
            ffn_sub_norm=np.ones(c.ffn_size, np.float32),
            down=linear(c.hidden_size, c.ffn_size),
        )
        for _ in range(c.num_layers)
    ]
    head = linear(c.vocab_size, c.hidden_size)
    return Weights(head.weight, layers, np.ones(c.hidden_size, np.float32), head)


def _random_tiled(rng: np.random.Generator, format: Format, n: int, k: int, order: str | None) -> TiledWeight:
    """Tile a few random rows and repeat the tiles to the wanted N."""
    small = choose.tile(_random_tensor(rng, format, min(n, _SAMPLE_ROWS), k), order=order)
    block = 64  # rows of the largest tile of any order
    padded_n = round_up(n, block)
    repeated = {
        name: _repeat(getattr(small, name), padded_n, small.padded_n) for name in ("codes", "scales", "zeros", "mins")
    }
    return replace(small, n=n, padded_n=padded_n, **repeated)


def _repeat(values: np.ndarray, rows: int, sample_rows: int) -> np.ndarray:
    if values.size == 1:
        return values
    out = aligned((values.size * rows // sample_rows,), values.dtype)
    for start in range(0, out.size, values.size):
        out[start : start + values.size] = values[: out.size - start]
    return out


def _random_tensor(rng: np.random.Generator, format: Format, n: int, k: int) -> QTensor:
    groups = -(-k // format.group_size) if format.group_size else 1
    levels = 3 if format.alphabet == "trit" else 2**format.bits
    codes = rng.integers(0, levels, (n, k), dtype=np.uint8)
    size = (n, groups)
    dtype: Any = {"f16": np.float16, "f32": np.float32}[format.scale_dtype]
    scales = (rng.uniform(0.5, 1.5, size) / np.sqrt(k) / levels).astype(dtype)
    zeros = rng.integers(0, levels, size, dtype=np.uint8) if format.offset == "zeros" else None
    mins = (-scales * levels / 2).astype(dtype) if format.offset == "mins" else None
    return QTensor.from_codes(format, codes, scales, zeros, mins)
