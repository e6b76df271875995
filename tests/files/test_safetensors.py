import json
import random

import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import safetensors
from lutra.formats.qtensor import QTensor
from tests.files.make_models import Sizes, hf_config, pack_bitnet, tiny_hf, write_json
from tests.files.safetensors_writer import bfloat16, write_raw, write_safetensors

HEAD = "lm_head.weight"


def folder_of(tmp_path, tensors=None, config=None):
    write_json(tmp_path / "config.json", config if config is not None else {"model_type": "llama"})
    if tensors is not None:
        write_safetensors(tmp_path / "model.safetensors", tensors)
    return tmp_path


def refusal(path):
    with pytest.raises(FileError) as caught:
        model = safetensors.open(path)
        for tensor in model.tensors.values():
            tensor.read()
    text = str(caught.value)
    assert "expected" in text and "got" in text and ";" in text and len(text) < 1000
    return text


def test_dense_tensors_are_views_of_the_file(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = safetensors.open(folder_of(tmp_path, {HEAD: values, "other": values}))
    tensor = model.tensors["head"]
    assert (tensor.stored_type, tensor.shape, tensor.recoded) == ("F32", (2, 3), "as stored")
    assert np.array_equal(tensor.read(), values) and not tensor.read().flags.owndata
    assert model.unknown == ("other",) and model.metadata == {"model_type": "llama"} and model.folder == tmp_path


def test_odd_addresses_are_copied(tmp_path):
    folder_of(tmp_path, {"a": np.ones(3, np.uint8), HEAD: np.ones((2, 2), np.float32)})
    read = safetensors.open(tmp_path).tensors["head"].read()
    assert read.flags.aligned and (read == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equals_the_safetensors_library(tmp_path, dtype):
    """A file that the library wrote reads as the library reads it."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    values = torch.randn(5, 7).to(getattr(torch, dtype))
    library.save_file({HEAD: values, "model.norm.weight": values[0].clone()}, folder_of(tmp_path) / "model.safetensors")
    model = safetensors.open(tmp_path)
    assert model.tensors["head"].read().dtype.name == dtype
    assert np.array_equal(model.tensors["head"].read().astype(np.float32), values.float().numpy())
    assert np.array_equal(model.tensors["final_norm"].read().astype(np.float32), values[0].float().numpy())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "bitnet", "bitnet-master"])
def test_a_whole_model_comes_back(tmp_path, family):
    meant = tiny_hf(tmp_path, family)
    model = safetensors.open(tmp_path)
    assert model.unknown == () and len(model.tensors) == len(meant)
    for tensor in model.tensors.values():
        read = tensor.read()
        floats = read.dequantize() if isinstance(read, QTensor) else read.astype(np.float32)
        assert tensor.shape == floats.shape
        assert np.array_equal(floats, meant[tensor.source_name]), tensor.name
    assert isinstance(model.tensors["layers.0.q"].read(), QTensor) == (family == "bitnet")
    assert ("master" in model.tensors["layers.0.q"].recoded) == (family == "bitnet-master")


def test_packed_weights_divide_without_linear_class(tmp_path):
    """HF1BitLLM and Falcon: a Llama with packed linears whose scale divides."""
    trits = np.random.default_rng(0).integers(-1, 2, (8, 16)).astype(np.int8)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {name: pack_bitnet(trits), name + "_scale": bfloat16(np.array([4.0]))}
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitnet"}}
    model = safetensors.open(folder_of(tmp_path, tensors, config))
    tensor = model.tensors["layers.0.up"]
    assert tensor.shape == (8, 16) and tensor.stored_type == "bitnet-u8" and model.unknown == ()
    assert np.array_equal(tensor.read().dequantize(), trits * 0.25)


@pytest.mark.parametrize("scale", [None, np.ones(2, np.float32), np.ones(1, np.uint8), np.zeros(1, np.float32)])
def test_packed_weights_need_their_scale(tmp_path, scale):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {name: np.zeros((2, 4), np.uint8)} | ({} if scale is None else {name + "_scale": scale})
    assert "weight_scale" in refusal(folder_of(tmp_path, tensors))


def test_other_quantisations_are_refused(tmp_path):
    config = {"quantization_config": {"quant_method": "quip"}}
    assert "quip" in refusal(folder_of(tmp_path, {HEAD: np.ones((1, 1), np.float32)}, config))


def test_shards(tmp_path):
    folder_of(tmp_path)
    a, b = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
    write_safetensors(tmp_path / "model-1.safetensors", {HEAD: a})
    write_safetensors(tmp_path / "model-2.safetensors", {"model.norm.weight": b})
    weight_map = {HEAD: "model-1.safetensors", "model.norm.weight": "model-2.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": weight_map})
    model = safetensors.open(tmp_path)
    assert np.array_equal(model.tensors["head"].read(), a) and np.array_equal(model.tensors["final_norm"].read(), b)


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b.safetensors", "model.bin", 3, None, "",
     "gone.safetensors", "\0.safetensors", "x" * 5000 + ".safetensors"],
)  # fmt: skip
def test_shards_lie_beside_their_index(tmp_path, shard):
    inside = tmp_path / "inside"
    inside.mkdir()
    write_safetensors(tmp_path / "model.safetensors", {HEAD: np.ones((2, 2), np.float32)})
    write_json(inside / "model.safetensors.index.json", {"weight_map": {HEAD: shard}})
    refusal(folder_of(inside))


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"absent": "model-1.safetensors"}}])
def test_bad_indexes(tmp_path, index):
    folder_of(tmp_path)
    write_safetensors(tmp_path / "model-1.safetensors", {HEAD: np.ones((2, 2), np.float32)})
    write_json(tmp_path / "model.safetensors.index.json", index)
    refusal(tmp_path)


def test_the_only_file_will_do_but_not_two(tmp_path):
    folder_of(tmp_path)
    assert "0 .safetensors files" in refusal(tmp_path)
    write_safetensors(tmp_path / "a.safetensors", {HEAD: np.ones((2, 2), np.float32)})
    assert list(safetensors.open(tmp_path).tensors) == ["head"]
    assert list(safetensors.open(tmp_path / "a.safetensors").tensors) == ["head"]
    write_safetensors(tmp_path / "b.safetensors", {})
    assert "2 .safetensors files" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b'"a"', b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b"9" * 5000]
)
def test_bad_config(tmp_path, text):
    folder_of(tmp_path, {HEAD: np.ones((1, 1), np.float32)})
    (tmp_path / "config.json").write_bytes(text)
    assert "config.json" in refusal(tmp_path)


def test_no_config(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {})
    assert "config.json" in refusal(tmp_path) and "config.json" in refusal(tmp_path / "model.safetensors")


def entry(dtype="F32", shape=(2, 2), begin=0, end=16):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({HEAD: entry(end=20)}, "16 bytes for F32"),
        ({HEAD: entry(begin=8, end=24)}, "cut short"),
        ({HEAD: entry(begin=2**62, end=2**62 + 16)}, "cut short"),
        ({HEAD: entry(shape=(2**62, 2**62))}, "shape"),
        ({HEAD: entry(shape=(-2, -2))}, "shape"),
        ({HEAD: entry(shape=(2.0, 2))}, "shape"),
        ({HEAD: entry(shape=(True, 4))}, "shape"),
        ({HEAD: entry(shape=(1,) * 9)}, "shape"),
        ({HEAD: entry() | {"shape": "22"}}, "shape"),
        ({HEAD: entry() | {"data_offsets": [0]}}, "data_offsets"),
        ({HEAD: entry() | {"data_offsets": [16, 0]}}, "data_offsets"),
        ({HEAD: entry() | {"data_offsets": [0, 2**70]}}, "data_offsets"),
        ({HEAD: entry() | {"dtype": ["F32"]}}, "dtype"),
        ({HEAD: entry(dtype="F33")}, "dtype"),
        ({HEAD: entry(dtype="F64", shape=(2,))}, "expected one of F32, F16, BF16, got F64"),
        ({HEAD: entry(dtype="U8", shape=(16,))}, "got U8"),
        ({HEAD: {}}, "dtype"),
        ({HEAD: [1, 2]}, "an object"),
        ({HEAD: entry(), "b": entry()}, "inside it"),
        ({"model.layers.0.self_attn.inner_attn_ln.weight": entry(shape=(2,), end=8),
          "model.layers.0.self_attn.attn_sub_norm.weight": entry(shape=(2,), begin=8, end=16)}, "for layers.0.attn"),
    ],
)  # fmt: skip
def test_headers_that_lie(tmp_path, header, words):
    write_raw(folder_of(tmp_path) / "model.safetensors", json.dumps(header).encode(), bytes(16))
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\0", bytes(7), b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}",
                                 (3).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b'{"a"',
                                 (2).to_bytes(8, "little") + b"[]"])  # fmt: skip
def test_files_that_are_not_safetensors(tmp_path, raw):
    (folder_of(tmp_path) / "model.safetensors").write_bytes(raw)
    refusal(tmp_path)


def test_repeated_names_are_refused(tmp_path):
    text = json.dumps(entry())
    write_raw(folder_of(tmp_path) / "model.safetensors", f'{{"a": {text}, "a": {text}}}'.encode(), bytes(16))
    assert "twice" in refusal(tmp_path)


def test_random_damage_never_escapes(tmp_path):
    """Flip bytes of the header, or some of the data, 400 times: it opens, or FileError."""
    tiny_hf(tmp_path, "bitnet")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    data_begin = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        first, last = chance.choice([(0, 8), (8, data_begin), (8, data_begin), (data_begin, len(whole))])
        for _ in range(chance.choice([1, 1, 2, 8])):
            damaged[chance.randrange(first, last)] = chance.choice([*b'0129{}[]",:-', 0, 0xFF, chance.randrange(256)])
        if chance.random() < 0.1:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            for tensor in safetensors.open(tmp_path).tensors.values():
                tensor.read()
        except FileError:
            refused += 1
    assert 40 < refused < 400


def test_config_names_the_family(tmp_path):
    tiny_hf(tmp_path, "bitnet")
    assert safetensors.open(tmp_path).metadata == hf_config("bitnet", Sizes())
