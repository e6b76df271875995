"""Vector order: the indices of 128 rows as matmul_vector.py reads them, and the books as vector_tables.py does.

A tile is four pairs (tiles.py); its side 0 is their first 16 rows each, its side 1 their last.  Gate and up alternate
in tiles of 16, so gate is one side and up the other, and each may have books of its own.

    codes    [tile of 128 rows][vector along K][book][side 0..1][pair 0..3][row 0..15]     one index each
    books    [side 0..1, or one for both][book]:  [part][centroid][byte 0..3], then        level + 128
             the same as [place in the vector][centroid]
    scales   f32 in mad order, as if rows were whole tiles

A part of a centroid is four levels that meet the same four activations: 8 weights are two parts.  Vectors of two
share four activations; part 0 meets the first two, part 1 the last two, and the other bytes of both are 0.
Tables are made of parts, by dot products; vector_expand.py looks levels up place by place.
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats.vectors import CENTROIDS, VectorFormat, VectorWeight, check_levels
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import PAIR, ROWS, TiledWeight, interleave_pairs, interleave_rows, round_up

TILE = 128  # rows
PAIRS = TILE // PAIR
SIDE = TILE // 2  # indices of a vector and side: one register
PART_BYTES = 4 * CENTROIDS
PLACE_BYTES = CENTROIDS


def parts_of(format: VectorFormat) -> int:
    """Parts of a centroid."""
    return 1 if format.length == 4 else 2


def book_bytes(format: VectorFormat) -> int:
    """Bytes of one book, of both its forms."""
    return parts_of(format) * PART_BYTES + format.length * PLACE_BYTES


def side_bytes(format: VectorFormat) -> int:
    """Bytes of the books of one side."""
    return format.terms * book_bytes(format)


def sides_of(weight: TiledWeight) -> int:
    """How many sides have books: 1 where both share them."""
    assert isinstance(weight.format, VectorFormat)
    return weight.books.size // side_bytes(weight.format)


def tile_vector(weight: VectorWeight) -> TiledWeight:
    """Put a weight into vector order."""
    return _tiled(weight, weight.indices, weight.scales, [weight.books])


def tile_gated(gate: VectorWeight, up: VectorWeight) -> TiledWeight:
    """Gate and up of one format and shape as one weight, rows as tiles.interleave_rows has them."""
    indices = interleave_rows(gate.indices, up.indices)
    return _tiled(gate, indices, interleave_rows(gate.scales, up.scales), [gate.books, up.books])


def _tiled(weight: VectorWeight, indices: np.ndarray, scales: np.ndarray, books: list[np.ndarray]) -> TiledWeight:
    n, k = len(indices), weight.shape[1]
    padded = round_up(n, TILE)
    codes = aligned((padded // TILE, weight.format.num_vectors(k), weight.format.terms, 2, PAIRS, ROWS), np.uint8)
    rows = np.pad(indices, ((0, padded - n), (0, 0), (0, 0)))
    codes[:] = rows.reshape(-1, PAIRS, 2, ROWS, *rows.shape[1:]).transpose(0, 5, 4, 2, 1, 3)
    found = aligned(len(books) * side_bytes(weight.format), np.uint8)
    found[:] = np.concatenate([_stored(book) for both in books for book in both])
    none = aligned(1, np.uint8)
    return TiledWeight(
        "vector", weight.format, "", n, k, round_up(n, PAIR), weight.format.padded_k(k), codes=codes.reshape(-1),
        scales=interleave_pairs(np.pad(scales, ((0, padded - n), (0, 0)))), zeros=none, mins=none, books=found,
    )  # fmt: skip


def check_books(weight: TiledWeight) -> None:
    """Refuse books of no VectorWeight, and books whose two forms differ.

    raises   FormatError
    """
    form = weight.format
    assert isinstance(form, VectorFormat)
    for side in weight.books.reshape(-1, form.terms, book_bytes(form)):
        levels = (side[:, -form.length * PLACE_BYTES :] ^ np.uint8(128)).view(np.int8)  # places last
        books = levels.reshape(form.terms, form.length, CENTROIDS).transpose(0, 2, 1)
        if any(_stored(book).tobytes() != both.tobytes() for book, both in zip(books, side, strict=True)):
            raise FormatError("books: expected the same levels in parts and places, got others; pack the model again")
        check_levels(books)


def _stored(book: np.ndarray) -> np.ndarray:
    """int8 [256, length] to its two forms, one behind the other: uint8, flat."""
    centroids, length = book.shape
    levels = book.view(np.uint8) ^ np.uint8(128)
    parts = levels.reshape(centroids, -1, 4 if length > 2 else 2).swapaxes(0, 1)  # [parts, 256, 4], or [1, 256, 2]
    if length == 2:
        parts = np.stack([np.pad(parts[0], ((0, 0), (2 * part, 2 - 2 * part))) for part in range(2)])
    return np.concatenate([parts.reshape(-1), levels.T.reshape(-1)])
