"""A decoder's weights in the order kernels read them, before anything is bound to buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from lutra.formats import sidecars
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
class LowRank:
    """What is added to a product with a weight: u @ (v @ x), both dense, x in its own order and not quantised.

    u   [N, r]      v   [r, K]
    """

    u: TiledWeight
    v: TiledWeight


@dataclass(frozen=True)
class Linear:
    """One weight in tile order, with its bias.

    weight   TiledWeight
    bias     f32 [padded_n] or None
    column   where its outputs start in the row it writes
    inputs   how its inputs are put in order first; None for as they come
    low_rank its low-rank term, None for none
    """

    weight: TiledWeight
    bias: np.ndarray | None = None
    column: int = 0
    inputs: Inputs | None = None
    low_rank: LowRank | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that a product reads."""
        beside = (self.low_rank.u, self.low_rank.v) if self.low_rank else ()
        return sum(weight.num_bytes for weight in (self.weight, *beside))


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
        return sum(linear.num_bytes for linear in (*linears, self.head))


def tile(matrix: Matrix, bias: np.ndarray | None = None, column: int = 0, order: str | None = None) -> Linear:
    """Put a weight into `order` if that takes its format, else into the order of the kernel that `choose` picks."""
    if isinstance(matrix, Adapted):
        bare = tile(matrix.weight, bias, column, order)
        return replace(bare, inputs=_inputs(matrix), low_rank=_low_rank(matrix))
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
    pair: tuple[Any, Any] = (_bare(gate), _bare(up))
    both = interleave_rows(*pair)
    return tile(_adapted([gate, up], both, lambda parts: interleave_rows(*parts)), order=order)


def widen(matrix: Matrix) -> np.ndarray:
    """Dense f32 of any weight."""
    return np.asarray(matrix, np.float32) if isinstance(matrix, np.ndarray) else matrix.dequantize()


def _inputs(matrix: Matrix) -> Inputs | None:
    """What the kernel that puts inputs in order reads, None where they are in order."""
    if not isinstance(matrix, Adapted) or (matrix.perm is None and matrix.input_scale is None):
        return None
    k = matrix.shape[1]
    perm = np.arange(k, dtype=np.int32) if matrix.perm is None else matrix.perm
    factors = np.ones(k, np.float32) if matrix.input_scale is None else matrix.input_scale[perm]
    return Inputs(perm, factors)


def _low_rank(matrix: Adapted) -> LowRank | None:
    if matrix.low_rank is None or not len(matrix.low_rank[1]):
        return None
    u, v = (choose.tile(np.ascontiguousarray(part)) for part in matrix.low_rank)
    return LowRank(u, v)


def _bare(matrix: Matrix) -> Matrix:
    """A weight without its side-cars."""
    return matrix.weight if isinstance(matrix, Adapted) else matrix


def _adapted(matrices: Sequence[Matrix], whole: Any, merge: Callable[[list[np.ndarray]], np.ndarray]) -> Matrix:
    """`whole`, which weights with the same inputs were merged to, with the side-cars they had."""
    one = next((matrix for matrix in matrices if isinstance(matrix, Adapted)), None)
    if one is None:
        return cast(Matrix, whole)
    terms = [matrix.low_rank if isinstance(matrix, Adapted) else None for matrix in matrices]
    low = sidecars.join(terms, [matrix.shape[0] for matrix in matrices])
    return Adapted(whole, one.perm, one.input_scale, low and (merge(low[0]), low[1]))


def _can_stack(matrices: Sequence[Matrix]) -> bool:
    """Whether weights can be one: of one format, and with the same inputs."""
    first, *others = [_inputs(matrix) for matrix in matrices]
    same_inputs = all(other is None if first is None else other and first.equals(other) for other in others)
    return same_inputs and len({_kind(matrix) for matrix in matrices}) == 1


def _kind(matrix: Matrix) -> object:
    if isinstance(matrix, np.ndarray):
        return matrix.dtype.name
    if isinstance(matrix, VectorWeight):
        return matrix.format, matrix.books.tobytes()
    return matrix.weight.format if isinstance(matrix, Adapted) else matrix.format


def _stack(matrices: Sequence[Matrix]) -> Matrix:
    if any(isinstance(matrix, Adapted) for matrix in matrices):
        return _adapted(matrices, _stack([_bare(matrix) for matrix in matrices]), np.concatenate)
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
