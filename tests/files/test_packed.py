"""Packed files: arrays come back where they lie, on cache lines; files appear whole or not at all; lies are refused."""

import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import open_model, packed
from tests.files.safetensors_writer import write_raw, write_safetensors

ARRAYS = {
    "codes": np.arange(100, dtype=np.uint8),
    "scales": np.linspace(-1, 1, 40).astype(np.float16),
    "empty": np.zeros(0, np.uint8),
    "norm": np.linspace(0, 1, 16, dtype=np.float32),  # a whole line
    "text": np.frombuffer("Grüße".encode(), np.uint8),
}
HEADER = {"config": {"name": "ü", "sizes": [1, 2]}}


def nobody(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    packed.write(tmp_path / "a.lutra", HEADER, ARRAYS, nobody)
    return tmp_path / "a.lutra"


def refusal(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        open_model(path)
    text = str(caught.value)
    assert "expected" in text and "got" in text and ";" in text and len(text) < 1000
    return text


def test_layout_by_hand(tmp_path: Path) -> None:
    """Three bytes and two floats: the header ends on a line, each array starts one, a tensor fills the line up."""
    path = tmp_path / "b.lutra"
    packed.write(path, {}, {"a": np.array([7, 8, 9], np.uint8), "b": np.ones(2, np.float32)}, nobody)
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    assert begin % 64 == 0 and len(raw) == begin + 128
    assert raw[begin : begin + 64] == bytes([7, 8, 9]) + bytes(61)
    assert raw[begin + 64 : begin + 72] == np.ones(2, np.float32).tobytes()
    header = json.loads(raw[8:begin])
    assert header["b"] == {"dtype": "F32", "shape": [2], "data_offsets": [64, 72]}
    assert header["fill.0"] == {"dtype": "U8", "shape": [61], "data_offsets": [3, 64]}
    assert json.loads(header["__metadata__"]["lutra"]) == {"version": 1}


def test_arrays_come_back_in_place(path: Path) -> None:
    model = open_model(path)
    assert (model.kind, model.metadata, list(model.tensors)) == ("packed", {"version": 1} | HEADER, list(ARRAYS))
    for name, meant in ARRAYS.items():
        values = model.tensors[name].read()
        assert isinstance(values, np.ndarray)
        assert values.dtype == meant.dtype and np.array_equal(values, meant)
        assert not values.flags.owndata and not values.flags.writeable
        assert values.ctypes.data % 64 == 0


def test_the_safetensors_library_opens_it(path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    held = numpy.load_file(path)
    assert all(np.array_equal(held[name], meant) for name, meant in ARRAYS.items())


def test_progress_ends_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_BLOCK_BYTES", 1_000_000)
    calls: list[tuple[str, int, int]] = []
    packed.write(tmp_path / "a.lutra", {}, {"a": np.zeros(3_000_000, np.uint8)}, lambda *call: calls.append(call))
    assert calls == [("writing a", 1, 3), ("writing a", 2, 3), ("writing a", 3, 3)]


# ---- writing: whole or not at all -----------------------------------------------------------------------------------


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk."""
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(FileError, match=r"expected a place with room for 1 MB, got .*; make room"):
            packed.write(path, HEADER, {"a": np.zeros(1_000_000, np.uint8)}, nobody)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()

    def stop(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed.write(path, HEADER, ARRAYS, stop)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_mapped_file_may_be_written_again(path: Path) -> None:
    codes = open_model(path).tensors["codes"].read()
    packed.write(path, HEADER, {"codes": np.zeros(3, np.uint8)}, nobody)
    assert np.array_equal(np.asarray(codes), ARRAYS["codes"])
    assert len(np.asarray(open_model(path).tensors["codes"].read())) == 3


@pytest.mark.parametrize("name", ["absent/a.lutra", "x" * 300 + ".lutra"])
def test_nowhere_to_write(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="make room or name another place"):
        packed.write(tmp_path / name, HEADER, ARRAYS, nobody)
    assert list(tmp_path.iterdir()) == []


# ---- reading: nothing is believed -----------------------------------------------------------------------------------


def change(path: Path, **changes: Any) -> None:
    """Change entries of the JSON header, keeping the data."""
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin]) | changes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[begin:])


def test_every_cut_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)


@pytest.mark.parametrize("version", [0, 2, "1", True, None, [1], 10**30])
def test_other_versions_are_refused(path: Path, version: Any) -> None:
    change(path, __metadata__={"lutra": json.dumps({"version": version})})
    assert "version: expected 1" in refusal(path)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"lutra": 1}, {"lutra": "[]"}, {"lutra": "{"},
                                      {"lutra": ""}, "lutra", {"lutra": "[" * 100_000}, None])  # fmt: skip
def test_other_headers_are_refused(path: Path, metadata: Any) -> None:
    change(path, __metadata__=metadata)
    refusal(path)


def test_another_safetensors_file_is_not_one(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.lutra", {"a": np.zeros(64, np.uint8)})
    assert "lutra pack" in refusal(tmp_path / "a.lutra")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dtype": "U8", "shape": [63], "data_offsets": [1, 64]}, "multiple of 64"),
        ({"dtype": "F16", "shape": [20], "data_offsets": [32, 72]}, "multiple of 64"),
        ({"dtype": "U8", "shape": [10, 10], "data_offsets": [0, 100]}, "flat array"),
        ({"dtype": "U8", "shape": [], "data_offsets": [0, 1]}, "flat array"),
        ({"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, "flat array"),
        ({"dtype": "U8", "shape": [101], "data_offsets": [0, 100]}, "101 bytes"),
        ({"dtype": "U8", "shape": [200], "data_offsets": [0, 200]}, "inside it"),
        ({"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}, "cut short"),
    ],
)
def test_entries_that_lie(path: Path, entry: dict[str, Any], words: str) -> None:
    change(path, codes=entry)
    assert words in refusal(path)


def test_random_damage_never_escapes(path: Path) -> None:
    """Change bytes of the header, or cut the file, 400 times: it opens, or FileError."""
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            damaged[chance.randrange(begin)] = chance.choice([*b'0129{}[]",:-', 0, 0xFF, chance.randrange(256)])
        if chance.random() < 0.1:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            for tensor in open_model(path).tensors.values():
                np.asarray(tensor.read()).sum()
        except FileError:
            refused += 1
    assert 40 < refused < 400


def test_an_empty_header(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.lutra", b"{}")
    refusal(tmp_path / "a.lutra")
