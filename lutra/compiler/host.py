"""What the CPU of this computer is, and which features it offers, in LLVM's words."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

# What some systems call an architecture → what LLVM and Linux call it.
_OTHER_NAMES = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}

# LLVM's word: (Linux's in /proc/cpuinfo, Apple's in sysctl).  LLVM itself has learnt to look for them only by and by.
_ARM_FEATURES = {
    "dotprod": ("asimddp", "hw.optional.arm.FEAT_DotProd"),
    "i8mm": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
}

_TILE_FEATURES = frozenset({"amx-tile", "amx-int8", "amx-bf16"})
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def architecture() -> str:
    """LLVM's name of this CPU's architecture: x86_64, aarch64, ..."""
    machine = platform.machine()
    return _OTHER_NAMES.get(machine, machine)


@cache
def host_features() -> frozenset[str]:
    """LLVM's names of the features this CPU and operating system offer."""
    try:
        known = frozenset(name for name, is_on in llvm.get_host_cpu_features().items() if is_on)
    except RuntimeError:  # LLVM cannot tell on this system
        known = frozenset()
    if architecture() == "aarch64":
        return known | arm_features()
    return known if known.isdisjoint(_TILE_FEATURES) or may_use_tiles() else known - _TILE_FEATURES


def may_use_tiles() -> bool:
    """Ask Linux for the tile registers, whose 8 KiB of state every thread of this process then has room for.

    Elsewhere, and where the kernel says no (an older one, a filter on system calls), the CPU counts as one without.
    """
    if sys.platform != "linux" or architecture() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def arm_features() -> frozenset[str]:
    """Features of an aarch64 CPU as the operating system lists them; `neon` is part of the architecture."""
    if sys.platform == "darwin":
        return frozenset({"neon"} | {name for name, (_, apple) in _ARM_FEATURES.items() if _sysctl(apple)})
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset({"neon"}) | (parse_cpuinfo(cpuinfo.read_text()) if cpuinfo.exists() else frozenset())


def parse_cpuinfo(text: str) -> frozenset[str]:
    """The features that every core of an aarch64 /proc/cpuinfo has."""
    cores = [set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("Features")]
    shared = set.intersection(*cores) if cores else set()
    return frozenset(name for name, (linux, _) in _ARM_FEATURES.items() if linux in shared)


def _sysctl(name: str) -> int:
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value
