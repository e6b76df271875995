"""A folder for one run at a time, free again as soon as the run is over, however it ended."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lutra.errors import RequestError
from lutra.files import lock

HOLD = """
import sys
from pathlib import Path
from lutra.files import lock
with lock.held(Path(sys.argv[1]), "a"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_at_a_time_also_where_the_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with lock.held(folder, "a.safetensors"):
        with pytest.raises(RequestError, match="expected a.safetensors to be written by one run"):
            with lock.held(folder, "a.safetensors"):
                pass
        shutil.rmtree(folder, ignore_errors=True)
    with lock.held(folder, "a.safetensors"):
        assert (folder / lock.LOCK).exists()


def test_a_killed_run_leaves_it_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == b"held"
        with pytest.raises(RequestError), lock.held(tmp_path, "a"):
            pass
        process.kill()
        process.wait()
    with lock.held(tmp_path, "a"):
        pass


def test_a_folder_removed_before_the_lock_is_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain, removed = tmp_path / "work", lock._take, []

    def take(file: int) -> None:
        if not removed:
            removed.append(shutil.rmtree(folder))
        plain(file)

    monkeypatch.setattr(lock, "_take", take)
    with lock.held(folder, "a"):
        assert removed and (folder / lock.LOCK).exists()
        with pytest.raises(RequestError), lock.held(folder, "a"):
            pass


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(file: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_take", take)
    with lock.held(tmp_path, "a"), lock.held(tmp_path, "a"):
        pass
