"""Softmax: equal to NumPy on every ISA, close to float64, padding left out."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.kernels import softmax

ISAS = [target.isa for target in targets.available()]


def make(rows: int, width: int) -> np.ndarray:
    """Logits [rows, stride] with large garbage beyond `width`."""
    x = np.full((rows, -(-width // 64) * 64), 1e6, "f4")
    x[:, :width] = 5 * np.random.default_rng(width).standard_normal((rows, width))
    return x


def run(x: np.ndarray, width: int, isa=None, scale: float = 1.0) -> np.ndarray:
    y = np.full_like(x, 7)
    step = softmax.bind(x, y, np.array([len(x), 0, 0, len(x)], "i8"), width=width, scale=scale, isa=isa)
    step.launch.run(0, step.count(len(x)))
    return y


def test_two_equal_logits():
    assert run(np.zeros((1, 64), "f4"), 2)[0, :16].tolist() == [0.5, 0.5] + [0.0] * 14


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 513])
def test_every_isa_equals_the_specification(width, isa):
    x = make(3, width)
    for scale in (1.0, 0.7):
        assert run(x, width, isa, scale)[:, :width].tobytes() == softmax.softmax_spec(x[:, :width], scale).tobytes()


def test_interpreter_stays_in_bounds_and_agrees():
    x = make(2, 17)
    y = np.zeros((2, 32), "f4")
    args = softmax.bind(x, y, np.array([2, 0, 0, 2], "i8"), width=17).launch.args
    softmax.softmax.interpret(args, 2)
    assert y[:, :17].tobytes() == softmax.softmax_spec(x[:, :17]).tobytes() and not y[:, 17:].any()


def test_close_to_float64():
    x = make(2, 2000)
    wide = np.exp(x[:, :2000].astype("f8") - x[:, :2000].max(1, keepdims=True))
    np.testing.assert_allclose(run(x, 2000)[:, :2000], wide / wide.sum(1, keepdims=True), rtol=2e-6, atol=1e-30)


def test_only_the_rows_of_the_head():
    x = make(3, 16)
    y = np.full_like(x, 7)
    softmax.bind(x, y, np.array([3, 0, 2, 1], "i8"), width=16).launch.run(0, 3)
    assert (y[1:] == 7).all() and y[0, :16].sum() == pytest.approx(1)


def test_short_rows_are_refused():
    with pytest.raises(KernelError, match="at least 112 columns"):
        softmax.bind(make(1, 64), make(1, 64), np.zeros(4, "i8"), width=100)
    with pytest.raises(KernelError, match="as many of y as of x"):
        softmax.bind(make(2, 64), make(1, 64), np.zeros(4, "i8"), width=64)
