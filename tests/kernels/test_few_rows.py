"""A step of fewer rows than its buffers hold: every kind of cache, pieces apart and merged."""

import numpy as np
import pytest

from lutra.compiler.launch import Program, Workers
from lutra.kernels import attention, attention_codes, attention_kivi, cache, kv

CONTEXT, ROOM, POSITION = 512, 4, 300  # positions of two pieces


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("kind", cache.KINDS)
def test_queries_that_fill_a_tile_count_once(kind, rows):
    """A tile of queries spans rows here; where rows end within it, the last row stands in for the others."""
    heads, kv_heads, head_dim = 4, 2, 32
    rng = np.random.default_rng(0)
    found = cache.allocate(kind, kv_heads, CONTEXT, head_dim, ROOM)
    queries = kv.queries_for(kind, ROOM, heads, head_dim)
    angles = rng.standard_normal((CONTEXT, head_dim // 2)).astype(np.float32)
    y, state = np.zeros((ROOM, heads * head_dim), np.float32), np.zeros(4, np.int64)
    qkv = np.zeros((ROOM, (heads + 2 * kv_heads) * head_dim), np.float32)
    stores = kv.bind_store(qkv, found, queries, np.cos(angles), np.sin(angles), state, heads=heads)
    program = Program(stores + kv.bind_attention(qkv, found, queries, y, state, heads=heads), ROOM)
    for start in range(0, POSITION + rows, ROOM):
        state[:2] = min(ROOM, POSITION + rows - start), start
        qkv[:] = rng.standard_normal(qkv.shape)
        program.run(Workers(1), int(state[0]))
    q = qkv[:rows, : heads * head_dim].reshape(rows, heads, head_dim)
    if queries is not None:
        want = attention_codes.attention_spec(queries, found, rows, POSITION, heads)
    elif kind in cache.CODES:
        want = attention_kivi.attention_spec(q, found, POSITION)
    else:
        want = attention.attention_spec(q, found.keys, found.values, POSITION)
    assert y[:rows].tobytes() == want.tobytes()
