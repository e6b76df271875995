"""What the system says: quotas of both cgroup versions, caches, names; from small made-up trees."""

import math
import os
from pathlib import Path

import pytest

from lutra.machine import system


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "4:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/not/in/this/container\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "rubbish\n"}, math.inf),
    ],
)
def test_cgroup_cores(tmp_path, files, cores):
    assert system.cgroup_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(("affinity", "quota", "cores"), [(8, math.inf, 8), (8, 1.5, 2), (2, 7.0, 2), (4, 0.2, 1)])
def test_usable_cores_is_the_tighter_limit_rounded_up(monkeypatch, affinity, quota, cores):
    monkeypatch.setattr(system, "affinity_cores", lambda: affinity)
    monkeypatch.setattr(system, "cgroup_cores", lambda: quota)
    assert system.usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_affinity_counts():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert system.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_caches(tmp_path):
    folder = write(
        tmp_path,
        {
            "index0/level": "1", "index0/type": "Data", "index0/size": "48K",
            "index3/level": "3", "index3/type": "Unified", "index3/size": "32M",
            "index9/level": "rubbish", "index9/type": "Unified", "index9/size": "1M",
        },
    )  # fmt: skip
    assert system.caches(folder) == (system.Cache(1, "data", 48 << 10), system.Cache(3, "unified", 32 << 20))
    assert system.caches(tmp_path / "none") == system.FALLBACK_CACHES


def test_cpu_name(tmp_path):
    write(tmp_path, {"cpuinfo": "processor\t: 0\nmodel\t\t: 2\nmodel name\t: A Fine CPU: 3 GHz\n"})
    assert system.cpu_name(tmp_path / "cpuinfo") == "A Fine CPU: 3 GHz"
    assert system.cpu_name(tmp_path / "none")


def test_available_memory_is_in_kibibytes(tmp_path: Path) -> None:
    files = write(tmp_path, {"a": "MemTotal: 100 kB\nMemAvailable:   3 kB\n", "b": "MemTotal: 100 kB\n"})
    assert system.available_bytes(files / "a") == 3072
    assert system.available_bytes(files / "b") is None
    assert system.available_bytes(files / "none") is None
