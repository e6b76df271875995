"""Each way a GGUF header can lie gives one FileError that names the field; random damage never gives anything else."""

import random
import struct
import tracemalloc

import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import gguf
from lutra.files.door import map_file
from lutra.files.gguf_header import read_header
from tests.files.gguf_writer import description, header, pad, string, value, write_gguf
from tests.files.make_models import tiny_llama_gguf


def key_value(key, type_id, raw):
    return string(key) + struct.pack("<I", type_id) + raw


def refusal(tmp_path, raw):
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(FileError) as caught:
        gguf.open(path)
    text = str(caught.value)
    assert str(path) in text and "expected" in text and "got" in text and ";" in text
    assert len(text) < 1000
    return text


def one_tensor(name="token_embd.weight", dims=(8, 4), type_id=0, offset=0, data=bytes(128)):
    return pad(header(b"", [description(name, dims, type_id, offset)], 0), 32) + data


def test_a_header_by_hand(tmp_path):
    metadata = {"x.name": "a", "x.count": 7, "x.small": -1, "x.eps": 0.5, "x.on": True, "x.s": ["b", "c"], "x": [1, 2]}
    path = write_gguf(
        tmp_path / "a.gguf",
        metadata,
        [("token_embd.weight", "F32", np.arange(6, dtype=np.float32).reshape(2, 3)), ("odd", "F16", np.ones(3))],
    )
    head = read_header(path, map_file(path))
    assert head.version == 3
    assert head.metadata == metadata
    assert [(info.name, info.type.name, info.shape, info.num_bytes) for info in head.tensors] == [
        ("token_embd.weight", "F32", (2, 3), 24), ("odd", "F16", (3,), 6)
    ]  # fmt: skip


@pytest.mark.parametrize(("version", "alignment"), [(2, 32), (3, 8), (3, 4096)])
def test_versions_and_alignments(tmp_path, version, alignment):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = [("a", "F32", values), ("token_embd.weight", "F32", values)]
    model = gguf.open(write_gguf(tmp_path / "a.gguf", {}, tensors, version, alignment))
    assert np.array_equal(model.tensors["embed"].read(), values)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty file"),
        (b"GG", "magic"),
        (b"ggml" + bytes(40), "magic"),
        (b"GGUF", "version"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "version: expected 2 or 3, got 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0), "tensor count"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**64 - 1), "key-value count"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 0), "tensor count"),
        (header(struct.pack("<Q", 2**40) + bytes(64), [], 1), "key 0"),
        (header(key_value(b"\xff\xfe", 4, bytes(8)), [], 1), "UTF-8"),
        (header(key_value("a", 8, string(b"\xc3\x28")), [], 1), "UTF-8"),
        (header(key_value("a", 8, struct.pack("<Q", 2**62)), [], 1), "'a'"),
        (header(key_value("a", 13, bytes(8)), [], 1), "value type"),
        (header(key_value("a", 9, struct.pack("<IQ", 9, 1) + bytes(20)), [], 1), "nested"),
        (header(key_value("a", 9, struct.pack("<IQ", 77, 1) + bytes(20)), [], 1), "elements are type 77"),
        (header(key_value("a", 9, struct.pack("<IQ", 12, 2**60) + bytes(20)), [], 1), "'a'"),
        (header(key_value("a", 9, struct.pack("<IQ", 8, 2**61 + 1) + bytes(20)), [], 1), "'a'"),
        (header(key_value("a", 4, bytes(4)) * 2, [], 2), "key 1"),
        (header(key_value("general.alignment", *value(24)), [], 1), "power of two"),
        (header(key_value("general.alignment", *value(0)), [], 1), "power of two"),
        (header(key_value("general.alignment", *value("32")), [], 1), "power of two"),
        (one_tensor(data=bytes(124)), "cut short"),
        (one_tensor(offset=1), "multiple of 32"),
        (one_tensor(offset=2**64 - 32), "inside the file"),
        (one_tensor(dims=(2**63, 2**63)), "inside the file"),
        (one_tensor(dims=(8, 0)), "at least 1"),
        (one_tensor(dims=()), "dimensions"),
        (one_tensor(dims=(1, 1, 1, 1, 1)), "dimensions"),
        (one_tensor(type_id=24), "got I8"),
        (one_tensor(type_id=4), "unknown type 4"),
        (one_tensor(type_id=28), "got F64"),
        (one_tensor(dims=(48, 2), type_id=2), "K a multiple of 32"),
        (one_tensor(dims=(32,), type_id=2), "a matrix"),
        (one_tensor(name=b"\xff"), "UTF-8"),
        (one_tensor(name="x" * 2000), "name of tensor 0"),
        (pad(header(b"", [description("a", (4,), 0, 0)] * 2, 0), 32) + bytes(64), "'a' again"),
        (
            pad(header(b"", [description("a", (16,), 0, 0), description("b", (8,), 0, 32)], 0), 32) + bytes(64),
            "after tensor 'a'",
        ),
    ],
)
def test_refusals(tmp_path, raw, words):
    assert words in refusal(tmp_path, raw)


def test_an_unknown_type_lists_what_is_read(tmp_path):
    assert "Q4_0" in refusal(tmp_path, one_tensor(type_id=99)) and "TQ2_0" in refusal(tmp_path, one_tensor(type_id=99))


def test_every_truncation_is_refused(tmp_path):
    values = np.ones((2, 4), np.float32)
    path = write_gguf(tmp_path / "a.gguf", {"a": "b", "c": [1, 2]}, [("token_embd.weight", "F32", values)])
    whole = path.read_bytes()
    for length in range(len(whole)):
        refusal(tmp_path, whole[:length])


def read_everything(path):
    model = gguf.open(path)
    for tensor in model.tensors.values():
        tensor.read()


@pytest.mark.parametrize("quant", ["F32", "Q4_0", "TQ2_0"])
def test_random_damage_never_escapes(tmp_path, quant):
    """Flip bytes of the header, or some of the data, 400 times: it opens, or FileError; and little memory is taken."""
    good = tiny_llama_gguf(tmp_path / "good.gguf", quant)
    whole = good.read_bytes()
    data_begin = min(info.begin for info in read_header(good, map_file(good)).tensors)
    vocabulary = whole.index(b"tokenizer.ggml.tokens")
    descriptions = whole.index(b"token_embd.weight")
    areas = [(0, 64), (0, vocabulary), (vocabulary, descriptions), (descriptions, data_begin), (data_begin, len(whole))]
    chance = random.Random(quant)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        first, last = chance.choice(areas)
        for _ in range(chance.choice([1, 1, 2, 8])):
            damaged[chance.randrange(first, last)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        if chance.random() < 0.1:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            read_everything(path)
        except FileError:
            refused += 1
    assert 40 < refused < 400


def test_absurd_numbers_allocate_nothing(tmp_path):
    """Every u32 and u64 of a small header, set to large values in turn, costs less than 4 MB."""
    whole = write_gguf(tmp_path / "a.gguf", {"a": "b", "c": [1, 2], "d": ["e", "f"]},
                       [("token_embd.weight", "F32", np.ones((2, 4), np.float32))]).read_bytes()  # fmt: skip
    path = tmp_path / "bad.gguf"
    for at in range(4, len(whole) - 40):
        for code, absurd in [("<I", 2**31), ("<Q", 2**24), ("<Q", 2**33), ("<Q", 2**62), ("<Q", 2**64 - 1)]:
            damaged = bytearray(whole)
            struct.pack_into(code, damaged, at, absurd)
            path.write_bytes(damaged)
            tracemalloc.start()
            try:
                read_everything(path)
            except FileError:
                pass
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4 << 20, (at, code, absurd)


def test_long_arrays_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("lutra.files.gguf_header.MAX_ELEMENTS", 10)
    raw = key_value("a", *value([1] * 8)) + key_value("b", *value([1] * 8))
    assert "'b'" in refusal(tmp_path, header(raw, [], 2))
