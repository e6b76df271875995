"""What `lutra doctor` shows: a description of the computer in lines of text, and a test of each instruction set."""

from __future__ import annotations

import math
import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from lutra import __version__
from lutra.compiler import jit, targets
from lutra.compiler.kernel import kernel
from lutra.compiler.language import (
    Pointer,
    bitcast,
    const,
    convert,
    dot4,
    f16,
    f32,
    i8,
    i32,
    i64,
    load,
    lookup,
    loop,
    reduce_add,
    splat,
    sqrt,
    store,
    u8,
    var,
)
from lutra.errors import LutraError
from lutra.machine.limits import measure
from lutra.machine.system import affinity_cores, caches, cgroup_cores, cpu_name, isa, usable_cores
from lutra.machine.tile_rate import arguments, multiply_tiles, tile_gops

PROBE_CODES = 256  # weights of the self-test


def report() -> str:
    """Describe this computer, one `name  value` a line; measures the roofs anew, which takes about two seconds."""
    now = measure()
    others = [target.isa for target in targets.available() if target.isa != isa()]
    quota = cgroup_cores()
    limit = "no quota" if quota == math.inf else f"a quota of {quota:g}"
    lines = {
        "cpu": f"{cpu_name()} ({platform.machine()}, {platform.system()})",
        "cores": f"{usable_cores()} usable: {affinity_cores()} by affinity, {limit}",
        "caches": ", ".join(f"L{c.level} {c.kind} {_size(c.size_bytes)}" for c in caches()),
        "kernels": f"{isa()}" + (f"; also {', '.join(others)}" if others else ""),
        "reading": _rates("GB/s", now.cores, now.gb_per_s_one, now.gb_per_s),
        "int8": _rates("Gop/s", now.cores, now.int8_gops_one, now.int8_gops),
        **_tiles(),
        "cache": str(jit.cache_folder()),
        "versions": f"lutra {__version__}, Python {platform.python_version()}, NumPy {np.__version__}, LLVM {_llvm()}",
    }
    return "\n".join(f"{name:10} {value}" for name, value in lines.items())


def _size(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB" if size_bytes >= 1 << 20 else f"{size_bytes >> 10} KiB"


def _rates(unit: str, cores: int, one: float, every: float) -> str:
    return f"{one:.1f} {unit} on 1 thread" + (f", {every:.1f} {unit} on {cores}" if cores > 1 else "")


def _tiles() -> dict[str, str]:
    """The rate of tile registers, where the instruction set has them."""
    if not targets.choose().has_tiles:
        return {}
    cores = usable_cores()
    return {"tiles": _rates("Gop/s", cores, tile_gops(1), tile_gops(cores))}


def _llvm() -> str:
    return ".".join(map(str, llvm.llvm_version_info))


@kernel
def probe(codes: Pointer[u8], table: Pointer[u8], x: Pointer[i8], scale: Pointer[f16], y: Pointer[f32], task: i64):
    """A little of everything: 4-bit codes times int8, by multiplying and by looking up; f16 scales; a norm."""
    dots, found = var(const(0, i32, 16)), var(const(0, i32, 16))
    weights = bitcast(const(0x08040201, i32, 16), i8)
    for k in loop(0, PROBE_CODES, 64):
        low, high = load(codes, k, 64) & 15, load(codes, k, 64) >> 4
        dots.set(dot4(dots, low, load(x, k, 64), bound=15))
        found.set(dot4(found, lookup(load(table, task * 16, 16), high), weights, signed_bound=8))
    out = (convert(dots, f32) + convert(found, f32)) * convert(load(scale, 0, 16), f32)
    store(y, task * 16, out / splat(sqrt(reduce_add(out * out) + 1.0), 16))


def self_test() -> list[tuple[str, bool, str]]:
    """Run one kernel natively on every instruction set this CPU has and compare with its NumPy meaning, bit for bit.

    returns  (instruction set, whether it is right, what was found) for each
    """
    rng = np.random.default_rng(0)
    args = {
        "codes": rng.integers(0, 256, PROBE_CODES, dtype=np.uint8),
        "table": rng.integers(0, 256, 32, dtype=np.uint8),
        "x": rng.integers(-127, 128, PROBE_CODES, dtype=np.int8),
        "scale": rng.standard_normal(16).astype(np.float16),
        "y": np.zeros(32, np.float32),
    }
    return [_test(target.isa, args) for target in targets.available()]


def _test(name: str, args: dict[str, Any]) -> tuple[str, bool, str]:
    try:
        probe.check(args, 2, name)
        if targets.named(name).has_tiles:
            multiply_tiles.check(arguments(tasks=2), 2, name, turns=4)
    except LutraError as error:
        return name, False, str(error)
    return name, True, "dot products, lookups, f16, square roots equal their definition bit for bit"
