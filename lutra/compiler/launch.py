"""Run a recorded list of launches on persistent threads, in one native call with the GIL released.

The threads are ordinary Python threads parked inside the native code of runtime.py, which says how they share a launch
out.  A launch is over when all its tasks are done, not when all threads arrive: a thread whose CPU was taken away holds
up nobody unless it is inside a piece of work.

Waiting threads spin briefly, then give the CPU up: between runs by sleeping in the kernel, between launches by
yielding.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lutra import debug
from lutra.compiler import jit, runtime
from lutra.compiler.host import architecture
from lutra.compiler.kernel import Launch
from lutra.errors import CapacityError, KernelError

_EPOCHS = np.zeros(1, np.int64)  # runs of all programs in this process


@dataclass(frozen=True)
class Step:
    """One launch of a program.

    tasks    per block of `rows` rows; rows = 0 means a fixed number of tasks
    stream   the array that the tasks read straight through from the first to the last, if there is one: threads that
             wait ask for it ahead
    """

    launch: Launch
    tasks: int
    rows: int
    stream: np.ndarray | None = None

    def count(self, num_rows: int) -> int:
        """Tasks of this step for `num_rows` rows."""
        return self.tasks * -(-num_rows // self.rows) if self.rows else self.tasks


_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98, "riscv64": 98}


@cache
def _runtime() -> dict[str, int]:
    """Addresses of the functions in runtime.py, compiled once a process."""
    return jit.link_text(runtime.text(architecture()), ("lutra_run", "lutra_worker", "lutra_stop"))


def _yield_address() -> int:
    if sys.platform == "win32":
        return _address(ctypes.WinDLL("kernel32").SwitchToThread)
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: object) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert value
    return value


class Workers:
    """`threads` threads in all: the caller and threads - 1 helpers that sleep between runs."""

    def __init__(self, threads: int):
        if not 1 <= threads <= 1024:
            raise CapacityError(f"expected 1 to 1024 threads, got {threads}; leave it out to use this process's cores")
        self.threads = threads
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(_runtime()["lutra_run"])
        self._control = _lines(len(runtime.CONTROL))
        fields = {"threads": threads, "spins": runtime.SPINS, "yield": _yield_address(), "epochs": _EPOCHS.ctypes.data}
        number = _FUTEX_NUMBER.get(architecture())
        if sys.platform == "linux" and number:
            fields |= {"number": number, "syscall": _address(ctypes.CDLL(None).syscall)}
        for name, value in fields.items():
            self._control[runtime.CONTROL[name]] = value
        self._address = int(self._control.ctypes.data)
        self._lines: dict[int, np.ndarray] = {}  # of programs: a thread that wakes late may still look at any of them
        self._turn = threading.Lock()  # two runs at once would share an epoch
        self._helpers = [
            threading.Thread(target=_work, args=(self._control, self._lines, i), daemon=True, name=f"lutra-{i}")
            for i in range(1, threads)
        ]
        self.close = weakref.finalize(self, _stop, self._control, self._helpers, os.getpid())
        try:
            for helper in self._helpers:
                helper.start()
        except RuntimeError:  # Python's word for a limit of the system
            running = sum(helper.is_alive() for helper in self._helpers)
            del self._helpers[running:]
            self.close()
            raise CapacityError(
                f"expected room for {threads} threads, got {running + 1}; ask for fewer with --threads"
            ) from None

    def run(self, program: Program, num_rows: int) -> None:
        """Run every launch of `program`, in order, for `num_rows` rows; Python threads take turns."""
        with self._turn:
            self._lines[program.address] = program.lines
            self._run(self._address, program.address, num_rows)


def _work(control: np.ndarray, lines: dict[int, np.ndarray], index: int) -> None:
    """A helper's life.  It holds the lines of programs, and may look at them when the workers have been dropped."""
    worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(_runtime()["lutra_worker"])
    worker(int(control.ctypes.data), index)


def _stop(control: np.ndarray, helpers: list[threading.Thread], owner: int) -> None:
    """Let the helpers leave: raise the stop flag, start a new epoch, wake whoever sleeps.

    In native code, because a helper that saw the new epoch before the flag would run a program that may not be there.
    """
    if os.getpid() != owner:  # a forked child has the memory but not the threads
        return
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_runtime()["lutra_stop"])(int(control.ctypes.data))
    for helper in helpers:
        helper.join(timeout=1.0)


def _lines(count: int) -> np.ndarray:
    """`count` zeroed cache lines of int64, aligned to a line."""
    raw = np.zeros((count + 1) * runtime.LINE, np.int64)
    skip = (-raw.ctypes.data // 8) % runtime.LINE
    return raw[skip : skip + count * runtime.LINE]


class Program:
    """The recorded launches of one engine step, and the buffers they are bound to.

    max_rows   that the buffers have room for; None where they are not told by rows
    """

    def __init__(self, steps: Sequence[Step], max_rows: int | None = None):
        self.steps, self.max_rows = list(steps), max_rows
        self.lines = _lines(1 + runtime.LINES * len(self.steps))
        self.lines[0] = len(self.steps)
        records = self.lines[runtime.LINE :].reshape(len(self.steps), runtime.LINES * runtime.LINE)
        for record, step in zip(records, self.steps, strict=True):
            launch, stream = step.launch, step.stream
            record[:4] = launch.function_address, launch.slots_address, step.tasks, step.rows
            if stream is not None:
                record[5:7] = stream.ctypes.data, stream.nbytes
        for record, target in zip(records, next_streams(self.steps), strict=True):
            record[7] = 0 if target is None else records[target].ctypes.data
        self.address = int(self.lines.ctypes.data)

    def run(self, workers: Workers, num_rows: int) -> None:
        """Run all launches for `num_rows` rows; LUTRA_DEBUG=interpret and =time run them one by one.

        raises   KernelError   more rows than max_rows
        """
        if self.max_rows is not None and num_rows > self.max_rows:
            raise KernelError(f"expected at most {self.max_rows} rows, got {num_rows}; record a program for more")
        if debug.enabled("interpret"):
            for step in self.steps:
                step.launch.interpret(step.count(num_rows))
        elif debug.enabled("time"):
            for step in self.steps:
                _run_timed(step, num_rows)
        else:
            workers.run(self, num_rows)


def next_streams(steps: Sequence[Step]) -> list[int | None]:
    """For each step the number of the next one with a stream; after the last, the program begins again.

    A step is its own next where no other has one: then it has nothing to look ahead to.
    """
    found: list[int | None] = [None] * len(steps)
    ahead = next((i for i, step in enumerate(steps) if step.stream is not None), None)
    for i in reversed(range(len(steps))):
        found[i] = ahead if ahead != i else None
        if steps[i].stream is not None:
            ahead = i
    return found


def _run_timed(step: Step, num_rows: int) -> None:
    """Run a step on the calling thread and print what it took; GB/s counts every buffer it is bound to once."""
    tasks = step.count(num_rows)
    started = time.perf_counter()
    step.launch.run(0, tasks)
    taken_us = (time.perf_counter() - started) * 1e6
    rate = step.launch.num_bytes / taken_us / 1e3
    print(f"{step.launch.kernel.name:16s} {tasks:6d} tasks {taken_us:9.1f} us {rate:7.2f} GB/s", file=sys.stderr)
