"""The KV cache of one layer: which kinds there are, and how each lies in memory.

Float kinds (f16, bf16, f32) are laid out in rope.py.  Code kinds hold a key or a value vector of one position and one
key/value head as codes (codes.py) with a scale and a minimum of its own.

Codes lie in words of 4 bytes, each the operand of one lane of dot4; D = head_dim, `per_byte` = 8 / bits:

    keys     u8 [kv_heads, context / 16, D / (4 per_byte), 16 positions, 4]     4 neighbouring d a word
    values   u8 [kv_heads, context / 64, D / (16 per_byte), 16, 16 lanes, 4]    4 positions of one d a word, lane = d
    scales   f16 [kv_heads, context / 16, 2, 16]                                scale, then minimum, of 16 positions

The higher codes of a byte lie one word (keys: d + 4) or one vector (values: d + 16) further on, and so forth, so every
byte belongs to one position: rows that are stored at the same time never share one.

KIVI's kinds quantise values like that, and keys by channel: the keys of a group of 64 positions, counted from position
0, share a scale and a minimum for each channel.  They become codes when the last of the group is there; until then, and
as long as a row of the same group may ask for them, they stay in `recent`, in f16, where a group of positions takes the
place of the one `recent_groups` before it.  A row reads keys of its own group there, and those of all groups before as
codes: what it reads is decided by positions alone.

    scales of keys    f16 [kv_heads, context / 64, 2, D padded to 16]
    recent            f16 [kv_heads, recent blocks, D, 16 positions]

Source    KIVI: Liu et al., arXiv 2402.02750, section 3.3; there groups of 32 positions, and 128 newest keys as floats
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
    """Keys and values of one layer; arrays that a kind does not need are empty."""

    kind: str
    head_dim: int
    keys: np.ndarray
    values: np.ndarray
    key_scales: np.ndarray
    value_scales: np.ndarray
    recent: np.ndarray

    @property
    def kv_heads(self) -> int:
        return int(self.keys.shape[0])

    @property
    def num_bytes(self) -> int:
        return sum(a.nbytes for a in (self.keys, self.values, self.key_scales, self.value_scales, self.recent))

    @property
    def recent_groups(self) -> int:
        """Groups of positions that `recent` has room for."""
        return int(self.recent.shape[1]) * BLOCK // CODES[self.kind].group


@dataclass(frozen=True)
class Queries:
    """What attention over codes works with, shared by all layers.

    codes     i8 [rows, heads, parts, columns]   rotated queries as integers; of two parts the high bytes come first
    scales    f32 [rows, heads, 2]               the value of 1, and the sum of the row's integers
    """

    codes: np.ndarray
    scales: np.ndarray


def allocate(kind: str, kv_heads: int, context: int, head_dim: int, rows: int = 1) -> Cache:
    """Zeroed room for at least `context` positions, stored by steps of at most `rows` rows.

    Raises KernelError for a kind there is not.
    """
    check_kind(kind)
    if kind in rope.FLOATS:
        keys, values = rope.allocate_cache(kv_heads, context, head_dim, kind)
        return Cache(kind, head_dim, keys, values, *[np.zeros(0, np.float16)] * 3)
    codes, steps = CODES[kind], -(-context // STRIDE)
    key_words, value_vectors = (
        codes.key_columns(head_dim) // (4 * codes.per_byte),
        codes.value_columns(head_dim) // (NUM_LANES * codes.per_byte),
    )
    blocks, group = steps * QUARTERS, codes.group
    key_scales: tuple[int, ...] = (kv_heads, blocks, 2, BLOCK)
    recent_blocks = 0
    if group:
        key_scales = (kv_heads, steps * STRIDE // group, 2, rope.padded(head_dim))
        recent_blocks = (-(-(rows - 1) // group) + 1) * (group // BLOCK)  # the groups that `rows` rows may touch
    return Cache(
        kind,
        head_dim,
        aligned((kv_heads, blocks, key_words, BLOCK, 4), np.uint8),
        aligned((kv_heads, steps, value_vectors, STRIDE // 4, NUM_LANES, 4), np.uint8),
        aligned(key_scales, np.float16),
        aligned((kv_heads, blocks, 2, BLOCK), np.float16),
        aligned((kv_heads, recent_blocks, head_dim, BLOCK), np.float16),
    )


def allocate_queries(kind: str, rows: int, heads: int, head_dim: int) -> Queries:
    """Room for the queries of `rows` rows; `kind` is one of CODES."""
    parts, columns = CODES[kind].parts, round_up(head_dim, NUM_LANES)
    return Queries(
        aligned((rows, heads, parts, columns), np.int8),
        aligned((rows, heads, 2), np.float32),
    )


def position_bytes(kind: str, kv_heads: int, head_dim: int) -> int:
    """Bytes one position takes in one layer; what `recent` takes does not grow with them."""
    check_kind(kind)
    if kind in rope.FLOATS:
        return kv_heads * (head_dim + rope.padded(head_dim)) * rope.FLOATS[kind][0].size_bytes
    codes, pair_bytes = CODES[kind], 2 * np.dtype(np.float16).itemsize
    key_bytes = pair_bytes * rope.padded(head_dim) // codes.group if codes.group else pair_bytes
    columns = codes.key_columns(head_dim) + codes.value_columns(head_dim)
    return kv_heads * (columns // codes.per_byte + key_bytes + pair_bytes)


def resumable(kind: str, position: int) -> int:
    """The last position up to `position` at which a cache may go on with another text.

    Of a group that is cut, the keys before may have given way in `recent` to those of the text that was there.
    """
    group = CODES[kind].group if kind in CODES else 0
    return position // group * group if group else position


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
