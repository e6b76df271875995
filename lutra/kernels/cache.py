"""The KV cache of one layer: which kinds there are, and how each lies in memory.

Float kinds (f16, bf16, f32) are laid out in rope.py.  Code kinds hold a key or a value vector of one position and one
key/value head as unsigned codes with a scale and a minimum of its own, value = scale * code + minimum, both f16:

    minimum = least element, scale = (largest - least) / (2**bits - 1), code = nearest

Codes lie in words of 4 bytes, each the operand of one lane of dot4; D = head_dim, `per_byte` = 8 / bits:

    keys     u8 [kv_heads, context / 16, D / (4 per_byte), 16 positions, 4]     4 neighbouring d a word
    values   u8 [kv_heads, context / 64, D / (16 per_byte), 16, 16 lanes, 4]    4 positions of one d a word, lane = d
    scales   f16 [kv_heads, context / 16, 2, 16]                                scale, then minimum, of 16 positions

With int4 the high half of a byte holds what lies one word (keys: d + 4) or one vector (values: d + 16) further on, so
every byte belongs to one position: rows that are stored at the same time never share one.

Source    per token and head, both ends of the range: as llama.cpp's Q4_1 cache, with a head for a block; asymmetric
          because keys have a mean (KIVI, arXiv 2402.02750, section 3)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels import rope
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import round_up

BLOCK = rope.BLOCK  # positions of a key word row
STRIDE = rope.STRIDE  # positions whose attention weights share a value of 1; caches grow by it
F16_LIMIT = 65504.0  # keys and values are held at it, and NaN counts as 0
QUERY_LIMIT = 1e20  # queries likewise: their scores stay finite, and no float without an integer is ever converted


@dataclass(frozen=True)
class Codes:
    """A kind of cache that holds codes.

    bits    of one code
    parts   bytes of a query element or an attention weight that meets them: 2 keep their rounding far below that of
            8-bit codes, and 1 does so for 4-bit codes
    """

    name: str
    bits: int
    parts: int

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


CODES = {"int8": Codes("int8", 8, 2), "int4": Codes("int4", 4, 1)}
KINDS = (*rope.FLOATS, *CODES)
DEFAULT_KIND = "f16"


@dataclass(frozen=True)
class Cache:
    """Keys and values of one layer; the two arrays of scales are empty for float kinds."""

    kind: str
    head_dim: int
    keys: np.ndarray
    values: np.ndarray
    key_scales: np.ndarray
    value_scales: np.ndarray

    @property
    def kv_heads(self) -> int:
        return int(self.keys.shape[0])

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (self.keys, self.values, self.key_scales, self.value_scales))


@dataclass(frozen=True)
class Queries:
    """What attention over codes works with, shared by all layers.

    codes     i8 [rows, heads, parts, columns]   rotated queries as integers; of two parts the high bytes come first
    scales    f32 [rows, heads, 2]               the value of 1, and the sum of the row's integers
    """

    codes: np.ndarray
    scales: np.ndarray


def allocate(kind: str, kv_heads: int, context: int, head_dim: int) -> Cache:
    """Zeroed room for at least `context` positions.  Raises KernelError for a kind there is not."""
    check_kind(kind)
    if kind in rope.FLOATS:
        keys, values = rope.allocate_cache(kv_heads, context, head_dim, kind)
        none = np.zeros(0, np.float16)
        return Cache(kind, head_dim, keys, values, none, none)
    codes, steps = CODES[kind], -(-context // STRIDE)
    key_words, value_vectors = (
        codes.key_columns(head_dim) // (4 * codes.per_byte),
        codes.value_columns(head_dim) // (NUM_LANES * codes.per_byte),
    )
    blocks = steps * (STRIDE // BLOCK)
    return Cache(
        kind,
        head_dim,
        aligned((kv_heads, blocks, key_words, BLOCK, 4), np.uint8),
        aligned((kv_heads, steps, value_vectors, STRIDE // 4, NUM_LANES, 4), np.uint8),
        aligned((kv_heads, blocks, 2, BLOCK), np.float16),
        aligned((kv_heads, blocks, 2, BLOCK), np.float16),
    )


def allocate_queries(kind: str, rows: int, heads: int, head_dim: int) -> Queries:
    """Room for the queries of `rows` rows; `kind` is one of CODES."""
    parts, columns = CODES[kind].parts, round_up(head_dim, NUM_LANES)
    return Queries(
        aligned((rows, heads, parts, columns), np.int8),
        aligned((rows, heads, 2), np.float32),
    )


def position_bytes(kind: str, kv_heads: int, head_dim: int) -> int:
    """Bytes one position takes in one layer."""
    check_kind(kind)
    if kind in rope.FLOATS:
        return kv_heads * (head_dim + rope.padded(head_dim)) * rope.FLOATS[kind][0].size_bytes
    codes, scale_bytes = CODES[kind], 2 * 2 * np.dtype(np.float16).itemsize
    return kv_heads * ((codes.key_columns(head_dim) + codes.value_columns(head_dim)) // codes.per_byte + scale_bytes)


def check_kind(kind: str) -> None:
    """Raise KernelError for a kind of cache there is not."""
    if kind not in KINDS:
        raise KernelError(f"expected a KV cache of {', '.join(KINDS)}, got {kind!r}; choose one of them")


# ---- the integers in NumPy ------------------------------------------------------------------------------------------


def quantize_spec(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of vectors that the cache is to hold.

    x        f32 [..., D]
    returns  uint8 [..., D], and as the f32 values of f16 numbers: scale [...], minimum [...]
    """
    levels = np.float32(CODES[kind].levels)
    x = rope.held_spec(x, F16_LIMIT)
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
