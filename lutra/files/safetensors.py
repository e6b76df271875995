"""Hugging Face folders: config.json and safetensors, whole or in shards.  `open` maps them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files import bitnet
from lutra.files.door import map_file, parse_object, refusal, shown
from lutra.files.methods.layout import Layout, layout_of, linear_of
from lutra.files.methods.table import layouts
from lutra.files.model_file import LazyTensor, ModelFile
from lutra.files.names import HUGGING_FACE, LINEARS
from lutra.files.safetensors_header import read_header
from lutra.formats.qtensor import QTensor

MAX_JSON_BYTES = 1 << 24
SHARD_NAME = re.compile(r"[^/\\\0]{1,240}\.safetensors")
BROKEN = "the file is damaged or hostile: download it again"
T = TypeVar("T")

# dtypes whose values lutra reads as weights
DENSE = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
# and as parts of quantised ones
PARTS = DENSE | {
    "I8": np.dtype("i1"), "U8": np.dtype("u1"), "BOOL": np.dtype("u1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype("u1"),
}  # fmt: skip
PACKED = "U8"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, checked: where its bytes lie and what they are."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray  # uint8, mapped

    def dense(self) -> np.ndarray:
        """Return the mapped values; copied only where the file put them at an odd address."""
        values: np.ndarray = self.data.view(PARTS[self.dtype]).reshape(self.shape)
        return values if values.flags.aligned else values.copy()


def open(path: str | Path) -> ModelFile:
    """Open a Hugging Face folder, or one .safetensors file that has config.json beside it.

    returns  ModelFile    tensors mapped, nothing read yet; quantised linears become QTensors when read
    raises   FileError    no or bad config.json, a header that does not fit its file, shards that are missing or lie
                          elsewhere, a dtype that is not read
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    stored = _read_folder(folder) if path.is_dir() else read_file(path)
    tensors, stored = _quantised(stored, layouts(config))
    divides = bitnet.scale_divides(config)
    scales = {name + bitnet.SCALE_SUFFIX for name, tensor in stored.items() if tensor.dtype == PACKED}
    unknown = []
    for source_name, tensor in stored.items():
        name = HUGGING_FACE.canonical(source_name)
        if name is not None:
            if name in tensors:
                raise refusal(tensor.path, shown(source_name), f"one tensor for {name}",
                              f"also {shown(tensors[name].source_name)}", "remove one of the two")
            tensors[name] = _lazy(name, tensor, stored, config, divides)
        elif source_name not in scales:
            unknown.append(source_name)
    return ModelFile(path, "safetensors", config, tensors, tuple(unknown))


def read_config(folder: Path) -> dict[str, Any]:
    """Parse config.json of a model folder.  Raises FileError if it is missing or not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise refusal(folder, "config.json", "a Hugging Face model folder with config.json", "none",
                      "give the folder that holds it, or a .gguf file")
    return parse_object(path, "file", _read_text(path))


def read_file(path: Path) -> dict[str, StoredTensor]:
    """Map one safetensors file and return its tensors by stored name.  Raises FileError (see safetensors_header)."""
    data = map_file(path)
    return {
        name: StoredTensor(path, name, entry.dtype, entry.shape, data[entry.begin : entry.begin + entry.num_bytes])
        for name, entry in read_header(path, data)[0].items()
    }


def _read_folder(folder: Path) -> dict[str, StoredTensor]:
    """Find the weights of a folder: model.safetensors, else shards by their index, else the only .safetensors file."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return read_file(whole)
    if index.is_file():
        return _read_shards(index)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise refusal(folder, "weights", "model.safetensors, or model.safetensors.index.json with its shards",
                      f"{len(found)} .safetensors files", "give a folder that holds the weights as safetensors")
    return read_file(found[0])


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    """Read the shards an index names.  A shard lies beside its index, or nowhere: names with folders are refused."""
    weight_map = parse_object(index, "file", _read_text(index)).get("weight_map")
    if not isinstance(weight_map, dict):
        raise refusal(index, "weight_map", "an object {tensor: file}", shown(weight_map), "download the index again")
    names: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD_NAME.fullmatch(shard):
            raise refusal(index, f"weight_map {shown(tensor)}", "a .safetensors file name without a folder",
                          shown(shard), "the index is damaged or hostile: download it again")
        names.setdefault(shard, []).append(tensor)
    stored: dict[str, StoredTensor] = {}
    for shard, wanted in names.items():
        held = read_file(index.parent / shard)
        missing = [tensor for tensor in wanted if tensor not in held]
        if missing:
            raise refusal(index, f"weight_map {shown(missing[0])}", f"a tensor of {shard}", "none of that name",
                          "download the shards again")
        stored |= {tensor: held[tensor] for tensor in wanted}
    return stored


def _read_text(path: Path) -> bytes:
    data = map_file(path)
    if len(data) > MAX_JSON_BYTES:
        raise refusal(path, "file", f"at most {MAX_JSON_BYTES} bytes of JSON", f"{len(data)} bytes", "check the file")
    return data.tobytes()


def _quantised(
    stored: dict[str, StoredTensor], layouts: tuple[Layout, ...]
) -> tuple[dict[str, LazyTensor], dict[str, StoredTensor]]:
    """Put the parts of quantised linears together: these by lutra's names, and the stored tensors that are left."""
    linears: dict[str, dict[str, StoredTensor]] = {}
    for source_name, tensor in stored.items():
        prefix, suffix = linear_of(source_name, layouts) or ("", "")
        if prefix and HUGGING_FACE.canonical(f"{prefix}.weight"):
            linears.setdefault(prefix, {})[suffix] = tensor
    found, left = {}, dict(stored)
    for prefix, parts in linears.items():
        layout = layout_of(set(parts), layouts)
        if layout is not None:
            parts.pop("bias", None)  # read as any other bias is
            lazy = _lazy_linear(prefix, layout, parts)
            found[lazy.name] = lazy
            for tensor in parts.values():
                del left[tensor.name]
    return found, left


def _lazy_linear(prefix: str, layout: Layout, parts: dict[str, StoredTensor]) -> LazyTensor:
    """Wrap a linear of several tensors."""
    for tensor in parts.values():
        if tensor.dtype not in PARTS:
            raise refusal(tensor.path, f"tensor {shown(tensor.name)} dtype", f"one of {', '.join(PARTS)}", tensor.dtype,
                          "convert the model to GGUF")
    values = {suffix: tensor.dense() for suffix, tensor in parts.items()}
    path = next(iter(parts.values())).path
    name = HUGGING_FACE.canonical(f"{prefix}.weight")
    assert name is not None
    shape = _told(path, prefix, partial(layout.shape, values))
    return LazyTensor(name, prefix, layout.name, shape, layout.recoded,
                      partial(_told, path, prefix, partial(layout.read, values)))


def _told(path: Path, prefix: str, read: Callable[[], T]) -> T:
    """Do what may find the parts of a linear without meaning, and say where."""
    try:
        return read()
    except FormatError as error:
        raise FileError(f"{path}: tensor {shown(prefix)}: {error}") from None


def _lazy(
    name: str, tensor: StoredTensor, stored: dict[str, StoredTensor], config: dict[str, Any], divides: bool
) -> LazyTensor:
    """Wrap a stored tensor that lutra has a name for."""
    is_linear = name.rsplit(".", 1)[-1] in LINEARS
    if tensor.dtype == PACKED and is_linear:
        return _lazy_packed(name, tensor, stored.get(tensor.name + bitnet.SCALE_SUFFIX), divides)
    if tensor.dtype not in DENSE:
        raise refusal(tensor.path, f"tensor {shown(tensor.name)} dtype", f"one of {', '.join(DENSE)}", tensor.dtype,
                      "convert the model to one of these")
    recoded = bitnet.MASTER_TEXT if is_linear and bitnet.is_bitnet(config) else "as stored"
    return LazyTensor(name, tensor.name, tensor.dtype, tensor.shape, recoded, tensor.dense)


def _lazy_packed(name: str, tensor: StoredTensor, scale: StoredTensor | None, divides: bool) -> LazyTensor:
    """Wrap a packed BitNet linear and the scale that lies beside it."""
    if scale is None or scale.dtype not in DENSE or math.prod(scale.shape) != 1:
        got = "none" if scale is None else f"{scale.dtype} {scale.shape}"
        raise refusal(tensor.path, f"tensor {shown(tensor.name)}", "one float in its weight_scale", got,
                      "packed weights have no meaning without it: convert the model again")
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise refusal(tensor.path, f"tensor {shown(tensor.name)}", "a packed matrix [N / 4, K]", str(tensor.shape),
                      "the file is damaged: download it again")
    shape = (4 * tensor.shape[0], tensor.shape[1])
    load = partial(_unpack, tensor, scale, divides)
    return LazyTensor(name, tensor.name, "bitnet-u8", shape, "re-coded to ternary, one scale (lossless)", load)


def _unpack(tensor: StoredTensor, scale: StoredTensor, divides: bool) -> QTensor:
    try:
        return bitnet.unpack(tensor.data.reshape(tensor.shape), scale.dense(), divides)
    except FormatError as error:
        raise FileError(f"{tensor.path}: tensor {shown(tensor.name)}: {error}") from None
