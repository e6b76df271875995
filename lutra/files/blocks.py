"""GGUF tensor types: how many weights a block holds, in how many bytes, and which format it becomes.

A row is whole blocks, low K first.  A decoder takes blocks uint8 [N, blocks, block_bytes] and returns codes uint8
[N, K] and what stands beside them, with the same values; its docstring is the byte layout, fields in order.  Types of
the IQ family are in blocks_iq.py, small floats in blocks_float.py.
Source of the layouts: ggml, src/ggml-common.h; checked against the `gguf` package (gguf.quants) in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lutra.files import blocks_float, blocks_iq
from lutra.files.fields import Parts, f16, flags, nibbles, quarters, rows, words
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor

CHUNK_WEIGHTS = 1 << 24  # decoded at a time: bounds the memory beside the result to a few times 16 MiB
POWERS_OF_THREE = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]  # [5, 1]


def q4_0(blocks: np.ndarray) -> Parts:
    """d f16 | 16 bytes of nibbles: weights 0-15 low, 16-31 high.  d * (code - 8)."""
    return Parts(rows(nibbles(blocks[..., 2:18])), f16(blocks[..., 0:2]))


def q4_1(blocks: np.ndarray) -> Parts:
    """d f16 | m f16 | 16 bytes of nibbles as q4_0.  d * code + m."""
    return Parts(rows(nibbles(blocks[..., 4:20])), f16(blocks[..., 0:2]), f16(blocks[..., 2:4]))


def q5_0(blocks: np.ndarray) -> Parts:
    """d f16 | 4 bytes: the fifth bits of the 32 weights in order | 16 bytes of nibbles as q4_0.  d * (code - 16)."""
    return Parts(rows(_five_bits(blocks[..., 2:22])), f16(blocks[..., 0:2]))


def q5_1(blocks: np.ndarray) -> Parts:
    """d f16 | m f16 | fifth bits and nibbles as q5_0.  d * code + m."""
    return Parts(rows(_five_bits(blocks[..., 4:24])), f16(blocks[..., 0:2]), f16(blocks[..., 2:4]))


def _five_bits(field: np.ndarray) -> np.ndarray:
    """Put 4 bytes of fifth bits and 16 of nibbles together: [..., 20] to [..., 32]."""
    fifth = np.unpackbits(field[..., :4], axis=-1, bitorder="little")
    codes: np.ndarray = nibbles(field[..., 4:]) | fifth << 4
    return codes


def q8_0(blocks: np.ndarray) -> Parts:
    """d f16 | 32 x i8.  d * code; stored here with 128 added, which flips the sign bit."""
    return Parts(rows(blocks[..., 2:34] ^ 0x80), f16(blocks[..., 0:2]))


def q4_k(blocks: np.ndarray) -> Parts:
    """d f16 | dmin f16 | 12 bytes: 8 scales and 8 mins of 6 bits | 128 bytes of nibbles, per 32 bytes low then high.

    d * scale[j] * code - dmin * min[j] for each 32 weights j.
    """
    return _with_scales_of_32(blocks, nibbles(blocks[..., 16:144].reshape(*blocks.shape[:2], 4, 32)))


def q5_k(blocks: np.ndarray) -> Parts:
    """d, dmin and scales as q4_k | 32 bytes: bit j of byte l is the fifth of weight 32 j + l | nibbles as q4_k."""
    low = nibbles(blocks[..., 48:176].reshape(*blocks.shape[:2], 4, 32)).reshape(*blocks.shape[:2], 8, 32)
    return _with_scales_of_32(blocks, low | flags(blocks[..., 16:48]) << 4)


def _with_scales_of_32(blocks: np.ndarray, codes: np.ndarray) -> Parts:
    """Put the scales and mins of q4_k and q5_k beside their codes: u8 [N, K/32], and f16 [N, K/256] for both.

    bytes 0-3   | scale 4+j high 2 | scale j      |      bytes 4-7   | min 4+j high 2 | min j |
    bytes 8-11  | min 4+j low 4    | scale 4+j low 4 |
    """
    packed = blocks[..., 4:16].reshape(*blocks.shape[:2], 3, 4)
    low, middle, high = packed[..., 0, :], packed[..., 1, :], packed[..., 2, :]  # [N, blocks, 4]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=-1)  # [N, blocks, 8]
    least = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=-1)
    return Parts(rows(codes), rows(scale), rows(least), f16(blocks[..., 0:2]), -f16(blocks[..., 2:4]))


def q2_k(blocks: np.ndarray) -> Parts:
    """16 bytes: scale low 4, min high 4 | 64 bytes of 2-bit fields as tq2_0 | d f16 | dmin f16.

    d * scale[j] * code - dmin * min[j] for each 16 weights j.
    """
    scale, least = blocks[..., 0:16] & 15, blocks[..., 0:16] >> 4  # [N, blocks, 16]
    codes = quarters(blocks[..., 16:80].reshape(*blocks.shape[:2], 2, 32))
    return Parts(rows(codes), rows(scale), rows(least), f16(blocks[..., 80:82]), -f16(blocks[..., 82:84]))


def q3_k(blocks: np.ndarray) -> Parts:
    """32 bytes: bit j of byte l is the third of weight 32 j + l | 64 bytes of 2-bit fields as tq2_0 | 12 bytes | d f16.

    d * (scale[j] - 32) * (code - 4) for each 16 weights j.  The 12 bytes are 16 scales:
    bytes 0-7   | scale 8+j low 4  | scale j low 4 |
    bytes 8-11  | scale 12+j high 2 | scale 8+j high 2 | scale 4+j high 2 | scale j high 2 |
    """
    low = quarters(blocks[..., 32:96].reshape(*blocks.shape[:2], 2, 32)).reshape(*blocks.shape[:2], 8, 32)
    high = quarters(blocks[..., 104:108]).reshape(*blocks.shape[:2], 16)
    scale = (nibbles(blocks[..., 96:104]) | high << 4).astype(np.int8) - np.int8(32)  # [N, blocks, 16]
    codes = rows(low | flags(blocks[..., 0:32]) << 2)
    return Parts(codes, rows(scale), super_scales=f16(blocks[..., 108:110]))


def q6_k(blocks: np.ndarray) -> Parts:
    """128 bytes: low 4 bits | 64 bytes: high 2 bits | 16 x i8 scale | d f16.  d * scale[k // 16] * (code - 32).

    Per half of 128 weights: 64 bytes of nibbles (weights 0-63 low, 64-127 high) and 32 bytes of four 2-bit fields
    (field j of byte l belongs to weight 32 j + l).
    """
    low = nibbles(blocks[..., 0:128].reshape(*blocks.shape[:2], 2, 64)).reshape(*blocks.shape[:2], 2, 4, 32)
    high = quarters(blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 32))  # [N, blocks, 2, 4, 32]
    return Parts(rows(low | high << 4), rows(words(blocks[..., 192:208], "i1")), super_scales=f16(blocks[..., 208:210]))


def tq1_0(blocks: np.ndarray) -> Parts:
    """48 + 4 bytes of base-3 digits | d f16.  d * (digit - 1).

    A byte holds digits as a fraction of 256: digit n is floor(3 * (byte * 3^n mod 256) / 256).
    Bytes 0-31 hold weights 0-159 (digit n of byte i is weight 32 n + i), 32-47 hold 160-239 (16 n + i),
    48-51 hold 240-255 (4 n + i).
    """
    def digits(first: int, last: int, per_byte: int) -> np.ndarray:
        field = blocks[..., None, first:last] * POWERS_OF_THREE[:per_byte]  # wraps at 256, as it should
        return (field.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(*blocks.shape[:2], -1)

    codes = np.concatenate([digits(0, 32, 5), digits(32, 48, 5), digits(48, 52, 4)], axis=-1)
    return Parts(rows(codes), f16(blocks[..., 52:54]))


def tq2_0(blocks: np.ndarray) -> Parts:
    """64 bytes of 2-bit fields | d f16.  d * (code - 1), code 3 unused.

    Per half of 128 weights: 32 bytes of four fields, field j of byte l is weight 32 j + l.
    """
    return Parts(rows(quarters(blocks[..., 0:64].reshape(*blocks.shape[:2], 2, 32))), f16(blocks[..., 64:66]))


def q1_0(blocks: np.ndarray) -> Parts:
    """d f16 | 16 bytes: bit i % 8 of byte i / 8 is weight i.  d where it is 1, else -d."""
    d = f16(blocks[..., 0:2])
    codes = np.unpackbits(blocks[..., 2:18], axis=-1, bitorder="little")
    with np.errstate(over="ignore"):
        return Parts(rows(codes), d * np.float16(2), -d)


def q2_0(blocks: np.ndarray) -> Parts:
    """d f16 | 16 bytes of 2-bit fields, four neighbours in a byte, low bits first.  d * (code - 1)."""
    return Parts(rows(quarters(blocks[..., 2:18]).swapaxes(-1, -2)), f16(blocks[..., 0:2]))


@dataclass(frozen=True)
class TensorType:
    """A row of READABLE.  Dense types have a dtype; quantised ones a format, and a decoder to it."""

    name: str
    block_size: int  # weights
    block_bytes: int
    dtype: np.dtype | None = None
    format: Format | None = None
    decode: Callable[[np.ndarray], Parts] | None = None

    @property
    def recoded(self) -> str:
        """What reading changes, in words; the values are the same for every type here."""
        return f"re-coded to {self.format.name} (lossless)" if self.format else "as stored"


def _dense(name: str, dtype: np.dtype) -> TensorType:
    return TensorType(name, 1, dtype.itemsize, dtype=dtype)


# ids: ggml.h, enum ggml_type
READABLE: dict[int, TensorType] = {
    0: _dense("F32", np.dtype("<f4")),
    1: _dense("F16", np.dtype("<f2")),
    30: _dense("BF16", np.dtype(ml_dtypes.bfloat16)),
    2: TensorType("Q4_0", 32, 18, format=catalog.planes(4, 32, zero=8), decode=q4_0),
    3: TensorType("Q4_1", 32, 20, format=catalog.planes(4, 32, offset="mins"), decode=q4_1),
    6: TensorType("Q5_0", 32, 22, format=catalog.planes(5, 32, zero=16), decode=q5_0),
    7: TensorType("Q5_1", 32, 24, format=catalog.planes(5, 32, offset="mins"), decode=q5_1),
    8: TensorType("Q8_0", 32, 34, format=catalog.int8(32), decode=q8_0),
    10: TensorType("Q2_K", 256, 84, format=catalog.k_quant(2, 16, "u8"), decode=q2_k),
    11: TensorType("Q3_K", 256, 110, format=catalog.k_quant(3, 16, "i8"), decode=q3_k),
    12: TensorType("Q4_K", 256, 144, format=catalog.k_quant(4, 32, "u8"), decode=q4_k),
    13: TensorType("Q5_K", 256, 176, format=catalog.k_quant(5, 32, "u8"), decode=q5_k),
    14: TensorType("Q6_K", 256, 210, format=catalog.k_quant(6, 16, "i8"), decode=q6_k),
    16: TensorType("IQ2_XXS", 256, 66, format=blocks_iq.IQ2_OF_32, decode=blocks_iq.iq2_xxs),
    17: TensorType("IQ2_XS", 256, 74, format=blocks_iq.IQ2_OF_16, decode=blocks_iq.iq2_xs),
    18: TensorType("IQ3_XXS", 256, 98, format=blocks_iq.IQ3_XXS, decode=blocks_iq.iq3_xxs),
    19: TensorType("IQ1_S", 256, 50, format=blocks_iq.IQ1_OF_32, decode=blocks_iq.iq1_s),
    20: TensorType("IQ4_NL", 32, 18, format=blocks_iq.IQ4_NL, decode=blocks_iq.iq4_nl),
    21: TensorType("IQ3_S", 256, 110, format=blocks_iq.IQ3_S, decode=blocks_iq.iq3_s),
    22: TensorType("IQ2_S", 256, 82, format=blocks_iq.IQ2_OF_16, decode=blocks_iq.iq2_s),
    23: TensorType("IQ4_XS", 256, 136, format=blocks_iq.IQ4_XS, decode=blocks_iq.iq4_xs),
    29: TensorType("IQ1_M", 256, 56, format=blocks_iq.IQ1_OF_16, decode=blocks_iq.iq1_m),
    34: TensorType("TQ1_0", 256, 54, format=catalog.ternary(256), decode=tq1_0),
    35: TensorType("TQ2_0", 256, 66, format=catalog.ternary(256), decode=tq2_0),
    39: TensorType("MXFP4", 32, 17, format=blocks_float.MXFP4, decode=blocks_float.mxfp4),
    40: TensorType("NVFP4", 64, 36, format=blocks_float.NVFP4, decode=blocks_float.nvfp4),
    41: TensorType("Q1_0", 128, 18, format=catalog.planes(1, 128, offset="mins"), decode=q1_0),
    42: TensorType("Q2_0", 64, 18, format=catalog.planes(2, 64, zero=1), decode=q2_0),
}

# for the error that says what a file holds instead
TYPE_NAMES = {9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}  # fmt: skip


def decode_matrix(kind: TensorType, data: np.ndarray, shape: tuple[int, int]) -> QTensor:
    """Decode a stored matrix, some rows at a time.

    data     uint8 [N * K / block_size * block_bytes]
    returns  QTensor (N, K)
    raises   FormatError    a code without meaning, or a scale that is not finite
    """
    assert kind.format is not None and kind.decode is not None
    n, k = shape
    blocks = data.reshape(n, k // kind.block_size, kind.block_bytes)
    step = max(1, CHUNK_WEIGHTS // k)
    parts = []
    for row in range(0, n, step):
        with np.errstate(invalid="ignore"):  # inf * 0 in a damaged file; QTensor refuses what comes of it
            decoded = kind.decode(blocks[row : row + step])
        parts.append(QTensor.from_codes(kind.format, **decoded._asdict()))
    return parts[0] if len(parts) == 1 else QTensor.concat(parts)
