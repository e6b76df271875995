"""The instruction sets kernels can be compiled for, as rows: which CPU features each may use.

`LUTRA_ISA=portable|avx2|avxvnni|avx512` forces one.  A feature the running CPU lacks is never enabled, so no kernel
can hold an illegal instruction.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm

from lutra.errors import LutraError

_V3 = "sse3 ssse3 sse4.1 sse4.2 popcnt avx avx2 fma f16c bmi bmi2 lzcnt movbe"


@dataclass(frozen=True)
class Target:
    """One instruction set: the LLVM CPU it starts from and the features it adds."""

    isa: str
    cpu: str
    features: frozenset[str]

    @property
    def llvm_features(self) -> str:
        return ",".join(f"+{name}" for name in sorted(self.features))


# Widest first: the first row whose features the CPU has is the default.
TARGETS = (
    Target(
        "avx512",
        "x86-64",
        frozenset(f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl avx512vnni avx512vbmi".split()),
    ),
    Target("avxvnni", "x86-64", frozenset(f"{_V3} avxvnni".split())),
    Target("avx2", "x86-64", frozenset(_V3.split())),
    Target("portable", "", frozenset()),
)


@cache
def host_features() -> frozenset[str]:
    """LLVM's names of the features this CPU and operating system offer."""
    return frozenset(name for name, is_on in llvm.get_host_cpu_features().items() if is_on)


@cache
def available() -> tuple[Target, ...]:
    """Every target this CPU can run, widest first; `portable` always."""
    return tuple(target for target in TARGETS if target.features <= host_features())


def choose(isa: str | None = None) -> Target:
    """The target named by `isa`, by LUTRA_ISA, or the widest this CPU has.

    Raises LutraError for an unknown name and for a target this CPU lacks.
    """
    name = isa or os.environ.get("LUTRA_ISA", "")
    if not name:
        return available()[0]
    known = {target.isa: target for target in TARGETS}
    if name not in known:
        raise LutraError(
            f"expected LUTRA_ISA to be one of {', '.join(known)}, got {name!r}; unset it to let lutra choose"
        )
    if known[name] not in available():
        missing = ", ".join(sorted(known[name].features - host_features()))
        raise LutraError(f"this CPU cannot run {name}: it lacks {missing}; use {available()[0].isa} or unset LUTRA_ISA")
    return known[name]
