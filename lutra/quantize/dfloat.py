"""Lossless storage of 16-bit floats: the exponents of weights repeat themselves, so they take fewer bits.

A bf16 is turned left by one bit: its high byte is then the exponent, its low byte mantissa and sign.  Low bytes stay as
they are; high bytes become a Huffman code, about 2.6 bits each for trained weights, so that 16 bits become about 11.
The same turn leaves f16 with exponent and three bits of mantissa in the high byte, which saves less.

Codes are canonical: their lengths, one per byte value, say everything.  They are written from the low end of 32-bit
words on, first bit lowest.  The place where each BLOCK of weights begins is stored, so that all blocks are decoded side
by side: one lookup of 15 bits gives the next byte of every block.  For disks and networks, not for kernels.

Source   DFloat11, arXiv 2504.11651, sections 2.2 and 2.3; other streams here, in one rule for both 16-bit types
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from lutra.errors import FormatError

BLOCK = 4096  # weights decoded one after another
AT_ONCE = 16 * BLOCK  # weights coded together
MAX_LENGTH = 15  # bits of a code; a lookup table has 2**15 entries
DAMAGED = "the file is damaged"


@dataclass(frozen=True)
class Squeezed:
    """A 16-bit array, smaller.

    shape    of the array
    low      uint8 [weights]     low bytes of the turned values
    lengths  uint8 [256]         bits of the code of each high byte, 0 for those that do not occur
    words    uint32 [W]          codes, 32 bits of which are read at a time
    starts   uint64 [blocks]     bit of `words` where each block of weights begins
    """

    shape: tuple[int, ...]
    low: np.ndarray
    lengths: np.ndarray
    words: np.ndarray
    starts: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.low.nbytes + self.lengths.nbytes + self.words.nbytes + self.starts.nbytes


def squeeze(values: np.ndarray) -> Squeezed:
    """Make a 16-bit array smaller.

    values   bf16, f16 or uint16, of any shape
    raises   FormatError   values of another size, none at all

    >>> some = np.array([1, -1, 0.5, 1, 1, 2, 1, 0.5], np.float16)
    >>> unsqueeze(squeeze(some)).view(np.float16).tolist()
    [1.0, -1.0, 0.5, 1.0, 1.0, 2.0, 1.0, 0.5]
    """
    if values.dtype.itemsize != 2 or not values.size:
        raise FormatError(
            f"expected some values of 16 bits, got {values.size} of {values.dtype}; store others as they are"
        )
    bits = np.ascontiguousarray(values).view(np.uint16).reshape(-1)
    turned = bits << np.uint16(1) | bits >> np.uint16(15)
    high = (turned >> np.uint16(8)).astype(np.uint8)
    lengths = code_lengths(np.bincount(high, minlength=256))
    words, starts = _write(high, lengths)
    return Squeezed(values.shape, turned.astype(np.uint8), lengths, words, starts)


def unsqueeze(squeezed: Squeezed) -> np.ndarray:
    """Return the bits that went in, uint16 of the same shape.

    raises   FormatError   streams that do not fit together
    """
    count = int(np.prod(squeezed.shape, dtype=np.int64))
    blocks = -(-count // BLOCK)
    if len(squeezed.low) != count or len(squeezed.starts) != blocks or not _is_complete(squeezed.lengths):
        raise FormatError(f"expected streams of {count} weights in {blocks} blocks with a complete code, got "
                          f"{len(squeezed.low)} and {len(squeezed.starts)}; {DAMAGED}")  # fmt: skip
    high = _read(squeezed, count)
    turned = high.astype(np.uint16) << np.uint16(8) | squeezed.low
    bits: np.ndarray = turned >> np.uint16(1) | turned << np.uint16(15)
    return bits.reshape(squeezed.shape)


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Return the bits of Huffman's code for each value, uint8, at most MAX_LENGTH; 0 for counts of 0.

    Rare values count as more frequent than they are until none has too long a code.

    >>> code_lengths(np.array([4, 2, 1, 0, 1])).tolist()
    [1, 2, 3, 0, 3]
    """
    least = 1
    while True:
        lengths = _huffman(np.where(counts > 0, np.maximum(counts, least), 0))
        if lengths.max() <= MAX_LENGTH:
            return lengths.astype(np.uint8)
        least *= 2


def codes_of(lengths: np.ndarray) -> np.ndarray:
    """Return canonical codes, uint32, first bit lowest: shorter codes first, among equals the smaller value.

    >>> codes_of(np.array([1, 2, 3, 0, 3])).tolist()                 # 0, 10, 110, 111 from the first bit on
    [0, 1, 3, 0, 7]
    """
    codes = np.zeros(len(lengths), np.uint32)
    code = 0
    for length in range(1, MAX_LENGTH + 1):
        code <<= 1
        for value in np.flatnonzero(lengths == length):
            codes[value] = int(format(code, f"0{length}b")[::-1], 2)
            code += 1
    return codes


def _huffman(counts: np.ndarray) -> np.ndarray:
    """Join the two rarest trees until one is left; every join puts one more bit in front of their members."""
    lengths = np.zeros(len(counts), np.int64)
    trees = [(int(count), value, [value]) for value, count in enumerate(counts) if count]
    if len(trees) == 1:
        lengths[trees[0][1]] = 1
    heapq.heapify(trees)
    while len(trees) > 1:
        (first, at, some), (second, _, others) = heapq.heappop(trees), heapq.heappop(trees)
        members = some + others
        lengths[members] += 1
        heapq.heappush(trees, (first + second, at, members))
    return lengths


def _is_complete(lengths: np.ndarray) -> bool:
    """Tell whether every run of bits begins with just one code; a single code of one bit is allowed too."""
    used = lengths[lengths > 0].astype(np.int64)
    if lengths.shape != (256,) or not len(used) or used.max() > MAX_LENGTH:
        return False
    covered = int((1 << (MAX_LENGTH - used)).sum())
    return covered == 1 << MAX_LENGTH or used.tolist() == [1]


def _write(high: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the codes of bytes one behind the other, AT_ONCE bytes at a time so that all about them stays in the cache.

    returns  words, with two of zeros behind them for reads that reach too far, and the first bit of each block
    """
    codes = codes_of(lengths).astype(np.uint64)
    num_bits = int((np.bincount(high, minlength=256) * lengths.astype(np.int64)).sum())
    words, starts, end = np.zeros(num_bits // 32 + 3, np.uint64), [], 0
    for some in (high[first : first + AT_ONCE] for first in range(0, len(high), AT_ONCE)):
        sizes = lengths[some].astype(np.int64)
        ends = end + np.cumsum(sizes)
        begins, end = ends - sizes, int(ends[-1])
        placed = codes[some] << (begins & 31).astype(np.uint64)
        first_of_word = np.flatnonzero(np.diff(begins >> 5, prepend=-1))
        at = begins[first_of_word] >> 5
        sums = np.add.reduceat(placed, first_of_word)  # codes do not overlap, so a sum puts them together
        words[at] += sums & np.uint64(0xFFFFFFFF)
        words[at + 1] += sums >> np.uint64(32)
        starts.append(begins[::BLOCK].astype(np.uint64))
    return words.astype(np.uint32), np.concatenate(starts)


def _read(squeezed: Squeezed, count: int) -> np.ndarray:
    """Decode all blocks side by side, uint8 [count]."""
    values, sizes = _lookup(squeezed.lengths)
    words = squeezed.words.astype(np.uint64)
    last = 32 * (len(words) - 2)
    at = squeezed.starts.astype(np.int64)
    if last < 0 or at[0] != 0 or (np.diff(at) < 0).any() or int(squeezed.starts.max()) > last:
        raise FormatError(f"expected blocks that begin one after another in {len(words)} words; {DAMAGED}")
    ends, short = at[1:], count - (len(at) - 1) * BLOCK  # the last block may be short
    high, end = np.empty((len(at), BLOCK), np.uint8), 0
    for step in range(min(BLOCK, count)):
        if step == short:
            at, end = at[:-1], int(at[-1])
        word = at >> 5
        window = (words[word] | words[word + 1] << np.uint64(32)) >> (at & 31).astype(np.uint64)
        index = (window & np.uint64(2**MAX_LENGTH - 1)).astype(np.intp)
        high[: len(at), step] = values[index]
        at = np.minimum(at + sizes[index], last)
    end = int(at[-1]) if len(at) > len(ends) else end
    if (at[: len(ends)] != ends).any() or end // 32 != len(words) - 3:  # words stop where the codes do
        raise FormatError(f"expected every block to end where the next begins, the last where words do; {DAMAGED}")
    return high.reshape(-1)[:count]


def _lookup(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each 15 bits the value whose code they begin with, uint8, and its length, int64."""
    values, sizes = np.zeros(2**MAX_LENGTH, np.uint8), np.ones(2**MAX_LENGTH, np.int64)
    for value, code in enumerate(codes_of(lengths)):
        if lengths[value]:
            values[code :: 1 << int(lengths[value])] = value
            sizes[code :: 1 << int(lengths[value])] = lengths[value]
    return values, sizes
