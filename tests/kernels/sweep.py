"""The whole cross product: every format, instruction set, kernel family, row block, M, and sizes around the tile.

    python -m tests.kernels.sweep [ISA ...]

Too long for every change; pytest runs a part of it.  Prints a line per family and instruction set, and fails at the
first result that is not integer.matmul to the last bit.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from lutra.compiler import targets
from lutra.formats import catalog, integer
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.kernels import choose, matmul_trit, stored
from lutra.kernels.activations import Activations, allocate
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles_lut import split_tables
from tests.kernels.linears import random_activations, random_weight, run, state

ROWS = (1, 2, 3, 7, 8, 16, 33)
SIZES = ((1, 1), (31, 32), (32, 33), (33, 64), (37, 97), (64, 131), (67, 300))  # N, K


def sweep(order: str, format: Format, isa: str) -> int:
    """Check one format in one family on one instruction set; the number of products compared."""
    compared = 0
    for n, k in SIZES:
        weight = random_weight(format, n, k, seed=n + k)
        tiled = choose.tile(weight, order=order)
        for tile_m in choose.row_blocks(order, isa):
            for m in ROWS:
                x = _activations(weight, order, m, -(-m // tile_m) * tile_m, tile_m, isa)
                y = aligned((len(x.xq), tiled.padded_n), np.float32)
                run(choose.bind(tiled, x, y, state(m), epilogue="store", tile_m=tile_m, isa=isa), m)
                want = integer.matmul(x.xq[:m, :k], x.xs[:m], weight)
                assert y[:m, :n].tobytes() == want.tobytes(), (order, format.name, isa, m, n, k, tile_m)
                compared += want.size
    return compared


def _activations(weight: QTensor, order: str, m: int, rows: int, tile_m: int, isa: str) -> Activations:
    """Half of them at +-127, with the tables that the family looks up in."""
    x = random_activations(weight, m, rows)
    if order == "lut":
        return replace(x, tables=split_tables(integer.build_tables(x.xq)))
    if order == "trit5":
        return _with_trits(x, weight, tile_m, isa)
    return x


def _with_trits(x: Activations, weight: QTensor, tile_m: int, isa: str) -> Activations:
    """The same activations in the wider rows that multiples of five need, as its kernel reads them."""
    k = weight.shape[1]
    wide = allocate(len(x.xq), k, weight.format, with_trits=True)
    wide.xq[:, :k], wide.xs[:], wide.sums[:] = x.xq[:, :k], x.xs, x.sums
    for step in matmul_trit.bind_inputs(wide, state(len(x.xq)), [tile_m], isa=isa):
        run(step, len(x.xq))
    return wide


def main(isas: list[str]) -> None:
    for isa in isas or [target.isa for target in targets.available()]:
        for order, extent in stored.EXTENTS.items():
            formats = [format for format in catalog.FORMATS.values() if order != "dense" and extent.holds(format)]
            if formats:
                total = sum(sweep(order, format, isa) for format in formats)
                print(f"{isa:9} {order:6} {len(formats):3} formats, {total} sums equal", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
