"""Trit5 order: base-3 bytes of 128 rows side by side, in the order matmul_trit.py reads them; and its tables.

A byte holds five neighbouring weights of one row (formats/trits.py).  The bytes of 64 rows are a vector, and all of
them look up in the table of the same five activations; two vectors share its loads.

    codes  [tile of 128 rows][step of 5 k][vector 0..1][lane 0..15][byte 0..3]         row = 64 vector + 16 byte + lane

So one dot4 with the weights 1 0 0 0 picks 16 neighbouring rows out of a vector of sums and widens them to int32.
scales are in mad order (tiles.py), rows padded to 128.

A table is the half table of formats/trits.build_trit_tables as bytes, 128 entries of which 122 are used:

    entry = low + 25 * high          |low| <= 24, |high| <= 25

25 is the least factor that lets five looked-up bytes, of either sign, be added before they must be widened
(5 * 25 = 125 <= 127).  Powers of two would shift instead of multiply, but allow three.

In memory a table is 64 bytes, its `parts` (trit_tables.py), and becomes 256 in registers.  Whole tables would be read
from L2 four times as fast as the codes from memory: one thread streamed 23 GB/s of codes so, and 36 with parts.
"""

from __future__ import annotations

import numpy as np

from lutra.formats import packing, trits
from lutra.formats.qtensor import QTensor
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight, interleave_pairs, round_up

VECTOR = 64  # rows, and bytes, of a vector
VECTORS = 2  # of a tile
TILE = VECTORS * VECTOR
ENTRIES = 128  # of a half table in registers
PARTS = 64  # bytes of a table in memory
HIGH = 25  # what a high byte counts
LARGEST = 25  # of a low or a high byte
GROUP = 4  # steps that meet the activations of one dot4 each, see trit_places.py
GROUP_COLUMNS = trits.TRITS * GROUP
GROUPS = 3  # that matmul_trit_tiles.py takes at once
DEPTH = round_up(GROUPS * GROUP_COLUMNS, CHUNK)
STEPS = 5  # lookups that can be added as bytes: STEPS * LARGEST < 128


def table_columns(k: int) -> int:
    """Activations of a row of k weights as this order's kernels read them: whole groups, whole chunks."""
    return place_columns(trits.num_steps(k))


def place_columns(steps: int) -> int:
    """Columns that trit_places.py reads and writes, a chunk for each group of steps; those of a tile at least."""
    return max(DEPTH, round_up((steps - 1) // GROUP * GROUP_COLUMNS + CHUNK, CHUNK))


def tile_trit(weight: QTensor) -> TiledWeight:
    """Put ternary weights with one scale per row into trit5 order.  Raises FormatError for other formats."""
    trits.check_trits(weight)
    n, k = weight.shape
    tiles, steps = -(-n // TILE), trits.num_steps(k)
    codes = aligned((tiles, steps, VECTORS, ROWS, VECTOR // ROWS), np.uint8)
    for tile in range(tiles):  # one at a time, so that temporaries stay in the cache
        rows = weight.packed[tile * TILE : (tile + 1) * TILE]
        levels = packing.unpack(rows, 2, k).view(np.int8) - np.int8(1)
        packed = _pad_rows(trits.pack_trits(levels))  # [128, steps]
        codes[tile] = packed.reshape(VECTORS, VECTOR // ROWS, ROWS, steps).transpose(3, 0, 2, 1)
    none = aligned(1, np.uint8)
    return TiledWeight(
        "trit5", weight.format, "", n, k, round_up(n, PAIR), table_columns(k),
        codes=codes.reshape(-1), scales=interleave_pairs(_pad_rows(weight.scales)), zeros=none, mins=none,
    )  # fmt: skip


def _pad_rows(rows: np.ndarray) -> np.ndarray:
    missing = -len(rows) % TILE
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows
