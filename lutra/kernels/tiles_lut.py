"""Lut order: the bit planes of 64 rows as nibbles, in the order matmul_lut.py reads them; and its tables.

Four neighbouring weights of one row give one 4-bit index per plane (formats/integer.split_planes).  A byte holds the
indices of two neighbouring quads of weights; 64 such bytes, one row and plane each, are a vector; `bits` vectors hold
the 64 rows of a tile; four such pairs of quads are a chunk of 32 weights along K.

    codes  [tile of 64 rows][chunk of 32 k][pair of quads 0..3][vector 0..bits-1][lane 0..15][byte 0..3]

    one byte                 bits 7..4: index of quad 2 * pair + 1        bits 3..0: index of quad 2 * pair
    which row and plane      slot = 4 * vector + byte;    row = 16 * (slot / bits) + lane;    plane = slot % bits

    bytes 0..3 of lane i     1 bit     vector 0: rows i, 16+i, 32+i, 48+i
    (r.p = row r, plane p)   2 bits    vector 0: i.0 i.1 16+i.0 16+i.1      vector 1: 32+i.0 32+i.1 48+i.0 48+i.1
                             3 bits    vector 0: i.0 i.1 i.2 16+i.0         vector 1: 16+i.1 16+i.2 32+i.0 32+i.1 ...
                             4 bits    vector v: row 16v+i, planes 0 1 2 3

So the planes of a row are neighbouring bytes, and one dot4 with the weights 1, 2, 4, 8 both widens the looked-up sums
of 16 rows to int32 and combines their planes.  What stands beside the codes is in mad order (tiles.py), rows padded to
64; the chunks of several terms follow each other as in the packed order, a group's first term before its second.

Tables are the int16 tables of formats/integer.build_tables, as two 5-bit halves: entry + 512 = low + 32 * high.
Halves of 5 bits and not of 8 let eight looked-up bytes be added before they must be widened (8 * 31 = 248 <= 255),
and need no interleaving: half of the instructions that 8-bit halves take.
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats import packing
from lutra.formats.qtensor import BESIDE, QTensor
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import CHUNK, PAIR, ROWS, TiledWeight, interleave_pairs, round_up

TILE = 64  # rows of a tile
QUADS = CHUNK // 4  # lookups per row, plane and chunk
MAX_BITS = 4  # one index byte for each plane of a row: what a 32-bit lane and its dot4 hold
TABLE_BIAS = 512  # makes every table entry, |entry| <= 4 * 127, positive
HALF_BITS = 5  # entry + bias < 2**10
_BLOCK = 16  # tiles that are re-ordered at a time, so that temporaries stay in the cache


def split_tables(tables: np.ndarray) -> np.ndarray:
    """Split table entries into the halves that fit byte lookups.

    tables   int16 [..., 16]      of formats/integer.build_tables, |entry| <= 512
    returns  uint8 [..., 2, 16]   low 5 bits, then the bits above, of entry + 512
    """
    biased = tables + TABLE_BIAS
    return np.stack([biased & (1 << HALF_BITS) - 1, biased >> HALF_BITS], axis=-2).astype(np.uint8)


def tile_lut(weight: QTensor) -> TiledWeight:
    """Put a planes weight of 1 to 4 bits into lut order.  Raises FormatError for other storage and widths."""
    format = weight.format
    if format.storage != "planes" or format.bits > MAX_BITS or format.levels != "uniform":
        raise FormatError(f"expected 1 to {MAX_BITS} bit planes for table lookup, got {format.name}; use mad order")
    n, k = weight.shape
    words = np.ascontiguousarray(weight.packed).view(np.uint32)  # [N, words]
    words = _pad_rows(words.reshape(n, -1, format.bits))  # [N, chunks, words of a chunk]: 32 * bits / 32 = bits of them
    tiles, chunks = len(words) // TILE, words.shape[1]
    codes = aligned((tiles, chunks, QUADS // 2, format.bits, ROWS, 4), np.uint8)
    for start in range(0, tiles, _BLOCK):
        end = min(start + _BLOCK, tiles)
        _fill(codes[start:end], words[start * TILE : end * TILE], format.bits)
    return TiledWeight(
        "lut", format, "", n, k, round_up(n, PAIR), format.padded_k(k), codes.reshape(-1),
        **{name: _sidecar(getattr(weight, name)) for name in BESIDE},
    )  # fmt: skip


def _places(bits: int) -> dict[tuple[int, int], tuple[int, int]]:
    """(quad, plane) → (word of the chunk, shift): the four bytes of that word hold the plane's bit of four codes."""
    return {
        (quad, word.low + bit): (index, int(shift) + bit)
        for index, word in enumerate(packing.layout(bits))
        for quad, shift in word.lanes()
        for bit in range(word.width)
    }


def _fill(codes: np.ndarray, words: np.ndarray, bits: int) -> None:
    """codes [tiles, chunks, 4, bits, 16, 4] from words [tiles * 64, chunks, bits]."""
    tiles, chunks = codes.shape[:2]
    places = _places(bits)
    for pair in range(QUADS // 2):
        for plane in range(bits):
            low, high = (_index(words, *places[quad, plane]) for quad in (2 * pair, 2 * pair + 1))
            byte = (low | high << 4).astype(np.uint8).reshape(tiles, 4, ROWS, chunks)
            for part in range(4):
                vector, slot = divmod(part * bits + plane, 4)
                codes[:, :, pair, vector, :, slot] = byte[:, part].transpose(0, 2, 1)


def _index(words: np.ndarray, word: int, shift: int) -> np.ndarray:
    """Bit `shift` of the four bytes of a word, as a number 0 .. 15: byte i gives bit i."""
    bits = words[:, :, word] >> np.uint32(shift) & np.uint32(0x01010101)
    return bits * np.uint32(0x10204080) >> np.uint32(28)  # moves bit 8i to bit 28 + i; no two products meet


def _sidecar(values: np.ndarray | None) -> np.ndarray:
    return aligned(1, np.uint8) if values is None else interleave_pairs(_pad_rows(values))


def _pad_rows(rows: np.ndarray) -> np.ndarray:
    missing = -len(rows) % TILE
    return np.pad(rows, ((0, missing), *[(0, 0)] * (rows.ndim - 1))) if missing else rows
