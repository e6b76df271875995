"""`@kernel`: a Python function that can be traced, printed, interpreted, compiled, run and compared."""

from __future__ import annotations

import ctypes
import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutra.compiler import jit, targets
from lutra.compiler.interpret import interpret
from lutra.compiler.ir import Function
from lutra.compiler.trace import Signature, signature, trace
from lutra.compiler.types import Pointer
from lutra.errors import KernelError

_NATIVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Kernel:
    """A program in the kernel language.  `static` are its keyword-only parameters: one machine code for each choice."""

    def __init__(self, function: Callable[..., None]):
        self.function = function
        self.name = function.__name__
        self.params: Signature = signature(function)
        self.__doc__ = function.__doc__
        self._compiled: dict[Any, jit.Compiled] = {}

    def trace(self, **static: Any) -> Function:
        """The IR of one specialisation."""
        return trace(self.function, static)

    def compile(self, isa: str | None = None, **static: Any) -> jit.Compiled:
        """Machine code of one specialisation for `isa` (default: LUTRA_ISA or this CPU's widest)."""
        target = targets.choose(isa)
        choice = (target.isa, tuple(sorted(static.items())))
        if choice not in self._compiled:
            folder = str(Path(inspect.getsourcefile(self.function) or "").parent)
            digest = jit.key(self.name, static, target, folder)
            found = jit.load(self.name, digest, target) or jit.build(self.trace(**static), digest, target)
            jit.show(found)
            self._compiled[choice] = found
        return self._compiled[choice]

    def bind(self, args: dict[str, Any], isa: str | None = None, **static: Any) -> Launch:
        """Machine code plus argument block: ready to run any number of times on the same buffers."""
        compiled = self.compile(isa, **static)
        return Launch(self, compiled, self._checked(args, compiled.stores), static)

    def interpret(self, args: dict[str, Any], tasks: int, **static: Any) -> None:
        """Run tasks 0 .. tasks - 1 in NumPy, with every memory access checked."""
        function = self.trace(**static)
        interpret(function, self._checked(args, function.stores), range(tasks))

    def run(self, args: dict[str, Any], tasks: int, isa: str | None = None, **static: Any) -> None:
        """Run tasks 0 .. tasks - 1 natively on the calling thread."""
        self.bind(args, isa, **static).run(0, tasks)

    def check(self, args: dict[str, Any], tasks: int, isa: str | None = None, **static: Any) -> None:
        """Run interpreted and native on copies; raise KernelError naming the first element that differs."""
        specified = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in args.items()}
        native = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in args.items()}
        self.interpret(specified, tasks, **static)
        self.run(native, tasks, isa, **static)
        for name, want in specified.items():
            if isinstance(want, np.ndarray):
                _compare(self.name, name, want.reshape(-1), native[name].reshape(-1))

    def _checked(self, args: dict[str, Any], stores: Sequence[str]) -> dict[str, Any]:
        """The arguments in the kernel's order; KernelError where one is missing, or not what machine code expects."""
        if set(args) != set(self.params):
            raise KernelError(f"{self.name}: expected arguments {', '.join(self.params)}, got {', '.join(args)}")
        for name, kind in self.params.items():
            value = args[name]
            if isinstance(kind, Pointer):
                if not isinstance(value, np.ndarray) or value.dtype != kind.dtype.numpy or not value.flags.c_contiguous:
                    got = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
                    raise KernelError(f"{self.name}: {name} must be a contiguous {kind.dtype} array, got {got}")
                if name in stores and not value.flags.writeable:
                    raise KernelError(f"{self.name}: {name} is written, got a read-only array; pass a copy")
            elif isinstance(value, np.ndarray):
                raise KernelError(f"{self.name}: {name} must be a number ({kind}), got an array")
        return {name: args[name] for name in self.params}


class Launch:
    """A compiled kernel bound to addresses.  Keeps its arrays alive."""

    def __init__(self, kernel: Kernel, compiled: jit.Compiled, args: dict[str, Any], static: dict[str, Any]):
        self.kernel, self.compiled, self.args, self.static = kernel, compiled, args, static
        self.slots = np.zeros(max(1, len(args)), np.int64)  # one 8-byte slot a parameter
        for slot, (name, kind) in enumerate(kernel.params.items()):
            if isinstance(kind, Pointer):
                self.slots[slot] = args[name].ctypes.data
            elif kind.dtype.is_float:
                self.slots[slot : slot + 1].view(np.float32)[0] = args[name]
            else:
                self.slots[slot] = args[name]

    @property
    def function_address(self) -> int:
        return self.compiled.address

    @property
    def slots_address(self) -> int:
        return int(self.slots.ctypes.data)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers it is bound to."""
        return sum(value.nbytes for value in self.args.values() if isinstance(value, np.ndarray))

    def interpret(self, tasks: int) -> None:
        """Run tasks 0 .. tasks - 1 in NumPy on the same buffers."""
        self.kernel.interpret(self.args, tasks, **self.static)

    def run(self, begin: int, end: int) -> None:
        """Run tasks begin .. end - 1 on the calling thread."""
        _NATIVE(self.compiled.address)(self.slots_address, begin, end)

    def time_us(self, tasks: int, repeats: int = 5) -> float:
        """Best wall time of `repeats` runs on the calling thread, in microseconds."""
        best = float("inf")
        call, slots = _NATIVE(self.compiled.address), self.slots_address
        for _ in range(repeats):
            started = time.perf_counter()
            call(slots, 0, tasks)
            best = min(best, time.perf_counter() - started)
        return best * 1e6


def _compare(kernel: str, name: str, want: np.ndarray, got: np.ndarray) -> None:
    same = (want == got) | ((want != want) & (got != got))
    if not same.all():
        first = int(np.argmin(same))
        raise KernelError(
            f"{kernel}: {name}[{first}] is {got[first]!r} natively, {want[first]!r} by definition "
            f"({int((~same).sum())} of {same.size} elements differ)"
        )


def kernel(function: Callable[..., None]) -> Kernel:
    """Make a traced kernel of a function; see language.py for what may stand in it."""
    return Kernel(function)
