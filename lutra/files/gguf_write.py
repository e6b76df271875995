"""GGUF files written: key-values, then tensors as blocks.  The `gguf` package writes the container."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files.blocks_write import encode
from lutra.files.container import whole
from lutra.files.door import refusal
from lutra.formats.qtensor import QTensor

# kinds of values that key-values are written as
KINDS = {"u32": "UINT32", "i32": "INT32", "f32": "FLOAT32", "bool": "BOOL", "text": "STRING"}
DENSE = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}

Fields = Mapping[str, tuple[str, Any]]  # key → (kind, a value or a list of values)


def write(path: Path, architecture: str, fields: Fields, tensors: Iterable[tuple[str, np.ndarray | QTensor]]) -> None:
    """Write a model; an interrupted write leaves what was there before.

    architecture  general.architecture
    fields        the other key-values; a key of the list kinds has the kind of its values
    tensors       (GGUF name, f32 | f16 | bf16 array or QTensor), each read once
    raises        FileError    no gguf package, a weight that no GGUF type holds, a disk that is full
    """
    try:
        import gguf
    except ImportError:
        raise FileError(f"{path}: expected the gguf package to write it with, which is not installed; "
                        "do: pip install 'lutra[gguf]'") from None  # fmt: skip
    with whole(path) as part:
        writer = gguf.GGUFWriter(part, architecture, use_temp_file=True)
        for key, (kind, value) in fields.items():
            value_type = gguf.GGUFValueType[KINDS[kind]]
            if isinstance(value, list):
                writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, value_type)
            else:
                writer.add_key_value(key, value, value_type)
        for name, tensor in tensors:
            kind, data = _encoded(path, name, tensor)
            if kind not in gguf.GGMLQuantizationType.__members__:
                raise refusal(path, f"tensor {name}", "a type that the gguf package knows", kind, "update it")
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _encoded(path: Path, name: str, tensor: np.ndarray | QTensor) -> tuple[str, np.ndarray]:
    """The type and the bytes of a tensor, uint8 [..., bytes of a row]; f32 as it is."""
    if isinstance(tensor, np.ndarray):
        kind = DENSE[tensor.dtype]
        data = np.ascontiguousarray(tensor)
        return kind, data.view(np.uint8) if kind == "BF16" else data
    try:
        return encode(tensor)
    except FormatError as error:
        raise FileError(f"{path}: tensor {name}: {error}") from None
