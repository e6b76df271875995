"""What may stand beside a quantised weight: an order of its inputs, a scale for each, a low-rank correction.

    y = weight @ quantised((x * input_scale)[perm])  +  U @ (V @ x)                 `matmul` is that, to the last bit

A side-car belongs to one weight of one model and says nothing about bits, so it is no axis of a Format.

Sources   perm: GPTQ with act-order, arXiv 2210.17323; input_scale: AWQ, arXiv 2306.00978, where it is not folded into
          the layer before; low_rank: LoRC in ZeroQuant-FP, arXiv 2307.09782, section 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError
from lutra.formats import integer
from lutra.formats.qtensor import QTensor
from lutra.formats.reduce import PARTIALS, dense_spec

LowRank = tuple[list[np.ndarray], np.ndarray]  # of several weights: U of each, and V


@dataclass(frozen=True)
class Adapted:
    """A weight [N, K] with its side-cars; those that are None do nothing.

    weight       QTensor (N, K), its columns in the order of perm
    perm         int32 [K]    column j of weight belongs to input perm[j]
    input_scale  f32 [K]      inputs are multiplied with it, in their own order
    low_rank     (U f32 [N, r], V f32 [r, K]), V in the inputs' own order
    raises       FormatError  shapes or dtypes that do not fit the weight, a perm that is none, values not finite

    >>> from lutra.formats import catalog
    >>> w = QTensor.from_codes(catalog.ternary(), np.array([[2, 0]], np.uint8), np.ones((1, 1), np.float32))
    >>> Adapted(w, perm=np.array([1, 0], np.int32)).dequantize().tolist()        # +1 belongs to input 1
    [[-1.0, 1.0]]
    """

    weight: QTensor
    perm: np.ndarray | None = None
    input_scale: np.ndarray | None = None
    low_rank: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self) -> None:
        n, k = self.weight.shape
        if self.perm is not None:
            _expect("perm", self.perm, np.int32, (k,))
            if not np.array_equal(np.sort(self.perm), np.arange(k)):
                raise FormatError(f"perm: expected each of 0 to {k - 1} once, got others; the file is damaged")
        if self.input_scale is not None:
            _expect("input_scale", self.input_scale, np.float32, (k,))
        if self.low_rank is not None:
            u, v = self.low_rank
            rank = len(v) if v.ndim else 0
            _expect("low_rank U", u, np.float32, (n, rank))
            _expect("low_rank V", v, np.float32, (rank, k))

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """What the weight is multiplied with: f32 [M, K] to f32 [M, K], one rounding for the scale."""
        scaled = x if self.input_scale is None else x * self.input_scale
        return scaled if self.perm is None else scaled[:, self.perm]

    def dequantize(self) -> np.ndarray:
        """The matrix all this is, f32 [N, K]: for looking at and measuring; `matmul` is what is computed with."""
        values = self.weight.dequantize()
        if self.perm is not None:
            ordered = np.empty_like(values)
            ordered[:, self.perm] = values
            values = ordered
        if self.input_scale is not None:
            values = values * self.input_scale
        if self.low_rank is not None:
            u, v = self.low_rank
            values = values + u @ v
        return values


def matmul(x: np.ndarray, w: Adapted) -> np.ndarray:
    """Multiply: the weight as its format says, the low-rank term in floats as reduce.dense_spec, V first.

    x        f32 [M, K]
    returns  f32 [M, N]    the sum of both, rounded once
    """
    if w.weight.format.is_float:
        y = dense_spec(w.inputs(x), w.weight.dequantize())
    else:
        y = integer.matmul(*integer.quantize_activations(w.inputs(x), w.weight.format.activation_group), w.weight)
    if w.low_rank is None:
        return y
    u, v = w.low_rank
    total: np.ndarray = y + dense_spec(dense_spec(x, v), u)
    return total


def join(pairs: Sequence[tuple[np.ndarray, np.ndarray] | None], rows: Sequence[int]) -> LowRank | None:
    """The low-rank terms of weights that are to be one, as one: the same sums, to the last bit.

    pairs    U f32 [N, r] and V f32 [r, K] of each weight, None where it has no such term
    rows     N of each weight
    returns  each U with columns for the others', f32 [N, R], and all V below each other, f32 [R, K]; None where no
             weight has one.  Ranks are filled up with zeros to whole PARTIALS, so that a sum's parts stay the same

    >>> us, v = join([(np.ones((1, 1)), np.full((1, 3), 2)), None], [1, 1])
    >>> us[0].tolist(), us[1].tolist(), v[:, 0].tolist()
    ([[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]], [2, 0, 0, 0])
    """
    there = [pair for pair in pairs if pair is not None and len(pair[1])]
    if not there:
        return None
    vs = [np.pad(v, ((0, -len(v) % PARTIALS), (0, 0))) for _, v in there]
    ranks = iter(np.cumsum([0, *map(len, vs)]))
    us = [np.zeros((n, sum(map(len, vs))), np.float32) for n in rows]
    for wide, pair in zip(us, pairs, strict=True):
        if pair is not None and len(pair[1]):
            first = int(next(ranks))
            wide[:, first : first + len(pair[1])] = pair[0]
    return us, np.concatenate(vs)


def _expect(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise FormatError(f"{name}: expected {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}; "
                          "it belongs to another weight")  # fmt: skip
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise FormatError(f"{name}: expected finite values, got inf or nan; the file is damaged")
