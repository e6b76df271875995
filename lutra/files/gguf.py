"""GGUF files: `open` maps one and gives its tensors under lutra's names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files.blocks import decode_matrix
from lutra.files.door import map_file, refusal, shown
from lutra.files.gguf_header import GgufHeader, TensorInfo, read_header
from lutra.files.model_file import LazyTensor, ModelFile
from lutra.files.names import GGUF, HEAD_COUNT_KEYS, INTERLEAVED_ARCHITECTURES, half_rotation_rows, rotated_part
from lutra.formats.qtensor import QTensor


def open(path: str | Path) -> ModelFile:
    """Open a GGUF file of version 2 or 3.

    returns  ModelFile    tensors mapped, nothing decoded yet
    raises   FileError    see gguf_header.read_header; also one part of a split model, scales in tensors of their own,
                          and head counts that do not fit the q and k tensors
    """
    path = Path(path)
    data = map_file(path)
    header = read_header(path, data)
    _refuse_what_would_be_wrong(path, header)
    tensors: dict[str, LazyTensor] = {}
    unknown = []
    for info in header.tensors:
        name = GGUF.canonical(info.name)
        if name is None:
            unknown.append(info.name)
            continue
        num_heads = _interleaved_heads(path, header.metadata, name, info)
        recoded = info.type.recoded + (", rows from interleaved to half rotation" if num_heads else "")
        load = partial(_load, path, data, info, num_heads)
        tensors[name] = LazyTensor(name, info.name, info.type.name, info.shape, recoded, load)
    return ModelFile(path, "gguf", header.metadata, tensors, tuple(unknown))


def _refuse_what_would_be_wrong(path: Path, header: GgufHeader) -> None:
    """Refuse files that would open, and then mean something else than they should."""
    parts = header.metadata.get("split.count", 1)
    if type(parts) is int and parts > 1:
        raise refusal(path, "split.count", "a whole model", f"one of {parts} parts",
                      "join them with `llama-gguf-split --merge`")
    for info in header.tensors:
        if info.name.endswith(".scale") and GGUF.canonical(info.name.removesuffix("scale") + "weight"):
            raise refusal(path, f"tensor {shown(info.name)}", "scales inside the blocks of a weight",
                          "a tensor of scales beside it", "convert the model with a current llama.cpp")


def _interleaved_heads(path: Path, metadata: dict[str, Any], name: str, info: TensorInfo) -> int:
    """Return the number of heads whose rows the architecture interleaves in this tensor, 0 where it does not."""
    part = rotated_part(name)
    architecture = metadata.get("general.architecture")
    if part is None or architecture not in INTERLEAVED_ARCHITECTURES:
        return 0
    keys = [f"{architecture}.{key}" for key in HEAD_COUNT_KEYS[part]]
    num_heads = next((metadata[key] for key in keys if key in metadata), None)
    if type(num_heads) is not int or num_heads < 1 or info.shape[0] % (2 * num_heads):
        expected = f"a number of heads that divides the {info.shape[0]} rows of {shown(info.name)} in pairs"
        raise refusal(path, keys[0], expected, shown(num_heads), "convert the model again")
    return num_heads


def _load(path: Path, data: np.ndarray, info: TensorInfo, num_heads: int) -> np.ndarray | QTensor:
    stored = data[info.begin : info.begin + info.num_bytes]
    if info.type.dtype is not None:
        dense: np.ndarray = stored.view(info.type.dtype).reshape(info.shape)
        return dense[half_rotation_rows(len(dense), num_heads)] if num_heads else dense
    try:
        quantised = decode_matrix(info.type, stored, (info.shape[0], info.shape[1]))
    except FormatError as error:
        raise FileError(f"{path}: tensor {shown(info.name)} ({info.type.name}): {error}") from None
    return quantised.rows(half_rotation_rows(info.shape[0], num_heads)) if num_heads else quantised
