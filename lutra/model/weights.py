"""A decoder's weights in the order kernels read them, before anything is bound to buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lutra.errors import FormatError
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.formats.vectors import VectorWeight
from lutra.kernels import choose, embed
from lutra.kernels.stored import EXTENTS
from lutra.kernels.tiles import TiledWeight, interleave_rows
from lutra.kernels.tiles_vector import tile_gated

Matrix = np.ndarray | QTensor | Adapted | VectorWeight


@dataclass(frozen=True)
class Inputs:
    """The order and scale in which a linear wants its inputs: x[:, perm] * factors.

    perm     int32 [K]      factors  f32 [K]
    """

    perm: np.ndarray
    factors: np.ndarray

    def equals(self, other: Inputs) -> bool:
        return np.array_equal(self.perm, other.perm) and np.array_equal(self.factors, other.factors)


@dataclass(frozen=True)
class Linear:
    """One weight in tile order, with its bias.

    weight   TiledWeight
    bias     f32 [padded_n] or None
    column   where its outputs start in the row it writes
    inputs   how its inputs are put in order first; None for as they come
    """

    weight: TiledWeight
    bias: np.ndarray | None = None
    column: int = 0
    inputs: Inputs | None = None


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
    if isinstance(matrix, Adapted):
        return replace(tile(matrix.weight, bias, column, order), inputs=_inputs(matrix))
    if isinstance(matrix, VectorWeight) and order == "mad":
        matrix = matrix.as_int8()
    holds = order is not None and not isinstance(matrix, np.ndarray) and EXTENTS[order].holds(matrix.format)
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
    if _can_stack(matrices):
        return (tile(_stack(matrices), _stack_biases(matrices, biases), order=order),)
    columns = np.cumsum([0, *(matrix.shape[0] for matrix in matrices)])
    return tuple(tile(m, bias, int(column), order) for m, bias, column in zip(matrices, biases, columns, strict=False))


def gated(gate: Matrix, up: Matrix, order: str | None = None) -> Linear:
    """Gate and up as one weight; where their formats or inputs differ both are widened to f32."""
    if isinstance(gate, VectorWeight) and isinstance(up, VectorWeight) and gate.format == up.format:
        if order != "mad":
            return Linear(tile_gated(gate, up))
        gate, up = gate.as_int8(), up.as_int8()
    if not _can_stack([gate, up]):
        gate, up = widen(gate), widen(up)
    if isinstance(gate, Adapted) and isinstance(up, Adapted):
        both = interleave_rows(gate.weight, up.weight)
        return replace(tile(both, order=order), inputs=_inputs(gate))
    pair: tuple[Any, Any] = (gate, up)
    return tile(interleave_rows(*pair), order=order)


def widen(matrix: Matrix) -> np.ndarray:
    """Dense f32 of any weight."""
    return np.asarray(matrix, np.float32) if isinstance(matrix, np.ndarray) else matrix.dequantize()


def _inputs(matrix: Adapted) -> Inputs:
    """What the kernel of side-cars reads.

    raises   FormatError   a low-rank term, for which there is no kernel
    """
    if matrix.low_rank is not None:
        raise FormatError("expected a weight without a low-rank term, got one; widen it, or quantise without")
    k = matrix.shape[1]
    perm = np.arange(k, dtype=np.int32) if matrix.perm is None else matrix.perm
    factors = np.ones(k, np.float32) if matrix.input_scale is None else matrix.input_scale[perm]
    return Inputs(perm, factors)


def _can_stack(matrices: Sequence[Matrix]) -> bool:
    """Whether weights can be one: of one format, and with the same inputs."""
    adapted = [_inputs(matrix) for matrix in matrices if isinstance(matrix, Adapted)]
    same_inputs = not adapted or (len(adapted) == len(matrices) and all(adapted[0].equals(x) for x in adapted[1:]))
    return same_inputs and len({_kind(matrix) for matrix in matrices}) == 1


def _kind(matrix: Matrix) -> object:
    if isinstance(matrix, np.ndarray):
        return matrix.dtype.name
    if isinstance(matrix, VectorWeight):
        return matrix.format, matrix.books.tobytes()
    return matrix.weight.format if isinstance(matrix, Adapted) else matrix.format


def _stack(matrices: Sequence[Matrix]) -> Matrix:
    adapted = [matrix for matrix in matrices if isinstance(matrix, Adapted)]
    if adapted:
        return replace(adapted[0], weight=QTensor.concat([matrix.weight for matrix in adapted]))
    vectors = [matrix for matrix in matrices if isinstance(matrix, VectorWeight)]
    if vectors:
        return VectorWeight.concat(vectors)
    quantised = [matrix for matrix in matrices if isinstance(matrix, QTensor)]
    return QTensor.concat(quantised) if quantised else np.concatenate([np.asarray(matrix) for matrix in matrices])


def _stack_biases(matrices: Sequence[Matrix], biases: Sequence[np.ndarray | None]) -> np.ndarray | None:
    if all(bias is None for bias in biases):
        return None
    pairs = zip(matrices, biases, strict=True)
    return np.concatenate(
        [np.zeros(m.shape[0], np.float32) if b is None else np.asarray(b, np.float32) for m, b in pairs]
    )
