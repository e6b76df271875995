"""What one token costs at least: bytes that must be read, and operations that must be done."""

from __future__ import annotations

from lutra.model.config import ModelConfig
from lutra.model.transformer import Transformer
from lutra.model.weights import Linear, Weights


def linears(weights: Weights) -> dict[str, list[Linear]]:
    """All matrices by their place in a layer, and the head."""
    places = {
        "qkv": [linear for layer in weights.layers for linear in layer.qkv],
        "o": [layer.o for layer in weights.layers],
        "gate_up": [layer.gate_up for layer in weights.layers],
        "down": [layer.down for layer in weights.layers],
    }
    return places | {"head": [weights.head]}


def operations(linear: Linear, rows: int) -> int:
    """Int8 operations of a matrix for `rows` rows of activations: 2 M N K, a multiply-add counting as two."""
    return 2 * rows * linear.weight.n * linear.weight.k


def prefill_operations(weights: Weights, rows: int) -> int:
    """Int8 operations of a prompt of `rows` tokens: every layer for every token, the head for the last."""
    return sum(
        operations(linear, 1 if place == "head" else rows)
        for place, found in linears(weights).items()
        for linear in found
    )


def position_bytes(config: ModelConfig, transformer: Transformer) -> int:
    """Bytes of keys and values of one position in all layers, as the cache stores them."""
    return transformer.buffers.position_bytes


def cache_bytes(bytes_per_position: int, prompt: int, gen: int) -> int:
    """Keys and values that the average one of `gen` tokens after `prompt` others reads, itself included."""
    return round(bytes_per_position * (prompt + (gen + 1) / 2))
