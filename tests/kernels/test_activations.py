"""Shapes and alignment of the activation buffers."""

import dataclasses

import numpy as np
import pytest

from lutra.errors import KernelError
from lutra.formats import catalog
from lutra.kernels.activations import allocate

ROW = catalog.planes(2, 0)
GROUPED = catalog.planes(4, 64)


def test_one_scale_a_token():
    buffers = allocate(2, 40, ROW)
    assert buffers.xq.shape == (2, 64) and buffers.xq.dtype == np.int8  # 40 padded to a multiple of 32
    assert buffers.xs.shape == (2, 1) and buffers.sums.shape == (2, 1) and buffers.tables is None


def test_scales_and_sums_a_group():
    per_group = dataclasses.replace(GROUPED, activation_group=64)
    assert allocate(3, 200, per_group).xs.shape == (3, 4)
    per_token = dataclasses.replace(GROUPED, activation_group=0)
    buffers = allocate(3, 200, per_token, with_tables=True)
    assert buffers.xs.shape == (3, 1) and buffers.sums.shape == (3, 4)
    assert buffers.tables.shape == (3, 64, 2, 16) and buffers.tables.dtype == np.uint8


def test_every_buffer_starts_on_a_cache_line():
    buffers = allocate(3, 96, GROUPED, with_tables=True)
    for array in (buffers.xq, buffers.xs, buffers.sums, buffers.tables):
        assert array.ctypes.data % 64 == 0 and not array.any()


@pytest.mark.parametrize("rows, k", [(0, 32), (1, 0)])
def test_empty_buffers_are_refused(rows, k):
    with pytest.raises(KernelError, match="at least one row"):
        allocate(rows, k, ROW)
