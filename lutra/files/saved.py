"""Quantised models as one file: weights by name in the packed order of lutra/formats, and one JSON header.

The file is a safetensors file, so any library opens it.  Beside `lutra quantize`, which writes it, any program can:

    __metadata__["lutra-model"]   JSON text of the header:
        version      1
        config       lutra's ModelConfig in JSON          tokenizer   its settings
        formats      {name: axes}, see catalog.axes_of    weights     {weight: {"format": name, "shape": [N, K]}}
        anything else is kept and says how the file was made
    tensors
        layers.0.q.packed, .scales, ...   arrays of a quantised weight, as QTensor names them; its side-cars:
                                          .perm, .input_scale, .low_rank_u, .low_rank_v
        layers.0.q.indices, .books,       arrays of a weight of vectors, as VectorWeight names them
        .scales
        layers.0.attn_norm, embed, ...    dense tensors by lutra's names (names.py), F32, F16 or BF16
        tokenizer.json | vocabulary.json  bytes, U8

Wide types come first, so that every array is aligned.  A packed file (packed.py) is for one purpose, to be mapped and
run in place; this one keeps what the weights are, to be loaded, compared, packed or quantised further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lutra.errors import FileError, FormatError
from lutra.files.container import DTYPES, NAMES, head, read_formats, read_head, same, state_formats, whole_file
from lutra.files.door import map_file, refusal, shown
from lutra.files.model_file import LazyTensor, ModelFile, Tensor
from lutra.files.safetensors_header import ITEM_BYTES, Entry, read_header
from lutra.formats import vectors
from lutra.formats.format import Format
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.formats.vectors import VectorFormat, VectorWeight

KIND = "quantised"
VERSION = 1
METADATA_KEY = "lutra-model"
AGAIN = "quantise the model again"
MAX_SIZE = 1 << 31
PARTS = tuple(field.name for field in fields(QTensor) if field.name not in ("format", "shape"))
SIDECARS = ("perm", "input_scale", "low_rank_u", "low_rank_v")
_COPY_BYTES = 1 << 24

Progress = Callable[[str, int, int], None]  # progress(label, done, total), in MB


@dataclass(frozen=True)
class Piece:
    """One array on its way into a file: what it is, and where its bytes are.

    source   the array, or a file with the place at which it begins
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: np.ndarray | tuple[Path, int]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]


def write(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model, or some tensors of one; the file appears under its name whole, or not at all.

    header   JSON values; version, formats and weights are added
    raises   FileError   the folder is not there or not writable, or the disk is full
    """
    weights = {name: value for name, value in tensors.items() if not isinstance(value, np.ndarray)}
    stated = dict(header) | _stated(weights)
    _write(path, stated, [piece for name, value in tensors.items() for piece in _pieces(name, value)], _silent)


def join(
    path: Path, header: Mapping[str, Any], parts: Sequence[Path], progress: Progress, part: Path | None = None
) -> None:
    """Write one file of all tensors of some files, without reading more than 16 MiB of them at a time.

    header   as for write; what the parts state of formats and weights is put together
    part     where the file is made, see container.whole
    raises   FileError   as write; a part that is no such file
    """
    formats: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    pieces = []
    for each in parts:
        entries, stated = _read(each, map_file(each))
        formats |= stated["formats"]
        weights |= stated["weights"]
        pieces += [Piece(name, e.dtype, e.shape, (each, e.begin)) for name, e in entries.items()]
    _write(path, dict(header) | {"formats": formats, "weights": weights}, pieces, progress, part)


def is_saved(path: Path) -> bool:
    """Whether a .safetensors file is one that `write` wrote.  Raises FileError for a broken header."""
    return METADATA_KEY in read_header(path, map_file(path))[1]


def open(path: str | Path) -> ModelFile:
    """Open a quantised model.

    returns  ModelFile    metadata is the header; quantised weights become QTensors, or Adapted, when read
    raises   FileError    another kind of file, another version, a format there is not, a weight without its arrays
    """
    path = Path(path)
    data = map_file(path)
    entries, header = _read(path, data)
    formats = read_formats(path, _table(path, header, "formats"), AGAIN)
    tensors: dict[str, LazyTensor] = {}
    left = dict(entries)
    for name, stated in _table(path, header, "weights").items():
        format, shape = _statement(path, name, stated, formats)
        known, needed = _arrays_of(format)
        arrays = {part: left.pop(f"{name}.{part}") for part in known if f"{name}.{part}" in left}
        if not needed <= set(arrays):
            wanted, got = (" and ".join(sorted(names)) or "none" for names in (needed, arrays))
            raise refusal(path, f"weight {shown(name)}", f"its {wanted}", got, AGAIN)
        views = {part: _view(path, data, f"{name}.{part}", entry) for part, entry in arrays.items()}
        load = partial(_weight, path, name, format, shape, views)
        tensors[name] = LazyTensor(name, name, format.name, shape, "as stored", load)
    for name, entry in left.items():
        if name in tensors:
            raise refusal(path, shown(name), "one tensor of this name", "a quantised and a dense one", AGAIN)
        values = _view(path, data, name, entry)
        tensors[name] = LazyTensor(name, name, entry.dtype, entry.shape, "as stored", partial(same, values))
    return ModelFile(path, KIND, header, tensors)


def num_bytes(file: ModelFile, name: str) -> int:
    """Bytes that a tensor of an open file takes, side-cars included."""
    value = file.tensors[name].read()
    return sum(piece.num_bytes for piece in _pieces(name, value))


def _read(path: Path, data: np.ndarray) -> tuple[dict[str, Entry], dict[str, Any]]:
    return read_head(path, data, METADATA_KEY, VERSION, "lutra quantize", "give the folder that it belongs to", AGAIN)


def _table(path: Path, header: dict[str, Any], name: str) -> dict[str, Any]:
    table = header.get(name)
    if not isinstance(table, dict):
        raise refusal(path, name, "an object", shown(table), AGAIN)
    return table


def _arrays_of(format: Format | VectorFormat) -> tuple[tuple[str, ...], set[str]]:
    """The arrays that a weight of a format may have, and those it must have."""
    is_vectors = isinstance(format, VectorFormat)
    return (vectors.ARRAYS, {*vectors.ARRAYS}) if is_vectors else ((*PARTS, *SIDECARS), {"packed", "scales"})


def _statement(
    path: Path, name: str, stated: object, formats: dict[str, Format | VectorFormat]
) -> tuple[Format | VectorFormat, tuple[int, int]]:
    """What the header says of a weight: a format it states too, and two sizes."""
    field = f"weight {shown(name)}"
    if not isinstance(stated, dict) or set(stated) != {"format", "shape"}:
        raise refusal(path, field, "an object of format and shape", shown(stated), AGAIN)
    format, shape = stated["format"], stated["shape"]
    if not isinstance(format, str) or format not in formats:
        raise refusal(path, field, "a format of the header", shown(format), AGAIN)
    is_pair = isinstance(shape, list) and len(shape) == 2
    if not is_pair or not all(type(size) is int and 0 < size < MAX_SIZE for size in shape):
        raise refusal(path, field, "a shape [N, K]", shown(shape), AGAIN)
    return formats[format], (shape[0], shape[1])


def _view(path: Path, data: np.ndarray, name: str, entry: Entry) -> np.ndarray:
    """The mapped values; copied only where another program has put them at an odd address."""
    if entry.dtype not in DTYPES:
        raise refusal(path, f"tensor {shown(name)}", f"one of {', '.join(DTYPES)}", entry.dtype, AGAIN)
    values = data[entry.begin : entry.begin + entry.num_bytes].view(DTYPES[entry.dtype]).reshape(entry.shape)
    return values if values.flags.aligned else values.copy()


def _weight(
    path: Path, name: str, format: Format | VectorFormat, shape: tuple[int, int], arrays: dict[str, np.ndarray]
) -> Tensor:
    parts = {part: values for part, values in arrays.items() if part in PARTS}
    cars = {part: values for part, values in arrays.items() if part in SIDECARS}
    try:
        if isinstance(format, VectorFormat):
            return VectorWeight(format, shape, **arrays)
        weight = QTensor(format, shape, **parts)
        if not cars:
            return weight
        if ("low_rank_u" in cars) != ("low_rank_v" in cars):
            raise FormatError("low_rank: expected U and V, got one of them")
        u, v = cars.get("low_rank_u"), cars.get("low_rank_v")
        low_rank = None if u is None or v is None else (u, v)
        return Adapted(weight, cars.get("perm"), cars.get("input_scale"), low_rank)
    except FormatError as error:
        raise FileError(f"{path}: {shown(name)}: {error}; {AGAIN}") from None


def _stated(weights: Mapping[str, QTensor | Adapted | VectorWeight]) -> dict[str, Any]:
    inner = {name: value.weight if isinstance(value, Adapted) else value for name, value in weights.items()}
    return {
        "formats": state_formats(value.format for value in inner.values()),
        "weights": {name: {"format": value.format.name, "shape": list(value.shape)} for name, value in inner.items()},
    }


def _pieces(name: str, value: Tensor) -> Iterator[Piece]:
    if isinstance(value, Adapted):
        u, v = value.low_rank or (None, None)
        cars = zip(SIDECARS, (value.perm, value.input_scale, u, v), strict=True)
        yield from (_piece(f"{name}.{part}", array) for part, array in cars if array is not None)
        value = value.weight
    if not isinstance(value, np.ndarray):
        parts = vectors.ARRAYS if isinstance(value, VectorWeight) else PARTS
        arrays = ((part, getattr(value, part)) for part in parts)
        yield from (_piece(f"{name}.{part}", array) for part, array in arrays if array is not None)
    else:
        yield _piece(name, value)


def _piece(name: str, array: np.ndarray) -> Piece:
    return Piece(name, NAMES[array.dtype], array.shape, np.ascontiguousarray(array))


def _write(
    path: Path, header: dict[str, Any], pieces: list[Piece], progress: Progress, part: Path | None = None
) -> None:
    pieces = sorted(pieces, key=lambda piece: -ITEM_BYTES[piece.dtype])  # stable: else in the given order
    total, done = sum(piece.num_bytes for piece in pieces), 0
    with whole_file(path, total, part) as file:
        file.write(_head(header, pieces))
        for piece in pieces:
            for block in _blocks(piece):
                file.write(block)
                done += len(block)
                progress(f"writing {piece.name}", done // 1_000_000, total // 1_000_000)


def _silent(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _head(header: dict[str, Any], pieces: list[Piece]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.num_bytes
        entries[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [begin, end]}
    return head(METADATA_KEY, {"version": VERSION} | header, entries)


def _blocks(piece: Piece) -> Iterator[memoryview | bytes]:
    """Yield the bytes of an array; those of another file are read, not mapped, so that they take no memory for long."""
    if isinstance(piece.source, np.ndarray):
        if piece.source.size:
            yield piece.source.reshape(-1).view(np.uint8).data
        return
    path, begin = piece.source
    with path.open("rb") as file:
        file.seek(begin)
        left = piece.num_bytes
        while left:
            block = file.read(min(left, _COPY_BYTES))
            if not block:
                raise refusal(path, "file", f"{left} bytes more", "the end", AGAIN)
            left -= len(block)
            yield block
