"""A safetensors writer for tests: eight bytes of length, a JSON header, the data.  No code of the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8", "int8": "I8", "int16": "I16",
          "int32": "I32", "int64": "I64", "float8_e4m3fn": "F8_E4M3"}  # fmt: skip


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """Write arrays as one file, in the given order."""
    entries: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": DTYPES[values.dtype.name], "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    return write_raw(path, json.dumps(entries).encode(), data)


def write_raw(path: Path, header: bytes, data: bytes = b"") -> Path:
    """Write any header bytes, padded to 8 with spaces, and any data."""
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def bfloat16(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16)
