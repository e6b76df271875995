"""Codes become unsigned bytes: themselves, or a table's levels moved above 0."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, bitcast, i64, load, store, u8, u32
from lutra.formats import catalog, packing
from lutra.formats.tables import TABLES
from lutra.kernels.buffers import aligned
from lutra.kernels.levels import levels_of

ISAS = [target.isa for target in targets.available()]
LANES = 16  # rows


@kernel
def take(words: Pointer[u8], found: Pointer[u8], count: i64, task: i64, *, format):
    """Levels of quad `task` ... of 16 rows: words [word][row] to bytes [quad][row][4]."""
    levels = levels_of(format, False)
    vectors = [bitcast(load(words, word * 4 * LANES, 4 * LANES), u32) for word in range(format.bits)]
    for quad in range(8):
        store(found, task * 512 + quad * 4 * LANES, levels.take(vectors, quad))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", TABLES)
def test_every_code_of_every_table(name, isa):
    format = catalog.table(name, 32)
    codes = (np.arange(LANES * 32) % format.num_codes).astype(np.uint8).reshape(LANES, 32)
    words, found = aligned((format.bits * 4 * LANES,), np.uint8), aligned((512,), np.uint8)
    words[:] = packing.pack(codes, format.bits, 32, 0).view(np.uint32).T.reshape(-1).view(np.uint8)
    take.bind(dict(words=words, found=found, count=1), isa, format=format).run(0, 1)
    levels = found.reshape(8, LANES, 4).transpose(1, 0, 2).reshape(LANES, 32).astype(int) + TABLES[name].min()
    assert np.array_equal(levels, TABLES[name][codes])


def test_bias_and_bound_by_hand():
    for name, bias, bound in (("iq4nl", 127, 240), ("e2m1", 12, 24), ("nf4", 127, 254), ("sign", 1, 2)):
        seen = []

        @kernel
        def look(found: Pointer[u8], task: i64, *, format, seen=seen):
            seen.append(levels_of(format, True))
            store(found, task, load(found, task))

        look.trace(format=catalog.table(name, 32))
        assert [(levels.bias, levels.bound, levels.in_place) for levels in seen] == [(bias, bound, False)]
