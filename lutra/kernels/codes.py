"""Codes of keys and values, and integers of queries and attention weights: what they are in NumPy and in kernels.

A vector of codes has a scale and a minimum, value = scale * code + minimum, both f16:

    minimum = least element, scale = (largest - least) / (2**bits - 1), code = nearest

Source    both ends of the range: as llama.cpp's Q4_1 cache; asymmetric because keys have a mean (KIVI, arXiv
          2402.02750, section 3)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.compiler.language import (
    Value,
    bitcast,
    const,
    convert,
    f16,
    f32,
    i8,
    i32,
    maximum,
    minimum,
    reduce_max,
    round_even,
    select,
    shuffle,
    splat,
    u8,
)
from lutra.formats.reduce import NUM_LANES
from lutra.kernels.rope import held, held_spec
from lutra.kernels.tiles import round_up

F16_LIMIT = 65504.0  # keys and values are held at it, and NaN counts as 0
QUERY_LIMIT = 1e20  # queries likewise: their scores stay finite, and no float without an integer is ever converted
SMALLEST = 1e-20  # a largest magnitude below it counts as this, so that its reciprocal stays finite


@dataclass(frozen=True)
class Codes:
    """A kind of cache that holds codes.

    bits    of one code
    parts   bytes of a query element or an attention weight that meets them: 2 keep their rounding far below that of
            8-bit codes, and 1 does so for 4-bit codes
    group   positions whose keys share a scale and a minimum, of each channel; 0: every key has its own
    """

    name: str
    bits: int
    parts: int
    group: int = 0

    @property
    def per_byte(self) -> int:
        return 8 // self.bits

    @property
    def levels(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def most(self) -> int:
        """The largest magnitude of an integer of `parts` bytes whose bytes are all signed."""
        return {1: 127, 2: 127 * 256 + 127}[self.parts]

    def key_columns(self, head_dim: int) -> int:
        """Elements a key is stored with."""
        return round_up(head_dim, 4 * self.per_byte)

    def value_columns(self, head_dim: int) -> int:
        """Elements a value is stored with."""
        return round_up(head_dim, NUM_LANES * self.per_byte)


CODES = {
    kind.name: kind
    for kind in (
        Codes("int8", 8, 2),
        Codes("int4", 4, 1),
        Codes("kivi4", 4, 1, 64),
        Codes("kivi2", 2, 1, 64),
    )
}


# ---- in NumPy --------------------------------------------------------------------------------------------------------


def quantize_spec(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of vectors that the cache is to hold.

    x        f32 [..., D]
    returns  uint8 [..., D], and as the f32 values of f16 numbers: scale [...], minimum [...]
    """
    levels = np.float32(CODES[kind].levels)
    x = held_spec(x, F16_LIMIT)
    least, largest = x.min(-1) + np.float32(0), x.max(-1)  # -0 becomes 0
    minimum = least.astype(np.float16).astype(np.float32)
    scale = ((largest - least) / levels).astype(np.float16).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    steps = (x - minimum[..., None]) * inverse[..., None]
    return np.rint(steps.clip(0, levels)).astype(np.uint8), scale, minimum


def integers_spec(x: np.ndarray, inverse: np.ndarray, parts: int) -> np.ndarray:
    """Integers of queries or weights as bytes.

    x        f32 [..., D]
    inverse  f32 [...]        integers that make 1
    returns  int8 [parts, ..., D]: integer = sum of 256**(parts - 1 - i) * byte[i]
    """
    whole = np.rint(x * inverse[..., None]).astype(np.int32)
    high = (whole + 128) >> 8
    return np.stack([whole] if parts == 1 else [high, whole - 256 * high]).astype(np.int8)


def joined_spec(codes: np.ndarray, kind: Codes) -> np.ndarray:
    """uint8 [n, per_byte, width] to the bytes [n, width] that hold them, the first lowest."""
    shifts = np.arange(kind.per_byte, dtype=np.uint8)[:, None] * np.uint8(kind.bits % 8)
    return np.bitwise_or.reduce(codes << shifts, axis=1)


def split_spec(stored: np.ndarray, kind: Codes) -> np.ndarray:
    """Codes that share a byte, the lowest first: uint8 [per_byte, ...]."""
    return np.stack([stored >> np.uint8(kind.bits * i) & np.uint8(kind.levels) for i in range(kind.per_byte)])


# ---- in kernels ------------------------------------------------------------------------------------------------------


def integers(v: Value, inverse: Value) -> Value:
    """i32 nearest to v * inverse."""
    return convert(round_even(v * inverse), i32)


def low_integers(v: Value, inverse: Value) -> Value:
    """i32 whose lowest 22 bits are those of `integers`: adding 1.5 * 2**23 leaves a whole number there."""
    return bitcast(v * inverse + 12582912.0, i32)


def signed_bytes(whole: Value, parts: int) -> list[Value]:
    """The bytes of integers as integers_spec cuts them, the highest first; bits above theirs do not matter."""
    low = convert(whole, i8)
    return [low] if parts == 1 else [convert((whole + 128) >> 8, i8), low]


def quantized(parts: list[Value], kind: Codes, count: int) -> tuple[list[Value], Value, Value]:
    """u8x16 codes of a vector of `count` elements, 0 beyond them; scale and minimum, f16.

    parts  f32x16 each; what fills the last must not lie outside the range of the others
    """
    parts = [held(v, F16_LIMIT) for v in parts]
    low = high = parts[0]
    for v in parts[1:]:
        low, high = minimum(low, v), maximum(high, v)
    least, largest = 0.0 - reduce_max(0.0 - low), reduce_max(high)
    base = convert(least, f16)
    scale = convert((largest - least) / float(kind.levels), f16)
    step = convert(scale, f32)
    inverse = splat(select(step > 0.0, 1.0 / select(step > 0.0, step, 1.0), 0.0), NUM_LANES)
    origin = splat(convert(base, f32), NUM_LANES)
    codes = [_code((v - origin) * inverse, kind) for v in parts]
    inside = count % NUM_LANES
    if inside:
        none = const(0, u8, NUM_LANES)
        codes[-1] = shuffle(codes[-1], none, [i if i < inside else NUM_LANES for i in range(NUM_LANES)])
    return codes, scale, base


def _code(steps: Value, kind: Codes) -> Value:
    limited = minimum(maximum(steps, 0.0), float(kind.levels))
    return convert(convert(round_even(limited), i32), u8)


def joined(codes: list[Value], kind: Codes) -> Value:
    """The bytes or words that hold codes, the first lowest."""
    total = codes[0]
    for i, code in enumerate(codes[1:], 1):
        total = total | code << kind.bits * i
    return total


def code(stored: Value, i: int, kind: Codes) -> Value:
    """The i-th code of every byte."""
    if kind.per_byte == 1:
        return stored
    if i == kind.per_byte - 1:
        return stored >> kind.bits * i
    return (stored >> kind.bits * i if i else stored) & kind.levels
