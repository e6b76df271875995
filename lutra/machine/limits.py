"""Measured limits of this computer: how fast memory can be read, how many int8 operations a second the CPU does.

Both are measured with kernels of our own language on our own threads, because kernels of that kind are compared with
them.  Other programs' work lowers every number: measure beside what you compare.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from lutra import __version__
from lutra.compiler import jit, targets
from lutra.compiler.kernel import Launch, kernel
from lutra.compiler.language import Pointer, const, dot4, i8, i32, i64, load, loop, prefetch, store, u8, var
from lutra.compiler.launch import Program, Step, Workers
from lutra.machine.system import caches, cpu_name, isa, usable_cores

BLOCK_BYTES = 1 << 18  # read by one task
PARTS = 4  # of the buffer
TURN_BYTES = 512  # read in one turn of its loop
# Distances tried, into the first cache and into the second; which is best depends on the machine, 0 asks for nothing
PREFETCH_BYTES = ((0, 0), (4096, 0), (16384, 0), (1024, 4096))
SMALLEST_BUFFER, LARGEST_BUFFER = 64 << 20, 1 << 30
TURNS = 1 << 14  # of the int8 loop, in one task
SECONDS = 0.4  # spent on each rate
SIDES = {"avx512": 4}  # side * side sums of 16 lanes, as many as the registers hold
NARROW_SIDE = 2


@kernel
def read_bytes(data: Pointer[u8], out: Pointer[u8], task: i64, *, prefetch_bytes, second_bytes):
    """Fold one block of memory into 64 bytes."""
    parts = [var(const(0, u8, 64)) for _ in range(TURN_BYTES // 64)]
    for at in loop(task * BLOCK_BYTES, (task + 1) * BLOCK_BYTES, TURN_BYTES):
        for i, part in enumerate(parts):
            for level, distance in ((2, second_bytes), (1, prefetch_bytes)):
                if distance:
                    prefetch(data, at + (i * 64 + distance), level)
            part.set(part.get() ^ load(data, at + i * 64, 64))
    total = parts[0].get()
    for part in parts[1:]:
        total = total ^ part.get()
    store(out, task * 64, total)


@kernel
def multiply_bytes(a: Pointer[u8], b: Pointer[i8], out: Pointer[i32], task: i64, *, side):
    """TURNS times side * side dot products; the operands move through 1 KiB, so that no product can be reused."""
    acc = [[var(const(0, i32, 16)) for _ in range(side)] for _ in range(side)]
    for turn in loop(0, TURNS):
        at = (turn & 3) * (side * 64)
        left = [load(a, at + i * 64, 64) for i in range(side)]
        right = [load(b, at + i * 64, 64) for i in range(side)]
        for i in range(side):
            for j in range(side):
                acc[i][j].set(dot4(acc[i][j], left[i], right[j], bound=127))
    total = const(0, i32, 16)
    for row in acc:
        for part in row:
            total = total + part.get()
    store(out, task * 16, total)


@dataclass(frozen=True)
class Roof:
    """Measured limits, on one thread and on all: 1e9 bytes read, 1e9 int8 operations (two a multiply-add) a second."""

    cores: int
    gb_per_s_one: float
    gb_per_s: float
    int8_gops_one: float
    int8_gops: float


def read_gb_per_s(threads: int, seconds: float | None = None) -> float:
    """Best rate at which `threads` threads read memory that no cache holds, in 1e9 bytes a second.

    The buffer is read in parts, each timed alone: a part is over before other programs take the CPU away, and the
    others have pushed it out of the caches when its turn comes again.
    """
    parts = np.split(_buffer(), PARTS)
    tasks = parts[0].size // BLOCK_BYTES
    out = np.zeros(tasks * 64, np.uint8)
    steps = [
        Step(_bind_read(part, out, near, far), tasks, 0)
        for near, far in PREFETCH_BYTES
        for part in parts
    ]
    return parts[0].size / 1e9 / best_s(steps, threads, seconds)


def read_programs(num_bytes: int) -> list[Program]:
    """Programs that read about num_bytes of memory that no cache holds, one for each of PREFETCH_BYTES.

    They give a roof of the same duration as the work it is compared with: round the buffer, as often as needed.
    """
    buffer = _buffer()
    blocks = max(1, round(num_bytes / BLOCK_BYTES))
    laps, rest = divmod(blocks, buffer.size // BLOCK_BYTES)
    pieces = [buffer] * laps + ([buffer[: rest * BLOCK_BYTES]] if rest else [])
    out = np.zeros(buffer.size // BLOCK_BYTES * 64, np.uint8)
    return [
        Program([Step(_bind_read(piece, out, near, far), piece.size // BLOCK_BYTES, 0) for piece in pieces])
        for near, far in PREFETCH_BYTES
    ]  # fmt: skip


def _bind_read(data: np.ndarray, out: np.ndarray, near: int, far: int) -> Launch:
    return read_bytes.bind({"data": data, "out": out}, prefetch_bytes=near, second_bytes=far)


def bytes_read(program: Program) -> int:
    """Bytes that one of `read_programs` reads."""
    return sum(step.tasks for step in program.steps) * BLOCK_BYTES


def int8_gops(threads: int, seconds: float | None = None) -> float:
    """Best rate of int8 operations on `threads` threads, in 1e9 a second."""
    tasks = 8 * threads
    return _task_operations() * tasks / 1e9 / best_s([_multiply_step(tasks)], threads, seconds)


def multiply_program(operations: int) -> Program:
    """A program of about that many int8 operations, two a multiply-add, on registers: the roof of so much work."""
    return Program([_multiply_step(max(1, round(operations / _task_operations())))])


def _task_operations() -> int:
    return 2 * 64 * _side() * _side() * TURNS


def _side() -> int:
    return SIDES.get(targets.choose().vectors, NARROW_SIDE)


def _multiply_step(tasks: int) -> Step:
    rng = np.random.default_rng(0)
    args = {
        "a": rng.integers(0, 128, 1024, dtype=np.uint8),
        "b": rng.integers(-127, 128, 1024, dtype=np.int8),
        "out": np.zeros(tasks * 16, np.int32),
    }
    return Step(multiply_bytes.bind(args, side=_side()), tasks, 0)


def best_s(steps: Sequence[Step], threads: int, seconds: float | None) -> float:
    """Shortest wall time of any step, all of them run in turn for `seconds` (SECONDS), at least once.

    Many short runs, because the best of them counts: on a busy machine few are left alone on all their cores.
    """
    workers, programs, best = Workers(threads), [Program([step]) for step in steps], float("inf")
    end = time.perf_counter() + (SECONDS if seconds is None else seconds)
    while best == float("inf") or time.perf_counter() < end:
        for program in programs:
            started = time.perf_counter()
            workers.run(program, 0)
            best = min(best, time.perf_counter() - started)
    workers.close()  # they would keep every program they ran, and its buffers
    return best


@cache
def _buffer() -> np.ndarray:
    """Four times the last cache and at least 256 MiB, but no more than a quarter of the free memory."""
    wanted = max(4 * max(cache.size_bytes for cache in caches()), 256 << 20)
    size = max(min(wanted, LARGEST_BUFFER, _free_bytes() // 4), SMALLEST_BUFFER)
    return np.full(size // (PARTS * BLOCK_BYTES) * PARTS * BLOCK_BYTES, 1, np.uint8)


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return LARGEST_BUFFER


def measure() -> Roof:
    """Measure all limits now, in about two seconds, and remember them for `roof`."""
    cores = usable_cores()
    one = read_gb_per_s(1), int8_gops(1)
    every = (read_gb_per_s(cores), int8_gops(cores)) if cores > 1 else one
    measured = Roof(cores, one[0], max(one[0], every[0]), one[1], max(one[1], every[1]))
    _write({**_read(), _key(): asdict(measured)})
    return measured


def roof() -> Roof:
    """The limits measured last for this CPU, number of cores, instruction set and version of lutra; or measured now."""
    try:
        return Roof(**_read()[_key()])
    except (KeyError, TypeError):
        return measure()


def _key() -> str:
    return f"{cpu_name()}, {usable_cores()} cores, {isa()}, lutra {__version__}"


def _read() -> dict[str, Any]:
    try:
        known = json.loads((jit.cache_folder() / "roof.json").read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: dict[str, Any]) -> None:
    path = jit.cache_folder() / "roof.json"
    staging = path.with_suffix(f".{os.getpid()}")
    staging.write_text(json.dumps(known, indent=1))
    staging.replace(path)
