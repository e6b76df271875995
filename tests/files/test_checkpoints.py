"""Quantised Hugging Face folders: every layout, written by an independent writer, gives exactly W = s (q - z)."""

import json

import ml_dtypes
import numpy as np
import pytest

from lutra.errors import FileError
from lutra.files import open_model
from lutra.formats.tables import TABLES
from lutra.quantize.quality import sqnr_db
from tests.files import checkpoint_writers as write
from tests.files.safetensors_writer import write_safetensors

NAME = "model.layers.0.self_attn.q_proj"
N, K = 48, 128


def a_weight(bits, group, *, seed=0, low=0):
    """Codes [N, K], scales f16 [N, G], zeros [N, G], and W."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(low, 2**bits, (N, K)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, (N, K // group)).astype(np.float16)
    zeros = rng.integers(1, 2**bits, scales.shape).astype(np.uint8)
    return codes, scales, zeros, dequantised(codes, scales, zeros, np.arange(K) // group)


def dequantised(codes, scales, zeros, groups):
    return scales.astype(np.float32)[:, groups] * (codes.astype(np.float32) - zeros.astype(np.float32)[:, groups])


def read(tmp_path, tensors, config):
    write_safetensors(tmp_path / "model.safetensors", {f"{NAME}.{part}": values for part, values in tensors.items()})
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    file = open_model(tmp_path)
    assert not file.unknown and set(file.tensors) - {"layers.0.q.bias"} == {"layers.0.q"}
    tensor = file.tensors["layers.0.q"]
    value = tensor.read()
    assert tensor.shape == value.shape
    return value if isinstance(value, np.ndarray) else value.dequantize()


def test_gptq_by_hand(tmp_path):
    """K = 32, one column: code 5 first, zero 3 stored as 2, scale 0.5: (5 - 3) / 2 = 1."""
    qweight = np.zeros((4, 8), np.uint32)
    qweight[0, 0] = 5
    tensors = {"qweight": qweight.view(np.int32), "qzeros": np.full((1, 1), 0x22222222, np.int32),
               "scales": np.full((1, 8), 0.5, np.float16)}  # fmt: skip
    w = read(tmp_path, tensors, {"quant_method": "gptq", "bits": 4, "group_size": 32})
    assert w.shape == (8, 32) and w[0, 0] == 1.0 and (w.reshape(-1)[1:] == -1.5).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq(tmp_path, bits, version):
    codes, scales, zeros, want = a_weight(bits, 32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": False,
              "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}  # fmt: skip
    tensors = write.gptq(codes, scales, zeros, bits, version=version, g_idx=np.arange(K) // 32)
    assert np.array_equal(read(tmp_path, tensors, config), want)


def test_gptq_version_1_wraps_a_zero_of_0(tmp_path):
    codes, scales, zeros, _ = a_weight(4, 32)
    zeros[:] = 0
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
    want = dequantised(codes, scales, zeros, np.arange(K) // 32)
    assert np.array_equal(read(tmp_path, write.gptq(codes, scales, zeros, 4), config), want)


def test_gptq_of_8_bits_is_int8(tmp_path):
    codes, scales, zeros, _ = a_weight(8, 32)
    zeros[:] = 128
    want = dequantised(codes, scales, zeros, np.arange(K) // 32)
    got = read(tmp_path, write.gptq(codes, scales, zeros, 8), {"quant_method": "gptq", "bits": 8, "group_size": 32})
    assert np.array_equal(got, want)


@pytest.mark.parametrize("group", [K, 48, 96])
def test_gptq_groups_of_other_sizes(tmp_path, group):
    """A whole row; 48 is stored as 16 thrice; the last group may be short."""
    codes, scales, zeros, _ = a_weight(4, 32)
    groups = np.arange(K) // group
    scales, zeros = scales[:, : groups[-1] + 1], zeros[:, : groups[-1] + 1]
    config = {"quant_method": "gptq", "bits": 4, "group_size": -1 if group == K else group, "sym": False}
    got = read(tmp_path, write.gptq(codes, scales, zeros, 4, g_idx=groups), config)
    assert np.array_equal(got, dequantised(codes, scales, zeros, groups))


def test_gptq_act_order_keeps_the_permutation_beside_the_weight(tmp_path):
    codes, scales, zeros, _ = a_weight(4, 32)
    groups = np.random.default_rng(3).permutation(np.arange(K) // 32)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False}
    got = read(tmp_path, write.gptq(codes, scales, zeros, 4, g_idx=groups), config)
    assert np.array_equal(got, dequantised(codes, scales, zeros, groups))


def test_efficientqat_packs_ten_codes_of_3_bits_to_a_word(tmp_path):
    codes, scales, zeros, want = a_weight(3, 32)
    tensors = write.gptq(codes, scales, zeros, 3, version=2, pack=write.whole, g_idx=np.arange(K) // 32)
    assert np.array_equal(read(tmp_path, tensors, {"quant_method": "efficientqat", "bits": 3, "group_size": 32}), want)


@pytest.mark.parametrize(("packing", "version"), [("auto_round:auto_gptq", 1), ("auto_round:gptqmodel", 2)])
def test_auto_round_as_gptq(tmp_path, packing, version):
    codes, scales, zeros, want = a_weight(4, 32)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "packing_format": packing}
    assert np.array_equal(read(tmp_path, write.gptq(codes, scales, zeros, 4, version=version), config), want)


def test_auto_round_as_awq(tmp_path):
    codes, scales, zeros, want = a_weight(4, 32)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"}
    assert np.array_equal(read(tmp_path, write.awq_gemm(codes, scales, zeros), config), want)


@pytest.mark.parametrize(("version", "writer"), [("gemm", write.awq_gemm), ("gemv", write.awq_gemv)])
def test_awq(tmp_path, version, writer):
    codes, scales, zeros, want = a_weight(4, 32)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": version}
    assert np.array_equal(read(tmp_path, writer(codes, scales, zeros), config), want)


def compressed(format="pack-quantized", **weights):
    return {"quant_method": "compressed-tensors", "format": format,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_pack_quantized(tmp_path, bits, dtype):
    codes, scales, _, _ = a_weight(bits, 32)
    scales = scales.astype(dtype)
    want = dequantised(codes, scales, np.full(scales.shape, 2 ** (bits - 1)), np.arange(K) // 32)
    config = compressed(num_bits=bits, type="int", strategy="group", group_size=32, symmetric=True)
    assert np.array_equal(read(tmp_path, write.pack_quantized(codes, scales, bits), config), want)
    assert open_model(tmp_path).tensors["layers.0.q"].read().scales.dtype == dtype


def test_bf16_scales_stay_bf16_beside_zeros_too(tmp_path):
    codes, scales, zeros, _ = a_weight(4, 32)
    scales, groups = scales.astype(ml_dtypes.bfloat16), np.arange(K) // 32
    config = compressed(num_bits=4, type="int", strategy="group", group_size=32, symmetric=False)
    got = read(tmp_path, write.pack_quantized(codes, scales, 4, zeros=zeros), config)
    assert np.array_equal(got, dequantised(codes, scales, zeros, groups))
    assert open_model(tmp_path).tensors["layers.0.q"].read().format.name == "planes4-g32-zeros-bf16"


@pytest.mark.parametrize("bits", [3, 4])
def test_pack_quantized_with_zero_points_and_act_order(tmp_path, bits):
    codes, scales, zeros, _ = a_weight(bits, 32)
    groups = np.random.default_rng(3).permutation(np.arange(K) // 32)
    tensors = write.pack_quantized(codes, scales, bits, zeros=zeros, g_idx=groups)
    config = compressed(num_bits=bits, type="int", strategy="group", group_size=32, symmetric=False, actorder="group")
    assert np.array_equal(read(tmp_path, tensors, config), dequantised(codes, scales, zeros, groups))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_int_quantized(tmp_path, dtype):
    weight = np.random.default_rng(0).integers(-128, 128, (N, K)).astype(np.int8)
    scale = np.random.default_rng(1).uniform(0.01, 0.1, (N, 1)).astype(dtype)
    got = read(tmp_path, {"weight": weight, "weight_scale": scale}, compressed("int-quantized", num_bits=8, type="int"))
    assert np.array_equal(got, weight.astype(np.float32) * scale.astype(np.float32))
    assert open_model(tmp_path).tensors["layers.0.q"].read().scales.dtype == dtype


FP8_VALUES = np.random.default_rng(0).normal(0, 30, (N, K)).astype(np.float32)


@pytest.mark.parametrize("scale_type", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (N, 1)])
def test_fp8(tmp_path, shape, scale_type):
    weight, scale = write.e4m3(FP8_VALUES), np.random.default_rng(1).uniform(0.01, 0.1, shape)
    scale = np.asarray(scale).astype(scale_type)
    want = weight.astype(np.float32) * scale.astype(np.float32).reshape(-1, 1)
    tensors = {"weight": weight, "weight_scale": scale, "input_scale": np.ones(1, np.float32)}
    assert np.array_equal(read(tmp_path, tensors, compressed("float-quantized", num_bits=8, type="float")), want)
    assert np.array_equal(read(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "FP8"}), want)
    stored = open_model(tmp_path).tensors["layers.0.q"].read()
    assert stored.packed.nbytes == N * K and stored.format.levels == "e4m3" and stored.scales.dtype == scale_type


@pytest.mark.parametrize(("n", "k"), [(48, 128), (200, 300), (256, 512)])
def test_fp8_in_blocks(tmp_path, n, k):
    rng = np.random.default_rng(2)
    weight = rng.normal(0, 30, (n, k)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.01, 0.1, (-(-n // 128), -(-k // 128))).astype(np.float32)
    want = weight.astype(np.float32) * scale[np.arange(n) // 128][:, np.arange(k) // 128]
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert np.array_equal(read(tmp_path, {"weight": weight, "weight_scale_inv": scale}, config), want)
    with pytest.raises(FileError, match="weight_block_size: expected .128, 128., got .64, 64."):
        read(tmp_path, {"weight": weight, "weight_scale_inv": scale}, config | {"weight_block_size": [64, 64]})
    rows = {"weight": weight, "weight_scale": np.repeat(scale, 128, 0)[:n]}
    want_rows = compressed("float-quantized", num_bits=8, type="float", strategy="group", group_size=128)
    assert np.array_equal(read(tmp_path, rows, want_rows), want)


@pytest.mark.parametrize("change", [
    {"weight": np.full((N, K), np.nan).astype(ml_dtypes.float8_e4m3fn)}, {"weight": np.zeros((N, K), np.float16)},
    {"weight": write.e4m3(FP8_VALUES).reshape(-1)}, {"weight_scale": np.ones((3, 5), np.float32)},
    {"weight_scale": np.ones((1, N), np.float32)}, {"weight_scale": np.ones((2, N // 2), np.float32)},
    {"weight_scale": np.ones((0, 1), np.float32)}, {"weight": np.zeros((0, K), ml_dtypes.float8_e4m3fn)},
    {"weight_scale": np.ones((N, 1), np.int32)}, {"weight_scale": np.full((N, 1), np.inf, np.float32)},
    {"weight_scale": np.full((N, 1), 1e38, np.float32)},
])  # fmt: skip
def test_fp8_that_means_nothing_is_refused(tmp_path, change):
    tensors = {"weight": write.e4m3(FP8_VALUES), "weight_scale": np.ones((N, 1), np.float32)} | change
    with pytest.raises(FileError, match=r"expected .*got .*; "):
        read(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "FP8"})


@pytest.mark.parametrize("config", [
    {"quant_method": "fp8"}, {"quant_method": "fp8", "weight_block_size": None},
    {"quant_method": "fp8", "weight_block_size": [128, None]}, {"quant_method": "modelopt", "quant_algo": None},
    {"quant_method": "modelopt", "quantization": None}, {"quant_method": "modelopt", "quantization": {}},
    {"quant_method": "modelopt", "quant_algo": ["FP8"]}, {"quant_method": None},
])  # fmt: skip
def test_nulls_in_what_config_json_says_are_refused(tmp_path, config):
    with pytest.raises(FileError, match=r"expected .*got .*; "):
        read(tmp_path, {"weight": write.e4m3(FP8_VALUES), "weight_scale": np.ones((N, 1), np.float32)}, config)


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def test_nvfp4_of_both_writers(tmp_path):
    """The factor of the tensor divides in compressed-tensors and multiplies in ModelOpt."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (N, K)).astype(np.uint8)
    scales = write.e4m3(rng.uniform(0.1, 400, (N, K // 16)))
    want = FP4[codes] * np.repeat(scales.astype(np.float32) * np.float32(1 / 64), 16, axis=1)
    tensors = {"weight_packed": write.pairs(codes), "weight_scale": scales,
               "weight_global_scale": np.array([64], np.float32)}  # fmt: skip
    got = read(tmp_path, tensors, compressed("nvfp4-pack-quantized", num_bits=4, type="float", group_size=16))
    assert np.array_equal(got, want)
    tensors = {"weight": write.pairs(codes), "weight_scale": scales, "weight_scale_2": np.array(1 / 64, np.float32)}
    assert np.array_equal(read(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}), want)


def test_mxfp4(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (N, K)).astype(np.uint8)
    exponents = rng.integers(100, 130, (N, K // 32)).astype(np.uint8)
    tensors = {"weight_packed": write.pairs(codes), "weight_scale": exponents}
    got = read(tmp_path, tensors, compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32))
    assert np.array_equal(got, FP4[codes] * np.repeat(2.0 ** (exponents.astype(np.float32) - 127), 32, axis=1))


NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022833424, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
                1], np.float32)  # fmt: skip
FP4_BNB = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def test_nf4_levels_are_rounded_to_127ths(tmp_path):
    rng = np.random.default_rng(0)
    codes, absmax = rng.integers(0, 16, (N, K)).astype(np.uint8), rng.uniform(0.5, 2, (N, K // 64)).astype(np.float32)
    got = read(tmp_path, write.bitsandbytes(codes, absmax, NF4, "nf4"), BNB)
    wide = np.repeat(absmax, 64, axis=1)
    assert np.abs(got - NF4[codes] * wide).max() <= 0.5001 / 127 * absmax.max()
    np.testing.assert_allclose(got, TABLES["nf4"][codes] / 127 * wide, rtol=3e-7)


def test_what_rounding_nf4_levels_costs():
    """The number on docs/files.md: normal weights in blocks of 64, against the exact table."""
    w = np.random.default_rng(0).standard_normal((1 << 15, 64)).astype(np.float32)
    absmax = np.abs(w).max(1, keepdims=True)
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, w / absmax)
    exact, ours = NF4[codes] * absmax, TABLES["nf4"][codes] / np.float32(127) * absmax
    assert sqnr_db(exact, ours) == pytest.approx(44.3, abs=0.1)
    assert sqnr_db(w, exact) - sqnr_db(w, ours) == pytest.approx(0.03, abs=0.01)


def test_a_table_of_somebodys_own_is_multiplied_out(tmp_path):
    codes, levels = np.arange(N * K, dtype=np.uint8).reshape(N, K) % 16, np.linspace(-1, 1, 16, dtype=np.float32)
    absmax = np.full((N, K // 64), 0.5, np.float32)
    got = read(tmp_path, write.bitsandbytes(codes, absmax, levels, "nf4"), BNB)
    assert np.array_equal(got, levels[codes] * np.float32(0.5))


def test_fp4_with_scales_quantised_again(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (N, K)).astype(np.uint8)
    inner, table = rng.integers(0, 256, N * K // 64).astype(np.uint8), rng.uniform(-1, 1, 256).astype(np.float32)
    outer, offset = np.array([0.25], np.float32), 1.5
    tensors = write.bitsandbytes(codes, np.zeros((N, K // 64)), FP4_BNB, "fp4", nested=(inner, table, outer, offset))
    absmax = (table[inner] * np.float32(0.25) + np.float32(offset)).reshape(N, -1)
    assert np.array_equal(read(tmp_path, tensors, BNB), FP4_BNB[codes] * np.repeat(absmax, 64, axis=1))


@pytest.mark.parametrize("change", [{"shape": None}, {"shape": [N, None]}, {"shape": [N, float(K)]}, {"shape": [N]},
                                    {"blocksize": None}, {"blocksize": True}, {"nested_offset": None}])
def test_a_state_with_nulls_is_refused(tmp_path, change):
    name = "weight.quant_state.bitsandbytes__nf4"
    tensors = write.bitsandbytes(np.zeros((N, K), np.uint8), np.ones((N, K // 64), np.float32), NF4, "nf4")
    text = json.dumps(json.loads(tensors[name].tobytes()) | change)
    with pytest.raises(FileError, match="quant_state: expected shape"):
        read(tmp_path, tensors | {name: np.frombuffer(text.encode(), np.uint8)}, BNB)


@pytest.mark.parametrize("largest", [np.inf, np.nan, 3e38])
def test_values_multiplied_out_are_finite(tmp_path, largest):
    absmax = np.full((N, K // 64), largest, np.float32)
    tensors = write.bitsandbytes(np.full((N, K), 3, np.uint8), absmax, 12 * FP4_BNB, "fp4")
    with pytest.raises(FileError, match="expected finite values"):
        read(tmp_path, tensors, BNB)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_hqq(tmp_path, bits):
    codes, scales, _, _ = a_weight(bits, 64)
    scales = scales.astype(np.float32)
    zeros = np.random.default_rng(5).uniform(0, 2**bits - 1, scales.shape).astype(np.float32)
    config = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": bits, "axis": 1}}}
    wide = np.repeat(scales, 64, axis=1)
    want = (codes - np.repeat(zeros, 64, axis=1)) * wide
    np.testing.assert_allclose(read(tmp_path, write.hqq(codes, scales, zeros, bits), config), want, atol=3e-7)


def test_a_linear_left_dense_and_a_bias_are_read_beside_quantised_ones(tmp_path):
    codes, scales, zeros, want = a_weight(4, 32)
    parts = {f"{NAME}.{part}": values for part, values in write.gptq(codes, scales, zeros, 4).items()}
    dense = np.ones((4, 8), np.float16)
    write_safetensors(tmp_path / "model.safetensors", parts | {f"{NAME}.bias": np.ones(N, np.float16),
                      "lm_head.weight": dense, "model.norm.weight": np.ones(8, np.float16)})  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    file = open_model(tmp_path)
    assert set(file.tensors) == {"layers.0.q", "layers.0.q.bias", "head", "final_norm"} and not file.unknown
    assert np.array_equal(file.tensors["head"].read(), dense) and file.tensors["layers.0.q.bias"].shape == (N,)


def a_gptq_folder(tmp_path, change_tensors=None, **config):
    codes, scales, zeros, _ = a_weight(4, 32)
    tensors = write.gptq(codes, scales, zeros, 4, g_idx=np.arange(K) // 32) | (change_tensors or {})
    return read(tmp_path, tensors, {"quant_method": "gptq", "bits": 4} | config)


@pytest.mark.parametrize("config", [{"bits": 5}, {"bits": True}, {"bits": [4]}, {"bits": 9}, {"bits": None},
                                    {"checkpoint_format": "marlin"}, {"checkpoint_format": ["gptq"]},
                                    {"pack_dtype": "int64"}, {"quant_method": "quip"}, {"quant_method": ["gptq"]}])
def test_configs_that_do_not_fit_are_refused(tmp_path, config):
    with pytest.raises(FileError, match=r"expected .* got .*; "):
        a_gptq_folder(tmp_path, **config)


@pytest.mark.parametrize("change", [
    {"qzeros": np.zeros((4, 5), np.int32)}, {"scales": np.zeros((3, N), np.float16)},
    {"qweight": np.zeros(9, np.int32)},
    {"g_idx": np.full(K, 99, np.int32)}, {"g_idx": np.full(K, -1, np.int32)}, {"g_idx": np.zeros(7, np.int32)},
    {"g_idx": (np.arange(K) // 40).astype(np.int32)}, {"scales": np.full((4, N), np.inf, np.float16)},
])  # fmt: skip
def test_parts_that_contradict_each_other_are_refused(tmp_path, change):
    with pytest.raises(FileError, match=r"expected .* got .*; |finite"):
        a_gptq_folder(tmp_path, change)


def hostile_parts():
    """Parts that fit by their sizes and mean nothing, for each method: what to write, what config.json says."""
    codes, scales, zeros, _ = a_weight(4, 32)
    gptq = write.gptq(codes, scales, zeros, 4, g_idx=np.arange(K) // 32)
    packed = write.pack_quantized(codes, scales, 4, zeros=zeros, g_idx=np.arange(K)[::-1] // 32)
    nested = np.zeros(2 * N, np.uint8), np.ones(256, np.float32), np.ones(1, np.float32), 10**400
    bnb = write.bitsandbytes(codes, np.ones((N, 2), np.float32), np.ones(16, np.float32), "nf4", nested=nested)
    int8 = {"weight": codes.astype(np.int8).reshape(-1), "weight_scale": np.ones(1, np.float32)}
    hqq = write.hqq(codes, scales, zeros.astype(np.float16), 4) | {"shape": np.array([N, np.nan], np.float32)}
    says_gptq = {"quant_method": "gptq", "bits": 4}
    groups = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    says = {"quant_method": "compressed-tensors", "format": "pack-quantized"} | groups
    yield "gptq words are bytes", gptq | {"qweight": gptq["qweight"].astype(np.int8)}, says_gptq
    yield "gptq g_idx has two axes", gptq | {"g_idx": gptq["g_idx"].reshape(-1, 1)}, says_gptq
    yield "groups of more columns", packed | {"weight_g_idx": np.arange(2 * K, dtype=np.int32)[::-1] // 64}, says
    yield "zeros are flat", packed | {"weight_zero_point": packed["weight_zero_point"].reshape(-1)}, says
    yield "sizes are floats", packed | {"weight_shape": np.array([N, np.inf], np.float32)}, says
    yield "int8 is flat", int8, says | {"format": "int-quantized"}
    yield "hqq sizes are nan", hqq, {"quant_method": "hqq", "nbits": 4}
    yield "an offset of 400 digits", bnb, {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("case", list(hostile_parts()), ids=lambda case: case[0])
def test_parts_that_mean_nothing_are_refused(tmp_path, case):
    _, tensors, config = case
    with pytest.raises(FileError):
        read(tmp_path, tensors, config)
