"""The kernel cache: leavings go after a day, kernels longest out of use go when it is too large, all else stays."""

import os
from pathlib import Path

from lutra.compiler import jit, targets
from lutra.compiler.tidy import KEEP_S, tidy
from tests.compiler.test_jit import triple

NOW = 1.5e9
OLD = NOW - KEEP_S - 60


def make(cache: Path, name: str, used: float, size: int = 100) -> Path:
    folder = cache / name
    folder.mkdir()
    (folder / "kernel.o").write_bytes(bytes(size))
    os.utime(folder, (used, used))
    return folder


def left(cache: Path) -> set[str]:
    return {entry.name for entry in cache.iterdir()}


def test_staging_folders_of_crashed_processes_go(tmp_path):
    make(tmp_path, ".new-old", OLD)
    make(tmp_path, ".new-young", NOW - 5)
    make(tmp_path, "kernel-a", OLD)
    (tmp_path / "tuned-avx2.json").write_text("{}")
    tidy(tmp_path, NOW)
    assert left(tmp_path) == {".new-young", "kernel-a", "tuned-avx2.json"}


def test_the_longest_unused_go_first_until_the_rest_fits(tmp_path):
    make(tmp_path, "second", OLD - 10)
    make(tmp_path, "first", OLD - 20)
    make(tmp_path, "third", OLD)
    make(tmp_path, "young", NOW - 5, size=250)
    tidy(tmp_path, NOW, limit_bytes=400)
    assert left(tmp_path) == {"third", "young"}  # 550 bytes, less 100, less 100
    tidy(tmp_path, NOW, limit_bytes=0)
    assert left(tmp_path) == {"young"}


def test_a_folder_that_is_not_there_is_no_error(tmp_path):
    tidy(tmp_path / "nowhere", NOW)


def test_a_hit_counts_as_a_use():
    compiled = triple.compile("portable", lanes=2)
    os.utime(compiled.folder, (OLD, OLD))
    digest = compiled.folder.name.rsplit("-", 1)[1]
    assert jit.load("triple", digest, targets.choose("portable")) is not None
    assert compiled.folder.stat().st_mtime > OLD
