"""Memory of a transformer: room for what kernels read beyond the sizes, rotations, and a word for too much."""

from dataclasses import replace

import numpy as np
import pytest

from lutra.errors import CapacityError
from lutra.kernels.tiles import round_up
from lutra.model import buffers
from lutra.model.buffers import Buffers
from lutra.model.random import random_config

CONFIG = replace(random_config("tiny"), num_layers=2, vocab_size=300)


def test_round_up_by_hand() -> None:
    assert [round_up(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]


def test_rows_are_padded_and_everything_starts_on_a_cache_line() -> None:
    b = Buffers(CONFIG, context=20, rows=5, head_rows=1, factors=None)
    assert (b.rows, b.context, b.head_rows) == (16, 32, 1)
    assert b.residual.shape[1] >= 256 and b.gated.shape[1] >= 688 and b.logits.shape[1] >= 300
    assert b.qkv.shape[1] >= (4 + 2 * 2) * 64
    assert len(b.caches) == 2 and b.queries is None
    caches = [array for cache in b.caches for array in (cache.keys, cache.values)]
    for values in (b.tokens, b.residual, b.qkv, b.attended, b.gated, b.logits, b.cos, *caches):
        assert values.ctypes.data % 64 == 0 and not values[1:].any() or values is b.cos


@pytest.mark.parametrize("context", [20, 5000])
def test_rotations_are_those_of_every_position(context: int) -> None:
    """5000 positions are computed in two blocks."""
    b = Buffers(CONFIG, context, rows=1, head_rows=1, factors=None)
    angles = np.arange(b.context)[:, None] * 10000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(b.cos, np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(b.sin, np.sin(angles), atol=1e-7)
    assert b.cos.dtype == np.float32


def test_a_context_that_memory_cannot_hold_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 layers x 2 kv heads x 64 x (keys + values) x 2 bytes = 1024 bytes a token."""
    monkeypatch.setattr(buffers, "_memory_bytes", lambda: 10**9)
    message = r"1\.1 GB of memory for a context of 1048576 tokens, got 1\.0 GB; ask for less with --ctx"
    with pytest.raises(CapacityError, match=message):
        Buffers(CONFIG, 1 << 20, rows=1, head_rows=1, factors=None)


def test_a_system_that_does_not_tell_its_memory_may_refuse_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(buffers, "_memory_bytes", lambda: None)
    monkeypatch.setattr(buffers.cache, "allocate", refuse)
    with pytest.raises(CapacityError, match="expected 0.0 GB of memory .*, got less"):
        Buffers(CONFIG, 16, rows=1, head_rows=1, factors=None)
