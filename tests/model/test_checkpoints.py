"""Whole models quantised by others run: logits agree with a plain float64 decoder, inputs permuted or not."""

import json
from pathlib import Path

import numpy as np
import pytest

from lutra.compiler.launch import Workers
from lutra.files import open_model
from lutra.files.safetensors import read_file
from lutra.model import packed
from lutra.model.config import config_from
from lutra.model.load import load_weights
from lutra.model.pack import pack
from lutra.model.transformer import Transformer
from tests.files import checkpoint_writers as write
from tests.files.make_models import tiny_hf
from tests.files.safetensors_writer import write_safetensors
from tests.reference_decoder import ReferenceDecoder

TOKENS = [1, *(int(i) for i in np.random.default_rng(6).integers(3, 250, 20))]
GROUP = 32


def quantised_folder(folder: Path, method: str, orders: dict[str, int]) -> None:
    """Write tiny llama with its linears in 4 bits.

    orders   part → seed of the permutation of its groups; parts of one seed share it, parts without have none
    """
    tiny_hf(folder)
    tensors = {name: tensor.dense() for name, tensor in read_file(folder / "model.safetensors").items()}
    for name in [name for name in tensors if "_proj" in name]:
        prefix, part, k = name.removesuffix(".weight"), name.split(".")[-2], tensors[name].shape[1]
        groups = np.arange(k) // GROUP
        if part in orders:
            groups = np.random.default_rng(orders[part]).permutation(groups)
        tensors |= {f"{prefix}.{end}": part for end, part in quantise(tensors.pop(name), groups, method).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": GROUP, "sym": False,
                                     "desc_act": bool(orders)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


FP8 = {
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, "weight_scale", ()),
    "rows": ({"quant_method": "compressed-tensors", "format": "float-quantized",
              "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, "weight_scale", (1,)),
    "blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "weight_scale_inv", (128, 128)),
}  # fmt: skip


def fp8_folder(folder: Path, kind: str) -> None:
    """Write tiny llama with its linears in FP8."""
    tiny_hf(folder)
    stated, suffix, block = FP8[kind]
    tensors = {name: tensor.dense() for name, tensor in read_file(folder / "model.safetensors").items()}
    for name in [name for name in tensors if "_proj" in name]:
        n, k = tensors[name].shape
        shape = {0: (), 1: (n, 1), 2: (-(-n // 128), -(-k // 128))}[len(block)]
        scale = np.random.default_rng(n + k).uniform(1, 2, shape) * np.abs(tensors[name]).max() / 448
        wide = np.repeat(np.repeat(scale, 128, 0)[:n], 128, 1)[:, :k] if len(block) == 2 else scale
        tensors[name] = write.e4m3(tensors[name] / wide)
        tensors[name.removesuffix("weight") + suffix] = np.asarray(scale, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))


def logits_of(folder: Path) -> np.ndarray:
    file = open_model(folder)
    config = config_from(file)
    weights = packed.load(file, config) if file.kind == "packed" else load_weights(file, config)
    return Transformer(config, weights, Workers(2), 64, all_logits=True).score(TOKENS, 0).copy()


@pytest.mark.parametrize("kind", FP8)
def test_fp8_runs_in_one_byte_and_says_what_it_says_multiplied_out(tmp_path, kind):
    fp8_folder(tmp_path, kind)
    got = logits_of(tmp_path)
    file = open_model(tmp_path)
    layer = load_weights(file, config_from(file)).layers[0]
    assert {linear.weight.order for linear in (*layer.qkv, layer.o, layer.gate_up, layer.down)} == {"dense"}
    assert layer.down.weight.codes.size == layer.down.weight.padded_n * layer.down.weight.padded_k
    pack(tmp_path, tmp_path / "model.lutra", "auto", lambda label, done, total: None)
    assert np.array_equal(logits_of(tmp_path / "model.lutra"), got)
    tensors = {name: tensor.read() for name, tensor in file.tensors.items()}
    wide = {name: value.dequantize() for name, value in tensors.items() if not isinstance(value, np.ndarray)}
    assert len(wide) == 7 * config_from(file).num_layers
    stored = {tensor.source_name: tensor for tensor in file.tensors.values()}
    plain = {name.removesuffix(".weight") + ".weight": np.asarray(wide.get(tensor.name, tensors[tensor.name]))
             for name, tensor in stored.items()}  # fmt: skip
    write_safetensors(tmp_path / "model.safetensors", plain)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quantization_config"}))
    assert np.array_equal(logits_of(tmp_path), got)


def quantise(w, groups, method):
    columns = [groups == g for g in range(groups.max() + 1)]
    low = np.stack([np.minimum(w[:, c].min(1), 0) for c in columns], 1)
    high = np.stack([np.maximum(w[:, c].max(1), 0) for c in columns], 1)
    scales = ((high - low) / 15).astype(np.float16)
    zeros = np.rint(-low / scales.astype(np.float32)).clip(1, 15).astype(np.uint8)
    codes = np.rint(w / scales.astype(np.float32)[:, groups]) + zeros[:, groups]
    codes = codes.clip(0, 15).astype(np.uint8)
    if method == "awq":
        return write.awq_gemm(codes, scales, zeros)
    return write.gptq(codes, scales, zeros, 4, g_idx=groups)


ONE_FOR_EACH_INPUT = {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 2, "gate_proj": 3, "up_proj": 3, "down_proj": 4}
ONE_FOR_EACH_LINEAR = {"q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 4, "gate_proj": 5, "up_proj": 6}
# gate and up of different orders do not fit together and are widened: no int8 there, but in the reference
CASES = [("gptq", {}, 0.04), ("awq", {}, 0.04), ("gptq", ONE_FOR_EACH_INPUT, 0.04), ("gptq", ONE_FOR_EACH_LINEAR, 0.1)]


@pytest.mark.parametrize(("method", "orders", "tolerance"), CASES)
def test_logits(tmp_path, method, orders, tolerance):
    quantised_folder(tmp_path, method, orders)
    file = open_model(tmp_path)
    config = config_from(file)
    got = Transformer(config, load_weights(file, config), Workers(2), 64, all_logits=True).score(TOKENS, 0).copy()
    want = ReferenceDecoder(file, config).logits(TOKENS)
    pack(tmp_path, tmp_path / "model.lutra", "auto", lambda label, done, total: None)
    packed_file = open_model(tmp_path / "model.lutra")
    again = Transformer(config, packed.load(packed_file, config), Workers(1), 64, all_logits=True).score(TOKENS, 0)
    assert np.array_equal(again, got)
    error = np.sqrt(((got - want) ** 2).mean()) / want.std()
    assert error < tolerance, f"error is {error:.5f} standard deviations of the logits"
