"""Keeps the kernel cache small: what crashed processes left behind goes, and then the kernels longest out of use.

A folder's time is that of its last use; jit.py sets it on every hit.  What was used within a day stays whatever it
takes, because its process may still run and want to show it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

LIMIT_BYTES = 1 << 30  # some 5000 kernels
KEEP_S = 24 * 3600.0
STAGING = ".new-"  # folders in the making begin with this


def tidy(folder: Path, now: float, limit_bytes: int = LIMIT_BYTES) -> None:
    """Remove from the cache `folder` what is in nobody's use.

    now   seconds since the epoch
    Errors are ignored: another process may tidy at the same time, and a cache too large still works.
    """
    kernels, total = [], 0
    for entry in _folders(folder):
        used, size = _use_and_bytes(entry)
        is_old = now - used > KEEP_S
        if entry.name.startswith(STAGING):
            if is_old:
                shutil.rmtree(entry, ignore_errors=True)
            continue
        total += size
        if is_old:
            kernels.append((used, size, entry))
    for _, size, entry in sorted(kernels):
        if total <= limit_bytes:
            break
        shutil.rmtree(entry, ignore_errors=True)
        total -= size


def _folders(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError:
        return []


def _use_and_bytes(entry: Path) -> tuple[float, int]:
    """Time of the last use, and the size of the files; a folder that is just going counts as used now, and empty."""
    try:
        return entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir())
    except OSError:
        return float("inf"), 0
