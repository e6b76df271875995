"""Which kernel multiplies a weight, and how many rows of activations it takes at once: two visible tables, one door.

What `lutra tune` measured on this computer (tuned.py) goes before the tables.  `tile` and `bind` are all that a model
needs: the first puts a weight into the order of the family chosen, the second binds that family's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from lutra.compiler import targets
from lutra.compiler.launch import Step
from lutra.errors import FormatError, KernelError
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.vectors import VectorFormat, VectorWeight
from lutra.kernels import (
    matmul_dense,
    matmul_lut,
    matmul_mad,
    matmul_trit,
    matmul_vector,
    tuned,
    vector_expand,
    vector_tables,
)
from lutra.kernels.activations import Activations
from lutra.kernels.plan import TILE_BLOCKS, tile_blocks
from lutra.kernels.stored import EXTENTS
from lutra.kernels.tiles import TiledWeight, tile_dense, tile_mad
from lutra.kernels.tiles_lut import tile_lut
from lutra.kernels.tiles_trit import tile_trit
from lutra.kernels.tiles_vector import tile_vector

FAMILIES: dict[str, ModuleType] = {"mad": matmul_mad, "lut": matmul_lut, "trit5": matmul_trit, "dense": matmul_dense}
TILE = {"mad": tile_mad, "lut": tile_lut, "trit5": tile_trit, "dense": tile_dense}

# ISA and bits → the family of a quantised weight where it is not mad: what pays for building tables.  Decode on one
# thread of Zen 5, GMAC/s mad : lut   1 bit        2 bits       3 bits      4 bits, groups of 32
#                            avx512   261 : 259    137 : 133    93 : 88     60 : 59      all at the memory roof
#                           avxvnni   141 : 209    127 : 116    60 : 70     62 : 51
#                              avx2    99 : 167    100 : 95     55 : 68     60 : 46
# With 4 rows at once lut keeps its rate and mad gains (avx2, 3 bits: 92; avxvnni: 164), so only 1 bit is a clear case.
ORDERS: dict[tuple[str, int], str] = {("avxvnni", 1): "lut", ("avx2", 1): "lut"}

# family and ISA → the row blocks worth having, ascending.  16 vector registers hold fewer sums than 32, and 128-bit
# registers four times fewer still
ROW_BLOCKS: dict[tuple[str, str], tuple[int, ...]] = {
    ("mad", "amx"): (1, 2, 4, 16, 32),
    ("mad", "avx512"): (1, 2, 4, 8),
    ("mad", "i8mm"): (1, 2, 4, 8),  # of half a tile (squares.py)
    ("mad", "portable"): (1, 2),
    ("dense", "portable"): (1, 2),
    # more rows share no lookups, they only spill: 32 rows ran 1.5 times as fast in blocks of 2 as in blocks of 4
    ("lut", "avx512"): (1, 2),
    ("lut", "portable"): (1,),
    # taking bytes apart costs as much as 3 or 4 rows' products: GMAC/s of blocks of 16, 8 rows on a Xeon 222, 204
    ("trit5", "amx"): (1, 2, 4, 16, 32),
    ("trit5", "avx512"): (1, 2, 4, 8, 16),
    ("trit5", "avxvnni"): (1, 2, 4, 8),
    ("trit5", "avx2"): (1, 2, 4, 8),
    ("trit5", "portable"): (1, 2),
}
USUAL_ROW_BLOCKS = (1, 2, 4)
# family and ISA → the row blocks for FEW_ROWS rows at most, a batch: also those between, each compiled when it is asked
# for, so that 5 rows cost no more than 5.  Only kernels that leave rows out which are not there, see matmul_mad.py
FEW_ROWS = 32
FEW_ROW_BLOCKS: dict[tuple[str, str], tuple[int, ...]] = {
    ("mad", "amx"): (1, 2, 3, 4, *TILE_BLOCKS["mad"]),
    ("trit5", "amx"): (1, 2, 4, *TILE_BLOCKS["trit5"]),
    ("mad", "avx512"): tuple(range(1, 14)),
    ("mad", "avxvnni"): (1, 2, 3, 4),
    ("mad", "avx2"): (1, 2, 3, 4),
}
# length of vectors → the most rows that are looked up; for more, the indices are turned into codes and multiplied.
# Microseconds of 2048 x 5632 on one core of a Xeon, tables and a row looked up : codes made + 1 to 8 rows multiplied.
# Vectors of 8: 120 : 620 + 400; of 4: 220 : 620 + 400; of 2: 520 : 650 + 400.  As int8 from the start: 400
LOOKUP_ROWS = {8: 8, 4: 4, 2: 1}
# Taking codes out of their words costs a block as much as the dot products of so many rows: mad, AVX-512, 2 bits, from
# the .062 instructions per weight of one row and the .034 of each of four
UNPACK_ROWS = 1.5
# The sums of FULL_ROWS fill half the registers of AVX-512.  Groups below LONG_GROUP keep sums of floats besides: there
# each row beyond costs SPILL_ROWS more, though a block that holds all rows wastes none, and 13 rows do not fit.
#     GMAC/s of 2048 x 5632 on one core of a Xeon, blocks of    8   10   12   13   14 rows
#     ternary                                                 315  326  334  337  237
#     4 bits, groups of 128                                   277  280  284  277  222
#     4 bits, groups of 32                                    204  208  197  155  141
FULL_ROWS, SPILL_ROWS, LONG_GROUP, MOST_ROWS_OF_GROUPS = 8, 0.2, 128, 12


def choose(weight: QTensor | VectorWeight | np.ndarray, isa: str | None = None) -> str:
    """The kernel family for a weight; "dense" for floats."""
    return "dense" if isinstance(weight, np.ndarray) else family(weight.format, *weight.shape, isa)


def family(format: Format | VectorFormat, n: int, k: int, isa: str | None = None) -> str:
    """The kernel family for a quantised weight [n, k]: measured clearly fastest, or a row of ORDERS, else "mad"."""
    return "vector" if isinstance(format, VectorFormat) else tuned.family(families(format, isa), format, n, k, isa)


def families(format: Format, isa: str | None = None) -> list[str]:
    """The families that take a format, the tables' first.  Raises FormatError where there is none."""
    usual = ORDERS.get((targets.choose(isa).vectors, format.bits), "mad")
    found = [order for order in (usual, *(order for order in TILE if order != usual)) if EXTENTS[order].holds(format)]
    if not found:
        raise FormatError(f"expected a format that some kernel takes, got {format.name}; quantise to another")
    return found


def tile(weight: QTensor | VectorWeight | np.ndarray, isa: str | None = None, order: str | None = None) -> TiledWeight:
    """The weight in the order of its family: dense for floats, else `order`, by default what `choose` says.

    Raises FormatError for element types no kernel reads, and for a format that the wanted order cannot hold.
    """
    if isinstance(weight, np.ndarray):
        return tile_dense(weight)
    if isinstance(weight, VectorWeight):  # another order takes the codes of 8 bits that they stand for
        return tile_vector(weight) if order in (None, "vector") else tile(weight.as_int8(), isa, order)
    order = order or choose(weight, isa)
    if not EXTENTS[order].holds(weight.format):
        raise FormatError(f"expected a format that {order} order takes, got {weight.format.name}; choose another")
    return TILE[order](weight)


def row_blocks(order: str, isa: str) -> tuple[int, ...]:
    """The values of tile_m that a family is used with on an instruction set, ascending."""
    return _row(ROW_BLOCKS, order, isa) or USUAL_ROW_BLOCKS


def _row(table: dict[tuple[str, str], tuple[int, ...]], order: str, isa: str) -> tuple[int, ...] | None:
    """The row of a target, or of that with the same vectors."""
    return table.get((order, isa), table.get((order, targets.named(isa).vectors)))


def tile_m(weight: TiledWeight, rows: int, isa: str | None = None) -> int:
    """Rows of activations per task for at most `rows` rows: the smallest block that holds them.

    Where none does, the block that computes them in the fewest instructions: blocks are computed almost whole, so ten
    rows cost twelve in blocks of 4 and sixteen in blocks of 8.  Of ROW_BLOCKS none larger than the one that was
    measured best for many rows.
    """
    isa = targets.choose(isa).isa
    usual = row_blocks(weight.order, isa)
    blocks = _row(FEW_ROW_BLOCKS, weight.order, isa) or usual if rows <= FEW_ROWS else usual
    spill, tiles = 0.0, tile_blocks(weight.order, isa)
    if weight.order == "mad" and weight.format is not None and 0 < weight.format.group_size < LONG_GROUP:
        spill, blocks = SPILL_ROWS, tuple(b for b in blocks if b <= MOST_ROWS_OF_GROUPS or b in tiles)
    found = tuned.row_block(weight, isa)
    many = found if found in usual and blocks == usual else blocks[-1]
    fitting = [block for block in blocks if block >= rows]
    if fitting:
        return fitting[0]
    if many in tiles:
        return many
    return min(blocks, key=lambda block: (block > many, _block_cost(rows, block, spill), -block))


def _block_cost(rows: int, block: int, spill: float) -> float:
    """What `rows` rows cost in blocks, in rows of dot products; `spill` for each row of a block beyond FULL_ROWS."""
    blocks, short = -(-rows // block), matmul_mad.SHORT.get(block, block)
    last = short if rows - (blocks - 1) * block <= short else block
    return (blocks - 1) * block + last + blocks * (UNPACK_ROWS + spill * max(0, block - FULL_ROWS))


def bind(
    weight: TiledWeight,
    x: Activations | np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    epilogue: str,
    bias: np.ndarray | None = None,
    column: int = 0,
    tile_m: int,
    isa: str | None = None,
) -> Step:
    """y = epilogue(x @ weight.T) by the weight's family; arguments as in matmul_mad.bind and matmul_dense.bind."""
    family = FAMILIES.get(weight.order)
    if family is None:
        raise KernelError(f"expected an order of {', '.join(FAMILIES)}, got {weight.order}; bind it with choose.steps")
    step: Step = family.bind(weight, x, y, state, epilogue=epilogue, bias=bias, column=column, tile_m=tile_m, isa=isa)
    return step


def steps(
    weight: TiledWeight,
    x: Activations | np.ndarray,
    y: np.ndarray,
    state: np.ndarray,
    *,
    rows: int,
    room: Callable[[int], np.ndarray],
    epilogue: str,
    bias: np.ndarray | None = None,
    column: int = 0,
    isa: str | None = None,
) -> list[Step]:
    """All launches of a matmul of at most `rows` rows; vectors need one before it.

    room       bytes → uint8 array of as many or more, written just before it is read
    the others as for `bind`
    """
    options: dict[str, Any] = dict(epilogue=epilogue, bias=bias, column=column, isa=isa)
    if not isinstance(weight.format, VectorFormat):
        return [bind(weight, x, y, state, tile_m=tile_m(weight, rows, isa), **options)]
    if rows <= LOOKUP_ROWS[weight.format.length] // weight.format.terms:
        assert isinstance(x, Activations)
        tables = room(vector_tables.tables_bytes(weight, rows))
        return matmul_vector.bind(weight, x, tables, y, state, tile_m=1, **options)
    step, codes = vector_expand.bind(weight, room(vector_expand.expanded_bytes(weight)), isa=isa)
    return [step, bind(codes, x, y, state, tile_m=tile_m(codes, rows, isa), **options)]
