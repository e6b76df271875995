"""Run a recorded list of launches on persistent threads, in one native call with the GIL released.

The threads are ordinary Python threads parked inside `lutra_worker` below.  Work is claimed in chunks by an atomic
counter per launch, and a launch is over when all its tasks are done, not when all threads arrive: a thread whose CPU
was taken away holds up nobody unless it is inside a chunk.  Three quarters of the tasks go out in one chunk a thread,
because a kernel that streams weights is fastest straight through (chunks of a quarter share cost 3 % of a decode step);
the last quarter goes out in eighths of a share, so that all end together.  Every counter carries the number of the run
(the epoch) it belongs to, so a thread that wakes up late finds nothing to claim.

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
from lutra.compiler import jit
from lutra.compiler.host import architecture
from lutra.compiler.kernel import Launch
from lutra.errors import CapacityError

_LINE = 8  # int64 in a cache line


@dataclass(frozen=True)
class Step:
    """One launch of a program.  tasks is per block of `rows` rows; rows = 0 means a fixed number of tasks."""

    launch: Launch
    tasks: int
    rows: int

    def count(self, num_rows: int) -> int:
        """Tasks of this step for `num_rows` rows."""
        return self.tasks * -(-num_rows // self.rows) if self.rows else self.tasks


# The control block, one field a cache line; the LLVM text below uses the same numbers.
_EPOCH, _STOP, _PROGRAM, _SLEEPERS, _ROWS, _THREADS, _SPINS, _SYSCALL, _YIELD, _FUTEX = range(10)

# A program: one line with the number of launches, then three lines a launch:
#   function, arguments, tasks, rows, total | next | done      (total, next, done = epoch << 32 | count)
_RUNTIME = """
define void @lutra_participate(ptr %control, i64 %epoch, ptr %program) #0 {
entry:
  %threads.at = getelementptr i64, ptr %control, i64 40
  %threads = load atomic i64, ptr %threads.at monotonic, align 8
  %yield.at = getelementptr i64, ptr %control, i64 64
  %yield = load ptr, ptr %yield.at, align 8
  %spins.at = getelementptr i64, ptr %control, i64 48
  %spins = load i64, ptr %spins.at, align 8
  %launches = load i64, ptr %program, align 8
  %tag = shl i64 %epoch, 32
  br label %launch
launch:
  %i = phi i64 [ 0, %entry ], [ %i.next, %finished ]
  %more = icmp slt i64 %i, %launches
  br i1 %more, label %prepare, label %out
prepare:
  %i24 = mul i64 %i, 24
  %offset = add i64 %i24, 8
  %record = getelementptr i64, ptr %program, i64 %offset
  %total.at = getelementptr i64, ptr %record, i64 4
  %next.at = getelementptr i64, ptr %record, i64 8
  %done.at = getelementptr i64, ptr %record, i64 16
  %args.at = getelementptr i64, ptr %record, i64 1
  %function = load ptr, ptr %record, align 8
  %args = load ptr, ptr %args.at, align 8
  %total = load atomic i64, ptr %total.at acquire, align 8
  %total.tag = and i64 %total, -4294967296
  %ours = icmp eq i64 %total.tag, %tag
  br i1 %ours, label %split, label %out
split:
  %tasks = and i64 %total, 4294967295
  %three = mul i64 %tasks, 3
  %most = lshr i64 %three, 2
  %large = udiv i64 %most, %threads
  %pieces = shl i64 %threads, 3
  %share = udiv i64 %tasks, %pieces
  %tiny = icmp eq i64 %share, 0
  %small = select i1 %tiny, i64 1, i64 %share
  %many = icmp ugt i64 %large, %small
  %first = select i1 %many, i64 %large, i64 %small
  br label %claim
claim:
  %old = load atomic i64, ptr %next.at acquire, align 8
  %old.tag = and i64 %old, -4294967296
  %still = icmp eq i64 %old.tag, %tag
  br i1 %still, label %left, label %out
left:
  %begin = and i64 %old, 4294967295
  %any = icmp ult i64 %begin, %tasks
  br i1 %any, label %take, label %wait
take:
  %early = icmp ult i64 %begin, %most
  %chunk = select i1 %early, i64 %first, i64 %small
  %far = add i64 %begin, %chunk
  %past = icmp ugt i64 %far, %tasks
  %end = select i1 %past, i64 %tasks, i64 %far
  %new = or i64 %end, %tag
  %pair = cmpxchg ptr %next.at, i64 %old, i64 %new acq_rel acquire, align 8
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %work, label %claim
work:
  call void %function(ptr %args, i64 %begin, i64 %end)
  %did = sub i64 %end, %begin
  %before = atomicrmw add ptr %done.at, i64 %did acq_rel, align 8
  br label %claim
wait:
  %turn = phi i64 [ 0, %left ], [ %turn.next, %again ]
  %done = load atomic i64, ptr %done.at acquire, align 8
  %complete = icmp eq i64 %done, %total
  br i1 %complete, label %finished, label %check
check:
  %done.tag = and i64 %done, -4294967296
  %current = icmp eq i64 %done.tag, %tag
  br i1 %current, label %patience, label %out
patience:
  %turn.next = add i64 %turn, 1
  %long = icmp ugt i64 %turn.next, %spins
  br i1 %long, label %give, label %breathe
give:
  %ignored = call i32 %yield()
  br label %again
breathe:
  PAUSE
  br label %again
again:
  br label %wait
finished:
  %i.next = add i64 %i, 1
  br label %launch
out:
  ret void
}

define void @lutra_run(ptr %control, ptr %program, i64 %rows) #0 {
entry:
  %epoch.old = load atomic i32, ptr %control monotonic, align 64
  %epoch32 = add i32 %epoch.old, 1
  %epoch = zext i32 %epoch32 to i64
  %tag = shl i64 %epoch, 32
  %launches = load i64, ptr %program, align 8
  br label %reset
reset:
  %i = phi i64 [ 0, %entry ], [ %i.next, %write ]
  %more = icmp slt i64 %i, %launches
  br i1 %more, label %size, label %start
size:
  %i24 = mul i64 %i, 24
  %offset = add i64 %i24, 8
  %record = getelementptr i64, ptr %program, i64 %offset
  %tasks.at = getelementptr i64, ptr %record, i64 2
  %rows.at = getelementptr i64, ptr %record, i64 3
  %total.at = getelementptr i64, ptr %record, i64 4
  %next.at = getelementptr i64, ptr %record, i64 8
  %done.at = getelementptr i64, ptr %record, i64 16
  %tasks = load i64, ptr %tasks.at, align 8
  %block = load i64, ptr %rows.at, align 8
  %fixed = icmp eq i64 %block, 0
  br i1 %fixed, label %write, label %scale
scale:
  %up = add i64 %rows, %block
  %up1 = sub i64 %up, 1
  %blocks = udiv i64 %up1, %block
  %scaled = mul i64 %blocks, %tasks
  br label %write
write:
  %count = phi i64 [ %tasks, %size ], [ %scaled, %scale ]
  %total = or i64 %tag, %count
  store atomic i64 %total, ptr %total.at release, align 8
  store atomic i64 %tag, ptr %done.at release, align 8
  store atomic i64 %tag, ptr %next.at release, align 8
  %i.next = add i64 %i, 1
  br label %reset
start:
  %program.at = getelementptr i64, ptr %control, i64 16
  store atomic ptr %program, ptr %program.at release, align 8
  store atomic i32 %epoch32, ptr %control seq_cst, align 64
  %sleepers.at = getelementptr i64, ptr %control, i64 24
  %sleepers = load atomic i64, ptr %sleepers.at seq_cst, align 8
  %asleep = icmp ne i64 %sleepers, 0
  br i1 %asleep, label %wake, label %work
wake:
  call void @lutra_wake(ptr %control)
  br label %work
work:
  call void @lutra_participate(ptr %control, i64 %epoch, ptr %program)
  ret void
}

define void @lutra_stop(ptr %control) #0 {
  %stop.at = getelementptr i64, ptr %control, i64 8
  store atomic i64 1, ptr %stop.at release, align 8
  %old = atomicrmw add ptr %control, i32 1 seq_cst, align 64
  call void @lutra_wake(ptr %control)
  ret void
}

define void @lutra_wake(ptr %control) #0 {
  %syscall.at = getelementptr i64, ptr %control, i64 56
  %syscall = load ptr, ptr %syscall.at, align 8
  %none = icmp eq ptr %syscall, null
  br i1 %none, label %out, label %call
call:
  %number.at = getelementptr i64, ptr %control, i64 72
  %number = load i64, ptr %number.at, align 8
  %r = call i64 (i64, ...) %syscall(i64 %number, ptr %control, i64 129, i64 2147483647, i64 0, i64 0, i64 0)
  br label %out
out:
  ret void
}

define void @lutra_worker(ptr %control) #0 {
entry:
  %spins.at = getelementptr i64, ptr %control, i64 48
  %spins = load i64, ptr %spins.at, align 8
  %program.at = getelementptr i64, ptr %control, i64 16
  %stop.at = getelementptr i64, ptr %control, i64 8
  %sleepers.at = getelementptr i64, ptr %control, i64 24
  %syscall.at = getelementptr i64, ptr %control, i64 56
  %syscall = load ptr, ptr %syscall.at, align 8
  %yield.at = getelementptr i64, ptr %control, i64 64
  %yield = load ptr, ptr %yield.at, align 8
  %number.at = getelementptr i64, ptr %control, i64 72
  %number = load i64, ptr %number.at, align 8
  br label %idle
idle:
  %last = phi i32 [ 0, %entry ], [ %now, %work ], [ %last.w, %napped ]
  br label %look
look:
  %turn = phi i64 [ 0, %idle ], [ %turn.next, %breathe ]
  %now = load atomic i32, ptr %control acquire, align 64
  %fresh = icmp ne i32 %now, %last
  br i1 %fresh, label %go, label %rest
rest:
  %turn.next = add i64 %turn, 1
  %long = icmp ugt i64 %turn.next, %spins
  br i1 %long, label %nap, label %breathe
breathe:
  PAUSE
  br label %look
nap:
  %last.w = phi i32 [ %last, %rest ]
  %none = icmp eq ptr %syscall, null
  br i1 %none, label %yielding, label %sleep
yielding:
  %ignored = call i32 %yield()
  br label %napped
sleep:
  %a = atomicrmw add ptr %sleepers.at, i64 1 seq_cst, align 8
  %r = call i64 (i64, ...) %syscall(i64 %number, ptr %control, i64 128, i32 %last.w, i64 0, i64 0, i64 0)
  %b = atomicrmw sub ptr %sleepers.at, i64 1 seq_cst, align 8
  br label %napped
napped:
  br label %idle
go:
  %stop = load atomic i64, ptr %stop.at acquire, align 8
  %stopping = icmp ne i64 %stop, 0
  br i1 %stopping, label %out, label %work
work:
  %program = load atomic ptr, ptr %program.at acquire, align 8
  %epoch = zext i32 %now to i64
  call void @lutra_participate(ptr %control, i64 %epoch, ptr %program)
  br label %idle
out:
  ret void
}

attributes #0 = { nounwind }
"""

_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
# The hint to a CPU that it is spinning: intrinsic, argument type, argument.  On ARM `yield` does nothing on most cores;
# the instruction barrier waits some tens of cycles, as x86's pause does.
_PAUSE = {"x86_64": ("llvm.x86.sse2.pause", "", ""), "aarch64": ("llvm.aarch64.isb", "i32", "15")}


def runtime_text(machine: str) -> str:
    """The LLVM text of the functions above for an architecture."""
    if machine not in _PAUSE:
        return _RUNTIME.replace("PAUSE", "fence seq_cst")
    intrinsic, kind, argument = _PAUSE[machine]
    call = f"call void @{intrinsic}({kind} {argument})"
    return f"declare void @{intrinsic}({kind})\n{_RUNTIME.replace('PAUSE', call)}"


@cache
def _runtime() -> dict[str, int]:
    """Addresses of the functions above, compiled once a process."""
    return jit.link_text(runtime_text(architecture()), ("lutra_run", "lutra_worker", "lutra_stop"))


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
        runtime = _runtime()
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(runtime["lutra_run"])
        self._control = _lines(16)
        fields = self._control.reshape(-1, _LINE)[:, 0]
        fields[_THREADS], fields[_SPINS] = threads, 4000
        fields[_YIELD] = _yield_address()
        number = _FUTEX_NUMBER.get(architecture())
        if sys.platform == "linux" and number:
            fields[_FUTEX], fields[_SYSCALL] = number, _address(ctypes.CDLL(None).syscall)
        self._address = int(self._control.ctypes.data)
        self._programs: set[Program] = set()  # a thread that wakes late may still look at any of them
        self._turn = threading.Lock()  # two runs at once would share an epoch
        self._helpers = [
            threading.Thread(target=_work, args=(self._control,), daemon=True, name=f"lutra-{i}")
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
            self._programs.add(program)
            self._run(self._address, program.address, num_rows)


def _work(control: np.ndarray) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_runtime()["lutra_worker"])(int(control.ctypes.data))


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
    raw = np.zeros((count + 1) * _LINE, np.int64)
    skip = (-raw.ctypes.data // 8) % _LINE
    return raw[skip : skip + count * _LINE]


class Program:
    """The recorded launches of one engine step, and the buffers they are bound to."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = list(steps)
        self._lines = _lines(1 + 3 * len(self.steps))
        self._lines[0] = len(self.steps)
        for i, step in enumerate(self.steps):
            record = _LINE + 3 * _LINE * i
            launch = step.launch
            self._lines[record : record + 4] = (launch.function_address, launch.slots_address, step.tasks, step.rows)
        self.address = int(self._lines.ctypes.data)

    def run(self, workers: Workers, num_rows: int) -> None:
        """Run all launches for `num_rows` rows; LUTRA_DEBUG=interpret and =time run them one by one."""
        if debug.enabled("interpret"):
            for step in self.steps:
                step.launch.interpret(step.count(num_rows))
        elif debug.enabled("time"):
            for step in self.steps:
                _run_timed(step, num_rows)
        else:
            workers.run(self, num_rows)


def _run_timed(step: Step, num_rows: int) -> None:
    """Run a step on the calling thread and print what it took; GB/s counts every buffer it is bound to once."""
    tasks = step.count(num_rows)
    started = time.perf_counter()
    step.launch.run(0, tasks)
    taken_us = (time.perf_counter() - started) * 1e6
    rate = step.launch.num_bytes / taken_us / 1e3
    print(f"{step.launch.kernel.name:16s} {tasks:6d} tasks {taken_us:9.1f} us {rate:7.2f} GB/s", file=sys.stderr)
