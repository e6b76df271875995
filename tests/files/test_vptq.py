"""VPTQ folders, written from the layout's description, are the sums of their vectors, rounded to int8."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import open_model
from lutra.files.methods import vptq
from lutra.formats.qtensor import QTensor
from tests.files import checkpoint_writers as write
from tests.files.safetensors_writer import write_safetensors

NAME = "model.layers.0.self_attn.q_proj"


def config(length=8, **more):
    row = {"vector_lens": [-1, length], "num_centroids": [-1, 16], "outlier_size": 0} | more
    return {"quant_method": "vptq", "config_for_layers": {NAME: row, "another": row}}


def read(tmp_path, tensors, stated):
    write_safetensors(tmp_path / "model.safetensors", {f"{NAME}.{part}": values for part, values in tensors.items()})
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": stated}))
    file = open_model(tmp_path)
    assert not file.unknown and set(file.tensors) == {"layers.0.q"}
    tensor = file.tensors["layers.0.q"]
    value = tensor.read()
    assert isinstance(value, QTensor) and value.format.name == "int8-g128-f32" and value.shape == tensor.shape
    return value.dequantize()


def close(got, want):
    """Within half a level of 128 neighbours."""
    k = want.shape[1]
    groups = np.pad(np.abs(want), ((0, 0), (0, -k % 128))).reshape(len(want), -1, 128).max(-1)
    return got.shape == want.shape and (np.abs(got - want) <= np.repeat(groups, 128, 1)[:, :k] / 127 * 0.501).all()


def test_by_hand(tmp_path):
    """Vectors of two outputs: columns (1, -2), (3, 127), (1, -2), stored in the order of the inputs 2, 0, 1."""
    book = np.array([[[1, -2], [3, 127]]], np.float16)
    indices = np.array([[[0, 1, 0]]])
    tensors = write.vptq(indices, book, perm=np.array([2, 0, 1]), scale=np.array([1, 2, 1], np.float16),
                         bias=np.array([0, -3, 0], np.float16))  # fmt: skip
    got = read(tmp_path, tensors, config(2))
    assert np.allclose(got, [[3, 2 - 3, 1], [127, -4 - 3, -2]], atol=0.5)
    assert np.allclose(got[0], [3, -1, 1], atol=0.013)


@pytest.mark.parametrize("books", [1, 2])
@pytest.mark.parametrize(("length", "centroids", "residual"), [(8, 256, 0), (8, 4096, 256), (4, 16, 16), (6, 200, 0),
                                                             (2, 65536, 0), (2, 65536, 65536)])  # fmt: skip
def test_every_size(tmp_path, length, centroids, residual, books):
    rng, n, k = np.random.default_rng(0), 12 * length, 96

    def chosen(size):
        vectors = rng.standard_normal((books, size, length)).astype(np.float16)
        index = rng.integers(0, size, (books, n // length, k // books))
        index.reshape(-1)[:2] = 0, size - 1
        values = np.stack([book.astype(np.float32)[i] for book, i in zip(vectors, index, strict=True)])
        return vectors, index, np.concatenate(values.swapaxes(2, 3).reshape(books, n, -1), 1)

    vectors, index, want = chosen(centroids)
    more = {}
    if residual:
        more["res_books"], more["residual"], rest = chosen(residual)
        want = want + rest
    perm, scale = rng.permutation(k), rng.random(k).astype(np.float16)
    bias = rng.standard_normal(k).astype(np.float16)
    ordered = want[:, np.argsort(perm)] * scale.astype(np.float32) + bias.astype(np.float32)
    assert close(read(tmp_path, write.vptq(index, vectors, **more), config(length)), want)
    tensors = write.vptq(index, vectors, **more, perm=perm, scale=scale, bias=bias)
    assert close(read(tmp_path, tensors, config(length)), ordered)


def stated(**changes):
    """A damaged folder: tensors that are changed, None to leave one out."""
    rng = np.random.default_rng(0)
    tensors = write.vptq(rng.integers(0, 15, (1, 4, 64)), rng.random((1, 15, 8), np.float32), perm=np.arange(64),
                         scale=np.ones(64, np.float16))  # fmt: skip
    return tensors | changes


def test_a_scale_of_one_column_does_not_scale_rows(tmp_path):
    """N = K: both readings would have a shape that fits."""
    rng = np.random.default_rng(0)
    tensors = write.vptq(rng.integers(0, 16, (1, 8, 64)), rng.random((1, 16, 8), np.float32),
                         scale=np.ones((64, 1), np.float16))  # fmt: skip
    with pytest.raises(FileError, match="weight_scale: expected floats"):
        read(tmp_path, tensors, config())


def test_less_than_a_quarter_of_a_bit_is_refused(tmp_path):
    """Two vectors of 32 weights are 1 bit for 32; of 4 they are the least that is read."""
    tensors = {"indices": np.zeros((1, 4, 4), np.int32), "centroids.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(FileError, match="indices: expected at least 1/4 bit for a weight, got 1 for 32 weights"):
        read(tmp_path, tensors, config(32))
    tensors["centroids.weight"] = np.ones((1, 8), np.float32)
    assert np.array_equal(read(tmp_path, tensors, config(4)), np.ones((16, 128)))


def test_what_is_read_takes_memory_near_its_own_size(tmp_path, monkeypatch):
    """Blocks of rows, the last one short: the same values, and not the 20 times the result that all at once took."""
    rng, length = np.random.default_rng(0), 8
    tensors = write.vptq(rng.integers(0, 256, (2, 67, 256)), rng.random((2, 256, length)).astype(ml_dtypes.bfloat16),
                         perm=rng.permutation(512), scale=rng.random(512).astype(ml_dtypes.bfloat16))  # fmt: skip
    layout = vptq.layouts(config(length))[0]
    monkeypatch.setattr(vptq, "BLOCK", 67 * length * 512)
    whole = layout.read(tensors)
    monkeypatch.setattr(vptq, "BLOCK", 4 * length * 512)
    tracemalloc.start()
    got = layout.read(tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(got.packed, whole.packed) and np.array_equal(got.scales, whole.scales)
    assert peak < 6 * got.nbytes


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (stated(indices=np.full((1, 4, 8), -1, np.int32)), "indices: expected less than 15, got 15"),
        (stated(indices=np.zeros((1, 4, 7), np.int32)), "expected 7 words"),
        (stated(indices=np.zeros((4, 8), np.int32)), "indices: expected int32"),
        (stated(indices=np.zeros((1, 4, 8), np.int16)), "indices: expected int32"),
        (stated(perm=np.zeros(64, np.int16)), "perm: expected each"),
        (stated(perm=np.arange(63, dtype=np.int16)), "words"),
        (stated(weight_scale=np.full(64, np.nan, np.float16)), "finite"),
        (stated(weight_scale=np.ones((64, 1), np.float16)), "weight_scale: expected floats"),
        (stated(weight_bias=np.ones((1, 64), np.float32)), "weight_bias: expected floats"),
        (stated(weight_scale=np.ones(64, np.int32)), "weight_scale: expected floats"),
        (stated(weight_bias=np.ones(1, np.float32)), "weight_bias: expected floats"),
        (stated(weight_bias=np.ones(0, np.float32)), "weight_bias: expected floats"),
        (stated(perm=np.arange(64, dtype=np.int16).reshape(64, 1)), "perm: expected whole"),
        (stated(perm=np.arange(64, dtype=np.float32)), "perm: expected whole"),
        (stated(perm=np.zeros(0, np.int16)), "words"),
        (stated(**{"centroids.weight": np.ones((1, 121), np.float32)}), "vectors of 8"),
        (stated(**{"centroids.weight": np.ones((2, 120), np.float32)}), "in 1 books"),
        (stated(**{"res_centroids.weight": np.ones((1, 8 * 64), np.float32)}), "not the longer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_folders(tmp_path, tensors, words):
    with pytest.raises(FileError, match=words):
        read(tmp_path, tensors, config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config_for_layers": None}, "config_for_layers"),
        ({"config_for_layers": {"a": 3}}, "config_for_layers"),
        (config(outlier_size=32), "outlier_size"),
        (config(vector_lens=[-1, 0]), "vector_lens"),
        (config(vector_lens=[-1, 1 << 40]), "vector_lens"),
        (config(vector_lens="8"), "vector_lens"),
        (config(vector_lens=[]), "vector_lens"),
        (config(vector_lens=None), "vector_lens"),
        (config(vector_lens=[-1, None]), "vector_lens"),
        (config(vector_lens=[-1, True]), "vector_lens"),
        ({"config_for_layers": {"a": {"vector_lens": [-1, 8]}, "b": {"vector_lens": [-1, 4]}}}, "vector_lens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configs_that_are_not_understood(tmp_path, changes, words):
    with pytest.raises(FileError, match=words):
        read(tmp_path, stated(), config() | changes)
