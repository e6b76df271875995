"""RMSNorm and the quantisation of activations: equal to NumPy and to formats/integer.py, on every ISA."""

import dataclasses

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.errors import KernelError
from lutra.formats import catalog, integer
from lutra.kernels import activations, norm
from lutra.kernels.tiles_lut import split_tables
from tests.cover import pairs

ISAS = [target.isa for target in targets.available()]
EPS = 1e-5


def make(rows: int, width: int, stride: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x [rows, stride], zero beyond `width`, and a weight [width]."""
    rng = np.random.default_rng(seed)
    x = np.zeros((rows, stride or -(-width // 64) * 64), "f4")
    x[:, :width] = rng.standard_normal((rows, width)) * 10.0 ** rng.integers(-3, 4, (rows, 1))
    return x, (1 + 0.2 * rng.standard_normal(width)).astype("f4")


def state(rows: int, first: int = 0, head_rows: int = 0) -> np.ndarray:
    return np.array([rows, 0, first, head_rows], "i8")


def grouped(group: int, per_group: bool):
    return dataclasses.replace(catalog.planes(4, group), activation_group=group if per_group else 0)


def expect(x: np.ndarray, out: activations.Activations, group: int, per_group: bool) -> None:
    """`out` holds exactly the quantised rows of x [M, K]."""
    xq, xs = integer.quantize_activations(
        np.pad(x, ((0, 0), (0, out.xq.shape[1] - x.shape[1]))), group if per_group else 0
    )
    assert out.xq.tolist() == xq.tolist()
    assert out.xs.tobytes() == xs.astype("f4").tobytes()
    assert out.sums.tolist() == integer.activation_sums(xq, group).tolist()
    if out.tables is not None:
        assert (out.tables == split_tables(integer.build_tables(xq))).all()


def test_by_hand():
    x = np.zeros((1, 64), "f4")
    x[0, :2] = 3, 4  # mean of squares 12.5
    assert norm.rms_norm_spec(x[:, :2], np.array([1, 2], "f4"), 0.0)[0].tolist() == pytest.approx(
        [0.8485281, 2.2627418]
    )
    out = activations.allocate(1, 2, grouped(0, False))
    step = norm.bind_quantize(x, out, state(1), width=2)
    step.launch.run(0, 1)
    assert out.xq[0, :3].tolist() == [95, 127, 0] and out.xs[0, 0] == np.float32(4) / np.float32(127)
    assert out.sums.tolist() == [[222]]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 64, 100, 257, 640])
def test_rms_norm_equals_its_specification(width, isa):
    x, weight = make(3, width)
    y = np.full_like(x, 7)
    step = norm.bind(x, weight, y, state(3), width=width, eps=EPS, isa=isa)
    step.launch.run(0, step.count(3))
    assert y[:, :width].tobytes() == norm.rms_norm_spec(x[:, :width], weight, EPS).tobytes()


def test_rms_norm_is_close_to_float64():
    x, weight = make(4, 640)
    wide = x.astype("f8")
    true = wide / np.sqrt((wide**2).mean(1, keepdims=True) + EPS) * weight
    np.testing.assert_allclose(norm.rms_norm_spec(x, weight, EPS), true, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("group, per_group, isa", pairs([0, 16, 32, 64, 128, 256], [False, True], ISAS))
def test_quantize_equals_the_integer_specification(group, per_group, isa):
    for width, with_norm in ((33, False), (96, True), (100, True), (520, False)):
        x, weight = make(2, width, stride=1024, seed=width)
        out = activations.allocate(2, width, grouped(group, per_group), with_tables=width == 100 and group == 32)
        step = norm.bind_quantize(x, out, state(2), width=width, weight=weight if with_norm else None, eps=EPS, isa=isa)
        step.launch.run(0, step.count(2))
        expect(norm.rms_norm_spec(x[:, :width], weight, EPS) if with_norm else x[:, :width], out, group, per_group)


@pytest.mark.parametrize("group, per_group", [(0, False), (32, True), (64, False), (128, True)])
def test_interpreter_stays_in_bounds_and_agrees(group, per_group):
    x, weight = make(2, 72, stride=-(-72 // max(64, group)) * max(64, group))
    out = activations.allocate(2, 72, grouped(group, per_group), with_tables=True)
    step = norm.bind_quantize(x, out, state(2), width=72, weight=weight, eps=EPS)
    launch = step.launch
    static = dict(group=group, per_group=out.xs.shape[1] > 1, unit=max(group, 64 if out.xq.shape[1] % 64 == 0 else 32))
    norm.quantize.interpret(launch.args, 2, norm=True, with_tables=True, source_row="all", **static)
    expect(norm.rms_norm_spec(x[:, :72], weight, EPS), out, group, per_group)


def test_zeros_halves_and_extremes():
    x = np.zeros((4, 64), "f4")
    x[1, :5] = 127, 0.5, 1.5, 2.5, -2.5  # scale 1: halves go to even
    x[2, :2] = 3e38, -3e38
    x[3, :2] = 1e-30, -1e-38
    out = activations.allocate(4, 64, grouped(0, False))
    norm.bind_quantize(x, out, state(4), width=64).launch.run(0, 4)
    expect(x, out, 0, False)
    assert (
        out.xq[1, :5].tolist() == [127, 0, 2, 2, -2] and out.xq[2, :2].tolist() == [127, -127] and not out.xq[3].any()
    )


def test_the_head_reads_the_rows_it_is_told():
    x, weight = make(5, 64)
    y = np.zeros((2, 64), "f4")
    step = norm.bind(x, weight, y, state(5, first=3, head_rows=2), width=64, eps=EPS, source_row="head")
    step.launch.run(0, step.count(5))  # a task a row of the step; those beyond the head's rows do nothing
    assert y.tobytes() == norm.rms_norm_spec(x[3:], weight, EPS).tobytes()
    out = activations.allocate(1, 64, grouped(0, False))
    norm.bind_quantize(x, out, state(5, first=4, head_rows=1), width=64, source_row="head").launch.run(0, 5)
    expect(x[4:], out, 0, False)


def test_bad_requests_say_what_was_expected():
    x, weight = make(1, 64)
    with pytest.raises(KernelError, match="stride >= 128"):
        norm.bind_quantize(x, activations.allocate(1, 128, grouped(0, False)), state(1), width=128)
    with pytest.raises(KernelError, match="'all' or 'head'"):
        norm.bind(x, weight, x.copy(), state(1), width=64, eps=EPS, source_row="tail")
    with pytest.raises(KernelError, match="an output of at least 1 rows and 64 columns, got .1, 48."):
        norm.bind(x, weight, x[:, :48].copy(), state(1), width=64, eps=EPS)
    with pytest.raises(KernelError, match="a norm weight of 64 numbers, got .48,."):
        norm.bind(x, weight[:48], x.copy(), state(1), width=64, eps=EPS)
    with pytest.raises(KernelError, match="expected a state of 4 numbers, got 3"):
        norm.bind(x, weight, x.copy(), state(1)[:3], width=64, eps=EPS)
