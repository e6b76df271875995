"""Checks at the door: a model file is somebody else's, and nothing in it is believed before it is checked."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from lutra.errors import FileError

BRIEF = reprlib.Repr()  # never builds the whole text of a hostile value
BRIEF.maxstring = BRIEF.maxother = 120
BRIEF.maxlist = BRIEF.maxdict = BRIEF.maxtuple = 8


def shown(value: object) -> str:
    """Return `value` as it may stand in a message: control characters escaped, the middle of long ones left out."""
    return BRIEF.repr(value)


def refusal(path: Path, field: str, expected: str, got: str, do: str) -> FileError:
    """Word the one error of this package: which file and field, what was expected, what came, what to do."""
    return FileError(f"{path}: {field}: expected {expected}, got {got}; {do}")


def check_apart(source: Path, target: Path) -> None:
    """Raise FileError where writing `target` would replace the model at `source`, or a file of its folder, or where it
    would be one more file of weights in that folder, of which nobody could tell which are the model's.
    """
    source, resolved = source.resolve(), target.resolve()
    is_inside = resolved.parent == source and (resolved.exists() or resolved.suffix == ".safetensors")
    if is_inside or (resolved == source and resolved.exists()):
        raise refusal(target, "file", "a file that the model is not read from", "one of its own", "name another place")


def map_file(path: Path) -> np.ndarray:
    """Map a file into memory, read-only.

    returns  uint8 [file size]    pages are read when touched; never a copy
    raises   FileError            missing, a folder, not allowed, or empty
    """
    try:
        if path.stat().st_size == 0:
            raise refusal(path, "file", "a model file", "an empty file", "download it again")
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise refusal(path, "file", "a file that can be read", reason, "check the path") from None


def check_spans(path: Path, spans: list[tuple[int, int, str]], begin: int, size: int) -> None:
    """Refuse tensors that lie outside the file or on top of each other.

    spans    (offset, bytes, tensor name)      offsets count from `begin`
    begin    first byte of the tensor data     size  bytes of the whole file
    raises   FileError
    """
    last_end, last_name = 0, ""
    for offset, num_bytes, name in sorted(spans):
        field = f"tensor {shown(name)}"
        if begin + offset + num_bytes > size:
            raise refusal(path, field, f"data inside the file ({size} bytes)",
                          f"bytes {begin + offset} to {begin + offset + num_bytes}",
                          "the file is cut short or damaged: download it again")
        if num_bytes and offset < last_end:
            raise refusal(path, field, f"data after tensor {shown(last_name)}, which ends at {last_end}",
                          f"offset {offset}, inside it", "the file is damaged or hostile: get it from its source again")
        if num_bytes:
            last_end, last_name = offset + num_bytes, name


def parse_object(path: Path, field: str, text: bytes) -> dict[str, Any]:
    """Parse JSON that must be one object without repeated keys.

    raises   FileError    not UTF-8, not JSON, nested too deep, a repeated key, or not an object
    """
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except RecursionError:
        raise refusal(path, field, "JSON", "JSON nested too deep", "write the file again") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and numbers of thousands of digits are such
        raise refusal(path, field, "JSON", f"text that is not ({shown(str(error))})", "write the file again") from None
    if not isinstance(parsed, dict):
        raise refusal(path, field, "a JSON object", type(parsed).__name__, "write the file again")
    return parsed


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result
