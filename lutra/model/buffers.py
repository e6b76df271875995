"""The memory one transformer works in: activations of a chunk of rows, the KV cache, the step's state."""

from __future__ import annotations

import os

import numpy as np

from lutra.errors import CapacityError
from lutra.kernels import cache, kv
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import round_up
from lutra.model.angles import cos_sin
from lutra.model.config import ModelConfig
from lutra.model.rope import rope_frequencies

ROW_BLOCK = 16  # rows are padded to this, so that kernels may compute whole blocks
COLUMN_BLOCK = 64
_ANGLE_BLOCK = 4096  # positions whose angles are computed at a time, in float64

# Fields of `state`, an int64 vector every row-dependent kernel reads.
NUM_ROWS, POSITION, HEAD_ROW, NUM_HEAD_ROWS = 0, 1, 2, 3


class Buffers:
    """Activations for up to `rows` tokens at once, and keys and values for `context` positions.

    tokens    int64 [rows]
    residual  f32 [rows, hidden]          the stream that layers add to
    qkv       f32 [rows, (heads + 2 * kv_heads) * head_dim]
    attended  f32 [rows, heads * head_dim]
    gated     f32 [rows, ffn]
    logits    f32 [head_rows, vocab]
    best      i32 [head_rows]             first index of the largest logit
    caches                                keys and values per layer, see kernels/cache.py
    queries                               integers, where the cache holds codes
    Row lengths are rounded up to 64 columns (and 256 where a group needs it); what lies beyond the width stays zero.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        rows: int,
        head_rows: int,
        factors: np.ndarray | None,
        kind: str = cache.DEFAULT_KIND,
    ):
        self.context, self.rows, self.head_rows = round_up(context, 16), round_up(rows, ROW_BLOCK), head_rows
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        self.state, self.head_state = aligned((8,), np.int64), aligned((8,), np.int64)
        self.tokens = aligned((self.rows,), np.int64)
        self.residual = self._matrix(config.hidden_size)
        self.qkv = self._matrix((heads + 2 * kv_heads) * width)
        self.attended = self._matrix(heads * width)
        self.gated = self._matrix(config.ffn_size)
        self.logits = aligned((round_up(head_rows, ROW_BLOCK), _columns(config.vocab_size)), np.float32)
        self.best = aligned((len(self.logits),), np.int32)
        self.caches = _allocate_caches(config, context, kind, self.rows)
        self.queries = kv.queries_for(kind, self.rows, heads, width)
        self.cos, self.sin = _rotations(self.context, rope_frequencies(config, factors))

    @property
    def position_bytes(self) -> int:
        """Bytes that one position takes in the caches of all layers."""
        return sum(cache.position_bytes(each.kind, each.kv_heads, each.head_dim) for each in self.caches)

    def _matrix(self, width: int) -> np.ndarray:
        return aligned((self.rows, _columns(width)), np.float32)


def _columns(width: int) -> int:
    """Room for the padding that any group size up to 256 and any pair of row tiles asks for."""
    return round_up(width, 256) + COLUMN_BLOCK


def _allocate_caches(config: ModelConfig, context: int, kind: str, rows: int) -> list[cache.Cache]:
    """Keys and values of every layer.

    Raises CapacityError when the machine has not that much memory, KernelError for a kind there is not.
    """
    position_bytes = config.num_layers * cache.position_bytes(kind, config.num_kv_heads, config.head_dim)
    needed, memory = context * position_bytes, _memory_bytes()
    try:
        if memory is not None and needed > memory:
            raise MemoryError
        return [
            cache.allocate(kind, config.num_kv_heads, context, config.head_dim, rows) for _ in range(config.num_layers)
        ]
    except MemoryError:
        got = "less" if memory is None else f"{memory / 1e9:.1f} GB"
        raise CapacityError(
            f"expected {needed / 1e9:.1f} GB of memory for a context of {context} tokens, got {got}; "
            "ask for less with --ctx, or for smaller keys and values with --kv"
        ) from None


def _memory_bytes() -> int | None:
    """Bytes of memory this machine has, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _rotations(positions: int, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every position, f32 [positions, head_dim / 2]."""
    cos, sin = (aligned((positions, len(frequencies)), np.float32) for _ in range(2))
    for start in range(0, positions, _ANGLE_BLOCK):
        rows = slice(start, start + _ANGLE_BLOCK)
        angles = np.arange(positions)[rows, None] * frequencies
        cos[rows], sin[rows] = cos_sin(angles)
    return cos, sin
