"""What became of a kernel: the artefacts that the compiler left in the kernel cache, as text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lutra.compiler import jit
from lutra.errors import KernelError

STAGES = ("ir", "llvm", "asm")


def compiled_kernels() -> list[Path]:
    """The folder of every kernel in the cache, named kernel-isa-digest, the newest first."""
    metas = jit.cache_folder().glob(f"[!.]*/{jit.STAGES['meta']}")
    return [meta.parent for meta in sorted(metas, key=lambda meta: meta.stat().st_mtime, reverse=True)]


def list_kernels() -> str:
    """One line per compiled kernel: its name in the cache, and what it is specialised to."""
    lines = [f"{folder.name:44} {specialisation(read_meta(folder))}" for folder in compiled_kernels()]
    return "\n".join(lines) or f"no kernel is compiled yet in {jit.cache_folder()}; run a model first"


def describe_kernel(name: str, stages: Sequence[str] = STAGES) -> str:
    """Print the newest compiled kernel of that name, and say which others there are.

    name     "matmul_mad", or the name of one folder in the cache: "matmul_mad-avx512-0123456789abcdef"
    stages   of "ir", "llvm", "asm"
    raises   KernelError when none is compiled
    """
    everything = compiled_kernels()
    found = [folder for folder in everything if name in (folder.name, read_meta(folder)["kernel"])]
    if not found:
        known = ", ".join(sorted({read_meta(folder)["kernel"] for folder in everything})) or "none yet"
        raise KernelError(f"expected a compiled kernel ({known}), got '{name}'; run a model that uses it first")
    newest, *others = found
    meta = read_meta(newest)
    lines = [
        newest.name,
        f"  for       {specialisation(meta)}",
        f"  compiled  in {meta['compile_ms']} ms by {meta['llvm']} for {meta['isa']}",
        *(f"  counts    {counts(row)}" for row in meta["cost"]),
        *(f"  also      {other.name} {specialisation(read_meta(other))}" for other in others),
    ]
    for stage in stages:
        lines += ["", f"; {stage} of {newest}", jit.read_stage(newest, stage)]
    return "\n".join(lines)


def read_meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / jit.STAGES["meta"]).read_text("utf-8"))
    return meta


def counts(row: dict[str, Any]) -> str:
    """Say what one run of a loop body reads, writes and computes: a row of compiler/cost.py."""
    what = ", ".join(f"{row[name]} {name}" for name in row if name != "where")
    return f"{row['where']}: {what or 'nothing by itself'}"


def specialisation(meta: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in meta["static"].items()) or "every size"
