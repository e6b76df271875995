"""What our two kinds of files share: safetensors with a JSON header of ours; and writing whole or not at all.

    u64 header bytes | JSON: tensors, "__metadata__": {key: header as JSON text}, spaces up to 64 | data

What the header says, and which tensors there are, is the business of packed.py and saved.py.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files.door import parse_object, refusal, shown
from lutra.files.safetensors_header import Entry, read_header
from lutra.formats import catalog, vectors
from lutra.formats.format import Format
from lutra.formats.vectors import VectorFormat

LINE_BYTES = 64
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"), "I8": np.dtype("i1"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"), "I32": np.dtype("<i4"),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def head(key: str, header: Mapping[str, Any], entries: Mapping[str, Any]) -> bytes:
    """The length and the JSON of a file, together a multiple of 64 bytes.

    header   JSON values, put under `key`
    entries  {tensor: {dtype, shape, data_offsets}}
    """
    described = {"__metadata__": {key: json.dumps(header)}} | dict(entries)
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE_BYTES)
    return len(text).to_bytes(8, "little") + text


def read_head(
    path: Path, data: np.ndarray, key: str, version: int, writer: str, do: str, again: str
) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Read what `head` wrote.

    writer, do, again   for messages: the command that writes such files, what to do with another, and with an old one
    returns             the tensors, and the header
    raises              FileError   see read_header; another safetensors file, a header that is none, another version
    """
    entries, metadata = read_header(path, data)
    if key not in metadata:
        raise refusal(path, "header", f"a file that `{writer}` wrote", "another safetensors file", do)
    header = parse_object(path, "header", metadata[key].encode("utf-8", "replace"))
    stated = header.get("version")
    if type(stated) is not int or stated != version:
        raise refusal(path, "version", str(version), shown(stated), f"update lutra, or {again}")
    return entries, header


def state_formats(formats: Iterable[Format | VectorFormat]) -> dict[str, dict[str, object]]:
    """What a header says of formats: each by its axes, which `read_formats` makes it of again."""
    named = {form.name: form for form in formats}
    axes = ((name, named[name]) for name in sorted(named))
    return {name: vectors.axes_of(f) if isinstance(f, VectorFormat) else catalog.axes_of(f) for name, f in axes}


def read_formats(path: Path, table: Mapping[str, object], again: str) -> dict[str, Format | VectorFormat]:
    """The formats that a header states, each made of its axes.

    raises   FileError   axes that make no format, or one of another name
    """
    found: dict[str, Format | VectorFormat] = {}
    for name, axes in table.items():
        if not isinstance(axes, dict):
            raise refusal(path, f"format {shown(name)}", "an object of axes", shown(axes), again)
        format: Format | VectorFormat
        try:
            format = vectors.from_axes(axes) if vectors.LENGTH in axes else catalog.from_axes(axes)
        except FormatError as error:
            raise FileError(f"{path}: formats: {error}") from None
        if format.name != name:
            raise refusal(path, "formats", f"{format.name}, which these axes are", shown(name), again)
        found[name] = format
    return found


@contextmanager
def whole(path: Path, room: str = "the model", part: Path | None = None) -> Iterator[Path]:
    """Give the name of a new file to write; when all is written it takes the place of `path`.

    room     how much is written, for the message
    part     the new file, on the disk of `path`; beside it under a name that no other running thread has if None
    raises   FileError   the folder is not there or not writable, or the disk is full
    """
    part = part or path.with_name(f".{path.name}.{threading.get_native_id()}.part")
    try:
        part.unlink(missing_ok=True)  # of a process that was killed
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        got = error.strerror or "fewer bytes written than given"
        raise refusal(path, "file", f"a place with room for {room}", got, "make room or name another place") from None
    finally:
        with suppress(OSError):  # moved already, or never made
            part.unlink()


@contextmanager
def whole_file(path: Path, num_bytes: int, part: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file of about `num_bytes` that takes its name when all is written.  Raises, and takes `part`, as whole."""
    with whole(path, f"{num_bytes / 1e6:.0f} MB", part) as new, new.open("xb") as file:
        yield file


def same(values: np.ndarray) -> np.ndarray:
    """What a tensor that is mapped already has to do to be read."""
    return values
