"""Kernels of vectors on emulated ARM CPUs: tables, lookups, and codes made of indices."""

import numpy as np
import pytest

from lutra.formats.vectors import VectorFormat
from lutra.kernels import matmul_vector, vector_expand, vector_tables
from lutra.kernels.buffers import aligned
from lutra.kernels.tiles_vector import tile_gated, tile_vector
from tests.arm.emulator import ISAS
from tests.arm.test_kernels import K, N, check, quantised, state
from tests.formats.parts import random_vectors


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length, terms", [(2, 1), (8, 2)])
def test_vectors(emulator, length, terms, isa):
    """Each step finds what the ones before it wrote here."""
    gate, up = (random_vectors(VectorFormat(length, terms), N, K, seed=seed) for seed in (1, 2))
    for tiled, epilogue in ((tile_vector(gate), "store"), (tile_gated(gate, up), "silu")):
        x, y = quantised(gate.format)[0], aligned((8, 128), np.float32)
        tables, codes = (aligned(size, np.uint8) for size in (vector_tables.tables_bytes(tiled, 2),
                                                              vector_expand.expanded_bytes(tiled)))  # fmt: skip
        steps = matmul_vector.bind(tiled, x, tables, y, state(2), epilogue=epilogue, tile_m=1)
        for step in (*steps, vector_expand.bind(tiled, codes)[0]):
            check(emulator, step, 2, isa)
            step.launch.run(0, step.count(2))
