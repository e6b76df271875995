"""What the system says about this computer: CPU, caches, and the cores this process may use."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from lutra.compiler import targets


@dataclass(frozen=True)
class Cache:
    """One cache as the first CPU sees it: kind is "data", "instruction" or "unified"."""

    level: int
    kind: str
    size_bytes: int


# Where the system lists none: those of an ordinary laptop.
FALLBACK_CACHES = (Cache(1, "data", 32 << 10), Cache(2, "unified", 1 << 20), Cache(3, "unified", 16 << 20))
UNITS = {"K": 10, "M": 20, "G": 30}


def isa() -> str:
    """Name of the instruction set kernels are compiled for: LUTRA_ISA, or the widest this CPU has."""
    return targets.choose().isa


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's own name, or its architecture where the system tells none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model\t"))]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> tuple[Cache, ...]:
    """The first CPU's caches, nearest first; FALLBACK_CACHES where the system lists none."""
    found = [_read_cache(index) for index in folder.glob("index*")]
    return tuple(sorted(filter(None, found), key=lambda cache: (cache.level, cache.kind))) or FALLBACK_CACHES


def _read_cache(index: Path) -> Cache | None:
    try:
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        return Cache(int(level), kind.lower(), int(size.rstrip("KMG")) << UNITS.get(size[-1:], 0))
    except (OSError, ValueError):
        return None


def affinity_cores() -> int:
    """Cores the scheduler may put this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Cores this process may use: its affinity, or the CPU quota of its cgroup, rounded up, if that is less."""
    return max(1, math.ceil(min(affinity_cores(), cgroup_cores())))


def cgroup_cores(root: Path = Path("/")) -> float:
    """CPUs whose time the cgroups around this process allow, version 1 and 2; infinite without a quota.

    Source: kernel documentation, admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (cpu.cfs_quota_us).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    return min((_quota(group) for line in lines for group in _groups(root / "sys/fs/cgroup", line)), default=math.inf)


def _groups(mount: Path, line: str) -> list[Path]:
    """Folders that may hold a CPU quota for one line, "id:controllers:path", of /proc/self/cgroup.

    Every level above the path counts.  The root is among them: a container often sees its own group there, whatever
    the path says.
    """
    _, controllers, path = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return []
    below = Path(path.lstrip("/"))
    mounts = {"cpu", controllers} if controllers else {"", "unified"}
    return [mount / name / level for name in mounts for level in (below, *below.parents)]


def _quota(group: Path) -> float:
    """CPUs allowed by one group: version 2 keeps "quota period" in cpu.max, version 1 a file for each."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory a program can take without swapping; None where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return None
