import numpy as np
import pytest

from lutra.errors import FileError, FormatError
from lutra.files.bitnet import is_bitnet, scale_divides, unpack
from lutra.files.methods.table import layouts
from tests.files.make_models import pack_bitnet


def test_unpack_by_hand():
    # N = 4, K = 1: rows 0..3 are -1, 0, 1, 0, so the byte is 01_10_01_00
    w = unpack(np.array([[0b01_10_01_00]], np.uint8), np.array([2.0], np.float32), divides=False)
    assert w.shape == (4, 1) and w.dequantize()[:, 0].tolist() == [-2, 0, 2, 0]


def test_the_scale_divides_or_multiplies():
    packed, scale = np.array([[0b10]], np.uint8), np.array([4.0], np.float32)
    assert unpack(packed, scale, divides=False).dequantize()[0, 0] == 4
    assert unpack(packed, scale, divides=True).dequantize()[0, 0] == 0.25


@pytest.mark.parametrize(("n", "k"), [(4, 1), (8, 33), (64, 160)])
def test_unpack_undoes_pack(n, k):
    trits = np.random.default_rng(0).integers(-1, 2, (n, k)).astype(np.int8)
    assert np.array_equal(unpack(pack_bitnet(trits), np.ones(1, np.float32), False).dequantize(), trits)


@pytest.mark.parametrize(
    ("quantization", "divides"),
    [(None, True), ({}, True), ({"quant_method": "bitnet"}, True), ({"linear_class": "bitlinear"}, True),
     ({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}, False)],
)  # fmt: skip
def test_linear_class_decides(quantization, divides):
    config = {} if quantization is None else {"quantization_config": quantization}
    assert scale_divides(config) is divides


@pytest.mark.parametrize("linear_class", ["other", ["bitlinear"], 4])
def test_other_linear_classes_are_refused(linear_class):
    with pytest.raises(FileError, match=r"expected .* got .*; "):
        scale_divides({"quantization_config": {"linear_class": linear_class}})


@pytest.mark.parametrize("quantization", [{"quant_method": "quip"}, "bitnet", ["bitnet"], 4])
def test_other_quantisations_are_refused(quantization):
    with pytest.raises(FileError, match=r"expected .* got .*; "):
        layouts({"quantization_config": quantization})


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 1e-40])
def test_scales_without_meaning(scale):
    with pytest.raises(FormatError, match="finite"):
        unpack(np.zeros((1, 4), np.uint8), np.array([scale], np.float32), divides=True)


def test_code_three_is_refused():
    with pytest.raises(FormatError, match="ternary codes"):
        unpack(np.array([[0b11]], np.uint8), np.ones(1, np.float32), False)


@pytest.mark.parametrize(
    ("config", "answer"),
    [({"model_type": "bitnet"}, True), ({"model_type": "llama", "architectures": ["BitnetForCausalLM"]}, True),
     ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, False), ({}, False),
     ({"model_type": 3, "architectures": "BitNet"}, False)],
)  # fmt: skip
def test_is_bitnet(config, answer):
    assert is_bitnet(config) is answer
