"""What the linears of a model read while it reads a text: rows sampled evenly, for errors of outputs.

A unit is a weight as kernels see it: q, k and v read the same, and gate and up are one matrix.

unit               tensors        what it reads
layers.0.qkv       q k v          norm(residual)
layers.0.o         o              attention's output, normalised where the family has a norm there
layers.0.gate_up   gate up        norm(residual)
layers.0.down      down           gated product, normalised where the family has a norm there
head               head           norm(residual) behind the last layer
Rows are taken before a quantised weight's inputs are rounded to int8: what a float model would read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lutra.model.config import ModelConfig
from lutra.model.float_layer import norm
from lutra.model.transformer import Transformer
from lutra.model.weights import LayerWeights

PARTS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
HEAD = "head"
NUM_ROWS = 256  # sampled, unless asked otherwise


def units(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Unit → its tensors, by lutra's names, in the order in which a step reads them; without the head."""
    return {
        f"layers.{index}.{part}": tuple(f"layers.{index}.{name}" for name in names)
        for index in range(config.num_layers)
        for part, names in PARTS.items()
    }


def collect(
    transformer: Transformer, windows: Sequence[Sequence[int]], num_rows: int = NUM_ROWS
) -> dict[str, np.ndarray]:
    """Read token windows, each from position 0; return f32 [about num_rows, K] of what every unit and the head read."""
    total = sum(map(len, windows))
    stride = max(total // num_rows, 1)
    found: dict[str, list[np.ndarray]] = {}
    seen = 0
    for window in windows:
        for start in range(0, len(window), transformer.chunk):
            tokens = window[start : start + transformer.chunk]
            rows = np.arange(-seen % stride, len(tokens), stride)
            seen += len(tokens)
            for unit, values in _read(transformer, tokens, start, rows):
                found.setdefault(unit, []).append(values)
    return {unit: np.concatenate(parts) for unit, parts in found.items()}


def _read(
    transformer: Transformer, tokens: Sequence[int], position: int, rows: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Run one chunk; yield what each unit reads in these rows."""
    buffers, weights = transformer.buffers, transformer.weights
    eps, c = transformer.config.norm_eps, transformer.config
    for number in transformer.run_stages(tokens, position):
        index, is_after_ffn = divmod(number - 1, 2)
        residual = buffers.residual[rows, : c.hidden_size]
        layer = weights.layers[max(index, 0)]
        if number and not is_after_ffn:
            attended = buffers.attended[rows, : c.num_heads * c.head_dim]
            yield f"layers.{index}.o", _normalised(attended, layer.attn_sub_norm, eps)
            yield f"layers.{index}.gate_up", _normalised(residual, layer.ffn_norm, eps)
            continue
        if number:
            gated = buffers.gated[rows, : c.ffn_size]
            yield f"layers.{index}.down", _normalised(gated, layer.ffn_sub_norm, eps)
        yield _next(weights.layers, index + 1, weights.final_norm, residual, eps)


def _next(
    layers: Sequence[LayerWeights], index: int, final_norm: np.ndarray, residual: np.ndarray, eps: float
) -> tuple[str, np.ndarray]:
    """What layer `index` reads first, or the head behind the last."""
    if index == len(layers):
        return HEAD, _normalised(residual, final_norm, eps)
    return f"layers.{index}.qkv", _normalised(residual, layers[index].attn_norm, eps)


def _normalised(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """RMSNorm of every row, f32 [rows, K]; a copy where there is no weight."""
    return x.copy() if weight is None else norm(x, weight[: x.shape[1]], eps)
