"""Arrays of every size: zeroed, on a cache line, each with memory of its own."""

import gc
import weakref

import numpy as np
import pytest

from lutra.kernels import buffers
from lutra.kernels.buffers import ARENA_BYTES, SMALLEST_BYTES, aligned

SIZES = [1, 63, 64, SMALLEST_BYTES - 1, SMALLEST_BYTES, SMALLEST_BYTES + 1, ARENA_BYTES // 4, ARENA_BYTES // 4 + 1]


@pytest.mark.parametrize("size", SIZES)
def test_zeroed_aligned_and_writable(size: int) -> None:
    array = aligned(size, np.uint8)
    assert array.shape == (size,) and array.ctypes.data % 64 == 0 and not array.any()
    array[:] = 7


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.int64])
def test_shape_and_type(dtype: type) -> None:
    array = aligned((3, 5, 9999), dtype)
    assert array.shape == (3, 5, 9999) and array.dtype == dtype and array.flags.c_contiguous


def test_no_two_arrays_share_a_byte() -> None:
    arrays = [aligned(SMALLEST_BYTES + i, np.uint8) for i in range(20)]
    for i, array in enumerate(arrays):
        array[:] = i
    assert all((array == i).all() for i, array in enumerate(arrays))


def test_a_full_mapping_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "ARENA_BYTES", 4 * SMALLEST_BYTES)
    arena = buffers.Arena()
    taken = [arena.take(SMALLEST_BYTES) for _ in range(6)]
    starts = [array.ctypes.data for array in taken]
    assert np.diff(starts[:4]).tolist() == np.diff(starts[4:]).tolist() * 3 == [SMALLEST_BYTES] * 3
    assert starts[4] % buffers.PAGE_BYTES == 0 or not hasattr(buffers.mmap, "MADV_HUGEPAGE")


def test_memory_goes_with_its_last_array() -> None:
    array = buffers._map(SMALLEST_BYTES)
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    gone = weakref.ref(base)
    del array, base
    gc.collect()
    assert gone() is None


def test_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(buffers.mmap, "MADV_HUGEPAGE", raising=False)
    assert buffers._map(SMALLEST_BYTES).size == SMALLEST_BYTES
