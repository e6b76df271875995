"""Arg-max: the first of the largest, on every ISA."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.kernels import argmax

ISAS = [target.isa for target in targets.available()]


def run(x: np.ndarray, width: int, isa=None) -> list[int]:
    y = np.full(len(x), -1, "i4")
    step = argmax.bind(x, y, np.array([len(x), 0, 0, len(x)], "i8"), width=width, isa=isa)
    step.launch.run(0, step.count(len(x)))
    return y.tolist()


def rows(*values: list[float]) -> np.ndarray:
    x = np.full((len(values), 64), np.inf, "f4")  # beyond the width: must not win
    for row, numbers in zip(x, values, strict=True):
        row[: len(numbers)] = numbers
    return x


def test_by_hand():
    assert run(rows([1, 3, 2], [-5, -7, -5], [0.0, -0.0, 0.0]), 3) == [1, 0, 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 63, 64, 65, 1000])
def test_every_isa_equals_numpy(width, isa):
    x = np.full((4, -(-width // 64) * 64), np.inf, "f4")
    rng = np.random.default_rng(width)
    x[:2, :width] = rng.integers(0, 4, (2, width))  # many ties
    x[2:, :width] = -np.abs(rng.standard_normal((2, width)))
    assert run(x, width, isa) == argmax.argmax_spec(x[:, :width]).tolist()


@pytest.mark.parametrize("isa", ISAS)
def test_every_place_can_win(isa):
    x = np.zeros((130, 192), "f4")
    x[np.arange(130), np.arange(130)] = 1
    assert run(x, 130, isa) == list(range(130))


def test_interpreter_stays_in_bounds_and_agrees():
    x = rows([3, 1, 9, 9], [-1, -2, -3, -4])
    y = np.zeros(2, "i4")
    args = argmax.bind(x, y, np.array([2, 0, 0, 2], "i8"), width=4).launch.args
    argmax.argmax.interpret(args, 2)
    assert y.tolist() == [2, 0]


def test_nan_and_infinity():
    assert run(rows([1, 2, np.nan, np.inf]), 4) == [2]
    assert argmax.argmax_spec(rows([1, 2, np.nan, np.inf])).tolist() == [2]
    assert run(rows([-np.inf, -np.inf]), 2) == [0]
    assert run(rows([1, np.inf, np.inf]), 3) == [1]


def test_only_the_rows_of_the_head():
    y = np.full(3, -1, "i4")
    argmax.bind(rows([1, 2], [2, 1], [1, 2]), y, np.array([3, 0, 1, 2], "i8"), width=2).launch.run(0, 3)
    assert y.tolist() == [1, 0, -1]


def test_short_rows_are_refused():
    with pytest.raises(KernelError, match="at least 128 columns"):
        argmax.bind(rows([1]), np.zeros(1, "i4"), np.zeros(4, "i8"), width=65)
    with pytest.raises(KernelError, match="an index for each of 2 rows, got room for 1"):
        argmax.bind(rows([1], [2]), np.zeros(1, "i4"), np.zeros(4, "i8"), width=1)
