"""The KV cache of one layer: which kinds there are, and how each lies in memory.

Float kinds (f16, bf16, f32) are laid out in rope.py.  Code kinds hold a key or a value vector of one position and one
key/value head as codes (codes.py) with a scale and a minimum of its own.

Codes lie in words of 4 bytes, each the operand of one lane of dot4; D = head_dim, `per_byte` = 8 / bits:

    keys     u8 [kv_heads, context / 16, D / (4 per_byte), 16 positions, 4]     4 neighbouring d a word
    values   u8 [kv_heads, context / 64, D / (16 per_byte), 16, 16 lanes, 4]    4 positions of one d a word, lane = d
    scales   f16 [kv_heads, context / 16, 2, 16]                                scale, then minimum, of 16 positions

With int4 the high half of a byte holds what lies one word (keys: d + 4) or one vector (values: d + 16) further on, so
every byte belongs to one position: rows that are stored at the same time never share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.errors import KernelError
from lutra.formats.reduce import NUM_LANES
from lutra.kernels import rope
from lutra.kernels.buffers import aligned
from lutra.kernels.codes import CODES, split_spec
from lutra.kernels.tiles import round_up

BLOCK = rope.BLOCK  # positions of a key word row
STRIDE = rope.STRIDE  # positions whose attention weights share a value of 1; caches grow by it
QUARTERS = STRIDE // BLOCK

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


# ---- what is stored, in NumPy ----------------------------------------------------------------------------------------


def keys_of(cache: Cache, step: int) -> np.ndarray:
    """Codes of a block of 64 keys: uint8 [kv_heads, 64, D]."""
    stored = cache.keys[:, step * QUARTERS : (step + 1) * QUARTERS]  # [kv, 4, words, 16, 4]
    parts = split_spec(stored, CODES[cache.kind])  # [per_byte, kv, 4, words, 16, 4]
    return parts.transpose(1, 2, 4, 3, 0, 5).reshape(cache.kv_heads, STRIDE, -1)[..., : cache.head_dim]


def values_of(cache: Cache, step: int) -> np.ndarray:
    """Codes of a block of 64 values: uint8 [kv_heads, 64, D]."""
    parts = split_spec(cache.values[:, step], CODES[cache.kind])  # [per_byte, kv, vectors, 16 quads, 16 lanes, 4]
    return parts.transpose(1, 3, 5, 2, 0, 4).reshape(cache.kv_heads, STRIDE, -1)[..., : cache.head_dim]


def scales_of(scales: np.ndarray, step: int) -> np.ndarray:
    """Scales and minima of a block of 64 positions: f32 [2, kv_heads, 64]."""
    blocks = scales[:, step * QUARTERS : (step + 1) * QUARTERS].astype(np.float32)  # [kv, 4, 2, 16]
    return blocks.transpose(2, 0, 1, 3).reshape(2, len(scales), STRIDE)
