"""GGUF blocks written: the inverse of the decoders in blocks.py, blocks_iq.py and blocks_float.py, bit for bit.

A type can hold a weight if its format is the one the type is read as, or the same with longer groups (a scale is then
written several times) or with scales of another float type that f16 holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lutra.errors import FormatError
from lutra.files import blocks_float
from lutra.files.blocks import READABLE
from lutra.formats.qtensor import QTensor
from lutra.formats.scales import FLOATS


def _bytes(values: np.ndarray, dtype: str = "<f2") -> np.ndarray:
    """Values [N, blocks] as little-endian bytes [N, blocks, size]."""
    stored = np.ascontiguousarray(values, np.dtype(dtype))
    return stored[..., None].view(np.uint8)


def _cut(codes: np.ndarray, *shape: int) -> np.ndarray:
    """What a block holds [N, blocks, ...] in another shape."""
    return codes.reshape(*codes.shape[:2], *shape)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes [..., 2 B] to bytes [..., B]: the first half low, the second high."""
    low, high = np.split(codes, 2, axis=-1)
    return np.asarray(low | high << 4, np.uint8)


def _quarters(codes: np.ndarray) -> np.ndarray:
    """2-bit codes [..., 4, B] to bytes [..., B]: the first B in the lowest field."""
    first, second, third, fourth = (codes[..., field, :] for field in range(4))
    return np.asarray(first | second << 2 | third << 4 | fourth << 6, np.uint8)


def _flags(bits: np.ndarray) -> np.ndarray:
    """Bits [..., 8, B] to bytes [..., B]: the first B in the lowest bit."""
    return np.asarray(np.packbits(bits, axis=-2, bitorder="little")[..., 0, :], np.uint8)


def _unsigned(values: np.ndarray, bits: int) -> np.ndarray:
    """Scales or mins as bytes.  Raises FormatError unless all fit in so many bits."""
    if values.min() < 0 or values.max() >> bits:
        raise FormatError(f"expected scales and mins of at most {bits} bits, got more; use another format")
    return values.astype(np.uint8)


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
    return [_bytes(b.scales[..., 0]), _nibbles(b.codes)]


def _q4_1(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0]), _bytes(b.mins[..., 0]), _nibbles(b.codes)]


def _fifth(codes: np.ndarray) -> list[np.ndarray]:
    return [np.packbits(codes >> 4, axis=-1, bitorder="little"), _nibbles(codes & 15)]


def _q5_0(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0]), *_fifth(b.codes)]


def _q5_1(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0]), _bytes(b.mins[..., 0]), *_fifth(b.codes)]


def _q8_0(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0]), b.codes ^ 0x80]


def _tq2_0(b: Blocks) -> list[np.ndarray]:
    return [_quarters(_cut(b.codes, 2, 4, 32)), _bytes(b.scales[..., 0])]


def _q1_0(b: Blocks) -> list[np.ndarray]:
    d = -b.mins[..., 0]
    if not np.array_equal(d * np.float16(2), b.scales[..., 0]):
        raise FormatError("expected levels -d and d, got others; use another format")
    return [_bytes(d), np.packbits(b.codes, axis=-1, bitorder="little")]


def _q2_0(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.scales[..., 0]), _quarters(_cut(b.codes, 16, 4).swapaxes(-1, -2))]


def _six_bits(b: Blocks) -> np.ndarray:
    """8 scales and 8 mins of 6 bits in 12 bytes, as _with_scales_of_32 in blocks.py reads them."""
    scales, mins = _unsigned(b.scales, 6), _unsigned(b.mins, 6)
    low = scales[..., :4] | scales[..., 4:] >> 4 << 6
    middle = mins[..., :4] | mins[..., 4:] >> 4 << 6
    return np.concatenate([low, middle, scales[..., 4:] & 15 | mins[..., 4:] << 4], axis=-1)


def _q4_k(b: Blocks) -> list[np.ndarray]:
    return [_bytes(b.supers), _bytes(-b.super_mins), _six_bits(b), _nibbles(_cut(b.codes, 4, 64))]


def _q5_k(b: Blocks) -> list[np.ndarray]:
    fifth = _flags(_cut(b.codes >> 4, 8, 32))
    return [_bytes(b.supers), _bytes(-b.super_mins), _six_bits(b), fifth, _nibbles(_cut(b.codes & 15, 4, 64))]


def _q2_k(b: Blocks) -> list[np.ndarray]:
    beside = _unsigned(b.scales, 4) | _unsigned(b.mins, 4) << 4
    return [beside, _quarters(_cut(b.codes, 2, 4, 32)), _bytes(b.supers), _bytes(-b.super_mins)]


def _less_32(b: Blocks) -> np.ndarray:
    """Scales as their types store them, with 32 added."""
    return _unsigned(b.scales.astype(np.int16) + 32, 6)


def _q3_k(b: Blocks) -> list[np.ndarray]:
    scale, third = _less_32(b), _flags(_cut(b.codes >> 2, 8, 32))
    high = _quarters(_cut(scale >> 4, 4, 4))
    return [third, _quarters(_cut(b.codes & 3, 2, 4, 32)), _nibbles(scale & 15), high, _bytes(b.supers)]


def _q6_k(b: Blocks) -> list[np.ndarray]:
    low, high = _nibbles(_cut(b.codes & 15, 2, 128)), _quarters(_cut(b.codes >> 4, 2, 4, 32))
    return [low, high, b.scales.view(np.uint8), _bytes(b.supers)]


def _iq4_xs(b: Blocks) -> list[np.ndarray]:
    scale = _less_32(b)
    high = (scale >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    low = scale[..., 0::2] & 15 | scale[..., 1::2] << 4
    codes = _nibbles(_cut(b.codes, 8, 32))
    return [_bytes(b.supers), _bytes(np.bitwise_or.reduce(high, axis=-1), "<u2"), low, codes]


def _mxfp4(b: Blocks) -> list[np.ndarray]:
    if int(b.scales.max()) > 253:
        raise FormatError("expected exponents below 254, got more; the weight is too large")
    return [(b.scales + 1).astype(np.uint8), _nibbles(b.codes)]


def _nvfp4(b: Blocks) -> list[np.ndarray]:
    if (b.supers != blocks_float.NV_HALF).any() or (b.scales > 0x7E).any():
        raise FormatError("expected scales without a factor for the tensor, got one; use another format")
    return [b.scales.astype(np.uint8), _nibbles(_cut(b.codes, 4, 16))]


ENCODERS: dict[str, Callable[[Blocks], list[np.ndarray]]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "TQ2_0": _tq2_0, "Q1_0": _q1_0, "Q2_0": _q2_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_NL": _q4_0, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "NVFP4": _nvfp4,
}  # fmt: skip
# GGUF type → the format it holds.  Groups may be longer than those of the format
WRITABLE = {kind.name: kind.format for kind in READABLE.values() if kind.format and kind.name in ENCODERS}
SIZES = {kind.name: (kind.block_size, kind.block_bytes) for kind in READABLE.values()}
SAME = ("bits", "alphabet", "levels", "terms", "zero", "super_dtype", "super_group", "offset")


def type_for(weight: QTensor) -> str:
    """The GGUF type that holds a weight exactly.

    raises   FormatError   none does, or rows that are not whole blocks
    """
    form, k = weight.format, weight.shape[1]
    for name, held in WRITABLE.items():
        fits = all(getattr(form, axis) == getattr(held, axis) for axis in SAME)
        fits &= form.scale_dtype == held.scale_dtype or (held.scale_dtype == "f16" and form.scale_dtype in FLOATS)
        if fits and (form.group_size or k) % held.group_size == 0 and (held.super_dtype == "none" or form == held):
            if k % SIZES[name][0]:
                raise FormatError(f"expected K a multiple of {SIZES[name][0]}, got {k} for {name}; use another format")
            return name
    raise FormatError(f"expected a format that a GGUF type holds ({', '.join(WRITABLE)}), got {form.name}; "
                      "choose one of: " + ", ".join(held.name for held in WRITABLE.values()))  # fmt: skip


def encode(weight: QTensor) -> tuple[str, np.ndarray]:
    """Write a weight as blocks.

    returns  the type's name, uint8 [N, K / block_size * block_bytes]
    raises   FormatError   as type_for; values that the type has no room for
    """
    name = type_for(weight)
    block_size, block_bytes = SIZES[name]
    blocks = cut(weight, block_size)
    try:
        if WRITABLE[name].scale_dtype == "f16":
            blocks = replace(blocks, scales=_f16(blocks.scales), mins=_f16(blocks.mins))
        fields = ENCODERS[name](blocks)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None
    stored = np.concatenate([_cut(field, -1) for field in fields], axis=-1)
    assert stored.shape[-1] == block_bytes and stored.dtype == np.uint8
    return name, stored.reshape(len(stored), -1)


def _f16(values: np.ndarray) -> np.ndarray:
    """The same values as f16.  Raises FormatError where they are not."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), values.astype(np.float32)):
        raise FormatError("expected scales that f16 holds, got finer or larger ones; use another format")
    return half
