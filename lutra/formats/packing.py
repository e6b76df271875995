"""The packed order: where each bit of each code lies in a row of bytes.

A row of codes is cut into blocks of 32 weights.  A block of b-bit codes is b words of 4 bytes, and a word holds 32 / b
neighbouring weights in bit fields.  Weight 4 * s + j of a word lies in byte j, in the s-th field from the low end, so
one shift and one mask turn a word into 4 neighbouring codes, one in each byte, whatever the width:

    4 bits, byte j:  | w[4+j] | w[j] |                        8 weights per word
    2 bits, byte j:  | w[12+j] | w[8+j] | w[4+j] | w[j] |     16 weights per word

3, 5, 6 and 7 bits do not divide a byte.  Their codes are cut into fields that do, low bits first: 3 = 2 + 1, 5 = 4 + 1,
6 = 4 + 2, 7 = 4 + 2 + 1.  So a block of 3 bits is two 2-bit words (weights 0-15, 16-31), then one 1-bit word (weights
0-31).  `layout` is this page as a table; the rest follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lutra.errors import FormatError

BLOCK = 32  # weights that every width packs into whole words
EACH_BYTE = 0x01010101  # times a byte: that byte in all four places of a word
ROWS_BYTES = 1 << 18  # codes handled at a time: they and their words stay in the L2 cache

# bits of a code -> widths of the fields it is cut into, low bits first
FIELDS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


@dataclass(frozen=True)
class Word:
    """One word of a block: of 32 / width weights from `first` on, `width` bits of each code from bit `low` up."""

    first: int
    low: int
    width: int

    @property
    def mask(self) -> np.uint32:
        """The lowest field of every byte."""
        return np.uint32((2**self.width - 1) * EACH_BYTE)

    def lanes(self) -> Iterator[tuple[int, np.uint32]]:
        """Yield (4-weight step of the block, shift of its field in the word)."""
        for s in range(8 // self.width):
            yield self.first // 4 + s, np.uint32(self.width * s)


@lru_cache
def layout(bits: int) -> tuple[Word, ...]:
    """Return the words of one block of 32 weights, in the order of the bytes.

    raises   FormatError   a width without a packed order

    >>> [(word.first, word.low, word.width) for word in layout(3)]
    [(0, 0, 2), (16, 0, 2), (0, 2, 1)]
    """
    if bits not in FIELDS:
        raise FormatError(f"expected codes of {', '.join(map(str, FIELDS))} bits, got {bits}; use one of these widths")
    words, low = [], 0
    for width in FIELDS[bits]:
        words += [Word(first, low, width) for first in range(0, BLOCK, BLOCK // width)]
        low += width
    return tuple(words)


def padded_k(k: int, group_size: int) -> int:
    """Round K up to whole blocks of 32 weights and whole groups (group_size 0: one group per row).

    >>> padded_k(100, 0), padded_k(100, 64), padded_k(16, 16)
    (128, 128, 32)
    """
    step = math.lcm(BLOCK, group_size or BLOCK)
    return -(-k // step) * step


def pack(codes: np.ndarray, bits: int, padded_k: int, fill: int) -> np.ndarray:
    """Write codes in the packed order.

    codes     uint8 [N, K]    0 .. 2**bits - 1
    padded_k  columns of a packed row, a multiple of 32; the columns behind K hold the code `fill`
    returns   uint8 [N, padded_k * bits / 8]
    raises    FormatError     a code too large for its bits, a width without a packed order

    >>> pack(np.array([[0, 1, 2, 3, 0, 0, 0, 1]], np.uint8), 2, 32, 0)[0, :4].tolist()    # byte 3: w7 << 2 | w3
    [0, 1, 2, 7]
    """
    words = layout(bits)
    assert codes.ndim == 2 and codes.dtype == np.uint8 and padded_k % BLOCK == 0 and padded_k >= codes.shape[1]
    if codes.size and int(codes.max()) >> bits:
        raise FormatError(f"expected codes below {2**bits} for {bits} bits, got {int(codes.max())}; "
                          "use a format with more bits, or clip the codes")  # fmt: skip
    packed = np.empty((len(codes), padded_k // BLOCK, bits), np.uint32)
    for rows in row_blocks(len(codes), padded_k):
        steps = _steps(codes[rows], padded_k, fill)  # [n, blocks, 8]
        for index, word in enumerate(words):
            packed[rows, :, index] = _gather(steps, word)
    return packed.view(np.uint8).reshape(len(codes), padded_k * bits // 8)


def unpack(packed: np.ndarray, bits: int, k: int) -> np.ndarray:
    """Read the first k codes of every row; the inverse of `pack`.

    packed   uint8 [N, row_bytes]
    returns  uint8 [N, k]
    """
    words = layout(bits)
    row_bytes = packed.shape[1]
    num_blocks = row_bytes // (4 * bits)
    assert row_bytes == num_blocks * 4 * bits and k <= num_blocks * BLOCK
    codes = np.empty((len(packed), k), np.uint8)
    for rows in row_blocks(len(packed), num_blocks * BLOCK):
        source = np.ascontiguousarray(packed[rows]).view(np.uint32).reshape(-1, num_blocks, bits)
        steps = np.zeros((len(source), num_blocks, BLOCK // 4), np.uint32)
        for index, word in enumerate(words):
            for step, shift in word.lanes():
                steps[:, :, step] |= (source[:, :, index] >> shift & word.mask) << np.uint32(word.low)
        codes[rows] = steps.view(np.uint8).reshape(len(source), -1)[:, :k]
    return codes


def words_from_hf_bitnet(packed: np.ndarray) -> np.ndarray:
    """Re-code the Hugging Face BitNet packing, four rows per byte, into our rows of 2-bit words.

    packed   uint8 [N / 4, K]     bits 2i, 2i+1 of row r hold the code (value + 1) of row i * N/4 + r
    returns  uint8 [N, row_bytes]
    raises   FormatError          a code 3, which no ternary weight has

    Four words, of neighbouring 4-weight steps, hold a 4 x 4 square of 2-bit fields in each byte: step s by row slot i.
    We want slot by step, so each square is transposed, in two rounds of swapping halves; no code is ever unpacked.
    Source: transformers, integrations/bitnet.py (pack_weights).
    """
    quarter, k = packed.shape
    columns = padded_k(k, 0)
    result = np.empty((4, quarter, columns // BLOCK, 2), np.uint32)  # [slot, N/4, blocks, word of the block]
    for rows in row_blocks(quarter, columns):
        steps = _steps(packed[rows], columns, 0b01010101)
        if has_code_3(steps):
            raise FormatError("expected ternary codes 0 to 2, got 3; the packed weight is damaged or not ternary")
        for index in range(2):
            square = [steps[:, :, 4 * index + s].copy() for s in range(4)]
            for i, j, shift, mask in ((0, 1, 2, 0x33), (2, 3, 2, 0x33), (0, 2, 4, 0x0F), (1, 3, 4, 0x0F)):
                swap = (square[i] >> np.uint32(shift) ^ square[j]) & np.uint32(mask * EACH_BYTE)
                square[j] ^= swap
                square[i] ^= swap << np.uint32(shift)
            for slot, words in enumerate(square):
                result[slot, rows, :, index] = words
    return result.view(np.uint8).reshape(4 * quarter, columns // 4)


def has_code_3(words: np.ndarray) -> bool:
    """Return whether any 2-bit field of unsigned words is 3: both its bits are set."""
    both = words & words >> words.dtype.type(1)
    return bool((both & words.dtype.type(np.iinfo(words.dtype).max // 3)).any())  # max // 3 = 0b...010101


def row_blocks(num_rows: int, row_codes: int) -> Iterator[slice]:
    """Cut the rows into slices small enough for the cache."""
    step = max(1, ROWS_BYTES // max(1, row_codes))
    for row in range(0, num_rows, step):
        yield slice(row, min(row + step, num_rows))


def _steps(codes: np.ndarray, columns: int, fill: int) -> np.ndarray:
    """View bytes [n, K] as steps of 4 weights, uint32 [n, blocks, 8], padded with the byte `fill`."""
    if codes.shape[1] != columns:
        padded = np.full((len(codes), columns), fill, np.uint8)
        padded[:, : codes.shape[1]] = codes
        codes = padded
    return np.ascontiguousarray(codes).view(np.uint32).reshape(len(codes), columns // BLOCK, BLOCK // 4)


def _gather(steps: np.ndarray, word: Word) -> np.ndarray:
    """Collect the fields of one word of every block: uint32 [n, blocks].  Fields never overlap, bytes never carry."""
    result = np.zeros(steps.shape[:2], np.uint32)
    for step, shift in word.lanes():
        result |= (steps[:, :, step] >> np.uint32(word.low) & word.mask) << shift
    return result
