"""Misused words name the kernel's own line; runaway accesses are caught by the interpreter."""

import numpy as np
import pytest

from lutra.compiler import targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, bitcast, const, dot2x2, dot4, f16, f32, i8, i32, i64, load, loop, store, u8
from lutra.errors import KernelError, LutraError


@kernel
def mixes_types(x: Pointer[f32], y: Pointer[i32], task: i64):
    store(x, 0, load(x, 0) + load(y, 0))


@kernel
def half_arithmetic(x: Pointer[f16], task: i64):
    store(x, 0, load(x, 0) + load(x, 1))


@kernel
def escapes(x: Pointer[f32], task: i64):
    for k in loop(0, 4):
        last = load(x, k)
    store(x, 0, last)


@kernel
def branches(x: Pointer[f32], task: i64):
    if load(x, 0) > 0.0:
        store(x, 0, 1.0)


@kernel
def wrong_dot(x: Pointer[i32], task: i64):
    store(x, 0, dot4(const(0, i32, 4), load(x, 0, 4), load(x, 0, 4)))


@kernel
def wrong_square(x: Pointer[i32], task: i64):
    store(x, 0, dot2x2(const(0, i32, 2), bitcast(load(x, 0, 2), u8), bitcast(load(x, 0, 2), i8)))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (mixes_types, "one type, got f32 and i32"),
        (half_arithmetic, "storage types; convert to f32"),
        (branches, "no truth while tracing; use when"),
        (wrong_dot, "dot4 needs i32xL, u8x4L, i8x4L"),
        (wrong_square, "dot2x2 needs i32x4S, u8x16S, i8x16S, got i32x2, u8x8, i8x8"),
    ],
)
def test_tracing_names_the_line_and_the_remedy(program, words):
    with pytest.raises(KernelError, match=words) as error:
        program.trace()
    assert "test_errors.py:" in str(error.value)


def test_a_value_must_not_leave_its_loop():
    with pytest.raises(KernelError, match=r"test_errors.py:\d+: store uses a value born inside a loop"):
        escapes.compile("portable")


@kernel
def reads_on(x: Pointer[f32], y: Pointer[f32], task: i64):
    store(y, task, load(x, task + 1))


def test_the_interpreter_refuses_to_leave_a_buffer():
    with pytest.raises(KernelError, match=r"load of elements 4..4 leaves x\[0..3\]"):
        reads_on.interpret({"x": np.zeros(4, np.float32), "y": np.zeros(4, np.float32)}, tasks=4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"x": np.zeros(4, np.float32)}, "expected arguments x, y, got x"),
        ({"x": np.zeros(4), "y": np.zeros(4, np.float32)}, "x must be a contiguous f32 array, got float64 array"),
        ({"x": np.zeros((4, 4), np.float32)[:, 1], "y": np.zeros(4, np.float32)}, "x must be a contiguous"),
    ],
)
def test_arguments_are_checked_before_machine_code_sees_them(args, words):
    with pytest.raises(KernelError, match=words):
        reads_on.bind(args)


def test_a_read_only_array_is_refused_where_the_kernel_writes():
    x, y = np.arange(5, dtype=np.float32), np.zeros(4, np.float32)
    x.flags.writeable = False  # as a mapped file's: reading is fine
    reads_on.run({"x": x, "y": y}, 4)
    assert y.tolist() == [1, 2, 3, 4]
    for refuse in (reads_on.bind, lambda args: reads_on.interpret(args, 4)):
        with pytest.raises(KernelError, match="reads_on: y is written, got a read-only array; pass a copy"):
            refuse({"x": y, "y": x[:4]})


def test_unknown_and_missing_instruction_sets(monkeypatch):
    monkeypatch.setenv("LUTRA_ISA", "sse9")
    names = "amx, avx512, avxvnni, avx2, portable"
    with pytest.raises(LutraError, match=f"expected LUTRA_ISA to be one of {names}, got 'sse9'"):
        targets.choose()
    monkeypatch.setattr(targets, "available", lambda: (targets.TARGETS[-1],))
    with pytest.raises(LutraError, match="this CPU cannot run avx512: it lacks"):
        targets.choose("avx512")


def test_a_target_never_enables_what_the_cpu_lacks():
    for target in targets.available():
        assert target.features <= targets.host_features()
