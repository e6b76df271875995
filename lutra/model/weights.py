"""A decoder's weights in the order kernels read them, before anything is bound to buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.formats.qtensor import QTensor
from lutra.kernels import choose, embed
from lutra.kernels.stored import EXTENTS
from lutra.kernels.tiles import TiledWeight, interleave_rows

Matrix = np.ndarray | QTensor


@dataclass(frozen=True)
class Linear:
    """One weight in tile order, with its bias.

    weight   TiledWeight
    bias     f32 [padded_n] or None
    column   where its outputs start in the row it writes
    """

    weight: TiledWeight
    bias: np.ndarray | None = None
    column: int = 0


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer.  Norm weights are f32 vectors; None where the family has none.

    qkv       one Linear, or several that write side by side when their formats differ
    gate_up   rows of gate and up alternating in tiles of 16
    """

    attn_norm: np.ndarray
    qkv: tuple[Linear, ...]
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    attn_sub_norm: np.ndarray | None
    o: Linear
    ffn_norm: np.ndarray
    gate_up: Linear
    ffn_sub_norm: np.ndarray | None
    down: Linear


@dataclass(frozen=True)
class Weights:
    """A whole decoder.  `head` is `embed` when they are tied: one copy in memory."""

    embed: TiledWeight
    layers: list[LayerWeights]
    final_norm: np.ndarray
    head: Linear

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that one decode step reads."""
        linears = [linear for layer in self.layers for linear in (*layer.qkv, layer.o, layer.gate_up, layer.down)]
        return sum(linear.weight.num_bytes for linear in (*linears, self.head))


def tile(matrix: Matrix, bias: np.ndarray | None = None, column: int = 0, order: str | None = None) -> Linear:
    """Put a weight into `order` if that takes its format, else into the order of the kernel that `choose` picks."""
    holds = order is not None and isinstance(matrix, QTensor) and EXTENTS[order].holds(matrix.format)
    weight = choose.tile(matrix, order=order if holds else None)
    padded = None
    if bias is not None:
        padded = np.zeros(weight.padded_n, np.float32)
        padded[: len(bias)] = np.asarray(bias, np.float32)
    return Linear(weight, padded, column)


def table_and_head(table: Matrix, head: Matrix | None, order: str | None = None) -> tuple[TiledWeight, Linear]:
    """The embedding in an order that rows can be taken out of, and the head; one weight where one order serves both.

    head   None where it is the embedding
    """
    last = tile(table if head is None else head, order=order)
    if head is None and last.weight.order in embed.ORDERS:
        return last.weight, last
    return tile(table, order="mad").weight, last


def side_by_side(
    matrices: Sequence[Matrix], biases: Sequence[np.ndarray | None], order: str | None = None
) -> tuple[Linear, ...]:
    """Weights that read the same input: one Linear if they share a format, else one each, in columns."""
    if _same_format(matrices):
        return (tile(_stack(matrices), _stack_biases(matrices, biases), order=order),)
    columns = np.cumsum([0, *(matrix.shape[0] for matrix in matrices)])
    return tuple(tile(m, bias, int(column), order) for m, bias, column in zip(matrices, biases, columns, strict=False))


def gated(gate: Matrix, up: Matrix, order: str | None = None) -> Linear:
    """Gate and up as one weight; where their formats differ both are widened to f32."""
    pair: tuple[Any, Any] = (gate, up) if _same_format([gate, up]) else (widen(gate), widen(up))
    return tile(interleave_rows(*pair), order=order)


def widen(matrix: Matrix) -> np.ndarray:
    """Dense f32 of any weight."""
    return matrix.dequantize() if isinstance(matrix, QTensor) else np.asarray(matrix, np.float32)


def _same_format(matrices: Sequence[Matrix]) -> bool:
    return len({matrix.format if isinstance(matrix, QTensor) else matrix.dtype.name for matrix in matrices}) == 1


def _stack(matrices: Sequence[Matrix]) -> Matrix:
    quantised = [matrix for matrix in matrices if isinstance(matrix, QTensor)]
    return QTensor.concat(quantised) if quantised else np.concatenate([np.asarray(matrix) for matrix in matrices])


def _stack_biases(matrices: Sequence[Matrix], biases: Sequence[np.ndarray | None]) -> np.ndarray | None:
    if all(bias is None for bias in biases):
        return None
    pairs = zip(matrices, biases, strict=True)
    return np.concatenate(
        [np.zeros(m.shape[0], np.float32) if b is None else np.asarray(b, np.float32) for m, b in pairs]
    )
