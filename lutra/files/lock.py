"""One run at a time in a folder: a lock that the system lets go of with the process that holds it, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lutra.errors import RequestError

LOCK = "lock"
TAKEN = (BlockingIOError, PermissionError)  # as flock says it, and as Windows does

if sys.platform == "win32":
    import msvcrt

    def _take(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Have a folder alone, which may be removed meanwhile; it is made if it is not there.

    what     the message's name for what is made in the folder
    raises   RequestError   another run has it
             OSError        it cannot be made
    """
    file = _open(folder, what)
    try:
        yield
    finally:
        os.close(file)


def _open(folder: Path, what: str) -> int:
    """The lock's file, taken; again where the run that had it removed the folder between the opening and the taking."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        try:
            _take(file)
        except TAKEN:
            os.close(file)
            raise RequestError(
                f"expected {what} to be written by one run at a time, got another that writes it; wait for it, or name "
                "another place"
            ) from None
        except OSError:  # a file system without locks: nobody can be kept out
            return file
        if _is_there(folder / LOCK, file):
            return file
        os.close(file)


def _is_there(path: Path, file: int) -> bool:
    """Whether a name still is that of an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False
