"""Stored scales become the f32 that formats/scales.py says: every bit pattern of a byte, on every instruction set."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, store, u8
from lutra.formats import scales
from lutra.kernels import beside
from lutra.kernels.buffers import aligned
from lutra.kernels.unpack import load_as

ISAS = [target.isa for target in targets.available()]
LANES = 16


@kernel
def widen(stored: Pointer[u8], values: Pointer[f32], count: i64, task: i64, *, kind, lanes):
    kept = beside.LOADED_AS.get(kind, kind)
    store(values, task * lanes, beside.widen(load_as(stored, task * lanes, kept, lanes), kind))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", scales.DTYPES)
@pytest.mark.parametrize("lanes", [1, LANES])
def test_every_byte(kind, lanes, isa):
    stored = aligned((256,), scales.DTYPES[kind])
    stored[:] = np.arange(256).astype(np.uint8).view(stored.dtype) if stored.itemsize == 1 else np.arange(256) - 127.5
    values = aligned((256,), np.float32)
    args = dict(stored=stored.view(np.uint8), values=values, count=256)
    widen.bind(args, isa, kind=kind, lanes=lanes).run(0, 256 // lanes)
    numbers = np.array([scales.is_finite(kind, stored[i : i + 1]) for i in range(256)])
    assert values[numbers].tobytes() == scales.widen(kind, stored)[numbers].tobytes()
    assert numbers.sum() == {"e8m0": 255, "e4m3": 254}.get(kind, 256)
