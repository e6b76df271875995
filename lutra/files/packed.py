"""Packed files: arrays exactly as kernels read them, on cache lines, and one JSON header.  `write` and `open`.

A packed file is a safetensors file, so any library opens it:

    u64 header bytes | JSON: tensors, "__metadata__": {"lutra": header as JSON text}, spaces up to 64 | data

Every array starts on a multiple of 64 bytes of the file, and so of memory.  Safetensors allows no holes between
tensors; what fills a line up is a tensor of its own, named `fill.` and a number, which readers pass over.
What header and arrays mean is model/packed.py's business.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from lutra.files.door import map_file, parse_object, refusal, shown
from lutra.files.model_file import LazyTensor, ModelFile
from lutra.files.safetensors_header import Entry, read_header

SUFFIX = ".lutra"
VERSION = 1
METADATA_KEY = "lutra"
LINE_BYTES = 64
FILL = "fill."
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"), "I8": np.dtype("i1"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"), "I32": np.dtype("<i4"),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
AGAIN = "pack the model again"
_BLOCK_BYTES = 1 << 26  # written between two reports of progress

Progress = Callable[[str, int, int], None]  # progress(label, done, total), in MB


def write(path: Path, header: dict[str, Any], arrays: Mapping[str, np.ndarray], progress: Progress) -> None:
    """Write a packed file; it appears under its name whole, or not at all.

    header   JSON values; "version" is added
    arrays   flat, of the types of DTYPES, stored in this order
    raises   FileError   the folder is not there or not writable, or the disk is full
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            _write(file, header, arrays, progress)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
        raise refusal(path, "file", f"a place with room for {megabytes:.0f} MB", error.strerror or "an error",
                      "make room or name another place") from None  # fmt: skip
    finally:
        with suppress(OSError):  # moved already, or never made
            part.unlink()


def _write(file: BinaryIO, header: dict[str, Any], arrays: Mapping[str, np.ndarray], progress: Progress) -> None:
    file.write(_head(header, arrays))
    total = sum(array.nbytes for array in arrays.values())
    done = 0
    for name, array in arrays.items():
        data = array.view(np.uint8)
        for start in range(0, len(data), _BLOCK_BYTES):
            block = data[start : start + _BLOCK_BYTES]
            file.write(block.data)
            done += len(block)
            progress(f"writing {name}", done // 1_000_000, total // 1_000_000)
        file.write(bytes(-len(data) % LINE_BYTES))


def _head(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The length and the JSON, together a multiple of 64 bytes."""
    entries: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps({"version": VERSION} | header)}}
    end, fills = 0, itertools.count()
    for name, array in arrays.items():
        assert array.ndim == 1 and array.flags.c_contiguous and not name.startswith(FILL)
        end = _add(entries, name, array.dtype, array.nbytes, end)
        if end % LINE_BYTES:
            end = _add(entries, f"{FILL}{next(fills)}", np.dtype("u1"), -end % LINE_BYTES, end)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE_BYTES)
    return len(text).to_bytes(8, "little") + text


def _add(entries: dict[str, Any], name: str, dtype: np.dtype[Any], num_bytes: int, begin: int) -> int:
    """Describe one tensor that starts at `begin`; return where it ends."""
    entries[name] = {
        "dtype": NAMES[dtype], "shape": [num_bytes // dtype.itemsize], "data_offsets": [begin, begin + num_bytes]
    }  # fmt: skip
    return begin + num_bytes


def open(path: str | Path) -> ModelFile:
    """Open a packed file.

    returns  ModelFile    metadata is the header, tensors are the arrays by their names, mapped
    raises   FileError    not a packed file, cut short, of another version, or with arrays off their cache lines
    """
    path = Path(path)
    data = map_file(path)
    entries, metadata = read_header(path, data)
    if METADATA_KEY not in metadata:
        raise refusal(path, "header", "a file that `lutra pack` wrote", "another safetensors file",
                      "give it its own suffix, .safetensors, with config.json beside it")  # fmt: skip
    header = parse_object(path, "header", metadata[METADATA_KEY].encode("utf-8", "replace"))
    version = header.get("version")
    if type(version) is not int or version != VERSION:
        raise refusal(path, "version", str(VERSION), shown(version), f"update lutra, or {AGAIN}")
    tensors = {name: _lazy(path, data, name, entry) for name, entry in entries.items() if not name.startswith(FILL)}
    return ModelFile(path, "packed", header, tensors)


def _lazy(path: Path, data: np.ndarray, name: str, entry: Entry) -> LazyTensor:
    field = f"tensor {shown(name)}"
    if entry.dtype not in DTYPES or len(entry.shape) != 1:
        expected = f"a flat array of {', '.join(DTYPES)}"
        raise refusal(path, field, expected, f"{entry.dtype} {shown(entry.shape)}", AGAIN)
    if entry.begin % LINE_BYTES:
        raise refusal(path, field, f"a place that is a multiple of {LINE_BYTES}", str(entry.begin),
                      f"another program has written this file: {AGAIN}")  # fmt: skip
    values = data[entry.begin : entry.begin + entry.num_bytes].view(DTYPES[entry.dtype])
    return LazyTensor(name, name, entry.dtype, entry.shape, "used in place", partial(_same, values))


def _same(values: np.ndarray) -> np.ndarray:
    return values
