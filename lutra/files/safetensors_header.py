"""The head of a safetensors file: names, dtypes, shapes, places.  An untrusted-input parser.

Layout, little-endian (huggingface/safetensors, README):
    u64 header bytes | JSON {name: {dtype, shape, data_offsets: [begin, end)}, "__metadata__": {}} | data
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from lutra.files.door import check_spans, parse_object, refusal, shown

MAX_HEADER_BYTES = 1 << 24  # 70 thousand tensors; the largest models have a tenth
MAX_DIMENSIONS = 8
MAX_ITEMS = 1 << 48  # without the zeros among the sizes: NumPy multiplies the others even so
BROKEN = "the file is damaged or hostile: download it again"

# bytes of one element, of every dtype a file may hold
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One described tensor: what it holds and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


def read_header(path: Path, data: np.ndarray) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read and check the header.

    data     uint8 [file size]    the mapped file
    returns  the tensors, and what stands in __metadata__
    raises   FileError            length, JSON, an entry's fields, sizes that disagree, tensors outside the file or
                                  overlapping
    """
    length, most = int.from_bytes(data[:8].tobytes(), "little"), min(len(data) - 8, MAX_HEADER_BYTES)
    if length > most:
        raise refusal(path, "header length", f"at most {max(most, 0)} bytes", str(length),
                      "the file is cut short, or not a safetensors file: download it again")
    begin = 8 + length
    header = parse_object(path, "header", data[8:begin].tobytes())
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal(path, "__metadata__", "an object of texts", shown(metadata), BROKEN)
    entries = {name: _entry(path, name, item, begin) for name, item in header.items()}
    check_spans(path, [(entry.begin, entry.num_bytes, name) for name, entry in entries.items()], 0, len(data))
    return entries, metadata


def _entry(path: Path, name: str, item: object, begin: int) -> Entry:
    """Check one entry by itself; `begin` is the first byte of the data."""
    field = f"tensor {shown(name)}"
    if not isinstance(item, dict):
        raise refusal(path, field, "an object of dtype, shape, data_offsets", shown(item), BROKEN)
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise refusal(path, f"{field} dtype", f"one of {', '.join(ITEM_BYTES)}", shown(dtype), "convert the model")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS or math.prod(filter(None, shape)) > MAX_ITEMS:
        raise refusal(path, f"{field} shape", f"up to {MAX_DIMENSIONS} whole numbers", shown(shape), BROKEN)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(path, f"{field} data_offsets", "[begin, end], ascending", shown(offsets), BROKEN)
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != num_bytes:
        raise refusal(path, f"{field} data_offsets", f"{num_bytes} bytes for {dtype} {shape}",
                      f"{offsets[1] - offsets[0]}", BROKEN)
    return Entry(dtype, tuple(shape), begin + offsets[0], num_bytes)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
