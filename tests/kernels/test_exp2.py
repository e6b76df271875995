"""Powers of two: exact where they must be, near float64, the same bits on every ISA."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, load, store
from lutra.kernels.exp2 import exp2, exp2_spec

ISAS = [target.isa for target in targets.available()]
ODD = np.array([-np.inf, np.nan, -1e30, -3.4e38, -126.00001, -1e9, -(2.0**23), -(2.0**24) - 2], "f4")


@kernel
def powers(x: Pointer[f32], y: Pointer[f32], task: i64):
    """y = 2**x, 16 numbers a task."""
    store(y, task * 16, exp2(load(x, task * 16, 16)))


def test_whole_numbers_by_hand():
    assert exp2_spec(np.array([0, -1, -2, -10, -126], "f4")).tolist() == [1, 0.5, 0.25, 2.0**-10, 2.0**-126]


def test_what_is_too_small_or_no_number_gives_zero():
    assert not exp2_spec(ODD).any()


def test_close_to_float64():
    x = -np.linspace(0, 126, 1_000_003).astype("f4")
    want = 2.0 ** x.astype("f8")
    assert (np.abs(exp2_spec(x) - want) / np.spacing(want.astype("f4"))).max() < 3


@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_equals_the_specification(isa):
    x = np.concatenate([ODD, ODD, -np.linspace(0, 130, 4080).astype("f4")])
    y = np.full_like(x, 7)
    powers.run({"x": x, "y": y}, len(x) // 16, isa)
    assert y.tobytes() == exp2_spec(x).tobytes()


def test_interpreter_agrees():
    x = np.concatenate([ODD, [0, -0.0, -0.5, -0.50000006, -1.5, -2.5, -125.5, -126]]).astype("f4")
    y = np.full_like(x, 7)
    powers.interpret({"x": x, "y": y}, 1)
    assert y.tobytes() == exp2_spec(x).tobytes()
