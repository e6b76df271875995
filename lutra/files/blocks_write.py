"""GGUF blocks written: the inverse of the decoders in blocks.py, blocks_iq.py and blocks_float.py, bit for bit.

A type can hold a weight if its format is the one the type is read as, or the same with longer groups (a scale is then
written several times) or with scales of another float type that f16 holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lutra.errors import FormatError
from lutra.files import blocks_float, blocks_iq
from lutra.files.blocks import READABLE
from lutra.formats import catalog
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.scales import FLOATS


def _bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values [N, blocks] as little-endian bytes [N, blocks, size]."""
    stored = np.ascontiguousarray(values, np.dtype(dtype))
    return stored[..., None].view(np.uint8)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes [..., 2 B] to bytes [..., B]: the first half low, the second high."""
    low, high = np.split(codes, 2, axis=-1)
    return np.asarray(low | high << 4, np.uint8)


def _neighbours(codes: np.ndarray) -> np.ndarray:
    """Codes [..., 2 B] to bytes [..., B]: of each two the first low."""
    return np.asarray(codes[..., 0::2] | codes[..., 1::2] << 4, np.uint8)


def _quarters(codes: np.ndarray) -> np.ndarray:
    """2-bit codes [..., 4, B] to bytes [..., B]: the first B in the lowest field."""
    first, second, third, fourth = (codes[..., field, :] for field in range(4))
    return np.asarray(first | second << 2 | third << 4 | fourth << 6, np.uint8)


def _flags(bits: np.ndarray) -> np.ndarray:
    """Bits [..., 8, B] to bytes [..., B]: the first B in the lowest bit."""
    return np.asarray(np.packbits(bits, axis=-2, bitorder="little")[..., 0, :], np.uint8)


@dataclass(frozen=True)
class Blocks:
    """A weight cut into the blocks of a type.

    codes    uint8 [N, blocks, weights]
    scales   [N, blocks, groups] and so are mins; supers [N, blocks]
    """

    codes: np.ndarray
    scales: np.ndarray
    mins: np.ndarray
    supers: np.ndarray
    super_mins: np.ndarray


def cut(weight: QTensor, block: int) -> Blocks:
    """Cut every row into blocks of `block` weights, each with its groups."""
    n, k = weight.shape
    count = k // block

    def groups(values: np.ndarray | None, group: int) -> np.ndarray:
        if values is None:
            return np.zeros((n, count, 1))
        if group >= block or not group:
            return np.repeat(values, (group or k) // block, axis=1)[:, :count, None]
        return values[:, : k // group].reshape(n, count, -1)

    form = weight.format
    sizes = (form.group_size, form.group_size, form.super_group, form.super_group)
    parts = (weight.scales, weight.mins, weight.super_scales, weight.super_mins)
    scales, mins, supers, super_mins = (groups(part, size) for part, size in zip(parts, sizes, strict=True))
    return Blocks(weight.codes().reshape(n, count, block), scales, mins, supers[..., 0], super_mins[..., 0])


def _q4_0(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0], "<f2"), _nibbles(b.codes)]


def _q4_1(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0], "<f2"), _bytes(b.mins[..., 0], "<f2"), _nibbles(b.codes)]


def _fifth(codes: np.ndarray) -> list[np.ndarray]:
    return [np.packbits(codes >> 4, axis=-1, bitorder="little"), _nibbles(codes & 15)]


def _q5_0(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0], "<f2"), *_fifth(b.codes)]


def _q5_1(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0], "<f2"), _bytes(b.mins[..., 0], "<f2"), *_fifth(b.codes)]


def _q8_0(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0], "<f2"), b.codes ^ 0x80]


def _tq2_0(b: Blocks) -> list[np.ndarray]:
    halves = b.codes.reshape(*b.codes.shape[:2], 2, 4, 32)
    return [_quarters(halves).reshape(*b.codes.shape[:2], 64), _bytes(b.scales[..., 0], "<f2")]


def _q1_0(b: Blocks) -> list[np.ndarray]:
    d = -b.mins[..., 0]
    if not np.array_equal(d * np.float16(2), b.scales[..., 0]):
        raise FormatError("Q1_0: expected levels -d and d, got others; write it as Q4_1")
    return [_bytes(d, "<f2"), np.packbits(b.codes, axis=-1, bitorder="little")]


def _q2_0(b: Blocks) -> list[np.ndarray]:
    fields = b.codes.reshape(*b.codes.shape[:2], 16, 4).swapaxes(-1, -2)
    return [_bytes(b.scales[..., 0], "<f2"), _quarters(fields)]


def _six_bits(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """8 scales and 8 mins of 6 bits in 12 bytes, as _scales_and_mins_of_32 in blocks.py reads them."""
    if max(int(scales.max()), int(mins.max())) > 63:
        raise FormatError("expected scales and mins of at most 6 bits, got more; write it as another type")
    low = scales[..., :4] | scales[..., 4:] >> 4 << 6
    middle = mins[..., :4] | mins[..., 4:] >> 4 << 6
    return np.concatenate([low, middle, scales[..., 4:] & 15 | mins[..., 4:] << 4], axis=-1).astype(np.uint8)


def _k_head(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.supers, "<f2"), _bytes(-b.super_mins, "<f2"), _six_bits(b.scales, b.mins)]


def _q4_k(b: Blocks) -> list[np.ndarray]:
    chunks = b.codes.reshape(*b.codes.shape[:2], 4, 64)
    return [*_k_head(b), _nibbles(chunks).reshape(*b.codes.shape[:2], 128)]


def _q5_k(b: Blocks) -> list[np.ndarray]:
    fifth = _flags(b.codes.reshape(*b.codes.shape[:2], 8, 32) >> 4)
    chunks = (b.codes & 15).reshape(*b.codes.shape[:2], 4, 64)
    return [*_k_head(b), fifth, _nibbles(chunks).reshape(*b.codes.shape[:2], 128)]


def _q2_k(b: Blocks) -> list[np.ndarray]:
    if max(int(b.scales.max()), int(b.mins.max())) > 15:
        raise FormatError("Q2_K: expected scales and mins of at most 4 bits, got more; write it as another type")
    halves = b.codes.reshape(*b.codes.shape[:2], 2, 4, 32)
    codes = _quarters(halves).reshape(*b.codes.shape[:2], 64)
    return [np.asarray(b.scales | b.mins << 4, np.uint8), codes, _bytes(b.supers, "<f2"), _bytes(-b.super_mins, "<f2")]


def _q3_k(b: Blocks) -> list[np.ndarray]:
    shifted = b.scales.astype(np.int16) + 32
    if shifted.min() < 0 or shifted.max() > 63:
        raise FormatError("Q3_K: expected scales of at most 6 bits, got more; write it as another type")
    scale = shifted.astype(np.uint8)
    third = _flags(b.codes.reshape(*b.codes.shape[:2], 8, 32) >> 2)
    codes = _quarters((b.codes & 3).reshape(*b.codes.shape[:2], 2, 4, 32)).reshape(*b.codes.shape[:2], 64)
    high = _quarters((scale >> 4).reshape(*b.codes.shape[:2], 4, 4))
    return [third, codes, _nibbles(scale & 15), high, _bytes(b.supers, "<f2")]


def _q6_k(b: Blocks) -> list[np.ndarray]:
    halves = b.codes.reshape(*b.codes.shape[:2], 2, 128)
    low = _nibbles(halves & 15).reshape(*b.codes.shape[:2], 128)
    high = _quarters((halves >> 4).reshape(*b.codes.shape[:2], 2, 4, 32)).reshape(*b.codes.shape[:2], 64)
    return [low, high, b.scales.view(np.uint8), _bytes(b.supers, "<f2")]


def _iq4_xs(b: Blocks) -> list[np.ndarray]:
    shifted = b.scales.astype(np.int16) + 32
    if shifted.min() < 0 or shifted.max() > 63:
        raise FormatError("IQ4_XS: expected scales of at most 6 bits, got more; write it as another type")
    high = (shifted >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    low = _neighbours((shifted & 15).astype(np.uint8))
    codes = _nibbles(b.codes.reshape(*b.codes.shape[:2], 8, 32)).reshape(*b.codes.shape[:2], 128)
    return [_bytes(b.supers, "<f2"), _bytes(np.bitwise_or.reduce(high, axis=-1), "<u2"), low, codes]


def _mxfp4(b: Blocks) -> list[np.ndarray]:
    if int(b.scales.max()) > 253:
        raise FormatError("MXFP4: expected exponents below 254, got more; the weight is too large")
    return [(b.scales + 1).astype(np.uint8), _nibbles(b.codes)]


def _nvfp4(b: Blocks) -> list[np.ndarray]:
    if (b.supers != blocks_float.NV_HALF).any() or (b.scales > 0x7E).any():
        raise FormatError("NVFP4: expected scales without a factor for the tensor, got one; write it as another type")
    codes = _nibbles(b.codes.reshape(*b.codes.shape[:2], 4, 16)).reshape(*b.codes.shape[:2], 32)
    return [b.scales.astype(np.uint8), codes]


# GGUF type → (a format it holds, how).  Groups may be longer than those of the format
WRITABLE: dict[str, tuple[Format, Callable[[Blocks], list[np.ndarray]]]] = {
    "Q4_0": (catalog.planes(4, 32), _q4_0),
    "Q4_1": (catalog.planes(4, 32, offset="mins"), _q4_1),
    "Q5_0": (catalog.planes(5, 32), _q5_0),
    "Q5_1": (catalog.planes(5, 32, offset="mins"), _q5_1),
    "Q8_0": (catalog.int8(32), _q8_0),
    "TQ2_0": (catalog.ternary(256), _tq2_0),
    "Q1_0": (catalog.planes(1, 128, offset="mins"), _q1_0),
    "Q2_0": (catalog.planes(2, 64, zero=1), _q2_0),
    "Q2_K": (catalog.planes(2, 16, offset="mins", scale_dtype="u8", super_dtype="f16"), _q2_k),
    "Q3_K": (catalog.planes(3, 16, scale_dtype="i8", super_dtype="f16"), _q3_k),
    "Q4_K": (catalog.planes(4, 32, offset="mins", scale_dtype="u8", super_dtype="f16"), _q4_k),
    "Q5_K": (catalog.planes(5, 32, offset="mins", scale_dtype="u8", super_dtype="f16"), _q5_k),
    "Q6_K": (catalog.planes(6, 16, scale_dtype="i8", super_dtype="f16"), _q6_k),
    "IQ4_NL": (blocks_iq.IQ4_NL, _q4_0),
    "IQ4_XS": (blocks_iq.IQ4_XS, _iq4_xs),
    "MXFP4": (blocks_float.MXFP4, _mxfp4),
    "NVFP4": (blocks_float.NVFP4, _nvfp4),
}
SIZES = {kind.name: (kind.block_size, kind.block_bytes) for kind in READABLE.values()}
SAME = ("bits", "alphabet", "levels", "terms", "zero", "super_dtype", "super_group", "offset")


def type_for(weight: QTensor) -> str:
    """The GGUF type that holds a weight exactly.

    raises   FormatError   none does, or rows that are not whole blocks
    """
    form, k = weight.format, weight.shape[1]
    for name, (held, _) in WRITABLE.items():
        fits = all(getattr(form, axis) == getattr(held, axis) for axis in SAME)
        fits &= form.scale_dtype == held.scale_dtype or (held.scale_dtype == "f16" and form.scale_dtype in FLOATS)
        if fits and (form.group_size or k) % held.group_size == 0 and (held.super_dtype == "none" or form == held):
            if k % SIZES[name][0]:
                raise FormatError(f"{name}: expected K a multiple of {SIZES[name][0]}, got {k}; use another format")
            return name
    raise FormatError(f"expected a format that a GGUF type holds ({', '.join(WRITABLE)}), got {form.name}; "
                      "choose one of: " + ", ".join(held.name for held, _ in WRITABLE.values()))  # fmt: skip


def encode(weight: QTensor) -> tuple[str, np.ndarray]:
    """Write a weight as blocks.

    returns  the type's name, uint8 [N, K / block_size * block_bytes]
    raises   FormatError   as type_for; values that the type has no room for
    """
    name = type_for(weight)
    block_size, block_bytes = SIZES[name]
    blocks = cut(weight, block_size)
    if WRITABLE[name][0].scale_dtype == "f16":
        blocks = replace(blocks, scales=_f16(name, blocks.scales), mins=_f16(name, blocks.mins))
    fields = WRITABLE[name][1](blocks)
    stored = np.concatenate(fields, axis=-1)
    assert stored.shape[-1] == block_bytes and stored.dtype == np.uint8
    return name, stored.reshape(len(stored), -1)


def _f16(name: str, values: np.ndarray) -> np.ndarray:
    """The same values as f16.  Raises FormatError where they are not."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), values.astype(np.float32)):
        raise FormatError(f"{name}: expected scales that f16 holds, got finer or larger ones; use another format")
    return half
