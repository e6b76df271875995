"""Kernels compiled for aarch64, linked with a small C program and run under qemu's user mode."""

from __future__ import annotations

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
        code = cross_compile(kernel.trace(**static), TARGETS[isa], "kernel")
        (self.folder / "kernel.o").write_bytes(code.object)
        files = [self.folder / name for name in ("main.o", "kernel.o", "main", "in", "out")]
        main_object, kernel_object, program, given, result = files
        subprocess.run([GCC, "-static", main_object, kernel_object, "-o", program], check=True)
        given.write_bytes(_request(kernel, args, tasks))
        subprocess.run([QEMU, "-cpu", CPUS[isa], program, given, result], check=True)
        _take_back(kernel, args, result.read_bytes())


def _request(kernel: Kernel, args: dict[str, Any], tasks: int) -> bytes:
    """What main.c reads."""
    parts = [np.array([tasks, len(kernel.params)], np.int64).tobytes()]
    for name, kind in kernel.params.items():
        if isinstance(kind, Pointer):
            parts += [np.int64(args[name].nbytes).tobytes(), args[name].tobytes()]
        else:
            number = kind.dtype.numpy(args[name]).tobytes()
            parts += [np.int64(0).tobytes(), number.ljust(8, b"\0")]
    return b"".join(parts)


def _take_back(kernel: Kernel, args: dict[str, Any], result: bytes) -> None:
    at = 0
    for name, kind in kernel.params.items():
        if isinstance(kind, Pointer):
            buffer = args[name]
            buffer[...] = np.frombuffer(result, buffer.dtype, buffer.size, at).reshape(buffer.shape)
            at += buffer.nbytes
    assert at == len(result)
