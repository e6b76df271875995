"""One door to every kind of KV cache: the store of keys and values, and attention over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.compiler.launch import Step
from lutra.kernels import attention, attention_codes, rope, rope_codes
from lutra.kernels.cache import Cache, Queries, allocate_queries
from lutra.kernels.codes import CODES
from lutra.kernels.pieces import Room


def queries_for(kind: str, rows: int, heads: int, head_dim: int) -> Queries | None:
    """The room for integer queries that a kind of cache needs."""
    return allocate_queries(kind, rows, heads, head_dim) if kind in CODES else None


def bind_store(
    qkv: np.ndarray, cache: Cache, queries: Queries | None, cos: np.ndarray, sin: np.ndarray, state: np.ndarray,
    **options: Any,
) -> Step:  # fmt: skip
    """Rotate queries and keys, store keys and values; arguments as for rope.bind."""
    if queries is None:
        return rope.bind(qkv, cache.keys, cache.values, cos, sin, state, **options)
    return rope_codes.bind(qkv, cache, queries, cos, sin, state, **options)


def room_for(cache: Cache, rows: int, heads: int) -> Room:
    """The room that attention of at most `rows` rows over caches of this shape works in."""
    if cache.kind in CODES:
        return attention_codes.allocate(cache, rows, heads)
    return attention.allocate(cache.keys, rows, heads)


def bind_attention(
    qkv: np.ndarray, cache: Cache, queries: Queries | None, y: np.ndarray, state: np.ndarray, **options: Any
) -> list[Step]:
    """y = attention over what `bind_store` stored; arguments as for attention.bind."""
    if queries is None:
        return attention.bind(qkv, cache.keys, cache.values, y, state, **options)
    return attention_codes.bind(queries, cache, y, state, **options)
