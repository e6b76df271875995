"""Packed files: arrays exactly as kernels read them, on cache lines, and one JSON header.  `write` and `open`.

A packed file is a safetensors file, so any library opens it:

    u64 header bytes | JSON: tensors, "__metadata__": {"lutra": header as JSON text}, spaces up to 64 | data

Every array starts on a multiple of 64 bytes of the file, and so of memory.  Safetensors allows no holes between
tensors; what fills a line up is a tensor of its own, named `fill.` and a number, which readers pass over.
What header and arrays mean is model/packed.py's business.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lutra.files.container import DTYPES, LINE_BYTES, NAMES, head, read_head, same, whole_file
from lutra.files.door import map_file, refusal, shown
from lutra.files.model_file import LazyTensor, ModelFile
from lutra.files.safetensors_header import Entry

SUFFIX = ".lutra"
VERSION = 1
METADATA_KEY = "lutra"
FILL = "fill."
AGAIN = "pack the model again"
_BLOCK_BYTES = 1 << 26  # written between two reports of progress

Progress = Callable[[str, int, int], None]  # progress(label, done, total), in MB


def write(path: Path, header: dict[str, Any], arrays: Mapping[str, np.ndarray], progress: Progress) -> None:
    """Write a packed file; it appears under its name whole, or not at all.

    header   JSON values; "version" is added
    arrays   flat, of the types of DTYPES, stored in this order
    raises   FileError   the folder is not there or not writable, or the disk is full
    """
    with whole_file(path, sum(array.nbytes for array in arrays.values())) as file:
        _write(file, header, arrays, progress)


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
    entries: dict[str, Any] = {}
    end, fills = 0, itertools.count()
    for name, array in arrays.items():
        assert array.ndim == 1 and array.flags.c_contiguous and not name.startswith(FILL)
        end = _add(entries, name, array.dtype, array.nbytes, end)
        if end % LINE_BYTES:
            end = _add(entries, f"{FILL}{next(fills)}", np.dtype("u1"), -end % LINE_BYTES, end)
    return head(METADATA_KEY, {"version": VERSION} | header, entries)


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
    entries, header = read_head(path, data, METADATA_KEY, VERSION, "lutra pack",
                                "give it its own suffix, .safetensors, with config.json beside it", AGAIN)  # fmt: skip
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
    return LazyTensor(name, name, entry.dtype, entry.shape, "used in place", partial(same, values))
