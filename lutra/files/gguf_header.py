"""The head of a GGUF file: version, key-values, tensor descriptions.  An untrusted-input parser.

Layout, little-endian throughout (specification: ggml, docs/gguf.md):

    "GGUF" | u32 version | u64 tensors | u64 key-values | key-values | descriptions | pad to alignment | data
    key-value     string key, u32 value type, value
    string        u64 bytes, UTF-8
    array         u32 element type, u64 elements, elements
    description   string name, u32 dimensions, u64 each (first = contiguous = K), u32 tensor type, u64 offset in data

Every count and length is compared with what is left of the file before anything is allocated for it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutra.errors import FileError
from lutra.files.blocks import READABLE, TYPE_NAMES, TensorType
from lutra.files.door import check_spans, refusal, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4

# Far above any real model (a vocabulary of 256 thousand with merges: 16 MB, 1.3 million elements), far below harm.
MAX_HEADER_BYTES = 1 << 27
MAX_ELEMENTS = 1 << 22  # of all arrays together; one costs about 60 bytes as a Python value
MAX_KEY_VALUES = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 1 << 10

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # struct codes
STRING, ARRAY = 8, 9
MIN_STRING_BYTES = 8
MIN_KEY_VALUE_BYTES = 8 + 4 + 1
MIN_DESCRIPTION_BYTES = 8 + 4 + 8 + 4 + 8

BROKEN = "the file is damaged or hostile: get it from its source again"


@dataclass(frozen=True)
class TensorInfo:
    """One described tensor: where its bytes lie in the file and what they mean."""

    name: str
    type: TensorType
    shape: tuple[int, ...]  # NumPy order: the contiguous axis K last
    begin: int  # first byte in the file
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data, checked."""

    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


class Cursor:
    """Reads forward through the header; every read is checked against the end first."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path = path
        self.bytes = memoryview(data)  # type: ignore[arg-type]
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.position = 0
        self.elements_left = MAX_ELEMENTS

    def refuse(self, field: str, expected: str, got: str, do: str = BROKEN) -> FileError:
        return refusal(self.path, field, expected, got, do)

    def take(self, num_bytes: int, field: str) -> memoryview:
        left = self.end - self.position
        if num_bytes > left:
            raise self.refuse(field, f"at most the {left} bytes left of the header", f"{num_bytes} bytes",
                              "the file is cut short or damaged: download it again")
        self.position += num_bytes
        return self.bytes[self.position - num_bytes : self.position]

    def number(self, code: str, field: str) -> Any:
        layout = "<" + code
        return struct.unpack(layout, self.take(struct.calcsize(layout), field))[0]

    def count(self, field: str, most: int, min_bytes: int) -> int:
        """Read a u64 count of things that take at least `min_bytes` each."""
        count: int = self.number("Q", field)
        possible = min(most, (self.end - self.position) // min_bytes)
        if count > possible:
            raise self.refuse(field, f"at most {possible}, what the file can hold", str(count))
        return count

    def string(self, field: str, most: int = MAX_HEADER_BYTES) -> str:
        length = self.number("Q", field)
        if length > most:
            raise self.refuse(field, f"at most {most} bytes of text", f"{length} bytes")
        try:
            return str(self.take(length, field), "utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse(field, "UTF-8 text", f"byte {error.object[error.start]:#04x} at {error.start}") from None

    def value(self, value_type: int, field: str) -> Any:
        if value_type in NUMBERS:
            return self.number(NUMBERS[value_type], field)
        if value_type == STRING:
            return self.string(field)
        if value_type == ARRAY:
            return self.array(field)
        raise self.refuse(field, "a value type of 0 to 12", str(value_type))

    def array(self, field: str) -> list[Any]:
        element_type = self.number("I", field)
        if element_type != STRING and element_type not in NUMBERS:
            got = "an array" if element_type == ARRAY else f"type {element_type}"
            raise self.refuse(field, "an array of numbers or strings", f"one whose elements are {got}",
                              "nested arrays are not read: remove the key and write the file again")
        if element_type == STRING:
            count = self.count(field, self.elements_left, MIN_STRING_BYTES)
            self.elements_left -= count
            return [self.string(field) for _ in range(count)]
        code = NUMBERS[element_type]
        size = struct.calcsize("<" + code)
        count = self.count(field, self.elements_left, size)
        self.elements_left -= count
        return list(struct.unpack(f"<{count}{code}", self.take(count * size, field)))


def read_header(path: Path, data: np.ndarray) -> GgufHeader:
    """Read and check everything before the tensor data.

    data     uint8 [file size]    the mapped file
    raises   FileError            anything that does not fit the layout, the file's size, or the types lutra reads
    """
    cursor = Cursor(path, data)
    version = _version(cursor)
    num_tensors = cursor.count("tensor count", MAX_TENSORS, MIN_DESCRIPTION_BYTES)
    num_key_values = cursor.count("key-value count", MAX_KEY_VALUES, MIN_KEY_VALUE_BYTES)
    metadata = _metadata(cursor, num_key_values)
    alignment = _alignment(cursor, metadata)
    described = _descriptions(cursor, num_tensors, alignment)

    data_begin = -(-cursor.position // alignment) * alignment
    check_spans(path, [(offset, num_bytes, name) for name, _, _, offset, num_bytes in described], data_begin, len(data))
    tensors = tuple(
        TensorInfo(name, kind, shape, data_begin + offset, num_bytes)
        for name, kind, shape, offset, num_bytes in described
    )
    return GgufHeader(version, metadata, tensors)


def _version(cursor: Cursor) -> int:
    magic = bytes(cursor.take(4, "magic"))
    if magic != MAGIC:
        raise cursor.refuse("magic", "the bytes b'GGUF'", shown(magic), "give a GGUF file, or a Hugging Face folder")
    version: int = cursor.number("I", "version")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
        raise cursor.refuse("version", "a little-endian file", "a big-endian one", "convert it to little-endian")
    raise cursor.refuse("version", "2 or 3", str(version), "convert the model with a current llama.cpp")


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for i in range(count):
        key = cursor.string(f"key {i}", MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.refuse(f"key {i}", "a key not seen before", f"{shown(key)} again")
        metadata[key] = cursor.value(cursor.number("I", f"type of {shown(key)}"), shown(key))
    return metadata


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    is_power_of_two = type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
    if not is_power_of_two:
        raise cursor.refuse("general.alignment", f"a power of two from 8 to {MAX_ALIGNMENT}", shown(alignment))
    return int(alignment)


def _descriptions(
    cursor: Cursor, count: int, alignment: int
) -> list[tuple[str, TensorType, tuple[int, ...], int, int]]:
    """Read the tensor descriptions: (name, type, shape, offset in the data, bytes) each."""
    described = []
    seen: set[str] = set()
    for i in range(count):
        name = cursor.string(f"name of tensor {i}", MAX_NAME_BYTES)
        if name in seen:
            raise cursor.refuse(f"name of tensor {i}", "a name not seen before", f"{shown(name)} again")
        seen.add(name)
        field = f"tensor {shown(name)}"
        shape = _shape(cursor, field)
        kind = _type(cursor, field)
        num_bytes = _num_bytes(cursor, field, shape, kind)
        offset: int = cursor.number("Q", f"{field} offset")
        if offset % alignment:
            raise cursor.refuse(f"{field} offset", f"a multiple of {alignment}", str(offset))
        described.append((name, kind, shape, offset, num_bytes))
    return described


def _shape(cursor: Cursor, field: str) -> tuple[int, ...]:
    num_dimensions = cursor.number("I", f"{field} dimensions")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.refuse(f"{field} dimensions", f"1 to {MAX_DIMENSIONS}", str(num_dimensions))
    sizes = [cursor.number("Q", f"{field} size") for _ in range(num_dimensions)]
    if 0 in sizes:
        raise cursor.refuse(f"{field} sizes", "at least 1 each", str(sizes))
    return tuple(reversed(sizes))


def _type(cursor: Cursor, field: str) -> TensorType:
    type_id = cursor.number("I", f"{field} type")
    if type_id not in READABLE:
        known = ", ".join(kind.name for kind in READABLE.values())
        raise cursor.refuse(f"{field} type", f"one of {known}", TYPE_NAMES.get(type_id, f"unknown type {type_id}"),
                            "convert the model to one of these")
    return READABLE[type_id]


def _num_bytes(cursor: Cursor, field: str, shape: tuple[int, ...], kind: TensorType) -> int:
    if kind.decode is not None and len(shape) != 2:
        raise cursor.refuse(f"{field} ({kind.name})", "a matrix: only those are quantised", f"shape {shape}",
                            "convert the model with this tensor as F32")
    if shape[-1] % kind.block_size:
        raise cursor.refuse(f"{field} ({kind.name})", f"K a multiple of {kind.block_size}", f"K={shape[-1]}",
                            "convert the model with this tensor as F16")
    return math.prod(shape) // kind.block_size * kind.block_bytes
