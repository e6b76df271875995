"""lutra inspect kernel, on a cache that holds one small kernel for two vector widths."""

from pathlib import Path

import pytest

from lutra.cli.kernels import describe_kernel, list_kernels
from lutra.compiler import jit
from lutra.compiler.kernel import kernel
from lutra.compiler.language import Pointer, f32, i64, load, store
from lutra.errors import KernelError


@kernel
def double(x: Pointer[f32], y: Pointer[f32], task: i64, *, lanes):
    """y = 2 * x, `lanes` values a task."""
    store(y, task * lanes, load(x, task * lanes, lanes) * 2.0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def folders(cache: Path) -> list[str]:
    """Names of the two compiled kernels in the cache, the older first."""
    double._compiled.clear()
    return [double.compile("portable", lanes=lanes).folder.name for lanes in (4, 8)]


def test_an_empty_cache_says_so(cache: Path) -> None:
    assert list_kernels() == f"no kernel is compiled yet in {cache}; run a model first"
    with pytest.raises(KernelError, match=r"expected a compiled kernel \(none yet\), got 'double'"):
        describe_kernel("double")


def test_the_list_names_every_specialisation(folders: list[str]) -> None:
    lines = list_kernels().splitlines()
    assert sorted(line.split() for line in lines) == sorted([[folders[0], "lanes=4"], [folders[1], "lanes=8"]])


def test_every_stage_is_shown_with_the_counts(folders: list[str], cache: Path) -> None:
    text = describe_kernel(folders[1])
    assert text.startswith(f"{folders[1]}\n  for       lanes=8\n")
    counts = next(line for line in text.splitlines() if "counts" in line)
    assert "task: " in counts and "32 load_bytes" in counts and "32 store_bytes" in counts
    for stage in ("ir", "llvm", "asm"):
        folder = cache / folders[1]
        assert f"; {stage} of {folder}\n{jit.read_stage(folder, stage)}" in text
    assert "vmulps" in text or "mulps" in text or "fmul" in text  # the assembly, made now


def test_a_kernel_s_name_takes_the_newest_and_names_the_others(folders: list[str]) -> None:
    text = describe_kernel("double", stages=["ir"])
    first, other = text.splitlines()[0], next(line for line in text.splitlines() if "also" in line)
    assert {first, other.split()[1]} == set(folders)
    assert "; asm of" not in text


def test_an_unknown_name_lists_the_known_ones(folders: list[str]) -> None:
    with pytest.raises(KernelError, match=r"expected a compiled kernel \(double\), got 'doubel'; run a model"):
        describe_kernel("doubel")
