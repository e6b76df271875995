"""One door to every kind of KV cache: the store of keys and values, and attention over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.compiler.launch import Step
from lutra.kernels import attention, attention_codes, attention_kivi, rope, rope_codes, rope_kivi
from lutra.kernels.cache import Cache, Queries, allocate_queries
from lutra.kernels.codes import CODES
from lutra.kernels.pieces import Room


def queries_for(kind: str, rows: int, heads: int, head_dim: int) -> Queries | None:
    """The room for integer queries that a kind of cache needs."""
    return None if kind not in CODES or CODES[kind].group else allocate_queries(kind, rows, heads, head_dim)


def bind_store(
    qkv: np.ndarray, cache: Cache, queries: Queries | None, cos: np.ndarray, sin: np.ndarray, state: np.ndarray,
    **options: Any,
) -> list[Step]:  # fmt: skip
    """Rotate queries and keys, store keys and values; arguments as for rope.bind."""
    if queries is not None:
        return [rope_codes.bind(qkv, cache, queries, cos, sin, state, **options)]
    if cache.kind in CODES:
        return rope_kivi.bind(qkv, cache, cos, sin, state, **options)
    return [rope.bind(qkv, cache.keys, cache.values, cos, sin, state, **options)]


def room_for(cache: Cache, rows: int, heads: int) -> Room:
    """The room that attention of at most `rows` rows over caches of this shape works in."""
    if cache.kind not in CODES:
        return attention.allocate(cache.keys, rows, heads)
    return (attention_kivi if CODES[cache.kind].group else attention_codes).allocate(cache, rows, heads)


def bind_attention(
    qkv: np.ndarray, cache: Cache, queries: Queries | None, y: np.ndarray, state: np.ndarray, **options: Any
) -> list[Step]:
    """y = attention over what `bind_store` stored; arguments as for attention.bind."""
    if queries is not None:
        return attention_codes.bind(queries, cache, y, state, **options)
    if cache.kind in CODES:
        return attention_kivi.bind(qkv, cache, y, state, **options)
    return attention.bind(qkv, cache.keys, cache.values, y, state, **options)
