"""The instruction sets kernels can be compiled for, as rows: which CPU features each may use.

`LUTRA_ISA=amx|avx512|avxvnni|avx2|i8mm|dotprod|neon|portable` forces one.  A feature the running CPU lacks is never
enabled, so no kernel can hold an illegal instruction.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from lutra.compiler.host import architecture, host_features
from lutra.errors import LutraError

_V3 = "sse3 ssse3 sse4.1 sse4.2 popcnt avx avx2 fma f16c bmi bmi2 lzcnt movbe"
_ANY = ""
TILES = frozenset({"amx-tile", "amx-int8"})  # of matrices, see tile_registers.py


@dataclass(frozen=True)
class Target:
    """One instruction set: its architecture, and the features it adds to what every such CPU has."""

    isa: str
    architecture: str  # LLVM's name; "" = every one
    features: frozenset[str]
    tune: str = ""  # the CPU whose timings LLVM's scheduler assumes; "" = LLVM's choice
    like: str = ""  # the target with the same vectors, whose rows of a table hold where it has none of its own

    @property
    def vectors(self) -> str:
        """The name that tables of vectors and registers have it under."""
        return self.like or self.isa

    @property
    def has_tiles(self) -> bool:
        """Whether words of tile_registers.py can be compiled."""
        return TILES <= self.features

    @property
    def llvm_features(self) -> str:
        return ",".join(f"+{name}" for name in sorted(self.features))


# LLVM takes any ARM CPU for a small in-order core and loads far ahead, so that registers spill: table lookups in 4 bits
# take 0.45 instructions a weight so, 0.39 scheduled for this one.
_ARM_TUNE = "neoverse-n1"

_AVX512 = frozenset(f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl avx512vnni avx512vbmi".split())

# Widest first: the first row of this architecture whose features the CPU has is the default.
TARGETS = (
    Target("amx", "x86_64", _AVX512 | TILES, like="avx512"),
    Target("avx512", "x86_64", _AVX512),
    Target("avxvnni", "x86_64", frozenset(f"{_V3} avxvnni".split())),
    Target("avx2", "x86_64", frozenset(_V3.split())),
    Target("i8mm", "aarch64", frozenset({"neon", "dotprod", "i8mm"}), _ARM_TUNE),
    Target("dotprod", "aarch64", frozenset({"neon", "dotprod"}), _ARM_TUNE),
    Target("neon", "aarch64", frozenset({"neon"}), _ARM_TUNE),
    Target("portable", _ANY, frozenset()),
)
PORTABLE = TARGETS[-1]


def of(machine: str) -> tuple[Target, ...]:
    """The targets of an architecture, widest first."""
    return tuple(target for target in TARGETS if target.architecture in (machine, _ANY))


@cache
def available() -> tuple[Target, ...]:
    """Every target this CPU can run, widest first; `portable` always."""
    return tuple(target for target in of(architecture()) if target.features <= host_features())


def named(isa: str) -> Target:
    """The target of this name, which this CPU may lack."""
    return next(target for target in TARGETS if target.isa == isa)


def choose(isa: str | None = None) -> Target:
    """The target named by `isa`, by LUTRA_ISA, or the widest this CPU has.

    Raises LutraError for an unknown name and for a target this CPU lacks.
    """
    name = isa or os.environ.get("LUTRA_ISA", "")
    if not name:
        return available()[0]
    known = {target.isa: target for target in TARGETS}
    if name not in known:
        ours = ", ".join(target.isa for target in of(architecture()))
        raise LutraError(f"expected LUTRA_ISA to be one of {ours}, got {name!r}; unset it to let lutra choose")
    target, use = known[name], f"use {available()[0].isa} or unset LUTRA_ISA"
    if target not in of(architecture()):
        raise LutraError(f"this CPU cannot run {name}: it is {architecture()}, not {target.architecture}; {use}")
    if target not in available():
        missing = ", ".join(sorted(target.features - host_features()))
        raise LutraError(f"this CPU cannot run {name}: it lacks {missing}; {use}")
    return target
