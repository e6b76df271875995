"""Codes in streams of bits, low bit first, as checkpoints pack them into 32-bit words."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.errors import FormatError

WORD = 32  # bits


def unpack(words: np.ndarray, bits: int, count: int, dtype: Any = np.uint8) -> np.ndarray:
    """Read `count` codes of `bits` bits from a dense stream; a code may lie across two words.

    words    int32 or uint32 [R, W]    the stream of each row
    returns  dtype [R, count], which codes must fit
    raises   FormatError    a stream too short

    >>> unpack(np.array([[0x76543210]], np.int32), 4, 8).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7]]
    """
    words = np.ascontiguousarray(words).view(np.uint32)
    if words.shape[1] * WORD < count * bits:
        raise FormatError(f"expected {count} codes of {bits} bits in a row, got {words.shape[1]} words; "
                          "the file is damaged: download it again")  # fmt: skip
    start = np.arange(count) * bits
    word, shift = start // WORD, (start % WORD).astype(np.uint32)
    low = words[:, word] >> shift
    after = words[:, np.minimum(word + 1, words.shape[1] - 1)]
    crossing = shift > WORD - bits
    rest = (np.uint32(WORD) - shift).clip(max=np.uint32(WORD - 1))
    codes: np.ndarray = np.where(crossing, low | after << rest, low) & np.uint32(2**bits - 1)
    return codes.astype(dtype)


def unpack_whole(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Read codes of which none lies across two words: 32 // bits to a word, the bits above them unused.

    words    int32 or uint32 [R, W]
    returns  uint8 [R, count]
    raises   FormatError    too few words
    """
    words = np.ascontiguousarray(words).view(np.uint32)
    per_word = WORD // bits
    if words.shape[1] * per_word < count:
        raise FormatError(f"expected {count} codes of {bits} bits in a row, got {words.shape[1]} words; "
                          "the file is damaged: download it again")  # fmt: skip
    shifts = (np.arange(per_word) * bits).astype(np.uint32)
    codes = words[:, :, None] >> shifts & np.uint32(2**bits - 1)
    return codes.reshape(len(words), -1)[:, :count].astype(np.uint8)
