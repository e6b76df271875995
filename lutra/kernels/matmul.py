"""The one door to every matmul: which family takes a weight, its tile order, and the launch of y = x @ w.T."""

from __future__ import annotations

import numpy as np

from lutra.compiler.launch import Step
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose, matmul_dense, matmul_lut, matmul_mad
from lutra.kernels.activations import Activations
from lutra.kernels.tiles import TiledWeight, tile_dense, tile_mad
from lutra.kernels.tiles_lut import tile_lut

_BIND = {"mad": matmul_mad.bind, "lut": matmul_lut.bind, "dense": matmul_dense.bind}
_TILE = {"mad": tile_mad, "lut": tile_lut}


def tile(weight: QTensor | np.ndarray, order: str | None = None) -> TiledWeight:
    """Put a weight [N, K] into the tile order of `order`, or of the family `choose` picks for it."""
    if not isinstance(weight, QTensor):
        return tile_dense(weight)
    return _TILE[order or choose.order(weight.format)](weight)


def bind(
    weight: TiledWeight,
    x: Activations | np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    rows: int,
    epilogue: str = "store",
    bias: np.ndarray | None = None,
    y_column: int = 0,
    isa: str | None = None,
) -> Step:
    """y[:, y_column ...] = epilogue(x @ w.T + bias) for state[0] rows.

    x       Activations for low-bit weights, f32 [rows, stride] for dense ones
    y       f32 [rows, stride]
    rows    the most rows this launch will see; decides the row block
    """
    options = {"epilogue": epilogue, "bias": bias, "y_column": y_column, "isa": isa}
    return _BIND[weight.order](weight, x, y, state, tile_m=choose.tile_m(weight, rows, isa), **options)
