"""Programs on threads: every task exactly once, launches strictly one after the other, any number of threads."""

import ctypes
import gc
import statistics
import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from lutra.compiler import jit, runtime
from lutra.compiler.host import architecture
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, const, f32, i64, load, loop, store, var
from lutra.compiler.launch import Program, Step, Workers, next_streams
from lutra.errors import CapacityError, KernelError


@kernel
def add_one(x: Pointer[i64], y: Pointer[i64], task: i64):
    """y[task] = x[task] + 1: any lost, doubled or early task shows in the sum."""
    store(y, task, load(x, task) + 1)


def _chain(length: int, tasks: int, rows: int) -> tuple[list[Step], list[np.ndarray]]:
    buffers = [np.zeros(512, np.int64), np.zeros(512, np.int64)]
    steps = [Step(add_one.bind({"x": buffers[i % 2], "y": buffers[1 - i % 2]}), tasks, rows) for i in range(length)]
    return steps, buffers


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(("tasks", "rows", "num_rows"), [(1, 0, 9), (37, 0, 1), (3, 8, 33), (3, 8, 32), (500, 0, 1)])
def test_every_task_runs_once_and_in_order(threads, tasks, rows, num_rows):
    steps, buffers = _chain(40, tasks, rows)
    count = steps[0].count(num_rows)
    workers, program = Workers(threads), Program(steps)
    for i in range(30):
        program.run(workers, num_rows)
        if i % 10 == 0:
            time.sleep(0.003)  # long enough for helpers to fall asleep
    workers.close()
    assert (buffers[0][:count] == 30 * 40).all() and not buffers[0][count:].any()


def test_step_counts_tasks_by_row_blocks():
    steps, _ = _chain(1, 5, 8)
    assert [steps[0].count(n) for n in (1, 8, 9, 16)] == [5, 5, 10, 10]


def test_more_rows_than_there_is_room_for_are_refused():
    steps, _ = _chain(1, 1, 1)
    with pytest.raises(KernelError, match="expected at most 2 rows, got 3"):
        Program(steps, max_rows=2).run(Workers(1), 3)


def test_programs_alternate_while_helpers_lag():
    """Odd chains copy on into the other buffer, so each program grows one buffer by its length every run."""
    (first, one), (second, two) = _chain(4, 60, 0), _chain(6, 7, 0)
    workers, programs = Workers(4), [Program(first), Program(second)]
    for _ in range(400):
        for program in programs:
            program.run(workers, 1)
    workers.close()
    assert (one[0][:60] == 400 * 4).all() and (two[0][:7] == 400 * 6).all()


def test_python_threads_take_turns():
    """One epoch for two runs at once would lose or double tasks."""
    workers, chains = Workers(3), [_chain(4, 60, 0) for _ in range(3)]

    def run(steps: list[Step]) -> None:
        program = Program(steps)
        for _ in range(200):
            program.run(workers, 1)

    callers = [threading.Thread(target=run, args=(steps,)) for steps, _ in chains]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    workers.close()
    assert all((buffers[0][:60] == 200 * 4).all() for _, buffers in chains)


@kernel
def add_up(x: Pointer[i64], y: Pointer[i64], task: i64, *, count):
    """y[task] = sum of the first `count` of x: a task of about `count` cycles."""
    total = var(const(0, i64))
    for i in loop(0, count):
        total += load(x, i)
    store(y, task, total.get())


def test_workers_may_hand_a_program_to_each_other():
    """Late helpers of one number of threads must not take another's run for theirs: its shares are cut otherwise."""
    steps, buffers = _chain(40, 100, 0)
    program, workers = Program(steps), [Workers(threads) for threads in (2, 5, 3, 8)]
    for _ in range(60):
        for each in workers:
            program.run(each, 1)
    for each in workers:
        each.close()
    assert (buffers[0][:100] == 60 * 4 * 40).all()


@pytest.mark.parametrize("threads", [2, 4, 40])
def test_shares_of_threads_that_never_come_are_taken(threads):
    steps, buffers = _chain(6, 300, 0)
    workers, program = Workers(threads), Program(steps)
    workers.close()  # the helpers are gone, and nobody told the caller
    program.run(workers, 1)
    assert (buffers[0][:300] == 6).all()


def test_more_threads_than_cores_do_not_collapse():
    """Eight threads on two cores must wait for each other by yielding; spinning out each time slice costs 100 times."""
    x, y = np.ones(4096, np.int64), np.zeros(256, np.int64)
    bound = add_up.bind({"x": x, "y": y}, count=2000)
    program = Program([Step(bound, tasks, 0) for _ in range(40) for tasks in (1, 200)])
    workers = [Workers(2), Workers(8)]
    seconds: list[list[float]] = [[], []]
    for _ in range(9):
        for each, taken in zip(workers, seconds, strict=True):
            started = time.perf_counter()
            program.run(each, 1)
            taken.append(time.perf_counter() - started)
    for each in workers:
        each.close()
    few, many = map(statistics.median, seconds)
    assert many < 10 * few and (y[:200] == 2000).all()


def test_the_next_stream_by_hand():
    (step,), buffers = _chain(1, 1, 0)
    weight = np.zeros(64, np.uint8)
    streams = replace(step, stream=weight)
    assert next_streams([step, streams, step, step, streams, step]) == [1, 4, 4, 4, 1, 1]
    assert next_streams([step, streams]) == [1, None] and next_streams([step, step]) == [None, None]
    assert next_streams([]) == []


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stream_bytes", [0, 1, 64, 1 << 20])
def test_a_stream_changes_nothing_but_speed(threads, stream_bytes):
    """Also one of fewer bytes than tasks, and one that ends where the memory does."""
    steps, buffers = _chain(40, 37, 0)
    single, _ = _chain(1, 1, 0)
    stream = np.zeros(stream_bytes, np.uint8)
    workers = Workers(threads)
    program = Program([part for step in steps for part in (replace(step, stream=stream), single[0])])
    for _ in range(20):
        program.run(workers, 1)
    workers.close()
    assert (buffers[0][:37] == 20 * 40).all()


def test_helpers_leave_when_the_workers_are_dropped():
    before = threading.active_count()
    workers = Workers(3)
    assert threading.active_count() == before + 2
    del workers
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_absurd_thread_counts(threads):
    with pytest.raises(CapacityError, match=f"expected 1 to 1024 threads, got {threads}"):
        Workers(threads)


def test_a_program_that_is_dropped_leaves_its_buffers():
    """Workers keep what a late thread may read, not the weights that the program was bound to."""
    steps, buffers = _chain(4, 60, 0)
    workers, program = Workers(3), Program(steps)
    program.run(workers, 1)
    gone = [weakref.ref(program), *map(weakref.ref, buffers)]
    del steps, buffers, program
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    workers.close()


@kernel
def shrink(x: Pointer[f32], y: Pointer[f32], task: i64, *, count):
    """y[task] = x[task] / 4, again and again: a task of about 10 * count cycles."""
    for _ in loop(0, count):
        store(y, task, load(x, task) * 0.25)


# what a program sets to have subnormals read and written as 0: DAZ and FTZ of MXCSR; FZ of FPCR
FLUSH = {"x86_64": 0x1F80 | 1 << 6 | 1 << 15, "aarch64": 1 << 24}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_host_that_flushes_subnormals_changes_no_bits(threads):
    """Threads inherit the state of the one that starts them; whoever runs a program gets back what it had set."""
    if architecture() not in FLUSH:
        pytest.skip(f"needs a CPU of {', '.join(FLUSH)}")
    functions = jit.link_text(runtime.text(architecture()).replace("@lutra_", "@test_"), ("test_floats",))
    set_floats = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(functions["test_floats"])
    tiny = np.float32(2.0**-125)
    x, y = np.full(300, tiny), np.zeros(300, np.float32)
    program = Program([Step(shrink.bind({"x": x, "y": y}, count=4000), 300, 0)])
    before = set_floats(FLUSH[architecture()])
    try:
        workers = Workers(threads)
        program.run(workers, 1)
        flushed = np.multiply(x, np.float32(0.25))
    finally:
        set_floats(before)
    workers.close()
    assert (flushed == 0).all() and (y == np.float32(2.0**-127)).all()
