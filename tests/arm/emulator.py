"""Kernels compiled for aarch64, linked with a small C program and run under qemu's user mode."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutra.compiler import targets
from lutra.compiler.codegen import cross_compile
from lutra.compiler.kernel import Kernel
from lutra.compiler.types import Pointer

QEMU, GCC = "qemu-aarch64", "aarch64-linux-gnu-gcc"
TARGETS = {target.isa: target for target in targets.TARGETS if target.architecture == "aarch64"}
ISAS = list(TARGETS)

# The smallest CPU qemu knows that has the instruction set, so that one instruction too many is an illegal one.
CPUS = {"neon": "cortex-a72", "dotprod": "neoverse-n1", "i8mm": "max"}


def missing() -> str:
    """Why nothing can be run, or nothing."""
    names = [name for name in (QEMU, GCC) if not shutil.which(name)]
    return f"{' and '.join(names)} not installed (Debian: qemu-user, gcc-aarch64-linux-gnu)" if names else ""


@dataclass(frozen=True)
class Emulator:
    """A folder with the compiled C program."""

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> Emulator:
        source = Path(__file__).parent / "main.c"
        subprocess.run([GCC, "-O1", "-c", source, "-o", folder / "main.o"], check=True)
        return cls(folder)

    def run(self, kernel: Kernel, args: dict[str, Any], tasks: int, isa: str, **static: Any) -> None:
        """Run tasks 0 .. tasks - 1 on an emulated CPU and write the buffers of `args` back."""
        program, given, result = self._program(kernel, isa, static), self.folder / "in", self.folder / "out"
        regions = _regions([value for value in args.values() if isinstance(value, np.ndarray)])
        given.write_bytes(_request(kernel, args, tasks, regions))
        subprocess.run([QEMU, "-cpu", CPUS[isa], program, given, result], check=True)
        _take_back(regions, result.read_bytes())

    def _program(self, kernel: Kernel, isa: str, static: dict[str, Any]) -> Path:
        """The executable of one specialisation, linked once."""
        digest = hashlib.sha256(repr(sorted(static.items())).encode()).hexdigest()[:16]
        program = self.folder / f"{kernel.name}-{isa}-{digest}"
        if not program.exists():
            code = cross_compile(kernel.trace(**static), TARGETS[isa], "kernel")
            (self.folder / "kernel.o").write_bytes(code.object)
            objects = [self.folder / "main.o", self.folder / "kernel.o"]
            subprocess.run([GCC, "-static", *objects, "-o", program], check=True)
        return program


@dataclass(frozen=True)
class Region:
    """Memory of this process that one or several overlapping arrays lie in."""

    start: int
    end: int

    def read(self) -> bytes:
        return ctypes.string_at(self.start, self.end - self.start)


def _regions(arrays: list[np.ndarray]) -> list[Region]:
    """The memory of all arrays: what overlaps here overlaps there."""
    merged: list[Region] = []
    for start, end in sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays):
        if merged and start < merged[-1].end:
            merged[-1] = Region(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Region(start, end))
    return merged


def _request(kernel: Kernel, args: dict[str, Any], tasks: int, regions: list[Region]) -> bytes:
    """What main.c reads."""
    parts = [np.array([tasks, len(regions), len(kernel.params)], np.int64).tobytes()]
    for region in regions:
        parts += [np.int64(region.end - region.start).tobytes(), region.read()]
    for name, kind in kernel.params.items():
        if isinstance(kind, Pointer):
            address = args[name].ctypes.data
            place = next(i for i, region in enumerate(regions) if region.start <= address < region.end)
            parts.append(np.array([place, address - regions[place].start], np.int64).tobytes())
        else:
            number = kind.dtype.numpy(args[name]).tobytes()
            parts += [np.int64(-1).tobytes(), number.ljust(8, b"\0")]
    return b"".join(parts)


def _take_back(regions: list[Region], result: bytes) -> None:
    """Write what changed; weights may lie in memory that cannot be written."""
    at = 0
    for region in regions:
        size = region.end - region.start
        if result[at : at + size] != region.read():
            ctypes.memmove(region.start, result[at : at + size], size)
        at += size
    assert at == len(result)
