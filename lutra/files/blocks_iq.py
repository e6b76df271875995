"""GGUF types of the IQ family: 4 bits by a table of levels, and 1 to 3 bits by grids of 4 or 8 weights at a time.

The points of a grid have few magnitudes, so every weight becomes a code of its own in a table format: nothing is lost,
some bits are added.  The grids themselves are data of ggml; the `gguf` package brings them, and is needed for these
types only.  Layouts as in blocks.py; every 256 weights have one d.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from lutra.errors import FileError
from lutra.files.fields import Parts, f16, flags, neighbours, nibbles, quarters, rows, words
from lutra.formats import catalog
from lutra.formats.tables import TABLES

IQ4_NL = catalog.table("iq4nl", 32)
IQ4_XS = catalog.table("iq4nl", 32, scale_dtype="i8", super_dtype="f16")
IQ3_XXS = catalog.table("iq3xxs", 32, scale_dtype="u8", super_dtype="f32")
IQ3_S = catalog.table("iq3s", 32, scale_dtype="u8", super_dtype="f16")
IQ2_OF_32 = catalog.table("iq2", 32, scale_dtype="u8", super_dtype="f32")
IQ2_OF_16 = catalog.table("iq2", 16, scale_dtype="u8", super_dtype="f32")
IQ1_OF_32 = catalog.ternary(32, offset="mins", scale_dtype="i8", super_dtype="f32")
IQ1_OF_16 = catalog.table("iq1", 16, scale_dtype="u8", super_dtype="f32")

THIRTY_SECOND_SHIFTS = np.array([0, 7, 14, 21], np.uint32)  # of four 7-bit sign indices below a 4-bit scale
SIGN = {"iq2": 4, "iq3xxs": 8, "iq3s": 8}  # the code of a negative level is that of the positive plus this


@cache
def grid(name: str, table: str | None) -> np.ndarray:
    """The points of a type's grid: uint8 [points, 4 or 8], as codes of `table`; None for trits, -1 as 0.

    raises   FileError   no gguf package
    """
    try:
        from gguf import quants
    except ImportError:
        raise FileError(f"{name}: expected the grids of the gguf package, which is not installed; "
                        "do: pip install 'lutra[gguf]'") from None  # fmt: skip
    kind = getattr(quants, name)
    kind.init_grid()
    points = kind.grid.reshape(kind.grid_shape).astype(np.int8)
    if table is None:
        return np.asarray(points + 1, np.uint8)
    return np.asarray((points[..., None] == TABLES[table][: SIGN[table]]).argmax(-1), np.uint8)


def _all_signs(index: np.ndarray) -> np.ndarray:
    """Seven signs and an eighth that makes their number even: [...] to bits [..., 8]."""
    byte = (index & 127).astype(np.uint8)
    seven = np.unpackbits(byte[..., None], axis=-1, bitorder="little")
    seven[..., 7] = seven.sum(-1) & 1
    return seven


def _signed(points: np.ndarray, signs: np.ndarray, table: str) -> np.ndarray:
    """Codes of magnitudes with their signs: [N, ...] of as many elements each, in the same order, to [N, K]."""
    return np.asarray(rows(points) + rows(signs) * np.uint8(SIGN[table]), np.uint8)


def _odd(scale: np.ndarray) -> np.ndarray:
    """2 s + 1, by which every scale of these types multiplies."""
    return np.asarray(2 * scale + 1, np.uint8)


def _d(blocks: np.ndarray, factor: float) -> np.ndarray:
    """The d of each block, at its start, times a power of two: f32 [N, blocks]."""
    return f16(blocks[..., 0:2]).astype(np.float32) * np.float32(factor)


def iq4_nl(blocks: np.ndarray) -> Parts:
    """d f16 | 16 bytes of nibbles: weights 0-15 low, 16-31 high.  d * level."""
    return Parts(rows(nibbles(blocks[..., 2:18])), f16(blocks[..., 0:2]))


def iq4_xs(blocks: np.ndarray) -> Parts:
    """d f16 | u16: high 2 bits of 8 scales | 4 bytes: low 4 bits | 128 bytes of nibbles, per 16 bytes low then high.

    d * (scale[j] - 32) * level for each 32 weights j.
    """
    high = words(blocks[..., 2:4], "<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3  # [N, blocks, 8]
    scale = (neighbours(blocks[..., 4:8]) | (high << 4).astype(np.uint8)).astype(np.int8) - np.int8(32)
    codes = nibbles(blocks[..., 8:136].reshape(*blocks.shape[:2], 8, 16))
    return Parts(rows(codes), rows(scale), super_scales=f16(blocks[..., 0:2]))


def iq2_xxs(blocks: np.ndarray) -> Parts:
    """d f16 | per 32 weights: 4 bytes of grid points, u32: four 7-bit signs and a 4-bit scale on top.

    d * (scale + 1/2) / 4 = d / 8 * (2 scale + 1).
    """
    pairs = words(blocks[..., 2:66], "<u4").reshape(*blocks.shape[:2], 8, 2)
    points = grid("IQ2_XXS", "iq2")[words(pairs[..., 0], "u1")]  # [N, blocks, 32, 8]
    signs = _all_signs(pairs[..., 1:] >> THIRTY_SECOND_SHIFTS)  # [N, blocks, 8, 4, 8]
    return Parts(_signed(points, signs, "iq2"), rows(_odd(pairs[..., 1] >> 28)), super_scales=_d(blocks, 1 / 8))


def iq2_xs(blocks: np.ndarray) -> Parts:
    """d f16 | 32 x u16: a 9-bit grid point and 7-bit signs | 8 bytes: a 4-bit scale for each 16 weights."""
    index = words(blocks[..., 2:66], "<u2")
    points = grid("IQ2_XS", "iq2")[index & 511]
    scale = neighbours(blocks[..., 66:74])
    return Parts(_signed(points, _all_signs(index >> 9), "iq2"), rows(_odd(scale)), super_scales=_d(blocks, 1 / 8))


def iq2_s(blocks: np.ndarray) -> Parts:
    """d f16 | 32 bytes: low 8 bits of grid points | 32 bytes of signs | 8 bytes: high 2 bits | 8 bytes of scales."""
    high = quarters(blocks[..., 66:74]).swapaxes(-1, -2).reshape(*blocks.shape[:2], 32)
    points = grid("IQ2_S", "iq2")[blocks[..., 2:34] | high.astype(np.uint16) << 8]
    signs = flags(blocks[..., 34:66]).swapaxes(-1, -2)
    scale = neighbours(blocks[..., 74:82])
    return Parts(_signed(points, signs, "iq2"), rows(_odd(scale)), super_scales=_d(blocks, 1 / 8))


def iq3_xxs(blocks: np.ndarray) -> Parts:
    """d f16 | 64 bytes of grid points, 4 weights each | 8 x u32 as iq2_xxs has them.  d / 4 * (2 scale + 1)."""
    points = grid("IQ3_XXS", "iq3xxs")[blocks[..., 2:66]]
    packed = words(blocks[..., 66:98], "<u4")
    signs = _all_signs(packed[..., None] >> THIRTY_SECOND_SHIFTS)
    return Parts(_signed(points, signs, "iq3xxs"), rows(_odd(packed >> 28)), super_scales=_d(blocks, 1 / 4))


def iq3_s(blocks: np.ndarray) -> Parts:
    """d f16 | 64 bytes: low 8 bits of grid points | 8 bytes: the ninth | 32 bytes of signs | 4 bytes of scales."""
    ninth = flags(blocks[..., 66:74]).swapaxes(-1, -2).reshape(*blocks.shape[:2], 64)
    points = grid("IQ3_S", "iq3s")[blocks[..., 2:66] | ninth.astype(np.uint16) << 8]
    signs = flags(blocks[..., 74:106]).swapaxes(-1, -2)
    scale = neighbours(blocks[..., 106:110])
    return Parts(_signed(points, signs, "iq3s"), rows(_odd(scale)), super_scales=f16(blocks[..., 0:2]))


def iq1_s(blocks: np.ndarray) -> Parts:
    """d f16 | 32 bytes: low 8 bits of grid points | 8 x u16: four high 3 bits, a 3-bit scale, a sign of delta.

    d * (2 scale + 1) * (trit + delta) for each 32 weights; delta is 1/8 or -1/8.
    """
    high = words(blocks[..., 34:50], "<u2")  # [N, blocks, 8]
    tops = (high[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(*blocks.shape[:2], 32)
    codes = grid("IQ1_S", None)[blocks[..., 2:34] | tops << 8]
    scale = _odd(high >> 12 & 7).astype(np.int8)
    delta = np.where(high >> 15, -scale, scale)
    return Parts(rows(codes), rows(scale), rows(delta), _d(blocks, 1), _d(blocks, 1 / 8))


def iq1_m(blocks: np.ndarray) -> Parts:
    """32 bytes: low 8 bits of grid points | 16 bytes: per 8 weights 3 high bits and a sign of delta | 4 x u16.

    The four words hold sixteen 3-bit scales, for 16 weights each, and on top a nibble each of d.
    """
    packed = words(blocks[..., 48:56], "<u2")  # [N, blocks, 4]
    bits = (packed & 0xF000) >> np.array([12, 8, 4, 0], np.uint16)
    d = np.bitwise_or.reduce(bits, axis=-1).astype("<u2").view("<f2").astype(np.float32)
    scale = (packed[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(*blocks.shape[:2], 16)
    beside = neighbours(blocks[..., 32:48])  # [N, blocks, 32]
    trits = grid("IQ1_S", None)[blocks[..., 0:32] | (beside & 7).astype(np.uint16) << 8].astype(np.int8) - 1
    eighths = 8 * trits + np.where(beside & 8, -1, 1)[..., None].astype(np.int8)  # [N, blocks, 32, 8]
    codes = (eighths[..., None] == TABLES["iq1"][:6]).argmax(-1).astype(np.uint8)
    return Parts(rows(codes), rows(_odd(scale)), super_scales=d * np.float32(1 / 8))
