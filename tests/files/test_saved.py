"""Quantised models on disk: what is written is read, and nothing a hostile header says is believed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lutra.errors import FileError
from lutra.files import open_model, saved
from lutra.formats import catalog, vectors
from lutra.formats.catalog import axes_of
from lutra.formats.qtensor import QTensor
from lutra.formats.sidecars import Adapted
from lutra.formats.vectors import VectorFormat, VectorWeight
from lutra.quantize.methods import METHODS, method_for
from tests.formats.parts import random_vectors

NAMES = list(catalog.FORMATS)


def quantised(name: str, n: int = 5, k: int = 300, seed: int = 0) -> QTensor:
    form = catalog.find(name)
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    return METHODS[method_for(form, "rtn")].quantise(w, form)


def same(a: QTensor, b: Any) -> None:
    assert isinstance(b, QTensor) and a.format == b.format and a.shape == b.shape
    for name in saved.PARTS:
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        assert left is None or (left.dtype == right.dtype and left.tobytes() == right.tobytes()), name


@pytest.mark.parametrize("name", NAMES)
def test_every_format_comes_back(name: str, tmp_path: Path) -> None:
    q = quantised(name)
    saved.write(tmp_path / "m.safetensors", {"config": {}}, {"layers.0.q": q})
    tensor = open_model(tmp_path / "m.safetensors").tensors["layers.0.q"]
    assert tensor.shape == (5, 300) and tensor.stored_type == name
    same(q, tensor.read())


@pytest.mark.parametrize("name", ["vectors2", "vectors8x2"])
def test_vectors_come_back(name: str, tmp_path: Path) -> None:
    form = vectors.find(name)
    assert form is not None
    w = random_vectors(form, 5, 97)
    saved.write(tmp_path / "m.safetensors", {}, {"layers.0.q": w, "layers.0.k": quantised("planes4-g32")})
    tensor = open_model(tmp_path / "m.safetensors").tensors["layers.0.q"]
    found = tensor.read()
    assert tensor.stored_type == name and isinstance(found, VectorWeight) and found.format == form
    assert all(np.array_equal(getattr(found, part), getattr(w, part)) for part in vectors.ARRAYS)
    assert saved.num_bytes(open_model(tmp_path / "m.safetensors"), "layers.0.q") == w.nbytes


def test_what_a_killed_run_left_stands_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / f".m.safetensors.{threading.get_native_id()}.part"
    left.write_bytes(b"of a process that had the same number")
    saved.write(tmp_path / "m.safetensors", {}, {"final_norm": np.ones(3, np.float32)})
    assert open_model(tmp_path / "m.safetensors").tensors and not left.exists()


VECTOR_CHANGES: dict[str, Any] = {
    "indices: expected": lambda h, e: h["weights"]["layers.0.q"].update(shape=[5, 97]),
    "books: expected int8": lambda h, e: e["layers.0.q.books"].update(dtype="U8"),
    r"books: expected int8 \[1, 256, 4\]": lambda h, e: e["layers.0.q.books"].update(shape=[1, 128, 8]),
    "scales: expected": lambda h, e: e["layers.0.q.scales"].update(shape=[1, 5]),
    "its books and indices and scales, got books and scales": lambda h, e: drop(e, "layers.0.q.indices"),
    "2, 4 or 8 weights": lambda h, e: h["formats"]["vectors4"].update(vector_length=16),
    "numbers for vector_length": lambda h, e: h["formats"]["vectors4"].update(terms=None),
    "vectors4x2, which these axes are": lambda h, e: h["formats"]["vectors4"].update(terms=2),
}


@pytest.mark.parametrize("said", VECTOR_CHANGES)
def test_vectors_that_contradict_themselves_are_refused(said: str, tmp_path: Path) -> None:
    saved.write(tmp_path / "m.safetensors", {}, {"layers.0.q": random_vectors(VectorFormat(4), 5, 32)})
    path = rewritten(tmp_path / "m.safetensors", VECTOR_CHANGES[said])
    with pytest.raises(FileError, match=said):
        for tensor in open_model(path).tensors.values():
            tensor.read()


def test_any_library_opens_the_file(tmp_path: Path) -> None:
    q = quantised("planes4-g32-mins")
    saved.write(tmp_path / "m.safetensors", {}, {"layers.0.q": q, "final_norm": np.ones(3, np.float32)})
    arrays = load_file(tmp_path / "m.safetensors")
    assert sorted(arrays) == ["final_norm", "layers.0.q.mins", "layers.0.q.packed", "layers.0.q.scales"]
    assert np.array_equal(arrays["layers.0.q.packed"], q.packed)


def test_dense_tensors_side_cars_and_header_come_back(tmp_path: Path) -> None:
    q, rng = quantised("planes4-g32-zeros"), np.random.default_rng(0)
    low_rank = rng.standard_normal((5, 2)).astype(np.float32), rng.standard_normal((2, 300)).astype(np.float32)
    adapted = Adapted(q, rng.permutation(300).astype(np.int32), np.ones(300, np.float32), low_rank)
    dense = {"embed": rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16), "final_norm": np.ones(3, np.float16)}
    saved.write(tmp_path / "m.safetensors", {"config": {"a": 1}, "why": "x"}, {"layers.0.o": adapted} | dense)
    file = open_model(tmp_path / "m.safetensors")
    assert file.kind == "quantised" and file.metadata["config"] == {"a": 1} and file.metadata["why"] == "x"
    read = file.tensors["layers.0.o"].read()
    assert isinstance(read, Adapted) and np.array_equal(read.dequantize(), adapted.dequantize())
    for name, values in dense.items():
        found = file.tensors[name].read()
        assert isinstance(found, np.ndarray) and found.dtype == values.dtype and np.array_equal(found, values)


def test_parts_join_to_the_file_that_is_written_at_once(tmp_path: Path) -> None:
    tensors = {"layers.0.q": quantised("planes4-g32-mins"), "final_norm": np.ones(3, np.float32),
               "layers.1.q": quantised("ternary")}  # fmt: skip
    saved.write(tmp_path / "whole.safetensors", {"config": {}}, tensors)
    parts = []
    for index, (name, value) in enumerate(tensors.items()):
        parts.append(tmp_path / f"{index}.safetensors")
        saved.write(parts[-1], {"note": index}, {name: value})
    saved.join(tmp_path / "joined.safetensors", {"config": {}}, parts, lambda *_: None)
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="room for 0 MB"):
        saved.write(tmp_path / "no" / "m.safetensors", {}, {"final_norm": np.ones(3, np.float32)})


def rewritten(path: Path, change: Any) -> Path:
    """The same file with another header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    header = json.loads(entries["__metadata__"][saved.METADATA_KEY])
    change(header, entries)
    entries["__metadata__"] = {saved.METADATA_KEY: json.dumps(header)}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 64)
    other = path.with_name("other.safetensors")
    other.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return other


def drop(entries: dict[str, Any], name: str) -> None:
    entries["x"] = entries.pop(name)


CHANGES = {
    "version: expected 1": lambda h, e: h.update(version=2),
    "version: expected 1, got True": lambda h, e: h.update(version=True),
    "formats: expected an object": lambda h, e: h.update(formats=[]),
    "weights: expected an object": lambda h, e: h.pop("weights"),
    "axes": lambda h, e: h["formats"].update({"planes4-g32-mins": {"bits": 4}}),
    "an object of axes": lambda h, e: h["formats"].update({"planes4-g32-mins": 4}),
    "a format of the header": lambda h, e: h["weights"]["layers.0.q"].update(format="int8-g32"),
    "an object of format and shape": lambda h, e: h["weights"].update({"layers.0.q": 3}),
    "a shape": lambda h, e: h["weights"]["layers.0.q"].update(shape=[5, 1 << 40]),
    "packed: expected": lambda h, e: h["weights"]["layers.0.q"].update(shape=[5, 1 << 20]),
    "scales: expected": lambda h, e: e["layers.0.q.scales"].update(shape=[10, 5]),
    "its packed and scales, got mins and scales": lambda h, e: drop(e, "layers.0.q.packed"),
    "mins": lambda h, e: drop(e, "layers.0.q.mins"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_contradicts_itself_is_refused(said: str, tmp_path: Path) -> None:
    saved.write(tmp_path / "m.safetensors", {}, {"layers.0.q": quantised("planes4-g32-mins", k=320)})
    path = rewritten(tmp_path / "m.safetensors", CHANGES[said])
    with pytest.raises(FileError, match=said):
        for tensor in open_model(path).tensors.values():
            tensor.read()


SCALARS = st.none() | st.booleans() | st.integers(-2, 1 << 70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def headers(draw: Any) -> dict[str, Any]:
    """Right, but for some places that hold anything."""
    axes = dict(axes_of(catalog.find("planes4-g32-mins")))
    stated = {"format": "f", "shape": [5, 320]}
    for table in (axes, stated):
        for key in draw(st.lists(st.sampled_from(sorted(table)), max_size=2)):
            table[key] = draw(VALUES | st.integers(0, 300))
    header = {"version": 1, "formats": {"f": axes}, "weights": {"layers.0.q": stated}}
    for key in draw(st.lists(st.sampled_from(sorted(header)), max_size=1)):
        header[key] = draw(VALUES)
    return header


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers())
def test_no_header_crashes_or_allocates(header: dict[str, Any], tmp_path: Path) -> None:
    if not (tmp_path / "m.safetensors").exists():
        saved.write(tmp_path / "m.safetensors", {}, {"layers.0.q": quantised("planes4-g32-mins", k=320)})
    path = rewritten(tmp_path / "m.safetensors", lambda h, e: (h.clear(), h.update(header)))
    try:
        tensors = [tensor.read() for tensor in open_model(path).tensors.values()]
    except FileError as error:
        assert len(str(error)) < 2000
        return
    size = path.stat().st_size
    assert sum(t.packed.nbytes if isinstance(t, QTensor) else t.nbytes for t in tensors) < size


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_no_flipped_byte_crashes(at: int, byte: int, tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    if not source.exists():
        saved.write(source, {}, {"layers.0.q": quantised("planes4-g32-mins", k=320)})
    data = bytearray(source.read_bytes())
    data[at % len(data)] = byte
    other = tmp_path / "other.safetensors"
    other.write_bytes(data)
    try:
        for tensor in open_model(other).tensors.values():
            tensor.read()
    except FileError:
        pass
