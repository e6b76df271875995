"""How many bytes a weight has in each tile order: what must be there before a kernel may read it.

Kernels trust the sizes they are bound to and check nothing.  A weight whose arrays come out of a file passes `check`
first, so machine code never reads beyond them.  Values need no check: every code, 3 of a ternary weight too, is a
number to multiply with or an index masked to its table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutra.errors import FormatError
from lutra.formats import trits
from lutra.formats.format import Format
from lutra.formats.qtensor import BESIDE
from lutra.formats.scales import DTYPES
from lutra.formats.vectors import VectorFormat
from lutra.kernels import tiles_trit, tiles_vector
from lutra.kernels.buffers import LINE_BYTES
from lutra.kernels.tiles import CHUNK, DENSE_DTYPES, PAIR, TiledWeight, round_up
from lutra.kernels.tiles_lut import MAX_BITS, TILE

MAX_ROW = 1 << 16  # weights that one int32 sum may hold, as in formats/qtensor.py
ARRAYS = ("codes", *BESIDE, "books")
DTYPE_BYTES = {name: dtype.itemsize for dtype, name in DENSE_DTYPES.items()}


@dataclass(frozen=True)
class Extent:
    """What a tile order stores.

    tile        rows that are stored together; arrays hold a multiple
    holds       format → whether it takes it; None stands for dense
    columns     (format, k) → padded_k
    row_bytes   (format, dtype, k) → bytes of codes per row
    """

    tile: int
    holds: Callable[[Format | None], bool]
    columns: Callable[[Format | None, int], int]
    row_bytes: Callable[[Format | None, str, int], int]


def _packed_columns(format: Format | None, k: int) -> int:
    assert format is not None
    return format.padded_k(k)


def _packed_bytes(format: Format | None, dtype: str, k: int) -> int:
    assert format is not None
    return format.row_bytes(k)


def _trit_columns(format: Format | None, k: int) -> int:
    return tiles_trit.table_columns(k)


def _trit_bytes(format: Format | None, dtype: str, k: int) -> int:
    return trits.num_steps(k)


def _has_trits(format: Format | None) -> bool:
    has_rows = isinstance(format, Format) and format.alphabet == "trit" and format.group_size == 0
    return has_rows and _is_plain(format) and format.offset == "none"


def _dense_columns(format: Format | None, k: int) -> int:
    return round_up(k, CHUNK) if format is None else format.padded_k(k)


def _dense_bytes(format: Format | None, dtype: str, k: int) -> int:
    return _dense_columns(format, k) * (DTYPE_BYTES[dtype] if format is None else 1)


def _is_plain(format: Format | None) -> bool:
    return format is not None and format.is_plain


def _has_whole_levels(format: Format | None) -> bool:
    return isinstance(format, Format) and not format.is_float


def _has_floats(format: Format | None) -> bool:
    return not _has_whole_levels(format) and not _has_vectors(format)


def _has_vectors(format: Format | VectorFormat | None) -> bool:
    return isinstance(format, VectorFormat)


def _has_few_planes(format: Format | None) -> bool:
    is_counted = isinstance(format, Format) and format.storage == "planes" and format.levels == "uniform"
    return is_counted and format.bits <= MAX_BITS


EXTENTS: dict[str, Extent] = {
    "mad": Extent(PAIR, _has_whole_levels, _packed_columns, _packed_bytes),
    "lut": Extent(TILE, _has_few_planes, _packed_columns, _packed_bytes),
    "trit5": Extent(tiles_trit.TILE, _has_trits, _trit_columns, _trit_bytes),
    "vector": Extent(tiles_vector.TILE, _has_vectors, _packed_columns, _packed_bytes),
    "dense": Extent(PAIR, _has_floats, _dense_columns, _dense_bytes),
}
MAX_PADDING = max(extent.tile for extent in EXTENTS.values())  # rows beyond N, at most: buffers have no room for more


def array_bytes(weight: TiledWeight) -> dict[str, int]:
    """Bytes of each of ARRAYS by the weight's sizes; 1 where the format has none.

    raises   FormatError   an order there is not, or one that does not take the format
    """
    extent, format = EXTENTS.get(weight.order), weight.format
    if extent is None:
        raise FormatError(f"expected an order of {', '.join(EXTENTS)}, got {weight.order[:80]!r}; update lutra")
    if not extent.holds(format):
        name = weight.dtype if format is None else format.name
        raise FormatError(f"expected a format that {weight.order} order takes, got {name}; pack the model again")
    rows = round_up(weight.padded_n, extent.tile)
    sizes = dict.fromkeys(ARRAYS, 1) | {"codes": rows * extent.row_bytes(format, weight.dtype, weight.k)}
    if format is not None:
        beside = format.beside(weight.k)
        sizes |= {name: rows * columns * DTYPES[dtype].itemsize for name, (dtype, columns) in beside.items()}
    if isinstance(format, VectorFormat):
        one = tiles_vector.side_bytes(format)
        sizes["books"] = 2 * one if weight.books.nbytes == 2 * one else one
    return sizes


def check(weight: TiledWeight) -> None:
    """Refuse a weight whose sizes and arrays do not belong together.

    raises   FormatError   padded sizes, array sizes, an order there is not, an array that is not on a cache line
    """
    sizes, format = array_bytes(weight), weight.format
    if weight.padded_n % PAIR or not 0 < weight.n <= weight.padded_n < weight.n + MAX_PADDING:
        raise _wrong("padded_n", f"whole pairs of {PAIR} rows for n={weight.n}", weight.padded_n)
    padded_k = EXTENTS[weight.order].columns(format, weight.k)
    if weight.padded_k != padded_k:
        raise _wrong("padded_k", f"{padded_k} for k={weight.k}", weight.padded_k)
    if format is not None and (format.group_size or padded_k) > MAX_ROW:
        raise _wrong("k", f"at most {MAX_ROW} weights to a scale", weight.k)
    for name, num_bytes in sizes.items():
        array = getattr(weight, name)
        if array.nbytes != num_bytes:
            raise _wrong(name, f"{num_bytes} bytes", array.nbytes)
        if array.ctypes.data % LINE_BYTES:
            raise _wrong(name, "an address on a cache line", f"one {array.ctypes.data % LINE_BYTES} bytes behind it")
    if isinstance(format, VectorFormat):
        tiles_vector.check_books(weight)


def _wrong(field: str, expected: str, got: object) -> FormatError:
    return FormatError(f"{field}: expected {expected}, got {got}; pack the model again")
