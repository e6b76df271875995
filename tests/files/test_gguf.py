import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import gguf
from lutra.formats.qtensor import QTensor
from tests.files.gguf_writer import BLOCKS, write_gguf
from tests.files.make_models import (
    NUM_HEADS,
    Sizes,
    gguf_metadata,
    gguf_name,
    interleave,
    random_state,
    tiny_llama_gguf,
)


def test_dense_tensors_are_views_of_the_file(tmp_path):
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    model = gguf.open(write_gguf(tmp_path / "a.gguf", {}, [("output.weight", "F32", values)]))
    tensor = model.tensors["head"]
    assert (tensor.source_name, tensor.stored_type, tensor.shape, tensor.recoded) == (
        "output.weight", "F32", (2, 4), "as stored"
    )  # fmt: skip
    read = tensor.read()
    assert np.array_equal(read, values) and not read.flags.owndata and not read.flags.writeable


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_keeps_its_dtype(tmp_path, dtype):
    values = np.array([[1.0, -0.5, 3.0]], np.float32)
    read = gguf.open(write_gguf(tmp_path / "a.gguf", {}, [("output.weight", dtype, values)])).tensors["head"].read()
    assert read.dtype.name == {"F16": "float16", "BF16": "bfloat16"}[dtype]
    assert np.array_equal(read.astype(np.float32), values)


def test_llama_rows_come_in_half_rotation_order(tmp_path):
    """What the converter interleaves comes back as it was: q and k, matrices and biases; v is left alone."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((64, 32)).astype(np.float32), rng.standard_normal(64).astype(np.float32)
    path = write_gguf(
        tmp_path / "a.gguf",
        {"general.architecture": "llama", "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2},
        [("blk.0.attn_q.weight", "F32", interleave(weight, 4)), ("blk.0.attn_q.bias", "F32", interleave(bias, 4)),
         ("blk.0.attn_k.weight", "F32", interleave(weight, 2)), ("blk.0.attn_v.weight", "F32", weight)],
    )  # fmt: skip
    tensors = gguf.open(path).tensors
    for name in ("layers.0.q", "layers.0.k", "layers.0.v"):
        assert np.array_equal(tensors[name].read(), weight)
    assert np.array_equal(tensors["layers.0.q.bias"].read(), bias)
    assert "half rotation" in tensors["layers.0.q"].recoded and tensors["layers.0.v"].recoded == "as stored"


@pytest.mark.parametrize("quant", BLOCKS)
def test_quantised_rows_are_permuted_exactly(tmp_path, quant):
    path = tiny_llama_gguf(tmp_path / "a.gguf", quant)
    q = gguf.open(path).tensors["layers.1.q"].read()
    path.write_bytes(path.read_bytes().replace(b"llama", b"qwen2"))  # one that does not permute
    stored = gguf.open(path).tensors["layers.1.q"].read()
    assert isinstance(q, QTensor) and q.shape == stored.shape
    assert np.array_equal(interleave(q.dequantize(), NUM_HEADS), stored.dequantize())


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "bitnet", "bitnet-25", "bitnet-b1.58"])
def test_other_architectures_are_not_permuted(tmp_path, architecture):
    weight = np.arange(64, dtype=np.float32).reshape(16, 4)
    metadata = {"general.architecture": architecture, f"{architecture}.attention.head_count": 2}
    model = gguf.open(write_gguf(tmp_path / "a.gguf", metadata, [("blk.0.attn_q.weight", "F32", weight)]))
    assert np.array_equal(model.tensors["layers.0.q"].read(), weight)


@pytest.mark.parametrize("heads", [None, 0, 3, -4, "4", 2.0, True, [4, 4]])
def test_head_counts_that_do_not_fit(tmp_path, heads):
    metadata = {"general.architecture": "llama"} | ({} if heads is None else {"llama.attention.head_count": heads})
    path = write_gguf(tmp_path / "a.gguf", metadata, [("blk.0.attn_q.weight", "F32", np.ones((64, 4)))])
    with pytest.raises(FileError, match="llama.attention.head_count: expected a number of heads"):
        gguf.open(path)


def test_unknown_tensors_are_reported(tmp_path):
    ones = np.ones((2, 2))
    path = write_gguf(tmp_path / "a.gguf", {}, [("blk.0.attn_qkv.weight", "F32", ones), ("output.weight", "F32", ones)])
    model = gguf.open(path)
    assert model.unknown == ("blk.0.attn_qkv.weight",) and list(model.tensors) == ["head"]


def test_scales_beside_a_weight_are_not_dropped(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", {}, [("blk.0.attn_q.scale", "F32", np.ones(1))])
    with pytest.raises(FileError, match=r"blk\.0\.attn_q\.scale.*beside it"):
        gguf.open(path)


def test_a_part_of_a_split_model(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", {"split.count": 3}, [("output.weight", "F32", np.ones(1))])
    with pytest.raises(FileError, match="one of 3 parts; join them"):
        gguf.open(path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_whole_model_comes_back(tmp_path, family):
    model = gguf.open(tiny_llama_gguf(tmp_path / "a.gguf", "F32", family))
    state = random_state(np.random.default_rng(0), family, Sizes())
    assert model.unknown == () and len(model.tensors) == len(state)
    by_source = {tensor.source_name: tensor for tensor in model.tensors.values()}
    for name, values in state.items():
        assert np.array_equal(by_source[gguf_name(name)].read(), values), name
    for key, value in gguf_metadata(family, Sizes()).items():
        assert model.metadata[key] == (np.float32(value) if isinstance(value, float) else value), key


def test_damaged_blocks_name_their_tensor(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {}, [("blk.0.attn_v.weight", "Q4_0", np.full((1, 1, 18), 0x7C, np.uint8))])
    with pytest.raises(FileError, match=r"blk\.0\.attn_v\.weight.*Q4_0.*finite"):
        gguf.open(path).tensors["layers.0.v"].read()


def test_equals_the_gguf_package_on_a_real_model(shared):
    reader = pytest.importorskip("gguf").GGUFReader(shared / "data/models/stories260K/stories260Ktok512.gguf")
    model = gguf.open(shared / "data/models/stories260K/stories260Ktok512.gguf")
    assert model.unknown == () and len(model.tensors) == len(reader.tensors) == 48
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, tensor in model.tensors.items():
        values = tensor.read()
        if name.endswith((".q", ".k")):
            values = interleave(values, 8 if name.endswith("q") else 4)
        assert np.array_equal(values, stored[tensor.source_name]), name
    assert model.metadata["llama.embedding_length"] == 64
    assert model.metadata["tokenizer.ggml.tokens"][:3] == ["<unk>", "<s>", "</s>"]


@pytest.mark.parametrize(("name", "architecture", "tokens"), [("gpt-2", "gpt2", 50257), ("llama-spm", "llama", 32000)])
def test_vocabularies_without_weights(shared, name, architecture, tokens):
    model = gguf.open(shared / f"data/tokenizers/ggml-vocab-{name}.gguf")
    assert model.metadata["general.architecture"] == architecture and not model.tensors
    assert len(model.metadata["tokenizer.ggml.tokens"]) == tokens


def test_equals_the_gguf_package_writer(tmp_path):
    """A file that somebody else's writer made, of every type it can quantise to."""
    outside = pytest.importorskip("gguf")
    path = tmp_path / "outside.gguf"
    writer = outside.GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    values = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    parts = {"Q4_0": "q", "Q4_1": "k", "Q8_0": "v", "TQ1_0": "gate", "TQ2_0": "up", "BF16": "down"}
    names = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    expected = {}
    for type_name, part in parts.items():
        kind = outside.GGMLQuantizationType[type_name]
        raw = outside.quants.quantize(values, kind)
        writer.add_tensor(f"blk.0.{names[part]}.weight", raw, raw_dtype=kind)
        expected[part] = outside.quants.dequantize(raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = gguf.open(path)
    for part, values in expected.items():
        read = model.tensors[f"layers.0.{part}"].read()
        floats = read.dequantize() if isinstance(read, QTensor) else read.astype(np.float32)
        assert np.array_equal(floats, values), part
