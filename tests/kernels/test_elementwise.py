"""exp, sigmoid and the gates: equal to their NumPy meaning on every ISA, and close to float64."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, load, store
from lutra.kernels import elementwise

ISAS = [target.isa for target in targets.available()]
PAIRS = {
    name: (getattr(elementwise, name), getattr(elementwise, f"{name}_spec"))
    for name in ("exp", "sigmoid", "silu", "relu2")
}


@kernel
def apply(x: Pointer[f32], y: Pointer[f32], task: i64, *, word):
    """y = word(x), sixteen elements a task."""
    store(y, task * 16, PAIRS[word][0](load(x, task * 16, 16)))


def native(word: str, x: np.ndarray, isa: str | None = None) -> np.ndarray:
    y = np.zeros_like(x)
    apply.run({"x": x, "y": y}, x.size // 16, isa, word=word)
    return y


def sample() -> np.ndarray:
    """Dense over the whole range, with zeros, extremes and subnormal numbers."""
    special = np.array(
        [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-30, 88.0, -88.0, 1e4, -1e4, 1e18, -1e18, 3e38, -3e38, 0.5], "f4"
    )
    return np.concatenate(
        [special, np.linspace(-90, 90, 200_000).astype("f4"), np.linspace(-1, 1, 50_000).astype("f4")]
    )


def test_exp_of_small_integers():
    assert elementwise.exp_spec(np.zeros(1, "f4"))[0] == 1.0
    np.testing.assert_allclose(
        elementwise.exp_spec(np.array([1, 2, -1], "f4")), [2.7182817, 7.389056, 0.36787945], rtol=2e-7
    )
    assert elementwise.relu2_spec(np.array([-2, 3], "f4")).tolist() == [0, 9]


@pytest.mark.parametrize("word", PAIRS)
@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_equals_the_specification(word, isa):
    x = sample()
    with np.errstate(over="ignore"):
        want = PAIRS[word][1](x)
    assert native(word, x, isa).tobytes() == want.tobytes()


@pytest.mark.parametrize("word", PAIRS)
def test_the_interpreter_equals_the_specification(word):
    x = sample()[::997][:160].copy()
    y = np.zeros_like(x)
    apply.interpret({"x": x, "y": y}, x.size // 16, word=word)
    assert y.tobytes() == PAIRS[word][1](x).tobytes()


def test_exp_is_within_two_ulp_of_float64():
    x = np.linspace(-elementwise.EXP_LIMIT, elementwise.EXP_LIMIT, 2_000_000).astype("f4")
    true = np.exp(x.astype("f8"))
    ulp = np.spacing(true.astype("f4")).astype("f8")
    assert (abs(elementwise.exp_spec(x) - true) / ulp).max() <= 2


def test_exp_is_clamped_at_both_ends():
    low, high = elementwise.exp_spec(np.array([-np.float32(3e38), np.float32(3e38)]))
    assert np.finfo("f4").tiny <= low < 1.2e-38 and 8e37 < high < 1e38
    ramp = np.linspace(-100, 100, 16_000).astype("f4")
    assert (np.diff(elementwise.exp_spec(ramp)) >= 0).all()


def test_sigmoid_and_silu_are_close_to_float64():
    x = np.linspace(-80, 80, 400_000).astype("f4")
    true = 1 / (1 + np.exp(-x.astype("f8")))
    np.testing.assert_allclose(elementwise.sigmoid_spec(x), true, rtol=4e-7)
    np.testing.assert_allclose(elementwise.silu_spec(x), x * true, rtol=5e-7)


def test_nan_counts_as_minus_infinity():
    nan = np.array([np.nan], np.float32)
    np.testing.assert_array_equal(elementwise.exp_spec(nan), elementwise.exp_spec(-np.array([np.inf], np.float32)))
    np.testing.assert_array_equal(elementwise.relu2_spec(nan), [0])
