"""Programs on threads: every task exactly once, launches strictly one after the other, any number of threads."""

import gc
import threading
import time

import numpy as np
import pytest

from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, i64, load, store
from lutra.compiler.launch import Program, Step, Workers
from lutra.errors import CapacityError


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
