"""The memory one transformer works in: activations of a chunk of rows, the KV cache, the step's state."""

from __future__ import annotations

import numpy as np

from lutra.errors import CapacityError
from lutra.kernels import rope
from lutra.kernels.buffers import aligned
from lutra.model.config import ModelConfig
from lutra.model.rope import rope_frequencies

ROW_BLOCK = 16  # rows are padded to this, so that kernels may compute whole blocks
COLUMN_BLOCK = 64

# Fields of `state`, an int64 vector every row-dependent kernel reads.
NUM_ROWS, POSITION, HEAD_ROW, NUM_HEAD_ROWS = 0, 1, 2, 3


def round_up(n: int, block: int) -> int:
    """The smallest multiple of `block` that is at least n."""
    return -(-n // block) * block


class Buffers:
    """Activations for up to `rows` tokens at once, and keys and values for `context` positions.

    tokens    int64 [rows]
    residual  f32 [rows, hidden]          the stream that layers add to
    qkv       f32 [rows, (heads + 2 * kv_heads) * head_dim]
    attended  f32 [rows, heads * head_dim]
    gated     f32 [rows, ffn]
    logits    f32 [head_rows, vocab]
    keys, values                          f16 per layer, see kernels/rope.py
    Row lengths are rounded up to 64 columns (and 256 where a group needs it); what lies beyond the width stays zero.
    """

    def __init__(self, config: ModelConfig, context: int, rows: int, head_rows: int, factors: np.ndarray | None):
        self.context, self.rows, self.head_rows = round_up(context, 16), round_up(rows, ROW_BLOCK), head_rows
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
        self.state, self.head_state = aligned((8,), np.int64), aligned((8,), np.int64)
        self.tokens = aligned((self.rows,), np.int64)
        self.residual = self._matrix(config.hidden_size)
        self.qkv = self._matrix((heads + 2 * kv_heads) * width)
        self.attended = self._matrix(heads * width)
        self.gated = self._matrix(config.ffn_size)
        self.logits = aligned((round_up(head_rows, ROW_BLOCK), _columns(config.vocab_size)), np.float32)
        try:
            cache = [rope.allocate_cache(kv_heads, context, width) for _ in range(config.num_layers)]
        except MemoryError:
            raise CapacityError(f"no memory for a context of {context} tokens; ask for less with --ctx") from None
        self.keys, self.values = [keys for keys, _ in cache], [values for _, values in cache]
        angles = np.arange(self.context)[:, None] * rope_frequencies(config, factors)  # [context, head_dim / 2]
        self.cos, self.sin = _aligned_copy(np.cos(angles)), _aligned_copy(np.sin(angles))

    def _matrix(self, width: int) -> np.ndarray:
        return aligned((self.rows, _columns(width)), np.float32)


def _columns(width: int) -> int:
    """Room for the padding that any group size up to 256 and any pair of row tiles asks for."""
    return round_up(width, 256) + COLUMN_BLOCK


def _aligned_copy(values: np.ndarray) -> np.ndarray:
    out = aligned(values.shape, np.float32)
    out[:] = values
    return out
