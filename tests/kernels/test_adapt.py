"""Inputs permuted and scaled: the kernel equals the side-car's own words, and checks its columns at the door."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.formats import catalog
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.kernels import adapt
from lutra.kernels.buffers import aligned

ISAS = [target.isa for target in targets.available()]


def run(x, perm, factors, isa=None):
    y = aligned((len(x), perm.size), np.float32)
    step = adapt.bind(x, perm.astype(np.int32), factors.astype(np.float32), y, np.array([len(x), 0, 0, 0]), isa=isa)
    step.launch.run(0, step.count(len(x)))
    return y


def test_by_hand():
    x = np.array([[10, 20, 30]], np.float32)
    assert run(x, np.array([2, 0, 1]), np.array([1, 2, 3])).tolist() == [[30, 20, 60]]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 31, 64, 97])
def test_every_isa_equals_the_sidecar(isa, k):
    rng = np.random.default_rng(k)
    x = rng.standard_normal((3, k)).astype(np.float32)
    perm, scale = rng.permutation(k).astype(np.int32), rng.standard_normal(k).astype(np.float32)
    w = QTensor.from_codes(catalog.ternary(), np.zeros((1, k), np.uint8), np.ones((1, 1), np.float32))
    assert np.array_equal(run(x, perm, scale[perm], isa), Adapted(w, perm, scale).inputs(x))


@pytest.mark.parametrize("perm", [[0, 3], [-1, 0], [2**31 - 1, 0]])
def test_columns_that_x_does_not_have_are_refused(perm):
    with pytest.raises(KernelError, match="columns 0 to 2"):
        run(np.ones((1, 3), np.float32), np.array(perm), np.ones(2))
