"""Tile order moves words and numbers without changing them; what fills a tile is zero."""

import ml_dtypes
import numpy as np
import pytest

from lutra.errors import FormatError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles import TiledWeight, interleave_rows, tile_dense, tile_mad
from tests.kernels.linears import random_weight

FORMATS = ["ternary", "planes1-g128-mins", "planes3-g16-f32", "planes4-g32", "planes2-g128-zeros", "planes7-row",
           "int8-g16-f32"]  # fmt: skip


def words(t: TiledWeight) -> np.ndarray:
    """Undo mad order: packed words [padded N, W]."""
    return t.codes.view(np.uint32).reshape(t.num_pairs, -1, 32).transpose(0, 2, 1).reshape(t.padded_n, -1)


def sidecar(flat: np.ndarray, t: TiledWeight, dtype: np.dtype) -> np.ndarray:
    """Undo the order of scales, zeros or mins: [padded N, G]."""
    return flat.view(dtype).reshape(t.num_pairs, -1, 32).transpose(0, 2, 1).reshape(t.padded_n, -1)


def test_one_word_by_hand():
    """Rows 0 and 17 of 32 two-bit weights: row 17 is row 1 of tile 1, so its first word is word 16 + 1."""
    codes = np.zeros((18, 32), np.uint8)
    codes[0, :4], codes[17, 0] = [1, 2, 3, 0], 3
    t = tile_mad(QTensor.from_codes(catalog.planes(2, 0), codes, np.ones((18, 1), np.float32)))
    assert t.codes[:4].tolist() == [1, 2, 3, 0]
    assert t.codes.view(np.uint32)[17] == 3
    assert (t.padded_n, t.padded_k, t.num_pairs, t.codes.size) == (32, 32, 1, 32 * 8)
    assert t.scales.view(np.float32).tolist() == [1.0] * 18 + [0.0] * 14


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n, k", [(1, 1), (31, 32), (32, 33), (33, 160), (97, 300)])
def test_words_and_sidecars_are_moved_whole(name, n, k):
    w = random_weight(catalog.find(name), n, k)
    t = tile_mad(w)
    assert np.array_equal(words(t)[:n], w.packed.view(np.uint32)) and not words(t)[n:].any()
    assert (t.n, t.k, t.padded_n % 32, t.padded_k) == (n, k, 0, w.padded_k)
    for mine, theirs in ((t.scales, w.scales), (t.zeros, w.zeros), (t.mins, w.mins)):
        if theirs is None:
            assert mine.size == 1
            continue
        moved = sidecar(mine, t, theirs.dtype)
        assert np.array_equal(moved[:n], theirs) and not moved[n:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("n, k", [(1, 1), (33, 45), (64, 64)])
def test_dense_is_transposed_in_pairs(dtype, n, k):
    w = np.random.default_rng(0).standard_normal((n, k)).astype(dtype)
    t = tile_dense(w)
    back = t.codes.view(dtype).reshape(t.num_pairs, t.padded_k, 32).transpose(0, 2, 1).reshape(t.padded_n, t.padded_k)
    assert np.array_equal(back[:n, :k], w)
    assert not back[n:].any() and not back[:, k:].any()
    assert t.num_bytes == t.padded_n * t.padded_k * w.itemsize


def test_dense_of_integers_is_refused():
    with pytest.raises(FormatError, match="expected a dense weight of f32, f16, bf16, got int32; convert"):
        tile_dense(np.zeros((2, 2), np.int32))


@pytest.mark.parametrize("n", [1, 16, 20])
def test_gate_and_up_alternate_in_tiles(n):
    gate, up = np.arange(1, n + 1, dtype=np.float32), -np.arange(1, n + 1, dtype=np.float32)
    both = interleave_rows(gate, up).reshape(-1, 2, 16)
    assert np.array_equal(both[:, 0].reshape(-1)[:n], gate) and np.array_equal(both[:, 1].reshape(-1)[:n], up)
    assert np.count_nonzero(both) == 2 * n


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_gate_and_up_keep_their_values(name):
    gate, up = random_weight(catalog.find(name), 20, 64), random_weight(catalog.find(name), 20, 64, seed=9)
    both = interleave_rows(gate, up).dequantize().reshape(-1, 2, 16, 64)
    assert np.array_equal(both[:, 0].reshape(-1, 64)[:20], gate.dequantize())
    assert np.array_equal(both[:, 1].reshape(-1, 64)[:20], up.dequantize())
    assert not both[1, :, 4:].any()


def test_gate_and_up_must_agree():
    gate, up = (random_weight(catalog.find(name), 16, 32) for name in ("ternary", "planes4-g32"))
    with pytest.raises(FormatError, match="expected gate and up of one format and shape, got ternary .*planes4-g32"):
        interleave_rows(gate, up)


@pytest.mark.parametrize("shape", [1, 3, (5, 7)])
def test_buffers_start_on_a_cache_line_and_at_zero(shape):
    for dtype in (np.uint8, np.float32, np.int64):
        buffer = aligned(shape, dtype)
        assert buffer.ctypes.data % 64 == 0 and buffer.dtype == dtype and buffer.flags.c_contiguous
        assert not buffer.any() and buffer.shape == (shape if isinstance(shape, tuple) else (shape,))
