"""Ternary weights below 2 bits: five trits in a byte, and their multiplication by looking up sums of five activations.

Five weights of one row, each -1, 0 or +1, are the digits of a number in balanced base 3:

    v = t[0] + 3 t[1] + 9 t[2] + 27 t[3] + 81 t[4]          -121 .. 121

    bit         7        6 .. 0
    byte    |  v < 0  |   |v|   |                            1.6 bits per weight, 243 of 256 bytes used

Turning all five signs around turns v around, and the sum t . x too.  So a table needs the sums of v = 0 .. 121 only,
and bit 7 says whether to negate what was found.  The weights behind K are 0.

Source    1.6 bits per trit is the densest packing in whole bytes: log2(3) = 1.585.  The half table of a sign-symmetric
          alphabet: bitnet.cpp, arXiv 2502.11880, section 3.1 (there for three trits in 5 bits)
"""

from __future__ import annotations

import numpy as np

from lutra.errors import FormatError
from lutra.formats.qtensor import QTensor

TRITS = 5  # in a byte, and activations that share one table
ENTRIES = (3**TRITS + 1) // 2  # of a half table: v = 0 .. 121
POWERS = 3 ** np.arange(TRITS)
NEGATIVE = 0x80  # the sign bit


def num_steps(k: int) -> int:
    """Bytes of a row of k trits."""
    return -(-k // TRITS)


def pack_trits(levels: np.ndarray) -> np.ndarray:
    """Write five trits into each byte.

    levels   int8  [N, K]      -1, 0 or 1
    returns  uint8 [N, K / 5]  rounded up
    raises   FormatError       another value

    >>> pack_trits(np.array([[1, 0, 0, 0, 0, -1, 1, 0, 0, 0]], np.int8)).tolist()          # 1 and -1 + 3
    [[1, 2]]
    >>> [hex(byte) for byte in pack_trits(np.array([[1, -1, 0, 0, 0, 1]], np.int8))[0]]    # 1 - 3 = -2, and 1
    ['0x82', '0x1']
    """
    if levels.size and np.abs(levels).max() > 1:
        raise FormatError(f"expected trits -1, 0 and 1, got {int(np.abs(levels).max())}; quantise to ternary first")
    n, k = levels.shape
    value = np.zeros((n, num_steps(k)), np.int8)
    for place, power in enumerate(POWERS):
        trits = levels[:, place::TRITS]
        value[:, : trits.shape[1]] += trits.astype(np.int8) * np.int8(power)
    packed: np.ndarray = np.abs(value).view(np.uint8) | (value < 0).view(np.uint8) << 7
    return packed


def unpack_trits(packed: np.ndarray, k: int) -> np.ndarray:
    """Read the first k trits of every row, int8 [N, k]; the inverse of `pack_trits`."""
    value = (packed & (NEGATIVE - 1)).astype(np.int16)
    value = np.where(packed & NEGATIVE, -value, value)
    digits = (value + ENTRIES - 1)[..., None] // POWERS % 3 - 1                    # [N, K/5, 5]
    levels: np.ndarray = digits.reshape(len(packed), -1)[:, :k].astype(np.int8)
    return levels


def build_trit_tables(xq: np.ndarray) -> np.ndarray:
    """Add up five neighbouring activations with every sign, and 0, that a byte can give them.

    xq       int8  [M, K]
    returns  int16 [M, K / 5, 122]     entry v is the sum of t[i] * xq[5 k + i], t the digits of v

    |entry| <= 5 * 128 = 640.

    >>> build_trit_tables(np.array([[10, 1, 0, 0, 0]], np.int8))[0, 0, :5].tolist()        # 0, x0, x1 - x0, x1, x0 + x1
    [0, 10, -9, 1, 11]
    """
    digits = unpack_trits(np.arange(ENTRIES, dtype=np.uint8)[:, None], TRITS)      # [122, 5]
    m, k = xq.shape
    x = np.pad(xq, ((0, 0), (0, TRITS * num_steps(k) - k))).reshape(m, -1, TRITS)
    tables: np.ndarray = x.astype(np.int16) @ digits.T.astype(np.int16)
    return tables


def trit_dot(tables: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """Multiply by looking up: y = x @ trits.T.

    tables   int16 [M, K / 5, 122]
    packed   uint8 [N, K / 5]
    returns  int32 [M, N]
    """
    steps = np.arange(tables.shape[1])
    found = tables[:, steps, packed & (NEGATIVE - 1)].astype(np.int32)             # gather [M, N, K/5]
    sums: np.ndarray = np.where(packed & NEGATIVE, -found, found).sum(-1, dtype=np.int32)
    return sums


def group_dot_trits(xq: np.ndarray, w: QTensor) -> np.ndarray:
    """Return what integer.group_dot returns, by looking up sums of five activations.

    xq       int8  [M, K], or with K padded
    returns  int32 [M, N, 1]
    raises   FormatError   not ternary, or not one scale per row: a group need not be whole bytes
    """
    check_trits(w)
    k = w.shape[1]
    return trit_dot(build_trit_tables(xq[:, :k]), pack_trits(w.codes().astype(np.int8) - np.int8(1)))[..., None]


def check_trits(w: QTensor) -> None:
    """Raise FormatError unless w can be stored as five trits in a byte."""
    format = w.format
    if format.alphabet != "trit" or format.offset != "none" or format.group_size or not format.is_plain:
        raise FormatError(f"expected ternary weights with one scale per row, got {format.name}; use mad order")
